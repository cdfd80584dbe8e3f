"""The open files of one scene: which band is where, its pixel grid, what its numbers mean, and raw pixels of it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar2eo_dist.errors import BadInput
from sar2eo_dist.records import PATCH, S1, S1_BANDS, S2, S2_BANDS, digest
from sar2eo_dist.sources import reflectance, scenes
from sar2eo_dist.sources.raster import Raster
from sar2eo_dist.sources.scene_layout import BANDS, MASKS, PRODUCTS, band_of, product

GSD = 10.0  # metres
DEGREES = (8e-5, 1.2e-4)  # sides of a pixel of about 10 m in degrees
ALIGNED = 0.01  # pixels that an origin may lie off the lattice: rounding of geotransforms
#: bands of a 13-band file without descriptions: ESA's order
ESA_ORDER = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")

Plane = tuple[NDArray[Any], NDArray[np.bool_]]  # pixels as stored, and where they are data


@dataclass(frozen=True, slots=True)
class Grid:
    """Square north-up pixels of a raster. row, col: of its first pixel, counted in pixels from the CRS's origin."""

    gsd: float
    row: int
    col: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width} px of {self.gsd:g} from lattice row {self.row}, column {self.col} on"

    def tiles(self) -> NDArray[np.int64]:
        """(n, 2): row and column in the raster of the first pixel of every lattice tile wholly inside, row by row."""
        rows = np.arange(-self.row % PATCH, self.height - PATCH + 1, PATCH)
        cols = np.arange(-self.col % PATCH, self.width - PATCH + 1, PATCH)
        return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)


