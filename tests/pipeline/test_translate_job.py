"""The verb translate on small mosaics, without Ray: increments, refusals, bad input, zones, forecasts."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.warp
import small_mosaic
import zarr

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import AccessDenied, ConfigError, TooManyFailures
from sar2eo_dist.mosaic import store
from sar2eo_dist.pipeline import blocks, scene_list
from sar2eo_dist.pipeline.compute import Compute
from sar2eo_dist.pipeline.lineage import lineage
from sar2eo_dist.pipeline.stage import Options, Summary
from sar2eo_dist.pipeline.translate import translate

NEW = (50_700, 30_248, 100, 100)  # a third scene, in the lower left, where only one of the others reaches
#: small, so that a scene tells on few blocks: they depend on the statistics windows around them
FINE = "translate.statistics_window=128"


def alone(folder: Path) -> str:
    """The translator without an enhancer, which takes most of the time."""
    return f"translate.bundles=[{folder / 'bundles/pix2pixhd'}]"


def run(cfg: Config, **options: object) -> Summary:
    with small_mosaic.without_ray():
        return translate(cfg, Options(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translate_job")
    cfg = small_mosaic.small(folder)
    (folder / "summary.txt").write_text(run(cfg).digest)
    return folder


def copy(base: Path, to: Path) -> Config:
    """A complete run folder of its own, of the shared scenes and bundles (which nobody may change)."""
    shutil.copytree(base / "run", to / "run")
    return small_mosaic.elsewhere(small_mosaic.small(base), to / "run")


def pixels(cfg: Config, summary: Summary) -> dict[str, str]:
    return {k: v for k, v in small_mosaic.objects(Path(cfg.run.out)).items() if ".zarr/" in k and "/c/" in k}


def test_a_new_scene_makes_again_what_it_touches_and_a_withdrawn_one_brings_the_old_bytes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = small_mosaic.small(tmp_path, FINE, alone(tmp_path))
    first = run(cfg)
    before = pixels(cfg, first)
    assert run(cfg).resumed == 9
    small_mosaic.scene(tmp_path / "scenes/new.tif", *NEW, DATE="2020-07-01")
    capsys.readouterr()
    planned = run(cfg, dry_run=True)
    said = capsys.readouterr().out
    again = planned.planned - planned.resumed
    assert 0 < again < 9
    assert f"{again} of 9 blocks of 256 px to do" in said
    assert "rates measured on" in said  # of the blocks that were made before
    assert pixels(cfg, first) == before
    second = run(cfg)
    assert second.resumed == 9 - again
    after = pixels(cfg, second)
    changed = {k for k in after if after[k] != before.get(k)}
    assert 0 < sum("zarr/rgb/" in k for k in changed) <= again
    whole = run(small_mosaic.elsewhere(cfg, tmp_path / "anew"))
    assert whole.digest == second.digest
    forecast = json.loads((Path(cfg.run.out) / second.outputs["forecast"]).read_text())
    assert forecast["predicted"]["blocks"] == forecast["actual"]["blocks"] == again
    assert forecast["actual"]["wall_seconds"] > forecast["actual"]["stages"]["translate"] > 0
    assert forecast["predicted"]["wall_seconds"] == pytest.approx(sum(forecast["predicted"]["wall_parts"].values()))
    assert forecast["predicted"]["wall_seconds_by_own_rates"] > forecast["actual"]["translator_seconds"]

    (tmp_path / "scenes/new.tif").unlink()
    third = run(cfg)
    assert third.resumed == 9 - again  # those that the scene touched are made once more, not found done
    assert third.digest == first.digest
    assert pixels(cfg, third) == before


def test_a_limited_run_goes_on_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    cfg = small_mosaic.elsewhere(small_mosaic.small(base), tmp_path)
    part = run(cfg, limit=2)
    assert (part.planned, part.done) == (2, 2)
    whole = run(cfg)
    assert (whole.done, whole.resumed) == (9, 2)
    assert whole.digest == (base / "summary.txt").read_text()


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ("cost.cpu_hour=3600", "cost.put_1000=1000", "cost.cpu_watts=10", "cost.kwh_co2=98")
    cfg = small_mosaic.small(tmp_path, *prices)
    assert run(cfg, dry_run=True).planned == 9
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    assert "9 of 9 blocks of 256 px to do" in said
    assert "measured now on one small window" in said
    assert "requests 123.00" in said  # 6 objects a block, 2 a statistics window, 3 of each of 17 overview blocks
    assert " kWh, " in said
    assert " kg CO2" in said
    assert re.findall(r"^ +(\d+)   .* [a-z]+ \(", said, re.MULTILINE) == ["1", "4", "16", "64"]


def test_rates_that_are_given_stand_for_machines_that_are_not_here(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = tmp_path / "rates.json"
    about = {
        "window_s": 36.0,
        "statistics_s": 0.0,
        "source": "assumed of a card",
        "gpu": True,
        "start_s": 100,
        "level_s": 0,
    }
    rates.write_text(json.dumps(about))
    given = [f"cost.rates={rates}", "cost.gpu_hour=100", "cost.gpu_watts=1000", "cost.clusters=[3]"]
    cfg = small_mosaic.elsewhere(small_mosaic.small(base, *given), tmp_path / "run")
    run(cfg, dry_run=True)
    said = capsys.readouterr().out
    assert "0.36 GPU-hours" in said  # 36 windows
    assert "rates assumed of a card" in said
    assert "each translator with a GPU and 8 CPU cores" in said
    row = next(line for line in said.splitlines() if line.startswith("            3   "))
    took = re.fullmatch(r" +3 +(\d+)\s*min (\d+)\s*s +([\d.]+) +([\d.]+) +compute \(\d+\s*%\)", row)
    assert took, row
    wall = int(took[1]) * 60 + int(took[2])
    assert 3 * 4 * 36 + 2 * 100 <= wall <= 3 * 4 * 36 + 2 * 100 + 60  # three blocks each, two lines that start
    assert float(took[3]) == pytest.approx(3 * wall / 36, rel=0.01)
    assert float(took[4]) == pytest.approx(3 * wall / 3600, rel=0.01)

    for text, why in (
        ("[1]", "wants an object|is not an object"), ('{"window_s": 1}', "statistics_s"), ("{", "is not an object"),
        (json.dumps(about | {"window_s": -1}), "numbers of 0 or more"), (json.dumps(about | {"speed": 1}), "speed"),
        (json.dumps(about | {"source": ""}), "a source in words"),
    ):  # fmt: skip
        rates.write_text(text)
        with pytest.raises(ConfigError, match=why):
            run(cfg, dry_run=True)
    rates.unlink()
    with pytest.raises(ConfigError, match="is not there"):
        run(cfg, dry_run=True)


def test_objects_that_are_forecast_are_those_that_are_written(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = copy(base, tmp_path)
    found = run(cfg)
    assert found.resumed == 9
    capsys.readouterr()
    run(cfg, dry_run=True, fresh=True)
    assert f"in {found.puts} objects" in capsys.readouterr().out
    assert set(found.steps) == {"read", "compute", "write", "overviews"}
    assert found.unit_seconds > 0


def test_a_torn_scene_fails_its_blocks_by_name_and_no_others(tmp_path: Path) -> None:
    cfg = small_mosaic.small(tmp_path, FINE, alone(tmp_path), "run.tolerance=1", "run.max_attempts=1")
    bad = tmp_path / "scenes/bad.tif"
    small_mosaic.scene(bad, *NEW, DATE="2020-07-01")
    data = bytearray(bad.read_bytes())
    data[4096:] = bytes(len(data) - 4096)  # the header is whole
    bad.write_bytes(bytes(data))
    summary = run(cfg)
    assert summary.status == "partial"
    reasons = {q["key"].rpartition("/")[2]: q["reason"] for q in summary.quarantined}
    assert 0 < len(reasons) < 9
    assert summary.done == 9 - len(reasons)
    assert all(str(bad) in reason for reason in reasons.values()), reasons
    with pytest.raises(TooManyFailures, match="more than run.tolerance 0.01"):
        run(
            small_mosaic.elsewhere(
                small_mosaic.small(tmp_path, FINE, alone(tmp_path), "run.max_attempts=1"), tmp_path / "strict"
            )
        )


def test_a_block_of_no_data_runs_no_network_and_is_written_as_empty(tmp_path: Path) -> None:
    cfg = small_mosaic.small(tmp_path)
    (tmp_path / "scenes/1.tif").unlink()
    with rasterio.open(tmp_path / "scenes/0.tif", "r+") as scene:  # zeros in both bands are no data: all but one corner
        db = scene.read()
        db[:, 60:] = 0
        db[:, :, 60:] = 0
        scene.write(db)
    summary = run(cfg)
    assert summary.status == "complete"
    assert (summary.counts["blocks"], summary.counts["empty blocks"]) == (4, 3)
    assert summary.counts["windows"] == 1
    group = zarr.open_group(str(Path(cfg.run.out) / summary.outputs["mosaic"]), mode="r")
    top = group["valid"][50_216 - 16 : 50_216 + 160, 30_248 : 30_248 + 160]
    assert top[16:76, :60].all()
    assert not top[:16].any()
    assert not top[76:].any()


def test_statistics_of_windows_and_of_the_whole_scene(tmp_path: Path) -> None:
    """All three modes on the grid of one raster: whole, with the same valid mask, and not the same image."""
    small_mosaic.small(tmp_path)
    made = {}
    for mode in ("field", "window", "exact"):
        more = [f"data.scenes={tmp_path / 'scenes/0.tif'}", "mosaic.grid=", "mosaic.aoi="]
        own = ["translate.overlap=64", f"translate.statistics={mode}", f"run.out={tmp_path / mode}"]
        cfg = small_mosaic.small(tmp_path, *more, *own, alone(tmp_path))
        summary = run(cfg)
        assert summary.counts["blocks"] == 4
        group = zarr.open_group(str(tmp_path / mode / summary.outputs["mosaic"]), mode="r")
        made[mode] = group["rgb"][:].astype(int)
        assert group["valid"][:].all()
        text = lineage(cfg, Options(pixel="300,300", remake=True))
        assert "the same bytes" in text
    assert np.abs(made["field"] - made["exact"]).max() > 1
    assert np.abs(made["window"] - made["exact"]).max() > 1


def test_each_pixel_of_the_ground_is_owned_by_one_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene across the border of two zones: what one zone's mosaic leaves out, the other holds.

    The networks of both are loaded once for the statistics windows, and once for the blocks.
    """
    loaded: list[blocks.Frame] = []

    class Counted(Compute):
        def __init__(self, frame: blocks.Frame) -> None:
            loaded.append(frame)
            super().__init__(frame)

    monkeypatch.setattr("sar2eo_dist.pipeline.translate.Compute", Counted)
    place = (50_000, 73_180, 160, 200)
    small_mosaic.bundles(str(tmp_path / "bundles"), enhancer=False)
    small_mosaic.scene(tmp_path / "scenes/0.tif", *place, DATE="2020-06-01")
    cfg = small_mosaic.small(tmp_path, "mosaic.grid=utm", "mosaic.aoi=", alone(tmp_path))
    summary = run(cfg)
    assert len(loaded) == 2
    rng = np.random.default_rng(0)
    rows, cols = place[0] + rng.uniform(3, 157, 4000), place[1] + rng.uniform(3, 197, 4000)
    x, y = 100_000 + 10 * cols, 10_000_000 - 10 * rows
    seen = np.zeros(4000, int)
    names = [k for k in summary.outputs if k.partition(" ")[0] == "mosaic"]
    assert len(names) == 2
    for name in names:
        uri = str(Path(cfg.run.out) / summary.outputs[name])
        layout = store.read_layout(uri)
        valid = zarr.open_group(uri, mode="r")["valid"]
        px, py = (np.array(v) for v in rasterio.warp.transform("EPSG:32721", layout.crs, x, y))
        a, _, c, _, e, f = layout.transform
        r, k = np.floor((py - f) / e).astype(int), np.floor((px - c) / a).astype(int)
        found = valid[r.min() : r.max() + 1, k.min() : k.max() + 1][r - r.min(), k - k.min()]
        assert 0.05 < found.mean() < 0.95  # the border lies in the scene
        seen += found
    lon, _ = rasterio.warp.transform("EPSG:32721", "EPSG:4326", x, y)
    off = np.abs(np.array(lon) + 54) > 1.5e-4  # a pixel away from the border, whose pixels are owned by their centres
    assert off.sum() > 3500
    assert (seen[off] == 1).all()


