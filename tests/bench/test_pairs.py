"""Reading and writing pairs beside zarr-python, webdataset and numpy.memmap, on the real patches of the samples.

One process, one thread, the same bytes in the page cache for everybody; so it is decoding and overhead that count.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
import zarr
from zarr.storage import MemoryStore

from sar2eo_dist import shards, sources, storage
from sar2eo_dist.models import speed
from sar2eo_dist.pairing.match import match
from sar2eo_dist.pairing.split import assign
from sar2eo_dist.radiometry import encode_db
from sar2eo_dist.reader import PairReader, ranks
from sar2eo_dist.records import Pair, schema
from sar2eo_dist.sections import Pairing, Scaling, Split
from sar2eo_dist.training.loader import Loader, order

COUNT = 448  # one object of the default size


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    """Everybody on one core: zarr-python spreads its codecs over threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def rates(calls: list[Callable[[], object]], count: float, repeat: int = 5) -> list[float]:
    """Items a second of each call: the best of its runs, which alternate with those of the others."""
    best = [float("inf")] * len(calls)
    for _ in range(repeat):
        for k, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - begin)
    return [count / seconds for seconds in best]


@pytest.fixture(scope="module")
def pixels(samples: Path) -> list[np.ndarray]:
    """COUNT pairs: the 4 SAR and 8 EO patches of the challenge's sample, each in its eight symmetries, mixed."""
    root, rng = samples / "tier_a" / "multiearth2023", np.random.default_rng(0)
    tiles = [sources.list_tiles("multiearth_tiff", str(root / f"sent{s}"), f"s{s}")[0] for s in (1, 2)]
    sar = [encode_db(sources.read_sar(r)) for r in tiles[0]]
    eo = [sources.read_eo(r).bands for r in tiles[1]]

    def mixed(images: list[np.ndarray]) -> np.ndarray:
        turned = [np.rot90(images[rng.integers(len(images))], rng.integers(4), (1, 2)) for _ in range(COUNT)]
        return np.stack([t[:, :, ::-1] if rng.integers(2) else t for t in turned])

    pairs = [mixed(sar), mixed(eo)]
    return [*pairs, (pairs[1] > 0).all(axis=1).astype(np.uint8)]


@pytest.fixture(scope="module")
def store(pixels: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("pairs"))
    arrays = shards.pair_arrays(COUNT, COUNT)
    shards.write_template(root, "p", arrays, {"store": "x"})
    sizes = [shards.write_shard(root, "p", a, (0,) * d.ndim, d).size for a, d in zip(arrays, pixels, strict=True)]
    print(
        f"\nobjects of {COUNT} pairs: "
        + ", ".join(f"{a.name} {n / 1e6:.1f} MB" for a, n in zip(arrays, sizes, strict=True))
    )
    return storage.join(root, "p")


def test_reads(store: str, pixels: list[np.ndarray], tmp_path: Path) -> None:
    places = np.random.default_rng(1).permutation(COUNT).tolist()
    read = PairReader(store)
    group = zarr.open_group(store, mode="r")
    arrays = [group[n] for n in ("sar", "eo", "valid")]
    for n, d in zip(("sar", "eo", "valid"), pixels, strict=True):
        d.tofile(tmp_path / n)
    maps = [
        np.memmap(tmp_path / n, d.dtype, "r", shape=d.shape)
        for n, d in zip(("sar", "eo", "valid"), pixels, strict=True)
    ]
    with webdataset.TarWriter(str(tmp_path / "p.tar")) as tar:
        for i in range(COUNT):
            tar.write(
                {"__key__": f"{i:06d}"}
                | {f"{n}.npy": d[i] for n, d in zip(("sar", "eo", "valid"), pixels, strict=True)}
            )

    def through_tar() -> None:
        dataset = webdataset.WebDataset(str(tmp_path / "p.tar"), shardshuffle=False, empty_check=False)
        count = sum(1 for _ in dataset.decode().to_tuple("sar.npy", "eo.npy", "valid.npy"))
        assert count == COUNT

    some = places[:100]
    ours, peer, limit = rates([lambda: [read(i) for i in some], lambda: [[a[i] for a in arrays] for i in some],
                               lambda: [[np.array(m[i]) for m in maps] for i in some]], len(some))  # fmt: skip
    runs, tar = rates([lambda: [read.run(i, i + 32) for i in range(0, COUNT, 32)], through_tar], COUNT)
    print(f"\nrandom reads: {ours:,.0f} samples/s/core; zarr-python {peer:,.0f} ({ours / peer:.1f} times as fast); "
          f"memmap copy {limit:,.0f} ({ours / limit:.2f} of it)")  # fmt: skip
    print(f"runs of 32: {runs:,.0f} samples/s/core; webdataset tar of .npy, sequential: {tar:,.0f} "
          f"(random reads {ours / tar:.2f}, runs {runs / tar:.2f} times as fast)")  # fmt: skip


