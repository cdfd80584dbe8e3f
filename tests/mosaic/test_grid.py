from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic.grid import Block, Grid, Window

UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 9_500_000.0)


def grids():
    return st.builds(
        lambda w, h, window, part, block: Grid("EPSG:32721", UTM, w, h, window, int(window * part), block),
        st.integers(1, 60),
        st.integers(1, 60),
        st.integers(4, 40),
        st.floats(0, 0.8),
        st.integers(6, 70),
    )


def every_window(grid: Grid) -> list[Window]:
    return grid.windows_of(Block(0, 0, 0, 0, grid.height, grid.width))


@settings(max_examples=80, deadline=None)
@given(grids())
def test_lattice_covers_every_pixel_and_is_never_snapped(grid):
    seen = np.zeros((grid.height, grid.width), int)
    for w in every_window(grid):
        assert w.row % grid.stride == 0
        assert w.col % grid.stride == 0
        assert w.height == min(grid.window, grid.height - w.row)
        assert w.width == min(grid.window, grid.width - w.col)
        assert w.col == 0 or w.width > grid.overlap
        assert w.row == 0 or w.height > grid.overlap
        seen[w.row : w.row + w.height, w.col : w.col + w.width] += 1
    assert seen.min() >= 1
    last = grid.window_cols[-1]
    assert last == 0 or last < grid.width - grid.overlap
    assert last + grid.stride >= grid.width - grid.overlap


@settings(max_examples=80, deadline=None)
@given(grids())
def test_blocks_partition_the_grid_and_find_their_windows(grid):
    owner = np.zeros((grid.height, grid.width), int)
    windows = every_window(grid)
    assert windows == sorted(windows, key=lambda w: (w.row, w.col))
    blocks = grid.blocks()
    assert len({b.key for b in blocks}) == len(blocks)
    assert [b.key for b in blocks] == sorted(b.key for b in blocks)
    for b in blocks:
        assert (b.y, b.x) == (b.row * grid.block, b.col * grid.block)
        owner[b.y : b.y + b.height, b.x : b.x + b.width] += 1
        assert grid.windows_of(b) == [
            w
            for w in windows
            if w.row < b.y + b.height and w.row + w.height > b.y and w.col < b.x + b.width and w.col + w.width > b.x
        ]
    assert (owner == 1).all()


def test_by_hand():
    grid = Grid("EPSG:32721", UTM, 1000, 700, 512, 256, 512, multiple=16)
    assert list(grid.window_cols) == [0, 256, 512]
    assert list(grid.window_rows) == [0, 256]
    blocks = grid.blocks()
    assert [b.key for b in blocks] == ["r00000c00000", "r00000c00001", "r00001c00000", "r00001c00001"]
    assert blocks[3] == Block(1, 1, 512, 512, 188, 488)
    assert grid.windows_of(blocks[3]) == [Window(256, 256, 444, 512), Window(256, 512, 444, 488)]
    assert Block(3, 12, 0, 0, 1, 1).key == "r00003c00012"


def test_window_larger_than_the_grid():
    grid = Grid("EPSG:32721", UTM, 100, 60, 512, 256, 2048)
    (block,) = grid.blocks()
    assert block == Block(0, 0, 0, 0, 60, 100)
    assert grid.windows_of(block) == [Window(0, 0, 60, 100)]


@pytest.mark.parametrize("transform", [UTM, (8.0, 3.0, 100.0, 2.0, -9.0, 200.0)])
def test_block_transform_is_that_of_its_pixels(transform):
    grid = Grid("EPSG:32721", transform, 1000, 700, 512, 256, 300)
    for b in grid.blocks():
        got = Affine(*grid.block_transform(b)) @ (4, 5)
        assert got == pytest.approx(Affine(*transform) @ (b.x + 4, b.y + 5))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 9, 8, 4, 8), "0 x 9"),
        ((9, 9, 8, 8, 8), "overlap 8 must be at least 0 and less than window 8"),
        ((9, 9, 8, -1, 8), "overlap -1"),
        ((9, 9, 8, 4, 0), "blocks of 0"),
        ((9, 9, 520, 256, 8, 16), "window 520 - overlap 256 = stride 264: .* multiples of 16"),
        ((9, 9, 512, 250, 8, 16), "stride 262"),
    ],
)
def test_what_is_refused(numbers, text):
    with pytest.raises(ConfigError, match=text):
        Grid("EPSG:32721", UTM, *numbers)
