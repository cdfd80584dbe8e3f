"""MultiEarth as NetCDF-4: one file a sensor, `images` (index, data_band, channel = 1, row, col), a chunk a patch.

Days are counted from an epoch that differs per file, bands are stored alphabetically, places as (lat, lon); a target
file is one without `images`. Layout: the challenge's official loaders (MIT-AI-Accelerator/multiearth-challenge,
base_datasets.py). Read with h5py over ranged reads: a patch costs its own chunk.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, StorageError
from sar2eo_dist.records import Rejected, TileRef, digest, place_key
from sar2eo_dist.sources import multiearth
from sar2eo_dist.sources.multiearth import EO, OPTIONAL, SENSOR_NAMES
from sar2eo_dist.sources.ranged import RangedFile

KIND = "multiearth_netcdf"
OPEN_FILES = 4  # kept open in one process
_UNITS = re.compile(
    r"(?P<unit>day|hour|minute|second)s?\s+since\s+(?P<date>\d{4}-\d{1,2}-\d{1,2})"
    r"(?:[T\s]+(?P<time>\d{1,2}:\d{2}(?::\d{2}(?:\.\d*)?)?))?\s*(?P<zone>Z|UTC|[+-]\d{2}:?\d{2})?",
    re.ASCII | re.IGNORECASE,
)
_SECONDS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
_CALENDARS = {"", "standard", "gregorian", "proleptic_gregorian"}
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises on torn or foreign files


@dataclass(frozen=True, slots=True)
class Target:
    """One image that a target file asks for.

    name     unique within the file: `Sentinel2_<lon>_<lat>_<YYYY>_<MM>_<DD>`, which is the name of the challenge's
             TIFFs without the band, and the stem of `translation/<name>.tiff` in a submission
    sensor   the file's `data_source`, e.g. "Sentinel-2"
    lon, lat, date   centre in degrees, day (UTC)
    bands    the file's bands, as stored; empty where it lists none
    index    row of the file
    """

    name: str
    sensor: str
    lon: float
    lat: float
    date: dt.date
    bands: tuple[str, ...]
    index: int

    @property
    def place(self) -> str:
        return place_key(self.lon, self.lat)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file's index. date: None where the line is unusable; then `reason` and `fault` say why."""

    index: int
    lon: float
    lat: float
    date: dt.date | None
    reason: str
    fault: str


@dataclass(slots=True)
class _Opened:
    raw: RangedFile
    h5: h5py.File

    def close(self) -> None:
        self.h5.close()
        self.raw.close()


_lock = threading.RLock()  # h5py serialises its calls anyway; this also keeps a file open while it is read
_cache: OrderedDict[str, _Opened] = OrderedDict()


def parse_epoch(units: str, calendar: str = "") -> tuple[dt.datetime, int]:
    """CF time units, "days since 2015-04-30 [00:00[:00]] [zone]", as (epoch in UTC, seconds of one unit).

    Days, hours, minutes and seconds of the Gregorian calendar. Raises ValueError with the offending text.
    """
    match = _UNITS.fullmatch(units.strip())
    if not match or calendar.lower() not in _CALENDARS:
        raise ValueError(f"units {units!r}, calendar {calendar!r} name no epoch that can be read")
    year, month, day = map(int, match["date"].split("-"))
    hour, minute, second = (float(p) for p in ((match["time"] or "0:0") + ":0").split(":")[:3])
    epoch = dt.datetime(year, month, day) + dt.timedelta(hours=hour, minutes=minute, seconds=second)
    zone = (match["zone"] or "").replace(":", "")
    if zone[:1] in ("+", "-") and zone:
        epoch -= dt.timedelta(hours=int(zone[:3]), minutes=int(zone[0] + zone[3:]))
    return epoch, _SECONDS[match["unit"].lower()]


