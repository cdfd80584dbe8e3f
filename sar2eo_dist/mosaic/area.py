"""Which blocks of a grid are worked on: areas of interest, UTM zones that own their pixels, scenes that touch."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.crs
import rasterio.warp
import shapely
from shapely.geometry import shape

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic.grid import Block, Grid, Window, utm_zone

LONLAT = "EPSG:4326"
DEGREE = 6371007.2 * math.pi / 180  # metres of a degree on the sphere of the Earth's surface
STEP = (
    0.05  # degrees between vertices where an edge is carried into another CRS: a chord is then off by less than a pixel
)
NEAR = 12.0  # degrees from a zone's meridian that its CRS is used for
_MERIDIAN = 1000.0  # metres of northing between points of a zone's border; in between it is straight to a millimetre


def parse(data: bytes, uri: str) -> Any:
    """The polygons of a GeoJSON (geometry, Feature or FeatureCollection) as one shapely geometry, lon/lat.

    Raises ConfigError: no GeoJSON, no polygon, coordinates that are no degrees.
    """
    try:
        tree = json.loads(data)
        parts = tree["features"] if tree["type"] == "FeatureCollection" else [tree]
        geometries = [shape(p["geometry"] if p["type"] == "Feature" else p) for p in parts]
    except (ValueError, TypeError, KeyError, AttributeError, shapely.errors.ShapelyError) as e:
        raise ConfigError(f"no GeoJSON with polygons ({type(e).__name__}: {e}): {uri}") from e
    area = shapely.union_all([shapely.make_valid(g) for g in geometries if g.geom_type in ("Polygon", "MultiPolygon")])
    if area.is_empty:
        kinds = ", ".join(sorted({g.geom_type for g in geometries})) or "nothing"
        raise ConfigError(f"an area of interest is made of polygons, this holds {kinds}: {uri}")
    west, south, east, north = area.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise ConfigError(
            f"an area of interest is in degrees of longitude and latitude, this spans {west:g}..{east:g}, "
            f"{south:g}..{north:g}: {uri}"
        )
    return area


def zones(area: Any) -> list[tuple[int, bool]]:
    """(zone, south) of every UTM zone that owns a part of an area (lon/lat), in order."""
    west, south, east, north = area.bounds
    found = []
    for zone in range(max(1, int((west + 180) // 6) + 1), min(60, int((east + 180) // 6) + 1) + 1):
        left = 6.0 * zone - 186
        for is_south, low, high in ((False, 0.0, 84.0), (True, -80.0, 0.0)):
            if north >= low and south <= high and shapely.box(left, low, left + 6, high).intersection(area).area > 0:
                found.append((zone, is_south))
    return found


def projected(area: Any, grid: Grid) -> Any:
    """The part of an area (lon/lat) that a grid owns, in the grid's CRS; None = all that it owns (None where it owns all)."""
    zone = utm_zone(grid.crs)
    if grid.strip is not None and zone:
        own = shapely.box(grid.strip[0], -80.0 if zone[1] else 0.0, grid.strip[1], 0.0 if zone[1] else 84.0)
        area = own if area is None else own.intersection(area)
    if area is None:
        return None
    if zone:  # transverse Mercator breaks down far from its meridian
        west, south, east, north = 6.0 * zone[0] - 183 - NEAR, -84.0, 6.0 * zone[0] - 183 + NEAR, 84.0
    else:
        corners = grid.corners(Window(0, 0, grid.height, grid.width))
        west, south, east, north = rasterio.warp.transform_bounds(grid.crs, LONLAT, *corners)
    area = shapely.box(west - 1, max(-90.0, south - 1), east + 1, min(90.0, north + 1)).intersection(area)
    dense = shapely.segmentize(area, STEP)

    def carry(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = rasterio.warp.transform(LONLAT, grid.crs, points[:, 0], points[:, 1])
        return np.column_stack([x, y])

    return shapely.make_valid(shapely.transform(dense, carry))


def blocks_in(grid: Grid, area: Any) -> npt.NDArray[np.bool_]:
    """(rows, cols) of blocks: True where the block touches an area in the grid's CRS (None = everywhere)."""
    rows, cols = grid.shape
    if area is None:
        return np.ones((rows, cols), bool)
    found = np.zeros((rows, cols), bool)
    if area.is_empty:
        return found
    a, _, c, _, e, f = grid.transform
    left, bottom, right, top = area.bounds
    first = int((left - c) / a / grid.block), int((top - f) / e / grid.block)
    last = int((right - c) / a / grid.block), int((bottom - f) / e / grid.block)
    span = np.s_[max(0, first[1]) : min(rows, last[1] + 1), max(0, first[0]) : min(cols, last[0] + 1)]
    rr, cc = (g[span].ravel() for g in np.mgrid[:rows, :cols])
    boxes = _boxes(grid, [grid.at(int(i), int(j)) for i, j in zip(rr, cc, strict=True)])
    shapely.prepare(area)
    touched = shapely.intersects(area, boxes) & ~shapely.touches(area, boxes)
    found[rr[touched], cc[touched]] = True
    return found


def touching(
    grid: Grid, places: Sequence[Block | Window], footprints: npt.NDArray[np.object_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(starts (n + 1,), footprints (m,)): the footprints that touch place i are found[starts[i]:starts[i + 1]], ascending.

    footprints: polygons in the grid's CRS. An edge in common counts, for a scene's last pixel may be cut by rounding.
    """
    tree = shapely.STRtree(_boxes(grid, places))
    scene, place = tree.query(footprints, predicate="intersects")
    order = np.lexsort((scene, place))
    counts = np.bincount(place, minlength=len(places))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), scene[order].astype(np.int64)


def _boxes(grid: Grid, places: Sequence[Block | Window]) -> Any:
    return shapely.box(*np.array([grid.corners(p) for p in places], np.float64).reshape(-1, 4).T)


def owned(grid: Grid, block: Block) -> npt.NDArray[np.bool_]:
    """(height, width): True where a pixel's centre lies between the meridians of the grid's zone, the western included."""
    if grid.strip is None:
        return np.ones((block.height, block.width), bool)
    a, _, c, _, e, f = grid.transform
    y = f + e * (block.y + np.arange(block.height) + 0.5)
    x = c + a * (block.x + np.arange(block.width) + 0.5)
    west, east = (_meridian(grid.crs, lon, float(y.min()), float(y.max())) for lon in grid.strip)
    west, east = (np.interp(y, m[1], m[0]) for m in (west, east))
    mask: npt.NDArray[np.bool_] = (x >= west[:, None]) & (x < east[:, None])
    return mask


def _meridian(crs: str, lon: float, low: float, high: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Points (x, y) of a meridian in a UTM zone, y ascending, from below `low` to above `high`, at absolute latitudes."""
    centre = 500_000.0
    (_, _), (south, north) = rasterio.warp.transform(crs, LONLAT, [centre, centre], [low - 5000, high + 5000])
    step = _MERIDIAN / 111_000
    lats = (
        np.arange(np.floor(south / step) - 40, np.ceil(north / step) + 41) * step
    )  # the meridian lies lower than the middle
    lats = lats[(lats > -89) & (lats < 89)]
    x, y = rasterio.warp.transform(LONLAT, crs, np.full(len(lats), lon), lats)
    return np.array(x), np.array(y)


def hectares(grid: Grid, block: Block, pixels: int) -> int:
    """Ground that so many pixels of a block cover, to the hectare; in degrees by the latitude of the block's middle."""
    left, bottom, right, top = grid.corners(block)
    across, down = (right - left) / block.width, (top - bottom) / block.height
    if _geographic(grid.crs):
        across, down = across * DEGREE * math.cos(math.radians((bottom + top) / 2)), down * DEGREE
    return round(pixels * across * down / 1e4)


@functools.lru_cache(maxsize=64)
def _geographic(crs: str) -> bool:
    return bool(rasterio.crs.CRS.from_user_input(crs).is_geographic)
