"""Choosing again over a stored archive, increments against a frozen calibration, and scenes, through Ray."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import Affine
from small_job import Done

from sar2eo_dist.config import Config, load
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline import collect as verb
from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.shard import shard
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Verdict, from_table
from sar2eo_dist.sources import synthetic

pytestmark = pytest.mark.cluster


def moved(done: Done, out: Path, **cca: object) -> Config:
    cfg = done.cfg
    update = {"run": cfg.run.model_copy(update={"out": str(out)}), "cca": cfg.cca.model_copy(update=cca)}
    return cfg.model_copy(update=update)


def verdicts(cfg: Config) -> list[Verdict]:
    return from_table(pq.read_table(f"{cfg.run.out}/collect/verdicts.parquet"), Verdict)


def test_a_looser_choice_scores_only_what_has_no_score_and_equals_a_run_of_its_own(
    main_job: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("collect", "ledger/collect", "ledger/reference", "reference"):
        shutil.copytree(Path(main_job.cfg.run.out) / part, tmp_path / "a" / part)
    looser = {"brightness_min": 0.0, "dark_max_fraction": 1.0, "qa60_max_fraction": 1.0, "alpha_max_fraction": 0.5}
    again = moved(main_job, tmp_path / "a", **looser)
    had = {v.key for v in verdicts(again) if np.isfinite(v.score)}
    # what it plans without touching anything
    before = (tmp_path / "a/collect/verdicts.parquet").read_bytes()
    collect(again, Options(dry_run=True, reselect=True))
    assert "have no score yet" in capsys.readouterr().out
    assert (tmp_path / "a/collect/verdicts.parquet").read_bytes() == before
    summary = collect(again, Options(reselect=True))
    told = capsys.readouterr().out
    units = Ledger(again.run.out).done("score")
    assert units
    scored = {v.key for v in verdicts(again) if np.isfinite(v.score)} - had
    assert scored
    assert f"{len(scored)} tiles pass stages 1 and 2 without a score" in told
    # the same config from nothing
    fresh = moved(main_job, tmp_path / "b", **looser)
    other = collect(fresh, Options())
    assert not Ledger(fresh.run.out).done("score")
    assert other.counts == summary.counts
    for mine, theirs in zip(verdicts(again), verdicts(fresh), strict=True):
        for name in Verdict.__slots__:
            assert str(getattr(mine, name)) == str(getattr(theirs, name)), (mine.key, name)
    # and back: nothing is read, the calibration is a new version
    monkeypatch.setattr(verb, "_stream", None)
    back = collect(moved(main_job, tmp_path / "a"), Options(reselect=True))
    assert back.counts == main_job.summaries["collect"].counts


def test_an_increment_is_judged_by_the_frozen_calibration(main_job: Done, tmp_path: Path) -> None:
    world, part = Path(main_job.cfg.data.s2), tmp_path / "part"
    part.mkdir()
    days = sorted({path.stem[-10:] for path in world.rglob("*.tif*")})
    for path in world.rglob("*.tif*"):
        if path.stem[-10:] != days[-1]:
            (part / path.name).hardlink_to(path)
    cfg = moved(main_job, tmp_path / "run", rule="range", beta=0.3)
    first = cfg.model_copy(update={"data": cfg.data.model_copy(update={"s2": str(part)})})
    collect(first, Options(limit=1))
    calibration = tmp_path / "run/collect/calibration.json"
    if calibration.exists():
        assert json.loads(calibration.read_text())["version"] == 0, "a part of the plan freezes nothing"
    before = collect(first, Options())
    frozen = json.loads(calibration.read_text())
    assert frozen["version"] == 1
    # the same archive, a date later: what was planned before is not read again, but for the slice where it ended
    shutil.rmtree(part)
    moved_world = cfg.model_copy(update={"data": cfg.data.model_copy(update={"s2": str(part)})})
    part.mkdir()
    for path in world.rglob("*.tif*"):
        (part / path.name).hardlink_to(path)
    whole = collect(moved_world, Options())
    assert whole.resumed >= before.planned - 1 > 0
    now = json.loads(calibration.read_text())
    assert now == frozen
    assert whole.counts["S2 tiles"] == main_job.summaries["collect"].counts["S2 tiles"]
    for v in verdicts(cfg):
        if np.isfinite(v.score) and v.reason in ("", "frechet"):
            assert (v.reason == "frechet") == (v.score < frozen["threshold"])
    anew = collect(moved_world, Options(recalibrate=True))
    assert json.loads(calibration.read_text())["version"] == 2
    assert anew.resumed == anew.planned


def test_scenes_with_an_offset_become_pairs(ray_session: None, tmp_path: Path) -> None:
    world, day, size = (
        synthetic.World(11),
        dt.date(2019, 6, 8),
        780,
    )  # two whole lattice tiles each way, wherever they lie
    row, col = 1024 - 60, 2048 - 60
    profile = {"driver": "GTiff", "height": size, "width": size, "crs": synthetic.CRS, "compress": "deflate",
               "tiled": True, "transform": Affine(*synthetic.transform(row, col))}  # fmt: skip
    for sensor in ("s1", "s2"):
        (tmp_path / sensor).mkdir()
    with rasterio.open(
        tmp_path / "s1/S1A_IW_GRDH_1SDV_20190608T092000.tif", "w", count=2, dtype="float32", **profile
    ) as f:
        f.write(world.sar(day, row, col, size, size))
        f.descriptions = ("VV", "VH")
        f.update_tags(SAR2EO_UNITS="db", SAR2EO_QUANTITY="sigma0")
    clear = world.clear(day, row, col, size, size)
    scene = tmp_path / "s2/S2A_MSIL2A_20190608T135000_N0500_R110_T21MXT"
    scene.mkdir()
    for band, pixels in zip(("B04", "B03", "B02"), clear, strict=True):
        with rasterio.open(scene / f"{band}.tif", "w", count=1, dtype="uint16", **profile) as f:
            f.write(pixels + 1000, 1)
            f.update_tags(BOA_ADD_OFFSET="-1000")
    cfg = load(None, [
        f"run.out={tmp_path / 'run'}", "data.kind=scenes", f"data.s1={tmp_path / 's1'}", f"data.s2={tmp_path / 's2'}",
        "cca.profile=recommended", "pairing.place=footprint", "split.val=0",
    ])  # fmt: skip
    summary = collect(cfg, Options())
    rows = verdicts(cfg)
    assert {(v.sensor, v.reason) for v in rows} == {("s1", ""), ("s2", "")}
    assert {v.offset for v in rows if v.sensor == "s2"} == {1000.0}
    assert summary.counts["pairs"] == summary.counts["S2 tiles"] >= 4
    made = shard(cfg, Options())
    index = pq.read_table(tmp_path / "run" / made.outputs["index"]).to_pylist()
    read = PairReader(str((tmp_path / "run" / made.outputs["index"]).parent))
    by_key = {v.key: v for v in rows}
    for i, pair in enumerate(index):
        r, c = by_key[pair["eo_key"]].rows
        np.testing.assert_array_equal(read(i)[1], clear[:, r : r + 256, c : c + 256])
