"""Two runs pair by pair, against plain loops over the same rows; what is left out is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sar2eo_dist.evaluation.bootstrap import interval
from sar2eo_dist.evaluation.compare import UNSET, match, paired, tree_diff


def test_rows_are_matched_by_both_keys() -> None:
    this = [("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")]
    other = [("c", "x"), ("a", "x"), ("b", "z"), ("a", "y"), ("d", "x")]
    found = match(this, other)
    assert found.keys == (("a", "x"), ("a", "y"), ("c", "x"))
    assert [this[i] for i in found.this] == [other[i] for i in found.other] == list(found.keys)
    assert (found.only_this, found.only_other) == (1, 2)
    assert match([], other).keys == ()
    assert (match([], other).only_this, match([], other).only_other) == (0, 5)
    assert match(list(reversed(this)), other).keys == found.keys


@pytest.mark.parametrize("lower", [True, False])
def test_differences_against_a_plain_loop(lower: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.05, 0.01, 60), rng.normal(0.055, 0.01, 60)
    a[4], b[9], a[11], b[11], a[20] = math.nan, math.nan, math.nan, math.nan, math.inf
    b[30] = a[30]
    places = [f"p{i % 7}" for i in range(60)]
    p = paired(a, b, places, lower)
    rows = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]
    good = sum((x < y) if lower else (x > y) for x, y in rows)
    assert (p.n, p.better, p.equal, p.worse) == (len(rows), good, 1, len(rows) - good - 1)
    assert (p.missing_this, p.missing_other) == (3, 2)
    assert p.difference == pytest.approx(sum(x - y for x, y in rows) / len(rows), rel=1e-12)
    assert p.means == pytest.approx(tuple(sum(c) / len(rows) for c in zip(*rows, strict=True)))
    kept = [i for i in range(60) if math.isfinite(a[i]) and math.isfinite(b[i])]
    assert p.at.tolist() == kept
    assert (p.low, p.high) == interval((a - b)[kept], np.array(places)[kept], 0)
    assert p.low < p.difference < p.high


def test_the_better_run_is_told_only_beyond_chance() -> None:
    rng = np.random.default_rng(1)
    places = [f"p{i // 2}" for i in range(200)]
    b = rng.normal(0.05, 0.01, 200)
    noise = rng.normal(0, 0.004, 200)
    clear = b - 0.005 + noise
    assert paired(clear, b, places).better_run == "this"
    assert paired(b, clear, places).better_run == "other"
    assert paired(clear, b, places, lower=False).better_run == "other"
    assert paired(b + noise - noise.mean(), b, places).better_run == ""
    assert paired(b, b, places).better_run == ""
    assert paired(b, b, places).equal == 200
    one_place = paired(clear, b, ["p"] * 200)
    assert math.isnan(one_place.low)
    assert one_place.better_run == ""


def test_pairs_of_one_place_do_not_count_as_many() -> None:
    """Ten places whose pairs are alike: resampling pairs would give an interval about 5 times too narrow."""
    rng = np.random.default_rng(5)
    shift = np.repeat(rng.normal(0, 0.01, 10), 25)
    a, b = 0.05 + shift + rng.normal(0, 1e-4, 250), np.full(250, 0.05)
    together = paired(a, b, [f"p{i // 25}" for i in range(250)])
    apart = paired(a, b, [f"p{i}" for i in range(250)])
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_the_most_changed_pairs() -> None:
    a = np.array([0.1, 0.2, 0.3, 0.4, 0.5, math.nan])
    b = np.array([0.4, 0.1, 0.3, 0.45, 0.2, 0.3])
    improved, worsened = paired(a, b, list("abcdef")).extremes(2)
    assert improved.tolist() == [0, 3]
    assert worsened.tolist() == [4, 1]
    improved, worsened = paired(a, b, list("abcdef"), lower=False).extremes(9)
    assert improved.tolist() == [4, 1]
    assert worsened.tolist() == [0, 3]
    assert [x.size for x in paired(a, a, list("abcdef")).extremes(3)] == [0, 0]


def test_nothing_measured() -> None:
    p = paired(np.full(3, math.nan), np.ones(3), ["a", "b", "c"])
    assert (p.n, p.better, p.missing_this, p.missing_other, p.better_run) == (0, 0, 3, 0, "")
    assert math.isnan(p.difference)
    assert math.isnan(p.means[0])


def test_trees_are_told_apart_leaf_by_leaf() -> None:
    this = {"run": {"out": "a"}, "train": {"lr": 1, "flag": True, "nan": math.nan, "sizes": [1, 2]}, "new": {"x": None}}
    other = {"train": {"flag": 1, "lr": 1.0, "nan": math.nan, "sizes": [1, 3], "gone": {}}, "run": {"out": "a"}}
    assert tree_diff(this, other) == [
        ("train.flag", True, 1), ("train.sizes", [1, 2], [1, 3]), ("new.x", None, UNSET), ("train.gone", UNSET, {}),
    ]  # fmt: skip
    assert tree_diff(this, this) == []
    assert tree_diff({}, {}) == []
    assert tree_diff({"a": {"b": 1}}, {"a": 1}) == [("a.b", 1, UNSET), ("a", UNSET, 1)]
    assert str(UNSET) == "not set"
