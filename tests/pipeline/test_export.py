"""export: folder pairs out of a store, read back by our importer and as pix2pixHD's dataset reads them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_job import Done, rerun

from sar2eo_dist import shards, sources, storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, TooManyFailures
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.export import encode, export
from sar2eo_dist.pipeline.stage import Failure, Options, Summary
from sar2eo_dist.radiometry import decode_db, encode_db, scale_eo, scale_sar, to_uint8
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Pair, to_table
from sar2eo_dist.sections import Scaling

SPLITS = ["train", "train", "train", "val", "val"]
RNG = np.random.default_rng(11)
COUNTS = RNG.integers(-2400, -800, (5, 2, 256, 256)).astype(np.int16)
DN = RNG.integers(6, 3000, (5, 3, 256, 256)).astype(np.uint16)
COUNTS[1, :, :20], DN[2, :, :, :30] = -32768, 0
VALID = (COUNTS > -32768).all(axis=1) & (DN > 0).all(axis=1)


def pair_of(i: int) -> Pair:
    sar, eo = dt.date(2019, 6, 8), dt.date(2019, 6, 1 + i)
    place, lat = f"-05520-{439 + i:04d}", -4.39 - i / 100
    return Pair(place, -55.2, lat, f"s1/{place}/{sar}", f"s2/{place}/{eo}", sar, eo, (eo - sar).days,
                ("ascending", "descending")[i % 2], "S1A", f"a{i}", f"b{i}", SPLITS[i])  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run folder as `shard` leaves it: 5 pairs, 2 to an object."""
    root = str(tmp_path / "run")
    arrays = shards.pair_arrays(5, 2)
    shards.write_template(root, "shards/x", arrays, {})
    for spec, data in zip(arrays, (COUNTS, DN, VALID.astype(np.uint8)), strict=True):
        for k in range(3):
            shards.write_shard(root, "shards/x", spec, (k,) + (0,) * (data.ndim - 1), data[2 * k : 2 * k + 2])
    sink = io.BytesIO()
    pq.write_table(to_table([pair_of(i) for i in range(5)], Pair), sink)
    storage.put(f"{root}/shards/x/index.parquet", sink.getvalue())
    sharded(root)
    return root


def sharded(root: str, quarantined: Sequence[int] = (), digest: str = "d") -> None:
    page = {
        "status": "partial" if quarantined else "complete", "planned": 4, "digest": digest,
        "quarantined": [{"key": f"shards/x/{k:05d}"} for k in quarantined], "counts": {"pairs": 5, "pairs a shard": 2},
        "outputs": {"store": "shards/x", "index": "shards/x/index.parquet"},
    }  # fmt: skip
    storage.put(f"{root}/shard/summary.json", json.dumps(page).encode())


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Units run in this process, but for the tests that ask for Ray."""
    if request.node.get_closest_marker("cluster"):
        return

    def run(work: Callable[..., Entry], todo: Any, number: int, **_: Any) -> Iterator[Entry | Failure]:
        for unit, payload in todo:
            yield work(unit, payload, number)

    monkeypatch.setattr(cluster, "start", lambda cfg: None)
    monkeypatch.setattr(units, "run", run)


def config(root: str, *more: str) -> Config:
    return load(overrides=[f"run.out={root}", "export.slice=2", *more])


def done(root: str, *more: str, **options: Any) -> Summary:
    return export(config(root, *more), Options(**options))


def folder_of(root: str, summary: Summary) -> str:
    return storage.join(root, summary.outputs["folder"])


class Pix2PixHD:
    """The paths and images of pix2pixHD's AlignedDataset with label_nc 0: every image below {phase}_A and {phase}_B, sorted."""

    def __init__(self, root: str, phase: str) -> None:
        self.a, self.b = (
            sorted(os.path.join(d, f) for d, _, files in os.walk(os.path.join(root, phase + side)) for f in files)
            for side in ("_A", "_B")
        )

    def __getitem__(self, i: int) -> tuple[Image.Image, Image.Image]:
        return Image.open(self.a[i]), Image.open(self.b[i])


# encoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(sar="minmax", eo="minmax", third="ratio_stretched", median=0)])
def test_png_shows_what_our_networks_see_and_black_where_a_side_has_no_data(scaling: Scaling) -> None:
    valid = VALID[1].copy()
    valid[200:] = False
    a, b = (np.asarray(Image.open(io.BytesIO(f))).transpose(2, 0, 1)
            for f in encode(COUNTS[1], DN[1], valid, "png", scaling))  # fmt: skip
    db = decode_db(COUNTS[1])
    for shown, seen in ((a, to_uint8(scale_sar(db, scaling))), (b, to_uint8(scale_eo(DN[1], valid, scaling)))):
        np.testing.assert_array_equal(shown[:, valid], seen[:, valid])
        assert not shown[:, ~valid].any()


