"""evaluate on a small run folder without Ray: every figure against a direct computation, and what cannot be measured named."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import held_out_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from small_mosaic import without_ray

from sar2eo_dist import sources
from sar2eo_dist.config import Config
from sar2eo_dist.errors import BadInput, ConfigError, NotFound, Sar2EoError
from sar2eo_dist.evaluation.challenge import score
from sar2eo_dist.pipeline import measure
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.evaluate import evaluate
from sar2eo_dist.pipeline.stage import Options, Summary
from sar2eo_dist.radiometry import decode_db, display
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import TileRef

TRIVIAL = {"baseline_linear", "baseline_mean", "baseline_zero"}


@pytest.fixture(autouse=True)
def _tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optical images of other dates, which lie in no file here."""

    def read(ref: TileRef) -> sources.EO:
        return sources.EO(held_out_run.pixels(int(ref.digest[1:]))["eo"], None)

    monkeypatch.setattr(sources, "read_eo", read)
    monkeypatch.setattr(sources, "unchanged", lambda ref, info=None: None)


def run(cfg: Config, **options: Any) -> Summary:
    with without_ray():
        done = evaluate(cfg, Options(**options))
    assert isinstance(done, Summary)
    return done


def but(cfg: Config, **values: Any) -> Config:
    return cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update=values)})


def rows(cfg: Config) -> list[dict[str, Any]]:
    return pq.read_table(Path(cfg.run.out) / "evaluate/metrics.parquet").to_pylist()


def scores(cfg: Config) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((Path(cfg.run.out) / "evaluate/scores.json").read_text())
    return tree


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Config:
    cfg = held_out_run.make(tmp_path_factory.mktemp("evaluate") / "run")
    with pytest.MonkeyPatch.context() as patch:
        _tiles.__wrapped__(patch)  # type: ignore[attr-defined]
        summary = run(cfg)
    assert summary.status == "complete"
    return cfg


def test_every_figure_is_that_of_a_direct_computation(done: Config) -> None:
    found = rows(done)
    assert len(found) == 6 * 6
    assert {r["method"] for r in found} == TRIVIAL | {"translated", "enhanced", "nearest_date"}
    root = Path(done.run.out)
    read = PairReader(str(root / held_out_run.STORE))
    chain = Chain([str(root / f"train/bundles/{n}") for n in ("pix2pixhd", "restormer")], 1, done.speed)
    train = np.stack([read(i)[1] for i in range(4)])
    level = np.clip(train / 3000, 0, 1).astype(np.float32).mean((0, 2, 3), dtype=np.float64)
    for i in (4, 9):
        sar, eo, _ = read(i)
        true = np.clip(eo / 3000, 0, 1)
        mine = {r["method"]: r for r in found if r["rank"] == i}
        images = dict(zip(("translated", "enhanced"), ((x + 1) / 2 for x in chain(decode_db(sar))), strict=True))
        images["baseline_mean"] = np.broadcast_to(level[:, None, None], true.shape)
        images["baseline_zero"] = np.zeros_like(true)
        images["nearest_date"] = np.clip(read(i ^ 1)[1] / 3000, 0, 1)
        for method, image in images.items():
            assert mine[method]["mae"] == pytest.approx(np.abs(image - true).mean(), rel=1e-5), method
            assert mine[method]["rmse"] == pytest.approx(np.sqrt(((image - true) ** 2).mean()), rel=1e-5)
            assert mine[method]["challenge_mse"] == pytest.approx(score([(image[None], eo[None])]), rel=1e-5)
        assert mine["enhanced"]["days"] == 3 * (i % 2)
        assert mine["enhanced"]["cloud_share"] == 0
        assert mine["enhanced"]["valid_share"] == 1


def test_the_challenge_query_is_a_sar_image_with_all_its_truths(done: Config) -> None:
    root = Path(done.run.out)
    read = PairReader(str(root / held_out_run.STORE))
    found = next(r for r in scores(done)["methods"] if r["method"] == "translated")["challenge"]
    chain = Chain([str(root / "train/bundles/pix2pixhd")], 1, done.speed)
    queries = []
    for i in (4, 6, 8):
        image = (chain(decode_db(read(i)[0]))[0] + 1) / 2
        queries.append((image[None], np.stack([read(i)[1], read(i + 1)[1]])))
    assert (found["queries"], found["unanswered"]) == (3, 0)
    assert found["multiearth_mse_sum"] == pytest.approx(score(queries), rel=1e-6)
    assert found["mae_min"] == pytest.approx(score(queries, p=1, reduce="mean"), rel=1e-6)


def test_means_are_of_the_rows_and_the_frechet_distance_has_its_name(done: Config) -> None:
    tree = scores(done)
    assert (tree["pairs"], tree["measured"], tree["dn"]) == (6, 6, 3000)
    for entry in tree["methods"]:
        mine = [r for r in rows(done) if r["method"] == entry["method"]]
        assert entry["mae"]["mean"] == pytest.approx(np.mean([r["mae"] for r in mine]), rel=1e-12)
        assert entry["mae"]["low"] <= entry["mae"]["mean"] <= entry["mae"]["high"]
        named = entry["frechet"] and (entry["frechet"]["name"], entry["frechet"]["n"])
        assert named == (None if entry["method"] == "nearest_date" else ("fd_means", 6))
    assert {g["group"] for g in tree["groups"]["orbit"]} == {"ascending", "descending"}


