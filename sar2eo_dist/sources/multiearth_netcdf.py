"""MultiEarth as NetCDF-4: one file a sensor, `images` (index, data_band, channel = 1, row, col), a chunk a patch.

Days are counted from an epoch that differs per file, bands are stored alphabetically, places as (lat, lon); a target
file is one without `images`. Layout: the challenge's official loaders (MIT-AI-Accelerator/multiearth-challenge,
base_datasets.py). Read with h5py over ranged reads: a patch costs its own chunk, and threads fetch theirs side by side.
"""

from __future__ import annotations

import atexit
import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, StorageError
from sar2eo_dist.records import Rejected, TileRef, digest, place_key
from sar2eo_dist.sources import multiearth
from sar2eo_dist.sources.multiearth import BATCH, EO, OPTIONAL, SENSOR_NAMES, Scan, Seen
from sar2eo_dist.sources.netcdf_file import HDF5File, Wanted
from sar2eo_dist.sources.netcdf_index import Index, read_index, text_of

KIND = "multiearth_netcdf"
OPEN_FILES = 4  # kept open in one process
#: what h5py raises on torn or foreign files; and our index of them
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, OverflowError)


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


@dataclass
class _Opened:
    raw: HDF5File
    h5: h5py.File

    @cached_property
    def bands(self) -> tuple[str, ...]:
        return tuple(text_of(b) for b in self.h5["data_band"][()]) if "data_band" in self.h5 else ()

    @cached_property
    def images(self) -> Any:
        return self.h5.get("images")

    def close(self) -> None:
        self.h5.close()
        self.raw.close()


_lock = threading.RLock()  # h5py serialises its calls anyway; this also keeps a file open while it is read
_cache: OrderedDict[str, _Opened] = OrderedDict()


def scan(root: str, sensor: str, seen: Seen) -> Scan:
    """Acquisitions of one sensor in a file; see `sources.scan`. `seen` is told of rows."""
    needed = multiearth.required(sensor)
    with _fresh(root) as opened:
        info, bands = opened.raw.info, opened.bands
        if opened.images is None:
            raise BadInput("unreadable", root, "no `images`: a target file (data.target), not a source of pixels")
        source = text_of(opened.h5.attrs.get("data_source", ""))
        if source and source.replace("-", "").lower() != SENSOR_NAMES[sensor].lower():
            return iter(()), []
        index = read_index(opened.h5, opened.raw, root, seen=seen)
    usable = index.placed() & multiearth.possible(index.days)
    rejected = []
    for row in np.flatnonzero(~usable).tolist():
        reason, fault = index.fault(row)
        fault = fault or multiearth.date_fault(dt.date.fromordinal(index.days[row]))
        rejected.append(Rejected(sensor, info.uri, reason or "bad_date", f"row {row}: {fault}"))
    rows = np.flatnonzero(usable)
    keys = multiearth.order(index.lon[rows], index.lat[rows], index.days[rows])
    by = np.argsort(keys, kind="stable")
    rows, keys = rows[by], keys[by]
    new = np.r_[np.ones(len(keys[:1]), bool), keys[1:] != keys[:-1]]
    first = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
    for row, same in zip(rows[~new].tolist(), first[~new].tolist(), strict=True):
        rejected.append(Rejected(sensor, info.uri, "duplicate", f"row {row}: {_key(sensor, index, row)} is row {same}"))
    rows = rows[new]
    if missing := [b for b in needed if b not in bands]:
        for row in rows.tolist():
            detail = f"row {row}: {_key(sensor, index, row)} has {' '.join(bands)}, not {' '.join(missing)}"
            rejected.append(Rejected(sensor, info.uri, "missing_band", detail))
        return iter(()), rejected
    present = needed + tuple(b for b in OPTIONAL[sensor] if b in bands)
    return _tables(info, sensor, present, index, rows), rejected


def _key(sensor: str, index: Index, row: int) -> str:
    date = dt.date.fromordinal(index.days[row])
    return f"{sensor}/{place_key(float(index.lon[row]), float(index.lat[row]))}/{date.isoformat()}"


