"""The three Frechet estimators beside pytorch-fid's calculate_frechet_distance on the same 2048-d input: `make bench`."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest

from sar2eo_dist.cca.frechet import Moments, Reference, frechet_distance, point_distance, spatial_distance
from sar2eo_dist.cca.reference import contrasts
from sar2eo_dist.models import _torchvision

DIMS, POSITIONS, SET = 2048, 64, 1000
RNG = np.random.default_rng(0)


def features(count: int) -> np.ndarray:
    """(count, 2048) float32 like Inception's pooled ones: not negative, correlated, of scales from 0.01 to 1."""
    mix = np.eye(DIMS) + np.random.default_rng(1).normal(size=(DIMS, DIMS)) / np.sqrt(DIMS)
    return (np.abs(RNG.normal(size=(count, DIMS)) @ mix) * np.logspace(-2, 0, DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def clouds() -> np.ndarray:
    return features(SET)


def pytorch_fid(*arguments: Any) -> float:
    _torchvision.ensure()
    from pytorch_fid.fid_score import calculate_frechet_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer samples than features: a singular covariance
        return float(calculate_frechet_distance(*arguments))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.mean(x, axis=0, dtype=np.float64), np.cov(x, rowvar=False, dtype=np.float64)


def beside(versus: Any, label: str, ours: Any, one: np.ndarray, other: np.ndarray, exact: float) -> None:
    """One call of each, with the moments at hand; ours has run before, as every image but the first."""
    found: dict[str, float] = {}
    given = (*moments(one), *moments(other))
    for _ in range(3):
        ours()
    versus(label, lambda: found.update(ours=float(ours())), lambda: found.update(peer=pytorch_fid(*given)),
           "pytorch-fid", repeat=1)  # fmt: skip
    mine, theirs = found["ours"], found["peer"]
    print(f"  relative error: {abs(mine / exact - 1):.1e} of the float64 SVD, {abs(mine / theirs - 1):.1e} of pytorch-fid, "
          f"whose own is {abs(theirs / exact - 1):.1e}")  # fmt: skip


def by_svd(x: np.ndarray, y: np.ndarray) -> float:
    """In float64 from the samples themselves: no covariance is formed."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * nuclear)


def test_point(versus: Any, clouds: np.ndarray) -> None:
    """The peer has the image put in twice."""
    image, reference = features(1), Reference.from_features(clouds, "x", "y")
    twice = np.concatenate([image, image])
    beside(versus, "point distance of an image", lambda: point_distance(image, reference)[0], twice, clouds,
           by_svd(twice, clouds))  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spatial(versus: Any, clouds: np.ndarray, dtype: Any) -> None:
    """For float64 the reference is kept in float64 too, which is stored in float32."""
    maps, reference = features(POSITIONS)[None], Reference.from_features(clouds, "x", "y")
    assert reference.factor.shape == (DIMS, SET - 1)
    if dtype == np.float64:
        centred = clouds.astype(np.float64) - reference.mean
        reference = dataclasses.replace(reference, factor=contrasts(centred).T / np.sqrt(SET - 1))
    beside(versus, f"spatial distance of an image of {POSITIONS} positions, {np.dtype(dtype)}",
           lambda: spatial_distance(maps, reference, dtype)[0], maps[0], clouds, by_svd(maps[0], clouds))  # fmt: skip


def test_population(versus: Any, clouds: np.ndarray) -> None:
    """Both are given means and covariances."""
    others = features(SET) * np.float32(1.1)
    one, other = Moments.from_features(others), Moments.from_features(clouds)
    given = (one.mean, one.covariance, other.mean, other.covariance)
    beside(versus, f"population distance, {SET} and {SET} images", lambda: frechet_distance(*given), others, clouds,
           by_svd(others, clouds))  # fmt: skip


def test_point_distance_against_a_distance_an_image(versus: Any) -> None:
    """32 images against a set of 100 in 256 dimensions; the peer is the full Frechet distance of each image put in twice."""
    reference = Reference.from_features(RNG.normal(size=(100, 256)).astype(np.float32), "x", "y")
    images = RNG.normal(size=(32, 256)).astype(np.float32)
    covariance = np.cov(RNG.normal(size=(100, 256)), rowvar=False)
    zero = np.zeros_like(covariance)
    versus(
        "point distance, 32 images", lambda: point_distance(images, reference),
        lambda: [frechet_distance(f, zero, reference.mean, covariance) for f in images.astype(np.float64)],
        "a full Frechet distance each", repeat=3,
    )  # fmt: skip
