"""The index of a MultiEarth NetCDF file, date and place of every row, as columns: millions of rows in seconds.

netCDF's default for a column that may grow is a chunk of one row. HDF5 takes some 10 us to read such a chunk, and an
object store a request each; so where chunks are tiny, their offsets are listed once and the bytes fetched by the megabyte.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sar2eo_dist.errors import BadInput
from sar2eo_dist.sources.multiearth import BATCH, Seen
from sar2eo_dist.sources.ranged import BLOCK, PARALLEL, RangedFile

TINY = 4096  # bytes of a chunk below which chunks are fetched by their offsets
PIECE = 4 << 20  # bytes of one fetch
_UNITS = re.compile(
    r"(?P<unit>day|hour|minute|second)s?\s+since\s+(?P<date>\d{4}-\d{1,2}-\d{1,2})"
    r"(?:[T\s]+(?P<time>\d{1,2}:\d{2}(?::\d{2}(?:\.\d*)?)?))?\s*(?P<zone>Z|UTC|[+-]\d{2}:?\d{2})?",
    re.ASCII | re.IGNORECASE,
)
_SECONDS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
_CALENDARS = {"", "standard", "gregorian", "proleptic_gregorian"}


@dataclass(frozen=True, slots=True)
class Index:
    """Rows of a file.

    lon, lat   (N,) float64, degrees
    values     (N,) dates as they are stored, int or float: how many times `seconds` after `epoch` (UTC)
    days       (N,) int32, the same as date.toordinal(); 0 = no date
    """

    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    values: NDArray[Any]
    days: NDArray[np.int32]
    epoch: dt.datetime
    seconds: int

    def placed(self) -> NDArray[np.bool_]:
        """(N,): whether a row's place is on Earth."""
        found: NDArray[np.bool_] = (np.abs(self.lon) <= 180) & (np.abs(self.lat) <= 90)  # NaN is nowhere
        return found

    def fault(self, at: int) -> tuple[str, str]:
        """(reason, words) of the at-th of these rows where it has no place or no date; ("", "") where it has both."""
        lon, lat = float(self.lon[at]), float(self.lat[at])
        if not (abs(lon) <= 180 and abs(lat) <= 90):
            return "unreadable", f"no place at longitude {lon}, latitude {lat}"
        text = day(self.epoch, self.seconds, self.values[at].item())[1]
        return "bad_date" if text else "", text


def read_index(h5: h5py.File, raw: RangedFile, uri: str, only: int | None = None, seen: Seen | None = None) -> Index:
    """The index of an open file, or one row of it (none, where there is no such row).

    seen: told the number of rows read so far. Raises BadInput where there is no index or its epoch cannot be read.
    """
    dates, centres = h5.get("collection_dates"), h5.get("center_lat_lons")
    for name, column in (("collection_dates", dates), ("center_lat_lons", centres)):
        if not isinstance(column, h5py.Dataset) or column.dtype.kind not in "iuf":
            raise BadInput("unreadable", uri, f"no numbers in `{name}`: not a MultiEarth file")
    if dates.ndim != 1 or centres.shape != (len(dates), 2):
        raise BadInput("unreadable", uri, f"dates of shape {dates.shape} for centres of shape {centres.shape}")
    try:
        epoch, seconds = parse_epoch(text_of(dates.attrs.get("units", "")), text_of(dates.attrs.get("calendar", "")))
    except ValueError as e:
        raise BadInput("bad_date", uri, f"collection_dates: {e}") from e
    order = [text_of(c) for c in h5["geo_coord"][()]] if "geo_coord" in h5 else []
    lat, lon = (order.index("lat"), order.index("lon")) if {"lat", "lon"} <= set(order) else (0, 1)
    if only is None:
        values, places = _column(dates, raw), _column(centres, raw, seen)
    else:
        values, places = dates[only : only + 1], centres[only : only + 1]
    known, where = np.unique(values, return_inverse=True)
    days = [d.toordinal() if d else 0 for d, _ in (day(epoch, seconds, v) for v in known.tolist())]
    east, north = (np.ascontiguousarray(places[:, i], np.float64) for i in (lon, lat))
    return Index(east, north, values, np.array(days, np.int32)[where], epoch, seconds)


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


def day(epoch: dt.datetime, seconds: int, value: float) -> tuple[dt.date | None, str]:
    """(the day that a stored date means, ""), or (None, why there is none)."""
    try:
        return (epoch + dt.timedelta(seconds=value * seconds)).date(), ""
    except (OverflowError, ValueError):  # the fill value, NaN
        return None, f"{value} x {seconds} s since {epoch.isoformat()} is no date"


def text_of(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _column(data: h5py.Dataset, raw: RangedFile, seen: Seen | None = None) -> NDArray[Any]:
    """A whole dataset of numbers."""
    rows = data.chunks[0] if data.chunks else len(data)
    size = rows * data.dtype.itemsize * int(np.prod(data.shape[1:]))
    filters = data.id.get_create_plist().get_nfilters()
    if data.chunks and data.chunks[1:] == data.shape[1:] and size < TINY and not filters:
        return _tiny_chunks(data, raw, size, seen)
    out = np.empty(data.shape, data.dtype)
    step = max(BATCH // max(rows, 1), 1) * max(rows, 1)  # whole chunks: HDF5 keeps none that is large
    for at in range(0, len(data), step):
        out[at : at + step] = data[at : at + step]
        if seen:
            seen(min(at + step, len(data)))
    return out


def _tiny_chunks(data: h5py.Dataset, raw: RangedFile, size: int, seen: Seen | None) -> NDArray[Any]:
    """A dataset of uncompressed chunks of `size` bytes, each of whole rows."""
    rows = data.chunks[0]
    offsets = np.full(-(-len(data) // rows), -1, np.int64)

    def note(chunk: Any) -> None:
        offsets[chunk.chunk_offset[0] // rows] = chunk.byte_offset

    data.id.chunk_iter(note)
    out = np.full((len(offsets) * rows, *data.shape[1:]), data.fillvalue, data.dtype)
    chunks = out.view(np.uint8).reshape(len(offsets), size)
    order = np.argsort(offsets, kind="stable")[np.count_nonzero(offsets < 0) :]  # what was never written is fill value
    offsets = offsets[order]
    cut = (np.diff(offsets) > BLOCK) | (np.diff(offsets // PIECE) > 0)
    bounds = [*(np.flatnonzero(np.r_[len(offsets) > 0, cut])).tolist(), len(offsets)]
    pieces = [(slice(a, b), int(offsets[a]), int(offsets[b - 1]) + size) for a, b in itertools.pairwise(bounds)]
    for i in range(0, len(pieces), PARALLEL):
        some = pieces[i : i + PARALLEL]
        fetched = raw.read_ranges([start for _, start, _ in some], [end - start for _, start, end in some])
        for (part, start, _), data_of in zip(some, fetched, strict=True):
            at = (offsets[part] - start)[:, None] + np.arange(size)
            chunks[order[part]] = np.frombuffer(data_of, np.uint8)[at]
        if seen:
            seen(min(some[-1][0].stop * rows, len(data)))
    return out[: len(data)]
