"""The zip that the MultiEarth challenge takes: `translation/<name>.tiff`, each 3 bands (RGB) of 256 x 256.

What comes from elsewhere is looked at without trust: an entry is refused by its declared size before anything of it is
read, an image by its header before its pixels are, and nothing is ever unpacked to a disk. Source of the rules: the
organisers' server (bmswens/Rainforest-Challenge-Submission, frontend/utils.py and eval/translation.py).
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from sar2eo_dist.errors import BadInput, Sar2EoError
from sar2eo_dist.records import PATCH

FOLDER, ENDING = "translation/", ".tiff"
LARGEST = 16 << 20  # bytes that an entry may declare: ten times an uncompressed image of float64
BLOCK = 1 << 20  # pixels that a block of a TIFF may have: each is unpacked whole, however few of its pixels count
THREADS = 4  # that decode images
_UNSAFE = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:|\\|[\x00-\x1f]")
Zip = bytes | str | IO[bytes]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an entry of a zip.

    kind: "no_zip", "missing", "extra", "unsafe", "duplicate", "encrypted", "too_large", "unreadable", "wrong_shape",
    "wrong_dtype", "not_finite" or "constant"; entry: its name; detail: the offending value in words.
    """

    kind: str
    entry: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.entry}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Checked:
    """What `validate_zip` found: problems, with any of which a submission cannot be scored; and warnings, with which it can.

    Both by kind as a zip is looked at (directory first, then pixels), within it in order of the entries' names.
    """

    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def entry_of(name: str) -> str:
    """The entry that holds the image of a name."""
    return f"{FOLDER}{name}{ENDING}"


