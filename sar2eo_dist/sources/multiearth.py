"""What both MultiEarth layouts share: sensors and bands, names, the date rule, and the checks on decoded pixels."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.records import PATCH, S1, S1_BANDS, S2, S2_BANDS, Rejected, TileRef, place_key, schema

#: sensor -> its name in MultiEarth's file names; the NetCDF attribute `data_source` has a hyphen before the number
SENSOR_NAMES = {S1: "Sentinel1", S2: "Sentinel2"}
REQUIRED: dict[str, tuple[str, ...]] = {S1: S1_BANDS, S2: S2_BANDS}
OPTIONAL: dict[str, tuple[str, ...]] = {S1: (), S2: ("QA60",)}
FIRST_DATE = dt.date(2014, 4, 3)  # launch of Sentinel-1A, the first Sentinel
BATCH = 16_384  # rows of one table of a listing, at most
#: the tables of a listing: the fields of a TileRef after its key
SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), *schema(TileRef)])
Scan = tuple[Iterator[pa.Table], list[Rejected]]
Seen = Callable[[int], None]  # told how many objects or rows a listing has seen so far


@dataclass(frozen=True, slots=True)
class EO:
    """Pixels of one Sentinel-2 patch.

    bands  (3, 256, 256) uint16, DN = reflectance x 10000, in the order B4, B3, B2 (red, green, blue); 0 = no data
    qa60   (256, 256) uint16 bit field (bit 10 opaque cloud, bit 11 cirrus), or None where the acquisition has none
    offset what the product adds to every DN (its own metadata; MultiEarth is the harmonised collection: 0)
    """

    bands: NDArray[np.uint16]
    qa60: NDArray[np.uint16] | None
    offset: int = 0


def required(sensor: str) -> tuple[str, ...]:
    """The bands that an acquisition must have. Raises ConfigError for a sensor other than "s1" and "s2"."""
    if sensor not in REQUIRED:
        raise ConfigError(f"unknown sensor {sensor!r}; known: {', '.join(REQUIRED)}")
    return REQUIRED[sensor]


def date_fault(date: dt.date) -> str:
    """Why no Sentinel can have acquired anything on this day, in words; "" where one can.

    Possible days: the launch of Sentinel-1A to tomorrow (UTC; clocks and time zones differ by less than a day).
    """
    last = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1)
    if FIRST_DATE <= date <= last:
        return ""
    return f"{date.isoformat()} is not within {FIRST_DATE.isoformat()} and {last.isoformat()}"


def order(lon: ArrayLike, lat: ArrayLike, day: ArrayLike) -> NDArray[np.int64]:
    """Numbers below 2^54 that compare as (date, TileRef.key) of one sensor do: equal where keys are, else in their order.

    Dates first: what is acquired later comes after all that was planned before, so an increment moves no slice of work.
    lon, lat: degrees within +-180 and +-90; day: date.toordinal(). Keys are strings: "+" comes before "-", and then the
    smaller magnitude.
    """
    places = (np.rint(100 * np.asarray(degrees, np.float64)).astype(np.int64) for degrees in (lon, lat))
    east, north = (np.where(hundredths < 0, 1 << 15, 0) + np.abs(hundredths) for hundredths in places)
    ranks: NDArray[np.int64] = (np.asarray(day, np.int64) << 32) + (east << 16) + north
    return ranks


def table(sensor: str, kind: str, lon: ArrayLike, lat: ArrayLike, day: ArrayLike, **columns: pa.Array) -> pa.Table:
    """One table of a listing, of SCHEMA, from its rows' places (degrees), days (date.toordinal()) and other columns.

    columns: bands, uris, rows and digest. Orbit and platform are unknown to MultiEarth.
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    _, first, where = np.unique(order(lon, lat, np.zeros(len(lon))), return_index=True, return_inverse=True)
    places = pa.array([place_key(*p) for p in zip(lon[first].tolist(), lat[first].tolist(), strict=True)], pa.string())
    dates = pa.array((np.asarray(day) - dt.date(1970, 1, 1).toordinal()).astype(np.int32)).cast(pa.date32())
    constant = {"sensor": sensor, "kind": kind, "orbit": "unknown", "platform": "unknown"}
    key = pc.binary_join_element_wise(sensor, places.take(pa.array(where)), dates.cast(pa.string()), "/")
    columns |= {name: pa.repeat(value, len(lon)) for name, value in constant.items()}
    return pa.table({"key": key, "lon": lon, "lat": lat, "date": dates} | columns, schema=SCHEMA)