def test_writes(pixels: list[np.ndarray], tmp_path: Path) -> None:
    """Into memory, which is the encoding alone; and to disk, both sides durable: what zarr-python wrote is fsynced after it."""
    arrays = shards.pair_arrays(COUNT, COUNT)
    size = sum(d.nbytes for d in pixels) / 1e6

    def encode() -> list[list[bytes]]:
        made = [shards.Shard(spec, (0,) * len(spec.shape)) for spec in arrays]
        for built, data in zip(made, pixels, strict=True):
            for i in range(COUNT):
                built.add(data[i : i + 1])
        return [built.finish() for built in made]

    def ours() -> None:
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        for spec, data in zip(arrays, pixels, strict=True):
            shards.write_shard(str(tmp_path / "a"), "p", spec, (0,) * data.ndim, data)

    def peer(store: Any, default: bool) -> None:
        for spec, data in zip(arrays, pixels, strict=True):
            made = zarr.create_array(store, name=spec.name, shape=spec.shape, shards=spec.shard, chunks=spec.chunk,
                                     dtype=spec.dtype) if default else spec.create(store)  # fmt: skip
            made[:] = data

    def durable(default: bool) -> None:
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        peer(str(tmp_path / "b"), default)
        for path in (tmp_path / "b").rglob("*"):
            if path.is_file():
                with path.open("rb") as f:
                    os.fsync(f.fileno())

    pieces = encode()
    names = ("encode", "zarr-python", "its default codec")
    memory = rates([encode, lambda: peer(MemoryStore(), False), lambda: peer(MemoryStore(), True)], size)
    print("\nwrites into memory, MB/s of pixels on one core: "
          + ", ".join(f"{n} {r:,.0f} ({memory[0] / r:.2f})" for n, r in zip(names, memory, strict=True)))  # fmt: skip
    disk = rates([ours, lambda: durable(False), lambda: durable(True),
                  lambda: [storage.put(str(tmp_path / "raw"), p) for p in pieces]], size)  # fmt: skip
    names = ("ours with sha256", "zarr-python", "its default codec", "write and fsync of the bytes alone")
    print(
        "durable on disk: " + ", ".join(f"{n} {r:,.0f} ({disk[0] / r:.2f})" for n, r in zip(names, disk, strict=True))
    )


def test_loader(store: str) -> None:
    """Blur, channels, scaling, symmetries and batches of 16 on two cores, beside the raw reader on the same threads."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    torch.set_num_threads(1)
    speed.keep_heap()  # as training workers do
    read, samples = PairReader(store), np.arange(COUNT)

    def raw(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(read, samples.tolist()):
                pass

    def loaded(threads: int) -> None:
        loader = Loader(read, samples, per_object=COUNT, batch=16, crop=256, scaling=Scaling(), seed=0, threads=threads)
        assert sum(len(batch[0]) for batch in loader.batches(0, COUNT // 16)) == COUNT

    one, two, ours = rates([lambda: raw(1), lambda: raw(2), lambda: loaded(2)], COUNT)
    print(f"\nloader, 2 threads: {ours:,.0f} samples/s; raw reader, 1 thread {one:,.0f} ({ours / one:.2f} of it), "
          f"2 threads {two:,.0f} ({ours / two:.2f} of it)")  # fmt: skip


def test_an_index_of_a_million_rows(tmp_path: Path) -> None:
    """Open a store of 1,000,000 pairs and plan an epoch of its training fold, in a process that has not read it before."""
    count = 1_000_000
    arrays = shards.pair_arrays(count, COUNT)
    shards.write_template(str(tmp_path), "p", arrays, {"store": "x"})
    rng = np.random.default_rng(0)
    names = np.char.add("s2/-05520-0439/", rng.integers(0, 10**6, count).astype(str))
    columns: dict[str, Any] = {
        f.name: pa.array(names if pa.types.is_string(f.type) else np.zeros(count), f.type, safe=False)
        if not pa.types.is_date(f.type) else pa.array(np.zeros(count, np.int32), f.type)
        for f in schema(Pair)
    }  # fmt: skip
    columns["split"] = pa.array(np.repeat(["train", "val"], [900_000, 100_000]))
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({"store": "x"}), sink, compression="zstd")
    storage.put(str(tmp_path / "p" / "index.parquet"), sink.getvalue())
    for _ in range(3):
        begin = time.perf_counter()
        found = ranks(str(tmp_path / "p"), "train")
        opened = time.perf_counter() - begin
        planned = order(0, 0, found, COUNT, 8)
        total = time.perf_counter() - begin
    assert len(planned) == 900_000
    print(f"\nindex of 1,000,000 rows ({len(sink.getvalue()) / 1e6:.0f} MB): opened in {opened:.2f} s, "
          f"an epoch planned in {total - opened:.2f} s more")  # fmt: skip


@pytest.mark.parametrize("place", ["cell", "footprint"])
def test_matching_a_million_images(place: str) -> None:
    """1,000,000 EO and 200,000 SAR images of 10,000 places over four years: pairs within 30 days, and their folds."""
    rng = np.random.default_rng(0)

    def tiles(count: int, sensor: str) -> pa.Table:
        at = rng.integers(0, 10_000, count)
        names = pa.array(np.char.add(f"{sensor}/", np.arange(count).astype(str)))
        return pa.table({
            "key": names, "place": pa.array(at.astype(str)), "lon": -60 + 0.02 * (at % 100), "lat": -8 + 0.02 * (at // 100),
            "date": pa.array(rng.integers(17_000, 18_500, count, np.int32), pa.date32()), "reason": pa.repeat("", count),
            "orbit": pa.repeat("ascending", count), "platform": pa.repeat("S1A", count), "digest": names,
        })  # fmt: skip

    sar, eo, rule = tiles(200_000, "s1"), tiles(1_000_000, "s2"), Pairing(place=place)
    pairs = match(sar, eo, rule)
    matching, folds = rates([lambda: match(sar, eo, rule), lambda: assign(pairs, Split())], 1, repeat=2)
    print(f"\n{len(pairs):,} pairs by {place}: matched in {1 / matching:.1f} s, folds in {1 / folds:.2f} s")
