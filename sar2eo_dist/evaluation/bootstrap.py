"""How far a mean could be off: bootstrap over groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ModelError

MEANS = 1000  # resamples of a mean


def interval(values: npt.NDArray[np.floating], groups: npt.NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of values (n,), NaN left out, by percentiles of 1000 bootstrap resamples of the groups.

    groups (n,) integers or strings: whole groups are drawn, since values of one group (a place) resemble each other.
    Ends are resamples' own means, so an infinite value (PSNR of equal images) can make an end infinite, never NaN. Too
    narrow for few groups: of 10 it holds the true mean about 9 times in 10. (NaN, NaN) for fewer than 2 groups with a
    value. Raises ModelError: shapes that differ.
    """
    if np.ndim(values) != 1 or np.shape(values) != np.shape(groups):
        raise ModelError(f"an interval wants values and groups (n,), not {np.shape(values)}, {np.shape(groups)}")
    known = ~np.isnan(values)
    names, index = np.unique(np.asarray(groups)[known], return_inverse=True)
    if (g := len(names)) < 2:
        return float("nan"), float("nan")
    sums = np.bincount(index, np.asarray(values, np.float64)[known], g)
    counts = np.bincount(index, minlength=g).astype(np.float64)
    random = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(MEANS)
    step = max(1, 4_000_000 // g)  # resamples at once: what is drawn stays below 32 MB
    for at in range(0, MEANS, step):
        drawn = random.integers(g, size=(min(step, MEANS - at), g))
        means[at : at + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    means.sort()
    tail = MEANS // 40  # 2.5 %
    return float(means[tail]), float(means[-1 - tail])
