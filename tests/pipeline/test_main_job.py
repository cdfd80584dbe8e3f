"""The main job on a small synthetic world through real Ray: every stage's result against a direct computation."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.warp
import zarr
from PIL import Image
from safetensors.torch import load as tensors_of
from small_job import VERBS, Done, rerun

from sar2eo_dist import sources, storage
from sar2eo_dist.cca.frechet import Reference, point_distance
from sar2eo_dist.errors import ConfigError, ReferenceSetError, Sar2EoError, TooManyFailures
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline import windows
from sar2eo_dist.pipeline.actors import Chain, load_extractor
from sar2eo_dist.pipeline.blocks import Frame
from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.evaluate import evaluate
from sar2eo_dist.pipeline.judge import judge
from sar2eo_dist.pipeline.lineage import lineage
from sar2eo_dist.pipeline.members import members, read_image
from sar2eo_dist.pipeline.scene_list import require_fit
from sar2eo_dist.pipeline.shard import shard
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.translate import translate
from sar2eo_dist.radiometry import decode_db, to_uint8
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Pair, Unit, Verdict, from_table
from sar2eo_dist.sources import scenes

pytestmark = pytest.mark.cluster


def verdicts(done: Done) -> list[Verdict]:
    return from_table(pq.read_table(done.path("collect", "verdicts")), Verdict)


def units_of(cfg: object, stage: str) -> list[Unit]:
    ledger = Ledger(cfg.run.out)  # type: ignore[attr-defined]
    found = []
    for path in sorted((Path(ledger.root) / "ledger" / stage).glob("*.json")):
        tree = json.loads(path.read_text())["unit"]
        found.append(Unit(*(tree[k] for k in ("stage", "key", "fingerprint", "inputs"))))
    return found


def test_every_tile_has_a_verdict_with_its_measurements(main_job: Done) -> None:
    found = verdicts(main_job)
    places, dates = 18, 2
    assert len(found) == places * dates * 2
    assert len({v.key for v in found}) == len(found)
    assert {v.reason for v in found if v.sensor == "s2"} >= {""}
    for v in found:
        if v.sensor == "s2":
            again, image, _ = judge(v.ref, sources.read_eo(v.ref), main_job.cfg.cca)
            assert (again.brightness, again.max_dn, again.dark_fraction) == (v.brightness, v.max_dn, v.dark_fraction)
            assert (image is not None) == np.isfinite(v.score)


def test_ctrl_c_is_heard_after_a_training(main_job: Done) -> None:
    """Ray Train puts a handler of its own in its place, which takes no notice once the training is over."""
    assert signal.getsignal(signal.SIGINT) in (
        signal.default_int_handler,
        signal.SIG_IGN,
    )  # the second: in the background


def test_scores_equal_a_direct_computation(main_job: Done) -> None:
    cca = main_job.cfg.cca
    net = load_extractor(cca)
    images = np.stack([read_image(m.name) for m in members(cca).items])
    reference = Reference.from_features(net.features(images), net.name, net.preprocessing)
    scored = [v for v in verdicts(main_job) if np.isfinite(v.score)]
    pixels = np.stack([judge(v.ref, sources.read_eo(v.ref), cca)[1] for v in scored[: cca.pack]])
    direct = point_distance(net.features(pixels), reference)
    np.testing.assert_allclose([v.score for v in scored[: cca.pack]], direct, rtol=1e-5)
    assert {v.score_name for v in scored} == {"fd_efficientnet_lite0"}
    calibration = json.loads(main_job.path("collect", "calibration").read_text())
    scores = np.array([v.score for v in scored])
    low, high = scores.min(), scores.max()
    assert calibration["threshold"] == pytest.approx(low + (high - low) * cca.beta, rel=1e-12)
    for v in scored:
        assert (v.reason == "frechet") == (v.score < calibration["threshold"])


def test_pairs_are_near_in_time_and_usable(main_job: Done) -> None:
    pairs = from_table(pq.read_table(main_job.path("collect", "pairs")), Pair)
    by_key = {v.key: v for v in verdicts(main_job)}
    assert pairs
    assert {p.split for p in pairs} >= {"train", "val"}
    for p in pairs:
        assert by_key[p.sar_key].reason == by_key[p.eo_key].reason == ""
        assert p.days == (p.eo_date - p.sar_date).days
        assert abs(p.days) <= main_job.cfg.pairing.max_days


def test_shards_hold_the_pixels_of_their_pairs(main_job: Done) -> None:
    index = pq.read_table(main_job.path("shard", "index")).to_pylist()
    store = main_job.path("shard", "store")
    read = PairReader(str(store))
    assert len(read) == len(index) == main_job.summaries["shard"].counts["pairs"]
    by_key = {v.key: v for v in verdicts(main_job)}
    for i in (0, len(index) - 1):
        sar, eo, valid = read(i)
        db = sources.read_sar(by_key[index[i]["sar_key"]].ref)
        np.testing.assert_allclose(decode_db(sar), db, atol=0.005 + 1e-6)
        np.testing.assert_array_equal(eo, sources.read_eo(by_key[index[i]["eo_key"]].ref).bands)
        np.testing.assert_array_equal(valid, np.isfinite(db).all(axis=0) & (eo > 0).all(axis=0))
    splits = [r["split"] for r in index]
    assert splits == sorted(splits, key=["train", "val", "test"].index)


def test_training_leaves_bundles_and_curves(main_job: Done) -> None:
    for role, steps in (("translate", 6), ("enhance", 4)):
        assert {p.name for p in main_job.path("train", role).iterdir()} == {
            "weights.safetensors",
            "README.md",
            "bundle.json",
        }
        lines = (Path(main_job.cfg.run.out) / "train" / role / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(2, steps + 1, 2))
        journal = main_job.path("train", f"{role} journal")
        record = json.loads((journal / "record.json").read_text())
        assert [v["step"] for v in record["validations"]] == list(range(2, steps + 1, 2))
        assert record["bundle"] == main_job.summaries["train"].outputs[role]
        info = bundle.read(str(main_job.path("train", role)))
        assert info.metrics["held_out_mae"] == record["validations"][-1]["mae"]
        names = {"baseline_mean", "baseline_zero", "baseline_linear"} | ({"translated"} if role == "enhance" else set())
        assert set(record["baselines"]) == names
        assert (journal / "events.out.tfevents.sar2eo").stat().st_size > 0
        with Image.open(journal / "samples" / f"{steps:08d}.png") as grid:
            assert grid.size == (len(record["columns"]) * 262 - 6, 4 * 262 - 6)
    translated = json.loads((main_job.path("train", "translate journal") / "record.json").read_text())["validations"][
        -1
    ]
    assert record["baselines"]["translated"]["mae"] == pytest.approx(translated["mae"], abs=2e-5)  # the set is int16
    assert b"Restormer" in main_job.path("train", "page").read_bytes()


def test_the_mosaic_is_georeferenced_and_the_same_in_every_form(main_job: Done) -> None:
    scene = scenes.open_scene(main_job.cfg.data.scenes)
    group = zarr.open_group(str(main_job.path("translate", "mosaic")), mode="r")
    rgb, valid = group["rgb"][:], group["valid"][:].astype(bool)
    assert rgb.shape == (3, 300, 420)
    assert rgb[:, valid].std() > 0
    with rasterio.open(main_job.path("translate", "vrt")) as vrt:
        assert vrt.crs == rasterio.crs.CRS.from_string(scene.crs)
        assert tuple(vrt.transform)[:6] == pytest.approx(scene.transform)
        np.testing.assert_array_equal(vrt.read(), rgb)
        np.testing.assert_array_equal(vrt.dataset_mask() > 0, valid)
    db = scenes.read_window(scene, 0, 0, scene.height, scene.width)
    np.testing.assert_array_equal(valid, np.isfinite(db).all(axis=0))
    with Image.open(main_job.path("translate", "quicklook")) as look:
        assert max(look.size) == 420


def frame_of(job: Done) -> Frame:
    root, folder = job.cfg.run.out, job.summaries["translate"].outputs["mosaic"].rpartition("/")[0]
    return Frame.from_json((Path(root) / folder / "frame.json").read_bytes(), root)


def test_a_mosaic_does_not_depend_on_its_blocks(main_job: Done) -> None:
    """The whole scene computed here, as one block, equals what twelve units wrote, bit for bit."""
    frame = frame_of(main_job)
    scene = scenes.open_scene(main_job.cfg.data.scenes)
    assert frame.lattice is not None
    assert len(frame.grid.blocks()) == 12
    grid = dataclasses.replace(frame.grid, block=512)
    chain = Chain(frame.bundles, frame.threads, frame.speed)
    root = Path(main_job.cfg.run.out)
    found = {b: tensors_of((root / frame.statistics(b.key)).read_bytes()) for b in frame.lattice.blocks()}
    assert len(found) == 4
    (block,) = grid.blocks()
    sar = windows.Sar(0, 0, scenes.read_window(scene, 0, 0, scene.height, scene.width))
    around = lambda place: [(b, found[b]) for b in frame.lattice.knots(place)]  # noqa: E731
    image = windows.images(chain, grid, block, sar, around, frame.lattice, frame.batch, None).image
    valid = np.isfinite(sar.db).all(axis=0)
    group = zarr.open_group(str(main_job.path("translate", "mosaic")), mode="r")
    np.testing.assert_array_equal(group["valid"][:], valid)
    np.testing.assert_array_equal(group["rgb"][:], to_uint8(np.where(valid, image, -1)))


def test_overviews_and_catalogue(main_job: Done) -> None:
    group = zarr.open_group(str(main_job.path("translate", "mosaic")), mode="r")
    rgb, valid = group["rgb"][:].astype(int), group["valid"][:].astype(int)
    half, seen = group["overviews/2/rgb"][:], group["overviews/2/valid"][:]
    count = valid[0::2, 0::2] + valid[1::2, 0::2] + valid[0::2, 1::2] + valid[1::2, 1::2]
    total = sum((rgb * valid)[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    np.testing.assert_array_equal(seen, count > 0)
    np.testing.assert_array_equal(half, (2 * total + np.maximum(count, 1)) // (2 * np.maximum(count, 1)))
    assert group["overviews/4/rgb"].shape == (3, 75, 105)
    collection = json.loads(main_job.path("translate", "stac").read_text())
    folder = main_job.path("translate", "stac").parent
    items = [json.loads((folder / k["href"]).read_text()) for k in collection["links"] if k["rel"] == "item"]
    assert len(items) == 12
    assert all((folder / i["assets"]["visual"]["href"]).exists() for i in items)
    assert {k["href"] for i in items for k in i["links"] if k["rel"] == "derived_from"} == {
        storage.absolute(main_job.cfg.data.scenes)
    }


def test_lineage_names_what_a_pixel_is_made_from_and_makes_its_block_again(main_job: Done) -> None:
    frame = frame_of(main_job)
    text = lineage(main_job.cfg, Options(pixel="140,300", remake=True))
    assert "block    r00001c00002" in text
    assert all(uri in text for uri in (*frame.bundles, main_job.cfg.data.scenes))
    assert "4 statistics windows and 5 objects: the same bytes" in text
    (lon,), (lat,) = rasterio.warp.transform(frame.grid.crs, "EPSG:4326", *zip(centre(frame, 140, 300), strict=True))
    assert lineage(main_job.cfg, Options(at=f"{lon},{lat}")).startswith("pixel    row 140, column 300 of ")
    with pytest.raises(ConfigError, match="lies outside"):
        lineage(main_job.cfg, Options(at="10,50"))
    with pytest.raises(ConfigError, match="say which pixel"):
        lineage(main_job.cfg, Options())
    with pytest.raises(ConfigError, match="two numbers"):
        lineage(main_job.cfg, Options(pixel="12"))


def centre(frame: Frame, row: int, col: int) -> tuple[float, float]:
    a, _, c, _, e, f = frame.grid.transform
    return c + a * (col + 0.5), f + e * (row + 0.5)


def test_targets_with_sar_in_range_get_an_image(main_job: Done) -> None:
    table = pq.read_table(main_job.path("translate", "patch_table")).to_pylist()
    made = {p.stem for p in main_job.path("translate", "patches").glob("*.tiff")}
    assert made == {r["name"] for r in table if r["status"] == "translated"} != set()
    with rasterio.open(next(main_job.path("translate", "patches").glob("*.tiff"))) as patch:
        assert (patch.count, patch.shape, patch.dtypes[0]) == (3, (256, 256), "uint8")


def test_metrics_and_report(main_job: Done) -> None:
    rows = pq.read_table(main_job.path("evaluate", "metrics")).to_pylist()
    pairs = main_job.summaries["shard"].counts["pairs val"]
    methods = {"translated", "enhanced", "baseline_mean", "baseline_zero", "baseline_linear"}
    assert {r["method"] for r in rows} == methods | {"nearest_date"}
    assert {m: sum(r["method"] == m for r in rows) for m in methods} == dict.fromkeys(methods, pairs)
    assert all(np.isfinite(r["mae"]) for r in rows)
    dated = [r for r in rows if r["method"] == "nearest_date"]
    kept = {v.key: v.date for v in verdicts(main_job) if v.sensor == "s2" and v.reason == ""}
    others = {r["eo_key"] for r in rows if any(k.startswith(f"s2/{r['place']}/") and k != r["eo_key"] for k in kept)}
    assert {r["eo_key"] for r in dated} == others
    tree = json.loads(main_job.path("evaluate", "scores").read_text())
    assert (tree["pairs"], tree["measured"]) == (pairs, pairs)
    assert tree["methods"][0]["frechet"]["name"] == "fd_efficientnet_lite0"
    samples = json.loads(main_job.path("evaluate", "samples").read_text())
    assert sorted(s["why"] for s in samples) == ["best", "spread", "spread", "worst"]
    assert set(samples[0]["images"]) >= {"sar", "translated", "enhanced", "true"}
    page = main_job.path("evaluate", "report").read_text()
    assert "synthetic" in page.lower()
    assert "fd_efficientnet_lite0" in page


def test_run_again_everything_is_found_done(main_job: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ray(cfg: object) -> None:
        raise AssertionError("Ray was started although nothing is left to do")

    monkeypatch.setattr("sar2eo_dist.pipeline.cluster.start", no_ray)
    for verb in VERBS:
        again = rerun(main_job.cfg, verb)
        first = main_job.summaries[verb.__name__]
        assert again.resumed == again.planned == first.planned
        assert again.digest == first.digest
        assert again.outputs == first.outputs


def test_audit_of_all_that_was_written(main_job: Done) -> None:
    for stage in ("collect", "shard", "train", "translate", "evaluate", "reference"):
        units = units_of(main_job.cfg, stage)
        assert units
        assert Ledger(main_job.cfg.run.out).audit(units) == []


def test_another_beta_selects_again_without_touching_imagery(main_job: Done, tmp_path: Path) -> None:
    cfg = main_job.cfg
    shutil.copytree(Path(cfg.run.out) / "collect", tmp_path / "collect")
    shutil.copytree(Path(cfg.run.out) / "ledger" / "collect", tmp_path / "ledger" / "collect")
    update = {"run": cfg.run.model_copy(update={"out": str(tmp_path)}), "cca": cfg.cca.model_copy(update={"beta": 0.0})}
    summary = collect(cfg.model_copy(update=update), Options())
    assert summary.resumed == summary.planned
    assert summary.counts["S2 kept"] > main_job.summaries["collect"].counts["S2 kept"]


def test_results_do_not_depend_on_workers_or_slices_done_before(main_job: Done, tmp_path: Path) -> None:
    """One reader, and only some slices at first: the same bytes in the end."""
    cfg = main_job.cfg
    update = {
        "run": cfg.run.model_copy(update={"out": str(tmp_path)}),
        "resources": cfg.resources.model_copy(update={"readers": 1}),
    }
    other = cfg.model_copy(update=update)
    part = collect(other, Options(limit=2))
    assert (part.planned, part.done) == (2, 2)
    assert collect(other, Options()).digest == main_job.summaries["collect"].digest
    for name in ("verdicts", "pairs", "calibration"):
        path = main_job.summaries["collect"].outputs[name]
        assert (tmp_path / path).read_bytes() == main_job.path("collect", name).read_bytes()
    assert shard(other, Options()).digest == main_job.summaries["shard"].digest


def test_one_bad_file_is_a_rejection_and_harms_nobody(main_job: Done, tmp_path: Path) -> None:
    world = Path(main_job.cfg.data.s2)
    shutil.copytree(world, tmp_path / "sent2")
    shutil.copytree(Path(main_job.cfg.data.s1), tmp_path / "sent1")
    victims = sorted((tmp_path / "sent2").glob("*_B3_*"))
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:400])
    victims[2].unlink()
    victims[3].rename(victims[3].with_name(re.sub(r"_(\d{4})_\d\d_", r"_\1_13_", victims[3].name)))
    data = main_job.cfg.data.model_copy(update={"s1": str(tmp_path / "sent1"), "s2": str(tmp_path / "sent2")})
    run = main_job.cfg.run.model_copy(update={"out": str(tmp_path / "run")})
    cfg = main_job.cfg.model_copy(update={"data": data, "run": run})
    summary = collect(cfg, Options())
    assert summary.status == "complete"
    table = pq.read_table(tmp_path / "run" / summary.outputs["verdicts"])
    found = {v.key: v for v in from_table(table, Verdict)}
    reference = {v.key: v for v in verdicts(main_job)}
    unreadable = [v for v in found.values() if v.reason == "unreadable"]
    assert len(unreadable) == 2
    assert all(v.detail for v in unreadable)
    rejected = pq.read_table(tmp_path / "run" / summary.outputs["rejected"]).to_pylist()
    assert sorted({r["reason"] for r in rejected}) == ["bad_date", "missing_band"]
    assert len(found) == len(reference) - 2
    for key, v in found.items():
        if v.reason != "unreadable":
            assert (v.score, v.brightness) == pytest.approx(
                (reference[key].score, reference[key].brightness), nan_ok=True
            )


def test_a_lost_shard_is_found_and_made_again(main_job: Done, tmp_path: Path) -> None:
    shutil.copytree(main_job.cfg.run.out, tmp_path / "run")
    cfg = main_job.cfg.model_copy(update={"run": main_job.cfg.run.model_copy(update={"out": str(tmp_path / "run")})})
    units = units_of(cfg, "shard")
    ledger = Ledger(cfg.run.out)
    victim = ledger.entry(units[0]).outputs[0]
    (tmp_path / "run" / victim.path).write_bytes(b"torn")
    faults = ledger.audit(units)
    assert [f.path for f in faults] == [victim.path]
    ledger.forget([f.unit for f in faults])
    again = shard(cfg, Options())
    assert again.resumed == again.planned - 1
    assert again.digest == main_job.summaries["shard"].digest
    assert ledger.audit(units) == []


def test_a_unit_that_keeps_failing_is_quarantined(main_job: Done, tmp_path: Path) -> None:
    shutil.copytree(main_job.cfg.run.out, tmp_path / "run")
    run = {"out": str(tmp_path / "run"), "tolerance": 0.5, "max_attempts": 2}
    cfg = main_job.cfg.model_copy(update={"run": main_job.cfg.run.model_copy(update=run)})
    index = pq.read_table(main_job.path("shard", "index")).to_pylist()
    Ledger(cfg.run.out).forget(units_of(cfg, "shard"))
    alone = next(r for r in index if sum(r["sar_key"] == other["sar_key"] for other in index) == 1)
    victim = Path(next(v.uris[0] for v in verdicts(main_job) if v.key == alone["sar_key"]))
    victim.rename(tmp_path / "aside")
    try:
        summary = shard(cfg, Options())
        assert summary.status == "partial"
        assert len(summary.quarantined) == 1
        assert "not found" in summary.quarantined[0]["reason"]
        strict = cfg.model_copy(update={"run": cfg.run.model_copy(update={"tolerance": 0.0})})
        with pytest.raises(TooManyFailures, match="not found"):
            shard(strict, Options())
        assert json.loads((tmp_path / "run" / "shard" / "summary.json").read_text())["status"] == "failed"
    finally:
        (tmp_path / "aside").rename(victim)


def test_refusals_before_anything_starts(main_job: Done, tmp_path: Path) -> None:
    cfg = main_job.cfg
    run = cfg.run.model_copy(update={"out": str(tmp_path)})

    def but(section: str, **values: object) -> object:
        return cfg.model_copy(update={"run": run, section: getattr(cfg, section).model_copy(update=values)})

    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(members(cfg.cca).items[0].name, one / "a.png")
    with pytest.raises(ReferenceSetError, match="at least 2 images, 1 found"):
        collect(but("cca", reference=str(one)), Options())
    shutil.copy(one / "a.png", one / "b.png")
    Image.new("RGB", (10, 10)).save(one / "c.png")
    with pytest.raises(ReferenceSetError, match="10 x 10"):
        collect(but("cca", reference=str(one)), Options())
    with pytest.raises(ConfigError, match="cca.reference is empty"):
        collect(but("cca", reference=""), Options())
    with pytest.raises(ConfigError, match=r"data\.s1 is empty"):
        collect(but("data", s1=""), Options())
    with pytest.raises(Sar2EoError, match=r"jobs/collect\.py"):
        shard(but("cca"), Options())
    full = {"run": cfg.run}
    with pytest.raises(ConfigError, match="nothing to translate"):
        translate(
            cfg.model_copy(update=full | {"data": cfg.data.model_copy(update={"scenes": "", "target": ""})}), Options()
        )
    with pytest.raises(ConfigError, match="split 'test' holds 0 pairs"):
        evaluate(
            cfg.model_copy(update=full | {"evaluate": cfg.evaluate.model_copy(update={"split": "test"})}), Options()
        )


def test_a_mosaic_wants_fixed_scaling_and_its_own_quantity(main_job: Done) -> None:
    info = bundle.read(str(main_job.path("train", "translate")))
    scene = scenes.open_scene(main_job.cfg.data.scenes)
    require_fit([info], [scene])
    cfg = main_job.cfg
    other = cfg.model_copy(update={"data": cfg.data.model_copy(update={"quantity": "gamma0"})})
    with pytest.raises(ConfigError, match=r"sigma0, the scene is gamma0.*s1\.tif"):
        translate(other, Options(dry_run=True))
    with pytest.raises(ConfigError, match="sar=minmax"):
        require_fit([dataclasses.replace(info, scaling=info.scaling | {"sar": "minmax"})], [scene])


def test_dry_run_writes_nothing(main_job: Done, tmp_path: Path) -> None:
    cfg = main_job.cfg.model_copy(update={"run": main_job.cfg.run.model_copy(update={"out": str(tmp_path / "new")})})
    summary = collect(cfg, Options(dry_run=True))
    assert summary.status == "planned"
    assert summary.counts["tiles"] == 72
    assert not (tmp_path / "new").exists()
