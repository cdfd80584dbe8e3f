from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca.threshold import calibrate, decide
from sar2eo_dist.errors import ConfigError

RULES = ("range", "literal", "quantile", "otsu", "none")


def test_the_published_formula_and_as_it_stands():
    scores = np.array([100.0, np.nan, 300.0, 180.0, np.inf, 179.9])
    c = calibrate(scores, "fid", "range", 0.4, "ref")
    assert (c.low, c.high, c.count, c.reference, c.score_name) == (100.0, 300.0, 4, "ref", "fid")
    assert c.threshold == 100 + 200 * 0.4
    assert decide(scores, c).tolist() == [False, False, True, True, False, False]  # 180 is not strictly below
    assert calibrate(scores, "fid", "literal", 0.4, "ref").threshold == 300 * 0.4


def test_quantile_ignores_an_outlier_that_range_follows():
    scores = np.random.default_rng(0).normal(200, 10, 20_000)
    scores[7] = 900
    assert decide(scores, calibrate(scores, "fid", "range", 0.4, "")).sum() == 1
    c = calibrate(scores, "fid", "quantile", 0.4, "")
    assert (c.low, c.high) == tuple(np.quantile(scores, [0.001, 0.999]))
    assert c.threshold == c.low + (c.high - c.low) * 0.4
    assert 0.5 < decide(scores, c).mean() < 0.9


def brute_otsu(scores: list[float]) -> set[tuple[float, ...]]:
    """Every best split (to rounding), as the set of dropped values."""
    best: dict[tuple[float, ...], float] = {}
    for cut in sorted(set(scores))[1:]:
        low, high = [s for s in scores if s < cut], [s for s in scores if s >= cut]
        best[tuple(sorted(low))] = len(low) * len(high) * (np.mean(low) - np.mean(high)) ** 2
    return {k for k, v in best.items() if v >= max(best.values()) * (1 - 1e-9)}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=2, max_size=25))
def test_otsu_is_the_best_cut(scores):
    c = calibrate(np.array(scores, float), "fid", "otsu", 0.4, "")
    dropped = tuple(sorted(s for s, kept in zip(scores, decide(np.array(scores, float), c), strict=True) if not kept))
    if len(set(scores)) == 1:
        assert dropped == ()
    else:
        assert dropped in brute_otsu(scores)


def test_otsu_separates_two_modes_beside_an_outlier():
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(150, 5, 300), rng.normal(220, 8, 5000), [900]])
    assert 165 < calibrate(scores, "fid", "otsu", 0.4, "").threshold < 200


def test_otsu_of_neighbouring_floats():
    pair = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert decide(pair, calibrate(pair, "fid", "otsu", 0.4, "")).tolist() == [False, True]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("beta", [0.4, 1.5])
def test_equal_scores_are_all_kept(rule, beta):
    scores = np.full(5, 123.4)
    assert decide(scores, calibrate(scores, "fid", rule, beta, "")).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scores", [[], [np.nan, np.inf]])
def test_no_scores(rule, scores):
    c = calibrate(np.array(scores), "fid", rule, 0.4, "")
    assert (c.threshold, c.count) == (-math.inf, 0)
    assert math.isnan(c.low)
    assert decide(np.array([1.0]), c).tolist() == [True]
    assert decide(np.array(scores), c).tolist() == [rule == "none"] * len(scores)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.floats(-50, 50), st.sampled_from(("range", "quantile")))
@settings(max_examples=40, deadline=None)
def test_a_constant_added_to_all_scores_changes_no_decision(scores, shift, rule):
    """So Tr Sigma never decides. Up to rounding: scores within 1e-6 of the threshold are left out."""
    s = np.array(scores)
    a, b = calibrate(s, "fid", rule, 0.4, ""), calibrate(s + shift, "fid", rule, 0.4, "")
    assert b.threshold == pytest.approx(a.threshold + shift, abs=1e-6)
    clear = np.abs(s - a.threshold) > 1e-6
    assert (decide(s, a) == decide(s + shift, b))[clear].all()


def test_what_is_refused():
    with pytest.raises(ConfigError, match="'median'"):
        calibrate(np.ones(3), "fid", "median", 0.4, "")
    with pytest.raises(ConfigError, match="nan"):
        calibrate(np.ones(3), "fid", "range", float("nan"), "")


def test_the_reference_rule_looks_at_the_cloud_set_alone() -> None:
    own = np.linspace(10, 20, 101)
    for scores in (np.array([1.0, 15.0, 90.0]), np.array([50.0, 60.0])):
        found = calibrate(scores, "fid", "reference", 0.25, "ref", own)
        assert found.threshold == pytest.approx(12.5)
    assert decide(np.array([50.0, 60.0, 12.4]), found).tolist() == [True, True, False]
    for bad in ({"beta": 1.5, "own": own}, {"beta": 0.5, "own": None}, {"beta": 0.5, "own": np.empty(0)}):
        with pytest.raises(ConfigError, match=r"cca\.rule=reference wants a cloud set with its own distances"):
            calibrate(np.ones(3), "fid", "reference", reference="ref", **bad)  # type: ignore[arg-type]
