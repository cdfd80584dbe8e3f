"""Windows of a mosaic against the whole image in one pass: the issue's "it shows", scaled down. No Ray."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import field, pix2pixhd, restormer, speed, statistics
from sar2eo_dist.mosaic.blend import step_ratio
from sar2eo_dist.mosaic.confidence import SHAPE, Model
from sar2eo_dist.mosaic.grid import Grid
from sar2eo_dist.pipeline import windows
from sar2eo_dist.pipeline.actors import Chain, exact
from sar2eo_dist.sections import Scaling

NORTH_UP = (10.0, 0.0, 600_000.0, 0.0, -10.0, 9_500_000.0)
HALO = 96  # more than the receptive radius of either network
WINDOW = 256


@pytest.fixture(autouse=True, scope="module")
def _as_it_was() -> Iterator[None]:
    """What `exact` fixes for an actor's process is undone for the tests that follow."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(strict)
    torch.set_num_threads(threads)


def nets(seed: int, enhancer: bool = False) -> Chain:
    """Untrained networks of the tiny presets' depth, but narrower: the seams are those of the tiny ones."""
    exact("cpu", 1)
    made = Chain.__new__(Chain)
    torch.manual_seed(seed)
    parts = [pix2pixhd.build({"preset": "tiny", "ngf": 4}, 3, 3)]
    if enhancer:
        parts.append(restormer.build({"preset": "tiny", "dim": 4, "heads": [1, 1, 2, 2]}, 3, 3))
    made.device, made.nets, made.scaling = "cpu", [speed.apply(net.eval()) for net in parts], Scaling()
    return made


@functools.cache
def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(2, height, width) dB: water in the south-east, forest in the north-west, speckle everywhere.

    The divide is aslant, so that it crosses window borders and other lines equally often; along a border it would be
    taken for a seam.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    water = x / width + y / height + 0.08 * np.sin((x - y) / 80) > 1.05
    speckle = 10 * np.log10(rng.gamma(4.4, 1 / 4.4, (2, height, width)))
    db = np.stack([np.where(water, -18.0, -8.0), np.where(water, -26.0, -14.0)]) + speckle
    return db.astype(np.float32)


def lay(db: np.ndarray, window: int = WINDOW, halo: int = HALO, overlap: int = 0, block: int = 0) -> Grid:
    height, width = db.shape[1:]
    return Grid("EPSG:32721", NORTH_UP, width, height, window, overlap, block or max(height, width), 16, halo)


def reader(db: np.ndarray) -> Callable:
    def read(place) -> windows.Sar:
        y, x = (place.y, place.x) if hasattr(place, "y") else (place.row, place.col)
        return windows.Sar(y, x, db[:, y : y + place.height, x : x + place.width])

    return read


def found_in(chain: Chain, lattice: Grid, db: np.ndarray) -> dict:
    """The statistics stage: what each statistics window holds."""
    read = reader(db)
    return {b: windows.gathered(chain, lattice, b, read(lattice.around(b))) for b in lattice.blocks()}


def mosaic(
    chain: Chain, grid: Grid, db: np.ndarray, given=None, lattice=None, batch: int = 1, order: int = 1
) -> np.ndarray:
    """(3, height, width): every block on its own, from no more than it is said to reach."""
    read = reader(db)
    out = np.full((3, grid.height, grid.width), 7, np.float32)
    for b in grid.blocks()[::order]:
        made = windows.images(chain, grid, b, read(grid.reach(b)), given, lattice, batch, None)
        assert made.error is None
        out[:, b.y : b.y + b.height, b.x : b.x + b.width] = made.image
    return out


def in_field(chain: Chain, grid: Grid, db: np.ndarray, side: int, **how) -> np.ndarray:
    lattice = grid.coarse(side)
    known = found_in(chain, lattice, db)
    return mosaic(chain, grid, db, lambda p: [(b, known[b]) for b in lattice.knots(p)], lattice, **how)


def whole_statistics(chain: Chain, db: np.ndarray) -> tuple[dict, np.ndarray]:
    """As `windows.exact` names them, of one pass over the whole image; and that pass's image."""
    x, known = chain.scaled([db]), {}
    with torch.inference_mode():
        for k, net in enumerate(chain.nets):
            with statistics.gather(net) as found:
                x = net(x).clamp(-1, 1)
            known |= {f"{k}:{layer}:{key}": v for layer, values in found.items() for key, v in values.items()}
    return known, x[0].numpy()


@pytest.mark.parametrize(
    ("enhancer", "height", "width", "window", "side"),
    [(False, 256, 384, 128, 256), (False, 500, 371, 128, 256), (True, 205, 301, 128, 160)],
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