def test_pictures_are_of_the_worst_the_best_and_some_between(done: Config) -> None:
    root = Path(done.run.out)
    shown = json.loads((root / "evaluate/samples.json").read_text())
    mae = {(r["sar_key"], r["eo_key"]): r["mae"] for r in rows(done) if r["method"] == "enhanced"}
    by = {s["why"]: (s["sar_key"], s["eo_key"]) for s in shown}
    assert by["worst"] == max(mae, key=lambda k: mae[k])
    assert by["best"] == min(mae, key=lambda k: mae[k])
    assert [s["why"] for s in shown].count("spread") == 2
    for s in shown:
        assert set(s["images"]) == {"sar", "translated", "enhanced", "true", "nearest_date"}
        assert s["mae"]["enhanced"] == mae[s["sar_key"], s["eo_key"]]
        with Image.open(root / s["images"]["true"]) as picture:
            rank = next(r["rank"] for r in rows(done) if r["eo_key"] == s["eo_key"])
            dn = held_out_run.pixels(rank)["eo"]
            wanted = display(np.clip(np.round(dn / 3000 * 255), 0, 255).astype(np.uint8)).transpose(1, 2, 0)
            assert np.abs(np.asarray(picture).astype(int) - wanted).max() <= 2
    stems = {s["images"]["true"].removesuffix("_true.png") for s in shown}
    assert {r["sample"] for r in rows(done)} == stems | {""}


def test_slices_of_any_size_give_the_same_tables(done: Config, tmp_path: Path) -> None:
    again = held_out_run.make(tmp_path / "run")
    run(but(again, slice=1))
    for name in ("metrics.parquet", "scores.json", "samples.json"):
        assert (Path(again.run.out) / "evaluate" / name).read_bytes() == (
            Path(done.run.out) / "evaluate" / name
        ).read_bytes()


def test_run_again_nothing_is_loaded_and_another_figure_measures_again(
    done: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(self: Any, setup: Any) -> None:
        raise AssertionError("a worker was started although nothing is left to do")

    monkeypatch.setattr(measure.Worker, "__init__", loaded)
    again = run(done)
    assert again.resumed == again.planned == again.done
    assert run(but(done, fit=3), dry_run=True).resumed == 0


def test_what_cannot_be_measured_is_counted_and_never_averaged_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(i: int, planes: dict[str, np.ndarray]) -> None:
        if i == 5:
            planes["valid"][:] = 0
        if i == 6:
            planes["eo"][1] = 700
        if i == 8:
            planes["valid"][:, 100:] = 0
            planes["eo"][:, :, 100:] = 0
        if i == 0:
            planes["valid"][:] = 0  # a training pair, of which the baselines see nothing

    cfg = held_out_run.make(tmp_path / "run", edit=edit)
    broken = decode_db(held_out_run.pixels(9)["sar"])
    whole, read = Chain.__call__, sources.read_eo

    def some(self: Chain, db: np.ndarray) -> list[np.ndarray]:
        images = whole(self, db)
        if np.array_equal(db, broken):
            images[-1][0, 3, 3] = np.nan
        return images

    def torn(ref: TileRef) -> sources.EO:
        if ref.digest == "b6":
            raise BadInput("unreadable", ref.uris[0], "torn")
        return read(ref)

    monkeypatch.setattr(Chain, "__call__", some)
    monkeypatch.setattr(sources, "read_eo", torn)
    counts = run(cfg).counts
    assert counts["pairs"] == 6
    assert counts["pairs without a valid pixel"] == 1
    assert counts["pairs with a constant truth"] == 1
    assert counts["other dates unreadable"] == counts["pairs without another clear date"] == 1
    assert counts["enhanced images not finite"] >= 1
    by = {(r["rank"], r["method"]): r for r in rows(cfg)}
    assert np.isnan(by[5, "enhanced"]["mae"])
    assert np.isnan(by[9, "enhanced"]["mae"])
    assert np.isfinite(by[9, "translated"]["mae"])
    assert (7, "nearest_date") not in by
    assert np.isnan(by[8, "translated"]["ms_ssim"])
    assert np.isfinite(by[8, "translated"]["ssim"])
    assert by[8, "translated"]["valid_share"] == 100 / 256
    assert np.isnan(by[8, "translated"]["challenge_mse"])  # two images of few pixels would be equal
    assert counts["pairs with too little data for the challenge"] == 1
    query = {m["method"]: m["challenge"] for m in scores(cfg)["methods"]}["translated"]
    assert (query["queries"], query["unanswered"], query["incomplete"]) == (3, 0, 2)
    assert scores(cfg)["measured"] == 5
    table = {m["method"]: m for m in scores(cfg)["methods"]}
    assert (table["enhanced"]["n"], table["translated"]["mae"]["n"]) == (6, 5)
    assert table["enhanced"]["mae"]["n"] < table["translated"]["mae"]["n"]


def test_a_damaged_shard_makes_the_run_partial_and_the_table_says_how_many_are_left(tmp_path: Path) -> None:
    cfg = held_out_run.make(tmp_path / "run")
    cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"tolerance": 0.6, "max_attempts": 1})})
    (last,) = (tmp_path / "run" / held_out_run.STORE / "eo").rglob("c/2/*/*/*")
    data = bytearray(last.read_bytes())
    data[1000] ^= 255
    last.write_bytes(data)
    done = run(cfg)
    assert done.status == "partial"
    assert "Corrupt" in done.quarantined[0]["reason"]
    assert (scores(cfg)["pairs"], scores(cfg)["measured"]) == (6, 4)