def list_tiles(root: str, sensor: str) -> tuple[list[TileRef], list[Rejected]]:
    """Acquisitions of one sensor in a file; see `sources.list_tiles`."""
    needed = multiearth.required(sensor)
    with _fresh(root) as opened:
        h5, info = opened.h5, opened.raw.info
        if "images" not in h5:
            raise BadInput("unreadable", root, "no `images`: a target file (data.target), not a source of pixels")
        source, bands = _text(h5.attrs.get("data_source", "")), _bands(h5)
        if source and source.replace("-", "").lower() != SENSOR_NAMES[sensor].lower():
            return [], []
        rows = list(_rows(h5, root))
    missing = [b for b in needed if b not in bands]
    present = needed + tuple(b for b in OPTIONAL[sensor] if b in bands)
    uris = (info.uri,) * len(present)
    seen: dict[str, TileRef] = {}
    rejected: list[Rejected] = []
    for row in rows:
        fault = row.fault if row.date is None else multiearth.date_fault(row.date)
        if row.date is None or fault:
            rejected.append(Rejected(sensor, info.uri, row.reason or "bad_date", f"row {row.index}: {fault}"))
            continue
        rows_of = (row.index,) * len(present)
        ref = TileRef(sensor, row.lon, row.lat, row.date, KIND, present, uris, digest(info.digest, *rows_of), rows_of)
        if ref.key in seen:
            detail = f"row {row.index}: {ref.key} is row {seen[ref.key].rows[0]}"
            rejected.append(Rejected(sensor, info.uri, "duplicate", detail))
            continue
        seen[ref.key] = ref
        if missing:
            detail = f"row {row.index}: {ref.key} has {' '.join(bands)}, not {' '.join(missing)}"
            rejected.append(Rejected(sensor, info.uri, "missing_band", detail))
    return [] if missing else list(seen.values()), rejected


def list_targets(uri: str) -> list[Target]:
    """What a target file asks for: one Target a place and date (the first row of each), by name.

    A file that holds images serves as a target list too. Any sensor and any day of the calendar: the launch rule of
    `multiearth.date_fault` is the Sentinels'. Raises BadInput (unreadable; bad_date) and storage's errors.
    """
    targets: dict[str, Target] = {}
    with _fresh(uri) as opened:
        sensor, bands = _text(opened.h5.attrs.get("data_source", "")) or "Unknown", _bands(opened.h5)
        for row in _rows(opened.h5, uri):
            if row.date is None:
                raise BadInput(row.reason, uri, f"row {row.index}: {row.fault}")
            name = multiearth.stem(sensor, row.lon, row.lat, row.date)
            targets.setdefault(name, Target(name, sensor, row.lon, row.lat, row.date, bands, row.index))
    return sorted(targets.values(), key=lambda t: t.name)


def read_sar(ref: TileRef) -> NDArray[np.float32]:
    """See `sources.read_sar`."""
    uri, (bands, fill) = ref.uris[0], _read(ref)
    vv, vh = (multiearth.as_db(bands[b], uri, f"row {ref.rows[0]}, {b}", fill) for b in multiearth.required(ref.sensor))
    return multiearth.sar_patch(vv, vh, uri)


def read_eo(ref: TileRef) -> EO:
    """See `sources.read_eo`."""
    uri, row, (stored, fill) = ref.uris[0], ref.rows[0], _read(ref)
    # A band that the acquisition lacks is stored as nothing but the fill value, where TIFF has no file.
    stored = {b: pixels for b, pixels in stored.items() if fill is None or (pixels != fill).any()}
    needed = multiearth.required(ref.sensor)
    missing = [b for b in needed if b not in stored]
    if missing:
        reason = "all_nodata" if len(missing) == len(needed) else "missing_band"
        raise BadInput(reason, uri, f"row {row}: {' '.join(missing)} holds only the fill value {fill}")
    bands = {b: multiearth.as_dn(p, uri, f"row {row}, {b}", any_integer=b == "QA60") for b, p in stored.items()}
    return multiearth.eo_patch([bands[b] for b in needed], bands.get("QA60"), uri)


def _read(ref: TileRef) -> tuple[dict[str, np.ndarray], float | None]:
    """({band: (256, 256)}, fill value) of one acquisition, in the file's own type: one chunk is read."""
    uri, row = ref.uris[0], ref.rows[0]
    with _lock:
        opened = _current(ref)
        try:
            images = opened.h5.get("images")
            if not isinstance(images, h5py.Dataset) or row >= images.shape[0]:
                raise BadInput("unreadable", uri, f"no row {row} in `images`, the file changed since it was listed")
            if images.ndim != 5 or images.shape[2] != 1:
                raise BadInput("wrong_shape", uri, f"`images` is {images.shape}, not (index, data_band, 1, row, col)")
            multiearth.check_shape(images.shape[3:], uri, "`images`")
            names, pixels = _bands(opened.h5), images[row, :, 0]
            bands = {b: pixels[names.index(b)] for b in ref.bands}
        except StorageError:
            _forget(uri)  # HDF5 may have kept half of what it asked for
            raise
        except _H5_ERRORS as e:
            _forget(uri)
            raise BadInput("unreadable", uri, f"row {row} does not decode ({e})") from e
        return bands, float(images.fillvalue) or None  # 0 is HDF5's way to say that there is none


