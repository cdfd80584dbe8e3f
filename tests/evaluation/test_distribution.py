"""Set distances against pytorch-fid, plain loops and newly drawn sets; intervals against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sar2eo_dist.cca.frechet import frechet_distance
from sar2eo_dist.errors import ModelError
from sar2eo_dist.evaluation import distribution
from sar2eo_dist.evaluation.bootstrap import interval
from sar2eo_dist.evaluation.distribution import Distance, distances
from sar2eo_dist.models import _torchvision


def sets(seed: int, n: int, d: int, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fakes that resemble their truths, and ten pairs a place."""
    rng = np.random.default_rng(seed)
    scale = np.exp(-np.arange(d) / d * 2)
    real = rng.normal(size=(n, d)) * scale + offset
    fake = 1.1 * real + 0.5 * rng.normal(size=(n, d)) * scale + 0.05
    return fake.astype(np.float32), real.astype(np.float32), np.arange(n) // 10


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_frechet_is_pytorch_fids(offset: float) -> None:
    _torchvision.ensure()
    from pytorch_fid.fid_score import calculate_frechet_distance

    fake, real, places = sets(1, 300, 24, offset)
    found = distances(fake, real, places)
    assert found.value == pytest.approx(calculate_frechet_distance(*moments(fake), *moments(real)), rel=1e-6)
    assert found.n == found.kid_n == 300


@pytest.mark.parametrize(("n", "d"), [(2, 5), (12, 40), (40, 40), (41, 40), (90, 40)])
def test_frechet_is_that_of_the_moments_whichever_is_larger(n: int, d: int) -> None:
    """Against the matrix square root by singular values, and cca's function: n under, at and over D."""
    fake, real, places = sets(2, n, d)
    (m1, s1), (m2, s2) = moments(fake), moments(real)
    a, b = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (fake, real))
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum() / (n - 1)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * nuclear
    value = distances(fake, real, places).value
    assert value == pytest.approx(expected, rel=1e-9)
    assert value == pytest.approx(frechet_distance(m1, s1, m2, s2), rel=1e-8)


def test_kid_is_the_double_loop() -> None:
    fake, real, places = sets(3, 20, 6)
    x, y = fake.astype(np.float64), real.astype(np.float64)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 6 + 1) ** 3)

    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(20) for j in range(20) if i != j) / (20 * 19)
    across = sum(k(x[i], y[j]) for i in range(20) for j in range(20)) / 400
    assert distances(fake, real, places).kid == pytest.approx(within - 2 * across, rel=1e-9)


def test_kid_of_many_images_is_of_evenly_spaced_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real, places = sets(4, 50, 4)
    half = distances(fake[::2], real[::2], places[::2])
    monkeypatch.setattr(distribution, "KID_AT_MOST", 25)
    found = distances(fake, real, places)
    assert (found.kid, found.kid_n, found.n) == (half.kid, 25, 50)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (30, 60)])
