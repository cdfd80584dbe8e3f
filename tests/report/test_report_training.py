"""The page of a training: every figure from a record made of formulas, broken records, hostile words, a real browser."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cdp import Browser
from dom import Node, harmless, parse
from PIL import Image
from test_report_plots import checked, words
from test_report_robust import EVIL

from sar2eo_dist.report import plots, training

BASELINES = {
    "baseline_mean": {"mae": 0.07, "rmse": 0.09, "psnr": 20.5, "ssim": 0.41},
    "baseline_zero": {"mae": 0.152, "rmse": 0.17, "psnr": 15.2, "ssim": 0.02},
    "baseline_linear": {"mae": 0.05, "rmse": 0.066, "psnr": 22.3, "ssim": 0.5},
}
LOSSES = ("D_fake", "D_real", "G_GAN", "G_L1", "G_feat", "l1", "grad_norm_G")
FOLDERS = ("coarse-0123456789ab", "translate", "enhance")


def record(role: str = "translate", **changes: Any) -> dict[str, Any]:
    """A finished training of 400 steps: MAE falls from 0.09 to 0.044 (0.0416 at step 300, the best)."""
    rng = np.random.default_rng(len(role))
    history = [
        {"step": s, "time": f"2026-11-22T10:{s // 10:02d}:00+00:00", "samples_per_s": 12.0 + (s // 20) % 3, "busy": 0.93,
         "wait": 0.012, "lr": 2e-4, "replaced": s // 200, "skipped": 0}
        | {n: (i + 1) * (0.4 + 3 * math.exp(-s / 120)) + 0.05 * float(rng.normal()) for i, n in enumerate(LOSSES)}
        for s in range(20, 401, 20)
    ]  # fmt: skip
    mae = {100: 0.09, 200: 0.055, 300: 0.0416, 400: 0.044}
    validations = [
        {"step": s, "mae": m, "rmse": 1.3 * m, "psnr": 25 - 60 * m, "ssim": 0.9 - 5 * m, "peak": 8.1}
        for s, m in mae.items()
    ]
    return {
        "role": role, "model": {"enhance": "restormer"}.get(role, "pix2pixhd"),
        "options": {"preset": "tiny", "lambda_l1": 100.0},
        "scaling": {"sar": "fixed", "eo": "fixed"}, "bundle": "train/bundles/ab12", "selected": "last",
        "selected_step": 400, "pairs": 1234, "validation_pairs": 64, "batch": 8, "steps": 400,
        "phases": [{"start": 0, "stop": 400, "crop": 96, "batch": 8}], "workers": 2, "device": "cpu",
        "precision": "float32", "started": "2026-11-22T10:00:00+00:00", "ended": "2026-11-22T11:02:05+00:00",
        "seconds": 3725.0, "attempts": 1, "columns": ["SAR", "translated", "real"], "history": history,
        "validations": validations, "baselines": BASELINES, "best": {"step": 300, "mae": 0.0416}, "events": [],
        "cost": {"gpu_hours": 0.0, "cpu_hours": 2.07, "amount": 0.1234, "currency": "USD", "kwh": 0.0207, "kg_co2": 0.00203},
    } | changes  # fmt: skip


def enhancer(mae: float = 0.044) -> dict[str, Any]:
    levels = BASELINES | {"translated": {"mae": mae, "rmse": 0.06, "psnr": 22.4, "ssim": 0.6}}
    return record("enhance", columns=["SAR", "translated", "enhanced", "real"], baselines=levels)


def grid(step: int, columns: int, side: int) -> bytes:
    """Four rows: speckle, then waves that grow clearer with the step."""
    y, x = np.mgrid[0 : 4 * side, 0:side] / side
    waves = 60 * np.sin(9 * x + y) * np.cos(7 * y)
    sar = (90 + waves) * np.random.default_rng(step).gamma(4, 0.25, x.shape)
    pixels = np.hstack([sar, *[90 + waves * step / 400] * (columns - 2), 90 + waves])
    sink = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGB").save(sink, "PNG")
    return sink.getvalue()


def put(root: Path, made: dict[str, Any], steps: tuple[int, ...] = (), side: int = 32) -> None:
    folder = root / "train" / made["role"]
    (folder / "samples").mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(made))
    for step in steps:
        (folder / "samples" / f"{step:08d}.png").write_bytes(grid(step, len(made["columns"]), side))


def page_of(root: Path, *roles: str) -> Node:
    return safe(training.build(str(root), roles), roles)


def safe(page: bytes, roles: tuple[str, ...]) -> Node:
    """`harmless`, and a section a network, each in the navigation, without a number that is none, at a bearable size."""
    root = harmless(page)
    assert [n.attrs["id"] for n in root.all("section")] == list(roles)
    assert [n.attrs["href"] for n in root.one("nav").all("a")] == [f"#{r}" for r in roles]
    assert not re.search(r"\b(nan|none)\b", root.one("main").text, re.IGNORECASE)
    assert len(page) < 3_000_000
    return root


def facts(section: Node) -> dict[str, str]:
    return {d.one("dt").text: d.one("dd").text for d in section.one("dl").all("div")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training") / "amazon"
    events = [{"step": 40 * i, "event": "non_finite", "text": f"G_L1 at step {40 * i}"} for i in range(1, 4)]
    events.insert(1, {"step": 50, "event": "preempted", "text": "the machine was taken away"})
    put(root, record("coarse", events=[], validations=[], baselines={}, best=None))
    put(root, record(events=events), tuple(range(50, 401, 50)))
    put(root, enhancer(), (100,))
    (root / "train" / "coarse").rename(root / "train" / "coarse-0123456789ab")
    return root


@pytest.fixture(scope="module")
def page(run: Path) -> Node:
    return page_of(run, *FOLDERS)


def test_write_publishes_the_page(run: Path) -> None:
    assert training.write(str(run), ["translate"]) == "train/train.html"
    written = (run / "train" / "train.html").read_bytes()
    assert written == training.build(str(run), ["translate"])
    assert "amazon" in parse(written).one("title").text


def test_the_first_sentence(page: Node) -> None:
    assert page.one("section", id="translate").one("p", class_="verdict").text == (
        "pix2pixHD after 400 steps on 1,234 pairs: mean MAE 0.0440 on 64 held-out pairs, 12 % below the best trivial "
        "predictor (linear fit, 0.0500)."
    )
    assert page.one("section", id=FOLDERS[0]).one("p", class_="verdict").text == (
        "pix2pixHD after 400 steps on 1,234 pairs: not measured on held-out pairs."
    )


LINEAR = "the best trivial predictor (linear fit, 0.0500)"
ON = "on 1,234 pairs:"
VERDICTS: list[tuple[dict[str, Any], str]] = [
    (record(selected="best", selected_step=300),
     f"after 300 of 400 steps (its best checkpoint) {ON} mean MAE 0.0416 on 64 held-out pairs, 17 % below {LINEAR}."),
    (record(ended="", selected="best", steps=900),
     f"pix2pixHD, not done yet, after 400 of 900 steps {ON} mean MAE 0.0440 on 64 held-out pairs, 12 % below {LINEAR}."),
    (record(ended="", history=[], validations=[]),
     "not done yet, after 0 of 400 steps on 1,234 pairs: not measured on held-out pairs so far."),
    (record(validations=[{"step": 400, "mae": 0.06}]),
     f"0.0600 on 64 held-out pairs, 20 % above {LINEAR}: by this measure it knows no more than a trivial predictor."),
    (record(validations=[{"step": 400, "mae": 0.05}]), f"the same as {LINEAR}: nothing is gained over it."),
    (record(validations=[{"step": 400, "mae": 0.05}], baselines={"baseline_zero": {"mae": 0.0}}),
     "above the best trivial predictor (all zero, 0): by this measure it knows no more than a trivial predictor."),
    (record(baselines={}), "mean MAE 0.0440 on 64 held-out pairs."),
    (record(baselines={"baseline_mean": {"mae": None}}), "mean MAE 0.0440 on 64 held-out pairs."),
    (record(validations=[{"step": 300, "mae": 0.04}, {"step": 400, "mae": None}]),
     "after 300 of 400 steps on 1,234 pairs: mean MAE 0.0400"),
    (enhancer(0.055), "The translator's images alone score 0.0550 on these pairs: the enhancer takes off 20 %."),
    (enhancer(0.0352),
     f"12 % below {LINEAR}. The translator's images alone score 0.0352 on these pairs: the enhancer makes them 25 % worse."),
    (enhancer(0.044), "The translator's images alone score 0.0440 on these pairs: the enhancer changes nothing."),
]  # fmt: skip


@pytest.mark.parametrize(("made", "sentence"), VERDICTS, ids=range(len(VERDICTS)))
def test_the_sentence_is_honest(made: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    put(tmp_path, made)
    assert sentence in page_of(tmp_path, made["role"]).one("p", class_="verdict").text


def test_facts(page: Node, tmp_path: Path) -> None:
    shown = facts(page.one("section", id="translate"))
    expected = {
        "Trained on": "1,234 pairs, 64 held out", "Batch": "8", "Crop": "96 pixels square", "Workers": "2",
        "Device": "cpu, float32", "Time": "1 h 02 min", "Speed": "13.0 samples/s, median",
        "Share of the time, median": "93 % busy, 1.2 % waiting for data", "Cost": "0.12 USD, 2.07 CPU hours",
        "Energy, by hours and the power set": "0.0207 kWh, 0.00203 kg CO2",
        "Started": "2026-11-22 10:00 UTC", "Ended": "2026-11-22 11:02 UTC", "Weights kept": "last, step 400",
        "Bundle": "train/bundles/ab12", "Options": "preset tiny, lambda_l1 100.0", "Scaling": "sar fixed, eo fixed",
        "Unreadable samples replaced": "2",
    }  # fmt: skip
    assert {k: v.replace("\N{NO-BREAK SPACE}", " ") for k, v in shown.items()} == expected
    phases = [{"start": 0, "stop": 200, "crop": 64, "batch": 16}, {"start": 200, "stop": 400, "crop": 128, "batch": 8}]
    put(tmp_path, record(phases=phases, attempts=3, ended="", cost={"amount": None, "gpu_hours": 1.5}))
    shown = facts(page_of(tmp_path, "translate"))
    assert shown["Phases"] == "steps 0 to 200: crop 64, batch 16; steps 200 to 400: crop 128, batch 8"
    assert shown["Time"].endswith(", 3 attempts")
    assert shown["Ended"] == "not yet"
    assert shown["Cost"] == "1.50 GPU hours"
    assert not {"Crop", "Batch", "Weights kept"} & set(shown)


def cells(table: Node) -> list[list[str]]:
    return [[c.text for c in row.all("td")] for row in table.one("tbody").all("tr")]


def test_events_are_grouped(page: Node) -> None:
    table = page.one("section", id="translate").one("table", data_table="events")
    assert cells(table) == [
        ["non_finite", "40", "3", "G_L1 at step 40"], ["preempted", "50", "1", "the machine was taken away"],
    ]  # fmt: skip
    assert not page.one("section", id="enhance").all("table", data_table="events")


def test_the_table_of_validations(page: Node) -> None:
    table = page.one("section", id="translate").one("table", data_table="validation")
    assert cells(table) == [
        ["pix2pixHD, step 300 (best)", "0.0416", "0.0541", "22.50", "0.692"],
        ["pix2pixHD, step 400 (last)", "0.0440", "0.0572", "22.36", "0.680"],
        ["Linear fit to VV, VH", "0.0500", "0.0660", "22.30", "0.500"],
        ["Mean image", "0.0700", "0.0900", "20.50", "0.410"],
        ["All zero", "0.152", "0.170", "15.20", "0.0200"],
    ]
    assert [c.text for c in table.all("td", class_="best")] == ["0.0416", "0.0541", "22.50", "0.692"]
    rows = cells(page.one("section", id="enhance").one("table", data_table="validation"))
    assert rows[2] == ["Translator's image", "0.0440", "0.0600", "22.40", "0.600"]


def test_curves(page: Node) -> None:
    section = page.one("section", id="translate")
    measured = section.one("div", data_curves="validation").all("figure")
    assert [f.all("b")[0].text for f in measured] == ["MAE", "PSNR", "SSIM"]
    assert "0.0900 → 0.0440" in measured[0].text
    assert "off the axis: all zero 0.152" in measured[0].text
    assert all(f.one("svg") for f in measured)
    losses = section.one("div", data_curves="losses").all("figure")
    assert [f.one("b").text for f in losses] == list(LOSSES)
    assert "Losses and gradient norms" in [h.text for h in section.all("h3")]
    assert not page.one("section", id=FOLDERS[0]).all("div", data_curves="validation")


def test_grids(page: Node) -> None:
    """The newest and four more, evenly spaced from the first on, with the columns' names over the newest."""
    section = page.one("section", id="translate")
    shown = [f.one("figcaption").text for f in section.one("div", class_="grids").all("figure")]
    assert shown == ["Step 400 , the newest", "Step 50", "Step 150", "Step 250", "Step 300"]
    assert [s.text for s in section.one("div", class_="heads").all("span")] == ["SAR", "translated", "real"]
    assert all(i.attrs["src"].startswith("data:image/jpeg;base64,") for i in section.all("img"))
    assert len(page.one("section", id="enhance").all("img")) == 1
    assert page.one("section", id=FOLDERS[0]).one("h2").text == "Coarse translator, half resolution: pix2pixHD"
    assert not page.one("section", id=FOLDERS[0]).all("img")


