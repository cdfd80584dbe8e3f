"""Windows of a mosaic against the whole image in one pass: the issue's "it shows", scaled down. No Ray."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from windowed import WINDOW, as_it_was, found_in, in_field, lay, mosaic, nets, reader, scene, whole_statistics

from sar2eo_dist.models import field, statistics
from sar2eo_dist.mosaic.blend import step_ratio
from sar2eo_dist.pipeline import windows

__all__ = ["as_it_was"]


@pytest.mark.parametrize(
    ("enhancer", "height", "width", "window", "side"),
    [(False, 384, 256, 128, 256), (False, 244, 371, 128, 160), (True, 141, 301, 128, 160)],
    ids=["pix2pixhd", "odd sizes", "chain, odd sizes"],
)
def test_exact_is_the_whole_image(enhancer, height, width, window, side):
    chain, db = nets(1, enhancer), scene(height, width)
    grid = lay(db, window)
    lattice, read = grid.coarse(side), reader(db)
    known = windows.exact(chain, lattice, lambda b: read(lattice.around(b)))
    wanted, image = whole_statistics(chain, db)
    assert known.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((known[name] - value).abs().max()) <= 1e-4 * float(value.abs().max()), name
    made = mosaic(chain, grid, db, known, lattice)
    assert np.abs(made - chain(db)[-1]).max() < 1e-4
    assert np.abs(made - image).max() < 1e-4
    own = mosaic(chain, lay(db, window, 0), db)
    assert np.abs(own - image).max() > 0.1  # the control


def borders(side: int, window: int = WINDOW) -> range:
    return range(window, side, window)


def steps(image: np.ndarray) -> float:
    return step_ratio(image, borders(image.shape[1]), borders(image.shape[2]))


@pytest.mark.parametrize("seed", [0, 3])
def test_a_field_hides_the_window_borders_that_own_statistics_show(seed):
    """Five seeds, 1024 px, against the whole image's score: field 0.93 to 1.02, own statistics without halo 2.4 to 3.8.

    Fewer borders leave the score to chance: at 768 px a field scores 0.92 to 1.31, with no step that an eye would find.
    """
    chain, db = nets(seed), scene(1024, 1024)
    whole = steps(chain(db)[-1])
    assert 0.9 < steps(in_field(chain, lay(db), db, 512)) / whole < 1.1
    assert steps(mosaic(chain, lay(db, halo=0), db)) / whole > 2


def test_a_field_of_one_knot_is_the_whole_image():
    chain, db = nets(1), scene(384, 420)
    assert np.abs(in_field(chain, lay(db, 128), db, 512) - chain(db)[-1]).max() < 1e-4


@pytest.mark.parametrize("mode", ["field", "exact", "window"])
def test_block_sizes_and_orders_give_equal_pixels(mode):
    chain, db = nets(2, enhancer=True), scene(260, 330)
    known = whole_statistics(chain, db)[0] if mode == "exact" else None

    def made(block: int, order: int) -> np.ndarray:
        if mode == "field":
            return in_field(chain, lay(db, 128, block=block), db, 160, order=order)
        grid = lay(db, 128, overlap=64, halo=0, block=block) if mode == "window" else lay(db, 128, block=block)
        return mosaic(chain, grid, db, known, order=order)

    whole = made(512, 1)
    assert np.isfinite(whole).all()
    for block, order in ((128, -1), (256, 1)) if mode != "window" else ((100, -1),):
        np.testing.assert_array_equal(made(block, order), whole)


def test_batches_give_the_same_pixels():
    """To a rounding: a convolution of four images is not, to the bit, that of one. Blocks do not matter for either."""
    chain, db = nets(2, enhancer=True), scene(160, 300)
    grid = lay(db, 64, 32)
    one, four = (in_field(chain, grid, db, 80, batch=n) for n in (1, 4))
    assert np.abs(one - four).max() < 2e-5
    small = in_field(chain, dataclasses.replace(grid, block=64), db, 80, batch=4, order=-1)
    np.testing.assert_array_equal(small, four)


def test_gathered_moments_are_those_of_the_core_alone():
    """Each statistics window runs as trained on itself with its halo; what it keeps is of its own pixels."""
    chain, db = nets(3), scene(300, 420)
    lattice = lay(db, 128).coarse(128)
    read = reader(db)
    for block in (lattice.at(0, 0), lattice.at(1, 1), lattice.at(2, 3)):
        place = lattice.around(block)
        found = windows.gathered(chain, lattice, block, read(place))
        padded = chain.padded(0, place.height, place.width)
        inside = block.y - place.row, block.x - place.col
        bottom = padded[0] if block.row == 2 else inside[0] + 128
        right = padded[1] if block.col == 3 else inside[1] + 128
        x = chain.scaled([read(place).db])
        (net,) = chain.nets
        outputs = []
        name = field.moments(net)[2]
        hook = net.get_submodule(name).register_forward_pre_hook(lambda _, args, out=outputs: out.append(args[0]))
        with torch.inference_mode():
            net(x)
        hook.remove()
        scale = padded[0] // outputs[0].shape[2]
        part = outputs[0][0, :, inside[0] // scale : bottom // scale, inside[1] // scale : right // scale].double()
        assert torch.allclose(found[f"0:{name}:mean"].double(), part.mean((1, 2)), atol=1e-5)
        assert torch.allclose(found[f"0:{name}:var"].double(), part.var((1, 2), correction=0), rtol=1e-3)
        assert float(found["weight"]) == pytest.approx(block.height * block.width / 128**2)
        assert found[f"0:{name}:mean"].shape == (outputs[0].shape[1],)


def test_a_cut_beyond_what_was_read_is_refused():
    sar = windows.Sar(100, 200, scene(64, 96)[:, :50, :60])
    grid = lay(scene(384, 384), 128)
    for block in (grid.at(0, 0), dataclasses.replace(grid.at(0, 0), y=100, x=200, height=51, width=10)):
        with pytest.raises(ValueError, match="is not inside the .*50, 60"):
            sar.cut(block)
    inner = dataclasses.replace(grid.at(0, 0), y=110, x=230, height=40, width=30)
    np.testing.assert_array_equal(sar.cut(inner), sar.db[:, 10:50, 30:60])


def test_the_knots_of_a_field_are_the_centres_of_the_statistics_windows():
    """One window by hand, on knots laid out here: between four centres, each weighing its own pixels."""
    chain, db = nets(5), scene(230, 256)
    grid = lay(db, 64, 32)
    lattice = grid.coarse(128)
    known = found_in(chain, lattice, db)
    made = mosaic(chain, grid, db, lambda p: [(b, known[b]) for b in lattice.knots(p)], lattice)
    corners = [known[lattice.at(r, c)] for r in (0, 1) for c in (0, 1)]
    values = {
        layer: tuple(
            torch.stack([g[f"0:{layer}:{key}"] for g in corners]).unflatten(0, (2, 2)) for key in ("mean", "var")
        )
        for layer in field.moments(chain.nets[0])
    }
    by_hand = field.Field([63.5, 191.5], [63.5, 191.5], np.array([[1, 1], [102 / 128] * 2]), values)
    top, left = 64 - 32, 128 - 32  # of the window at (64, 128) with its halo
    with torch.inference_mode(), statistics.use(chain.nets[0], field.source([(by_hand, top, left)], (128, 128))):
        x = chain.nets[0](chain.scaled([db[:, top : top + 128, left : left + 128]]))
    assert np.abs(made[:, 64:128, 128:192] - x[0, :, 32:96, 32:96].numpy()).max() < 1e-5
