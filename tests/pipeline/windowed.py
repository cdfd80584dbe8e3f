"""Small chains of untrained networks, a scene for them, and its mosaic made block by block without Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from sar2eo_dist.models import pix2pixhd, restormer, speed, statistics
from sar2eo_dist.mosaic.grid import Grid
from sar2eo_dist.pipeline import windows
from sar2eo_dist.pipeline.actors import Chain, exact
from sar2eo_dist.sections import Scaling

NORTH_UP = (10.0, 0.0, 600_000.0, 0.0, -10.0, 9_500_000.0)
HALO = 96  # more than the receptive radius of either network
WINDOW = 256


@pytest.fixture(autouse=True, scope="module")
def as_it_was() -> Iterator[None]:
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