class Scene:
    """One acquisition of one sensor, its files open. For one thread. Raises BadInput, and storage's errors.

    files: (band, URI) of each, or one ("", URI) whose header names the bands; sensor: "s1" or "s2"; units, quantity: of
    S1, in place of its tags. `bands` is empty, and nothing else set, where a single file turns out to be another sensor's.
    """

    bands: tuple[str, ...]
    grid: Grid
    crs: Any
    units: str
    quantity: str
    offset: int

    def __init__(self, files: Sequence[tuple[str, str]], sensor: str, units: str = "", quantity: str = "") -> None:
        self.rasters: list[Raster] = []
        try:
            for _, uri in files:
                self.rasters.append(Raster(uri))
            self._marks = tuple(r.info.digest for r in self.rasters)
            if files[0][0]:
                self._where = {band: (i, 1) for i, (band, _) in enumerate(files)}
                for (band, _), raster in zip(files, self.rasters, strict=True):
                    if raster.dataset.count != 1:
                        detail = f"{band} has {raster.dataset.count} bands in one file, not 1"
                        raise BadInput("wrong_shape", raster.info.uri, detail)
            else:
                self._where = _located(self.rasters[0], sensor)
            self.bands = tuple(self._where)
            if self.bands:
                self._read_headers(sensor, units, quantity)
        except BaseException:
            self.close()
            raise

    def _read_headers(self, sensor: str, units: str, quantity: str) -> None:
        for raster in self.rasters:
            scenes.check_georeference(raster.dataset, raster.info.uri)
        first = self._raster(self.bands[0])
        self.crs, self.grid = first.dataset.crs, _grid(first)
        self._grids = {band: self._grid_of(band) for band in self.bands}
        self.units, self.quantity, self.offset = "", "", 0
        if sensor == S1:
            for band in S1_BANDS:
                scenes.check_dtype(self._raster(band).dataset, [self._number(band)], self._raster(band).info.uri)
            said = [_declared(self._raster(band), units, quantity) for band in S1_BANDS]
            if said[0] != said[1]:
                raise BadInput("unreadable", first.info.uri, f"VV is {' '.join(said[0])}, VH is {' '.join(said[1])}")
            self.units, self.quantity = said[0]
            return
        meant = {b: reflectance.meaning(self._raster(b).dataset, self._number(b), self.uri(b)) for b in S2_BANDS}
        self._factor = {band: factor for band, (factor, _) in meant.items()}
        offsets = {band: offset for band, (_, offset) in meant.items()}
        if len(set(offsets.values())) > 1:
            raise BadInput("wrong_dtype", first.info.uri, f"bands declare different offsets: {offsets}")
        self.offset = offsets[S2_BANDS[0]]

    def _grid_of(self, band: str) -> Grid:
        """The grid of a band: that of all, but for a mask, whose pixels may be a multiple."""
        raster, grid, mask = self._raster(band), self.grid, band in MASKS[S2]
        name = raster.info.uri
        if raster is self.rasters[0]:
            return grid
        if raster.dataset.crs != self.crs:
            raise BadInput("wrong_shape", name, f"{band} is in {raster.dataset.crs}, {self.bands[0]} in {self.crs}")
        own = _grid(raster, grid.gsd)
        if not mask and own != grid:
            raise BadInput("wrong_shape", name, f"{band} is {own}, {self.bands[0]} is {grid}")
        n = round(own.gsd / grid.gsd)
        bottom, right = own.row + n * own.height, own.col + n * own.width
        outside = own.row > grid.row or own.col > grid.col
        if outside or bottom < grid.row + grid.height or right < grid.col + grid.width:
            raise BadInput("wrong_shape", name, f"{band} is {own} and does not cover {self.bands[0]}: {grid}")
        return own

    def _raster(self, band: str) -> Raster:
        return self.rasters[self._where[band][0]]

    def _number(self, band: str) -> int:
        return self._where[band][1]

    def uri(self, band: str) -> str:
        return self._raster(band).info.uri

    def acquired(self) -> tuple[dt.date, str, str]:
        """(date, orbit, platform): of the tags, else of the product's name. Raises BadInput bad_date, bad_name."""
        raster = self.rasters[0]
        tags = {k.upper(): v.strip() for k, v in raster.dataset.tags().items()}
        date = scenes.tag_date(tags.get("DATE", ""), raster.info.uri)
        said = product(raster.info.uri)
        date = date or said.date(raster.info.uri)
        if date is None:
            detail = f"no date: neither a tag DATE (YYYY-MM-DD) nor a product name ({PRODUCTS}) in file or folder"
            raise BadInput("bad_name", raster.info.uri, detail)
        orbit = next((o for o in ("ascending", "descending") if o == tags.get("ORBIT", "").lower()), "unknown")
        return date, orbit, tags.get("PLATFORM") or said.platform

    def digest(self, row: int, col: int) -> str:
        """The digest of a tile as `sources.unchanged` computes it."""
        return digest(*self._marks, row, col)

    def scale(self, band: str) -> tuple[float, float]:
        """GDAL's (factor, addend) of a band."""
        dataset, i = self._raster(band).dataset, self._number(band) - 1
        return dataset.scales[i], dataset.offsets[i]

    def read(self, row: int, col: int, width: int) -> dict[str, Plane]:
        """PATCH rows and `width` columns from (row, col) of the scene on, of each band, at 10 m: masks by repetition."""
        out: dict[str, Plane] = {}
        for i, raster in enumerate(self.rasters):
            mine = [b for b in self.bands if self._where[b][0] == i]
            grid = self._grids[mine[0]]
            n = round(grid.gsd / self.grid.gsd)
            y, x = self.grid.row + row - grid.row, self.grid.col + col - grid.col  # in 10 m pixels of the band's raster
            top, left = y // n, x // n
            height, across = -((y + PATCH) // -n) - top, -((x + width) // -n) - left
            raw, valid = raster.read([self._number(b) for b in mine], top, left, height, across)
            y, x = y - n * top, x - n * left
            for band, *plane in zip(mine, raw, valid, strict=True):
                if n > 1:
                    plane = [p.repeat(n, 0)[y : y + PATCH].repeat(n, 1)[:, x : x + width] for p in plane]
                out[band] = plane[0], plane[1]
        return out

    def dn(self, band: str, plane: Plane) -> NDArray[Any]:
        """A plane of B4, B3 or B2 as DN where it is data, 0 elsewhere: integers as stored, floats scaled and rounded."""
        raw, valid = plane
        if raw.dtype.kind != "f":
            return np.where(valid, raw, np.zeros((), raw.dtype))
        values = np.rint(np.where(valid & np.isfinite(raw), raw, 0) * self._factor[band])
        return values.astype(np.int64)

    def close(self) -> None:
        for raster in self.rasters:
            raster.close()


def _located(raster: Raster, sensor: str) -> dict[str, tuple[int, int]]:
    """Where a multi-band file has its bands; nothing where it is another sensor's. Raises BadInput missing_band."""
    dataset, uri = raster.dataset, raster.info.uri
    named = product(uri).sensor or (S1 if {"SAR2EO_UNITS", "SAR2EO_QUANTITY"} & set(dataset.tags()) else "")
    descriptions = dataset.descriptions
    if not any(descriptions) and named == S2 and dataset.count == len(ESA_ORDER):
        descriptions = ESA_ORDER
    words = [_bands_in(d or "") for d in descriptions]
    has = {s for s in BANDS if any(set(BANDS[s]) & w for w in words)} or {named}
    if sensor not in has and has != {""}:
        return {}
    if sensor == S1 and has != {""}:
        return {b: (0, n) for b, n in zip(S1_BANDS, scenes.sar_bands(dataset, uri), strict=True)}
    where = {b: [i for i, w in enumerate(words, 1) if b in w] for b in BANDS[sensor] + MASKS[sensor]}
    bad = [b for b in BANDS[sensor] if len(where[b]) != 1]
    if bad:
        said = f"bands are described as {descriptions}" if any(descriptions) else f"{dataset.count} bands, undescribed"
        raise BadInput("missing_band", uri, f"{said}: not one each of {' '.join(BANDS[sensor])}")
    mask = [b for b in MASKS[sensor] if len(where[b]) == 1][:1]
    return {b: (0, where[b][0]) for b in (*BANDS[sensor], *mask)}


def _bands_in(description: str) -> set[str]:
    words = set(re.split(r"[^A-Z0-9]+", description.upper()))
    return set() if "EDGE" in words else {band for w in words if (band := band_of(w))}


def _declared(raster: Raster, units: str, quantity: str) -> tuple[str, str]:
    tags, uri = {k.upper(): v.strip() for k, v in raster.dataset.tags().items()}, raster.info.uri
    return (
        scenes.declared("units", units or tags.get("SAR2EO_UNITS", ""), scenes.UNITS, uri),
        scenes.declared("quantity", quantity or tags.get("SAR2EO_QUANTITY", ""), scenes.QUANTITIES, uri),
    )


def _grid(raster: Raster, unit: float = 0.0) -> Grid:
    """The grid of a raster; with a `unit` its pixels must be a multiple of that, else GSD or about that in degrees.

    Raises BadInput wrong_shape with the numbers: rotated, not square, another size, off the lattice.
    """
    dataset, uri = raster.dataset, raster.info.uri
    t, crs = dataset.transform, dataset.crs
    if t.b or t.d or t.a <= 0 or t.e >= 0:
        raise BadInput("wrong_shape", uri, f"geotransform {t[:6]} is rotated or not north-up: warp it (gdalwarp -tap)")
    if abs(t.a + t.e) > 1e-6 * t.a:
        raise BadInput("wrong_shape", uri, f"pixels are {t.a:g} x {-t.e:g}, not square: warp it (gdalwarp -tap)")
    if unit:
        n = round(t.a / unit)
        if n < 1 or abs(t.a - n * unit) > 1e-6 * unit:
            raise BadInput("wrong_shape", uri, f"pixels of {t.a:g} are no multiple of the bands' {unit:g}")
    elif crs.is_geographic:
        if not DEGREES[0] <= t.a <= DEGREES[1]:
            raise BadInput("wrong_shape", uri, f"pixels of {t.a:g} degrees, not {DEGREES[0]} to {DEGREES[1]} (10 m)")
    elif abs(t.a * crs.linear_units_factor[1] - GSD) > 1e-6 * GSD:
        raise BadInput("wrong_shape", uri, f"pixels of {t.a:g} {crs.linear_units}, not {GSD:g} m")
    n, unit = (n, unit) if unit else (1, t.a)
    row, col = -t.f / unit, t.c / unit
    off = max(abs(row - round(row)), abs(col - round(col)))
    if off > ALIGNED:
        detail = f"origin {t.c:.10g}, {t.f:.10g} lies {off:.3f} pixels off the multiples of {unit:.10g}"
        raise BadInput("wrong_shape", uri, f"{detail}: warp it (gdalwarp -tap)")
    return Grid(n * unit, round(row), round(col), dataset.height, dataset.width)
