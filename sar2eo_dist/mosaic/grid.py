"""Named grids: one global window lattice each, in absolute pixel coordinates, and the blocks that units of work own.

Window (i, j) begins at pixel (i stride, j stride), stride = window - overlap, whatever block asks for it; at the grid's
far edges it is clipped, never moved back. So a block is a pure function of its key, and neighbours agree. What a window
is computed from reaches `halo` pixels further on every side, clipped at the grid's edges.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sar2eo_dist.errors import ConfigError

Transform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Window:
    """One lattice window: first row and column, height and width, in pixels of the grid, clipped to it."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of work. row, col: in blocks; y, x, height, width: in pixels of the grid, clipped to it."""

    row: int
    col: int
    y: int
    x: int
    height: int
    width: int

    @property
    def key(self) -> str:
        return f"r{self.row:05d}c{self.col:05d}"


@dataclass(frozen=True, slots=True)
class Grid:
    """A raster's geometry with its lattice.

    crs: WKT or "EPSG:n"; transform: affine (a, b, c, d, e, f) in rasterio's order, of the first pixel's corner;
    width, height, window, overlap, block, halo: pixels; multiple: window origins and halos must be multiples of it
    (2^downsamplings of the networks), or a window's pixels would meet the networks' own lattice differently from window
    to window. Windows clipped at the far edges may have any size. strip: (west, east) degrees of longitude whose pixels
    the grid owns, None = all. Raises ConfigError with the numbers.
    """

    crs: str
    transform: Transform
    width: int
    height: int
    window: int
    overlap: int
    block: int
    multiple: int = 1
    halo: int = 0
    name: str = ""
    strip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.block, self.multiple) < 1:
            raise ConfigError(
                f"grid of {self.width} x {self.height} pixels in blocks of {self.block}, multiple {self.multiple}: "
                f"all must be 1 or more"
            )
        if not 0 <= self.overlap < self.window:
            raise ConfigError(f"overlap {self.overlap} must be at least 0 and less than window {self.window}")
        if self.window % self.multiple or self.stride % self.multiple:
            raise ConfigError(
                f"window {self.window} - overlap {self.overlap} = stride {self.stride}: window and stride must be "
                f"multiples of {self.multiple} (2^downsamplings)"
            )
        if self.halo < 0 or self.halo % self.multiple:
            raise ConfigError(f"halo {self.halo} must be a multiple of {self.multiple} (2^downsamplings), 0 or more")

    @property
    def stride(self) -> int:
        return self.window - self.overlap

    @property
    def window_rows(self) -> range:
        """First pixel row of each row of windows."""
        return self._origins(self.height)

    @property
    def window_cols(self) -> range:
        """First pixel column of each column of windows."""
        return self._origins(self.width)

    def _origins(self, size: int) -> range:
        """k stride for 0 <= k <= the last k with k stride < size - overlap (0 where there is none).

        So every pixel is covered, and no clipped window lies wholly inside the overlap with the one before.
        """
        last = max(0, (size - self.overlap - 1) // self.stride)
        return range(0, last * self.stride + 1, self.stride)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.block), -(-self.width // self.block)

    def at(self, row: int, col: int) -> Block:
        """The block in that row and column of blocks."""
        y, x = row * self.block, col * self.block
        return Block(row, col, y, x, min(self.block, self.height - y), min(self.block, self.width - x))

    def blocks(self) -> list[Block]:
        """All blocks, row by row."""
        rows, cols = self.shape
        return [self.at(i, j) for i in range(rows) for j in range(cols)]

    def coarse(self, side: int) -> Grid:
        """The lattice of statistics: windows of `side`, edge to edge, each a block of its own."""
        return dataclasses.replace(self, window=side, overlap=0, block=side)

    def around(self, place: Window | Block) -> Window:
        """A place and its halo, clipped at the grid's edges: what a window is computed from."""
        y, x = (place.row, place.col) if isinstance(place, Window) else (place.y, place.x)
        top, left = max(0, y - self.halo), max(0, x - self.halo)
        bottom = min(self.height, y + place.height + self.halo)
        return Window(top, left, bottom - top, min(self.width, x + place.width + self.halo) - left)

    def reach(self, block: Block) -> Window:
        """All that a block is computed from: every window that touches it, with its halo."""
        rows = self._touching(self.window_rows, block.y, block.y + block.height)
        cols = self._touching(self.window_cols, block.x, block.x + block.width)
        bottom, right = min(self.height, rows[-1] + self.window), min(self.width, cols[-1] + self.window)
        return self.around(Window(rows[0], cols[0], bottom - rows[0], right - cols[0]))

    def knots(self, area: Window) -> list[Block]:
        """Blocks between whose centres every pixel of `area` lies, as far as there are any; row by row."""
        rows = _between(area.row, area.row + area.height, self.block, self.shape[0])
        cols = _between(area.col, area.col + area.width, self.block, self.shape[1])
        return [self.at(i, j) for i in rows for j in cols]

    def windows_of(self, block: Block) -> list[Window]:
        """All windows that share a pixel with the block, in canonical order: row by row."""
        rows = self._touching(self.window_rows, block.y, block.y + block.height)
        cols = self._touching(self.window_cols, block.x, block.x + block.width)
        return [
            Window(r, c, min(self.window, self.height - r), min(self.window, self.width - c))
            for r in rows
            for c in cols
        ]

    def _touching(self, origins: range, start: int, end: int) -> range:
        """Origins o with o < end and o + window > start."""
        first = max(0, (start - self.window) // self.stride + 1)
        return origins[first : (end - 1) // self.stride + 1]

    def block_transform(self, block: Block) -> Transform:
        """The affine of the block's first pixel's corner."""
        a, b, c, d, e, f = self.transform
        return (a, b, c + a * block.x + b * block.y, d, e, f + d * block.x + e * block.y)

    def corners(self, place: Window | Block) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of a place in the CRS, of a north-up grid."""
        y, x = (place.row, place.col) if isinstance(place, Window) else (place.y, place.x)
        a, b, c, d, e, f = self.transform
        points = [(c + a * i + b * j, f + d * i + e * j) for i in (x, x + place.width) for j in (y, y + place.height)]
        xs, ys = zip(*points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def _between(start: int, end: int, side: int, count: int) -> range:
    """Indices of the cells of `side` whose centres enclose [start, end), within 0..count."""
    first, last = (2 * start - side) // (2 * side), -((2 * end - side) // (-2 * side))
    return range(max(0, first), min(count - 1, last) + 1)


#: eastings and northings that any UTM zone's land lies within, metres; false northing 10,000,000 in the south
_EAST, _NORTH, _SOUTH = (100_000, 900_000), (0, 9_400_000), (1_100_000, 10_000_000)


def utm_grid(zone: int, south: bool, pixel: float, owned: bool = True, **lattice: Any) -> Grid:
    """The grid of one UTM zone: fixed, whatever is asked of it, so that block keys never move.

    zone: 1..60; south: the southern hemisphere (EPSG:327nn), else EPSG:326nn; pixel: metres; owned: only pixels between
    the zone's own meridians are its own, else all. lattice: window, overlap, block, multiple, halo.
    """
    if not 1 <= zone <= 60:
        raise ConfigError(f"UTM zone {zone} is not one of 1 to 60")
    low, high = _SOUTH if south else _NORTH
    width, height = (round((b - a) / pixel) for a, b in (_EAST, (low, high)))
    west = 6.0 * zone - 186
    return Grid(
        f"EPSG:{(32700 if south else 32600) + zone}", (pixel, 0.0, float(_EAST[0]), 0.0, -pixel, float(high)), width, height,
        name=f"utm{zone:02d}{'s' if south else 'n'}", strip=(west, west + 6) if owned else None, **lattice,
    )  # fmt: skip


def utm_zone(crs: str) -> tuple[int, bool] | None:
    """(zone, south) of an EPSG code of WGS 84 / UTM; None of anything else."""
    code = crs.upper().removeprefix("EPSG:")
    if code.isdigit() and len(code) == 5 and code[:3] in ("326", "327") and 1 <= int(code[3:]) <= 60:
        return int(code[3:]), code[:3] == "327"
    return None
