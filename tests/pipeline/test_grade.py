"""grade on small mosaics whose error is known: every figure against plain numpy on the pixels."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import scene_files
import small_mosaic
from PIL import Image
from rio_cogeo.cogeo import cog_validate

from sar2eo_dist import storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, TooManyFailures
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.mosaic import stac, store
from sar2eo_dist.mosaic.pyramid import Pixels
from sar2eo_dist.pipeline import grade as grading
from sar2eo_dist.pipeline.grade import grade
from sar2eo_dist.pipeline.mosaics import UNITS
from sar2eo_dist.pipeline.stage import Options, Summary
from sar2eo_dist.records import KEPT, Artifact, TileRef, Unit, Verdict, to_table

H, W = scene_files.H, scene_files.W
CORNERS = scene_files.CORNERS  # of the two tiles that lie in a scene
LAST = dt.date(2020, 6, 20)
BLOCK, CELL = 128, 20
RNG = np.random.default_rng(8)
#: of the mosaic on the scenes' own lattice: its first pixel, in pixels of a scene, and its size
AT, SIZE = (60, -30), (230, 420)


def ground(day: int) -> np.ndarray:
    """(3, H, W) DN of a day: forest that nothing calls white."""
    rng = np.random.default_rng(day)
    return (np.array([[[300]], [[450]], [[280]]]) + 4 * day + rng.integers(-90, 90, (3, H, W))).astype(np.uint16)


def classes(day: int) -> np.ndarray:
    """(H / 2, W / 2) of 20 m: vegetation, and squares of cloud, cirrus, shadow, water and no data."""
    out = np.full((H // 2, W // 2), 4, np.uint8)
    for k, value in enumerate((9, 8, 10, 3, 6, 0)):
        out[40 + 10 * k : 49 + 10 * k, 12 + 7 * day : 22 + 7 * day] = value
    return out


def scene(
    root: str, name: str, dn: np.ndarray, scl: np.ndarray | None = None, qa60: np.ndarray | None = None, **options: Any
) -> None:
    """A band a file, without a mask or with a scene classification of 20 m, or QA60 of 10 m."""
    coarse = scene_files.place(scene_files.ROW / 2, scene_files.COL / 2, 20)
    files = {b: scene_files.cog(p, **options) for b, p in zip(("B04", "B03", "B02"), dn, strict=True)}
    if scl is not None:
        files["SCL"] = scene_files.cog(scl, transform=coarse)
    if qa60 is not None:
        files["QA60"] = scene_files.cog(qa60)
    for band, data in files.items():
        scene_files.put(root, f"S2A_MSIL2A_{name}T140059_N0212_R067_T21MXT/{band}.tif", data)


def archive(out: Path, refs: list[TileRef], trained: int = 0, reason: str = KEPT) -> None:
    """What collect leaves of these tiles, all kept; the first `trained` are targets of training pairs."""
    rows = [
        Verdict(key=r.key, place=r.place, reason=reason, **{f.name: getattr(r, f.name) for f in dataclasses.fields(r)})
        for r in refs
    ]
    sink = io.BytesIO()
    pq.write_table(to_table(rows, Verdict), sink)
    storage.put(str(out / "collect/verdicts.parquet"), sink.getvalue())
    splits = ["train"] * trained + ["val"] * (len(refs) - trained)
    sink = io.BytesIO()
    pq.write_table(pa.table({"eo_digest": [r.digest for r in refs], "split": splits}), sink)
    storage.put(str(out / "collect/pairs.parquet"), sink.getvalue())
    outputs = {"verdicts": "collect/verdicts.parquet", "pairs": "collect/pairs.parquet"}
    storage.put(str(out / "collect/summary.json"), json.dumps({"status": "complete", "outputs": outputs}).encode())


def mosaic(
    folder: Path, layout: store.Layout, rgb: np.ndarray, valid: np.ndarray, last: dt.date | None = LAST
) -> list[tuple[int, int, tuple[Any, ...]]]:
    """A store with its STAC collection; blocks without any valid pixel are not written."""
    store.write_template(str(folder), "mosaic.zarr", layout, {})
    made = []
    for row in range(layout.shape(0)[0]):
        for col in range(layout.shape(0)[1]):
            (height, width), (y, x) = layout.extent(0, row, col), (row * layout.block, col * layout.block)
            here = np.s_[y : y + height, x : x + width]
            if valid[here].any():
                pixels = Pixels(rgb[:, *here], valid[here])
                objects = store.write_block(str(folder), "mosaic.zarr", layout, 0, row, col, pixels)
                made.append((row, col, objects))
    items = [("a", "./a.json", (-60.0, -5.0, -59.0, -4.0), (dt.date(2020, 6, 1), last))]
    storage.put(str(folder / "stac/collection.json"), stac.collection("m", "m", "m", items, "other"))
    return made


def run(cfg: Config, look: bool = False, **options: Any) -> Summary:
    """Without Ray; without drawing and page, which take most of the time, but where they are looked at."""
    drawn = (
        {} if look else {"picture": lambda *_: b"not drawn", "write_report": lambda _: Artifact("report.html", 0, "")}
    )
    with small_mosaic.without_ray(), mock.patch.multiple(grading, **drawn) if drawn else contextlib.nullcontext():
        return grade(cfg, Options(**options))


def config(base: Path, *more: str) -> Config:
    return load(overrides=[f"run.out={base / 'run'}", "data.kind=scenes", f"grade.cell={CELL}", "grade.slice=3",
                           f"grade.mosaics=[{base / 'm'}]", *more])  # fmt: skip


def flagged() -> np.ndarray:
    """QA60 of day 42: opaque cloud, cirrus, and a bit that means neither."""
    out = np.zeros((H, W), np.uint16)
    for k, bit in enumerate((1 << 10, 1 << 11, 1 << 3)):
        out[150:170, 60 + 30 * k : 80 + 30 * k] = bit
    return out


DAYS = (10, 42)  # after LAST; day 10 has SCL; day 42 has QA60, a white cloud that it does not know, and an offset


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of four dates, their archive, and the mosaic m = ground of day 10 + a known error; 60 pixels of it hold none."""
    folder = tmp_path_factory.mktemp("grade")
    scenes = str(folder / "scenes")
    scene(scenes, "20200630", ground(10), classes(1))
    cloudy = ground(42) + 1000
    cloudy[:, 100:140, 300:360] = 7000
    scene(scenes, "20200801", cloudy, qa60=flagged(), tags={"BOA_ADD_OFFSET": "-1000"})
    scene(scenes, "20200701", np.full((3, H, W), 6000, np.uint16))  # nothing but cloud
    scene(scenes, "20190601", ground(3))  # before the mosaic
    refs = scene_files.listed(scenes, "s2")
    assert len(refs) == 8
    archive(folder / "run", sorted(refs, key=lambda r: r.key), trained=3)
    mosaic(folder / "m", *made())
    return folder


