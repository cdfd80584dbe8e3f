"""Variants of one config, and the table of what came of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sar2eo_dist import storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline import study
from sar2eo_dist.pipeline.stage import Options, Summary

ROOT = Path(__file__).resolve().parents[2]


def config(**variants: Any) -> Config:
    tree = load().model_dump(mode="json")
    tree["study"] = {"seeds": [3, 5], "variants": variants}
    return Config.model_validate(tree)


def entry(method: str, figure: float, n: int = 10) -> dict[str, Any]:
    metric = {"mean": figure, "median": figure, "low": None, "high": None, "n": n}
    names = ("mae", "rmse", "psnr", "ssim", "ms_ssim", "sam")
    challenge = {"multiearth_mse_sum": figure / 2, "mae_min": figure / 4, "queries": 7, "images": 7, "unanswered": 0}
    return {"method": method, "n": n, "challenge": challenge, "frechet": None} | dict.fromkeys(names, metric)


def scores(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"split": "val", "pairs": 12, "measured": 10, "methods": list(entries)}


def test_a_variant_changes_what_it_names_and_keeps_the_rest():
    cfg = config(a={}, b={"set": {"train": {"enhancer": "", "translate": {"options": {"lambda_l1": 9.0}}}}})
    found = study.variants(cfg)
    assert [(n, s, c.train.seed) for n, s, c in found] == [("a", 3, 3), ("a", 5, 5), ("b", 3, 3), ("b", 5, 5)]
    assert found[0][2].train.enhancer == "restormer"
    assert found[2][2].train.enhancer == ""
    assert found[2][2].train.translate.options == {"lambda_l1": 9.0}
    assert found[2][2].train.translate.steps == cfg.train.translate.steps


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({}, "study.variants is empty"),
        ({"a": {"set": {"cca": {"beta": 0.1}, "split": {}}}}, r"study\.variants\.a\.set changes cca, split"),
        ({"a": {"rows": {"best": "x"}}}, r"study\.variants\.a\.rows: best"),
        ({"a": {"set": {"train": {"stepz": 3}}}}, "stepz"),
        ({"a": {"set": {"trian": {}}}}, "did you mean 'train'"),
        ({"a": {"set": {"train": "x"}}}, r"study\.variants\.a: train"),
        ({"a": {"set": {"train": {"seed": 1}}}}, r"train\.seed: study\.seeds"),
        ({"a": {"set": {"evaluate": {"split": "train"}}}}, r"study\.variants\.a\.set changes evaluate"),
        ({"../a": {}}, "is no name"),
    ],
)
def test_a_wrong_variant_is_named_before_anything_starts(variants: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        study.variants(config(**variants))


def test_the_table_has_a_row_a_submission_and_baselines_once_below():
    cfg = config(
        a={"rows": {"translated": "1  first", "enhanced": "2  second"}},
        b={"set": {"train": {"enhancer": ""}}, "rows": {"translated": "3  third"}},
    )
    zero = entry("baseline_zero", 0.9)
    found = [
        ("a", 3, scores(entry("translated", 0.4), entry("enhanced", 0.2), zero)),
        ("a", 5, scores(entry("translated", 0.6), entry("enhanced", 0.3), zero)),
        ("b", 3, scores(entry("translated", 0.5), zero)),
    ]
    rows = study.table_rows(cfg, found)
    assert [(r["title"], r["seeds"]) for r in rows] == [
        ("1  first", [3, 5]), ("2  second", [3, 5]), ("3  third", [3]), ("all zero", [3]),
    ]  # fmt: skip
    assert rows[0]["figures"]["mae"] == [0.4, 0.6]
    assert rows[0]["figures"]["multiearth_mse_sum"] == [0.2, 0.3]
    text = study.words(rows, found)
    assert "0.5 ± 0.14" in text
    assert "12 pairs of split val, seeds 3, 5" in text
    assert "! a, seed 3: only 10 of 12 pairs were measured" in text
    assert "! 1  first: over 10, 10 pairs" in text
    assert "not to be read beside" in text
    table = list(csv.DictReader(io.StringIO(study._csv(rows))))
    assert [(t["row"], t["seed"], t["mae"]) for t in table][:3] == [
        ("1  first", "3", "0.4"),
        ("1  first", "5", "0.6"),
        ("2  second", "3", "0.2"),
    ]
    assert {t["lpips"] for t in table} == {""}


def test_a_seed_twice_is_refused():
    cfg = config(a={})
    with pytest.raises(ConfigError, match="a seed twice"):
        study.variants(cfg.model_copy(update={"study": cfg.study.model_copy(update={"seeds": (1, 1)})}))


def test_a_figure_that_some_seeds_lack_is_marked():
    cfg = config(a={"rows": {"translated": "1"}})
    lacking = entry("translated", 0.5)
    lacking["psnr"] = lacking["psnr"] | {"mean": None}
    rows = study.table_rows(cfg, [("a", 3, scores(entry("translated", 0.4))), ("a", 5, scores(lacking))])
    assert "0.4 (1 of 2)" in study.words(rows, [("a", 3, scores(lacking))])


def test_every_variant_and_seed_is_trained_and_evaluated_once_and_leaves_nothing_misleading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int, str]] = []
    root = str(tmp_path)
    storage.put(storage.join(root, "shard/summary.json"), b'{"status": "complete"}')

    def verb(name: str) -> Any:
        def run(cfg: Config, opts: Options) -> Summary:
            ran.append((name, cfg.train.seed, cfg.train.enhancer))
            made = {
                "scores.json": scores(entry("translated", cfg.train.seed / 10)),
                "metrics.parquet": {},
                "summary.json": {},
            }
            for path, tree in made.items():
                storage.put(storage.join(root, "evaluate", path), json.dumps(tree).encode())
            storage.put(storage.join(root, "train/summary.json"), b"{}")
            return Summary(name, "complete", digest=f"{name}{cfg.train.seed}{cfg.train.enhancer}")

        return run

    monkeypatch.setattr(study, "train", verb("train"))
    monkeypatch.setattr(study, "evaluate", verb("evaluate"))
    cfg = config(a={}, b={"set": {"train": {"enhancer": ""}}})
    cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"out": root})})
    done = study.study(cfg, Options())
    each = [(s, e) for e in ("restormer", "") for s in (3, 5)]
    assert ran == [(v, s, e) for s, e in each for v in ("train", "evaluate")]
    assert (done.status, done.done, done.counts["trainings"]) == ("complete", 4, 4)
    rows = json.loads((tmp_path / done.outputs["table"]).read_text())
    assert [(r["seeds"], r["figures"]["mae"]) for r in rows] == [([3, 5], [0.3, 0.5])] * 2
    assert not (tmp_path / "train/summary.json").exists()
    assert not (tmp_path / "evaluate/scores.json").exists()
    assert json.loads((tmp_path / "study/b-5.json").read_text())["measured"] == 10
    assert study.study(cfg, Options()).digest == done.digest
    assert study.study(cfg, Options(dry_run=True)).counts == {"trainings": 4}


def test_two_scalings_of_the_truth_have_baselines_of_their_own():
    cfg = config(a={}, b={"set": {"scaling": {"eo": "minmax"}}})
    zero = [entry("baseline_zero", 0.9), entry("baseline_zero", 0.3)]
    rows = study.table_rows(cfg, [("a", 3, scores(zero[0])), ("b", 3, scores(zero[1]))])
    assert [(r["title"], r["figures"]["mae"]) for r in rows] == [
        ("all zero (EO fixed)", [0.9]), ("all zero (EO minmax)", [0.3]),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["table1", "table1_synthetic"])
def test_the_configs_of_table_1_are_the_three_submissions(name: str):
    found = study.variants(load(str(ROOT / f"jobs/configs/{name}.yaml")))
    first, last = found[0][2], found[-1][2]
    assert (first.scaling.sar, first.scaling.eo, first.train.enhancer) == ("minmax", "minmax", "restormer")
    assert (last.scaling.sar, last.scaling.eo, last.train.enhancer) == ("tanh", "minmax", "")
    assert first.train.translate.options.get("lambda_l1", 0.0) == 0.0
    assert last.train.translate.options["lambda_l1"] == 100.0
    assert first.train.translate.steps == last.train.translate.steps
    assert len({c.train.seed for _, _, c in found}) == len(found) // 2
