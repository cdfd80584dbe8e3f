"""Frechet distances against pytorch-fid and a float64 SVD reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gaussians import by_svd, maps_of, moments, peer, pooled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from sar2eo_dist.cca.frechet import (
    Moments,
    Reference,
    frechet_distance,
    own_distance,
    point_distance,
    position_distance,
    spatial_distance,
)
from sar2eo_dist.cca.reference import contrasts
from sar2eo_dist.errors import ReferenceSetError

fresh = st.integers(0, 2**32 - 1)


def of_positions(maps: np.ndarray) -> Reference:
    return Reference.from_moments(Moments.from_features(maps.reshape(-1, maps.shape[2])), "e", "p", "positions", 3)


@pytest.mark.parametrize(("n1", "n2", "d", "bound"), [(200, 300, 24, 1e-6), (20, 30, 64, 1e-5), (30, 30, 100, 1e-5)])
@settings(max_examples=5, deadline=None)
@given(fresh)
def test_two_sets(n1, n2, d, bound, seed):
    x, y = pooled(n1, d, seed), pooled(n2, d, seed + 1, 0.2)
    ours = frechet_distance(*moments(x), *moments(y))
    assert ours == pytest.approx(peer(*moments(x), *moments(y)), rel=bound)
    assert ours == pytest.approx(by_svd(x, y), rel=1e-9)
    merged = [Moments.from_features(z[:9]).merge(Moments.from_features(z[9:])) for z in (x, y)]
    assert frechet_distance(*[a for m in merged for a in (m.mean, m.covariance)]) == pytest.approx(ours, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(fresh, st.integers(2, 40), st.integers(2, 40), st.integers(1, 30))
def test_identity_and_symmetry(seed, n1, n2, d):
    x, y = (np.reshape(a, (d,) * k) for k, a in enumerate(moments(pooled(n1, d, seed)), 1)), pooled(n2, d, seed + 1)
    one, two = tuple(x), tuple(np.reshape(a, (d,) * k) for k, a in enumerate(moments(y), 1))
    scale = np.trace(one[1]) + np.trace(two[1])
    assert 0 <= frechet_distance(*one, *one) < 1e-12 * max(scale, 1)
    assert frechet_distance(*one, *two) == pytest.approx(frechet_distance(*two, *one), rel=1e-9, abs=1e-12 * scale)


def test_no_spread():
    x, zero = pooled(2, 40, 0), np.zeros((40, 40))
    assert frechet_distance(x[0], zero, x[1], zero) == pytest.approx(np.square(x[0] - x[1]).sum(), rel=1e-12)
    assert frechet_distance(np.float64(1), np.float64(4), np.float64(3), np.float64(9)) == pytest.approx(4 + 1)


def test_point_is_the_image_put_in_twice():
    x, images = pooled(12, 48, 3), pooled(5, 48, 4, 0.1).astype(np.float32)
    reference = Reference.from_features(x, "e", "p")
    scores = point_distance(images, reference)
    assert scores.dtype == np.float64
    for f, score in zip(images.astype(np.float64), scores, strict=True):
        twice = np.stack([f, f])
        assert score == pytest.approx(peer(*moments(twice), *moments(x)), rel=1e-12)
        assert score == pytest.approx(frechet_distance(*moments(twice), *moments(x)), rel=1e-12)


@given(fresh, st.integers(1, 150))
@settings(max_examples=20, deadline=None)
def test_point_does_not_depend_on_the_batch(seed, n):
    reference = Reference.from_features(pooled(4, 37, 0), "e", "p")
    features = pooled(n, 37, seed).astype(np.float32)
    whole = point_distance(features, reference)
    for i in range(0, n, 7):
        assert point_distance(features[i : i + 1], reference)[0] == whole[i]


def test_point_of_what_is_not_finite():
    reference = Reference.from_features(pooled(4, 5, 0), "e", "p")
    features = pooled(3, 5, 1)
    features[0, 2], features[1, 0] = np.nan, np.inf
    assert np.isfinite(point_distance(features, reference)).tolist() == [False, False, True]
    with pytest.raises(ReferenceSetError, match=r"\(3, 4\) against a reference of 5"):
        point_distance(features[:, :4], reference)


@pytest.mark.parametrize("shape", [(64, 96), (16, 200), (2, 30), (49, 20)])  # positions, features
@settings(max_examples=5, deadline=None)
@given(fresh)
def test_spatial_against_svd_of_the_data(shape, seed):
    """float32 against the samples themselves; float64 against the stored reference, whose factor is float32."""
    maps, clouds = maps_of(3, *shape, seed), maps_of(12, *shape, seed + 2, 0.3)
    reference = of_positions(clouds)
    exact = [by_svd(image, clouds.reshape(-1, shape[1])) for image in maps]
    np.testing.assert_allclose(spatial_distance(maps, reference), exact, rtol=4e-7)
    stored = reference.factor.astype(np.float64)
    wanted = []
    for image in maps.astype(np.float64):
        centred = (image - image.mean(0)) / np.sqrt(len(image) - 1)
        spread = reference.trace + np.square(centred).sum() - 2 * linalg.svdvals(centred @ stored).sum()
        wanted.append(np.square(image.mean(0) - reference.mean).sum() + spread)
    np.testing.assert_allclose(spatial_distance(maps, reference, np.float64), wanted, rtol=1e-12)


@settings(max_examples=5, deadline=None)
@given(fresh)
def test_spatial_is_pytorch_fid_of_the_positions(seed):
    maps, clouds = maps_of(2, 64, 12, seed), maps_of(10, 64, 12, seed + 2, 0.3)
    theirs = [peer(*moments(m.astype(np.float64)), *moments(clouds.reshape(-1, 12).astype(np.float64))) for m in maps]
    np.testing.assert_allclose(spatial_distance(maps, of_positions(clouds)), theirs, rtol=1e-6)


def test_spatial_against_a_thin_reference():
    """Fewer samples than features, more and fewer of them than positions; float64 loses nothing to rounding directions."""
    for n in (8, 20):
        clouds, maps = pooled(n, 80, 5).astype(np.float32), maps_of(3, 16, 80, 6)
        reference = Reference.from_features(clouds, "e", "p")
        exact = [by_svd(m, clouds) for m in maps]
        np.testing.assert_allclose(spatial_distance(maps, reference), exact, rtol=4e-7)
        ours = dataclasses.replace(reference, factor=contrasts(clouds.astype(np.float64)).T / np.sqrt(n - 1))
        np.testing.assert_allclose(spatial_distance(maps, ours, np.float64), exact, rtol=1e-12)


def test_position_is_the_smallest_point_distance():
    maps, reference = maps_of(5, 9, 21, 1), of_positions(maps_of(8, 9, 21, 2))
    found = position_distance(maps, reference)
    assert found.dtype == np.float64
    wanted = [min(np.square(row - reference.mean).sum() + reference.trace for row in m.astype(float)) for m in maps]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    cloudy = maps.copy()
    cloudy[2, 4] = reference.mean
    changed = position_distance(cloudy, reference)
    assert changed[2] == pytest.approx(reference.trace, rel=1e-6)
    assert np.array_equal(np.delete(changed, 2), np.delete(found, 2))


@pytest.mark.parametrize("distance", [spatial_distance, position_distance])
@settings(max_examples=5, deadline=None)
@given(fresh)
def test_an_image_counts_for_itself_alone(distance, seed):
    maps, reference = maps_of(7, 9, 33, seed), of_positions(maps_of(8, 9, 33, 2))
    whole = distance(maps, reference)
    assert np.isfinite(whole).all()
    assert np.array_equal(distance(maps[::-1], reference)[::-1], whole)
    assert [distance(maps[i : i + 1], reference)[0] for i in range(7)] == whole.tolist()
    for bad in (np.nan, np.inf, -np.inf):
        torn = maps.copy()
        torn[3, 2, 5] = bad
        found = distance(torn, reference)
        assert np.isnan(found[3])
        assert np.array_equal(np.delete(found, 3), np.delete(whole, 3))
    huge = maps.copy()
    huge[1] *= np.float32(1e37)  # too large for the product in float32
    found = distance(huge, reference)
    assert not found[1] < 1e30
    assert np.array_equal(np.delete(found, 1), np.delete(whole, 1))
    assert distance(maps[:0], reference).shape == (0,)


def test_what_is_refused(monkeypatch):
    maps, reference = maps_of(3, 4, 5, 0), of_positions(maps_of(3, 4, 5, 1))
    for distance in (spatial_distance, position_distance):
        for bad in (maps[:, :, :4], maps[0], maps[:, :0]):
            with pytest.raises(ReferenceSetError, match=r"maps \(.*\) against a reference of 5 features"):
                distance(bad, reference)
    assert position_distance(maps[:, :1], reference) == pytest.approx(point_distance(maps[:, 0], reference))
    for name in ("eigh", "eigvalsh", "svd"):  # what cannot be computed is refused before it is begun
        monkeypatch.setattr(np.linalg, name, lambda *a, **k: 1 / 0)
    with pytest.raises(ReferenceSetError, match="P >= 2"):
        spatial_distance(maps[:, :1], reference)
    mu, sigma = moments(pooled(9, 4, 0))
    one = Moments.from_features(pooled(1, 4, 0))
    with pytest.raises(ReferenceSetError, match="2 images or more, not 1"):
        frechet_distance(one.mean, one.covariance, mu, sigma)
    with pytest.raises(ReferenceSetError, match="not finite"):
        frechet_distance(mu, sigma * np.nan, mu, sigma)
    with pytest.raises(ReferenceSetError, match=r"\(3,\)"):
        frechet_distance(mu, sigma, mu[:3], sigma)


@pytest.mark.parametrize("positions", [1, 5])
def test_own_distances_leave_the_image_out(positions: int) -> None:
    x = np.random.default_rng().normal(size=(9, positions, 7)) + 3
    moments = Moments.from_features(x.reshape(-1, 7))
    reference = Reference.from_moments(moments, "x", "y", "positions", 9)
    for i, found in enumerate(own_distance(x, reference, "position")):
        others = np.delete(x, i, axis=0).reshape(-1, 7).mean(axis=0)
        wanted = np.square(x[i] - others).sum(axis=1).min() + reference.trace
        assert found == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_array_equal(
        own_distance(x, reference, "position")[:4], own_distance(x[:4], reference, "position")
    )
