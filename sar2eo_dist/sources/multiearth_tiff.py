"""MultiEarth as TIFFs: one band a file, place and date only in its name, no CRS and no geotransform.

Longitude comes first in the name; a band may hold "_". Layout: the challenge's official loaders
(MIT-AI-Accelerator/multiearth-challenge, tiff_file_tools.py).
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
import threading
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, StorageError
from sar2eo_dist.records import Rejected, TileRef, digest, place_key
from sar2eo_dist.sources import multiearth
from sar2eo_dist.sources.multiearth import BATCH, EO, OPTIONAL, SENSOR_NAMES, Scan, Seen

KIND = "multiearth_tiff"
LAYOUT = "{Sensor}_{BAND}_{lon}_{lat}_{YYYY}_{MM}_{DD}.tiff"
_ENDINGS = (".tif", ".tiff")
_NAME = re.compile(
    r"(?P<sensor>[a-z0-9]+)_(?:(?P<band>[a-z0-9]+(?:_[a-z0-9]+)*)_)?"
    r"(?P<lon>-?\d{1,3}(?:\.\d+)?)_(?P<lat>-?\d{1,2}(?:\.\d+)?)_(?P<y>\d{4})_(?P<m>\d{2})_(?P<d>\d{2})\.tiff?",
    re.ASCII | re.IGNORECASE,
)
_warnings_lock = threading.Lock()  # warnings.catch_warnings is process-wide


@dataclass(frozen=True, slots=True)
class Name:
    """What a file name says. sensor: as written, e.g. "Sentinel1"; band: "" where there is none; lon, lat: degrees."""

    sensor: str
    band: str
    lon: float
    lat: float
    date: dt.date


def parse_name(uri: str) -> Name:
    """Read the name of a MultiEarth TIFF. Raises BadInput bad_name, or bad_date for a day no calendar has."""
    name = storage.name(uri)
    match = _NAME.fullmatch(name)
    if not match:
        raise BadInput("bad_name", uri, f"{name!r} is not {LAYOUT}")
    lon, lat = float(match["lon"]), float(match["lat"])
    if abs(lon) > 180 or abs(lat) > 90:
        raise BadInput("bad_name", uri, f"{name!r}: no place at longitude {lon}, latitude {lat}")
    try:
        date = dt.date(int(match["y"]), int(match["m"]), int(match["d"]))
    except ValueError as e:
        raise BadInput("bad_date", uri, f"{match['y']}-{match['m']}-{match['d']}: {e}") from e
    return Name(match["sensor"], match["band"] or "", lon, lat, date)


def scan(root: str, sensor: str, seen: Seen) -> Scan:
    """Acquisitions of one sensor below a folder; see `sources.scan`. `seen` is told of objects of any kind."""
    files = _Files(root, multiearth.required(sensor) + OPTIONAL[sensor])
    rejected: list[Rejected] = []
    objects = tiffs = 0
    first = ""
    for page in storage.walk(root):
        first = first or (page[0].uri if page else "")
        objects += len(page)
        found = [info for info in page if info.uri.lower().endswith(_ENDINGS)]
        tiffs += len(found)
        own = []
        for info in found:
            try:
                name = _own(info.uri, sensor)
            except BadInput as e:
                rejected.append(Rejected(sensor, info.uri, e.reason, e.detail))
                continue
            if name:
                own.append((name, info))
        files.add(own)
        seen(objects)
    if objects and not tiffs and storage.name(first) == storage.name(root):
        raise StorageError(root, "a single file that is no TIFF, where a folder of them was expected (data.kind?)")
    return _tables(files, sensor, rejected), rejected


class _Files:
    """What the names and versions of one sensor's files say, in order of listing: a name and 32 bytes of numbers each.

    base    what all URIs begin with; texts: the rest of them, one after the other; ends: where each ends
    keys    multiearth.order, and in the 3 bits below it the band, as its number in `wanted` (others: the number after)
    marks   storage.Info.digest as 16 bytes; zeros for a band that is not wanted
    """

    def __init__(self, root: str, wanted: tuple[str, ...]) -> None:
        fs, path = storage.filesystem(root)
        self.base = (storage.local_path(root) or str(fs.unstrip_protocol(path))).encode()
        self.wanted = wanted
        self.texts, self.ends, self.keys, self.marks = bytearray(), array("q", [0]), array("q"), bytearray()

    def add(self, files: Sequence[tuple[Name, storage.Info]]) -> None:
        codes = []
        for name, info in files:
            uri, band = info.uri.encode(), name.band.upper()
            if not uri.startswith(self.base):
                raise StorageError(info.uri, f"listed outside of {self.base.decode()}")
            self.texts += uri[len(self.base) :]
            self.ends.append(len(self.texts))
            known = band in self.wanted
            codes.append(self.wanted.index(band) if known else len(self.wanted))
            self.marks += bytes.fromhex(info.digest) if known else bytes(16)
        lon, lat, day = (
            zip(*((n.lon, n.lat, n.date.toordinal()) for n, _ in files), strict=True) if files else ((),) * 3
        )
        self.keys.frombytes((multiearth.order(lon, lat, day) << 3 | np.array(codes, np.int64)).tobytes())

    def uri(self, file: int) -> str:
        return (self.base + self.texts[self.ends[file] : self.ends[file + 1]]).decode()

    def mark(self, file: int) -> str:
        return self.marks[16 * file : 16 * file + 16].hex()


def _tables(files: _Files, sensor: str, rejected: list[Rejected]) -> Iterator[pa.Table]:
    """Files grouped into acquisitions, a batch at a time; what does not become one goes to `rejected`."""
    keys = np.frombuffer(files.keys, np.int64)
    by = np.argsort(keys, kind="stable")
    bounds = np.r_[np.flatnonzero(np.diff(keys[by] >> 3, prepend=-1)), len(by)]
    for at in range(0, len(bounds) - 1, BATCH):
        some = bounds[at : at + BATCH + 1]
        members = by[some[0] : some[-1]]
        listed = list(zip((keys[members] & 7).tolist(), members.tolist(), strict=True))
        groups = (listed[a:b] for a, b in itertools.pairwise((some - some[0]).tolist()))
        tiles = [tile for group in groups if (tile := _acquisition(files, sensor, group, rejected))]
        if tiles:
            lon, lat, day, bands, uris, marks = zip(*tiles, strict=True)
            texts = pa.list_(pa.string())
            yield multiearth.table(
                sensor, KIND, lon, lat, day, bands=pa.array(bands, texts), uris=pa.array(uris, texts),
                rows=pa.array([[]] * len(tiles), pa.list_(pa.int64())), digest=pa.array(marks),
            )  # fmt: skip


_Row = tuple[float, float, int, tuple[str, ...], list[str], str]


def _acquisition(files: _Files, sensor: str, members: list[tuple[int, int]], rejected: list[Rejected]) -> _Row | None:
    """One row of a table from the (band's number, file) of one place and day, sorted; None where a band is missing."""
    found: dict[int, int] = {}
    for code, file in members:
        if found.setdefault(code, file) != file and code < len(files.wanted):
            detail = f"{files.wanted[code]} of this place and date is {files.uri(found[code])}"
            rejected.append(Rejected(sensor, files.uri(file), "duplicate", detail))
    needed = multiearth.required(sensor)
    if missing := [band for code, band in enumerate(needed) if code not in found]:
        uris = [files.uri(file) for file in sorted(file for _, file in members)]
        name = parse_name(uris[0])
        bands = " ".join(dict.fromkeys(parse_name(uri).band.upper() for uri in uris))
        detail = (
            f"{sensor}/{place_key(name.lon, name.lat)}/{name.date.isoformat()} has {bands}, not {' '.join(missing)}"
        )
        rejected.append(Rejected(sensor, uris[0], "missing_band", detail))
        return None
    found.pop(len(files.wanted), None)
    uris, name = [files.uri(file) for file in found.values()], parse_name(files.uri(found[0]))
    bands_of = tuple(files.wanted[code] for code in found)
    mark = digest(*(files.mark(file) for file in found.values()))
    return name.lon, name.lat, name.date.toordinal(), bands_of, uris, mark


def _own(uri: str, sensor: str) -> Name | None:
    """The parsed name of this sensor's file, None for another's. Raises BadInput where it is nobody's."""
    file = storage.name(uri)
    prefix = file.partition("_")[0].lower()
    if prefix != SENSOR_NAMES[sensor].lower():
        others = {n.lower() for n in SENSOR_NAMES.values()}
        if prefix in others or _NAME.fullmatch(file):  # its faults are for the other sensor's listing to tell
            return None
    name = parse_name(uri)
    if not name.band:
        raise BadInput("bad_name", uri, f"{file!r} names no band")
    fault = multiearth.date_fault(name.date)
    if fault:
        raise BadInput("bad_date", uri, fault)
    return name


def read_sar(ref: TileRef) -> NDArray[np.float32]:
    """See `sources.read_sar`."""
    with rasterio.Env():
        vv, vh = (multiearth.as_db(*_decode(uri, band)) for band, uri in zip(ref.bands, ref.uris, strict=True))
    return multiearth.sar_patch(vv, vh, ref.uris[0])


def read_eo(ref: TileRef) -> EO:
    """See `sources.read_eo`."""
    with rasterio.Env():
        bands = {
            band: multiearth.as_dn(*_decode(uri, band), any_integer=band == "QA60")
            for band, uri in zip(ref.bands, ref.uris, strict=True)
        }
    return multiearth.eo_patch([bands[b] for b in multiearth.required(ref.sensor)], bands.get("QA60"), ref.uris[0])


def _decode(uri: str, band: str) -> tuple[np.ndarray, str, str, float | None]:
    """(pixels (256, 256), uri, band, nodata value) of a one-band TIFF, in the file's own type.

    Within a rasterio.Env: rasterio makes one for each of its calls otherwise, which costs a fifth of a tile.
    """
    data = storage.read_bytes(uri)
    if not data:
        raise BadInput("unreadable", uri, f"{band} is an empty file (0 bytes)")
    try:
        with MemoryFile(data) as memory:
            with _warnings_lock, warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                dataset = memory.open(driver="GTiff")
            with dataset:
                # before any pixel is decoded: a header can claim a size that no memory holds
                multiearth.check_shape(dataset.shape, uri, band)
                if dataset.count != 1:
                    raise BadInput("wrong_shape", uri, f"{band} has {dataset.count} bands in one file, not 1")
                return dataset.read(1), uri, band, dataset.nodata
    except RasterioError as e:
        raise BadInput("unreadable", uri, f"{band}, {len(data)} bytes, does not decode as TIFF ({e})") from e
