"""The shard verb: what it writes, and what it does about inputs and outputs that are no longer what they were."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_job import Done

from sar2eo_dist.config import Config
from sar2eo_dist.errors import AuditError, ConfigError, TooManyFailures
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.export import export
from sar2eo_dist.pipeline.shard import SPLITS, canonical, present, shard
from sar2eo_dist.pipeline.stage import Failure, Options, attempt
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Pair, Unit, schema

pytestmark = pytest.mark.cluster  # of the main job's, whose results these tests start from


def here(work: units.Work, todo: list[tuple[Unit, Any]], number: int, **_: object) -> Iterator[Entry | Failure]:
    for unit, payload in todo:
        yield attempt(unit, partial(work, unit, payload, number))


@pytest.fixture
def job(main_job: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path]:
    """A copy of the main job's run folder, and units that run in this process."""
    out = tmp_path / "run"
    shutil.copytree(main_job.cfg.run.out, out, ignore=shutil.ignore_patterns("train", "translate", "evaluate"))
    monkeypatch.setattr(units, "run", here)
    monkeypatch.setattr(cluster, "start", lambda cfg: None)
    run = main_job.cfg.run.model_copy(update={"out": str(out), "max_attempts": 1, "tolerance": 0.5})
    return main_job.cfg.model_copy(update={"run": run}), out


def objects(out: Path) -> list[dict[str, Any]]:
    tree = json.loads((out / "shard" / "summary.json").read_text())
    return pq.read_table(out / tree["outputs"]["objects"]).to_pylist()


def test_objects_parquet_names_every_object_with_its_sha256(main_job: Done) -> None:
    out = Path(main_job.cfg.run.out)
    rows = {r["path"]: r for r in objects(out)}
    store = main_job.path("shard", "store")
    there = {str(p.relative_to(out)) for p in store.rglob("*") if p.is_file() and p.name != "objects.parquet"}
    assert there == set(rows)
    for path, row in rows.items():
        data = (out / path).read_bytes()
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_an_audit_names_what_is_wrong_and_makes_only_that_again(job: tuple[Config, Path], main_job: Done) -> None:
    cfg, out = job
    store = out / main_job.summaries["shard"].outputs["store"]
    flipped = next(p for p in (store / "eo" / "c" / "1").rglob("*") if p.is_file())
    data = bytearray(flipped.read_bytes())
    data[100] ^= 1
    flipped.write_bytes(data)
    gone = next(p for p in (store / "sar" / "c" / "2").rglob("*") if p.is_file())
    gone.unlink()
    (store / "index.parquet").unlink()
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    with pytest.raises(AuditError, match=r"3 audit failure.*--audit without --dry-run") as e:
        shard(cfg, Options(dry_run=True, audit=1.0))
    for path in (flipped, gone, store / "index.parquet"):
        assert str(path.relative_to(out)) in str(e.value)
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    summary = shard(cfg, Options(audit=1.0))
    assert summary.digest == main_job.summaries["shard"].digest
    assert (summary.planned - summary.resumed, len(summary.faults)) == (3, 3)
    assert {f["problem"].split()[0] for f in summary.faults} == {"missing", "sha256"}
    touched = {str(p.relative_to(store)).split("/")[-4 if "eo" in str(p) or "sar" in str(p) else -3]
               for p, t in before.items() if p.stat().st_mtime_ns != t and "/c/" in str(p)}  # fmt: skip
    assert touched == {"1", "2"}
    assert shard(cfg, Options(audit=1.0)).faults == []


def test_a_plain_resume_finds_what_is_gone_or_cut_but_hashes_nothing(job: tuple[Config, Path], main_job: Done) -> None:
    cfg, out = job
    store = out / main_job.summaries["shard"].outputs["store"]
    cut = next(p for p in (store / "valid" / "c" / "0").rglob("*") if p.is_file())
    cut.write_bytes(cut.read_bytes()[:-1])
    flipped = next(p for p in (store / "eo" / "c" / "1").rglob("*") if p.is_file())
    data = bytearray(flipped.read_bytes())
    data[100] ^= 1
    flipped.write_bytes(data)
    summary = shard(cfg, Options())
    assert [f["path"] for f in summary.faults] == [str(cut.relative_to(out))]
    faults = shard(cfg, Options(audit=1.0)).faults
    assert [f["path"] for f in faults] == [str(flipped.relative_to(out))]