# the verb -------------------------------------------------------------------------------------------------------------


def test_tiff_round_trips_without_loss(run: str) -> None:
    summary = done(run, "export.format=tiff")
    pairs, rejected = sources.list_pairs(folder_of(run, summary))
    assert not rejected
    assert [p.split for p in pairs] == SPLITS
    for i, p in enumerate(pairs):
        np.testing.assert_array_equal(encode_db(sources.read_sar(p.sar)), COUNTS[i])
        np.testing.assert_array_equal(sources.read_eo(p.eo).bands, DN[i])
        was = pair_of(i)
        assert dataclasses.replace(p.pair, sar_digest=was.sar_digest, eo_digest=was.eo_digest) == was


def test_png_round_trips_within_its_error(run: str) -> None:
    pairs, _ = sources.list_pairs(folder_of(run, done(run, "scaling.median=0")))
    for i, p in enumerate(pairs):
        db, dn = sources.read_sar(p.sar), sources.read_eo(p.eo).bands
        np.testing.assert_array_equal(np.isfinite(db).all(axis=0) & (dn > 0).all(axis=0), VALID[i])
        true = np.clip(decode_db(COUNTS[i]), -25, 0)[:, VALID[i]]
        assert np.abs(db[:, VALID[i]] - true).max() <= 0.0531
        assert np.abs(dn.astype(int) - DN[i])[:, VALID[i]].max() <= 6


def test_pix2pixhd_finds_aligned_pairs(run: str) -> None:
    summary = done(run)
    assert (summary.status, summary.planned) == ("complete", 3)
    assert summary.counts == {"pairs": 5, "pairs train": 3, "pairs val": 2}
    for phase, first, count in (("train", 0, 3), ("val", 3, 2)):
        data = Pix2PixHD(folder_of(run, summary), phase)
        names = [[os.path.basename(p) for p in side] for side in (data.a, data.b)]
        assert names[0] == names[1]
        assert [int(n[:8]) for n in names[0]] == list(range(first, first + count))
        for i in range(count):
            assert [(m.mode, m.size) for m in data[i]] == [("RGB", (256, 256))] * 2
        b = np.asarray(data[0][1]).transpose(2, 0, 1)
        np.testing.assert_array_equal(
            b[:, VALID[first]], to_uint8(scale_eo(DN[first], VALID[first], Scaling()))[:, VALID[first]]
        )


def test_the_folder_says_what_it_holds(run: str) -> None:
    folder = folder_of(run, done(run))
    about = json.loads(storage.read_bytes(f"{folder}/dataset.json"))
    assert about["pairs"] == {"train": 3, "val": 2, "test": 0}
    assert about["A"]["ranges"] == {"VV": [-25, 0], "VH": [-32, -5], "difference_db": [0, 20]}
    assert (about["B"]["range"], about["A"]["median_blur_px"]) == ([0, 3000], 3)
    assert about["licence"] == "Contains modified Copernicus Sentinel data"
    other = folder_of(run, done(run, "scaling={sar: tanh, eo: minmax}"))
    assert other != folder
    about = json.loads(storage.read_bytes(f"{other}/dataset.json"))
    assert "ranges" not in about["A"]
    assert "range" not in about["B"]
    assert "MAD" in about["A"]["meaning"]
    tiffs = json.loads(storage.read_bytes(f"{folder_of(run, done(run, 'export.format=tiff'))}/dataset.json"))
    assert (tiffs["A"]["units"], tiffs["B"]["units"]) == ("dB", "DN")


def test_a_second_run_finds_all_done_and_a_lost_file_is_made_again(run: str) -> None:
    first = done(run)
    folder = folder_of(run, first)
    again = done(run)
    assert (again.resumed, again.digest) == (3, first.digest)
    (lost,) = [i.uri for i in storage.list_files(folder) if "val_B/00000004" in i.uri]
    before = storage.read_bytes(lost)
    storage.delete(lost)
    assert done(run).resumed == 2
    assert storage.read_bytes(lost) == before
    assert done(run, "export.slice=5").digest == first.digest