def _tables(
    info: storage.Info, sensor: str, bands: tuple[str, ...], index: Index, rows: NDArray[np.int64]
) -> Iterator[pa.Table]:
    mark, texts = info.digest, pa.list_(pa.string())
    for at in range(0, len(rows), BATCH):
        some = rows[at : at + BATCH]
        yield multiearth.table(
            sensor, KIND, index.lon[some], index.lat[some], index.days[some],
            bands=pa.repeat(pa.scalar(list(bands), texts), len(some)),
            uris=pa.repeat(pa.scalar([info.uri], texts), len(some)),
            rows=pa.ListArray.from_arrays(np.arange(len(some) + 1, dtype=np.int32), some),
            digest=pa.array([digest(mark, row) for row in some.tolist()]),
        )  # fmt: skip


def list_targets(uri: str) -> list[Target]:
    """What a target file asks for: one Target a place and date (the first row of each), by name.

    A file that holds images serves as a target list too. Any sensor and any day of the calendar: the launch rule of
    `multiearth.date_fault` is the Sentinels'. Raises BadInput (unreadable; bad_date) and storage's errors.
    """
    targets: dict[str, Target] = {}
    with _fresh(uri) as opened:
        sensor, bands = text_of(opened.h5.attrs.get("data_source", "")) or "Unknown", opened.bands
        index = read_index(opened.h5, opened.raw, uri)
    for row, (lon, lat, day) in enumerate(
        zip(index.lon.tolist(), index.lat.tolist(), index.days.tolist(), strict=True)
    ):
        reason, fault = index.fault(row)
        if reason:
            raise BadInput(reason, uri, f"row {row}: {fault}")
        name = multiearth.stem(sensor, lon, lat, dt.date.fromordinal(day))
        targets.setdefault(name, Target(name, sensor, lon, lat, dt.date.fromordinal(day), bands, row))
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
    """({band: (256, 256)}, fill value) of one acquisition, in the file's own type: one chunk is read.

    HDF5 works behind one lock, so it only says where the chunk lies, and later decodes it; fetching is done between.
    """
    source: HDF5File | None = None
    given: dict[int, bytes] = {}
    while True:
        try:
            with _lock:
                opened = _current(ref)
                return _pixels(opened, ref, given if opened.raw is source else {})
        except Wanted as wanted:
            if wanted.file is not source:
                source, given = wanted.file, {}
            given[wanted.start] = wanted.file.fetch(wanted.start, wanted.end)


def _pixels(opened: _Opened, ref: TileRef, given: dict[int, bytes]) -> tuple[dict[str, np.ndarray], float | None]:
    uri, row = ref.uris[0], ref.rows[0]
    opened.raw.given, opened.raw.defer = given, True
    try:
        images = opened.images
        if not isinstance(images, h5py.Dataset) or row >= images.shape[0]:
            raise BadInput("unreadable", uri, f"no row {row} in `images`, the file changed since it was listed")
        if images.ndim != 5 or images.shape[2] != 1:
            raise BadInput("wrong_shape", uri, f"`images` is {images.shape}, not (index, data_band, 1, row, col)")
        multiearth.check_shape(images.shape[3:], uri, "`images`")
        pixels = images[row, :, 0]
        bands = {b: pixels[opened.bands.index(b)] for b in ref.bands}
        return bands, float(images.fillvalue) or None  # 0 is HDF5's way to say that there is none
    except StorageError:
        _forget(uri)  # HDF5 may have kept half of what it asked for
        raise
    except _H5_ERRORS as e:
        _forget(uri)
        raise BadInput("unreadable", uri, f"row {row} does not decode ({e})") from e
    finally:
        opened.raw.given, opened.raw.defer = {}, False


def _current(ref: TileRef) -> _Opened:
    """The open file of a tile. Where it is not the version that was listed, its row must still be this acquisition."""
    uri, row = ref.uris[0], ref.rows[0]
    opened = _cached(uri)
    if digest(opened.raw.info.digest, *ref.rows) == ref.digest:
        return opened
    if storage.info(uri) != opened.raw.info:
        _forget(uri)
        opened = _cached(uri)
    index = read_index(opened.h5, opened.raw, uri, only=row)
    if not len(index.days) or index.fault(0)[0] or _key(ref.sensor, index, 0) != ref.key:
        raise BadInput("unreadable", uri, f"row {row} is not {ref.key}, the file changed since it was listed")
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
    raw = HDF5File(info)
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


@atexit.register
def _forget_all() -> None:
    """HDF5 must not close a file after Python is gone, which serves its reads: that would be a crash at exit."""
    with _lock:
        for uri in list(_cache):
            _forget(uri)


def _forget(uri: str) -> None:
    opened = _cache.pop(uri, None)
    if opened:
        opened.close()
