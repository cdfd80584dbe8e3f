"""The page: sections and numbers of a full run, missing and broken parts, hostile text, weight, nothing external."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pytest
import yaml

from sar2eo_dist import report, sources, storage
from sar2eo_dist.errors import AccessDenied, Unavailable
from sar2eo_dist.records import Rejected, Verdict
from sar2eo_dist.report import images

SECTIONS = ("run", "kept", "scores", "pairs", "training", "mosaic", "samples", "metrics", "quarantined", "config")
VOID = {"meta", "link", "img", "input", "br"}
EVIL = '<script>alert("x")</script><img src="http://evil.example/a.png" onerror=alert(1)>\'"--></style>{{ 7 * 7 }}'


@dataclass
class Node:
    tag: str
    attrs: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str = "", **attrs: str) -> list[Node]:
        """Descendants by tag and attributes (`data_x` for data-x, `class_` for one of its classes)."""

        def fits(n: Node) -> bool:
            wanted = {k.rstrip("_").replace("_", "-"): v for k, v in attrs.items()}
            named = set(n.attrs.get("class", "").split()) >= set(wanted.pop("class", "").split())
            return named and (not tag or n.tag == tag) and all(n.attrs.get(k) == v for k, v in wanted.items())

        return [n for n in self.walk() if n is not self and fits(n)]

    def one(self, tag: str = "", **attrs: str) -> Node:
        (found,) = self.all(tag, **attrs)
        return found

    @property
    def text(self) -> str:
        words = " ".join(c if isinstance(c, str) else c.text for c in self.children)
        return re.sub(r"\s+", " ", words).strip().replace("\N{MINUS SIGN}", "-")


class Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {k: v or "" for k, v in attrs})
        self.stack[-1].children.append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.stack[-1].children.append(Node(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.stack[-1].tag, f"</{tag}> closes <{self.stack[-1].tag}>"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.stack[-1].children.append(data)


def parse(page: bytes) -> Node:
    parser = Parser()
    parser.feed(page.decode())
    parser.close()
    assert len(parser.stack) == 1, [n.tag for n in parser.stack]
    return parser.stack[0]


def safe(page: bytes) -> Node:
    """Parse, and check what every page must keep: no script, no handler, nothing fetched, no id twice."""
    root = parse(page)
    for n in root.walk():
        assert n.tag not in {"script", "iframe", "object", "embed", "base"}
        assert not [a for a in n.attrs if a.startswith("on")], n
        for a in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert n.attrs.get(a, "#").startswith(("#", "data:")), n.attrs
        assert "url(" not in n.attrs.get("style", "").replace("url(#", "")
    assert "url(" not in root.one("style").text
    assert "@import" not in root.one("style").text
    assert "default-src 'none'" in root.one("meta", http_equiv="Content-Security-Policy").attrs["content"]
    ids = [n.attrs["id"] for n in root.walk() if "id" in n.attrs]
    assert len(ids) == len(set(ids))
    assert [n.attrs["id"] for n in root.all("section")] == list(SECTIONS)
    assert {n.attrs["href"][1:] for n in root.one("nav").all("a")} <= set(ids)
    assert len(page) < 10_000_000
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.make(tmp_path_factory.mktemp("report"), 64)


@pytest.fixture(scope="module")
def full(run: Path) -> bytes:
    return report.build(str(run))


@pytest.fixture(scope="module")
def page(full: bytes) -> Node:
    return safe(full)


@pytest.fixture
def some(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run folder with the named parts of the full one; its tiles are read without files."""
    eo = sources.EO(fake_run.scene(1.0).astype(np.uint16), None)
    monkeypatch.setattr(sources, "read_eo", lambda ref: eo)

    def copy(*parts: str) -> Path:
        for part in parts:
            source, target = run / part, tmp_path / "run" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (tmp_path / "run").mkdir(exist_ok=True)
        return tmp_path / "run"

    return copy


