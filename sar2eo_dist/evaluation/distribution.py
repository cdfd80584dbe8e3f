"""How far a set of made images is from the set of true ones, by their features: Frechet distance and KID, with intervals.

Both judge the set, not each image: a method that gives the right image of the wrong place scores well. Both depend on
how many images there are (the Frechet distance falls as they grow in number), so compare at equal numbers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sar2eo_dist.errors import ModelError
from sar2eo_dist.evaluation.metrics import one_thread
from sar2eo_dist.models import _torchvision

F64 = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]
Groups = npt.NDArray[Any]

KID_AT_MOST = 5000  # images: three float64 matrices of their square
Z = 1.96  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class Distance:
    """value: Frechet distance of n images; low, high: its 95 % interval, NaN for one place; kid: of kid_n images."""

    value: float
    low: float
    high: float
    n: int
    kid: float
    kid_n: int


def distances(fake: Features, real: Features, groups: Groups) -> Distance:
    """Frechet distance (arXiv 1706.08500) and KID (arXiv 1801.01401) of made images' features to those of their truths.

    fake, real  (n, D) float, n >= 2; row i of both is of pair i; computed in float64
    groups      (n,) integers or strings: the place of each pair. Pairs of a place resemble each other, so places are
                what the interval counts

    The interval is value -+ 1.96 sd, not below 0, sd by the infinitesimal jackknife over places (Efron 1982): what the
    distance changes by, to first order, as a place gets more weight. No resampling: pairs drawn twice leave fewer
    different ones, and the Frechet distance grows for that alone. Bootstraps over places gave 1.5 to 4 times the spread
    of newly drawn sets, this 1.0 to 1.3 times (D 64 to 400, n 300 to 2000, 20 to 400 places). It says how far the value
    would move over other places, as many; not how far it is from that of infinitely many images. Too narrow for few
    places. KID is the unbiased squared MMD by the kernel (x.y / D + 1)^3, may be below 0; of 5000 evenly spaced pairs at
    most. Equal input gives equal bits, on any count of threads. Rows are not sorted: another order of the pairs moves
    the figures by rounding, and KID of more than 5000 pairs by which of them are taken.
    Raises ModelError: shapes that do not fit, n < 2, features that are not finite (row named).
    """
    x, y = _checked("fake", fake), _checked("real", real)
    if x.shape != y.shape or np.shape(groups) != (len(x),):
        raise ModelError(
            f"set distances want fake and real (n, D) and groups (n,), not {x.shape}, {y.shape}, {np.shape(groups)}"
        )
    n = len(x)
    if n < 2:
        raise ModelError(f"a set distance wants 2 images or more, not {n}: one image has no covariance")
    part = np.arange(n) if n <= KID_AT_MOST else np.arange(KID_AT_MOST) * n // KID_AT_MOST
    with one_thread():
        value, influence = _frechet(x, y)
        kid = _kid(x[part], y[part])
    names, index = np.unique(groups, return_inverse=True)
    g = len(names)
    sums = np.bincount(index, influence)
    reach = Z * float(np.sqrt(g / (g - 1) * np.vdot(sums, sums))) / n if g > 1 else float("nan")
    return Distance(value, float(np.maximum(0.0, value - reach)), value + reach, n, kid, len(part))


def _checked(name: str, features: Features) -> F64:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not x.shape[1]:
        raise ModelError(f"{name}: features want shape (n, D), not {x.shape}")
    if len(bad := np.flatnonzero(~np.isfinite(x).all(axis=1))):
        raise ModelError(f"{name}: features are not finite in row {bad[0]}; {len(bad)} of {len(x)} rows in all")
    return x


def _frechet(x: F64, y: F64) -> tuple[float, F64]:
    """Frechet distance of rows (n, D) and (n, D), and what each pair has to do with it: (n,), of mean 0.

    influence[i] is the derivative of the distance by the share of pair i among the pairs. With A and B the centred rows,
    the covariances are A'A / (n - 1) and B'B / (n - 1), and Tr (S1 S2)^(1/2) is the nuclear norm of A B' / (n - 1). More
    weight on a pair scales its row and column of A B', whose nuclear norm then grows by diag(U S U' + V S V') / 2; the
    means' own motion changes it in second order alone, since U and V are orthogonal to the ones.
    """
    n = len(x)
    a, b = (torch.from_numpy(features - features.mean(axis=0)) for features in (x, y))
    if n > x.shape[1]:  # A B' is n x n, but of rank D: only its core is taken apart
        (qa, ra), (qb, rb) = torch.linalg.qr(a), torch.linalg.qr(b)
        u, s, vh = torch.linalg.svd(ra @ rb.T)
        u, v = qa @ u, qb @ vh.T
    else:
        u, s, vh = torch.linalg.svd(a @ b.T)
        v = vh.T
    shift = torch.from_numpy(x.mean(axis=0) - y.mean(axis=0))
    each = a.square().sum(1) + b.square().sum(1) - (u.square() + v.square()) @ s
    influence = 2 * ((a - b) @ shift) + each
    # sum of `each` is Tr A'A + Tr B'B - 2 |A B'|_*, since columns of U and V have length 1
    value = float(shift @ shift + each.sum() / (n - 1))
    return max(0.0, value), (influence - influence.mean()).numpy()


def _kid(x: F64, y: F64) -> float:
    _torchvision.ensure()
    from torchmetrics.image.kid import poly_mmd

    return float(poly_mmd(torch.from_numpy(y), torch.from_numpy(x), degree=3, gamma=None, coef=1.0))
