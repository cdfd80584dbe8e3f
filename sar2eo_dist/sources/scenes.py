"""One geocoded Sentinel-1 scene (VV and VH in one raster, as a COG): what it is, and windows of it in dB.

Any fsspec URI, read through `raster`.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar2eo_dist.errors import BadInput
from sar2eo_dist.records import S1_BANDS, SceneRef
from sar2eo_dist.sources.multiearth import date_fault, hide_nodata
from sar2eo_dist.sources.raster import Raster

UNITS = ("db", "linear")
QUANTITIES = ("sigma0", "gamma0")
OPEN_SCENES = 2  # kept open by one thread
_local = threading.local()


class _Opened(Raster):
    """A raster and its bands of VV and VH."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.bands = sar_bands(self.dataset, self.info.uri)


def open_scene(uri: str, units: str = "", quantity: str = "") -> SceneRef:
    """What a scene is, read from its header alone.

    units ("db", "linear") and quantity ("sigma0", "gamma0") come from the tags SAR2EO_UNITS and SAR2EO_QUANTITY unless
    given; orbit, platform and date (ISO) from ORBIT, PLATFORM and DATE. Band descriptions VV and VH say which band is
    which; without any, the first is VV and the second VH.

    Raises BadInput: raw GRD (ground control points in place of a geotransform), no CRS, no geotransform, undeclared or
    unknown units or quantity (`unreadable`, the detail names which); `missing_band`, `wrong_dtype` (complex; integers
    without a scale), `bad_date`; and storage's errors.
    """
    opened = _Opened(uri)
    try:
        dataset, name = opened.dataset, opened.info.uri
        check_georeference(dataset, name)
        check_dtype(dataset, opened.bands, name)
        tags = {k.upper(): v.strip() for k, v in dataset.tags().items()}
        date = tag_date(tags.get("DATE", ""), name)
        orbit = next((o for o in ("ascending", "descending") if o == tags.get("ORBIT", "").lower()), "unknown")
        epsg = dataset.crs.to_epsg()
        return SceneRef(
            uri=name,
            crs=f"EPSG:{epsg}" if epsg else dataset.crs.to_wkt(),
            transform=(*dataset.transform[:6],),
            width=dataset.width,
            height=dataset.height,
            date=date,
            orbit=orbit,
            platform=tags.get("PLATFORM") or "unknown",
            units=declared("units", units or tags.get("SAR2EO_UNITS", ""), UNITS, name),
            quantity=declared("quantity", quantity or tags.get("SAR2EO_QUANTITY", ""), QUANTITIES, name),
            nodata=dataset.nodata,
            digest=opened.info.digest,
        )
    finally:
        opened.close()