def test_without_the_other_dates_and_with_damaged_training_pairs_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(ref: TileRef) -> sources.EO:
        raise NotFound(ref.uris[0], "the archive is gone")

    monkeypatch.setattr(sources, "read_eo", gone)
    cfg = but(held_out_run.make(tmp_path / "run", per=2), extractor="none")
    (first,) = (tmp_path / "run" / held_out_run.STORE / "eo").rglob("c/0/*/*/*")
    whole = first.read_bytes()
    first.write_bytes(whole[:1000] + bytes(len(whole) - 1000))
    done = run(cfg)
    assert done.status == "complete"
    assert done.counts["other dates unreadable"] == 6
    assert done.counts["slices whose baselines lack damaged training pairs"] == 2
    assert {r["method"] for r in rows(cfg)} == TRIVIAL | {"translated", "enhanced"}
    assert all(np.isfinite(r["mae"]) for r in rows(cfg))


def test_ready_pairs_have_no_other_dates_and_may_have_no_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = held_out_run.pair
    epoch = dt.date(1970, 1, 1)

    def undated(i: int, split: str) -> Any:
        return dataclasses.replace(
            pair(i, split), sar_date=epoch, eo_date=epoch, days=0, orbit="", lon=np.nan, lat=np.nan
        )

    monkeypatch.setattr(held_out_run, "pair", undated)
    cfg = but(held_out_run.make(tmp_path / "run"), extractor="none", samples=0, extremes=0)
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"kind": "folder_pair"})})
    assert run(cfg).status == "complete"
    assert {r["method"] for r in rows(cfg)} == TRIVIAL | {"translated", "enhanced"}
    groups = scores(cfg)["groups"]
    assert {g["group"] for g in groups["days"]} == {g["group"] for g in groups["orbit"]} == {"unknown"}
    assert json.loads((Path(cfg.run.out) / "evaluate/samples.json").read_text()) == []


def test_a_config_of_another_scaling_than_the_networks_is_refused(done: Config) -> None:
    other = done.model_copy(update={"scaling": done.scaling.model_copy(update={"eo": "minmax"})})
    with pytest.raises(Sar2EoError, match=r"trained with scaling\.eo fixed"):
        run(other)


def test_without_pairs_or_with_foreign_bundles_nothing_starts(tmp_path: Path) -> None:
    cfg = held_out_run.make(tmp_path / "run")
    with pytest.raises(ConfigError, match="split 'test' holds 0 pairs"):
        run(but(cfg, split="test"))
    path = tmp_path / "run/shard/summary.json"
    path.write_text(path.read_text().replace(held_out_run.DIGEST, "e" * 32))
    with pytest.raises(Sar2EoError, match="trained on other shards"):
        run(cfg)


def test_land_cover_comes_from_a_raster_where_one_is_named(tmp_path: Path) -> None:
    cfg = held_out_run.make(tmp_path / "run")
    path = str(tmp_path / "cover.tif")
    with rasterio.open(path, "w", driver="GTiff", height=10, width=10, count=1, dtype="uint8", crs="EPSG:4326",
                       transform=rasterio.transform.from_origin(-55.5, -3.5, 0.1, 0.1)) as out:  # fmt: skip
        out.write(np.full((1, 10, 10), 10, np.uint8))
    run(but(cfg, land_cover=path, extractor="none"))
    assert {r["cover"] for r in rows(cfg)} == {"tree cover"}
    assert all(m["frechet"] is None for m in scores(cfg)["methods"])


def test_another_run_beside_this_one(done: Config, tmp_path: Path) -> None:
    """The same pairs, networks of other weights."""
    other = held_out_run.make(tmp_path / "run", seed=100)
    (tmp_path / "run/config.yaml").write_text(json.dumps(other.model_dump(mode="json")))
    run(other)
    found = run(done, against=str(tmp_path / "run"))
    root = Path(done.run.out)
    assert (root / found.outputs["against"]).read_bytes().startswith(b"<!doctype html>")
    shown = json.loads((root / "evaluate/against.json").read_text())
    assert 0 < len(shown) <= 6
    for s in shown:
        images = {k: Image.open(io.BytesIO((root / v).read_bytes())) for k, v in s["images"].items()}
        assert set(images) == {"sar", "true", "this", "other"}
        assert np.asarray(images["this"]).tolist() != np.asarray(images["other"]).tolist()
    with pytest.raises(Sar2EoError):
        run(done, against=str(tmp_path / "nothing"))
