"""Radar onto another pixel grid: bilinear in linear power, every pixel's value the same in whatever window it is read.

Where a target pixel lies in the source is known exactly at control points every CELL pixels of the target's absolute
coordinates and interpolated bilinearly between them (a few thousandths of a 10 m pixel); the points of BATCH x BATCH cells
are always transformed together. So nothing depends on where a window begins.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transformed

from sar2eo_dist.compiled import compiled
from sar2eo_dist.sources.raster import gdal

CELL = 64  # target pixels between control points
BATCH = 16  # cells of one batch of control points, along each side
SIDE = CELL * BATCH
ALIGNED = 0.01  # pixels that two grids may lie apart and be one: rounding of geotransforms
FAR = 1e9  # source pixels: beyond it the CRS has no sensible answer

Transform = tuple[float, float, float, float, float, float]
Read = Callable[[int, int, int, int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Grid:
    """Pixels of the ground: crs as "EPSG:n" or WKT, transform the affine of pixel (0, 0)'s corner; without bounds."""

    crs: str
    transform: Transform


def same_crs(one: str, other: str) -> bool:
    return one == other or _equal(one, other)


@functools.lru_cache(256)
def _equal(one: str, other: str) -> bool:
    return bool(CRS.from_user_input(one) == CRS.from_user_input(other))


def offset(source: Grid, height: int, width: int, target: Grid) -> tuple[int, int] | None:
    """(row, column) in the target of the source's first pixel where the source's pixels are the target's, else None.

    They are where the CRS is one, and over the whole source no pixel lies further than ALIGNED from one of the target.
    """
    if not same_crs(source.crs, target.crs):
        return None
    x, y = np.array([0, width, 0, width]), np.array([0, 0, height, height])
    cols, rows = _applied(_inverse(target.transform), *_applied(source.transform, x, y))
    col, row = round(cols[0]), round(rows[0])
    return (row, col) if max(np.abs(cols - x - col).max(), np.abs(rows - y - row).max()) <= ALIGNED else None