def test_run_summary(page: Node) -> None:
    assert "partial" in page.one("h1").text
    rows = {r.attrs["data-stage"]: r for r in page.one("section", id="run").all("tr") if "data-stage" in r.attrs}
    assert list(rows) == ["synthesise", "collect", "shard", "train", "translate", "evaluate"]
    assert "4 of 4, 4 found done" in rows["collect"].text
    assert "100 S2 tiles" in rows["collect"].text
    assert "none" not in rows["collect"].text  # a count of 0 says nothing
    for words in ("1 min 15 s", "3.2 s", "2.0 MB", "1.5 MB"):
        assert words in rows["collect"].text
    assert "1 h 02 min" in rows["train"].text
    assert "1.0 MB" in rows["train"].text
    assert "partial" in rows["translate"].text
    shares = [float(i.attrs["style"].split(":")[1]) for i in page.one("div", class_="time").all("i")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert shares[3] == pytest.approx(3725 / (48 + 75.4 + 21 + 3725 + 130 + 40), abs=1e-3)
    assert "2026-11-22 08:00 UTC to 2026-11-22 13:05 UTC" in page.one("header").text
    assert "cpus 2, system Linux, python 3.11.7" in page.one("header").text


def test_synthetic_is_called_synthetic(page: Node) -> None:
    assert "synthetic world (seed 7), not from a satellite" in page.one(id="synthetic").text
    assert "Copernicus" not in page.one("footer").text


def test_counts_by_reason(page: Node) -> None:
    optical = page.one("div", data_sensor="s2")
    counts = {n.attrs["data-reason"]: int(n.text) for n in optical.all("dd") if "data-reason" in n.attrs}
    assert counts == fake_run.ENDS | {"bad_date": fake_run.UNUSABLE}
    assert list(counts)[:3] == ["", "bad_date", "unreadable"]  # the order in which tiles meet them
    assert "46 of 109 kept" in optical.text
    assert "too close to the cloud set" in optical.text
    radar = page.one("div", data_sensor="s1")
    assert "39 of 40 kept" in radar.text
    assert "of 109 optical tiles kept (42 %)" in page.one("header").text


def test_thumbnails_by_reason(page: Node) -> None:
    groups = {g.attrs["data-group"]: g for g in page.all("div", class_="group")}
    assert set(groups) == set(fake_run.ENDS)
    for reason, group in groups.items():
        shown = group.all("figure")
        assert len(shown) == min(6, fake_run.ENDS[reason])
        pictures = group.all("img")
        assert len(pictures) == (0 if reason in {"unreadable", "all_nodata"} else len(shown))
        assert all(p.attrs["src"].startswith("data:image/jpeg;base64,") for p in pictures)
        assert all(p.attrs["alt"] for p in pictures)
    assert "does not decode as TIFF (torn)" in groups["unreadable"].text
    assert "every DN of B4, B3, B2 is 0" in groups["all_nodata"].text
    assert "limit DN 4,096" in groups["alpha"].text
    assert "threshold 60.0" in groups["frechet"].text
    keys = [f.attrs["title"] for f in groups[""].all("figure")]
    assert keys == sorted(keys)


def test_thumbnails_are_the_tiles_in_a_fixed_stretch() -> None:
    dn = np.zeros((3, 2, 2), np.uint16)
    dn[:, 0, 0], dn[:, 0, 1], dn[:, 1, 0] = (3000, 1500, 0), (9000, 3001, 300), (1, 5, 6)
    rgb = images.stretch(dn)
    assert rgb.shape == (2, 2, 3)
    assert rgb[0].tolist() == [[255, 128, 0], [255, 255, 26]]  # B4, B3, B2 are red, green, blue
    assert rgb[1].tolist() == [[0, 0, 1], [0, 0, 0]]


def test_scores(page: Node) -> None:
    scores = page.one("section", id="scores")
    words = scores.one("p").text
    assert words == "fd_efficientnet_lite0 of 60 tiles that passed the cheap stages: 46 kept, 14 dropped."
    assert float(scores.one(id="threshold").text) == fake_run.THRESHOLD
    assert "rule range, beta 0.4, from scores of 30.00 to 123.4" in scores.text
    assert len(scores.all("svg")) == 1


def test_pairs(page: Node) -> None:
    pairs = page.one("section", id="pairs")
    assert "46 SAR-EO pairs" in pairs.text
    legend = {n.attrs["data-split"]: n.text for n in pairs.all("span") if "data-split" in n.attrs}
    assert legend == {s: f"{s} {n}" for s, n in fake_run.PAIRS.items()}
    same = sum(p.days == 0 for p in fake_run.pairs())
    assert f"{same} of the same day" in pairs.text


def test_loss_curves(page: Node) -> None:
    training = page.one("section", id="training")
    names = {
        role: [f.one("b").text for f in training.one("div", data_role=role).all("figcaption")]
        for role in ("translate", "enhance")
    }
    assert names == {"translate": ["D", "G_fm", "G_gan", "G_vgg"], "enhance": ["l1"]}
    assert len(training.all("svg")) == 5
    assert "4,000 steps in 13 min 20 s, 5.00 samples/s" in training.text
    assert "Translation: pix2pixhd" in training.text


def test_mosaic_and_patches(page: Node) -> None:
    mosaic = page.one("section", id="mosaic")
    looks = mosaic.one("div", class_="looks")
    assert [f.one("b").text for f in looks.all("figcaption")] == ["SAR", "Translated", "Truth"]
    kinds = [i.attrs["src"].split(";")[0] for i in looks.all("img")]
    assert kinds == ["data:image/webp", "data:image/webp", "data:image/jpeg"]  # no data stays transparent
    facts = {d.one("dt").text: d.one("dd").text for d in mosaic.one("dl").all("div")}
    assert facts["Size"] == "512 \N{MULTIPLICATION SIGN} 512 pixels"
    assert facts["CRS"] == "EPSG:32721"
    assert facts["Pixel"] == "10.0 m"
    assert facts["Ground"] == "5.12 \N{MULTIPLICATION SIGN} 5.12 km"
    assert facts["Upper left"] == "600,000 E, 9,520,000 N"
    west = float(facts["Longitude"].split(" to ")[0])
    north = float(facts["Latitude"].split(" to ")[1])
    # UTM 21 S: 100 km east of the central meridian 57 W; 480 km south of the equator on the 10,000,000 m grid
    assert west == pytest.approx(-57 + 100 / 111.2, abs=0.02)
    assert north == pytest.approx(-480 / 110.6, abs=0.02)
    assert facts["Valid"] == "249,037 of 262,144 pixels (95.0 %)"
    assert "3 images" in mosaic.text
    assert "1 target has none" in mosaic.text
    assert len(mosaic.one("div", class_="thumbs").all("img")) == 3


def test_samples_side_by_side(page: Node) -> None:
    samples = page.one("section", id="samples").all("div", class_="sample")
    assert [s.one("div", class_="where").one("b").text for s in samples] == [
        "EO 5 days before SAR", "Same day", "EO 6 days after SAR",
    ]  # fmt: skip
    for sample in samples:
        assert [f.one("b").text for f in sample.all("figcaption")] == ["SAR", "Translated", "Enhanced", "True"]
        assert len(sample.all("img")) == 4
    best = [s.one("span", class_="best").text for s in samples]
    assert best == ["MAE 0.0400", "MAE 0.0500", "MAE 0.0500"]


def test_metrics_table(page: Node) -> None:
    section = page.one("section", id="metrics")
    lines = section.one("table", data_table="val").all("tr")
    rows = {r.attrs["data-method"]: r for r in lines if "data-method" in r.attrs}
    assert list(rows)[:2] == ["translated", "enhanced"]
    assert set(rows) == set(fake_run.METHODS)
    for method, row in rows.items():
        values = [m for m in fake_run.metrics() if m["method"] == method]
        for metric in ("mae", "rmse", "psnr", "ssim"):
            cell = row.one("td", data_metric=metric)
            figures = [v[metric] for v in values]
            mean, median = float(cell.one("span").text), float(cell.one("small").text.removeprefix("median "))
            assert mean == pytest.approx(np.mean(figures), rel=6e-3, abs=6e-4)
            assert median == pytest.approx(np.median(figures), rel=6e-3, abs=6e-4)
            assert ("best" in cell.one("span").attrs["class"].split()) == (method == "enhanced")
    assert "Enhanced (restormer): mean MAE 0.0400 (120 DN), 33 % below the best baseline" in section.text
    assert "0.01 is 30.0 DN" in section.text
    assert "compare with care" not in section.text


def test_quarantined_units_and_config(page: Node) -> None:
    assert "scene/r00001c00001 ModelError: not finite at window 3" in page.one("section", id="quarantined").text
    assert "extractor: efficientnet_lite0" in page.one("section", id="config").one("pre").text


def test_same_folder_same_bytes_published(run: Path, full: bytes) -> None:
    artifact = report.write(str(run))
    written = (run / "report.html").read_bytes()
    assert (artifact.path, artifact.size, artifact.sha256) == ("report.html", len(written), storage.sha256(written))
    assert written == full


def test_empty_folder(tmp_path: Path) -> None:
    root = safe(report.build(str(tmp_path)))
    for name in SECTIONS:
        assert "ot run yet" in root.one("section", id=name).text, name
    assert "unfinished" in root.one("h1").text
    assert not root.all("img")
    safe(report.build(str(tmp_path / "nowhere")))


PARTS = ("config.yaml", "collect", "train", "translate", "evaluate", "shard", "synthesise")


@pytest.mark.parametrize("part", PARTS)
def test_any_part_alone(some: Callable[..., Path], part: str) -> None:
    root = safe(report.build(str(some(part))))
    assert not root.all("p", class_="trouble")
    assert sum("ot run yet" in n.text for n in root.all("section")) >= 3


def test_collect_alone(some: Callable[..., Path]) -> None:
    root = safe(report.build(str(some("collect/verdicts.parquet"))))
    assert "46 of 100 kept" in root.text
    assert "unfinished" in root.one("tr", data_stage="collect").text
    assert "Copernicus" in root.one("footer").text  # nothing says that it is synthetic
    assert "Threshold" not in root.one("section", id="scores").text
    assert not root.all("tr", data_stage="synthesise")


BROKEN: dict[str, bytes] = {
    "config.yaml": b"a: [1",
    "collect/summary.json": b'{"quarantined": [3]}',
    "shard/summary.json": b"[1, 2]",
    "train/summary.json": b'{"stage": "tr',
    "collect/verdicts.parquet": b"PAR1torn",
    "collect/rejected.parquet": b"",
    "collect/pairs.parquet": fake_run.table([{"days": "many", "split": "val"}]),
    "collect/calibration.json": b'{"threshold": 3}',
    "evaluate/metrics.parquet": fake_run.table([{"split": "val", "method": None}]),
    "evaluate/samples.json": b'[{"images": 3}]',
    "translate/scene/mosaic.zarr/zarr.json": b'{"attributes": {"crs": "EPSG:0", "transform": [1, 2, 3, 4, 5, 6]}}',
    "translate/scene/quicklook.png": b"\x89PNG\r\n\x1a\n torn",
    "translate/p/patches.parquet": b"x",
    "train/enhance/history.jsonl": b'{"step": 1, "l1": 0.5}\n{"step": 2, "l1"',
}


def test_broken_parts_are_named(some: Callable[..., Path]) -> None:
    folder = some(*PARTS)
    for path, data in BROKEN.items():
        (folder / path).write_bytes(data)
    root = safe(report.build(str(folder)))
    named = {t.one("code").text for t in root.all("p", class_="trouble") if t.all("code")}
    assert named >= set(BROKEN) - {"translate/scene/mosaic.zarr/zarr.json", "translate/scene/quicklook.png"}
    assert "translate/scene/mosaic.zarr" in named
    assert "unreadable picture" in root.one("section", id="mosaic").text
    assert "1 unreadable line left out" in root.one("section", id="training").text


WORDS = dict.fromkeys(("sar_key", "eo_key", "split", "method", "mae", "rmse", "psnr", "ssim"), "x")


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("collect/calibration.json", b'{"score_name": "x", "rule": "range", "beta": "b", "low": 0, "high": 1, '
                                     b'"threshold": NaN, "count": 3, "reference": ""}'),
        ("evaluate/metrics.parquet", fake_run.table([WORDS])),
        ("translate/summary.json", b'{"outputs": {"mosaic": "m", "patches": "p", "quicklook": "/etc/passwd"}}'),
        ("translate/summary.json", b'{"outputs": {"quicklook": "../../secret.png"}, "seconds": Infinity}'),
        ("train/translate/history.jsonl", b'null\n[]\n{"step": null}\n{"step": 1e999, "l": 1}\n{"step": 5, "l": NaN}'),
    ],
)  # fmt: skip
def test_odd_values_never_raise(some: Callable[..., Path], path: str, data: bytes) -> None:
    folder = some("config.yaml", *(p for p in ("collect/verdicts.parquet",) if path.startswith("collect")))
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
    root = safe(report.build(str(folder)))
    if "quicklook" in str(data):
        assert "not a path inside the run folder" in root.text


