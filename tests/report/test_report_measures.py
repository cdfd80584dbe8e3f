"""The metrics on the page: from evaluate's scores, else from the pairs; honest about what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pytest
from dom import Node, safe

from sar2eo_dist.report import page as report
from sar2eo_dist.report.text import UNKNOWN, number

Some = Callable[..., Path]


def put(folder: Path, scores: Any = None, rows: Any = None) -> Node:
    """The metrics section of a run folder with these."""
    (folder / "evaluate").mkdir(exist_ok=True)
    if scores is not None:
        (folder / "evaluate/scores.json").write_text(json.dumps(scores))
    if rows is not None:
        (folder / "evaluate/metrics.parquet").write_bytes(fake_run.table(rows))
    return safe(report.build(str(folder))).one("section", id="metrics")


def lines(section: Node, name: str) -> dict[str, Node]:
    return {
        r.attrs["data-method"]: r for r in section.one("table", data_table=name).all("tr") if "data-method" in r.attrs
    }


def test_every_figure_of_the_scores(page: Node) -> None:
    section = page.one("section", id="metrics")
    rows = lines(section, "val")
    assert list(rows) == [
        "translated", "enhanced", "baseline_linear", "baseline_mean", "baseline_zero", "nearest_date",
    ]  # fmt: skip
    assert [h.text.split(" ")[0] for h in section.one("table", data_table="val").all("th")[2:]] == [
        "MAE", "RMSE", "PSNR", "SSIM", "MS-SSIM", "SAM", "LPIPS",
    ]  # fmt: skip
    for m in fake_run.scores()["methods"]:
        for metric in fake_run.scores()["metrics"]:
            cell, f, digits = rows[m["method"]].one("td", data_metric=metric), m[metric], 4 if metric == "psnr" else 3
            assert cell.one("span", class_="mean").text == number(f["mean"], digits)
            assert cell.one("small", class_="median").text == f"median {number(f['median'], digits)}"
            assert (
                cell.one("small", class_="interval").text
                == f"{number(f['low'], digits)}{UNKNOWN}{number(f['high'], digits)}"
            )
            assert [s.text for s in cell.all("small", class_="short")] == (["9 pairs"] if metric == "ms_ssim" else [])
            best = "best" in cell.one("span", class_="mean").attrs["class"].split()
            assert best == (m["method"] == "enhanced")  # not the other date, though its figures are better
    assert "no competitor" in rows["nearest_date"].text
    assert "Enhanced (restormer): mean MAE 0.0400 (120 DN), 33 % below the best baseline" in section.all("p")[0].text
    assert "0.01 is 30.0 DN" in section.text
    assert "compare with care" not in section.text


def test_challenge_figures_and_distances(page: Node) -> None:
    section = page.one("section", id="metrics")
    rows = lines(section, "sets")
    for k, m in enumerate(fake_run.scores()["methods"]):
        cells = {c.attrs["data-figure"]: c.text for c in rows[m["method"]].all("td") if "data-figure" in c.attrs}
        assert float(cells["multiearth_mse_sum"]) == m["challenge"]["multiearth_mse_sum"]
        assert float(cells["mae_min"]) == m["challenge"]["mae_min"]
        assert (cells["queries"], cells["images"]) == ("12", "12")
        if m["frechet"]:
            assert cells["frechet"] == f"{40 + k}.0 36.0{UNKNOWN}45.0"
            assert float(cells["kid"]) == m["frechet"]["kid"]
        else:
            assert cells["frechet"] == cells["kid"] == UNKNOWN
    assert "never comparable with Table 1 of the paper" in section.text
    assert "fd_efficientnet_lite0 , not the FID" in section.text


def test_breakdowns(page: Node) -> None:
    groups = {d.attrs["data-group"]: d for d in page.one("section", id="metrics").all("details")}
    assert list(groups) == ["cover", "days", "orbit", "cloud"]
    names = [[r.all("td")[0].text for r in d.one("tbody").all("tr")] for d in groups.values()]
    assert names == [["forest", "water"], ["0 to 3", "4 to 7"], ["descending"], ["under 5 %", "unknown"]]
    water = groups["cover"].one("tbody").all("tr")[1].all("td")
    assert water[1].text == "6"
    assert water[2].text == "0.0600"  # 1.2 times translated's 0.05


def test_less_than_was_asked_is_said(some: Some) -> None:
    section = put(some("config.yaml"), fake_run.scores() | {"pairs": 14})
    assert "Only 12 of 14 pairs were measured" in section.text
    assert "0.01 is 20.0 DN" in put(some("config.yaml"), fake_run.scores() | {"dn": 2000}).text
    assert "DN" not in put(some("config.yaml"), fake_run.scores() | {"dn": None}).text
    assert all("of 14" in r.all("td")[1].text for r in lines(section, "val").values())
    scores = fake_run.scores()
    scores["methods"][1] |= {"n": 11, "mae": scores["methods"][1]["mae"] | {"n": 11}}
    assert "Not every method was measured on all 12 pairs" in put(some("config.yaml"), scores).text


def test_values_that_are_not_known(some: Some) -> None:
    scores = fake_run.scores()
    for row in scores["methods"]:
        row |= {
            "lpips": dict.fromkeys(("mean", "median", "low", "high")) | {"n": 0},
            "frechet": None,
            "challenge": None,
        }
    section = put(some("config.yaml"), scores | {"groups": {}})
    assert not section.all("td", data_metric="lpips")
    assert "Not measured: LPIPS." in section.text
    assert "compare with care" not in section.text
    assert not section.all("table", data_table="sets")
    assert not section.all("details")


def test_without_scores_the_means_of_the_pairs(some: Some) -> None:
    rows = [r | {"sam": 2 * r["mae"]} for r in fake_run.metrics()]
    section = put(some("config.yaml"), rows=rows)
    shown = lines(section, "val")
    for method in fake_run.METHODS:
        for metric in ("mae", "rmse", "psnr", "ssim", "sam"):
            figures = [r[metric] for r in rows if r["method"] == method]
            cell = shown[method].one("td", data_metric=metric)
            assert float(cell.one("span").text) == pytest.approx(np.mean(figures), rel=6e-3, abs=6e-4)
            median = float(cell.one("small").text.removeprefix("median "))
            assert median == pytest.approx(np.median(figures), rel=6e-3, abs=6e-4)
    assert "lpips" not in section.text.lower()
    assert "interval" not in section.text


def test_methods_on_different_pairs_are_not_compared_in_silence(some: Some) -> None:
    rows = [r for r in fake_run.metrics() if r["method"] != "translated" or not r["sar_key"].startswith("s1/val3")]
    rows = [r | {"ssim": float("nan")} if r["method"] == "enhanced" else r for r in rows]
    section = put(some("config.yaml"), rows=rows)
    assert "Not every method was measured on all 12 pairs" in section.text
    assert lines(section, "val")["translated"].all("td")[1].text == "11 of 12"
    assert UNKNOWN in lines(section, "val")["enhanced"].one("td", data_metric="ssim").text
    assert len(section.all("span", class_="best")) == 4


def test_a_model_worse_than_a_baseline_is_said_to_be(some: Some) -> None:
    rows = [r | {"mae": 0.5} if r["method"] in {"translated", "enhanced"} else r for r in fake_run.metrics()]
    text = put(some("config.yaml"), rows=rows).text
    assert "above the best baseline" in text
    assert "no more than a trivial predictor" in text


def test_broken_scores_are_named_and_the_pairs_stand_in(some: Some) -> None:
    folder = some("config.yaml", "evaluate/metrics.parquet")
    (folder / "evaluate/scores.json").write_text('{"methods": 3}')
    section = safe(report.build(str(folder))).one("section", id="metrics")
    assert [t.one("code").text for t in section.all("p", class_="trouble")] == ["evaluate/scores.json"]
    assert lines(section, "val")["enhanced"].one("td", data_metric="mae").text.startswith("0.0400")
