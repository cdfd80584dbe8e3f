"""Several scenes as one image on a pixel grid: dates, orbits and overlaps composed pixel by pixel.

1. scenes of one orbit direction and one day are one acquisition (undated ones too): the first with data, in order of date
   and URIs, gives the pixel; a pixel is data where both bands are
2. over the acquisitions of one direction: median or mean, in linear power
3. over the directions (unknown is one of its own): the mean in linear power of those that have data

A value that enters alone comes out as it is, and so does the middle one of an odd number. Each pixel depends on nothing
but what the scenes hold there, whatever the window.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sar2eo_dist.compiled import compiled
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import SceneRef
from sar2eo_dist.sources import warp
from sar2eo_dist.sources.scenes import ORBITS, read_window
from sar2eo_dist.sources.warp import Grid, Transform

STRIP = 256  # rows: strips begin at multiples of it
HELD = 128 << 20  # bytes of one strip over all its acquisitions
HOW = ("median", "mean")

Key = tuple[str, dt.date | None]


def read(
    scenes: Sequence[SceneRef],
    crs: str,
    transform: Transform,
    row: int,
    col: int,
    height: int,
    width: int,
    how: str = "median",
    orbit: str = "both",
) -> NDArray[np.float32]:
    """(2, height, width) float32 dB, VV then VH, NaN = no data: the composite of scenes on a pixel grid.

    crs, transform: the grid, affine (a, b, c, d, e, f) of pixel (0, 0)'s corner; row, col: any whole numbers.
    how: "median" or "mean"; orbit: "both", or "ascending" or "descending", which use scenes of unknown orbit as well.

    A scene whose pixels are the grid's is read as it is (warp.offset), any other is warped (warp.read). Scenes that do
    not touch the window are not opened. Memory: beside the result, about HELD bytes, or STRIP rows of every acquisition.
    Raises ConfigError (how, orbit), and what `scenes.read_window` does, with the scene's URI. Thread-safe.
    """
    if how not in HOW or orbit not in ("both", *ORBITS):
        raise ConfigError(
            f"composite {how!r} of orbit {orbit!r}: known are {', '.join(HOW)}; both, {', '.join(ORBITS)}"
        )
    grid = Grid(crs, transform)
    groups: dict[Key, list[_Placed]] = {}
    for scene in sorted(scenes, key=lambda s: (s.date or dt.date.min, s.uris)):
        if orbit in ("both", scene.orbit) or scene.orbit not in ORBITS:
            placed = _Placed(scene, grid)
            if placed.touches(row, col, height, width):
                groups.setdefault((scene.orbit, scene.date), []).append(placed)
    if len(groups) == 1:
        return _acquisition(next(iter(groups.values())), row, col, height, width)
    out = np.full((2, height, width), np.nan, np.float32)
    if groups:
        for top, rows in _strips(row, height, 8 * width * len(groups)):
            out[:, top - row : top - row + rows] = _strip(groups, how == "median", top, col, rows, width)
    return out


class _Placed:
    """A scene on a grid."""

    def __init__(self, scene: SceneRef, grid: Grid) -> None:
        self.scene, self.target = scene, grid
        self.source = Grid(scene.crs, scene.transform)
        self.offset = warp.offset(self.source, scene.height, scene.width, grid)

    def touches(self, row: int, col: int, height: int, width: int) -> bool:
        scene = self.scene
        if self.offset is None:
            window = row, col, height, width
            return warp.needed(self.source, scene.height, scene.width, self.target, *window) is not None
        top, left = self.offset
        return top < row + height and left < col + width and row < top + scene.height and col < left + scene.width

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
        scene = self.scene
        if self.offset is None:
            window = row, col, height, width
            return warp.read(
                self.source, scene.height, scene.width, self.target, *window, lambda *place: read_window(scene, *place)
            )
        db = read_window(scene, row - self.offset[0], col - self.offset[1], height, width)
        _join(db)
        return db


def _strips(row: int, height: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of strips that begin at multiples of STRIP and hold about HELD bytes."""
    step = max(HELD // max(row_bytes, 1) // STRIP, 1) * STRIP
    end = row + height
    while row < end:
        rows = min((row // step + 1) * step, end) - row
        yield row, rows
        row += rows


def _acquisition(group: Sequence[_Placed], row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
    db = group[0].read(row, col, height, width)
    for placed in group[1:]:
        missing = np.isnan(db[0])
        if not missing.any():
            break
        if placed.touches(row, col, height, width):
            np.copyto(db, placed.read(row, col, height, width), where=missing)
    return db


def _strip(
    groups: dict[Key, list[_Placed]], median: bool, row: int, col: int, height: int, width: int
) -> NDArray[np.float32]:
    directions = []
    for direction in sorted({d for d, _ in groups}):
        mine = [group for (d, _), group in groups.items() if d == direction]
        stack = np.empty((len(mine), 2, height, width), np.float32)
        for i, group in enumerate(mine):
            stack[i] = _acquisition(group, row, col, height, width)
        directions.append(_reduced(stack, median) if len(mine) > 1 else stack[0])
    return directions[0] if len(directions) == 1 else _reduced(np.stack(directions), False)


@compiled
def _join(db: NDArray[np.float32]) -> None:
    """No data in one band is none in the other."""
    for r in range(db.shape[1]):
        for c in range(db.shape[2]):
            if db[0, r, c] != db[0, r, c] or db[1, r, c] != db[1, r, c]:
                db[0, r, c] = db[1, r, c] = np.nan


@compiled
def _reduced(stack: NDArray[np.float32], median: bool) -> NDArray[np.float32]:
    """(n, 2, h, w) dB -> (2, h, w): median or mean in linear power of what is data."""
    count, bands, height, width = stack.shape
    out = np.empty((bands, height, width), np.float32)
    line = np.empty((width, count), np.float32)  # a row's pixels, each with its values side by side
    for b in range(bands):
        for r in range(height):
            for i in range(count):
                for c in range(width):
                    line[c, i] = stack[i, b, r, c]
            for c in range(width):
                values, n = line[c], 0
                for i in range(count):
                    value = values[i]
                    if value == value:
                        at = n
                        if median:
                            while at > 0 and values[at - 1] > value:
                                values[at] = values[at - 1]
                                at -= 1
                        values[at] = value
                        n += 1
                if n == 0:
                    out[b, r, c] = np.nan
                elif n == 1 or (median and n % 2):
                    out[b, r, c] = values[n // 2]
                else:
                    first, last = (n // 2 - 1, n // 2 + 1) if median else (0, n)
                    power = 0.0
                    for i in range(first, last):
                        power += math.exp(values[i] * (math.log(10) / 10))
                    out[b, r, c] = 10 * math.log10(power / (last - first))
    return out
