"""Two runs side by side: every figure against plain numpy, missing and broken parts, hostile words, a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from cdp import Browser
from dom import Node, harmless
from test_report_plots import checked, words
from test_report_robust import EVIL

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import AccessDenied, Sar2EoError
from sar2eo_dist.evaluation.compare import paired
from sar2eo_dist.report import against, compare

PAIRS = 48
METHODS = {"translated": 0.05, "enhanced": 0.04, "baseline_linear": 0.06, "baseline_zero": 0.15, "nearest_date": 0.02}
HIGHER = ("psnr", "ssim", "ms_ssim")


def keys(i: int) -> dict[str, str]:
    return {"sar_key": f"s1/-55.{i:02d}_-4.39/2021-08-05", "eo_key": f"s2/-55.{i:02d}_-4.39/2021-08-07"}


def rows(gain: float, seed: int, pairs: range) -> list[dict[str, Any]]:
    """Figures of a run that is `gain` better than the formula; of a pair they depend on its number and the seed alone."""
    out = []
    for i in pairs:
        rng, own = np.random.default_rng(i), np.random.default_rng((seed, i))
        level = rng.uniform(0.7, 1.5)
        for method, mean in METHODS.items():
            network = method in ("translated", "enhanced")
            mae = mean * level - (gain + own.normal(0, 0.004) if network else 0.0)
            figures = {"mae": mae, "rmse": 1.3 * mae, "psnr": 26 - 90 * mae, "ssim": 0.9 - 6 * mae, "lpips": 4 * mae}
            figures |= {"ms_ssim": 0.95 - 5 * mae, "sam": 2 * mae, "challenge_mse": mae**2, "challenge_mae": 0.9 * mae}
            base = {"rank": i, "place": f"-55.{i // 2:02d}_-4.39", "days": i % 7, "split": "val", "sample": ""}
            out.append(keys(i) | base | {"method": method} | figures)
    return out


def scores(pairs: int, measured: int, value: float) -> dict[str, Any]:
    frechet = {"name": "fd_efficientnet_lite0", "value": value, "low": value - 4, "high": value + 4, "n": measured,
               "kid": value / 9, "kid_n": measured}  # fmt: skip
    challenge = {"multiearth_mse_sum": value / 50, "mae_min": value / 900, "queries": 12, "images": 31}
    methods = [{"method": "enhanced", "frechet": frechet, "challenge": challenge}]
    return {"split": "val", "pairs": pairs, "measured": measured, "dn": 3000, "methods": methods, "groups": {}}


def make(run: Path, gain: float, seed: int, pairs: range, shown: tuple[int, ...], **settings: Any) -> Path:
    tree = {"run": {"out": str(run)}, "train": {"translate": {"steps": 4000}}} | settings
    cfg = Config.model_validate(tree)
    parts: dict[str, bytes] = {
        "config.yaml": yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False).encode(),
        "evaluate/metrics.parquet": fake_run.table(rows(gain, seed, pairs)),
        "evaluate/scores.json": json.dumps(scores(len(pairs), len(pairs), 90.0 - 900 * gain)).encode(),
    }
    for stage in ("collect", "shard", "train", "evaluate"):
        parts[f"{stage}/summary.json"] = json.dumps(fake_run.SUMMARIES[stage] | {"digest": "ab" * 32}).encode()
    record = {"steps": 4000, "seconds": 3725.0 + seed, "cost": {"gpu_hours": 1.03, "amount": 2.5, "currency": "USD"}}
    parts["train/translate/record.json"] = json.dumps(record).encode()
    samples = []
    for i in shown:
        true = fake_run.scene(0.7 * i, size=64)
        looks = {"sar": fake_run._radar(true), "true": true, "enhanced": fake_run._blurred(true, 2 + 2 * seed)}
        paths = {name: f"evaluate/samples/{i}_{name}.png" for name in looks}
        parts |= {paths[name]: fake_run.picture(bands) for name, bands in looks.items()}
        samples.append(keys(i) | {"days": 2, "why": "spread", "images": paths, "mae": {}})
    parts["evaluate/samples.json"] = json.dumps(samples).encode()
    for path, data in parts.items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(data)
    return run


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """This run: pairs 0 to 39, better by 0.008; the other: pairs 8 to 47."""
    other_settings = {"train": {"translate": {"steps": 2000, "lr": 1e-3}, "seed": 4}, "resources": {"workers": 3}}
    return (
        make(tmp_path / "better", 0.008, 1, range(40), tuple(range(6, 20))),
        make(tmp_path / "older", 0.0, 2, range(8, PAIRS), tuple(range(10, 24)), **other_settings),
    )


def page_of(this: Path, other: Path, pictures: str = "") -> tuple[Node, str]:
    path, said = compare.write(str(this), str(other), pictures)
    assert path == "evaluate/against.html"
    data = (this / path).read_bytes()
    assert len(data) < 5_000_000
    return harmless(data), said


def expected(metric: str, method: str = "enhanced") -> tuple[np.ndarray, np.ndarray]:
    """Figures of the shared pairs in both runs, by the formula."""
    a, b = ([r[metric] for r in rows(g, s, range(8, 40)) if r["method"] == method] for g, s in ((0.008, 1), (0.0, 2)))
    return np.array(a), np.array(b)


def taken(root: Node, name: str) -> list[list[str]]:
    """A CSV of the page."""
    (link,) = [n for n in root.all("a") if n.attrs.get("download") == name]
    return list(csv.reader(io.StringIO(base64.b64decode(link.attrs["href"].partition(",")[2]).decode())))


def test_every_figure_against_numpy(two: tuple[Path, Path]) -> None:
    root, said = page_of(*two)
    a, b = expected("mae")
    p = paired(a, b, [f"-55.{i // 2:02d}_-4.39" for i in range(8, 40)])
    verdict = root.one("p", class_="verdict").text
    assert verdict == said.splitlines()[0].replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
    assert verdict.startswith(f"This run is better on {100 * np.mean(a < b):.0f} % of 32 shared pairs: mean MAE ")
    assert f"mean MAE {a.mean():.4f} against {b.mean():.4f}, difference {(a - b).mean():.4f}" in verdict
    assert f"(95 % {p.low:.4f} to {p.high:.4f})" in verdict
    assert "8 pairs of this run and 8 of the other one" in root.one("div", class_="banner").text
    table = root.one("table", data_method="enhanced")
    assert [r.attrs["data-metric"] for r in table.one("tbody").all("tr")] == list(against.METRICS)
    for metric in against.METRICS:
        one, two_ = expected(metric)
        cells = table.one("tr", data_metric=metric).all("td")
        digits = 4 if metric == "psnr" else 3
        assert [float(c.text) for c in cells[1:3]] == pytest.approx(
            [one.mean(), two_.mean()], rel=0.6 * 10 ** (1 - digits)
        )
        assert "best" in cells[1].attrs["class"]
        assert "best" not in cells[2].attrs["class"]
        share = np.mean(one > two_ if metric in HIGHER else one < two_)
        assert cells[4].text == f"{100 * share:.0f} %"
        assert cells[5].text == "32"
    baseline = root.one("table", data_method="baseline_zero")
    assert not baseline.all("td", class_="best")
    assert baseline.one("tr", data_metric="mae").all("td")[4].text == "0 % 100 % equal"
    csv_rows = taken(root, "metrics_enhanced.csv")
    found = dict(zip(csv_rows[0], csv_rows[1], strict=True))
    assert float(found["difference"]) == (a - b).mean()
    assert (float(found["low"]), float(found["high"])) == (p.low, p.high)
    head, *pairs = taken(root, "pairs.csv")
    assert head == ["sar_key", "eo_key", "mae_this", "mae_other", "difference"]
    assert len(pairs) == 32
    best = int(np.argmin(a - b))
    assert pairs[0][:2] == list(keys(8 + best).values())
    assert float(pairs[0][4]) == (a - b).min()


def test_the_words_for_the_terminal(two: tuple[Path, Path]) -> None:
    _, said = page_of(*two)
    lines = said.splitlines()
    assert 6 <= len(lines) <= 10
    assert lines[1].startswith("Mind: Not compared")
    assert [line.split()[0] for line in lines[3:7]] == ["MAE", "RMSE", "PSNR,", "SSIM"]
    assert lines[7:] == [
        "train.translate.steps: 4000 here, 2000 there", "train.translate.lr: 0.0002 here, 0.001 there",
        "1 more setting differs",
    ]  # fmt: skip
    same = page_of(two[0], two[0])[1].splitlines()
    assert 6 <= len(same) <= 10
    assert same[0].startswith("Both runs are the same on all 40 shared pairs")
    assert same[-1] == "no setting that changes results differs"


def test_settings_sets_and_cost(two: tuple[Path, Path]) -> None:
    root, _ = page_of(*two)
    settings = [[c.text for c in r.all("td")] for r in root.one("table", data_table="settings").one("tbody").all("tr")]
    assert settings == [
        ["train.translate.steps", "4000", "2000"], ["train.translate.lr", "0.0002", "0.001"], ["train.seed", "0", "4"],
    ]  # fmt: skip
    neutral = [r.all("td")[0].text for r in root.one("table", data_table="neutral").one("tbody").all("tr")]
    assert neutral == ["run.out", "resources.workers"]
    assert [r[0] for r in taken(root, "settings.csv")[1:]] == [r[0] for r in settings] + neutral
    sets = root.one("table", data_table="sets").text
    assert "82.8 (95 % 78.8 to 86.8; 40 pairs)" in sets
    assert "90.0 (95 % 86.0 to 94.0; 40 pairs)" in sets
    cost = root.one("table", data_table="cost").text
    assert "4,000 steps, 1 h 02 min, 1.03 GPU hours, 2.50 USD" in cost
    assert "system Linux" in cost


def test_settings_say_what_is_not_set_and_no_secret() -> None:
    this = {
        "run": {"out": "a"},
        "data": {"s1": "s3://me:secret@bucket/x"},
        "train": {"lr": 1e-4},
        "cost": {"gpu_hour": 1},
    }
    other = {"run": {"out": "b"}, "data": {"s1": "https://x/y?sig=secret"}, "grade": {"cell": 32}}
    found = compare.config_diff(this, other)
    assert found == [
        ("data.s1", '"s3://***@bucket/x"', '"https://x/y?***"'), ("train.lr", "0.0001", "not set"),
        ("grade.cell", "not set", "32"), ("run.out", '"a"', '"b"'), ("cost.gpu_hour", "1", "not set"),
    ]  # fmt: skip
    long = compare.config_diff({"a": "x" * 100_000}, {"a": {"b": "?" * 100_000}})
    assert max(len(w) for row in long for w in row) < 2 * compare.LONG


def test_the_pictures_of_the_most_changed_pairs(two: tuple[Path, Path]) -> None:
    root, _ = page_of(*two)
    a, b = expected("mae")
    order = np.argsort(a - b)
    tables = root.all("table", data_table="changes")
    improved, worsened = tables[:2]
    first = improved.one("tbody").all("tr")[0].text
    assert first.startswith(keys(8 + int(order[0]))["sar_key"])
    assert len(improved.one("tbody").all("tr")) == compare.SHOWN
    assert worsened.one("tbody").all("tr")[0].text.startswith(keys(8 + int(order[-1]))["sar_key"])
    assert len(worsened.one("tbody").all("tr")) == min(compare.SHOWN, int((a > b).sum()))
    for sample in root.all("div", class_="sample"):
        i = int(re.search(r"s1/-55\.(\d+)_", sample.text)[1])
        assert [f.one("b").text for f in sample.all("figure")] == ["SAR", "Other run", "This run", "True"]
        shown = [bool(f.all("img")) for f in sample.all("figure")]
        assert shown == [True, 10 <= i < 24, 6 <= i < 20, True], i
    assert any("no picture of this pair" in s.text for s in root.all("div", class_="sample"))


def test_pictures_that_were_made_for_it(two: tuple[Path, Path]) -> None:
    pair = keys(8 + int(np.argmin(np.subtract(*expected("mae")))))
    folder = two[0] / "evaluate/against"
    folder.mkdir()
    names = {n: f"evaluate/against/{n}.png" for n in ("sar", "true", "this", "other")}
    for path in names.values():
        (two[0] / path).write_bytes(fake_run.picture(fake_run.scene(2.0, size=32)))
    (folder / "pictures.json").write_text(json.dumps([pair | {"images": names}]))
    root, _ = page_of(*two, "evaluate/against/pictures.json")
    first = root.all("div", class_="sample")[0]
    assert pair["sar_key"] in first.text
    assert len(first.all("img")) == 4
    for text in (b"{", b"[3]", b'[{"images": {"this": "../../x.png", "sar": 3}}]'):
        (folder / "pictures.json").write_bytes(text)
        page_of(*two, "evaluate/against/pictures.json")
    root, _ = page_of(*two, "evaluate/nowhere.json")
    assert "evaluate/nowhere.json no such file" in root.text


def changed(run: Path, path: str, edit: Callable[[Any], Any]) -> None:
    """A part of a run folder, parsed, edited and written back."""
    target = run / path
    if path.endswith(".parquet"):
        target.write_bytes(fake_run.table(edit(pq.read_table(target).to_pylist())))
    elif path.endswith(".yaml"):
        target.write_text(yaml.safe_dump(edit(yaml.safe_load(target.read_text()))))
    else:
        target.write_text(json.dumps(edit(json.loads(target.read_text()))))


def test_other_units_are_said_loudly_and_nothing_is_marked(two: tuple[Path, Path]) -> None:
    changed(two[1], "config.yaml", lambda c: c | {"scaling": c["scaling"] | {"eo": "minmax"}})
    root, said = page_of(*two)
    assert (
        "Not comparable. The units differ: scaling.eo is fixed here and minmax there"
        in root.one("div", role="alert").text
    )
    assert said.startswith("As far as they can be compared at all, this run is better")
    assert "\nNot comparable: The units differ" in said
    assert not re.search("better$|worse$", said, re.MULTILINE)
    assert not root.all("td", class_="best")
    assert "0.01 is 30 DN" not in root.text


def test_other_truths_training_pairs_stores_and_gaps_are_said(two: tuple[Path, Path]) -> None:
    def edit(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for r in table:
            r["split"] = "train"
            if r["method"] == "baseline_zero" and r["rank"] in (10, 11):
                r["mae"] += 0.01
            if r["method"] == "enhanced" and r["rank"] in (20, 21, 22):
                r["mae"] = None
        return table

    changed(two[1], "evaluate/metrics.parquet", edit)
    changed(two[1], "shard/summary.json", lambda s: s | {"digest": "cd" * 32})
    changed(two[0], "evaluate/scores.json", lambda s: s | {"pairs": 43})
    root, said = page_of(*two)
    loud, mild = (n.text for n in root.all("div", class_="banner"))
    assert "truths differ on 2 shared pairs" in loud
    assert "other run was measured on its training pairs" in loud
    assert "digest abababab here, cdcdcdcd there" in mild
    assert "This run measured 40 of 43 pairs" in mild
    assert "of 29 of 32 shared pairs" in said
    assert "no figure: 0 here, 3 there" in root.one("table", data_method="enhanced").text


def test_verdicts_whichever_way_it_goes() -> None:
    places = [f"p{i}" for i in range(50)]
    rng = np.random.default_rng(0)
    b = rng.normal(0.05, 0.01, 50)
    worse = compare.verdict(paired(b + 0.004 + rng.normal(0, 0.002, 50), b, places), 50)
    assert re.match(r"This run is worse on \d+.% of 50 shared pairs: mean MAE", worse)
    nothing = compare.verdict(paired(b + np.tile([0.001, -0.001], 25), b, places), 50)
    assert nothing.startswith("No difference can be told, for the interval holds 0. This run is better on 50")
    skewed = np.where(np.arange(50) % 5, 0.001, -0.03)
    mean = compare.verdict(paired(b + skewed, b, places), 60)
    assert re.match(r"This run is better in the mean, though only on 20.% of 50 of 60 shared pairs: mean MAE", mean)
    alone = compare.verdict(paired(b - 0.001, b, ["p"] * 50), 50)
    assert "one place" in alone
    assert "no interval" in alone
    assert "none of 3 shared pairs" in compare.verdict(paired(np.full(3, np.nan), np.ones(3), ["a"] * 3), 3)


def test_what_cannot_be_compared_is_an_error(two: tuple[Path, Path], tmp_path: Path) -> None:
    for sides in ((two[0], tmp_path / "none"), (tmp_path / "none", two[0])):
        with pytest.raises(Sar2EoError, match=r"run jobs/evaluate\.py there first: .*none/evaluate/metrics\.parquet"):
            compare.write(*map(str, sides))
    apart = make(tmp_path / "apart", 0.0, 3, range(60, 70), ())
    with pytest.raises(Sar2EoError, match=r"no shared pair: 40 .*better.* 10 others in .*apart"):
        compare.write(str(two[0]), str(apart))
    good = (two[1] / "evaluate/metrics.parquet").read_bytes()
    for bad in (b"", b"PAR1torn", good[:-9], fake_run.table([{"sar_key": "a", "eo_key": "b", "method": "translated"}])):
        (two[1] / "evaluate/metrics.parquet").write_bytes(bad)
        with pytest.raises(Sar2EoError, match=r"broken, run jobs/evaluate\.py there again: .*older"):
            compare.write(str(two[0]), str(two[1]))
    for edit, message in (
        (lambda t: [*t, t[0]], "a pair is there twice for translated"),
        (lambda t: [r for r in t if r["method"].startswith("baseline")], "no network was measured"),
    ):
        (two[1] / "evaluate/metrics.parquet").write_bytes(good)
        changed(two[1], "evaluate/metrics.parquet", edit)
        with pytest.raises(Sar2EoError, match=message):
            compare.write(str(two[0]), str(two[1]))
    assert not (two[0] / "evaluate/against.html").exists()


PARTS = (
    "config.yaml", "evaluate/scores.json", "evaluate/samples.json", "shard/summary.json", "train/summary.json",
    "train/translate/record.json",
)  # fmt: skip


def test_missing_and_broken_parts_are_named(two: tuple[Path, Path]) -> None:
    for bad in (b"[1", b'{"methods": [3]}', b'["x"]', b'{"methods": [{"frechet": 7}]}'):
        for path in PARTS:
            (two[1] / path).write_bytes(bad)
        root, said = page_of(*two)
        assert "shared pairs" in said
        troubles = [n.text for n in root.all("p", class_="trouble")]
        for path in PARTS if bad == b"[1" else ():
            assert any(t.startswith(f"In the other run: {path}") for t in troubles), path
    for path in PARTS:
        (two[1] / path).unlink()
    root, said = page_of(*two)
    assert 6 <= len(said.splitlines()) <= 10
    assert "Whether both scale the truth alike is unknown" in root.text
    assert "no digest" in root.text
    assert "not there: measures of whole sets are unknown" in root.text


def test_one_network_and_old_columns(two: tuple[Path, Path]) -> None:
    """The other run has no enhancer and was measured before there were places and further metrics."""
    known = ("sar_key", "eo_key", "method", "mae", "rmse", "psnr", "ssim")
    old = lambda t: [{k: r[k] for k in known} for r in t if r["method"] != "enhanced"]  # noqa: E731
    changed(two[1], "evaluate/metrics.parquet", old)
    root, _ = page_of(*two)
    assert root.one("section", id="metrics").one("h2").text == "Metrics: Enhanced against translated"
    table = root.all("table", data_table="metrics")[0]
    assert [r.attrs["data-metric"] for r in table.one("tbody").all("tr")] == ["mae", "rmse", "psnr", "ssim"]
    assert "no column place" in root.text
    assert "Measured in this run alone: enhanced" in root.text
    assert len(root.all("table", data_method="translated")) == 1


def test_hostile_words_and_secrets(two: tuple[Path, Path]) -> None:
    def edit(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [r | {"sar_key": "=cmd|" + r["sar_key"] + EVIL, "place": EVIL,
                     "method": EVIL if r["method"] == "nearest_date" else r["method"]} for r in table]  # fmt: skip

    for run in two:
        changed(run, "evaluate/metrics.parquet", edit)
        changed(run, "evaluate/samples.json",
                lambda t: [s | {"sar_key": "=cmd|" + s["sar_key"] + EVIL} for s in t])  # fmt: skip
        changed(run, "train/summary.json", lambda s: s | {"machine": {"system": EVIL + "s3://me:secret@x/y"}})
    sets = [{"method": EVIL, "frechet": {"name": EVIL, "value": 3}, "challenge": {"mae_min": 1, "queries": EVIL}}]
    changed(two[1], "evaluate/scores.json", lambda s: s | {"methods": sets})
    changed(two[1], "config.yaml", lambda c: c | {EVIL: EVIL, "data": {"s1": "s3://me:secret@bucket/a"}})
    (two[0] / "evaluate/samples" / "x.png").write_bytes(b"no picture")
    root, _ = page_of(*two)
    page = (two[0] / "evaluate/against.html").read_text()
    assert "<script" not in page
    assert "me:secret" not in page
    assert root.all("div", class_="sample")
    assert taken(root, "pairs.csv")[1][0].startswith("'=cmd|s1/")
    assert "me:secret" not in json.dumps(taken(root, "settings.csv"))


def test_the_same_bytes_twice_and_a_bearable_size(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    compare.write(*map(str, two))
    once = (two[0] / compare.FILE).read_bytes()
    compare.write(*map(str, two))
    assert (two[0] / compare.FILE).read_bytes() == once
    monkeypatch.setattr(compare, "PICTURES", 40_000)
    root, _ = page_of(*two)
    assert "left out to keep this page light" in root.one("footer").text


def test_a_refusing_store_is_no_missing_run(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> bytes:
        raise AccessDenied(uri, "access denied")

    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(AccessDenied):
        compare.write(*map(str, two))


def test_plots() -> None:
    rng = np.random.default_rng(2)
    b = rng.uniform(0.02, 0.1, 4000)
    p = paired(b + rng.normal(-0.004, 0.01, 4000), b, [f"p{i % 90}" for i in range(4000)])
    svg = against.scatter(p)
    root = checked(svg)
    assert "MAE of this run" in words(root)
    assert against.POINTS - 5 <= svg.count("<use") - len(re.findall("<use[^>]*var.--muted", svg)) <= against.POINTS + 20
    assert against.scatter(p) == svg
    checked(against.scatter(paired(b, b, ["p"] * 4000)))
    checked(against.scatter(paired(b[:1], b[:1], ["p"])))
    for lower, left in ((True, "var(--kept)"), (False, "var(--dropped)")):
        bars, beyond = against.difference_bars(np.array([-0.3, -0.2, -0.2, -1e-9]), lower)
        assert f"fill: {left}" in bars
        assert ("var(--kept)" in bars) + ("var(--dropped)" in bars) == 1
        assert beyond == 0
        checked(bars)
    many = np.concatenate([rng.normal(0, 1, 5000), [900.0]])
    assert against.difference_bars(many, True)[1] >= 1
    checked(against.difference_bars(np.array([1e-12]), True)[0])


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1300, False), (1300, True)])
def test_the_page_in_a_browser(
    two: tuple[Path, Path], tmp_path: Path, browser: Browser, width: int, dark: bool
) -> None:
    compare.write(*map(str, two))
    page = tmp_path / "page.html"
    page.write_bytes((two[0] / compare.FILE).read_bytes())
    assert browser.fits(page, width, dark) >= 8
