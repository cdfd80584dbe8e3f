"""The scheduled run: what is new, what it touches, twice, killed, late, two at once; on a small mosaic, without Ray."""

from __future__ import annotations

import csv
import datetime as dt
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import rasterio
import scene_files
import small_mosaic
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist import lease
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline import units
from sar2eo_dist.pipeline.basin import basin, periods
from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.stage import Options, Summary

#: 5 x 5 blocks of 256, so that a scene in one corner leaves some alone: it reaches one statistics window further
AREA = (50_176, 30_208, 1280, 1280)
ONE = (50_186, 30_218, 400, 400, {"DATE": "2020-06-01"})
CORNER = (51_220, 31_250, 200, 200, {"DATE": "2020-06-13"})
BESIDE = (51_200, 30_968, 120, 100, {"DATE": "2020-06-25"})


def config(base: Path, *more: str) -> Config:
    """Nine of the 25 blocks at first."""
    small_mosaic.bundles(str(base / "bundles"))
    small_mosaic.scene(base / "scenes/0.tif", *ONE[:4], **ONE[4])
    small_mosaic.scene(base / "scenes/1.tif", *CORNER[:4], **CORNER[4])
    (base / "area.json").write_text(small_mosaic.area(*AREA))
    return small_mosaic.small(base, *more)


def run(cfg: Config, date: str = "2020-07-01", **options: Any) -> Summary:
    with small_mosaic.without_ray():
        return basin(cfg, Options(date=date, **options))


