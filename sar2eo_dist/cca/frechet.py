"""Frechet distances between features: two sets, or one image and a reference set of cloud images.

d = |mu1 - mu2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2)  (Heusel et al., arXiv 1706.08500). Called FID only when the
official Inception weights made the features. No scipy: the last trace comes from symmetric eigenvalues and singular
values, so it is always real.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sar2eo_dist.cca.reference import F64, Features, Moments, Reference, contrasts, factorise
from sar2eo_dist.errors import ReferenceSetError

__all__ = ["Moments", "Reference", "frechet_distance", "point_distance", "position_distance", "spatial_distance"]


def frechet_distance(mu1: F64, sigma1: F64, mu2: F64, sigma2: F64) -> float:
    """Frechet distance of two Gaussians: means (D,), covariances (D, D), float64. Never negative, never complex.

    With Sigma = B B^T, Tr (S1 S2)^(1/2) is the nuclear norm of B1^T B2. Singular values lose eps where square roots of
    eigenvalues of a product lose sqrt(eps).
    Raises ReferenceSetError for shapes that do not agree or values that are not finite (fewer than 2 images).
    """
    mu1, mu2 = np.atleast_1d(np.asarray(mu1, np.float64)), np.atleast_1d(np.asarray(mu2, np.float64))
    sigma1, sigma2 = np.atleast_2d(np.asarray(sigma1, np.float64)), np.atleast_2d(np.asarray(sigma2, np.float64))
    if mu1.ndim != 1 or mu1.shape != mu2.shape or not sigma1.shape == sigma2.shape == (len(mu1), len(mu1)):
        raise ReferenceSetError(
            f"moments do not agree: means {mu1.shape} and {mu2.shape}, covariances {sigma1.shape} and {sigma2.shape}"
        )
    if not all(np.isfinite(a).all() for a in (mu1, mu2, sigma1, sigma2)):
        raise ReferenceSetError("moments are not finite: a set of fewer than 2 images has no covariance")
    shift = mu1 - mu2
    cross = factorise(sigma1).T @ factorise(sigma2)
    nuclear = float(np.linalg.svd(cross, compute_uv=False).sum()) if cross.size else 0.0
    return max(0.0, float(shift @ shift) + float(np.trace(sigma1)) + float(np.trace(sigma2)) - 2 * nuclear)


def point_distance(features: Features, reference: Reference) -> F64:
    """Frechet distance of each single image to the reference set: (N, D) -> (N,) float64; NaN or inf in, same out.

    A single image is a Gaussian of zero covariance: d = |mu - f|^2 + Tr Sigma, which is what pytorch-fid gives for a
    folder that holds the image twice. Each value depends on its own row alone, not on the batch.
    Raises ReferenceSetError where D is not the reference's.
    """
    if features.ndim != 2 or features.shape[1:] != reference.mean.shape:
        raise ReferenceSetError(f"features {features.shape} against a reference of {reference.mean.shape[0]} features")
    distance = np.empty(len(features), np.float64)
    for at in range(0, len(features), 64):  # 64 rows of 2048 stay in the cache: 10 times faster than all at once
        shift = np.ascontiguousarray(features[at : at + 64], dtype=np.float64) - reference.mean
        np.square(shift, out=shift).sum(axis=1, out=distance[at : at + 64])
    distance += reference.trace
    return distance


def position_distance(maps: Features, reference: Reference) -> F64:
    """The smallest point distance over an image's positions, its cloudiest one: (N, P, D) -> (N,) float64.

    Sees a cloud over a few percent of an image, which vanishes in the mean of all positions. The reference is of
    positions too. NaN for an image that holds NaN or inf. Raises ReferenceSetError: no position, or another D.
    """
    _fits(maps, reference, 1)
    each = point_distance(maps.reshape(-1, maps.shape[2]), reference).reshape(maps.shape[:2])
    return np.where(np.isfinite(each).all(axis=1), each.min(axis=1), np.nan)


def spatial_distance(
    maps: Features, reference: Reference, dtype: type[np.float32] | type[np.float64] = np.float32
) -> F64:
    """Frechet distance of each image, its positions taken as a sample, to the reference: (N, P, D) -> (N,) float64.

    With Ac the centred positions over sqrt(P - 1) and Sigma = B B^T, d = |mu - m|^2 + Tr Sigma + |Ac|^2 - 2 |Ac B|_*.
    P - 1 Helmert contrasts stand for the P centred positions. dtype is that of the product Ac B, which costs the most:
    relative error 4e-7 in float32; float64, twice as slow, 1e-12 (of the reference as stored: its factor is float32).
    Each value depends on its own image alone, not on the batch; NaN for an image that holds NaN or inf.
    Raises ReferenceSetError: fewer than 2 positions, or D is not the reference's.
    """
    _fits(maps, reference, 2)
    helmert = contrasts(np.eye(maps.shape[1])) / np.sqrt(maps.shape[1] - 1)
    factor = reference.factor.astype(dtype, copy=False)
    distance = np.full(len(maps), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, image in enumerate(maps):
            x = np.array(image, np.float64)
            mean = x.mean(axis=0)
            x -= mean
            centred = helmert @ x
            product = centred.astype(dtype, copy=False) @ factor
            if np.isfinite(product).all() and np.isfinite(mean).all():
                shift = mean - reference.mean
                own = np.vdot(shift, shift) + np.vdot(centred, centred)
                distance[i] = max(0.0, float(own + reference.trace - 2 * _nuclear(product)))
    return distance


def own_distance(maps: Features, reference: Reference, distance: str) -> F64:
    """Distances of the set's own images, (n, P, D) of them (pooled: P = 1), by "point", "position" or "spatial": (n,) float64.

    point and position leave the image itself out of the mean: (M mean - m) / (M - 1), m its own, M = `count` images.
    """
    if distance == "spatial":
        return spatial_distance(maps, reference)
    x = np.asarray(maps, np.float64)
    others = (reference.count * reference.mean - x.mean(axis=1)) / (reference.count - 1)
    each = np.square(x - others[:, None]).sum(axis=2) + reference.trace
    nearest: F64 = each.min(axis=1)
    return nearest


def _nuclear(product: npt.NDArray[np.float32] | F64) -> float:
    """The sum of the singular values: of float64 by SVD; of float32, as exactly as it is, 4 times faster by eigenvalues."""
    if product.dtype == np.float64:
        return float(np.linalg.svd(product, compute_uv=False).sum())
    wide = product.astype(np.float64)
    # the smaller of both Gram matrices: the larger one's further eigenvalues are rounding
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None)).sum())


def _fits(maps: Features, reference: Reference, least: int) -> None:
    if maps.ndim != 3 or maps.shape[2:] != reference.mean.shape or maps.shape[1] < least:
        raise ReferenceSetError(
            f"maps {maps.shape} against a reference of {reference.mean.shape[0]} features: "
            f"wanted (N, P, {reference.mean.shape[0]}), P >= {least}"
        )