@pytest.mark.parametrize("store", ["local", "s3"])
def test_another_folder_or_store_carries_its_own_ledger(
    run: str, tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    to = str(tmp_path / "peers") if store == "local" else f"{request.getfixturevalue('s3')}/peers"
    plain = done(run)
    there = done(run, f"export.to={to}")
    assert there.outputs == {"folder": to}
    assert there.digest != plain.digest  # other paths
    assert there.bytes_out == plain.bytes_out
    assert len(sources.list_pairs(to)[0]) == 5
    assert done(run, f"export.to={to}").resumed == 3
    (damaged,) = [i.uri for i in storage.list_files(f"{to}/train_A") if "/00000000" in i.uri]
    storage.put(damaged, b"x")
    assert done(run, f"export.to={to}").resumed == 2
    assert done(run, f"export.to={to}2").resumed == 0
    page = json.loads(storage.read_bytes(f"{run}/export/summary.json"))
    assert page["outputs"] == {"folder": f"{to}2"}


def test_every_file_is_in_the_ledger(run: str, tmp_path: Path) -> None:
    to = str(tmp_path / "peers")
    done(run, f"export.to={to}")
    entries = [Entry.from_json(storage.read_bytes(i.uri)) for i in storage.list_files(f"{to}/ledger/export")]
    ledger = Ledger(to)
    assert ledger.audit([e.unit for e in entries]) == []
    listed = {i.uri for i in storage.list_files(to) if i.uri.endswith(".png")}
    assert listed == {storage.join(to, a.path) for e in entries for a in e.outputs}
    storage.put(sorted(listed)[0], b"x" * storage.info(sorted(listed)[0]).size)
    assert [f.problem[:6] for f in ledger.audit([e.unit for e in entries])] == ["sha256"]


def test_a_folder_of_something_else_is_refused(run: str, tmp_path: Path) -> None:
    to = str(tmp_path / "peers")
    done(run, f"export.to={to}")
    with pytest.raises(ConfigError, match=r"another export.*peers"):
        done(run, f"export.to={to}", "export.format=tiff")
    storage.put(f"{to}/dataset.json", b"[]")
    with pytest.raises(ConfigError, match="not ours"):
        done(run, f"export.to={to}")
    storage.delete(f"{to}/dataset.json")
    with pytest.raises(ConfigError, match="train_A is there already"):
        done(run, f"export.to={to}", dry_run=True)


def test_what_is_not_in_the_store_is_not_exported_until_it_is(run: str, tmp_path: Path) -> None:
    sharded(run, quarantined=[1])
    summary = done(run, f"export.to={tmp_path}/p")
    assert summary.counts == {"pairs": 3, "pairs train": 2, "pairs val": 1}
    sharded(run, digest="now whole")
    summary = done(run, f"export.to={tmp_path}/p")
    assert summary.counts == {"pairs": 5, "pairs train": 3, "pairs val": 2}
    assert len(sources.list_pairs(f"{tmp_path}/p")[0]) == 5
    sharded(run, quarantined=[1])  # the folder has what the store no longer has
    with pytest.raises(ConfigError, match="holds 5 pairs, of which only 3 are in the store now"):
        done(run, f"export.to={tmp_path}/p")
    sharded(run, quarantined=[0, 1, 2])
    with pytest.raises(ConfigError, match=r"jobs/shard\.py"):
        done(run)


def test_a_dry_run_and_a_limit(run: str) -> None:
    summary = done(run, dry_run=True)
    assert (summary.status, summary.planned, summary.counts) == ("planned", 3, {"pairs": 5})
    assert not storage.exists(f"{run}/export")
    assert done(run, limit=1).counts == {"pairs": 2, "pairs train": 2}
    assert done(run).resumed == 1


def test_failures_beyond_the_tolerance_are_told_in_the_run_folder(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "run", lambda work, todo, number, **_: (Failure(u.id, "boom") for u, _ in todo))
    with pytest.raises(TooManyFailures, match="boom"):
        done(run, f"export.to={tmp_path}/p")
    assert json.loads(storage.read_bytes(f"{run}/export/summary.json"))["status"] == "failed"


# with Ray -------------------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_the_pairs_of_the_main_job(main_job: Done, tmp_path: Path) -> None:
    to = str(tmp_path / "set")
    cfg = main_job.cfg.model_copy(
        update={"export": main_job.cfg.export.model_copy(update={"to": to, "format": "tiff", "slice": 3})}
    )
    summary = rerun(cfg, export)
    index = pq.read_table(main_job.path("shard", "index")).to_pylist()
    assert summary.counts["pairs"] == len(index)
    pairs, rejected = sources.list_pairs(to)
    assert not rejected
    pairs.sort(key=lambda p: storage.name(p.sar.uris[0]))
    read = PairReader(str(main_job.path("shard", "store")))
    assert [(p.split, p.pair.sar_key, p.pair.eo_key) for p in pairs] == [
        (r["split"], r["sar_key"], r["eo_key"]) for r in index
    ]
    for i in (0, len(index) // 2, len(index) - 1):
        sar, eo, _ = read(i)
        np.testing.assert_array_equal(encode_db(sources.read_sar(pairs[i].sar)), sar)
        np.testing.assert_array_equal(sources.read_eo(pairs[i].eo).bands, eo)
    again = rerun(cfg, export)
    assert (again.resumed, again.digest) == (summary.planned, summary.digest)