def test_influence_is_the_derivative_by_a_pairs_weight(n: int, d: int) -> None:
    """Against the distance of weighted moments, differences taken by hand."""
    fake, real, _ = sets(5, n, d)

    def weighted(w: np.ndarray) -> float:
        p, parts = w / w.sum(), []
        for x in (fake.astype(np.float64), real.astype(np.float64)):
            mean = p @ x
            parts += [mean, np.sqrt(p)[:, None] * (x - mean)]
        m1, a, m2, b = parts
        nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
        return float(((m1 - m2) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * nuclear)

    _, influence = distribution._frechet(fake.astype(np.float64), real.astype(np.float64))
    step = 1e-4
    for i in (0, 7, n - 1):
        up, down = (np.ones(n) + sign * step * np.eye(n)[i] for sign in (1, -1))
        slope = (weighted(up) - weighted(down)) / (2 * step) * n
        assert influence[i] == pytest.approx(slope, rel=1e-4, abs=1e-4)
    assert influence.mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("places", [60, 300])
def test_the_interval_is_as_wide_as_newly_drawn_sets_differ(places: int) -> None:
    """Places of five pairs that resemble each other, and places of one: brute force over new sets of both."""
    n, d, sets_of, widths = 300, 12, [], []
    rng = np.random.default_rng(6)
    group = np.arange(n) % places
    for _ in range(150):
        common = rng.normal(size=(places, d))[group]
        real = common + 0.5 * rng.normal(size=(n, d))
        found = distances(0.7 * real + 0.8 * common + 0.3 * rng.normal(size=(n, d)), real, group)
        sets_of.append(found.value)
        widths.append((found.high - found.low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(np.std(sets_of, ddof=1), rel=0.25)


def test_the_interval_does_not_pass_zero_and_needs_two_places() -> None:
    fake, real, places = sets(7, 20, 4)
    same = distances(real, real, places)
    assert same.value == pytest.approx(0, abs=1e-9)
    assert same.low >= 0
    assert same.high < 1e-6
    alone = distances(fake, real, np.zeros(20, int))
    assert np.isnan([alone.low, alone.high]).all()
    assert alone.value == pytest.approx(distances(fake, real, places).value)


def test_equal_bits_on_any_count_of_threads_and_any_order_but_for_rounding() -> None:
    fake, real, places = sets(8, 260, 160)
    names = np.array([f"place {p}" for p in places])
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(distances(fake, real, names))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert found[0] == found[1] == distances(fake, real, places)
    order = np.random.default_rng(0).permutation(260)
    other = distances(fake[order], real[order], places[order])
    for key in Distance.__slots__:
        assert getattr(other, key) == pytest.approx(getattr(found[0], key), rel=1e-7), key


def test_bad_features_are_named() -> None:
    fake, real, places = sets(9, 12, 4)
    with pytest.raises(ModelError, match="2 images or more, not 1: one image has no covariance"):
        distances(fake[:1], real[:1], places[:1])
    with pytest.raises(ModelError, match=r"\(12, 4\), \(11, 4\), \(12,\)"):
        distances(fake, real[:11], places)
    with pytest.raises(ModelError, match=r"\(12, 4\), \(12, 4\), \(3,\)"):
        distances(fake, real, places[:3])
    with pytest.raises(ModelError, match=r"real: features want shape \(n, D\), not \(12,\)"):
        distances(fake, real[:, 0], places)
    real[5, 2] = np.nan
    real[8, 0] = np.inf
    with pytest.raises(ModelError, match="real: features are not finite in row 5; 2 of 12 rows"):
        distances(fake, real, places)


def test_an_interval_holds_the_mean_about_as_often_as_it_says() -> None:
    """200 trials of 60 places of 1 to 4 values that share a part; values of one place alone would be too sure."""
    rng = np.random.default_rng(10)
    group = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    hits, sure = 0, 0
    for trial in range(200):
        values = 2 + rng.normal(size=60)[group] + 0.3 * rng.normal(size=len(group))
        low, high = interval(values, group, trial)
        hits += low <= 2 <= high
        low, high = interval(values, np.arange(len(group)), trial)
        sure += low <= 2 <= high
    assert 0.90 <= hits / 200 <= 0.99
    assert sure < hits


def test_an_interval_is_of_whole_groups() -> None:
    """Two places: a resample is the one, the other, or both; so the ends are the places' own means."""
    values = np.array([1.0, 1.0, 1.0, 5.0, np.nan])
    assert interval(values, np.array(["a", "a", "a", "b", "c"])) == (1.0, 5.0)


def test_an_interval_depends_on_values_and_seed_alone() -> None:
    rng = np.random.default_rng(11)
    values, group = rng.normal(size=90), rng.integers(0, 30, 90)
    low, high = interval(values, group)
    assert (low, high) == interval(values, group, 0)
    assert (low, high) != interval(values, group, 1)
    order = rng.permutation(90)
    assert interval(values[order], group[order]) == pytest.approx((low, high), rel=1e-12)
    assert low < values.mean() < high


def test_what_an_interval_cannot_say() -> None:
    nothing = np.array([np.nan, np.nan])
    for values, group in (
        (np.array([1.0, 2.0]), np.array([0, 0])),
        (nothing, np.array([0, 1])),
        (np.array([1.0, np.nan]), np.array([0, 1])),
        (nothing[:0], np.array([], int)),
    ):
        assert np.isnan(interval(values, group)).all()
    low, high = interval(np.array([1.0, 2.0, np.inf]), np.arange(3))
    assert np.isfinite(low)
    assert high == np.inf
    with pytest.raises(ModelError, match=r"\(2,\), \(3,\)"):
        interval(nothing, np.arange(3))