def made() -> tuple[store.Layout, np.ndarray, np.ndarray]:
    (top, left), (h, w) = AT, SIZE
    t = scene_files.place(scene_files.ROW + top, scene_files.COL + left)
    layout = store.Layout(scene_files.CRS, t[:6], h, w, BLOCK, "uint16")
    rgb = np.zeros((3, h, w), np.uint16)
    rgb[:, :, -left:] = ground(10)[:, top : top + h, : w + left] + known_error()[:, :, -left:]
    valid = np.ones((h, w), bool)
    valid[:, : 30 - left] = False  # also where the scene has ground
    valid[150:160, 100:106] = False
    return layout, rgb, valid


def known_error() -> np.ndarray:
    return np.random.default_rng(5).integers(-60, 140, (3, *SIZE))


def on_scene(plane: np.ndarray, fill: Any = 0) -> np.ndarray:
    """The mosaic's pixels laid over a scene: (..., H, W)."""
    (top, left), (h, w) = AT, SIZE
    out = np.full((*plane.shape[:-2], H, W), fill, plane.dtype)
    out[..., top : top + h, : w + left] = plane[..., -left:]
    return out


def compared(day: int) -> tuple[np.ndarray, np.ndarray]:
    """((3, H, W) truth, (H, W) True where a pixel counts) of a date, by slices."""
    tiles = np.zeros((H, W), bool)
    for row, col in CORNERS:
        tiles[row : row + 256, col : col + 256] = True
    there = tiles & on_scene(made()[2])
    if day == 10:
        return ground(10).astype(int), there & np.isin(classes(1), (4, 6)).repeat(2, 0).repeat(2, 1)
    there[100:140, 300:360] = False
    there &= (flagged() & 3072) == 0
    return ground(42).astype(int), there


