"""What the page needs to choose a threshold again while somebody moves a slider: the scores themselves, and the rule."""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from sar2eo_dist import storage
from sar2eo_dist.records import Calibration
from sar2eo_dist.report.load import Run
from sar2eo_dist.report.text import redact

EXACT = 20_000  # scores that the page holds one by one
BINS = 4096  # of equal count, of kept and of dropped scores each, beyond that: no outlier makes them coarse
STEP = 0.001  # of the slider
#: rule -> the threshold as a formula of beta, low and high, as cca/threshold.py has it
_BY_BETA = ("range", "quantile", "literal")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slider:
    """data: JSON for the script, safe inside <script>; low, high, value: of the range, value None where the run has none;
    beta: whether it moves beta, or else the threshold itself by a share of the scores' range; rule: "" = unknown."""

    data: Markup
    low: float
    high: float
    value: float
    beta: bool
    rule: str
    exact: bool


def slider(run: Run, scores: Floats, kept: npt.NDArray[np.bool_], edges: tuple[float, ...]) -> Slider | None:
    """(N,) finite scores, kept or not, edges of the histogram's bars; None where there is nothing to choose: no score, or
    all of one value."""
    if not scores.size or scores.min() == scores.max():
        return None
    c = run.calibration
    by_beta = c is not None and c.rule in _BY_BETA
    exact = scores.size <= EXACT
    low, high = (c.low, c.high) if c is not None and by_beta else (float(scores.min()), float(scores.max()))
    rule = c.rule if c is not None and by_beta else "range"
    start = _start(c, by_beta, low, high)
    data = {
        "rule": rule,
        "beta": by_beta,
        "low": low,
        "high": high,
        "start": start,
        "threshold": c.threshold if c is not None and np.isfinite(c.threshold) else None,
        "exact": exact,
        "total": int(scores.size),
        "kept": _part(scores[kept], exact),
        "dropped": _part(scores[~kept], exact),
        "edges": list(edges),
        "command": _command(run, by_beta),
    }
    ends = (min(0.0, start), max(1.0, start))
    return Slider(Markup(script_json(data)), *ends, start, by_beta, c.rule if c else "", exact)  # noqa: S704


def script_json(data: Any) -> str:
    """JSON that cannot leave a <script> element: every "<" escaped. Raises ValueError for NaN and infinity."""
    return json.dumps(data, allow_nan=False, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")


def _start(c: Calibration | None, by_beta: bool, low: float, high: float) -> float:
    """Where the slider stands for this run: its beta, else its threshold as a share of the range."""
    if c is None or not np.isfinite(c.threshold):
        return 0.0
    return c.beta if by_beta else float(np.clip((c.threshold - low) / (high - low), 0, 1))


def _part(scores: Floats, exact: bool) -> dict[str, Any]:
    """n: how many; values: ascending float64, base64 of little-endian bytes: all of them, or BINS quantiles."""
    ordered = np.sort(scores)
    if not exact and ordered.size > BINS:  # the middles of bins of equal count
        ordered = ordered[((np.arange(BINS) + 0.5) * ordered.size / BINS).astype(np.int64)]
    return {"n": int(scores.size), "values": base64.b64encode(ordered.astype("<f8").tobytes()).decode()}


def _command(run: Run, by_beta: bool) -> str:
    """What chooses for real, up to the number; the run folder's own config names what was listed."""
    config = shlex.quote(redact(storage.join(run.uri, "config.yaml")))
    sets = ["--set cca.calibration=''"] if run.setting("cca.calibration") else []
    sets += [] if by_beta else ["--set cca.rule=range"]
    return " ".join([f"python jobs/collect.py --config {config} --reselect", *sets, "--set cca.beta="])