def test_missing_and_broken_records_are_named(tmp_path: Path) -> None:
    broken = {
        "torn": b'{"role": "tr', "array": b"[1]", "lists": b'{"history": 3}', "line": b'{"history": [{"step": null}]}',
        "event": b'{"events": ["x"]}', "baseline": b'{"baselines": {"a": 3}}', "binary": b"\xff\xfe\x00",
    }  # fmt: skip
    for name, data in broken.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "record.json").write_bytes(data)
    put(tmp_path, record())
    root = page_of(tmp_path, *broken, "coarse", "translate")
    troubles = {
        s.attrs["id"]: s.one("p", class_="trouble").text for s in root.all("section") if s.attrs["id"] != "translate"
    }
    assert troubles.keys() == {*broken, "coarse"}
    assert root.one("section", id="coarse").one("h2").text == "Coarse translator, half resolution"
    for name, said in troubles.items():
        assert said.startswith(f"train/{name}/record.json "), said
    assert "history should be a list, not int" in troubles["lists"]
    assert "history[0] is no object with a step" in troubles["line"]
    assert "not trained here" in troubles["coarse"]
    assert "0.0440" in root.one("section", id="translate").text
    assert "No network was trained" in page_of(tmp_path).text


def test_an_empty_record_and_one_of_nulls(tmp_path: Path) -> None:
    put(tmp_path, {"role": "translate", "columns": []})
    nulls = dict.fromkeys(record(), None)
    put(tmp_path, nulls | {"role": "coarse", "columns": []})
    page_of(tmp_path, "translate", "coarse")


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    """Null, NaN, infinity and numbers beyond a float in every place where a number stands."""
    bad: list[Any] = [None, float("nan"), float("inf"), -float("inf"), 10**400, "x", True, 1e300]
    line = record()["history"][0]
    history = [dict.fromkeys(line, v) | {"step": i, "fine": float(i), "never": None} for i, v in enumerate(bad)]
    validations = [dict.fromkeys(("mae", "rmse", "psnr", "ssim"), v) | {"step": i} for i, v in enumerate(bad)]
    baselines = {f"baseline_{i}": dict.fromkeys(("mae", "rmse", "psnr", "ssim"), v) for i, v in enumerate(bad)}
    baselines |= {"baseline_linear": {"mae": float("nan")}, "baseline_zero": {"mae": 10**400}}
    made = record(history=history, validations=validations, baselines=baselines, best={"step": 2, "mae": None})
    put(tmp_path, made)
    section = page_of(tmp_path, "translate").one("section", id="translate")
    losses = {f.one("b").text: f.text for f in section.one("div", data_curves="losses").all("figure")}
    assert losses["never"] == "never never finite"
    assert "0 → 7" in losses["fine"]
    for value in bad:
        odd = record(
            history=[],
            validations=[],
            **dict.fromkeys(("seconds", "pairs", "steps", "attempts", "workers", "batch", "selected_step"), value),
        )
        odd |= {"cost": {"amount": value, "cpu_hours": value}, "phases": [dict.fromkeys(("start", "stop"), value)]}
        (tmp_path / "train" / "translate" / "record.json").write_text(json.dumps(odd))
        page_of(tmp_path, "translate").one("p", class_="verdict")