def expected(days: tuple[int, ...] = DAYS) -> dict[int, dict[str, Any]]:
    out = {}
    rgb = on_scene(made()[1]).astype(int)
    for day in days:
        truth, there = compared(day)
        e, t = (rgb - truth)[:, there], truth[:, there]
        mean = np.floor(t.mean(axis=1) + 0.5)[:, None]
        out[day] = {
            "pixels": there.sum(), "mae": np.abs(e).mean(), "rmse": np.sqrt((e**2).mean()), "bias": e.mean(),
            "bias_B3": e[1].mean(), "skill": 1 - (e**2).sum() / ((t - mean) ** 2).sum(),
            "trivial_mae": np.abs(t - mean).mean(), "days": day, "tiles": 2,
        }  # fmt: skip
    return out


def test_series_counts_and_map_are_those_of_plain_numpy(base: Path) -> None:
    cfg = config(base)
    summary = run(cfg)
    assert summary.status == "complete"
    assert summary.planned == 3  # of two tiles each: 2 + 2 do not fit into slices of 3
    wanted = expected()
    clear = int(sum(w["pixels"] for w in wanted.values()))
    assert summary.counts == {
        "tiles kept": 8, "tiles out of days": 2, "tiles without clear pixels": 2, "tiles graded": 4,
        "tiles trained on": 1, "clear pixels": clear,
    }  # fmt: skip
    rows = pq.read_table(base / "run" / summary.outputs["series"]).to_pylist()
    assert [(r["mosaic"], r["date"], r["days"]) for r in rows] == [
        ("m", dt.date(2020, 6, 30), 10),
        ("m", dt.date(2020, 8, 1), 42),
    ]
    for row in rows:
        for name, value in wanted[row["days"]].items():
            assert row[name] == pytest.approx(value, rel=1e-12), name
    assert rows[0]["skill"] != pytest.approx(rows[1]["skill"], rel=0.1)


