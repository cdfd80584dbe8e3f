from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sar2eo_dist.errors import ModelError
from sar2eo_dist.mosaic.blend import Blender, hann, step_ratio
from sar2eo_dist.mosaic.grid import Grid, Window

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def lattice(height: int, width: int, window: int, overlap: int, block: int) -> Grid:
    return Grid("EPSG:32721", IDENTITY, width, height, window, overlap, block)


def model(x: np.ndarray) -> np.ndarray:
    """(h, w) -> (3, h, w): reads the statistics of its own window, as instance norm does."""
    z = (x - np.nanmean(x)) / (np.nanstd(x) + 1e-5)
    return np.stack([z, np.tanh(z), np.nan_to_num(z).cumsum(axis=1)]).astype(np.float32)


def mosaic(grid: Grid, field: np.ndarray, order: int = 1) -> np.ndarray:
    """All blocks of a scene, NaN = no data."""
    out = np.empty((3, grid.height, grid.width), np.float32)
    for b in grid.blocks()[::order]:
        blender = Blender(grid, b)
        for w in grid.windows_of(b):
            part = field[w.row : w.row + w.height, w.col : w.col + w.width]
            valid = np.isfinite(part)
            if valid.any():
                blender.add(w, model(part), valid)
        out[:, b.y : b.y + b.height, b.x : b.x + b.width] = blender.result()
    return out


@pytest.mark.parametrize("window", [2, 16, 512])
def test_hann_is_positive_and_halves_add_up_to_one(window):
    weights = hann(window)
    assert weights.dtype == np.float64
    assert weights.min() > 0
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-9)
    np.testing.assert_allclose(weights[: window // 2] + weights[window // 2 :], 1, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(2, 24),
    st.floats(0, 0.8),
    st.lists(st.integers(3, 60), min_size=2, max_size=3),
    st.integers(0, 2**31),
    st.sampled_from((0.0, 0.3, 1.0)),
)
def test_bit_identical_for_any_partition(height, width, window, part, blocks, seed, holes):
    rng = np.random.default_rng(seed)
    field = rng.normal(-10, 4, (height, width)).astype(np.float32)
    field[rng.random(field.shape) < holes] = np.nan
    field[: height // 3, : width // 2] = np.nan
    whole = mosaic(lattice(height, width, window, int(window * part), max(height, width)), field)
    for block in blocks:
        got = mosaic(lattice(height, width, window, int(window * part), block), field, order=-1)
        assert got.tobytes() == whole.tobytes()
    assert (np.isnan(whole[0]) == np.isnan(field)).all()


def test_weights_add_up_to_one_in_the_interior():
    grid = lattice(64, 64, 16, 8, 64)
    (block,) = grid.blocks()
    total = np.zeros((64, 64))
    for w in grid.windows_of(block):
        outer = np.outer(hann(16)[: w.height], hann(16)[: w.width])
        total[w.row : w.row + w.height, w.col : w.col + w.width] += outer
    np.testing.assert_allclose(total[8:-8, 8:-8], 1, rtol=1e-12)


def test_what_all_windows_agree_on_comes_back():
    grid = lattice(40, 45, 16, 10, 20)
    image = np.random.default_rng(0).random((3, 40, 45)).astype(np.float32)
    for b in grid.blocks():
        blender = Blender(grid, b)
        for w in grid.windows_of(b):
            part = image[:, w.row : w.row + w.height, w.col : w.col + w.width]
            blender.add(w, part, np.ones(part.shape[1:], bool))
        np.testing.assert_allclose(
            blender.result(), image[:, b.y : b.y + b.height, b.x : b.x + b.width], rtol=1e-6, atol=0
        )


def test_invalid_pixels_take_no_part():
    grid = lattice(8, 8, 8, 4, 8)
    (block,) = grid.blocks()
    blender = Blender(grid, block, channels=1)
    (window,) = grid.windows_of(block)
    image, valid = np.full((1, 8, 8), 2.5, np.float32), np.ones((8, 8), bool)
    image[0, 3, 3], valid[3, 3] = np.nan, False
    blender.add(window, image, valid)
    got = blender.result()
    assert got.shape == (1, 8, 8)
    assert np.argwhere(np.isnan(got[0])).tolist() == [[3, 3]]
    assert (got[0][valid] == 2.5).all()


def test_what_is_refused():
    grid = lattice(32, 32, 16, 8, 16)
    blender = Blender(grid, grid.blocks()[3])
    ones, mask = np.ones((3, 16, 16), np.float32), np.ones((16, 16), bool)
    with pytest.raises(ModelError, match=r"\(3, 16, 15\)"):
        blender.add(Window(8, 8, 16, 16), ones[:, :, :15], mask)
    with pytest.raises(ValueError, match="does not touch"):
        blender.add(Window(0, 0, 16, 16), ones, mask)
    blender.add(Window(8, 16, 16, 16), ones, mask)
    with pytest.raises(ValueError, match="canonical order"):
        blender.add(Window(8, 8, 16, 16), ones, mask)


def scene(side: int = 512) -> np.ndarray:
    """A smooth field with a divide between two materials, as water and forest, and a trend across all of it."""
    rng = np.random.default_rng(5)
    noise = ndimage.gaussian_filter(rng.normal(size=(side, side)), 2) * 4
    places = np.arange(side) / side
    divide = np.add.outer(places, 0.7 * places) > 0.85
    return (noise + 8 * divide + 8 * np.add.outer(places, places)).astype(np.float32)


def test_step_ratio_sees_window_statistics_and_nothing_else():
    field, borders = scene(), range(64, 512, 64)
    whole = step_ratio(model(field)[:2], borders, borders)
    assert whole == pytest.approx(1, abs=0.15)  # 112 pieces of noise; the gate is on the ratio to this
    # negative control: the statistics of each window, no halo
    control = mosaic(lattice(512, 512, 64, 0, 512), field)[:2]
    assert step_ratio(control, borders, borders) > 2 * whole
    assert min(step_ratio(control, borders, []), step_ratio(control, [], borders)) > 2
    # Hann blending hides most of it
    blended = mosaic(lattice(512, 512, 128, 64, 512), field)[:2]
    assert step_ratio(blended, borders, borders) < 1.5 * whole


def test_step_ratio_by_hand():
    ramp = np.tile(np.arange(96.0), (1, 128, 1))
    assert step_ratio(ramp, [], [48]) == pytest.approx(1)
    ramp[:, :, 48:] += 16  # a step over 8 px of the ramp is 8
    assert step_ratio(ramp, [], [48]) == pytest.approx(3)
    flat = np.zeros((1, 64, 64))
    assert step_ratio(flat, [32], [32]) == 1
    flat[:, 32:] = 1
    assert step_ratio(flat, [32], [32]) == float("inf")


def test_step_ratio_leaves_invalid_pieces_out():
    ramp = np.tile(np.arange(96.0), (1, 128, 1))
    broken = ramp.copy()
    broken[:, :64, 48:] += 500
    valid = np.ones((128, 96), bool)
    valid[:64] = False
    assert step_ratio(broken, [], [48]) > 20
    assert step_ratio(broken, [], [48], valid) == pytest.approx(1)
    with pytest.raises(ValueError, match="0 border pieces"):
        step_ratio(broken, [], [48], np.zeros_like(valid))
    with pytest.raises(ValueError, match="0 border pieces"):
        step_ratio(ramp, [], [3])