@pytest.mark.parametrize("what", ["touched", "other pixels", "torn", "vanished"])
def test_a_tile_that_changed_since_collect_fails_its_shard_by_name(
    job: tuple[Config, Path], main_job: Done, what: str
) -> None:
    cfg, out = job
    for path in (out / "shards", out / "ledger" / "shard"):
        shutil.rmtree(path)
    tiles = pq.read_table(main_job.path("shard", "store") / "tiles.parquet", columns=["eo_uris"]).to_pylist()
    victim = Path(tiles[0]["eo_uris"][1])
    data, stat = victim.read_bytes(), victim.stat()
    try:
        if what == "touched":
            os.utime(victim, ns=(1, 1))
        elif what == "vanished":
            victim.unlink()
        else:
            victim.write_bytes(data[:300] if what == "torn" else Path(tiles[1]["eo_uris"][2]).read_bytes())
        summary = shard(cfg, Options())
        assert summary.status == "partial"
        reasons = [q["reason"] for q in summary.quarantined]
        assert all(str(victim.parent) in r for r in reasons)
        expected = "NotFound: not found" if what == "vanished" else "SourceChanged: "
        assert all(r.startswith(expected) for r in reasons), reasons
        assert "jobs/collect.py" in reasons[0] or what == "vanished"
        with pytest.raises(TooManyFailures, match=victim.name[:9]):
            shard(cfg.model_copy(update={"run": cfg.run.model_copy(update={"tolerance": 0.0})}), Options())
    finally:
        victim.write_bytes(data)
        os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = shard(cfg, Options())  # the file is back as it was: only what failed is made
    assert (again.status, again.digest) == ("complete", main_job.summaries["shard"].digest)
    assert again.resumed == again.planned - len(reasons)


