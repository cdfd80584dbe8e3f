"""Missing and broken parts, odd values, hostile text, secrets, outages, weight: the page stays a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import pytest
import yaml
from dom import SECTIONS, safe

from sar2eo_dist import sources, storage
from sar2eo_dist.errors import AccessDenied, Unavailable
from sar2eo_dist.records import Rejected, Verdict
from sar2eo_dist.report import images
from sar2eo_dist.report import page as report

EVIL = '<script>alert("x")</script><img src="http://evil.example/a.png" onerror=alert(1)>\'"--></style>{{ 7 * 7 }}'


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
    "collect/yield.parquet": fake_run.table([{"days": "0", "eo_images": None, "combinations": 1}]),
    "collect/calibration.json": b'{"threshold": 3}',
    "evaluate/metrics.parquet": fake_run.table([{"split": "val", "method": None}]),
    "evaluate/scores.json": b'{"methods": [{"method": "x"}, 3], "metrics": []}',
    "train/enhance/record.json": b'{"cost": [1]}',
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


def test_a_run_without_a_yield_curve_has_no_section_of_it(some: Callable[..., Path]) -> None:
    folder = some("collect/yield.parquet", "collect/pairs.parquet")
    assert safe(report.build(str(folder))).one(id="yield")
    (folder / "collect/yield.parquet").write_bytes(fake_run.table(fake_run.yields(), 0))
    root = safe(report.build(str(folder)))
    assert not root.all(id="yield")
    (folder / "collect/yield.parquet").unlink()
    root = safe(report.build(str(folder)))
    assert not root.all(id="yield")
    assert "Yield" not in root.text
    assert not root.all("p", class_="trouble")


WORDS = dict.fromkeys(("sar_key", "eo_key", "split", "method", "mae", "rmse", "psnr", "ssim"), "x")


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("collect/calibration.json", b'{"score_name": "x", "rule": "range", "beta": "b", "low": 0, "high": 1, '
                                     b'"threshold": NaN, "count": 3, "reference": ""}'),
        ("evaluate/metrics.parquet", fake_run.table([WORDS])),
        ("evaluate/scores.json", b'{"methods": [{"method": 3, "n": "x", "mae": 7, "challenge": [], "frechet": {"kid": "a"}}], '
                                 b'"metrics": ["mae", 5], "pairs": 1e999, "measured": -3, "lower": 3, "groups": {"x": []}}'),
        ("evaluate/scores.json", b'{"methods": [], "metrics": [], "pairs": ' + b"9" * 400 + b"}"),
        ("train/translate/record.json", b'{"cost": {"gpu_hours": "x", "cpu_hours": NaN, "amount": 1e999}}'),
        ("collect/yield.parquet", fake_run.table([{"days": d, "eo_images": -d, "combinations": 0} for d in (900, -3)])),
        ("collect/yield.parquet", fake_run.table([{"days": 30, "eo_images": 2**62, "combinations": 2**62}])),
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
    rows = [fake_run.verdict(v.ref, (EVIL, "", "unreadable")[i % 3], detail=EVIL, score_name=EVIL, score=1.0 * i)
            for i, v in enumerate(fake_run.verdicts(folder.parent)[::10])]  # fmt: skip
    put("collect/verdicts.parquet", fake_run.records(rows, Verdict))
    put("collect/rejected.parquet", fake_run.records([Rejected(EVIL, EVIL, EVIL, EVIL)], Rejected))
    put("collect/pairs.parquet", fake_run.table([{"days": 1, "split": EVIL}]))
    put("train/translate/history.jsonl", {"step": 1, EVIL: 0.5})
    keys = {"sar_key": EVIL, "eo_key": EVIL, "split": EVIL, "method": EVIL, "days": 1}
    put("evaluate/metrics.parquet", fake_run.table([keys | dict.fromkeys(("mae", "rmse", "psnr", "ssim"), 0.5)]))
    row = keys | {"n": 3, "group": EVIL, "challenge": {EVIL: 3}, "frechet": {"name": EVIL}, EVIL: {"mean": 0.5}}
    put("evaluate/scores.json", {"split": EVIL, "metrics": [EVIL, "mae"], "methods": [row], "groups": {EVIL: [row]}})
    put("evaluate/samples.json", [keys | {"why": EVIL, "images": {EVIL: EVIL, "sar": "nowhere.png"}, "mae": {EVIL: 1}}])
    put("train/summary.json", EVIL.encode())
    data = report.build(str(folder))
    root = safe(data)
    assert data.count(b"<script") == 2  # our own: the page's script, and the scores
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


def test_any_fsspec_uri(run: Path) -> None:
    for path in ("config.yaml", "collect/verdicts.parquet", "evaluate/metrics.parquet"):
        storage.put(f"memory://report-test/{path}", (run / path).read_bytes())
    artifact = report.write("memory://report-test")
    data = storage.read_bytes("memory://report-test/report.html")
    assert len(data) == artifact.size
    assert "46 of 100 kept" in safe(data).text
    storage.delete("memory://report-test")
