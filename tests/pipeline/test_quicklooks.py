"""The confidence band's quick-look: pixel for pixel the mean of the errors that the store holds."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sar2eo_dist.config import load
from sar2eo_dist.mosaic import store
from sar2eo_dist.mosaic.grid import Grid
from sar2eo_dist.mosaic.pyramid import Pixels
from sar2eo_dist.pipeline import products

SIDE, BLOCK = 384, 128
RNG = np.random.default_rng(2)
ERROR = RNG.integers(1, 900, (SIDE, SIDE)).astype(np.uint16)
VALID = RNG.random((SIDE, SIDE)) < 0.9
WRITTEN = [(1, 1), (1, 2), (2, 1)]  # blocks; the plan has (2, 2) as well, which is not done


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root, transform = str(tmp_path_factory.mktemp("mosaic")), (10.0, 0.0, 600_000.0, 0.0, -10.0, 9_520_000.0)
    grid = Grid("EPSG:32721", transform, SIDE, SIDE, window=32, overlap=0, block=BLOCK, multiple=32, halo=0, name="m")
    layout = store.Layout("EPSG:32721", transform, SIDE, SIDE, BLOCK, error=True)
    store.write_template(root, "m/mosaic.zarr", layout, {})
    for row, col in WRITTEN:
        at = np.s_[BLOCK * row : BLOCK * (row + 1), BLOCK * col : BLOCK * (col + 1)]
        pixels = Pixels(np.ones((3, BLOCK, BLOCK), np.uint8), VALID[at], ERROR[at])
        store.write_block(root, "m/mosaic.zarr", layout, 0, row, col, pixels)
    frame = SimpleNamespace(root=root, folder="m", store="m/mosaic.zarr", grid=grid, layout=layout, look=1)
    blocks = [(None, SimpleNamespace(row=r, col=c)) for r, c in (*WRITTEN, (2, 2))]
    return SimpleNamespace(frame=frame, blocks=blocks)


def looked(plan: Any, longest: int, order: int = 1) -> np.ndarray:
    """(h, w, 4) of the quick-look."""
    cfg = load(overrides=[f"translate.quicklook={longest}"])
    data = products.error_quicklook(cfg, plan, [plan.frame.grid.at(r, c) for r, c in WRITTEN[::order]])
    assert products.error_quicklook(cfg, plan, [plan.frame.grid.at(r, c) for r, c in WRITTEN]) == data
    return np.asarray(Image.open(io.BytesIO(data)))


def test_every_pixel_in_grey(plan: Any) -> None:
    seen = looked(plan, 256, order=-1)
    assert seen.shape == (256, 256, 4)  # of the planned blocks, not of the grid
    there = VALID[BLOCK:, BLOCK:].copy()
    there[BLOCK:, BLOCK:] = False
    np.testing.assert_array_equal(seen[..., 3], 255 * there)
    grey = np.floor(np.minimum(ERROR[BLOCK:, BLOCK:], 500) * 255.0 / 500 + 0.5)
    for band in range(3):
        np.testing.assert_array_equal(seen[..., band][there], grey[there])


def test_a_smaller_one_is_their_mean_over_valid_pixels(plan: Any) -> None:
    seen = looked(plan, 64)
    values = np.where(VALID[BLOCK:, BLOCK:], np.minimum(ERROR[BLOCK:, BLOCK:], 500) * 0.51, np.nan)
    cells = values.reshape(64, 4, 64, 4).transpose(0, 2, 1, 3).reshape(64, 64, 16)[:32]
    np.testing.assert_allclose(seen[:32, :, 0], np.nanmean(cells, axis=2), atol=1.01)
    share = np.isfinite(cells).mean(2)
    np.testing.assert_allclose(seen[:32, :, 3], 255 * share, atol=0.51)