def encode(rgb: npt.NDArray[np.uint8]) -> bytes:
    """A TIFF of an image (3, H, W) uint8, red, green, blue: the same bytes for the same pixels."""
    profile: dict[str, Any] = {"driver": "GTiff", "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with quiet(), MemoryFile() as memory:
        with memory.open(height=rgb.shape[1], width=rgb.shape[2], compress="deflate", **profile) as out:
            out.write(rgb)
        data: bytes = memory.read()
    return data


def write_zip(to: str | IO[bytes], entries: Iterable[tuple[str, bytes]]) -> None:
    """Write a submission, one image after the other as they come: the same bytes for the same entries.

    to: local path or a binary file; entries: (name, TIFF). Raises Sar2EoError for a name that is there already or that
    would leave its folder.
    """
    known: set[str] = set()
    with zipfile.ZipFile(to, "w") as out:
        for name, data in entries:
            if name in known or not name or _UNSAFE.search(name):
                why = "twice in a submission" if name in known else "no name of an image"
                raise Sar2EoError(f"{name!r} is {why}")
            known.add(name)
            # stored, for the images are compressed; of a ZipInfo the date is 1980, and the system is said here
            info = zipfile.ZipInfo(entry_of(name))
            info.create_system, info.external_attr = 3, 0o644 << 16
            out.writestr(info, data)


def list_names(data: Zip) -> list[str]:
    """Names of the images in a zip, `<name>` of `translation/<name>.tiff`, sorted. Raises BadInput: it is no zip."""
    with _open(data) as archive:
        entries = {i.filename for i in archive.infolist()}
    inside = (e[len(FOLDER) : -len(ENDING)] for e in entries if e.startswith(FOLDER) and e.endswith(ENDING))
    return sorted(name for name in inside if name)


@contextmanager
def quiet() -> Iterator[None]:
    """The challenge's images have no place on Earth, of which rasterio warns. Not for threads: it goes around them all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def read_image(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """Pixels of the image of a name, (3, 256, 256) in the file's own dtype. Threads may share the archive.

    Raises BadInput: missing_band (there is no such entry), unreadable, wrong_shape, wrong_dtype.
    """
    entry = entry_of(name)
    try:
        info = archive.getinfo(entry)
    except KeyError as e:
        raise BadInput("missing_band", entry, "no such entry") from e
    data = _bytes(archive, info)
    try:
        with MemoryFile(data) as memory, memory.open(driver="GTiff") as image:  # others may follow links to other files
            if (image.count, image.height, image.width) != (3, PATCH, PATCH):
                found = f"{image.count} bands of {image.height} x {image.width}"
                raise BadInput("wrong_shape", entry, f"{found}, not 3 of {PATCH} x {PATCH}")
            if any(np.dtype(d).kind not in "iuf" for d in image.dtypes):
                raise BadInput("wrong_dtype", entry, f"pixels are {image.dtypes[0]}, not real numbers")
            if max(h * w for h, w in image.block_shapes) > BLOCK:
                raise BadInput(
                    "wrong_shape", entry, f"blocks of {image.block_shapes[0]} pixels around so small an image"
                )
            pixels: npt.NDArray[Any] = image.read()
    except (RasterioError, TypeError, ValueError) as e:
        raise BadInput("unreadable", entry, f"{len(data)} bytes that are no TIFF ({e})") from e
    return pixels


def validate_zip(data: Zip, names: Iterable[str]) -> Checked:
    """Whether a zip holds exactly the images that are asked for, each one that the challenge's server can score.

    data: its bytes, a local path or a seekable binary file; names: of the images, without folder and ending. Entries of
    mere folders are passed over. One image a thread is held at a time.
    """
    wanted = {entry_of(name): name for name in sorted(names)}
    try:
        archive = _open(data)
    except BadInput as e:
        return Checked((Finding("no_zip", e.uri, e.detail),), ())
    with archive:
        infos = sorted(archive.infolist(), key=lambda i: i.filename)
        there = Counter(i.filename for i in infos)
        problems = [Finding("missing", e, "no such entry") for e in wanted if e not in there]
        for info in infos:
            if _UNSAFE.search(info.orig_filename):
                problems.append(Finding("unsafe", repr(info.orig_filename), "no plain path below the zip"))
            elif info.filename not in wanted and not info.is_dir():
                problems.append(Finding("extra", info.filename, f"{info.file_size} bytes that nobody asked for"))
        problems += [Finding("duplicate", e, f"{n} entries of this name") for e, n in there.items() if n > 1]
        alone = [name for entry, name in wanted.items() if there[entry] == 1]
        with quiet(), ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(lambda name: _look(archive, name), alone))
    found = [f for findings in images for f in findings]
    problems += [f for f in found if f.kind != "constant"]
    return Checked(tuple(problems), tuple(f for f in found if f.kind == "constant"))


def _look(archive: zipfile.ZipFile, name: str) -> list[Finding]:
    entry = entry_of(name)
    if fault := _fault(archive.getinfo(entry)):
        return [fault]
    try:
        pixels = read_image(archive, name)
    except BadInput as e:
        return [Finding(e.reason, e.uri, e.detail)]
    bad = ~np.isfinite(pixels)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        found = f"band {at[0]} at pixel {at[1:]} is {pixels[at]}; {int(bad.sum())} values in all"
        return [Finding("not_finite", entry, found)]
    flat = [(b, band.flat[0]) for b, band in enumerate(pixels) if band.min() == band.max()]
    return [Finding("constant", entry, f"band {b} is {value} everywhere: it scores as 0") for b, value in flat]


def _open(data: Zip) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (zipfile.BadZipFile, OSError, ValueError, OverflowError, NotImplementedError) as e:
        what = data if isinstance(data, str) else f"{len(data)} bytes" if isinstance(data, bytes) else "the file"
        raise BadInput("unreadable", what, f"no zip ({e})") from e


def _fault(info: zipfile.ZipInfo) -> Finding | None:
    """Why an entry is not even begun to be read, from what the directory says of it."""
    if info.flag_bits & 1:
        return Finding("encrypted", info.filename, "it needs a password")
    if info.file_size > LARGEST:
        return Finding(
            "too_large", info.filename, f"it declares {info.file_size} bytes; an image has {LARGEST} at most"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack all at once
        return Finding(
            "unreadable", info.filename, f"compression {info.compress_type}: neither stored (0) nor deflated (8)"
        )
    return None


def _bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """An entry; never more of it than LARGEST is unpacked, whatever it declares."""
    if fault := _fault(info):
        raise BadInput("unreadable", fault.entry, fault.detail)
    try:
        with archive.open(info) as stream:
            data = stream.read(LARGEST + 1)  # to the end, where the checksum is compared
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as e:
        raise BadInput("unreadable", info.filename, f"{info.compress_size} packed bytes do not unpack ({e})") from e
    if len(data) != info.file_size:
        raise BadInput("unreadable", info.filename, f"{len(data)} bytes, where {info.file_size} are declared")
    return data