def _current(ref: TileRef) -> _Opened:
    """The open file of a tile. Where it is not the version that was listed, its row must still be this acquisition."""
    uri = ref.uris[0]
    opened = _cached(uri)
    if digest(opened.raw.info.digest, *ref.rows) == ref.digest:
        return opened
    if storage.info(uri) != opened.raw.info:
        _forget(uri)
        opened = _cached(uri)
    row = next((r for r in _rows(opened.h5, uri, ref.rows[0]) if r.index == ref.rows[0]), None)
    if row is None or row.date != ref.date or place_key(row.lon, row.lat) != ref.place:
        raise BadInput("unreadable", uri, f"row {ref.rows[0]} is not {ref.key}, the file changed since it was listed")
    return opened


def _cached(uri: str) -> _Opened:
    if uri not in _cache:
        _cache[uri] = _open(uri)
        if len(_cache) > OPEN_FILES:
            _cache.popitem(last=False)[1].close()
    _cache.move_to_end(uri)
    return _cache[uri]


def _open(uri: str) -> _Opened:
    info = storage.info(uri)
    raw = RangedFile(info)
    try:
        return _Opened(raw, h5py.File(raw, "r"))
    except _H5_ERRORS as e:
        raise BadInput("unreadable", uri, f"{info.size} bytes that are no NetCDF-4 file ({e})") from e


@contextmanager
def _fresh(uri: str) -> Iterator[_Opened]:
    """A file opened anew, for listings; what h5py cannot read in it becomes BadInput."""
    opened = _open(uri)
    try:
        yield opened
    except _H5_ERRORS as e:
        raise BadInput("unreadable", uri, f"torn or foreign NetCDF ({e})") from e
    finally:
        opened.close()


def _forget(uri: str) -> None:
    opened = _cache.pop(uri, None)
    if opened:
        opened.close()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bands(h5: h5py.File) -> tuple[str, ...]:
    return tuple(_text(b) for b in h5["data_band"][()]) if "data_band" in h5 else ()


def _rows(h5: h5py.File, uri: str, only: int | None = None) -> Iterator[Row]:
    """The index of a file, or one row of it. Raises BadInput where it has none or its epoch cannot be read."""
    dates, centres = h5.get("collection_dates"), h5.get("center_lat_lons")
    for name, column in (("collection_dates", dates), ("center_lat_lons", centres)):
        if not isinstance(column, h5py.Dataset) or column.dtype.kind not in "iuf":
            raise BadInput("unreadable", uri, f"no numbers in `{name}`: not a MultiEarth file")
    if dates.ndim != 1 or centres.shape != (len(dates), 2):
        raise BadInput("unreadable", uri, f"dates of shape {dates.shape} for centres of shape {centres.shape}")
    try:
        epoch, seconds = parse_epoch(_text(dates.attrs.get("units", "")), _text(dates.attrs.get("calendar", "")))
    except ValueError as e:
        raise BadInput("bad_date", uri, f"collection_dates: {e}") from e
    order = [_text(c) for c in h5["geo_coord"][()]] if "geo_coord" in h5 else []
    lat, lon = (order.index("lat"), order.index("lon")) if {"lat", "lon"} <= set(order) else (0, 1)
    first = only or 0
    part = slice(None) if only is None else slice(only, only + 1)
    known: dict[float, tuple[dt.date | None, str]] = {}
    for i, (value, centre) in enumerate(zip(dates[part].tolist(), centres[part].tolist(), strict=True), first):
        if value not in known:
            known[value] = _day(epoch, seconds, value)
        date, fault = known[value]
        reason = "bad_date" if fault else ""
        if not (abs(centre[lon]) <= 180 and abs(centre[lat]) <= 90):  # NaN too
            date, reason, fault = None, "unreadable", f"no place at longitude {centre[lon]}, latitude {centre[lat]}"
        yield Row(i, centre[lon], centre[lat], date, reason, fault)


def _day(epoch: dt.datetime, seconds: int, value: float) -> tuple[dt.date | None, str]:
    try:
        return (epoch + dt.timedelta(seconds=value * seconds)).date(), ""
    except (OverflowError, ValueError):  # the fill value, NaN
        return None, f"{value} x {seconds} s since {epoch.isoformat()} is no date"