def test_hostile_text_stays_text(some: Callable[..., Path]) -> None:
    folder = some("collect/verdicts.parquet", "collect/calibration.json", "translate/scene")

    def put(path: str, data: Any) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())

    bad = [{"unit": EVIL, "key": EVIL, "reason": EVIL}]
    for stage in ("collect", "translate"):
        outputs = {"mosaic": EVIL, "vrt": EVIL, "quicklook": EVIL, "patches": EVIL, EVIL: EVIL}
        odd = {"status": EVIL, "counts": {EVIL: 3}, "machine": {EVIL: EVIL}, "started": EVIL, "quarantined": bad}
        put(f"{stage}/summary.json", fake_run.summary(stage, 9) | odd | {"outputs": outputs})
    tree = {"cca": {"alpha": EVIL, "profile": EVIL}, "train": {"translator": EVIL, "translate": {"batch": EVIL}}}
    put("config.yaml", yaml.safe_dump(tree | {"synthetic": {"enabled": True, "seed": EVIL}, EVIL: EVIL}).encode())
    rows = [fake_run.verdict(v.ref, EVIL if i % 3 else "unreadable", detail=EVIL, score_name=EVIL, score=1.0 * i)
            for i, v in enumerate(fake_run.verdicts(folder.parent)[::10])]  # fmt: skip
    put("collect/verdicts.parquet", fake_run.records(rows, Verdict))
    put("collect/rejected.parquet", fake_run.records([Rejected(EVIL, EVIL, EVIL, EVIL)], Rejected))
    put("collect/pairs.parquet", fake_run.table([{"days": 1, "split": EVIL}]))
    put("train/translate/history.jsonl", {"step": 1, EVIL: 0.5})
    keys = {"sar_key": EVIL, "eo_key": EVIL, "split": EVIL, "method": EVIL, "days": 1}
    put("evaluate/metrics.parquet", fake_run.table([keys | dict.fromkeys(("mae", "rmse", "psnr", "ssim"), 0.5)]))
    put("evaluate/samples.json", [keys | {"images": {EVIL: EVIL, "sar": "nowhere.png"}, "mae": {EVIL: 1}}])
    put("train/summary.json", EVIL.encode())
    data = report.build(str(folder))
    root = safe(data)
    assert b"<script" not in data
    assert "49" not in root.one("section", id="quarantined").text
    assert '<script>alert("x")</script>' in root.one("section", id="quarantined").text
    for name in ("kept", "pairs", "training", "mosaic", "samples", "metrics", "config"):
        assert "<script>" in root.one("section", id=name).text, name