def test_the_store_of_another_grid_is_refused(base: Path, tmp_path: Path) -> None:
    cfg = copy(base, tmp_path)
    meta = next((tmp_path / "run").rglob("mosaic.zarr/zarr.json"))
    tree = json.loads(meta.read_text())
    tree["attributes"]["transform"][2] += 10
    meta.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"another mosaic's: transform .*mosaic\.zarr"):
        run(cfg)


def test_bundles_and_scenes_that_do_not_fit(tmp_path: Path) -> None:
    cfg = small_mosaic.small(tmp_path)
    facts = tmp_path / "bundles/pix2pixhd/bundle.json"
    tree = json.loads(facts.read_text())
    facts.write_text(json.dumps(tree | {"scaling": tree["scaling"] | {"sar": "minmax"}}))
    with pytest.raises(ConfigError, match="trained with scaling sar=minmax, eo=fixed; a mosaic needs fixed"):
        run(cfg)
    facts.write_text(json.dumps(tree | {"quantity": "gamma0"}))
    with pytest.raises(ConfigError, match="trained on gamma0, the scene is sigma0"):
        run(cfg)
    facts.write_text(json.dumps(tree))
    late = cfg.model_copy(update={"mosaic": cfg.mosaic.model_copy(update={"start": dt.date(2021, 1, 1)})})
    with pytest.raises(ConfigError, match="none of 2 scenes lies within mosaic.start 2021-01-01"):
        run(late)
    (tmp_path / "far.json").write_text(small_mosaic.area(10_000, 10_000, 100, 100))
    far = cfg.model_copy(update={"mosaic": cfg.mosaic.model_copy(update={"aoi": str(tmp_path / "far.json")})})
    with pytest.raises(ConfigError, match=r"no scene of 2 touches the area of interest.*far\.json"):
        run(far)
    with pytest.raises(ConfigError, match=r"neither a GeoJSON file nor `amazon`: .*nothing\.json"):
        run(cfg.model_copy(update={"mosaic": cfg.mosaic.model_copy(update={"aoi": str(tmp_path / "nothing.json")})}))