def test_hostile_words_and_secrets(tmp_path: Path) -> None:
    events = [
        {"step": 1, "event": EVIL, "text": EVIL},
        {"step": 2, "event": "hang", "text": "s3://me:word@host/k?sig=1"},
    ]
    made = record(
        model=EVIL, options={EVIL: EVIL}, scaling={EVIL: EVIL}, device=EVIL, columns=[EVIL], bundle=EVIL, started=EVIL,
        selected=EVIL, events=events, baselines={EVIL: {"mae": 0.01}}, history=[{"step": 1, EVIL: 2.0}, {"step": 2, EVIL: 1.0}],
    )  # fmt: skip
    put(tmp_path, made, (1,))
    root = page_of(tmp_path, "translate")
    assert "{{ 7 * 7 }}" in root.one("main").text
    assert "s3://***@host/k?***" in root.one("table", data_table="events").text
    assert "me:word" not in root.text


def test_a_broken_grid_is_named(tmp_path: Path) -> None:
    put(tmp_path, record(), (100,))
    (tmp_path / "train" / "translate" / "samples" / "00000200.png").write_bytes(b"\x89PNG torn")
    (tmp_path / "train" / "translate" / "samples" / "notes.txt").write_bytes(b"")
    root = page_of(tmp_path, "translate")
    assert "unreadable picture" in root.one("div", class_="none").text
    assert len(root.all("img")) == 1


