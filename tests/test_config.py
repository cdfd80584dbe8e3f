from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.sections import CCA

CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert isinstance(load(str(path)), Config)


def test_overrides_are_yaml_values_and_nest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("cca: {beta: 0.3}\n")
    assert load(overrides=["run.out=/a #1/x"]).run.out == "/a #1/x"
    assert load(overrides=["run.out=2024"]).run.out == "2024"
    cfg = load(str(path), ["cca.beta=0.5", "synthetic.places=[2, 3]", "data.s1=s3://b/x", "train.enhancer="])
    assert (cfg.cca.beta, cfg.synthetic.places, cfg.data.s1, cfg.train.enhancer) == (0.5, (2, 3), "s3://b/x", "")


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("cca: {bta: 1}", [], ["cca.bta", "did you mean 'beta'"]),
        ("ccaa: {beta: 1}", [], ["ccaa", "'cca'"]),
        ("train: {translate: {step: 3}}", [], ["train.translate.step", "'steps'"]),
        ("cca: {zzzz: 1}", [], ["cca.zzzz", "known:", "alpha"]),
        ("cca: {beta: many}", [], ["cca.beta", "'many'"]),
        ("cca: {profile: papr}", [], ["cca.profile", "'paper'", "papr"]),
        ("translate: {window: 64, overlap: 64, statistics: window}", [], ["translate.overlap 64"]),
        ("translate: {window: 96}", [], ["translate.block 2048 is no multiple of translate.window 96"]),
        ("split: {val: 0.6, test: 0.5}", [], ["split.val 0.6"]),
        ("a: [", [], ["not YAML"]),
        ("data: {s1: 's3://key:secret@bucket/x'}", [], ["data.s1 carries credentials"]),
        ("synthetic: {places: [0, 3]}", [], ["synthetic.places"]),
        ("cca: {brightness_min: .nan}", [], ["cca.brightness_min"]),
        ("- 1", [], ["mapping"]),
        ("", ["cca.beta"], ["cca.beta", "section.key=value"]),
        ("cca: 3", ["cca.beta=1"], ["'cca' is a value"]),
    ],
)
def test_a_wrong_config_is_refused_in_words(tmp_path: Path, text: str, overrides: list[str], words: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load(str(path), overrides)
    for word in words:
        assert word in str(e.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load("nowhere.yaml")


def test_fingerprint_moves_with_what_affects_results_and_only_with_it() -> None:
    base = Config()
    same = [
        load(overrides=[o])
        for o in ("run.out=x", "resources.readers=9", "cca.beta=0.9", "cca.slice=7", "cca.rule=otsu")
    ]
    other = [load(overrides=[o]) for o in ("cca.alpha=4000", "cca.level=l1c")]
    assert {c.fingerprint("collect") for c in same} == {base.fingerprint("collect")}
    assert base.fingerprint("collect") not in {c.fingerprint("collect") for c in other}
    assert load(overrides=["train.translate.log_every=3"]).fingerprint("train") == base.fingerprint("train")
    assert load(overrides=["scaling.median=5"]).fingerprint("train") != base.fingerprint("train")
    assert base.fingerprint("train") != base.fingerprint("translate")


def test_another_profile_over_a_run_folders_config(tmp_path: Path) -> None:
    """A run folder's config states every key: another profile brings its own defaults, and what a person set stays."""
    first = load(None, ["cca.profile=recommended", "cca.beta=0.3"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first.model_dump(mode="json")))
    path = str(tmp_path / "config.yaml")
    assert load(path) == first
    assert load(path, ["cca.profile=paper"]).cca == CCA(profile="paper", beta=0.3)


@pytest.mark.parametrize(
    ("given", "words"),
    [(["cca.min_kept=0.9", "cca.max_kept=0.1"], "min_kept 0.9 > max_kept 0.1"),
     (["cca.rule=reference", "cca.beta=1.5"], "beta 1.5 with rule reference"),
     (["cca.profile=[a]"], "cca.profile")],
)  # fmt: skip
def test_what_no_run_can_meet_is_refused_at_once(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(None, given)