def test_memory_is_that_of_compressed_shards_and_a_few_pairs(
    job: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more pairs under way than are read ahead."""
    from sar2eo_dist.pipeline import shard as module

    cfg, out = job
    for path in (out / "shards", out / "ledger" / "shard"):
        shutil.rmtree(path)
    monkeypatch.setattr(module, "AHEAD", 1)
    alive, most = [0], [0]
    plain_read, plain_add = module._read, module.shards.Shard.add

    def read(*args: Any, **kwargs: Any) -> Any:
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return plain_read(*args, **kwargs)

    def add(self: Any, chunk: np.ndarray) -> None:
        alive[0] -= self.spec.name == "valid"
        plain_add(self, chunk)

    monkeypatch.setattr(module, "_read", read)
    monkeypatch.setattr(module.shards.Shard, "add", add)
    shard(cfg, Options())
    assert 1 <= most[0] <= 3


def table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = {f.name: [r.get(f.name, 0 if f.type == pa.int64() else 0.0 if f.type == pa.float64() else None) for r in rows]
               for f in schema(Pair)}  # fmt: skip
    return pa.table({n: pa.array(v, schema(Pair).field(n).type) for n, v in columns.items()})


def test_canonical_order_leaves_the_guard_out_whatever_the_order_of_the_rows() -> None:
    rows = [{"place": p, "eo_key": e, "sar_key": s, "split": f, "eo_digest": "", "sar_digest": ""}
            for p in "ba" for e in "21" for s in "yx" for f in (*SPLITS[::-1], "guard")]  # fmt: skip
    expected = sorted((r for r in rows if r["split"] != "guard"),
                      key=lambda r: (SPLITS.index(r["split"]), r["place"], r["eo_key"], r["sar_key"]))  # fmt: skip
    for seed in range(3):
        mixed = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        found = canonical(table(mixed)).select(["place", "eo_key", "sar_key", "split"]).to_pylist()
        assert found == [{k: r[k] for k in ("place", "eo_key", "sar_key", "split")} for r in expected]


def test_present_leaves_out_quarantined_and_unplanned_shards() -> None:
    sharded = {"quarantined": [{"key": "shards/x/00001"}], "planned": 4, "counts": {"pairs a shard": 10}}
    found = present(sharded, np.array([0, 9, 10, 19, 20, 29, 30], np.int64))
    assert found.tolist() == [0, 9, 20, 29]


def test_images_whose_centres_differ_are_brought_onto_each_other(job: tuple[Config, Path], main_job: Done) -> None:
    """The same tiles, their SAR positions declared 5 pixels farther down: the stored SAR moves down with them,
    so that a sample never shows ground beyond its EO image: it is that image's footprint that the folds keep apart."""
    cfg, out = job
    degrees = 5 * 10 / 111_320.0
    verdicts = pq.read_table(out / "collect" / "verdicts.parquet")
    sensors, lat = verdicts["sensor"].to_pylist(), verdicts["lat"].to_pylist()
    lat = [v - degrees if s == "s1" else v for v, s in zip(lat, sensors, strict=True)]
    at = verdicts.schema.get_field_index("lat")
    pq.write_table(verdicts.set_column(at, verdicts.schema.field("lat"), [lat]), out / "collect" / "verdicts.parquet")
    for path in (out / "shards", out / "ledger" / "shard"):
        shutil.rmtree(path)
    summary = shard(cfg, Options())
    moved = PairReader(str(out / summary.outputs["store"]))(0)
    plain = PairReader(str(main_job.path("shard", "store")))(0)
    np.testing.assert_array_equal(moved[0][:, 5:], plain[0][:, :-5])
    assert (moved[0][:, :5] == -32768).all()
    assert not moved[2][:5].any()
    np.testing.assert_array_equal(moved[1], plain[1])


@pytest.mark.parametrize("form", ["tiff", "png"])
def test_exported_pairs_come_back_as_the_same_store(
    job: tuple[Config, Path], main_job: Done, tmp_path: Path, form: str
) -> None:
    """Pairs out to folders and in again: folds, places, dates; pixels exactly (tiff) or to 8 bits (png)."""
    cfg, out = job
    to = cfg.export.model_copy(update={"to": str(tmp_path / "folders"), "format": form})
    export(cfg.model_copy(update={"export": to}), Options())
    data = cfg.data.model_copy(update={"kind": "folder_pair", "pairs": str(tmp_path / "folders")})
    run = cfg.run.model_copy(update={"out": str(tmp_path / "imported")})
    summary = shard(cfg.model_copy(update={"data": data, "run": run}), Options())
    assert summary.counts == main_job.summaries["shard"].counts
    before, after = (
        pq.read_table(root / s.outputs["index"]).to_pylist()
        for root, s in ((out, main_job.summaries["shard"]), (tmp_path / "imported", summary))
    )
    names = ("place", "lon", "lat", "sar_date", "eo_date", "days", "orbit", "platform", "split")
    assert [{n: r[n] for n in names} for r in after] == [{n: r[n] for n in names} for r in before]
    ours = PairReader(str(out / main_job.summaries["shard"].outputs["store"]))
    theirs = PairReader(str(tmp_path / "imported" / summary.outputs["store"]))
    for i in (0, len(before) - 1):
        (sar, eo, valid), (sar2, eo2, valid2) = ours(i), theirs(i)
        np.testing.assert_array_equal(valid2, valid)
        if form == "tiff":
            np.testing.assert_array_equal(sar2, sar)
            np.testing.assert_array_equal(eo2, eo)
        else:
            inside = valid & (eo < 3000).all(axis=0)
            assert np.abs(eo2.astype(int) - eo)[:, inside].max() <= 6


def test_ready_pairs_without_places_are_drawn_by_name(job: tuple[Config, Path], tmp_path: Path) -> None:
    cfg, _ = job
    rng = np.random.default_rng(0)
    for i in range(40):
        for side in "AB":
            path = tmp_path / "pairs" / side / f"field {i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(1, 255, (256, 256, 3), np.uint8)).save(path)
    (tmp_path / "pairs" / "A" / "alone.png").write_bytes(b"")
    data = cfg.data.model_copy(update={"kind": "folder_pair", "pairs": str(tmp_path / "pairs")})
    run = cfg.run.model_copy(update={"out": str(tmp_path / "imported")})
    other = cfg.model_copy(update={"data": data, "run": run})
    first = shard(other, Options())
    assert first.counts["pairs"] == 40
    assert 20 <= first.counts["pairs train"] < 40
    rejected = pq.read_table(tmp_path / "imported" / "shard" / "rejected.parquet").to_pylist()
    assert [Path(r["uri"]).name for r in rejected] == ["alone.png"]
    with pytest.raises(ConfigError, match=r"wants data\.pairs"):
        shard(other.model_copy(update={"data": data.model_copy(update={"pairs": ""})}), Options())


def test_a_limit_counts_shards(job: tuple[Config, Path]) -> None:
    cfg, out = job
    for path in (out / "shards", out / "ledger" / "shard"):
        shutil.rmtree(path)
    summary = shard(cfg, Options(limit=1))
    store = out / summary.outputs["store"]
    assert [p.name for p in (store / "eo" / "c").iterdir()] == ["0"]
    tree = json.loads((out / "shard" / "summary.json").read_text())
    size = summary.counts["pairs a shard"]
    assert present(tree, np.arange(summary.counts["pairs"])).tolist() == list(range(size))


def test_every_bad_image_of_a_shard_is_named_at_once(job: tuple[Config, Path], tmp_path: Path) -> None:
    cfg, _ = job
    for i in range(6):
        for side in "AB":
            path = tmp_path / "pairs" / f"train_{side}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (128 if i in (1, 4) and side == "A" else 256, 256), (9, 9, 9)).save(path)
    data = cfg.data.model_copy(update={"kind": "folder_pair", "pairs": str(tmp_path / "pairs")})
    run = cfg.run.model_copy(update={"out": str(tmp_path / "imported")})
    sized = cfg.shard.model_copy(update={"samples": 6})
    bad = cfg.model_copy(update={"data": data, "run": run, "shard": sized})
    with pytest.raises(TooManyFailures, match=r"wrong_shape: .*and 1 more: .*train_A/4\.png.*train_A/1\.png"):
        shard(bad.model_copy(update={"run": run.model_copy(update={"tolerance": 0.0})}), Options())
    (tmp_path / "pairs" / "A").mkdir()
    (tmp_path / "pairs" / "B").mkdir()
    for side in "AB":
        Image.new("RGB", (256, 256), (9, 9, 9)).save(tmp_path / "pairs" / side / "x.png")
    with pytest.raises(ConfigError, match="give all one, or none"):
        shard(bad, Options())
