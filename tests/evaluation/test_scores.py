"""From measured rows to figures: nothing is averaged over less than was there without saying so."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sar2eo_dist.evaluation import scores


def columns(rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
    base: dict[str, object] = {
        "rank": 0, "sar_key": "s", "place": "p", "cover": "", "days": 0, "orbit": "ascending", "cloud_share": 0.0,
        "method": "translated",
    } | dict.fromkeys((*scores.METRICS, *scores.CHALLENGE), math.nan)  # fmt: skip
    full = [base | r for r in rows]
    return {k: np.array([r[k] for r in full]) for k in base}


def test_a_query_is_a_sar_image_and_its_best_truth_counts():
    rows = [
        {"sar_key": "a", "challenge_mse": 0.3, "challenge_mae": 0.5},
        {"sar_key": "a", "challenge_mse": 0.1, "challenge_mae": 0.6},
        {"sar_key": "b", "challenge_mse": 0.5, "challenge_mae": 0.2},
        {"sar_key": "b"},
        {"sar_key": "c"},
    ]
    found = scores.challenge(columns(rows))
    assert found["multiearth_mse_sum"] == pytest.approx((0.1 + 0.5) / 2)
    assert found["mae_min"] == pytest.approx((0.5 + 0.2) / 2)
    assert (found["queries"], found["images"], found["unanswered"], found["incomplete"]) == (2, 2, 1, 0)
    lost = scores.challenge(columns(rows), {"a": 3, "b": 2, "c": 1, "d": 2})
    assert (lost["queries"], lost["unanswered"], lost["incomplete"]) == (2, 2, 2)
    assert lost["multiearth_mse_sum"] == found["multiearth_mse_sum"]


def test_the_other_date_is_another_image_for_every_truth():
    base = {"sar_key": "a", "method": "nearest_date", "challenge_mae": 0.2}
    rows = [base | {"rank": i, "challenge_mse": m} for i, m in enumerate((0.1, 0.5))]
    found = scores.challenge(columns(rows), {"a": 9})
    assert found["multiearth_mse_sum"] == pytest.approx(0.3)
    assert (found["queries"], found["unanswered"], found["incomplete"]) == (2, 0, 0)


def test_without_any_measured_query_there_is_no_figure():
    found = scores.challenge(columns([{"sar_key": "a"}]))
    assert found["multiearth_mse_sum"] is None
    assert (found["queries"], found["unanswered"]) == (0, 1)


def test_means_say_over_how_many_and_methods_come_in_their_order():
    rows = [
        {"method": "baseline_zero", "mae": 1.0},
        {"method": "another", "mae": 5.0},
        {"method": "enhanced", "mae": 0.1, "psnr": math.inf, "place": "p"},
        {"method": "enhanced", "mae": math.nan, "psnr": 30.0, "place": "q"},
        {"method": "enhanced", "mae": 0.3, "psnr": 20.0, "place": "r"},
    ]
    found = scores.methods(columns(rows))
    assert [e["method"] for e in found] == ["enhanced", "baseline_zero", "another"]
    mae = found[0]["mae"]
    assert (mae["mean"], mae["median"], mae["n"], found[0]["n"]) == (pytest.approx(0.2), pytest.approx(0.2), 2, 3)
    assert mae["low"] <= mae["mean"] <= mae["high"]
    assert found[0]["psnr"] == {"mean": None, "median": 30.0, "low": None, "high": None, "n": 3}  # one is perfect
    assert found[0]["ssim"]["n"] == 0
    json.dumps(found, allow_nan=False)


def test_groups_are_of_days_cloud_orbit_and_cover():
    rows = [
        {"days": -3, "cloud_share": 0.0, "mae": 0.1, "cover": "water"},
        {"days": 4, "cloud_share": 0.004, "mae": 0.2},
        {"days": 0, "cloud_share": math.nan, "mae": 0.4},
        {"days": 31, "cloud_share": 0.2, "mae": 0.8, "orbit": "descending"},
        {"days": 31, "cloud_share": 0.2, "mae": math.nan, "orbit": "descending"},
    ]
    found = scores.groups(columns(rows), ["mae"])
    table = {k: [(g["group"], g["n"], g["mae"]["mean"]) for g in v] for k, v in found.items()}
    assert table["days"] == [
        ("same day", 1, 0.4), ("1 to 3 days", 1, 0.1), ("4 to 7 days", 1, 0.2), ("over 30 days", 2, 0.8),
    ]  # fmt: skip
    assert table["cloud"] == [("none", 1, 0.1), ("up to 0.5 %", 1, 0.2), ("over 5 %", 2, 0.8), ("unknown", 1, 0.4)]
    assert found["days"][-1]["mae"]["n"] == 1
    assert [g[:2] for g in table["orbit"]] == [("ascending", 3), ("descending", 2)]
    assert [g[:2] for g in table["cover"]] == [("unknown", 4), ("water", 1)]


def test_worst_and_best_are_of_the_last_network_and_no_pair_is_both():
    rows = [{"rank": i, "method": "enhanced", "mae": m} for i, m in enumerate((0.5, 0.1, 0.9, math.nan, 0.3))]
    rows += [{"rank": i, "method": "translated", "mae": -i} for i in range(5)]
    assert scores.extremes(columns(rows), 2) == ([2, 0], [1, 4])
    assert scores.extremes(columns(rows), 9) == ([2, 0], [1, 4])
    assert scores.extremes(columns(rows[:1]), 3) == ([0], [])
    assert scores.extremes(columns([{"method": "baseline_zero", "mae": 1.0}]), 3) == ([], [])


def test_the_frechet_distance_is_of_the_same_pairs_on_both_sides():
    rng = np.random.default_rng(5)
    true = rng.normal(size=(40, 6)).astype(np.float32)
    ranks = np.arange(40) * 3
    features = {"true": (ranks, true), "enhanced": (ranks[5:], true[5:]), "baseline_zero": (ranks[:1], true[:1])}
    found = scores.frechet(features, {int(r): str(r % 7) for r in ranks}, "fd_x")
    assert found["enhanced"]["value"] == pytest.approx(0, abs=1e-6)
    assert (found["enhanced"]["n"], found["enhanced"]["name"]) == (35, "fd_x")
    assert found["baseline_zero"] is None
    assert found["translated"] is None


def test_the_terminal_table_leaves_out_what_nobody_has():
    found = scores.methods(columns([{"mae": 0.25, "challenge_mse": 0.5, "challenge_mae": 0.5}]))
    text = scores.words(found)
    assert "0.2500" in text
    assert "0.50000" in text
    assert "LPIPS" not in text
