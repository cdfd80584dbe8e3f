"""Trivial predictors: against numpy's least squares, merging in any partition, and bad input."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.errors import ModelError
from sar2eo_dist.evaluation.baselines import LinearFit, MeanImage, constant


def batch(seed: int, n: int = 4, size: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SAR in dB with NaN, EO in DN that depends on it, and a mask."""
    rng = np.random.default_rng(seed)
    sar = (rng.normal(0, 3, (n, 2, size, size)) + np.array([-9.0, -16.0])[:, None, None]).astype(np.float32)
    noise = rng.normal(0, 50, (n, 3, size, size))
    eo = 600 + 20 * sar[:, :1] - 35 * sar[:, 1:] * np.array([1.0, 0.5, 2.0])[:, None, None] + noise
    valid = rng.random((n, size, size)) < 0.7
    sar[rng.random(sar.shape) < 0.1] = np.nan
    return sar, eo.astype(np.float32), valid


def test_linear_fit_equals_numpys_least_squares() -> None:
    sar, eo, valid = batch(0)
    keep = valid & np.isfinite(sar).all(axis=1)
    x = np.column_stack([sar[:, 0][keep], sar[:, 1][keep], np.ones(keep.sum())]).astype(np.float64)
    y = np.moveaxis(eo, 1, -1)[keep].astype(np.float64)
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    fit = LinearFit().add(sar, eo, valid)
    model = fit.solve()
    assert fit.count == keep.sum()
    np.testing.assert_allclose(model.coef, expected, rtol=1e-9)
    predicted = model.predict(sar)
    assert predicted.dtype == np.float32
    assert predicted.shape == eo.shape
    np.testing.assert_allclose(np.moveaxis(predicted, 1, -1)[keep], x @ expected, rtol=1e-5)
    assert np.isnan(predicted[np.broadcast_to(~np.isfinite(sar).all(axis=1)[:, None], eo.shape)]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 4), max_size=3))
def test_any_partition_gives_the_same_fit(seed: int, cuts: list[int]) -> None:
    sar, eo, valid = batch(seed)
    edges = [0, *sorted(cuts), 4]
    parts = LinearFit()
    for a, b in itertools.pairwise(edges):
        parts.add(sar[a:b], eo[a:b], valid[a:b])
    whole = LinearFit().add(sar, eo, valid)
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.solve().coef, whole.solve().coef, rtol=1e-8, atol=1e-8)


def test_a_large_offset_costs_no_digits() -> None:
    """Sums over many like pixels: the fit of 200 copies is the fit of one."""
    sar, eo, valid = batch(5)
    one = LinearFit().add(sar, eo + 9000, valid)
    many = LinearFit()
    for _ in range(200):
        many.add(sar, eo + 9000, valid)
    np.testing.assert_allclose(many.solve().coef, one.solve().coef, rtol=1e-9)


def test_channels_that_do_not_vary_get_no_weight() -> None:
    sar, eo, valid = batch(1)
    sar = np.nan_to_num(sar, nan=-10.0)
    flat = sar.copy()
    flat[:, 0] = -11.3
    coef = LinearFit().add(flat, eo, valid).solve().coef
    np.testing.assert_allclose(coef[0], 0, atol=1e-6)
    both = np.full_like(sar, -11.3)
    model = LinearFit().add(both, eo, valid).solve()
    means = np.moveaxis(eo, 1, -1)[valid].mean(axis=0)
    np.testing.assert_allclose(model.predict(both)[0, :, 0, 0], means, rtol=1e-5)
    tied = np.repeat(sar[:, :1], 2, axis=1)
    coef = LinearFit().add(tied, eo, valid).solve().coef
    assert np.isfinite(coef).all()
    np.testing.assert_allclose(coef[0], coef[1], rtol=1e-6)  # least norm: shared evenly


def test_mean_image_is_exact_in_any_order() -> None:
    rng = np.random.default_rng(3)
    eo = rng.integers(0, 65536, (6, 3, 9, 9)).astype(np.uint16)
    valid = rng.random((6, 9, 9)) < 0.5
    forward, backward = (
        functools.reduce(lambda mean, i: mean.add(eo[i : i + 1], valid[i : i + 1]), order, MeanImage())
        for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])
    )
    np.testing.assert_array_equal(forward.solve(), backward.solve())
    np.testing.assert_allclose(forward.solve(), np.moveaxis(eo, 1, -1)[valid].mean(axis=0), rtol=1e-12)


def test_constant_images() -> None:
    image = constant(np.array([1.5, 2.0, 3.0]), (2, 3, 4, 5))
    assert image.shape == (2, 3, 4, 5)
    assert image.dtype == np.float32
    assert image.flags.writeable
    assert (image[:, 0] == 1.5).all()
    assert (image[1, 2] == 3).all()
    assert not constant(np.zeros(3), (1, 3, 2, 2)).any()
    with pytest.raises(ModelError, match=r"\(2,\) for images \(1, 3, 4, 5\)"):
        constant(np.zeros(2), (1, 3, 4, 5))


def test_bad_input_is_named() -> None:
    sar, eo, valid = batch(2)
    with pytest.raises(ModelError, match="count 0"):
        LinearFit().solve()
    with pytest.raises(ModelError, match="count 0"):
        MeanImage().add(eo, np.zeros_like(valid)).solve()
    with pytest.raises(ModelError, match=r"VV, VH in dB, not \(4, 1, 8, 8\)"):
        LinearFit().add(sar[:, :1], eo, valid)
    with pytest.raises(ModelError, match=r"\(4, 2, 8, 8\)"):
        MeanImage().add(sar, valid)
    with pytest.raises(ModelError, match="not of the same pixels"):
        LinearFit().add(sar[:3], eo, valid)
    with pytest.raises(ModelError, match="bool mask"):
        MeanImage().add(eo, valid.astype(np.uint8))
    eo[0, 1, 2, 3], valid[0, 2, 3] = np.inf, True
    with pytest.raises(ModelError, match=r"EO\[0\] is not finite at valid pixel \(2, 3\)"):
        LinearFit().add(sar, eo, valid)