def test_a_heavy_training_stays_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many lines, losses and events take no more than a third of what the pictures leave; then earlier grids go."""
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "PNG", compress_level=0)
    long = [{"step": s} | {f"loss{i}": 1 + math.sin(s * i) for i in range(20)} for s in range(1000)]
    seen = [{"step": s, "mae": 0.1 + 0.01 * math.sin(s), "psnr": 20 + math.sin(s)} for s in range(900)]
    events = [{"step": i, "event": f"kind{i}", "text": "x" * 5000} for i in range(500)]
    put(tmp_path, record(history=long, validations=seen, events=events))
    monkeypatch.setattr(training, "PICTURES", 0)
    bare = training.build(str(tmp_path), ["translate"])
    monkeypatch.undo()
    assert len(bare) < (3_000_000 - training.PICTURES) / 3
    for role in ("translate", "enhance"):
        (tmp_path / "train" / role / "samples").mkdir(parents=True, exist_ok=True)
        for step in range(1, 9):
            (tmp_path / "train" / role / "samples" / f"{step:08d}.png").write_bytes(sink.getvalue())
    root = page_of(tmp_path, "translate", "enhance")
    section = root.one("section", id="translate")
    assert len(section.one("table", data_table="events").one("tbody").all("tr")) == 16
    assert "484 more kinds" in section.text
    assert "4 more in" in section.text
    newest, *earlier = section.one("div", class_="grids").all("figure")
    assert newest.all("img")
    assert any("left out to keep the page light" in f.text for f in earlier)
    assert "left out" in root.one("footer").text


def test_the_validation_curve() -> None:
    levels = {"baseline_linear": 0.05, "baseline_mean": 0.07, "baseline_zero": 0.9}
    svg, beyond = plots.validation_curve([100, 200, 300], [0.08, math.nan, 0.04], levels, 300, "x")
    root = checked(svg)
    assert beyond == ("baseline_zero",)
    assert "step" in words(root)
    assert svg.count("var(--s-train)") == svg.count("var(--s-val)") == 1
    assert "var(--s-guard)" not in svg
    assert "stroke: currentColor" in svg  # the ring
    assert "stroke: currentColor" not in plots.validation_curve([1, 2], [0.1, 0.2], {}, None, "x")[0]
    assert plots.validation_curve([100, 200, 300], [0.08, math.nan, 0.04], levels, 300, "x")[0] == svg
    checked(plots.validation_curve([5], [0.0], {"baseline_zero": 0.0}, None, "y")[0])
    checked(plots.validation_curve(range(5000), [1.0] * 5000, {"translated": 1.0}, 4999, "z")[0])


@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1300, False), (1300, True)])
def test_the_page_in_a_browser(run: Path, tmp_path: Path, browser: Browser, width: int, dark: bool) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(training.build(str(run), FOLDERS))
    assert browser.fits(page, width, dark) == 6