def project(source: str, target: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, n) coordinates of n points in another CRS; not finite where there are none."""
    if source == target or not len(x):
        return np.stack([x, y])
    try:
        with gdal():
            return np.array(transformed(source, target, x, y))
    except CPLE_BaseError:  # of one point all are refused
        if len(x) == 1:
            return np.full((2, 1), np.inf)
        half = len(x) // 2
        parts = [project(source, target, x[i], y[i]) for i in (np.s_[:half], np.s_[half:])]
        return np.concatenate(parts, axis=1)


def _applied(transform: Transform, x: Any, y: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f = transform
    return a * x + b * y + c, d * x + e * y + f


def _inverse(transform: Transform) -> Transform:
    a, b, c, d, e, f, *_ = ~Affine(*transform)
    return a, b, c, d, e, f


@functools.lru_cache(1024)
def _nodes(target: Grid, crs: str, i: int, j: int) -> NDArray[np.float64]:
    """(2, BATCH + 1, BATCH + 1) x and y in a CRS of the control points of batch (i, j); not finite where there is none."""
    at = np.arange(BATCH + 1) * CELL
    cols, rows = np.meshgrid(j * SIDE + at, i * SIDE + at)
    x, y = _applied(target.transform, cols, rows)
    if not same_crs(target.crs, crs):
        x, y = project(target.crs, crs, x.ravel(), y.ravel())
    out = np.reshape([x, y], (2, BATCH + 1, BATCH + 1)).astype(np.float64)
    out.flags.writeable = False
    return out


def _batches(row: int, col: int, height: int, width: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(batch row and column; row, column, height and width within the grid) of the parts of a window."""
    for i in range(row // SIDE, (row + height - 1) // SIDE + 1):
        for j in range(col // SIDE, (col + width - 1) // SIDE + 1):
            top, left = max(row, i * SIDE), max(col, j * SIDE)
            bottom, right = min(row + height, (i + 1) * SIDE), min(col + width, (j + 1) * SIDE)
            yield i, j, top, left, bottom - top, right - left


def _in_source(source: Grid, target: Grid, i: int, j: int) -> NDArray[np.float64]:
    """(2, BATCH + 1, BATCH + 1) column and row in the source of a batch's control points."""
    return np.stack(_applied(_inverse(source.transform), *_nodes(target, source.crs, i, j)))


def needed(
    source: Grid, source_height: int, source_width: int, target: Grid, row: int, col: int, height: int, width: int
) -> tuple[int, int, int, int] | None:
    """(row, column, height, width) of the source that a window of the target needs; None where they do not touch."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for i, j, *part in _batches(row, col, height, width):
        at = _at(_in_source(source, target, i, j), i, j, *part)
        at[~np.isfinite(at).all(axis=-1) | (np.abs(at) > FAR).any(axis=-1)] = np.nan
        if np.isfinite(at).any():
            low = np.minimum(low, np.nanmin(at, axis=(0, 1)))
            high = np.maximum(high, np.nanmax(at, axis=(0, 1)))
    if not (low <= high).all():
        return None
    # the four pixels around x - 0.5, and one for the rounding of what is interpolated
    left, top = (max(math.floor(v - 0.5) - 1, 0) for v in low)
    right, bottom = (min(math.floor(v - 0.5) + 3, n) for v, n in zip(high, (source_width, source_height), strict=True))
    return (top, left, bottom - top, right - left) if top < bottom and left < right else None


def _at(nodes: NDArray[np.float64], i: int, j: int, row: int, col: int, height: int, width: int) -> NDArray[np.float64]:
    """(n, m, 2) source column and row at a part's corners and at the borders of cells within: its extremes are there."""

    def places(first: int, count: int, base: int) -> NDArray[np.float64]:
        low, high = first + 0.5 - base, first + count - 0.5 - base
        inside = np.arange(math.ceil(low / CELL), math.floor(high / CELL) + 1) * CELL
        return np.unique([low, *inside, high])

    y, x = places(row, height, i * SIDE), places(col, width, j * SIDE)
    k, m = np.minimum(y // CELL, BATCH - 1).astype(int), np.minimum(x // CELL, BATCH - 1).astype(int)
    v, u = (y / CELL - k)[:, None], x / CELL - m
    with np.errstate(invalid="ignore"):
        corners = [
            nodes[:, k[:, None] + p, m + q] * (v if p else 1 - v) * (u if q else 1 - u) for p in (0, 1) for q in (0, 1)
        ]
        return np.moveaxis(sum(corners[1:], corners[0]), 0, -1)


def read(
    source: Grid,
    source_height: int,
    source_width: int,
    target: Grid,
    row: int,
    col: int,
    height: int,
    width: int,
    window: Read,
) -> NDArray[np.float32]:
    """(2, height, width) float32 dB of the target's pixels from (row, col) on; NaN = no data, in both bands.

    window(row, col, height, width): dB of the source, (2, h, w) float32 with NaN, asked once for what is needed.
    A pixel holds data where those of its four neighbours that do, in both bands, have at least half of the weight; their
    weighted mean is taken of linear power.
    """  # fmt: skip
    out = np.full((2, height, width), np.nan, np.float32)
    place = needed(source, source_height, source_width, target, row, col, height, width)
    if place is None:
        return out
    db = window(*place)
    power = np.exp(np.multiply(db, math.log(10) / 10, dtype=np.float64))
    for i, j, top, left, h, w in _batches(row, col, height, width):
        nodes = _in_source(source, target, i, j)
        part = out[:, top - row : top - row + h, left - col : left - col + w]
        _bilinear(nodes, top - i * SIDE, left - j * SIDE, power, place[0], place[1], part)
    return out


@compiled
def _bilinear(
    nodes: NDArray[np.float64],
    row: int,
    col: int,
    power: NDArray[np.float64],
    top: int,
    left: int,
    out: NDArray[np.float32],
) -> None:
    """A part of a batch. row, col: of its first pixel within the batch; top, left: of power's first pixel in the source."""
    height, width = power.shape[1:]
    for r in range(out.shape[1]):
        y = row + r + 0.5
        k = int(y) // CELL
        v = y / CELL - k
        for c in range(out.shape[2]):
            x = col + c + 0.5
            m = int(x) // CELL
            u = x / CELL - m
            # in source pixels from the centre of its first one; absolute, so that rounding knows no window
            at_x = (
                (1 - v) * ((1 - u) * nodes[0, k, m] + u * nodes[0, k, m + 1])
                + v * ((1 - u) * nodes[0, k + 1, m] + u * nodes[0, k + 1, m + 1])
                - 0.5
            )
            at_y = (
                (1 - v) * ((1 - u) * nodes[1, k, m] + u * nodes[1, k, m + 1])
                + v * ((1 - u) * nodes[1, k + 1, m] + u * nodes[1, k + 1, m + 1])
                - 0.5
            )
            if not (abs(at_x) <= FAR and abs(at_y) <= FAR):
                continue
            first_x, first_y = math.floor(at_x), math.floor(at_y)
            ax, ay = at_x - first_x, at_y - first_y
            weight, vv, vh = 0.0, 0.0, 0.0
            for n in range(4):
                p, q = n >> 1, n & 1
                i, j = int(first_y) + p - top, int(first_x) + q - left
                if 0 <= i < height and 0 <= j < width:
                    a, b = power[0, i, j], power[1, i, j]
                    if a == a and b == b:
                        share = (ay if p else 1 - ay) * (ax if q else 1 - ax)
                        weight += share
                        vv += share * a
                        vh += share * b
            if weight >= 0.5:
                out[0, r, c] = 10 * math.log10(vv / weight)
                out[1, r, c] = 10 * math.log10(vh / weight)
