"""Stage 3's threshold: a reduction of all scores, and the decision it makes.

The paper prints F_th = (min(S) + max(S) - min(S)) * beta, beta = 0.4, which as it stands is max(S) * beta (`literal`);
its terms make sense as min(S) + (max(S) - min(S)) * beta (`range`, the default). min and max follow outliers: one score
of 900 among a million near 200 drops every clear image. Hence `quantile` and `otsu`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import Calibration

QUANTILES = (0.001, 0.999)  # the ends of the robust range


def calibrate(
    scores: npt.NDArray[np.float64],
    score_name: str,
    rule: str,
    beta: float,
    reference: str,
    own: npt.NDArray[np.float64] | None = None,
) -> Calibration:
    """Threshold over (N,) scores; non-finite ones never enter. Scores strictly below it are dropped.

    range      low + (high - low) * beta, low and high the minimum and maximum
    literal    maximum * beta
    quantile   as range, low and high the 0.1 % and 99.9 % quantiles
    otsu       the cut that separates two classes best (largest variance between them), beta unused; on the sorted
               scores themselves, so no bin width follows an outlier
    reference  the `beta` quantile of the distances of the cloud set's own images (`own`): what looks as cloudy as they
               do is dropped. It does not depend on the corpus: a relative rule always drops someone, however clear
    none       nothing is dropped
    Scores that are all equal are all kept. Without any score the threshold is -inf and the range NaN.
    `reference` is the digest of what made the scores. Raises ConfigError: unknown rule, beta not finite or, with
    `reference`, no quantile; no `own`.
    """
    if rule not in ("range", "literal", "quantile", "otsu", "reference", "none"):
        raise ConfigError(f"unknown cca.rule {rule!r}: range, literal, quantile, otsu, reference or none")
    if not math.isfinite(beta):
        raise ConfigError(f"cca.beta must be a number, not {beta}")
    scores = np.asarray(scores, np.float64).ravel()
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        nan = float("nan")
        return Calibration(score_name, rule, beta, nan, nan, -math.inf, 0, reference)
    low, high = float(finite.min()), float(finite.max())
    if rule == "reference":
        if own is None or not own.size or not 0 <= beta <= 1:
            raise ConfigError(
                f"cca.rule=reference wants a cloud set with its own distances, and 0 <= cca.beta {beta:g} <= 1"
            )
        low, high, threshold = float(own.min()), float(own.max()), float(np.quantile(own, beta))
    elif rule == "none":
        threshold = -math.inf
    elif low == high:
        threshold = low
    elif rule == "otsu":
        threshold = _otsu(finite)
    elif rule == "literal":
        threshold = high * beta
    else:
        if rule == "quantile":
            low, high = (float(q) for q in np.quantile(finite, QUANTILES))
        threshold = low + (high - low) * beta
    return Calibration(score_name, rule, beta, low, high, threshold, int(finite.size), reference)


def decide(scores: npt.NDArray[np.float64], calibration: Calibration) -> npt.NDArray[np.bool_]:
    """Which of (N,) scores are kept: finite and not strictly below the threshold; with rule `none` all of them."""
    scores = np.asarray(scores, np.float64)
    if calibration.rule == "none":
        return np.ones(scores.shape, bool)
    kept: npt.NDArray[np.bool_] = np.isfinite(scores) & (scores >= calibration.threshold)
    return kept


def _otsu(scores: npt.NDArray[np.float64]) -> float:
    """The middle of the gap at which n1 n2 (mean1 - mean2)^2 is largest; the lowest such gap among equals."""
    s = np.sort(scores)
    below = np.arange(1, s.size)
    # centred, so that the running sums keep their digits
    sums = np.cumsum(s - s.mean())
    gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / (s.size - below)
    between = np.where(s[1:] > s[:-1], below * (s.size - below) * np.square(gap), -1.0)
    cut = int(np.argmax(between))
    middle = float(s[cut] + (s[cut + 1] - s[cut]) / 2)
    return middle if middle > s[cut] else float(s[cut + 1])