def read_window(scene: SceneRef, row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
    """(2, height, width) float32 dB, VV then VH, of the pixels from (row, col) on; NaN = no data.

    The window may lie beyond the raster on any side: outside is no data, as are the nodata value, masked pixels, values
    not finite, linear values <= 0, and pixels where both bands are exactly 0 (S1's borders).
    Raises BadInput (a torn file, or one that changed since it was opened) and storage's errors. Thread-safe.
    """
    if height < 0 or width < 0:
        raise ValueError(f"window of {height} x {width} pixels at ({row}, {col})")
    out = np.full((2, height, width), np.nan, np.float32)
    top, bottom = max(row, 0), min(row + height, scene.height)
    left, right = max(col, 0), min(col + width, scene.width)
    if top >= bottom or left >= right:
        return out
    opened = _open_here(scene)
    try:
        raw, valid = opened.read(opened.bands, top, left, bottom - top, right - left)
    except Exception:
        _forget(scene)  # GDAL may have kept half of what it asked for
        raise
    scale = [(opened.dataset.scales[b - 1], opened.dataset.offsets[b - 1]) for b in opened.bands]
    out[:, top - row : bottom - row, left - col : right - col] = decibel(raw, valid, scale, scene.units)
    return out


def decibel(
    raw: NDArray[Any], valid: NDArray[np.bool_], scale: list[tuple[float, float]], units: str
) -> NDArray[np.float32]:
    """(2, h, w) as stored -> float32 dB, NaN = no data. valid: where it is data; scale: (factor, addend) of each band."""
    values = raw.astype(np.float32)
    if scale != [(1.0, 0.0), (1.0, 0.0)]:
        factor, addend = (np.reshape(column, (2, 1, 1)) for column in zip(*scale, strict=True))
        values = (raw * factor + addend).astype(np.float32)
    values[~valid] = np.nan
    if units == "linear":
        with np.errstate(divide="ignore", invalid="ignore"):
            values = 10 * np.log10(values)  # 0 -> -inf, negative -> NaN: both no data
        values[~np.isfinite(values)] = np.nan
        return values  # 0 dB in both bands is a bright target here, not a border
    return hide_nodata(values)


def _open_here(scene: SceneRef) -> _Opened:
    """This thread's open dataset of a scene."""
    cache: OrderedDict[str, _Opened] = _local.__dict__.setdefault("cache", OrderedDict())
    if scene.digest not in cache:
        opened = _Opened(scene.uri)
        if opened.info.digest != scene.digest:
            opened.close()
            raise BadInput("unreadable", scene.uri, f"changed since it was opened ({opened.info.size} bytes now)")
        cache[scene.digest] = opened
        if len(cache) > OPEN_SCENES:
            cache.popitem(last=False)[1].close()
    cache.move_to_end(scene.digest)
    return cache[scene.digest]


def _forget(scene: SceneRef) -> None:
    opened = _local.cache.pop(scene.digest, None)
    if opened:
        opened.close()


def sar_bands(dataset: Any, uri: str) -> list[int]:
    """1-based bands of VV and VH."""
    words = [set(re.split(r"[^A-Z0-9]+", (d or "").upper())) for d in dataset.descriptions]
    if dataset.count < 2:
        raise BadInput("missing_band", uri, f"{dataset.count} band, where VV and VH are needed")
    if not any(dataset.descriptions):
        return [1, 2]
    found = [[i for i, w in enumerate(words, 1) if band in w] for band in S1_BANDS]
    if any(len(f) != 1 for f in found):
        raise BadInput("missing_band", uri, f"bands are described as {dataset.descriptions}, not one VV and one VH")
    return [f[0] for f in found]


def check_georeference(dataset: Any, uri: str) -> None:
    points = dataset.gcps[0]
    if points and dataset.transform.is_identity:
        raise BadInput("unreadable", uri, f"raw GRD ({len(points)} ground control points, no geotransform), geocode it")
    if dataset.crs is None:
        raise BadInput("unreadable", uri, "no CRS: a geocoded scene is needed")
    if dataset.transform.is_identity:
        raise BadInput("unreadable", uri, "no geotransform: a geocoded scene is needed")


def check_dtype(dataset: Any, bands: list[int], uri: str) -> None:
    for band in bands:
        name = dataset.dtypes[band - 1]
        kind = "c" if name.startswith("complex") else np.dtype(name).kind  # complex_int16 is GDAL's alone
        scaled = dataset.scales[band - 1] != 1 or dataset.offsets[band - 1] != 0
        if kind != "f" and not (kind in "iu" and scaled):
            why = "complex (SLC), detect and calibrate it" if kind == "c" else "no scale says what it means"
            raise BadInput("wrong_dtype", uri, f"band {band} is {name}: {why}")


def declared(what: str, value: str, known: tuple[str, ...], uri: str) -> str:
    if value.lower() in known:
        return value.lower()
    state = f"unknown {what} {value!r}" if value else f"undeclared {what}"
    raise BadInput("unreadable", uri, f"{state}: give one of {', '.join(known)}, or set the tag SAR2EO_{what.upper()}")


def tag_date(text: str, uri: str) -> dt.date | None:
    if not text:
        return None
    try:
        date = dt.datetime.fromisoformat(text).date()
    except ValueError as e:
        raise BadInput("bad_date", uri, f"tag DATE is {text!r}") from e
    if fault := date_fault(date):
        raise BadInput("bad_date", uri, f"tag DATE: {fault}")
    return date
