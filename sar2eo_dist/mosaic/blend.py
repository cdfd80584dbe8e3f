"""Overlapping windows to one image, and the measure of how well their borders are hidden."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ModelError
from sar2eo_dist.mosaic.grid import Block, Grid, Window

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SIDE, PIECE = 8, 64  # pixels on either side of a border; length of a piece of it


def hann(window: int) -> F64:
    """sin^2(pi (i + 1/2) / window), (window,) float64: always positive; shifted by half a window it adds up to 1."""
    weights: F64 = np.square(np.sin(np.pi * (np.arange(window) + 0.5) / window))
    return weights


class Blender:
    """Weighted mean of all windows over each pixel of a block.

    A window's weights depend on the place inside the (unclipped) window alone and sums run over windows in canonical
    order in float64: a pixel comes out the same to the bit, whatever block it is computed in. For that, a window may be
    left out only for reasons that lie in the window (say, no valid pixel in all of it), never in the block.
    Memory: 8 (channels + 1) bytes a pixel of the block.
    """

    def __init__(self, grid: Grid, block: Block, channels: int = 3) -> None:
        self.block = block
        self._weights = hann(grid.window)
        self._sum = np.zeros((channels, block.height, block.width), np.float64)
        self._weight = np.zeros((block.height, block.width), np.float64)
        self._last = (-1, -1)

    def add(self, window: Window, image: npt.NDArray[np.floating], valid: Mask) -> None:
        """Add a window's image (C, h, w); pixels where `valid` (h, w) is false take no part, whatever they hold.

        Raises ModelError where the image does not fit the window, ValueError where the window does not touch the
        block or comes out of canonical order.
        """
        shape = (self._sum.shape[0], window.height, window.width)
        if image.shape != shape or valid.shape != shape[1:]:
            raise ModelError(f"image {image.shape} with valid mask {valid.shape} for a window of {shape} at {window}")
        if (window.row, window.col) <= self._last:
            raise ValueError(f"{window} after the window at {self._last}: not in canonical order")
        self._last = (window.row, window.col)
        block = self.block
        top, bottom = max(window.row, block.y), min(window.row + window.height, block.y + block.height)
        left, right = max(window.col, block.x), min(window.col + window.width, block.x + block.width)
        if top >= bottom or left >= right:
            raise ValueError(f"{window} does not touch {block}")
        rows, cols = slice(top - window.row, bottom - window.row), slice(left - window.col, right - window.col)
        inside = slice(top - block.y, bottom - block.y), slice(left - block.x, right - block.x)
        seen = valid[rows, cols]
        weight = np.where(seen, np.outer(self._weights[rows], self._weights[cols]), 0.0)
        self._weight[inside] += weight
        for total, band in zip(self._sum, image, strict=True):
            total[inside] += np.where(seen, band[rows, cols], 0.0).astype(np.float64) * weight

    def result(self) -> F32:
        """(C, H, W) float32 of the block; NaN where no window had a valid pixel."""
        mean = np.full(self._sum.shape, np.nan)
        np.divide(self._sum, self._weight, out=mean, where=self._weight > 0)
        return mean.astype(np.float32)


def step_ratio(
    image: npt.NDArray[np.floating], rows: Iterable[int], cols: Iterable[int], valid: Mask | None = None
) -> float:
    """Seam score of an image (C, H, W): how much larger the step across window borders is than elsewhere; 1 = no seam.

    A step is |mean of the 8 px on one side - mean of the 8 px on the other|, over a piece of 64 px along the border;
    the score is its mean over all pieces, channels and the given borders (`rows`: a border above that row; `cols`: left
    of that column), divided by the same over all positions at least 8 px from any of them. A direction without borders
    takes no part. Borders nearer than 8 px to the image's edge are left out, and so are pieces with an invalid pixel
    (or NaN). (The plain gradient does not see the worst seam, that of window statistics without halo: low and long.)
    Raises ValueError where no border or no interior position is left. An image without any step scores 1.
    """
    x = np.asarray(image, np.float64)
    if valid is not None:
        x = np.where(valid, x, np.nan)
    parts = [_steps(x, cols), _steps(x.swapaxes(1, 2), rows)]
    at, inside = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
    if not at.size or not inside.size:
        raise ValueError(f"{at.size} border pieces and {inside.size} interior ones in an image of {image.shape}")
    border, interior = float(at.mean()), float(inside.mean())
    if interior == 0:
        return 1.0 if border == 0 else float("inf")
    return border / interior


def _steps(x: F64, borders: Iterable[int]) -> tuple[F64, F64]:
    """(steps at the borders, steps at interior positions), both flat, across columns of (C, H, W)."""
    channels, height, width = x.shape
    places, wanted = np.arange(SIDE, width - SIDE + 1), np.array(sorted(set(borders)), np.int64)
    if not places.size or not wanted.size:
        return np.empty(0), np.empty(0)
    length = min(PIECE, height)
    pieces = height // length
    lines = x[:, : pieces * length].reshape(channels, pieces, length, width).mean(axis=2)
    sides = np.lib.stride_tricks.sliding_window_view(lines, SIDE, axis=2).mean(axis=3)
    steps = np.abs(sides[:, :, places - SIDE] - sides[:, :, places])
    distance = np.abs(places[:, None] - wanted).min(axis=1)
    at, inside = (steps[:, :, m].ravel() for m in (distance == 0, distance >= SIDE))
    return at[~np.isnan(at)], inside[~np.isnan(inside)]