def test_the_skill_map_is_a_cog_that_lies_where_the_mosaic_lies(base: Path) -> None:
    summary = run(config(base), look=True)
    path = base / "run" / summary.outputs["skill"]
    assert path.name == "skill_m.tif"
    assert cog_validate(path)[0]
    rgb = on_scene(made()[1]).astype(int)
    layout = made()[0]
    rows, cols = (-(-n // CELL) for n in SIZE)
    n, absolute, squares, trivial = (np.zeros((rows, cols)) for _ in range(4))
    i, j = np.meshgrid((np.arange(H) - AT[0]) // CELL, (np.arange(W) - AT[1]) // CELL, indexing="ij")
    for day in DAYS:
        truth, there = compared(day)
        mean = np.floor(truth[:, there].mean(axis=1) + 0.5)[:, None]
        at = i[there], j[there]
        e = (rgb - truth)[:, there]
        for out, value in ((n, np.ones(len(at[0]))), (absolute, np.abs(e).sum(0)), (squares, (e**2).sum(0)),
                           (trivial, ((truth[:, there] - mean) ** 2).sum(0))):  # fmt: skip
            np.add.at(out, at, value)
    filled = np.argwhere(n > 0)
    low, high = filled.min(0), filled.max(0) + 1
    box = np.s_[low[0] : high[0], low[1] : high[1]]
    with rasterio.open(path) as found, np.errstate(invalid="ignore"):
        assert found.crs == scene_files.CRS
        assert found.descriptions == ("mae", "bias", "skill", "n")
        assert found.units[:2] == ("DN", "DN")
        assert np.isnan(found.nodata)
        assert found.tags()["S2_DATES"] == "2020-06-30 2020-08-01"
        assert found.tags()["DAYS_AFTER_RADAR"] == "10 to 42"
        left, top = layout.transform[2] + 10 * CELL * low[1], layout.transform[5] - 10 * CELL * low[0]
        assert found.transform[:6] == pytest.approx((10 * CELL, 0, left, 0, -10 * CELL, top))
        assert found.res == (10 * CELL, 10 * CELL)
        mae, _, skill, count = found.read()
        np.testing.assert_array_equal(np.nan_to_num(count), n[box])
        np.testing.assert_allclose(mae, (absolute / np.where(n > 0, 3 * n, np.nan))[box].astype(np.float32), rtol=1e-6)
        np.testing.assert_allclose(skill, (1 - squares / np.where(trivial > 0, trivial, np.nan))[box], rtol=2e-5)
    with Image.open(base / "run" / summary.outputs["skill_quicklook"]) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
    page = (base / "run" / summary.outputs["report"]).read_text()
    assert "2 dates, 10 to 42" in page


def test_slices_resume_and_order_change_no_byte(base: Path, tmp_path: Path) -> None:
    first = run(config(base))
    assert run(config(base)).resumed == 3
    files = [first.outputs[k] for k in ("skill", "skill_quicklook", "series")]
    before = [(base / "run" / f).read_bytes() for f in files]
    archive_of = base / "run/collect"
    for n in (1, 256):
        other = config(base, f"grade.slice={n}", f"run.out={tmp_path / str(n)}")
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "collect").symlink_to(archive_of)
        part = run(other, limit=1)
        assert part.planned == 1
        whole = run(other)
        assert (whole.planned, whole.resumed) == ({1: 6, 256: 1}[n], 1)
        assert [(tmp_path / str(n) / f).read_bytes() for f in files] == before
        assert whole.counts == first.counts
        assert n > 1 or part.counts["tiles left out"] == 5


def test_dry_run_writes_nothing_and_says_how_much(base: Path, tmp_path: Path) -> None:
    (tmp_path / "collect").symlink_to(base / "run/collect")
    planned = run(config(base, f"run.out={tmp_path}"), dry_run=True)
    assert (planned.planned, planned.counts) == (3, {"tiles": 6})
    assert [p.name for p in tmp_path.iterdir()] == ["collect"]


def test_another_crs_is_looked_up_at_the_centre_of_each_truth_pixel(base: Path, tmp_path: Path) -> None:
    """A mosaic of 8-bit colours, 14 m pixels, in the neighbouring zone's CRS; the place of each pixel by pyproj."""
    to = pyproj.Transformer.from_crs(scene_files.CRS, "EPSG:32720", always_xy=True)
    row, col = np.mgrid[0:H, 0:W] + 0.5
    x, y = to.transform(10 * (scene_files.COL + col), -10 * (scene_files.ROW + row))
    left, top = x.min() + 333.3, y.max() - 411.7
    h, w = 150, 260
    i, j = (np.floor(v).astype(int) for v in ((top - y) / 14, (x - left) / 14))
    layout = store.Layout("EPSG:32720", (14.0, 0.0, float(left), 0.0, -14.0, float(top)), h, w, 64, "uint8")
    rgb = RNG.integers(0, 80, (3, h, w)).astype(np.uint8)
    mosaic(tmp_path / "zone", layout, rgb, np.ones((h, w), bool))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/collect").symlink_to(base / "run/collect")
    summary = run(config(tmp_path, f"grade.mosaics=[{tmp_path / 'zone'}]", "grade.days=[5, 10]"))
    inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    truth, there = compared(10)
    tiles = np.zeros((H, W), bool)
    for r, c in CORNERS:
        tiles[r : r + 256, c : c + 256] = True
    there = inside & tiles & np.isin(classes(1), (4, 6)).repeat(2, 0).repeat(2, 1)
    e = np.rint(rgb[:, i[there], j[there]] * (3000 / 255)).astype(int) - truth[:, there]
    (row_,) = pq.read_table(tmp_path / "run" / summary.outputs["series"]).to_pylist()
    assert row_["pixels"] == there.sum()
    assert row_["mae"] == pytest.approx(np.abs(e).mean(), rel=1e-12)
    assert row_["rmse"] == pytest.approx(np.sqrt((e**2).mean()), rel=1e-12)
    assert summary.counts["tiles out of days"] == 6


def test_two_mosaics_have_maps_of_their_own_and_tiles_beside_them_are_counted(base: Path, tmp_path: Path) -> None:
    layout, rgb, valid = made()
    far = dataclasses.replace(layout, transform=(10.0, 0.0, 600_000.0, 0.0, -10.0, 9_300_000.0))
    mosaic(tmp_path / "far", far, rgb, valid)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/collect").symlink_to(base / "run/collect")
    both = config(tmp_path, f"grade.mosaics=[{tmp_path / 'far'},{base / 'm'}]")
    summary = run(both)
    assert summary.counts["tiles kept"] == 16
    assert summary.counts["tiles outside"] == 8
    assert summary.counts["tiles graded"] == 4
    assert set(summary.outputs) == {"skill", "skill_quicklook", "series", "report"}
    mosaic(tmp_path / "n" / "near", layout, rgb, valid, dt.date(2020, 6, 25))
    summary = run(config(tmp_path, f"grade.mosaics=[{base / 'm'},{tmp_path / 'n/near'}]"))
    assert {"skill", "skill near", "skill_quicklook near", "series"} <= set(summary.outputs)
    rows = pq.read_table(tmp_path / "run" / summary.outputs["series"]).to_pylist()
    assert [(r["mosaic"], r["days"]) for r in rows] == [("m", 10), ("m", 42), ("near", 5), ("near", 37)]


def test_refusals_say_what_to_do(base: Path, tmp_path: Path) -> None:
    layout, rgb, valid = made()
    mosaic(tmp_path / "undated", layout, rgb, valid, None)
    with pytest.raises(ConfigError, match="tag DATE"):
        run(config(base, f"grade.mosaics=[{tmp_path / 'undated'}]"))
    with pytest.raises(ConfigError, match=r"8 clear ones.*0 lie outside and 8 are not 500 to 600 days"):
        run(config(base, "grade.days=[500, 600]"))
    with pytest.raises(ConfigError, match="one name"):
        run(config(base, f"grade.mosaics=[{base / 'm'},{base / 'm/mosaic.zarr'}]"))
    ref = scene_files.listed(str(base / "scenes"), "s2")[0]
    archive(tmp_path / "run", [dataclasses.replace(ref, kind="multiearth_tiff", rows=())])
    with pytest.raises(ConfigError, match=r"the 1 clear S2 tiles are MultiEarth patches.*data\.kind=scenes"):
        run(config(tmp_path, f"grade.mosaics=[{base / 'm'}]"))
    archive(tmp_path / "run", [ref], reason="alpha")
    with pytest.raises(ConfigError, match="kept no S2 tile"):
        run(config(tmp_path, f"grade.mosaics=[{base / 'm'}]"))


def test_a_scene_that_changed_fails_its_slice_by_name(base: Path, tmp_path: Path) -> None:
    scene(str(tmp_path / "scenes"), "20200630", ground(10))
    refs = scene_files.listed(str(tmp_path / "scenes"), "s2")
    archive(tmp_path / "run", refs)
    scene(str(tmp_path / "scenes"), "20200630", ground(11))
    with pytest.raises(TooManyFailures, match=r"SourceChanged.*run jobs/collect\.py again"):
        run(config(tmp_path, f"grade.mosaics=[{base / 'm'}]", "run.max_attempts=1"))


def ledgered(root: Path, seed: int = 0) -> Config:
    """A run folder whose mosaic has a plan and a ledger; of its six blocks one is planned and not made."""
    layout, rgb, valid = made()
    folder = "translate/m-1"
    rgb = rgb + np.uint16(seed)
    blocks = mosaic(root / "run" / folder, layout, rgb, valid)
    units = [Unit("translate", f"{folder}/r{r}c{c}", "f", "i") for r, c, _ in blocks]
    rows = [("block", r, c, u.stage, u.key, "f", "i", [], []) for (r, c, _), u in zip(blocks, units, strict=True)]
    columns = [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), UNITS, strict=True)]
    pq.write_table(pa.table(columns, UNITS), root / "run" / folder / "units.parquet")
    (root / "run" / folder / "frame.json").write_text(
        json.dumps({"folder": folder, "scenes": f"{folder}/scenes.parquet"})
    )
    ledger = Ledger(str(root / "run"))
    ledger.forget(units)
    for u, (_, _, objects) in list(zip(units, blocks, strict=True))[:-1]:
        own = tuple(dataclasses.replace(a, path=f"{folder}/{a.path}") for a in objects)
        ledger.commit(Entry(u, own, 1.0))
    told = {"status": "complete", "outputs": {"mosaic": f"{folder}/mosaic.zarr", "mosaic_other": "x"}}
    storage.put(str(root / "run/translate/summary.json"), json.dumps(told).encode())
    return config(root, "grade.mosaics=[]")