def test_raw_grd_is_refused_by_name(tmp_path: Path) -> None:
    cfg = small_mosaic.small(tmp_path)
    for path in (tmp_path / "scenes").glob("*.tif"):
        path.unlink()
    points = [rasterio.control.GroundControlPoint(r, c, -55 + c / 1e4, -4 - r / 1e4) for r in (0, 99) for c in (0, 99)]
    with rasterio.open(tmp_path / "scenes/grd.tif", "w", driver="GTiff", width=100, height=100, count=2, dtype="uint16",
                       gcps=points, crs="EPSG:4326") as out:  # fmt: skip
        out.write(np.ones((2, 100, 100), np.uint16))
    with pytest.raises(ConfigError, match=r"no usable S1 scene.*raw GRD.*grd\.tif"):
        run(cfg)
    rejected = pq.read_table(tmp_path / "run/translate/rejected.parquet").to_pylist()
    assert [r["reason"] for r in rejected] == ["unreadable"]


def test_an_output_that_refuses_writes_fails_by_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small_mosaic.elsewhere(small_mosaic.small(base), tmp_path / "locked")

    def refuse(uri: str, data: bytes) -> None:
        raise AccessDenied(uri, "the store refused")

    monkeypatch.setattr(storage, "put", refuse)
    with pytest.raises(AccessDenied, match="the store refused: .*locked"):
        run(cfg)


