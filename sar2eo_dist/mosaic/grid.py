"""One global window lattice per grid, in absolute pixel coordinates, and the blocks that units of work own.

Window (i, j) begins at pixel (i stride, j stride), stride = window - overlap, whatever block asks for it; at the grid's
far edges it is clipped, never moved back. So a block is a pure function of its key, and neighbours agree.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    width, height, window, overlap, block: pixels; multiple: window origins must be multiples of it (2^downsamplings of
    the networks), or a window's pixels would meet the networks' own lattice differently from window to window. Windows
    clipped at the far edges may have any size. Raises ConfigError with the numbers.
    """

    crs: str
    transform: Transform
    width: int
    height: int
    window: int
    overlap: int
    block: int
    multiple: int = 1

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

    def blocks(self) -> list[Block]:
        """All blocks, row by row."""
        return [
            Block(i, j, y, x, min(self.block, self.height - y), min(self.block, self.width - x))
            for i, y in enumerate(range(0, self.height, self.block))
            for j, x in enumerate(range(0, self.width, self.block))
        ]

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