def possible(days: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(N,): whether a Sentinel can have acquired anything on these days: date.toordinal(), 0 = no day at all."""
    known, where = np.unique(days, return_inverse=True)
    flown = [day > 0 and not date_fault(dt.date.fromordinal(day)) for day in known.tolist()]
    mask: NDArray[np.bool_] = np.array(flown, bool)[where]
    return mask


def stem(sensor: str, lon: float, lat: float, date: dt.date, band: str = "") -> str:
    """MultiEarth's file name without its ending: `{Sensor}_{BAND}_{lon}_{lat}_{YYYY}_{MM}_{DD}`, longitude first.

    sensor: as in `data_source` ("Sentinel-2"; hyphens go); lon, lat: degrees, written with two decimals; without a band
    the field is left out, as the challenge does for its deforestation masks.
    """
    # + 0.0: no "-0.00"
    place = "_".join(f"{round(100 * degrees) / 100 + 0.0:.2f}" for degrees in (lon, lat))
    day = date.isoformat().replace("-", "_")  # strftime does not pad the years before 1000
    return "_".join(part for part in (sensor.replace("-", ""), band, place, day) if part)


def hide_nodata(db: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2, ...) dB in, the same array with NaN where it holds no data.

    No data: not finite (-inf is log of 0), and pixels where both bands are exactly 0: the borders of S1 products.
    """
    db[~np.isfinite(db)] = np.nan
    db[:, (db == 0).all(axis=0)] = np.nan
    return db


def check_shape(shape: tuple[int, ...], uri: str, what: str) -> None:
    """Raise BadInput unless `shape` is (256, 256)."""
    if shape != (PATCH, PATCH):
        raise BadInput("wrong_shape", uri, f"{what} is {' x '.join(map(str, shape))}, not {PATCH} x {PATCH}")


def as_db(band: np.ndarray, uri: str, what: str, nodata: float | None = None) -> NDArray[np.float32]:
    """One S1 band, (256, 256) float32 or float64 dB, as float32 with NaN where it equals `nodata`.

    Raises BadInput wrong_dtype.
    """
    check_shape(band.shape, uri, what)
    if band.dtype not in (np.float32, np.float64):
        raise BadInput("wrong_dtype", uri, f"{what} is {band.dtype}, not float32")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, hence no data
        db = band.astype(np.float32)
    if nodata is not None:
        db[band == nodata] = np.nan
    return db


def as_dn(
    band: np.ndarray, uri: str, what: str, nodata: float | None = None, *, any_integer: bool = False
) -> NDArray[np.uint16]:
    """One S2 band, (256, 256), as uint16 DN with 0 where it equals `nodata`.

    uint16; int16 where nothing is negative; `any_integer` (QA60): every type whose values fit. Raises BadInput
    wrong_dtype.
    """
    check_shape(band.shape, uri, what)
    if nodata is not None:
        band = np.where(band == nodata, np.zeros((), band.dtype), band)
    if band.dtype.kind not in "iu" or not (any_integer or band.dtype in (np.uint16, np.int16)):
        raise BadInput("wrong_dtype", uri, f"{what} is {band.dtype}, not uint16")
    low, high = int(band.min()), int(band.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise BadInput("wrong_dtype", uri, f"{what} is {band.dtype} with values {low}..{high}, too wide for uint16")
    return band.astype(np.uint16)


def sar_patch(vv: NDArray[np.float32], vh: NDArray[np.float32], uri: str) -> NDArray[np.float32]:
    """(2, 256, 256) float32 dB, VV then VH, NaN = no data. Raises BadInput all_nodata: no pixel has data in both."""
    db = hide_nodata(np.stack([vv, vh]))
    if not np.isfinite(db).all(axis=0).any():
        finite = np.isfinite(db).sum(axis=(1, 2))
        raise BadInput("all_nodata", uri, f"no pixel with VV and VH (finite: VV {finite[0]}, VH {finite[1]})")
    return db


def eo_patch(bands: list[NDArray[np.uint16]], qa60: NDArray[np.uint16] | None, uri: str) -> EO:
    """The three bands in the order B4, B3, B2. Raises BadInput all_nodata: every DN is 0."""
    stacked = np.stack(bands)
    if not stacked.any():
        raise BadInput("all_nodata", uri, "every DN of B4, B3, B2 is 0")
    return EO(stacked, qa60)