def changed(before: dict[str, str], now: dict[str, str]) -> set[str]:
    """Keys of the blocks whose COG differs or is new."""
    return {p.rpartition("/")[2] for p in now if "/cog/" in p and before.get(p) != now[p]}


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Four runs: first, again, with two more scenes, with one of them withdrawn; what each left."""
    base = tmp_path_factory.mktemp("basin")
    cfg = config(base)
    out, left = Path(cfg.run.out), {}

    def night(name: str, date: str) -> None:
        summary = run(cfg, date)
        left[name] = (summary, small_mosaic.objects(out), json.loads((out / "basin/summary.json").read_text()))

    night("first", "2020-07-01")
    night("again", "2020-07-02")
    night("same day", "2020-07-02")
    small_mosaic.scene(base / "scenes/2.tif", *BESIDE[:4], **BESIDE[4])
    small_mosaic.scene(base / "scenes/3.tif", 51_230, 31_260, 100, 100, DATE="2020-06-25")
    night("more", "2020-07-02")
    (base / "scenes/3.tif").unlink()
    night("withdrawn", "2020-07-03")
    return {"cfg": cfg, "out": out, **left}


def test_the_first_run_makes_all_blocks_and_tells_of_it(nights: dict[str, Any]) -> None:
    summary, objects, told = nights["first"]
    assert summary.status == told["status"] == "complete"
    assert (summary.counts["scenes new"], summary.counts["blocks made"]) == (2, summary.counts["blocks"])
    assert summary.counts["blocks"] == len(changed({}, objects)) > 4
    page = (nights["out"] / "basin/2020-07-01/report.html").read_text()
    assert "Basin run of 2020-07-01" in page
    assert "<script" not in page


def test_again_nothing_is_made_and_nothing_changes(nights: dict[str, Any]) -> None:
    for name in ("again", "same day"):
        summary, objects, _ = nights[name]
        assert objects == nights["first"][1]
        assert (summary.counts["scenes new"], summary.counts["blocks made"], summary.bytes_out) == (0, 0, 0)
        assert summary.digest == nights["first"][0].digest
        assert summary.resumed == summary.planned == summary.done
    assert "Nothing was new" in (nights["out"] / "basin/2020-07-02/report.html").read_text()
    assert nights["same day"][0].outputs["report"] == "basin/2020-07-02/report.html"


def test_two_more_scenes_change_exactly_the_blocks_they_touch(nights: dict[str, Any]) -> None:
    summary, objects, _ = nights["more"]
    made = changed(nights["first"][1], objects)
    assert summary.outputs["report"] == "basin/2020-07-02.2/report.html"  # the day's first report stays
    rows = list(csv.DictReader(io.StringIO((nights["out"] / "basin/2020-07-02.2/changes.csv").read_text())))
    assert {r["name"].rpartition("/")[2] for r in rows if r["what"] == "scene"} == {"2.tif", "3.tif"}
    told = {(int(r["row"]), int(r["col"])) for r in rows if r["what"] == "block"}
    assert len(told) == len(made) == summary.counts["blocks made"]
    # by hand, from pixels: a block is touched by scenes within a statistics window and halo around the windows around it
    near = set()
    for row, col, height, width, _ in (BESIDE, (51_230, 31_260, 100, 100, {})):
        for r, c in ((int(b["row"]), int(b["col"])) for b in rows if b["what"] == "block"):
            gaps = (
                max(r * 256 - (row + height), row - (r + 1) * 256),
                max(c * 256 - (col + width), col - (c + 1) * 256),
            )
            if max(gaps) <= 2 * 256 + 2 * 32:
                near.add((r, c))
    assert told == near
    far = (ONE[0] // 256, ONE[1] // 256)
    assert far not in told  # and its bytes are the same, as `changed` has it
    direct = {(BESIDE[0] // 256, BESIDE[1] // 256), (51_230 // 256, 31_260 // 256)}
    assert direct <= told


def test_a_withdrawn_scene_brings_the_old_bytes_back_where_it_was(nights: dict[str, Any]) -> None:
    summary, objects, _ = nights["withdrawn"]
    assert (summary.counts["scenes withdrawn"], summary.counts["scenes new"]) == (1, 0)
    back = changed(nights["more"][1], objects)
    assert len(back) == summary.counts["blocks made"] > 0
    assert back <= changed(nights["first"][1], nights["more"][1])  # where it had come (test_killed has the bytes)


def test_the_history_has_a_line_a_run_that_was_told(nights: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (nights["out"] / "basin/history.jsonl").read_text().splitlines()]
    folders = ["2020-07-01", "2020-07-02", "2020-07-02.2", "2020-07-03"]
    assert [r["folder"].rpartition("/")[2] for r in lines] == folders
    page = (nights["out"] / "basin/2020-07-03/report.html").read_text()
    assert page.count("../../basin/2020-07-0") == 3


def test_killed_and_late_it_ends_with_the_bytes_of_an_undisturbed_run(nights: dict[str, Any], tmp_path: Path) -> None:
    cfg = small_mosaic.elsewhere(nights["cfg"], tmp_path / "run")
    real, made = units.stream, []

    def dying(*args: Any) -> Iterator[Any]:
        for result in real(*args):
            made.append(result)
            if len(made) % 5 == 0:
                raise KeyboardInterrupt
            yield result

    kills = 0
    with small_mosaic.without_ray():
        real = units.stream
        while True:
            with mock.patch.object(units, "stream", dying):
                try:
                    summary = basin(cfg, Options(date="2020-09-30"))
                    break
                except KeyboardInterrupt:
                    kills += 1
                    assert json.loads((tmp_path / "run/translate/summary.json").read_text())["status"] == "stopped"
                    assert not (tmp_path / "run/basin/last.json").exists()
    assert kills > 3
    left, whole = (
        {p: sha for p, sha in tree.items() if "/scenes-" not in p}  # of each plan there was
        for tree in (small_mosaic.objects(tmp_path / "run"), nights["withdrawn"][1])
    )
    assert left == whole
    assert summary.digest == nights["withdrawn"][0].digest
    assert summary.counts["blocks made"] == summary.counts["blocks"]  # all are told as this first finished run's


def test_two_at_once_one_refuses_by_name(
    nights: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lease.held(str(tmp_path), "jobs/basin.py", 3.0, "night-1"):
        code = main("basin", [basin], "", ["--set", f"run.out={tmp_path}", "--set", "run.lease_s=3"])
    assert code == 1
    assert "LeaseHeld: in use by jobs/basin.py" in capsys.readouterr().err
    assert not (tmp_path / "basin").exists()


def test_a_period_without_scenes_is_nothing_yet(nights: dict[str, Any], tmp_path: Path) -> None:
    cfg = small_mosaic.elsewhere(nights["cfg"], tmp_path / "run")
    cfg = cfg.model_copy(update={"basin": cfg.basin.model_copy(update={"period": "month", "grace_days": 0})})
    summary = run(cfg, "2020-05-20")
    assert (summary.status, summary.counts["blocks"], summary.counts["blocks made"]) == ("complete", 0, 0)


@pytest.mark.cluster
def test_later_clear_sentinel_2_grades_it_on_the_page(
    ray_session: None, nights: dict[str, Any], tmp_path: Path
) -> None:
    cfg = small_mosaic.elsewhere(nights["cfg"], nights["out"])
    name = "S2A_MSIL2A_20200720T140059_N0212_R067_T21MXT"
    bands = np.random.default_rng(1).integers(200, 600, (3, 512, 512)).astype(np.uint16)
    affine = rasterio.Affine(10, 0, 100_000 + 10 * ONE[1], 0, -10, 10_000_000 - 10 * ONE[0])
    for band, dn in zip(("B04", "B03", "B02"), bands, strict=True):
        scene_files.put(str(tmp_path), f"s2/{name}/{band}.tif", scene_files.cog(dn, transform=affine))
    clear = np.full((256, 256), 4, np.uint8)
    coarse = affine * rasterio.Affine.scale(2)
    scene_files.put(str(tmp_path), f"s2/{name}/SCL.tif", scene_files.cog(clear, transform=coarse))
    data = cfg.data.model_copy(update={"kind": "scenes", "s2": str(tmp_path / "s2")})
    more = load(overrides=["pairing.mode=none", "cca.profile=recommended", "cca.light_min=0", "grade.days=[0, 60]"])
    cfg = cfg.model_copy(update={"data": data, "pairing": more.pairing, "cca": more.cca, "grade": more.grade})
    summary = run(cfg, "2020-07-21")
    assert summary.counts["tiles graded"] > 0
    page = (nights["out"] / "basin/2020-07-21/report.html").read_text()
    assert "2020-07-20" in page
    assert "Skill" in page


def test_what_is_missing_or_impossible_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wants data\.scenes"):
        basin(load(overrides=[f"run.out={tmp_path}"]), Options())
    with pytest.raises(ConfigError, match="YYYY-MM-DD"):
        basin(load(overrides=[f"run.out={tmp_path}", "data.scenes=x"]), Options(date="2020-13-01"))


@given(
    st.dates(dt.date(1990, 1, 1), dt.date(2090, 1, 1)),
    st.sampled_from(["month", "quarter", "year"]),
    st.integers(0, 800),
)
def test_periods_are_whole_and_adjoin_and_hold_the_days_of_grace(day: dt.date, period: str, grace: int) -> None:
    cfg = load(overrides=[f"basin.period={period}", f"basin.grace_days={grace}"])
    found = [(p.mosaic.start, p.mosaic.end) for p in periods(cfg, day)]
    assert all(a and b for a, b in found)
    assert found[-1][0] <= day <= found[-1][1]  # type: ignore[operator]
    first = day - dt.timedelta(grace)
    assert found[0][0] <= first <= found[0][1]  # type: ignore[operator]
    for (_, end), (start, _) in itertools.pairwise(found):
        assert start == end + dt.timedelta(1)  # type: ignore[operator]
    length = {"month": 1, "quarter": 3, "year": 12}[period]
    for start, end in found:
        assert start
        assert end
        after = end + dt.timedelta(1)
        assert (start.day, after.day) == (1, 1)
        assert (after.year - start.year) * 12 + after.month - start.month == length
        assert (start.month - 1) % length == 0


def test_without_periods_the_dates_are_the_configs(tmp_path: Path) -> None:
    cfg = load(overrides=["mosaic.start=2024-01-01"])
    assert periods(cfg, dt.date(2024, 6, 1)) == [cfg]