def test_secrets_in_uris_are_not_shown(full: bytes, some: Callable[..., Path]) -> None:
    assert b"secret" not in full
    assert b"s3://***@bucket/bad_0.tiff" in full
    folder = some()
    (folder / "config.yaml").write_text("data: {s1: 'https://me:hunter2@host/x?sig=abc'}\n")
    data = report.build(str(folder))
    assert b"https://***@host/x?***" in data
    assert b"hunter2" not in data


def test_a_source_that_is_away_costs_one_try(some: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def away(ref: Any) -> None:
        calls.append(ref)
        raise Unavailable("s3://gone", "store did not answer")

    monkeypatch.setattr(sources, "read_eo", away)
    root = safe(report.build(str(some("collect"))))
    assert len(calls) == 1
    assert "source not reachable" in root.one("section", id="kept").text
    assert not root.all("img")


def test_a_run_folder_that_refuses_is_not_an_empty_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> bytes:
        raise AccessDenied(uri, "access denied")

    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(AccessDenied, match="s3://bucket/run"):
        report.build("s3://bucket/run")


def test_page_stays_light(some: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BUDGET", 40_000)
    root = safe(report.build(str(some("evaluate/samples.json", "evaluate/samples", "translate"))))
    assert sum(len(i.attrs["src"]) for i in root.all("img")) <= 40_000
    assert "left out to keep this page light" in root.one("footer").text


def test_methods_on_different_pairs_are_not_compared_in_silence(some: Callable[..., Path]) -> None:
    folder = some("config.yaml")
    rows = [r for r in fake_run.metrics() if r["method"] != "translated" or not r["sar_key"].startswith("s1/val3")]
    rows = [r | {"ssim": float("nan")} if r["method"] == "enhanced" else r for r in rows]
    (folder / "evaluate").mkdir()
    (folder / "evaluate/metrics.parquet").write_bytes(fake_run.table(rows))
    section = safe(report.build(str(folder))).one("section", id="metrics")
    assert "Not every method was measured on all 12 pairs" in section.text
    assert section.one("tr", data_method="translated").all("td")[1].text == "11"
    assert "\N{EN DASH}" in section.one("tr", data_method="enhanced").one("td", data_metric="ssim").text
    best = section.all("span", class_="best")
    assert len(best) == 4


def test_a_model_worse_than_a_baseline_is_said_to_be(some: Callable[..., Path]) -> None:
    folder = some("config.yaml")
    rows = [r | {"mae": 0.5} if r["method"] in {"translated", "enhanced"} else r for r in fake_run.metrics()]
    (folder / "evaluate").mkdir()
    (folder / "evaluate/metrics.parquet").write_bytes(fake_run.table(rows))
    text = safe(report.build(str(folder))).one("section", id="metrics").text
    assert "above the best baseline" in text
    assert "no more than a trivial predictor" in text


def test_any_fsspec_uri(run: Path) -> None:
    for path in ("config.yaml", "collect/verdicts.parquet", "evaluate/metrics.parquet"):
        storage.put(f"memory://report-test/{path}", (run / path).read_bytes())
    artifact = report.write("memory://report-test")
    data = storage.read_bytes("memory://report-test/report.html")
    assert len(data) == artifact.size
    assert "46 of 100 kept" in safe(data).text
    storage.delete("memory://report-test")
