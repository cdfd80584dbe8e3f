"""Ready pairs as two folders of images, as pix2pix and pix2pixHD take them: names, listing, pixels in and out.

    {split}_A/<stem>.png, {split}_B/<stem>.png   as pix2pixHD; split is train, val or test
    A/{split}/<stem>.png, B/{split}/<stem>.png   as pix2pix
    A/<stem>.png,         B/<stem>.png           in no split yet

A is SAR (the input), B is EO (the target). Both files of a pair have one stem; endings png, tif or tiff may differ.

SAR  2 bands of float32 dB, VV then VH; or 3 of uint8 (VV, VH and a third that is derived from them, so ignored)
EO   3 bands of uint16 DN, B4, B3, B2; or 3 of uint8
uint8 is taken as METHOD.md's `fixed` scaling: 0..255 are the ranges of `radiometry.RANGES` and DN 0..3000. Within them its
error is at most 0.05 dB (VV), 0.053 dB (VH) and 6 DN; what lay beyond was clipped. A pixel that is 0 in all three channels
is no data, as our export writes it: real ones would need VV <= VH <= -32 dB, or DN below 6 in every band. Any other 0 is
data: the end of its SAR range, DN 3.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.session import DummySession

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.radiometry import DN_RANGE, RANGES
from sar2eo_dist.records import S1, S1_BANDS, S2, S2_BANDS, Pair, Rejected, TileRef, digest, place_key
from sar2eo_dist.sources import multiearth, multiearth_tiff
from sar2eo_dist.sources.multiearth import EO

KIND = "folder_pair"
SPLITS = ("train", "val", "test")
SIDES = {"A": S1, "B": S2}
UNKNOWN = dt.date(1970, 1, 1)  # the date of a pair whose name gives none

_ENDINGS, _LOSSY = {"png", "tif", "tiff"}, {"jpg", "jpeg", "jpe", "jfif"}
_TOP = re.compile(r"(.*_)?[AB]", re.DOTALL)  # folders that are meant to hold a side
_STEM = re.compile(
    r"\d{8,}_(?P<platform>[A-Za-z0-9]+)_(?P<orbit>ascending|descending|unknown)_(?P<day>\d{8})_(?P<rest>.+)",
    re.ASCII | re.DOTALL,
)
#: dB of the 256 levels of VV and of VH, and the DN of EO's: 0 is the middle of what is rounded to it, since it is data
_DB = tuple(np.linspace(*RANGES[b], 256, dtype=np.float32) for b in S1_BANDS)
_DN = np.rint(np.linspace(*DN_RANGE, 256)).astype(np.uint16)
_DN[0] = round(_DN[1] / 4)


@dataclass(frozen=True, slots=True)
class FolderPair:
    """One pair: its split ("" = none yet), its place, and a pointer to each side.

    Names of MultiEarth's pattern, `..._{lon}_{lat}_{YYYY}_{MM}_{DD}`, say place and date (of both sides); those of our
    own exports (`stem`) also the SAR date, orbit and platform. Any other: place = the stem, lon = lat = NaN (which has no
    TileRef.place and no TileRef.key), date = 1970-01-01, all of which mean unknown.
    """

    split: str
    place: str
    sar: TileRef
    eo: TileRef

    @property
    def pair(self) -> Pair:
        """The row of a pair table; keys are sensor, place and date, as TileRef.key."""
        a, b = self.sar, self.eo
        a_key, b_key = (f"{ref.sensor}/{self.place}/{ref.date.isoformat()}" for ref in (a, b))
        return Pair(self.place, b.lon, b.lat, a_key, b_key, a.date, b.date, (b.date - a.date).days, a.orbit, a.platform,
                    a.digest, b.digest, self.split)  # fmt: skip


# names ----------------------------------------------------------------------------------------------------------------


def stem(rank: int, pair: Pair) -> str:
    """The file name of an exported pair, without its ending: unique by its rank in the store, sorted as the store is.

    `{rank:08d}_{platform}_{orbit}_{SAR date, YYYYMMDD}_{lon}_{lat}_{YYYY}_{MM}_{DD}`, the end as MultiEarth's (EO date, from
    two to 17 decimals, as many as a number has); where the position is unknown, the place follows the SAR date. ASCII
    letters, digits and "._-" alone: others are dropped from the platform and become "-" in a place, which ends after 160.
    """
    platform = re.sub(r"[^A-Za-z0-9]", "", pair.platform) or "unknown"
    day = pair.sar_date.isoformat().replace("-", "")
    if math.isfinite(pair.lon) and math.isfinite(pair.lat):
        degrees = (
            np.format_float_positional(x, 17, min_digits=2) for x in (pair.lon + 0.0, pair.lat + 0.0)
        )  # no "-0.00"
        where = "_".join((*degrees, pair.eo_date.isoformat().replace("-", "_")))
    else:
        where = re.sub(r"[^A-Za-z0-9._-]", "-", pair.place)[:160]
    return f"{rank:08d}_{platform}_{pair.orbit}_{day}_{where}"


@dataclass(frozen=True, slots=True)
class _Name:
    place: str
    lon: float
    lat: float
    sar_date: dt.date
    eo_date: dt.date
    orbit: str = "unknown"
    platform: str = "unknown"


def _parse(text: str, uri: str) -> _Name:
    """What a stem says. Raises BadInput bad_date: a day that no calendar has, or on which no Sentinel flew."""
    ours = _STEM.fullmatch(text)
    if not ours:
        return _located(text, uri)
    name = _located(ours["rest"], uri)
    try:
        day = dt.date.fromisoformat(ours["day"])
    except ValueError as e:
        raise BadInput("bad_date", uri, f"SAR date {ours['day']}: {e}") from e
    _check_date(day, uri)
    return _Name(name.place, name.lon, name.lat, day, name.eo_date, ours["orbit"], ours["platform"])


def _located(text: str, uri: str) -> _Name:
    try:
        name = multiearth_tiff.parse_name(f"x_{text}.tiff")  # MultiEarth's pattern wants something before the place
    except BadInput as e:
        if e.reason == "bad_date":
            raise BadInput(e.reason, uri, e.detail) from e
        return _Name(text, math.nan, math.nan, UNKNOWN, UNKNOWN)
    _check_date(name.date, uri)
    return _Name(place_key(name.lon, name.lat), name.lon, name.lat, name.date, name.date)


def _check_date(date: dt.date, uri: str) -> None:
    if date != UNKNOWN and (fault := multiearth.date_fault(date)):
        raise BadInput("bad_date", uri, fault)


# listing --------------------------------------------------------------------------------------------------------------


def list_pairs(root: str) -> tuple[list[FolderPair], list[Rejected]]:
    """Every pair below a folder by split and stem, and what could not become one by URI: one listing, no file opened.

    root: any fsspec URI. Rejected are, of the files in folders A, B, *_A and *_B: a jpg (lossy) or another ending, or
    another folder than the layouts' (bad_name); of two files of one stem the later (duplicate); one without its partner
    (missing_band); impossible dates (bad_date). Files elsewhere are passed over. Raises ConfigError where there is no
    such folder, and storage's NotFound, AccessDenied, Unavailable and StorageError.
    """
    found: dict[tuple[str, str], dict[str, storage.Info]] = {}
    rejected: list[Rejected] = []
    fs, path = storage.filesystem(root)
    base = storage.local_path(root) or str(fs.unstrip_protocol(path))
    for info in storage.list_files(root):
        parts = info.uri.removeprefix(base).strip("/").split("/")
        if len(parts) == 1 or not _TOP.fullmatch(parts[0]):
            continue
        side = parts[0][-1]
        try:
            key = _split(parts, info.uri), _checked_stem(parts[-1], info.uri)
        except BadInput as e:
            rejected.append(Rejected(SIDES[side], info.uri, e.reason, e.detail))
            continue
        same = found.setdefault(key, {})
        if side in same:
            rejected.append(Rejected(SIDES[side], info.uri, "duplicate", f"of the same stem as {same[side].uri}"))
        else:
            same[side] = info
    if not found and not rejected:
        raise ConfigError(
            f"no pairs below {root}: they are looked for in train_A and train_B (val, test), A/train and B/train, or A and B"
        )
    pairs = []
    for (split, name), sides in sorted(found.items()):
        pair = _pair(split, name, sides)
        if isinstance(pair, FolderPair):
            pairs.append(pair)
        else:
            rejected += pair
    return pairs, sorted(rejected, key=lambda r: (r.uri, r.detail))


def _split(parts: Sequence[str], uri: str) -> str:
    """The split of a file in an A or B folder. Raises BadInput bad_name where the folder is of no layout."""
    match parts:
        case ["A" | "B", _]:
            return ""
        case ["A" | "B", split, _] if split in SPLITS:
            return split
        case [folder, _] if folder[:-2] in SPLITS:
            return folder[:-2]
    side = parts[0][-1]
    known = ", ".join([*(f"{s}_{side}" for s in SPLITS), *(f"{side}/{s}" for s in SPLITS), side])
    raise BadInput("bad_name", uri, f"folder {'/'.join(parts[:-1])!r} is none of {known}")


def _checked_stem(name: str, uri: str) -> str:
    """A file name without its ending. Raises BadInput bad_name for an ending that is not to be read."""
    text, _, ending = name.rpartition(".")
    if ending.lower() in _LOSSY:
        raise BadInput("bad_name", uri, f"{name!r} is JPEG, which is lossy: bring png or tiff made from the original")
    if ending.lower() not in _ENDINGS or not text:
        raise BadInput("bad_name", uri, f"{name!r} is not <stem>.png, .tif or .tiff")
    return text


def _pair(split: str, name: str, sides: dict[str, storage.Info]) -> FolderPair | list[Rejected]:
    if len(sides) == 1:
        ((side, info),) = sides.items()
        other = "B" if side == "A" else "A"
        return [Rejected(SIDES[side], info.uri, "missing_band", f"no file of stem {name!r} on side {other}")]
    try:
        said = _parse(name, sides["A"].uri)
    except BadInput as e:
        return [Rejected(SIDES[side], info.uri, e.reason, e.detail) for side, info in sides.items()]
    a, b = sides["A"], sides["B"]
    sar = TileRef(S1, said.lon, said.lat, said.sar_date, KIND, S1_BANDS, (a.uri,), digest(a.digest), (), said.orbit,
                  said.platform)  # fmt: skip
    eo = TileRef(S2, said.lon, said.lat, said.eo_date, KIND, S2_BANDS, (b.uri,), digest(b.digest))
    return FolderPair(split, said.place, sar, eo)


# pixels ---------------------------------------------------------------------------------------------------------------


def read_sar(ref: TileRef) -> NDArray[np.float32]:
    """See `sources.read_sar`: (2, 256, 256) float32 dB, NaN = no data."""
    uri = ref.uris[0]
    pixels, nodata = _decode(uri, "SAR", 2, "float32 dB (VV, VH)")
    if pixels.dtype == np.uint8:
        db = np.stack([levels[band] for levels, band in zip(_DB, pixels[:2], strict=True)])
        db[:, _hole(pixels, nodata)] = np.nan
        vv, vh = db
    else:
        vv, vh = (multiearth.as_db(p, uri, b, nodata) for p, b in zip(pixels, S1_BANDS, strict=True))
    return multiearth.sar_patch(vv, vh, uri)


def read_eo(ref: TileRef) -> EO:
    """See `sources.read_eo`: uint16 DN of B4, B3, B2, 0 = no data, without QA60."""
    uri = ref.uris[0]
    pixels, nodata = _decode(uri, "EO", 3, "uint16 DN (B4, B3, B2)")
    if pixels.dtype == np.uint8:
        dn = _DN[pixels]
        dn[:, _hole(pixels, nodata)] = 0
        return multiearth.eo_patch(list(dn), None, uri)
    bands = [multiearth.as_dn(p, uri, b, nodata) for p, b in zip(pixels, S2_BANDS, strict=True)]
    return multiearth.eo_patch(bands, None, uri)


def _hole(rgb: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    hole: NDArray[np.bool_] = (rgb == (nodata or 0)).all(axis=0)
    return hole


def _decode(uri: str, what: str, bands: int, of: str) -> tuple[NDArray[Any], float | None]:
    """(pixels (B, 256, 256), nodata value) of a file in its own type: 3 bands of uint8, or `bands` of another."""
    data = storage.read_bytes(uri)
    if not data:
        raise BadInput("unreadable", uri, f"{what} is an empty file (0 bytes)")
    driver = "PNG" if uri.lower().endswith(".png") else "GTiff"
    try:
        # GDAL's shortcut for whole PNGs fills what a torn one lacks with zeros, without a word
        with rasterio.Env(DummySession(), GDAL_PNG_WHOLE_IMAGE_OPTIM="NO"), MemoryFile(data) as memory:
            with _quiet():
                dataset = memory.open(driver=driver)
            with dataset:
                # before any pixel is decoded: a header can claim a size that no memory holds
                multiearth.check_shape(dataset.shape, uri, what)
                kind = dataset.dtypes[0]
                if dataset.count != (3 if kind == "uint8" else bands):
                    has = f"{what} has {dataset.count} band(s) of {kind}"
                    raise BadInput("wrong_shape", uri, f"{has}, not {bands} of {of} or 3 of uint8 (RGB)")
                return dataset.read(), dataset.nodata
    except RasterioError as e:
        raise BadInput("unreadable", uri, f"{what}, {len(data)} bytes, does not decode as {driver} ({e})") from e


def encode_png(rgb: NDArray[np.uint8]) -> bytes:
    """(3, H, W) uint8 as an RGB PNG."""
    return bytes(cv2.imencode(".png", np.ascontiguousarray(rgb[::-1].transpose(1, 2, 0)))[1])


def encode_tiff(pixels: NDArray[Any], bands: Sequence[str], nodata: float) -> bytes:
    """(B, H, W) float32 or uint16 as a deflated TIFF without georeference; `bands` become the band descriptions."""
    count, height, width = pixels.shape
    profile = {"dtype": pixels.dtype, "nodata": nodata, "predictor": 3 if pixels.dtype.kind == "f" else 2}
    with MemoryFile() as memory:
        with _quiet():
            out = memory.open(driver="GTiff", count=count, height=height, width=width, compress="deflate", **profile)
        with out:
            out.write(pixels)
            out.descriptions = tuple(bands)
        return bytes(memory.read())


@contextmanager
def _quiet() -> Iterator[None]:
    """Patches have no georeference, which rasterio warns of; one lock with the other reader of patches."""
    with multiearth_tiff._warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
