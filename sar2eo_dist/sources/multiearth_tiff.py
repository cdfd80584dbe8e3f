"""MultiEarth as TIFFs: one band a file, place and date only in its name, no CRS and no geotransform.

Longitude comes first in the name; a band may hold "_". Layout: the challenge's official loaders
(MIT-AI-Accelerator/multiearth-challenge, tiff_file_tools.py).
"""

from __future__ import annotations

import datetime as dt
import re
import threading
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, StorageError
from sar2eo_dist.records import Rejected, TileRef, digest, place_key
from sar2eo_dist.sources import multiearth
from sar2eo_dist.sources.multiearth import EO, OPTIONAL, SENSOR_NAMES

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


def list_tiles(root: str, sensor: str) -> tuple[list[TileRef], list[Rejected]]:
    """Acquisitions of one sensor below a folder; see `sources.list_tiles`."""
    needed = multiearth.required(sensor)
    files = storage.list_files(root)
    tiffs = [i for i in files if i.uri.lower().endswith(_ENDINGS)]
    if files and not tiffs and storage.name(files[0].uri) == storage.name(root):
        raise StorageError(root, "a single file that is no TIFF, where a folder of them was expected (data.kind?)")
    acquisitions: dict[tuple[str, dt.date], dict[str, tuple[Name, storage.Info]]] = {}
    rejected: list[Rejected] = []
    for info in tiffs:
        try:
            name = _own(info.uri, sensor)
        except BadInput as e:
            rejected.append(Rejected(sensor, info.uri, e.reason, e.detail))
            continue
        if name is None:
            continue
        bands = acquisitions.setdefault((place_key(name.lon, name.lat), name.date), {})
        band = name.band.upper()
        if band not in bands:
            bands[band] = name, info
        elif band in needed + OPTIONAL[sensor]:
            detail = f"{band} of this place and date is {bands[band][1].uri}"
            rejected.append(Rejected(sensor, info.uri, "duplicate", detail))
    tiles = []
    for (place, date), bands in acquisitions.items():
        missing = [b for b in needed if b not in bands]
        if missing:
            detail = f"{sensor}/{place}/{date.isoformat()} has {' '.join(bands)}, not {' '.join(missing)}"
            rejected.append(Rejected(sensor, next(iter(bands.values()))[1].uri, "missing_band", detail))
            continue
        present = needed + tuple(b for b in OPTIONAL[sensor] if b in bands)
        first, infos = bands[present[0]][0], [bands[b][1] for b in present]
        mark = digest(*(i.digest for i in infos))
        tiles.append(TileRef(sensor, first.lon, first.lat, date, KIND, present, tuple(i.uri for i in infos), mark))
    return tiles, rejected


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
    vv, vh = (multiearth.as_db(*_decode(uri, band)) for band, uri in zip(ref.bands, ref.uris, strict=True))
    return multiearth.sar_patch(vv, vh, ref.uris[0])


def read_eo(ref: TileRef) -> EO:
    """See `sources.read_eo`."""
    bands = {
        band: multiearth.as_dn(*_decode(uri, band), any_integer=band == "QA60")
        for band, uri in zip(ref.bands, ref.uris, strict=True)
    }
    return multiearth.eo_patch([bands[b] for b in multiearth.required(ref.sensor)], bands.get("QA60"), ref.uris[0])


def _decode(uri: str, band: str) -> tuple[np.ndarray, str, str, float | None]:
    """(pixels (256, 256), uri, band, nodata value) of a one-band TIFF, in the file's own type."""
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
