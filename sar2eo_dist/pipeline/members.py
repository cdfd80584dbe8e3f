"""What a cloud reference set consists of: listed cheaply, before Ray; and how one member of it is read."""

from __future__ import annotations

import importlib
import io
import re
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from sar2eo_dist import sources, storage
from sar2eo_dist.cca import exposure
from sar2eo_dist.cca.frechet import Reference
from sar2eo_dist.errors import BadInput, ConfigError, NotFound, ReferenceSetError
from sar2eo_dist.models import inception
from sar2eo_dist.models.extractors import EXTRACTORS
from sar2eo_dist.pipeline import candidates
from sar2eo_dist.records import TileRef, digest
from sar2eo_dist.report import contact
from sar2eo_dist.sections import CCA

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
UNSCORED = ("released", "none")  # profiles without a stage 3
#: distance -> what the samples of its reference set are
KINDS = {"point": "pooled", "spatial": "positions", "position": "positions"}
RGB8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a set. name: its URI, or the key of a tile; digest of the listed input; ref: of a tile."""

    name: str
    digest: str
    ref: TileRef | None = None

    @property
    def uris(self) -> tuple[str, ...]:
        return self.ref.uris if self.ref else (self.name,)


@dataclass(frozen=True, slots=True)
class Members:
    """A set in canonical order (by name), or `built`: URI of an .npz that needs no images. mark: digest; "" = no set."""

    items: tuple[Member, ...] = ()
    built: str = ""
    mark: str = ""


def members(cca: CCA) -> Members:
    """The configured set as `listed`; none for the profiles that have no stage 3, and `recommended` goes without one too."""
    if cca.profile in UNSCORED or (cca.profile == "recommended" and not cca.reference):
        return Members()
    return listed(cca)


def listed(cca: CCA) -> Members:
    """The set that `cca.reference` names, whatever the profile; weights and a built set are checked too.

    Raises ConfigError where none is configured, ReferenceSetError: fewer than 2 images, a bad list or table, a built set
    of another extractor, preprocessing or kind; and storage's errors.
    """
    if not cca.reference:
        raise ConfigError(
            "cca.reference is empty: set it to a folder of 8-bit RGB cloud images, a list of them (.txt), a table of "
            "candidates (.csv, from jobs/reference.py --candidates N) or a built set (.npz), any URI; or set "
            "cca.profile=none to keep every readable tile"
        )
    if cca.extractor == "inception":
        inception.place(cca.weights)  # missing or wrong weights stop here, before anything starts
    uri = storage.absolute(cca.reference)
    if uri.lower().endswith(".npz"):
        data = storage.read_bytes(uri)
        try:
            stored(data, cca)
        except ReferenceSetError as e:
            raise ReferenceSetError(f"{e}: {uri}") from e
        return Members((), uri, storage.sha256(data)[:32])
    if uri.lower().endswith(".csv"):
        found = [Member(ref.key, ref.digest, ref) for ref in candidates.read(uri)]
    elif uri.lower().endswith(".txt"):
        found = _of_list(uri)
    else:
        found = [Member(i.uri, i.digest) for i in storage.list_files(uri) if i.uri.lower().endswith(ENDINGS)]
    if len(found) < 2:
        raise ReferenceSetError(f"a reference set needs at least 2 images, {len(found)} found: {uri}")
    items = tuple(sorted(found, key=lambda m: m.name))
    return Members(items, "", digest([m.digest for m in items]))


def _of_list(uri: str) -> list[Member]:
    """A .txt list: one URI a line, relative to the list's folder; # begins a comment. Raises ReferenceSetError."""
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise ReferenceSetError(f"list is not UTF-8 text ({e.reason} at byte {e.start}): {uri}") from e
    folder = uri.rpartition("/")[0]
    where: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if text := re.split(r"(?:^|\s)#", line)[0].strip():
            image = storage.join(folder, text)
            if image in where:
                raise ReferenceSetError(f"lines {where[image]} and {number} name the same image {image}: {uri}")
            if not image.lower().endswith(ENDINGS):
                raise ReferenceSetError(f"line {number}: {text!r} is no image ({' '.join(ENDINGS)}): {uri}")
            where[image] = number

    def info(image: str) -> storage.Info:
        try:
            return storage.info(image)
        except NotFound as e:
            raise ReferenceSetError(f"line {where[image]}: no such image {image}: {uri}") from e

    with ThreadPoolExecutor(16) as pool:
        return [Member(i.uri, i.digest) for i in pool.map(info, where)]


