"""One geocoded Sentinel-1 raster: what it is, and windows of it in dB.

VV and VH in one GeoTIFF (a COG, best), one a file, or in a zarr store (`zarr_scene`). Any fsspec URI.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from sar2eo_dist.errors import BadInput
from sar2eo_dist.records import S1_BANDS, S2_BANDS, SceneRef, digest
from sar2eo_dist.sources.multiearth import date_fault, hide_nodata
from sar2eo_dist.sources.raster import Raster
from sar2eo_dist.sources.scene_layout import band_of, product
from sar2eo_dist.sources.zarr_scene import ZarrScene, is_zarr, shared

UNITS = ("db", "linear")
QUANTITIES = ("sigma0", "gamma0")
ORBITS = ("ascending", "descending")
OPEN_SCENES = 16  # kept open by one thread: the dates of a composite, read window after window
SAME = 0.01  # pixels by which two statements of one geotransform may differ: rounding
_local = threading.local()


class OtherSensor(BadInput):
    """A raster whose bands are those of Sentinel-2."""


class _Files:
    """VV and VH in one GeoTIFF or in two, open. For one thread. Raises BadInput, and storage's errors."""

    def __init__(self, uris: Sequence[str]) -> None:
        self._rasters: list[Raster] = []
        try:
            for uri in uris:
                self._rasters.append(Raster(uri))
                check_georeference(self._rasters[-1].dataset, self._rasters[-1].info.uri)
            first = self._rasters[0]
            self._bands = sar_bands(first.dataset, first.info.uri) if len(uris) == 1 else [1, 1]
            for (raster, band), name in zip(self._planes(), S1_BANDS, strict=True):
                check_dtype(raster.dataset, [band], raster.info.uri)
                if len(uris) > 1 and raster.dataset.count != 1:
                    detail = f"{name} has {raster.dataset.count} bands in one file, not 1"
                    raise BadInput("wrong_shape", raster.info.uri, detail)
            self.crs = first.dataset.crs
            self.transform: tuple[float, ...] = first.dataset.transform[:6]
            self.height, self.width = first.dataset.shape
            for raster in self._rasters[1:]:
                other = raster.dataset
                if other.crs != self.crs or not _same_grid(
                    (other.transform[:6], other.shape), (self.transform, first.dataset.shape)
                ):
                    detail = (
                        f"VH is {other.shape} px at {other.transform[:6]}, VV {first.dataset.shape} at {self.transform}"
                    )
                    raise BadInput("wrong_shape", raster.info.uri, detail)
        except BaseException:
            self.close()
            raise
        self.uris = tuple(r.info.uri for r in self._rasters)
        marks = [r.info.digest for r in self._rasters]
        self.digest = marks[0] if len(marks) == 1 else digest(*marks)
        self.tags = {k.upper(): v.strip() for k, v in first.dataset.tags().items()}
        self.scales = [(r.dataset.scales[b - 1], r.dataset.offsets[b - 1]) for r, b in self._planes()]

    def _planes(self) -> list[tuple[Raster, int]]:
        return list(zip(self._rasters * (3 - len(self._rasters)), self._bands, strict=True))

    def read(self, row: int, col: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if len(self._rasters) == 1:
            return self._rasters[0].read(self._bands, row, col, height, width)
        parts = [raster.read([band], row, col, height, width) for raster, band in self._planes()]
        return np.concatenate([raw for raw, _ in parts]), np.concatenate([valid for _, valid in parts])

    def close(self) -> None:
        for raster in self._rasters:
            raster.close()


def open_scene(uri: str | Sequence[str], units: str = "", quantity: str = "") -> SceneRef:
    """What a scene is, read from its header alone.

    uri: of a GeoTIFF with VV and VH; of two, VV then VH, on one pixel grid; or of a `.zarr` store.
    units ("db", "linear") and quantity ("sigma0", "gamma0") come from the tags SAR2EO_UNITS and SAR2EO_QUANTITY unless
    given; orbit, platform and date (ISO) from ORBIT, PLATFORM and DATE, else date and platform from a product's name in
    the URI. Band descriptions VV and VH say which band is which; without any, the first is VV and the second VH.

    Raises BadInput: raw GRD (ground control points in place of a geotransform), no CRS, no geotransform, undeclared or
    unknown units or quantity (`unreadable`, the detail names which); `missing_band`, `wrong_dtype` (complex; integers
    without a scale), `wrong_shape` (VV and VH on two grids), `bad_date`; and storage's errors.
    """
    uris = (uri,) if isinstance(uri, str) else tuple(uri)
    opened = _open(uris)
    try:
        name, tags = uris[0], opened.tags
        if isinstance(opened, _Files):
            name, uris = opened.uris[0], opened.uris
        said = product(name)
        a, b, c, d, e, f = opened.transform
        return SceneRef(
            uris=uris,
            crs=crs_name(opened.crs),
            transform=(a, b, c, d, e, f),
            width=opened.width,
            height=opened.height,
            date=tag_date(tags.get("DATE", ""), name) or said.date(name),
            orbit=orbit_of(tags.get("ORBIT", "")),
            platform=tags.get("PLATFORM") or said.platform,
            units=declared("units", units or tags.get("SAR2EO_UNITS", ""), UNITS, name),
            quantity=declared("quantity", quantity or tags.get("SAR2EO_QUANTITY", ""), QUANTITIES, name),
            digest=opened.digest,
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
        raw, valid = opened.read(top, left, bottom - top, right - left)
    except Exception:
        _forget(scene)  # GDAL may have kept half of what it asked for
        raise
    db = decibel(raw, valid, opened.scales, scene.units)
    if db.shape == out.shape:
        return db
    out[:, top - row : bottom - row, left - col : right - col] = db
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


def _open(uris: Sequence[str]) -> _Files | ZarrScene:
    return ZarrScene(uris[0]) if is_zarr(uris[0]) else _Files(uris)


def _open_here(scene: SceneRef) -> _Files | ZarrScene:
    """This thread's open files of a scene, or this process's open store."""
    if is_zarr(scene.uri):
        store = shared(scene.uri, scene.digest)
        _check(store, scene)
        return store
    cache: OrderedDict[SceneRef, _Files] = _local.__dict__.setdefault("cache", OrderedDict())
    if scene not in cache:
        opened = _Files(scene.uris)
        try:
            _check(opened, scene)
        except BadInput:
            opened.close()
            raise
        cache[scene] = opened
        if len(cache) > OPEN_SCENES:
            cache.popitem(last=False)[1].close()
    cache.move_to_end(scene)
    return cache[scene]


def _check(opened: _Files | ZarrScene, scene: SceneRef) -> None:
    """What is open is what the reference says: the same files where they were listed, else the same pixel grid."""
    if scene.listed:
        if opened.digest != scene.digest:
            raise BadInput("unreadable", scene.uri, "changed since it was opened (another size, ETag or mtime now)")
        return
    is_, said = (opened.transform, (opened.height, opened.width)), (scene.transform, (scene.height, scene.width))
    crs = crs_name(opened.crs)
    if not _same_grid(is_, said) or (crs != scene.crs and crs.startswith("EPSG:") and scene.crs.startswith("EPSG:")):
        detail = f"{is_[1]} px of {crs} at {is_[0]}, where its STAC item says {said[1]} of {scene.crs} at {said[0]}"
        raise BadInput("wrong_shape", scene.uri, detail)


def _same_grid(one: tuple[Sequence[float], tuple[int, int]], other: tuple[Sequence[float], tuple[int, int]]) -> bool:
    """Two (affine, (height, width)) put every pixel at the same place."""
    (t, shape), (u, shape_too) = one, other
    pixel = SAME * max(map(abs, (t[0], t[1], t[3], t[4])))
    side = max(shape)
    return shape == shape_too and all(
        abs(p - q) * (1 if i in (2, 5) else side) <= pixel for i, (p, q) in enumerate(zip(t, u, strict=True))
    )


def _forget(scene: SceneRef) -> None:
    opened = getattr(_local, "cache", {}).pop(scene, None)
    if opened:
        opened.close()


def crs_name(crs: CRS) -> str:
    """ "EPSG:n" where it has a number, else WKT."""
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(crs.to_wkt())


def orbit_of(text: str) -> str:
    """ "ascending", "descending", or "unknown" of anything else."""
    return text.lower() if text.lower() in ORBITS else "unknown"


def sar_bands(dataset: Any, uri: str) -> list[int]:
    """1-based bands of VV and VH. Raises BadInput missing_band; OtherSensor where they are Sentinel-2's."""
    words = [set(re.split(r"[^A-Z0-9]+", (d or "").upper())) for d in dataset.descriptions]
    said = {band_of(w) for each in words for w in each}
    if said & set(S2_BANDS) and not said & set(S1_BANDS):
        raise OtherSensor("missing_band", uri, f"bands are described as {dataset.descriptions}: Sentinel-2's")
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
