from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.pipeline import calibration as module
from sar2eo_dist.pipeline.calibration import CURRENT, drift, from_json, guard, settle, to_json
from sar2eo_dist.records import Calibration

NONE = np.empty(0)
RNG = np.random.default_rng(3)


def config(out: Path, *more: str) -> Config:
    return load(overrides=[f"run.out={out}", *more])


def settled(
    cfg: Config,
    scores: np.ndarray,
    digests: Callable[[], list[str]],
    name: str,
    mark: str,
    own: np.ndarray,
    whole: bool,
    anew: bool,
) -> tuple[Calibration, module.Drift | None]:
    """As `selection.publish` does."""
    return settle(cfg, module.foresee(cfg, scores, name, mark, own, anew), scores, digests, whole)


def units(*sizes: int) -> Callable[[], list[str]]:
    """Digests of so many tiles."""
    return lambda: [f"t{i}" for i in range(sum(sizes))]


def test_the_first_run_freezes_and_increments_reuse(tmp_path: Path) -> None:
    cfg, first = config(tmp_path), RNG.normal(100, 10, 500)
    made, off = settled(cfg, first, units(250, 250), "fid", "mark", NONE, True, False)
    assert (made.version, made.count, off) == (1, 500, None)
    assert made.kept == pytest.approx(np.mean(first >= made.threshold))
    more = np.concatenate([first, RNG.normal(100, 10, 300), [1e6]])
    again, off = settled(cfg, more, units(250, 250, 301), "fid", "mark", NONE, True, False)
    assert again == made, "one outlier in an increment moved a frozen threshold"
    assert off is not None
    assert (off.version, off.count) == (1, 301)
    assert off.distance < 0.1
    assert from_json((tmp_path / CURRENT).read_bytes(), "") == made


def test_another_rule_is_another_version_and_the_old_one_stays(tmp_path: Path) -> None:
    scores = RNG.normal(100, 10, 500)
    for version, setting in enumerate(("cca.beta=0.4", "cca.beta=0.5", "cca.rule=otsu"), 1):
        found, _ = settled(config(tmp_path, setting), scores, units(500), "fid", "mark", NONE, True, False)
        assert found.version == version
    assert sorted(p.name for p in (tmp_path / "collect/calibrations").glob("*.json")) == [
        f"000{v}.json" for v in (1, 2, 3)
    ]
    back, _ = settled(config(tmp_path, "cca.beta=0.4"), scores, units(500), "fid", "mark", NONE, True, False)
    assert back.version == 1, "an earlier choice finds its calibration again"
    anew, off = settled(config(tmp_path, "cca.rule=otsu"), scores, units(500), "fid", "mark", NONE, True, True)
    assert (anew.version, off) == (4, None)


def test_other_scores_are_calibrated_anew(tmp_path: Path) -> None:
    cfg, scores = config(tmp_path), RNG.normal(100, 10, 50)
    settled(cfg, scores, units(50), "fid", "mark", NONE, True, False)
    assert settled(cfg, scores, units(50), "fid", "other set", NONE, True, False)[0].version == 2


def test_part_of_a_plan_freezes_nothing(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    part, _ = settled(cfg, RNG.normal(100, 10, 50), units(50), "fid", "mark", NONE, False, False)
    assert part.version == 0
    whole, _ = settled(cfg, RNG.normal(100, 10, 500), units(500), "fid", "mark", NONE, True, False)
    assert (whole.version, whole.count) == (1, 500)


def test_a_given_calibration_is_used_as_it_is_or_refused(tmp_path: Path) -> None:
    scores = RNG.normal(100, 10, 500)
    made, _ = settled(config(tmp_path / "a"), scores, units(500), "fid", "mark", NONE, True, False)
    cfg = config(tmp_path / "b", f"cca.calibration={tmp_path / 'a' / CURRENT}", "cca.beta=0.9")
    found, off = settled(cfg, scores + 30, lambda: [f"new{i}" for i in range(500)], "fid", "mark", NONE, True, False)
    assert found == made
    assert off is not None
    assert "DRIFT" in off.line(0.1)
    assert not list((tmp_path / "b").glob("collect/calibrations/*"))
    with pytest.raises(ConfigError, match=r"is of fid scores made by mark, these are fd_x made by mark: use"):
        settled(cfg, scores, units(500), "fd_x", "mark", NONE, True, False)
    (tmp_path / "bad.json").write_text('{"beta": 1}')
    with pytest.raises(ConfigError, match=r"no calibration .*bad\.json"):
        settled(
            config(tmp_path, f"cca.calibration={tmp_path / 'bad.json'}"),
            scores,
            units(500),
            "fid",
            "m",
            NONE,
            True,
            False,
        )


@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(0.3, 3))
def test_drift_is_the_kolmogorov_smirnov_distance(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=20_000), rng.normal(shift, scale, 3_000)
    made = dataclasses.replace(
        Calibration("fid", "range", 0.4, 0, 1, -0.5, 20_000, "m", 1),
        quantiles=tuple(np.quantile(old, np.linspace(0, 1, 101))),
    )
    found = drift(new, made)
    # 101 quantiles know the distribution to 1 %
    assert found.distance == pytest.approx(stats.ks_2samp(old, new).statistic, abs=0.012)
    assert found.median == pytest.approx(np.median(new) - np.median(old))
    assert found.kept == pytest.approx(np.mean(new >= -0.5))