def preprocessing(extractor: str) -> str:
    """What an extractor does to images, in words, without loading its network."""
    module, network = EXTRACTORS[extractor]
    words: str = getattr(importlib.import_module(f"sar2eo_dist.models.{module}"), network).preprocessing
    return words


def stored(data: bytes, cca: CCA) -> Reference:
    """A built set, checked against the config; pytorch-fid's statistics (an .npz of mu and sigma) are one too.

    Raises ReferenceSetError: no such file, or of another extractor, preprocessing or kind.
    """
    kind = KINDS[cca.distance]
    if not foreign(data):
        reference = Reference.from_bytes(data)
        reference.check(cca.extractor, preprocessing(cca.extractor), kind)
        if cca.rule == "reference" and reference.distance != cca.distance:
            raise ReferenceSetError(
                f"this set has not the {cca.distance} distances of its own images that cca.rule=reference is made of: build "
                f"it again from them (jobs/reference.py with this config), or choose another cca.rule"
            )
        return reference
    if (cca.extractor, kind) != ("inception", "pooled") or cca.rule == "reference":
        raise ReferenceSetError(
            f"pytorch-fid's statistics are of pooled Inception features: they serve cca.extractor=inception with "
            f"cca.distance=point and a cca.rule other than reference, not {cca.extractor} with {cca.distance}, {cca.rule}"
        )
    return Reference.from_pytorch_fid(data, preprocessing("inception"))


def foreign(data: bytes) -> bool:
    """Whether these are pytorch-fid's statistics."""
    try:
        return {"mu.npy", "sigma.npy"} <= set(zipfile.ZipFile(io.BytesIO(data)).namelist())
    except zipfile.BadZipFile:
        return False


def read_image(uri: str) -> RGB8:
    """One image file as (3, H, W) uint8 RGB. Raises ReferenceSetError."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
            if image.mode not in ("RGB", "RGBA", "L", "P"):
                raise ReferenceSetError(f"reference image is of mode {image.mode}, not 8-bit RGB or grey: {uri}")
            return np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ReferenceSetError(f"cannot decode reference image ({e}): {uri}") from e


def read(member: Member) -> tuple[RGB8, RGB8]:
    """(the image (3, H, W) uint8 RGB that an extractor sees, a thumbnail for a person). Raises ReferenceSetError.

    A tile is stretched as `collect` stretches the tiles that it scores; its thumbnail is in natural colours.
    """
    if member.ref is None:
        image = read_image(member.name)
        return image, contact.thumbnail(image)
    try:
        sources.unchanged(member.ref)
        eo = sources.read_eo(member.ref)
    except BadInput as e:
        raise ReferenceSetError(f"{member.name} cannot be read, set its keep to no: {e}") from e
    bands = exposure.harmonise(eo.bands, eo.offset)
    return exposure.stretch(bands), contact.thumbnail(contact.natural(bands))


def read_all(part: Sequence[Member]) -> tuple[RGB8, RGB8]:
    """Images (n, 3, H, W) and thumbnails (n, T, T, 3) of some members, side by side. Raises ReferenceSetError: of two sizes."""
    with ThreadPoolExecutor(8) as pool:
        images, thumbs = zip(*pool.map(read, part), strict=True)
    for member, image in zip(part, images, strict=True):
        same_size(member, image.shape, images[0].shape, part[0])
    return np.stack(images), np.stack(thumbs)


def same_size(member: Member, shape: Sequence[int], wanted: Sequence[int], first: Member) -> None:
    """Raise ReferenceSetError unless an image has the size of the set's first."""
    if tuple(shape) != tuple(wanted):
        raise ReferenceSetError(
            f"reference image is {shape[2]} x {shape[1]}, others of the set {wanted[2]} x {wanted[1]} "
            f"({first.name}): {member.name}"
        )
