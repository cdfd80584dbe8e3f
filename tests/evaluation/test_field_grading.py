"""Sums and skill against plain numpy on the pixels themselves."""

from __future__ import annotations

import numpy as np
import pytest

from sar2eo_dist.cca import cloud
from sar2eo_dist.evaluation import field
from sar2eo_dist.radiometry import to_uint8
from sar2eo_dist.sections import CCA
from sar2eo_dist.sources.synthetic import World, eo_dates

RNG = np.random.default_rng(11)


def pixels(n: int, low: int = 1, high: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    return tuple(RNG.integers(low, high, (3, n)) for _ in range(2))  # type: ignore[return-value]


def test_eight_bits_go_back_to_the_nearest_dn() -> None:
    dn = np.arange(3001)
    back = field.as_dn(to_uint8((dn / 1500 - 1).astype(np.float32)))
    assert np.abs(back - dn).max() <= 6  # half a step of 3000 / 255
    assert field.as_dn(np.array([0, 255], np.uint8)).tolist() == [0, 3000]
    assert field.as_dn(np.array([65535], np.uint16)).tolist() == [65535]


@pytest.mark.parametrize("level", ["l2a", "l1c"])
def test_white_pixels_are_those_that_the_collector_counts(level: str) -> None:
    cfg = CCA(level=level)  # type: ignore[arg-type]
    found = []
    for i, date in enumerate(eo_dates(5, 6)):
        bands = World(5).eo(date, 200 * i, 0, 97, 131).bands
        mask = cloud.white_pixels(bands, cfg)
        assert int(mask.sum()) == cloud.look(bands, cfg).white
        found.append(mask.mean())
    noise = RNG.integers(0, 1800, (3, 64, 64)).astype(np.uint16)
    assert int(cloud.white_pixels(noise, cfg).sum()) == cloud.look(noise, cfg).white
    all_white = np.full((3, 4, 5), 4000, np.uint16)
    assert cloud.white_pixels(all_white, cfg).all()
    assert not cloud.white_pixels(all_white[:, :2], cfg).any()  # no 3 x 3 block fits
    assert max(found) > 0


def test_sums_of_cells_and_of_parts_are_exact() -> None:
    mosaic, truth = pixels(5000, 0, 65536)
    cell = RNG.integers(0, 40, 5000) * 7
    cells, sums = field.tally(mosaic, truth, cell)
    assert cells.tolist() == sorted(set(cell.tolist()))
    for k in (0, 11, len(cells) - 1):
        here = cell == cells[k]
        e, t = (mosaic - truth)[:, here], truth[:, here]
        wanted = [here.sum(), *(x.sum(axis=1) for x in (np.abs(e), e, e**2, t, t**2))]
        assert sums[k].tolist() == np.hstack(wanted).tolist()
    order = RNG.permutation(5000)
    parts = [field.tally(mosaic[:, i], truth[:, i], cell[i]) for i in np.array_split(order, 7)]
    again = field.merge(parts)
    assert np.array_equal(again[0], cells)
    assert np.array_equal(again[1], sums)


def test_figures_of_a_date() -> None:
    mosaic, truth = pixels(4001)
    _, sums = field.tally(mosaic, truth, np.zeros(4001, np.int64))
    colour = field.mean_colour(sums[0])
    assert np.array_equal(colour, np.floor(truth.mean(axis=1) + 0.5))
    seen = field.histogram(truth)
    apart = 0
    for band, level in zip(seen, colour, strict=True):
        dn = np.flatnonzero(band)
        apart += field.trivial_absolute(dn, band[dn], int(level))
    found = field.figures(sums[0], apart)
    e, t = mosaic - truth, truth - colour[:, None]
    wanted = {
        "mae": np.abs(e).mean(), "rmse": np.sqrt((e**2).mean()), "bias": e.mean(),
        "skill": 1 - (e**2).mean() / (t**2).mean(),
        "trivial_mae": np.abs(t).mean(), "trivial_rmse": np.sqrt((t**2).mean()),
        "mae_B4": np.abs(e[0]).mean(), "rmse_B3": np.sqrt((e[1] ** 2).mean()), "bias_B2": e[2].mean(),
    }  # fmt: skip
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name
    assert found["skill"] < 0  # two independent images: worse than one colour
    assert abs(float((truth - truth.mean(axis=1)[:, None]).std()) / found["trivial_rmse"] - 1) < 1e-6


def test_skill_is_one_zero_and_undefined() -> None:
    _, truth = pixels(300)
    cell = np.zeros(300, np.int64)
    perfect = field.tally(truth, truth, cell)[1][0]
    assert field.figures(perfect, 1)["skill"] == 1
    mean = np.repeat(field.mean_colour(perfect)[:, None], 300, axis=1)
    assert field.figures(field.tally(mean, truth, cell)[1][0], 1)["skill"] == 0
    flat = np.full((3, 300), 500)
    assert np.isnan(field.figures(field.tally(truth, flat, cell)[1][0], 0)["skill"])


def test_the_map_pools_dates_that_have_their_own_mean() -> None:
    """Cells of a 3 x 4 rectangle whose corner is cell (5, 2), two dates of different light, one cell without any pixel."""
    sums = field.SkillMap.around((5, 7), (2, 5))
    error, squares, trivial = np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 4))
    absolute, count = np.zeros((3, 4)), np.zeros((3, 4))
    for light in (0, 1500):
        mosaic, truth = pixels(900)
        truth += light
        at = RNG.integers(0, 11, 900)  # the last cell stays empty
        cells, tallied = field.tally(mosaic, truth, at)
        colour = field.mean_colour(tallied.sum(axis=0))
        sums.add(cells // 4 + 5, cells % 4 + 2, tallied, colour)
        e = mosaic - truth
        for out, value in (
            (absolute, np.abs(e)),
            (error, e),
            (squares, e**2),
            (trivial, (truth - colour[:, None]) ** 2),
        ):
            np.add.at(out.reshape(-1), at, value.sum(axis=0))
        np.add.at(count.reshape(-1), at, 1)
    mae, bias, skill, n = sums.planes()
    with np.errstate(invalid="ignore"):
        wanted = absolute / (3 * count), error / (3 * count), 1 - squares / trivial
    for found, value in zip((mae, bias, skill), wanted, strict=True):
        np.testing.assert_allclose(found, value.astype(np.float32), rtol=1e-6)
    assert np.isnan(n[2, 3])
    assert n.ravel()[:11].tolist() == count.ravel()[:11].tolist()
    whole = sums.coarser(4).planes()
    assert whole.shape == (4, 1, 1)
    assert whole[2, 0, 0] == pytest.approx(1 - squares.sum() / trivial.sum(), rel=1e-6)
