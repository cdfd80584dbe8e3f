"""What the slider is given: the very scores, and the calibration's own formula."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest

from sar2eo_dist.cca.threshold import calibrate
from sar2eo_dist.report.load import Run
from sar2eo_dist.report.slider import BINS, EXACT, script_json, slider

RNG = np.random.default_rng(3)
SCORES = RNG.normal(220, 40, 500)


def made(scores: np.ndarray, rule: str, beta: float = 0.4, **config: Any) -> tuple[Any, dict[str, Any]]:
    run = Run("s3://bucket/my run", config={"cca": config})
    run.calibration = calibrate(scores, "fid", rule, beta, "ref", own=np.array([150.0, 250.0]))
    found = slider(run, scores, scores >= run.calibration.threshold, (0.0, 1.0))
    assert found is not None
    return found, json.loads(found.data)


def values(part: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(part["values"]), "<f8")


@pytest.mark.parametrize("rule", ["range", "quantile", "literal"])
def test_the_formula_is_the_rules_own(rule: str) -> None:
    found, data = made(SCORES, rule)
    assert (found.beta, found.value, found.low, found.high) == (True, 0.4, 0, 1)
    for beta in (0.0, 0.1, 0.37, 1.0):
        formula = (
            data["high"] * beta if data["rule"] == "literal" else data["low"] + (data["high"] - data["low"]) * beta
        )
        assert formula == calibrate(SCORES, "fid", rule, beta, "ref").threshold
    assert (
        data["command"] == "python jobs/collect.py --config 's3://bucket/my run/config.yaml' --reselect --set cca.beta="
    )


@pytest.mark.parametrize("rule", ["otsu", "reference", "none"])
def test_other_rules_move_the_threshold_and_say_a_beta_of_range(rule: str) -> None:
    found, data = made(SCORES, rule)
    assert not found.beta
    assert found.rule == rule
    assert (data["rule"], data["low"], data["high"]) == ("range", SCORES.min(), SCORES.max())
    assert data["command"].endswith(" --set cca.rule=range --set cca.beta=")
    threshold = calibrate(SCORES, "fid", rule, 0.4, "ref", own=np.array([150.0, 250.0])).threshold
    if rule == "none":
        assert data["threshold"] is None
        assert found.value == 0
    else:
        assert data["low"] + (data["high"] - data["low"]) * found.value == pytest.approx(threshold)
        assert data["threshold"] == threshold


def test_scores_are_held_exactly() -> None:
    _, data = made(SCORES, "range")
    kept = data["threshold"] <= SCORES
    for name, members in (("kept", SCORES[kept]), ("dropped", SCORES[~kept])):
        assert data[name]["n"] == members.size
        np.testing.assert_array_equal(values(data[name]), np.sort(members))
    assert data["exact"]
    assert data["total"] == 500


def test_too_many_scores_are_held_in_bins_of_equal_count() -> None:
    many = np.concatenate([RNG.normal(220, 40, EXACT), [1e7]])  # an outlier that equal widths would founder on
    found, data = made(many, "quantile", 0.3)
    assert not found.exact
    assert len(found.data) < 100_000
    kept = many[many >= data["threshold"]]
    sample = values(data["kept"])
    assert sample.size == BINS
    for t in np.quantile(kept, (0.05, 0.5, 0.9)):
        assert np.searchsorted(sample, t) / BINS == pytest.approx((kept < t).mean(), abs=1 / BINS)
    dropped = values(data["dropped"])
    assert dropped.size == min(BINS, data["dropped"]["n"])


def test_without_a_calibration_or_a_choice() -> None:
    run = Run("x")
    found = slider(run, SCORES, np.ones(500, bool), (0.0,))
    assert found is not None
    assert (found.beta, found.rule, found.value) == (False, "", 0)
    assert json.loads(found.data)["threshold"] is None
    assert slider(run, np.full(7, 3.0), np.ones(7, bool), (0.0,)) is None
    assert slider(run, np.zeros(0), np.zeros(0, bool), ()) is None


def test_a_calibration_of_another_run_is_let_go_of_and_a_wild_beta_fits() -> None:
    found, data = made(SCORES, "range", 1.25, calibration="s3://other/c.json")
    assert "--set cca.calibration='' --set cca.beta=" in data["command"]
    assert (found.high, found.value) == (1.25, 1.25)


def test_json_never_ends_its_script() -> None:
    words = {"a": "</script><!--"}
    assert "<" not in script_json(words)
    assert json.loads(script_json(words)) == words
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"a": math.nan})
