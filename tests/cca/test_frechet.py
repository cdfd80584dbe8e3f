"""Frechet distances against pytorch-fid and a float64 SVD reference."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from sar2eo_dist.cca.frechet import Moments, Reference, frechet_distance, point_distance
from sar2eo_dist.errors import ReferenceSetError
from sar2eo_dist.models import _torchvision


def peer(mu1, sigma1, mu2, sigma2) -> float:
    """pytorch-fid itself."""
    _torchvision.ensure()  # pytorch-fid imports it
    from pytorch_fid.fid_score import calculate_frechet_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single image has a singular covariance
        return float(calculate_frechet_distance(mu1, sigma1, mu2, sigma2))


def by_svd(x: np.ndarray, y: np.ndarray) -> float:
    """Tr (S1 S2)^(1/2) as the nuclear norm of the product of the centred data: no covariance is ever formed."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    nuclear = linalg.svdvals(a @ b.T).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * nuclear)


def pooled(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Like pooled features: not negative, of very different scales, correlated."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    return np.abs(rng.normal(size=(n, d)) @ mix) * np.logspace(-3, 0, d) + shift


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), np.cov(x, rowvar=False)


@pytest.mark.parametrize(("n1", "n2", "d", "bound"), [(200, 300, 24, 1e-6), (20, 30, 64, 1e-5), (30, 30, 100, 1e-5)])
def test_two_sets(n1, n2, d, bound):
    x, y = pooled(n1, d, 0), pooled(n2, d, 1, 0.2)
    ours = frechet_distance(*moments(x), *moments(y))
    assert ours == pytest.approx(peer(*moments(x), *moments(y)), rel=bound)
    assert ours == pytest.approx(by_svd(x, y), rel=1e-9)


def test_same_set_and_no_spread():
    x = pooled(10, 40, 0)
    assert 0 <= frechet_distance(*moments(x), *moments(x)) < 1e-12
    zero = np.zeros((40, 40))
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


@given(st.integers(0, 1000), st.integers(1, 150))
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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from((0.0, 1e6)))
def test_moments_merge_in_any_cut(sizes, seed, offset):
    x = pooled(sum(sizes) + 2, 6, seed, offset)
    cuts = np.cumsum(sizes)
    merged, *rest = [Moments.from_features(part) for part in np.split(x, cuts)]
    for other in rest:
        merged = merged.merge(other)
    assert merged.count == len(x)
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_of_float32_are_centred_in_float64():
    x = (pooled(50, 4, 0) + 4096).astype(np.float32)
    np.testing.assert_allclose(
        Moments.from_features(x).covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12
    )


def test_reference_holds_the_covariance():
    x = pooled(9, 20, 5)
    r = Reference.from_features(x, "e", "p")
    assert (r.count, r.extractor, r.preprocessing) == (9, "e", "p")
    assert r.factor is not None
    assert (r.factor.shape, r.factor.dtype) == ((20, 9), np.float32)
    np.testing.assert_allclose(r.factor @ r.factor.T, np.cov(x, rowvar=False), atol=1e-6)
    assert r.trace == pytest.approx(np.trace(np.cov(x, rowvar=False)), rel=1e-12)
    assert Reference.from_features(pooled(21, 20, 5), "e", "p").factor is None


@pytest.mark.parametrize("n", [9, 30])
def test_reference_round_trip(n):
    r = Reference.from_features(pooled(n, 20, 5).astype(np.float32), "efficientnet_lite0", "299 px, bilinear")
    data = r.to_bytes()
    back = Reference.from_bytes(data)
    assert (
        back.to_bytes()
        == data
        == Reference.from_features(
            pooled(n, 20, 5).astype(np.float32), "efficientnet_lite0", "299 px, bilinear"
        ).to_bytes()
    )
    assert (back.digest, back.count, back.trace, back.extractor, back.preprocessing) == (
        r.digest, r.count, r.trace, r.extractor, r.preprocessing,
    )  # fmt: skip
    np.testing.assert_array_equal(back.mean, r.mean)
    assert (back.factor is None) == (n > 20)


def test_digest_follows_everything():
    r = Reference.from_features(pooled(9, 20, 5), "e", "p")
    others = [
        Reference.from_features(pooled(9, 20, 6), "e", "p"),
        *(dataclasses.replace(r, **change) for change in ({"extractor": "f"}, {"preprocessing": "q"}, {"count": 8})),
        dataclasses.replace(r, trace=r.trace * (1 + 1e-15)),
    ]
    assert len({r.digest, *(o.digest for o in others)}) == 6


def test_what_is_refused():
    x = pooled(5, 4, 0)
    for few in (x[:0], x[:1]):
        with pytest.raises(ReferenceSetError, match=f"{len(few)} images"):
            Reference.from_features(few, "e", "p")
    with pytest.raises(ReferenceSetError, match="not 1"):
        _ = Moments.from_features(x[:1]).covariance
    bad = x.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ReferenceSetError, match="1 of 5 images are not finite, first: image 3"):
        Reference.from_features(bad, "e", "p")
    with pytest.raises(ReferenceSetError, match=r"\(4,\)"):
        Reference.from_features(x[0], "e", "p")
    with pytest.raises(ReferenceSetError, match="4 and 3"):
        Moments.from_features(x).merge(Moments.from_features(x[:, :3]))
    r = Reference.from_features(x, "inception", "p")
    r.check("inception", "p")
    with pytest.raises(ReferenceSetError, match="'efficientnet_lite0'"):
        r.check("efficientnet_lite0", "p")
    with pytest.raises(ReferenceSetError):
        r.check("inception", "q")
    mu, sigma = moments(x)
    with pytest.raises(ReferenceSetError, match="not finite"):
        frechet_distance(mu, sigma * np.nan, mu, sigma)
    with pytest.raises(ReferenceSetError, match=r"\(3,\)"):
        frechet_distance(mu, sigma, mu[:3], sigma)


def test_bytes_that_are_no_reference():
    data = Reference.from_features(pooled(5, 8, 0), "e", "p").to_bytes()
    mean_at = data.index(Reference.from_bytes(data).mean.tobytes())
    flipped = bytearray(data)
    flipped[mean_at] ^= 1
    for bad in (b"", b"no", data[:-30], data[: len(data) // 2], bytes(flipped)):
        with pytest.raises(ReferenceSetError):
            Reference.from_bytes(bad)
