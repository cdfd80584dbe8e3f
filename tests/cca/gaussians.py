"""Made-up features, and references for Frechet distances that share no code with the package."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import linalg

from sar2eo_dist.models import _torchvision


def pooled(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """(n, d) like pooled features: not negative, of very different scales, correlated."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    return np.abs(rng.normal(size=(n, d)) @ mix) * np.logspace(-3, 0, d) + shift


def maps_of(n: int, p: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """(n, p, d) float32 like the positions of last maps: those of one image are alike."""
    own = pooled(n, d, seed, shift)[:, None]
    return (own + 0.5 * pooled(n * p, d, seed + 1).reshape(n, p, d)).astype(np.float32)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), np.cov(x, rowvar=False)


def peer(mu1, sigma1, mu2, sigma2) -> float:
    """pytorch-fid itself."""
    _torchvision.ensure()  # pytorch-fid imports it
    from pytorch_fid.fid_score import calculate_frechet_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single image has a singular covariance
        return float(calculate_frechet_distance(mu1, sigma1, mu2, sigma2))


def by_svd(x: np.ndarray, y: np.ndarray) -> float:
    """Tr (S1 S2)^(1/2) as the nuclear norm of the product of the centred data: no covariance is ever formed."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    nuclear = linalg.svdvals(a @ b.T).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * nuclear)