def test_equal_scores_do_not_drift_from_themselves() -> None:
    made = dataclasses.replace(
        Calibration("fid", "range", 0.4, 5, 5, 5, 9, "m", 1), quantiles=tuple([5.0] * 60 + [6.0] * 41)
    )
    assert drift(np.array([5.0] * 600 + [6.0] * 400), made).distance < 0.02
    assert drift(np.full(500, 6.0), made).distance == pytest.approx(0.6, abs=0.02)


def test_few_scores_tell_nothing() -> None:
    assert module.Drift(1, 5, 0.9, 3.0, 0.5).line(0.1) == ""


def test_a_kept_share_outside_the_bounds_stops_with_the_histogram(tmp_path: Path) -> None:
    scores = np.append(RNG.normal(200, 5, 9999), 900.0)  # one outlier among ten thousand drops every clear image
    cfg = config(tmp_path)
    made, _ = settled(cfg, scores, units(10_000), "fid", "mark", NONE, True, False)
    with pytest.raises(
        Sar2EoError, match=r"1 of 10,000 scored tiles \(0\.01%\) are kept, less than cca\.min_kept"
    ) as e:
        guard(cfg, scores, made, len(scores))
    assert "█" in str(e.value)
    assert "<- threshold" in str(e.value)
    assert "--reselect" in str(e.value)
    assert made.version == 0, "a calibration that is refused must not last"
    assert settled(cfg, scores[:-1], units(9999), "fid", "mark", NONE, True, False)[0].version == 1
    quantile = config(tmp_path, "cca.rule=quantile")
    guard(quantile, scores, settled(quantile, scores, units(10_000), "fid", "mark", NONE, True, False)[0], len(scores))
    with pytest.raises(Sar2EoError, match=r"more than cca\.max_kept 0\.5"):
        guard(
            config(tmp_path, "cca.max_kept=0.5", "cca.beta=-1"), scores, dataclasses.replace(made, threshold=-1), 10_000
        )


def test_tiles_without_a_finite_score_count_as_dropped(tmp_path: Path) -> None:
    cfg = config(tmp_path, "cca.min_kept=0.5")
    made, _ = settled(cfg, np.full(1, 5.0), units(1), "fid", "mark", NONE, True, False)
    with pytest.raises(Sar2EoError, match=r"1 of 100 scored tiles .*99 of them no finite score"):
        guard(cfg, np.full(1, 5.0), made, 100)
    with pytest.raises(Sar2EoError, match=r"0 of 100 scored tiles .*100 of them no finite score"):
        guard(cfg, NONE, None, 100)


def test_json_round_trip() -> None:
    made = Calibration("fid", "range", 0.4, 1.5, 2.5, 1.9, 9, "m", 1, 0.5, (1.5, 2.5), "s")
    assert from_json(to_json(made), "x") == made
    assert json.loads(to_json(made))["version"] == 1


def test_other_survivors_are_calibrated_anew(tmp_path: Path) -> None:
    scores = RNG.normal(100, 10, 500)
    settled(config(tmp_path), scores, units(500), "fid", "mark", NONE, True, False)
    looser = config(tmp_path, "cca.brightness_min=0", "cca.min_kept=0")
    found, _ = settled(looser, np.append(scores, 500.0), units(501), "fid", "mark", NONE, True, False)
    assert (found.version, found.high) == (2, 500.0)


def test_a_part_of_a_plan_hides_no_frozen_calibration(tmp_path: Path) -> None:
    cfg, scores = config(tmp_path), RNG.normal(100, 10, 500)
    frozen, _ = settled(cfg, scores, units(500), "fid", "mark", NONE, True, False)
    settled(config(tmp_path, "cca.beta=0.7"), scores[:50], units(50), "fid", "mark", NONE, False, False)
    (tmp_path / CURRENT).unlink()  # no stage 3 in between
    assert settled(cfg, scores, units(500), "fid", "mark", NONE, True, False)[0] == frozen


def test_only_new_tiles_drift(tmp_path: Path) -> None:
    cfg, scores = config(tmp_path), RNG.normal(100, 10, 5000)
    settled(cfg, scores, units(5000), "fid", "mark", NONE, True, False)
    more = np.concatenate([RNG.normal(160, 10, 200), scores])
    digests = [f"new{i}" for i in range(200)] + [f"t{i}" for i in range(5000)]
    _, off = settled(cfg, more, lambda: digests, "fid", "mark", NONE, True, False)
    assert off is not None
    assert 195 <= off.count <= 200
    assert off.distance > 0.9