def test_the_last_translates_mosaic_is_known_by_its_ledger(base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/collect").symlink_to(base / "run/collect")
    cfg = ledgered(tmp_path)
    first = run(cfg)
    assert first.outputs["skill"] == "grade/skill_m-1.tif"
    missing = on_scene(np.pad(np.ones((SIZE[0] - BLOCK, SIZE[1] - 3 * BLOCK), bool), ((BLOCK, 0), (3 * BLOCK, 0))))
    left_out = sum(int((compared(day)[1] & missing).sum()) for day in DAYS)
    assert left_out > 0
    assert first.counts["clear pixels"] == sum(int(compared(d)[1].sum()) for d in DAYS) - left_out
    ledgered(tmp_path)  # the same pixels, made again
    assert run(cfg).resumed == 3
    ledgered(tmp_path, 1)
    again = run(cfg)
    assert again.resumed == 0
    assert again.digest != first.digest
    (tmp_path / "run/translate/m-1/stac/collection.json").unlink()
    pq.write_table(pa.table({"date": [LAST, dt.date(2020, 6, 2)]}), tmp_path / "run/translate/m-1/scenes.parquet")
    assert run(cfg).resumed == 3


@pytest.mark.cluster
def test_workers_of_a_cluster_leave_the_same_bytes(ray_session: None, base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/collect").symlink_to(base / "run/collect")
    cfg = config(tmp_path, f"grade.mosaics=[{base / 'm'}]", "grade.slice=2")
    there = config(base, "grade.slice=2")
    assert grade(cfg, Options()).digest == run(there, look=True).digest
    for name in ("skill_m.tif", "skill_m.png", "series.parquet"):
        assert (tmp_path / "run/grade" / name).read_bytes() == (base / "run/grade" / name).read_bytes()
