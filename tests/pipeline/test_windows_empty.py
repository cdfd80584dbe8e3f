"""Windows where data ends, and what is said of each pixel's error. No Ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from windowed import HALO, as_it_was, found_in, in_field, lay, mosaic, nets, scene, whole_statistics

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import pix2pixhd, speed
from sar2eo_dist.mosaic.confidence import SHAPE, Model
from sar2eo_dist.pipeline import windows

__all__ = ["as_it_was"]


def test_windows_without_data_run_no_network():
    chain, db = nets(0), scene(384, 384).copy()
    db[:, 100:300, 128:] = np.nan  # the middle windows of the second and third column, and no other, are without data
    db[:, 256:, :128] = 0  # not data either
    calls: list[int] = []
    chain.nets[0].register_forward_hook(lambda *_: calls.append(1))
    for grid in (lay(db, 128), lay(db, 128, halo=0, overlap=0)):
        calls.clear()
        given = whole_statistics(chain, db)[0] if grid.halo else None
        calls.clear()
        (block,) = grid.blocks()
        made = windows.images(chain, grid, block, windows.Sar(0, 0, db), given, None, 1, None)
        assert len(calls) == made.windows == 6
        empty = np.zeros((384, 384), bool)
        empty[128:256, 128:] = empty[256:, :128] = True
        assert np.isnan(made.image[:, empty]).all()
        seen = np.isfinite(db).all(0) & (db != 0).any(0)
        assert np.isfinite(made.image[:, seen]).all()
    calls.clear()
    lattice = lay(db, 128).coarse(128)
    found = found_in(chain, lattice, db)
    assert len(calls) == 6
    assert [float(found[lattice.at(r, c)]["weight"]) for r, c in ((0, 0), (0, 1), (1, 1), (2, 0))] == [
        1,
        100 / 128,
        0,
        0,
    ]
    assert list(found[lattice.at(1, 1)]) == ["weight"]


@pytest.mark.parametrize("enhancer", [False, True], ids=["pix2pixhd", "chain"])
def test_a_hole_changes_no_pixel_beyond_the_receptive_radius(enhancer):
    chain, db = nets(1, enhancer), scene(384, 384)
    known = whole_statistics(chain, db)[0]
    torn = db.copy()
    torn[:, 170:190, 150:200] = np.nan
    before, after = (mosaic(chain, lay(x, 128), x, known) for x in (db, torn))
    changed = np.abs(before - after).max(axis=0) > 1e-6
    assert changed.any()
    rows, cols = np.nonzero(changed)
    reach = max(170 - rows.min(), rows.max() - 189, 150 - cols.min(), cols.max() - 199)
    assert reach <= HALO + enhancer * HALO


def half_empty(db: np.ndarray, from_col: int) -> np.ndarray:
    torn = db.copy()
    torn[:, :, from_col:] = np.nan
    return torn


@pytest.mark.parametrize("blocks", [3, 9])
def test_half_a_grid_without_data(blocks):
    """A window with data may reach so far into emptiness that no statistics window around has any.

    A variance of 0 there would multiply by 316 at each of the published depth's norm layers, up to infinity.
    """
    chain, db = nets(1, enhancer=True), half_empty(scene(256, 512), 250)
    torch.manual_seed(0)
    chain.nets[0] = speed.apply(pix2pixhd.build({"preset": "tiny", "ngf": 4, "n_blocks": blocks}, 3, 3).eval())
    made = in_field(chain, lay(db, 256), db, 128)
    assert np.isfinite(made[:, :, :256]).all()
    assert np.isnan(made[:, :, 256:]).all()


def test_a_window_without_any_statistics_is_refused():
    chain, db = nets(1), scene(256, 256)
    grid = lay(db, 128)
    nothing = {"weight": torch.tensor(0.0)}
    with pytest.raises(ModelError, match="no statistics around a window with data: .*r00000c00000"):
        mosaic(chain, grid, db, lambda p: [(b, nothing) for b in grid.coarse(128).knots(p)], grid.coarse(128))
    with pytest.raises(TypeError, match="lattice"):
        mosaic(chain, grid, db, lambda p: [], None)


@pytest.mark.parametrize("mode", ["exact", "window"])
def test_expected_error_of_each_pixel(mode):
    """Of a block as of the whole image: by the model, from the SAR and the images that are there."""
    chain, db = nets(4), scene(256, 256).copy()
    db[:, 30:60, 40:50] = np.nan
    model = Model(np.random.default_rng(0).uniform(20, 2000, SHAPE), 1)
    known, image = whole_statistics(chain, db)
    if mode == "exact":
        grid, given = lay(db, 128), known
    else:
        grid, given = lay(db, 256, halo=0), None
    (block,) = grid.blocks()
    made = windows.images(chain, grid, block, windows.Sar(0, 0, db), given, None, 2, model)
    wanted = model.predict(db, [image])
    assert made.error is not None
    assert (made.error.shape, made.error.dtype) == ((256, 256), np.uint16)
    assert (made.error[30:60, 40:50] == 0).all()
    assert np.mean(np.abs(made.error.astype(int) - wanted) <= 1) > 0.999