def test_what_was_indexed_is_not_opened_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = copy(base, tmp_path)
    first, _ = scene_list.index(cfg, cfg.run.out, keep=True)
    opened: list[object] = []
    real = scene_list.scene_index.open_scene
    monkeypatch.setattr(scene_list.scene_index, "open_scene", lambda *a: opened.append(a) or real(*a))
    again, _ = scene_list.index(cfg, cfg.run.out, keep=True)
    assert again == first
    assert not opened
    other = cfg.model_copy(update={"data": cfg.data.model_copy(update={"units": "linear"})})
    declared, _ = scene_list.index(other, cfg.run.out, keep=True)
    assert [s.units for s in declared] == ["linear", "linear"]
    assert [dataclasses.replace(s, units="db") for s in declared] == first


def test_where_all_scenes_are_gone_the_pixels_go_too(tmp_path: Path) -> None:
    cfg = small_mosaic.small(tmp_path, FINE, alone(tmp_path), "mosaic.aoi=")
    small_mosaic.scene(tmp_path / "scenes/far.tif", 55_000, 30_300, 40, 40, DATE="2020-07-01")
    first = run(cfg)
    uri = str(Path(cfg.run.out) / first.outputs["mosaic"])
    assert zarr.open_group(uri, mode="r")["valid"][55_000:55_040, 30_300:30_340].all()
    (tmp_path / "scenes/far.tif").unlink()
    second = run(cfg)
    assert second.planned == first.planned
    assert second.counts["empty blocks"] == second.planned - second.resumed == first.planned - 9
    assert not zarr.open_group(uri, mode="r")["valid"][54_784:55_296, 30_208:30_464].any()


def test_workers_that_read_and_write_load_no_torch() -> None:
    code = "import sys, sar2eo_dist.pipeline.blocks, sar2eo_dist.pipeline.units; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
