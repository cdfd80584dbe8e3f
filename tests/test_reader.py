"""The direct reader against zarr-python, and against every way in which an object can be bad."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist import reader, shards, storage
from sar2eo_dist.errors import Corrupt, NotFound, StorageError
from sar2eo_dist.reader import PairReader, ranks

COUNT, PER = 7, 3


def make(root: str, count: int = COUNT, per: int = PER) -> str:
    rng = np.random.default_rng(5)
    arrays = shards.pair_arrays(count, per)
    shards.write_template(root, "p", arrays, {"store": "abc"})
    for s in arrays:
        low = 0 if s.name == "valid" else 200
        data = rng.integers(low, low + 2 if s.name == "valid" else 260, s.shape).astype(s.dtype)
        for i in range(s.grid[0]):
            shards.write_shard(root, "p", s, (i,) + (0,) * (data.ndim - 1), data[i * per : (i + 1) * per])
    return storage.join(root, "p")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(str(tmp_path_factory.mktemp("reader")))


@pytest.fixture(scope="module")
def peer(whole: str) -> list[np.ndarray]:
    group = zarr.open_group(whole, mode="r")
    return [group[name][:] for name in ("sar", "eo", "valid")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(make(str(tmp_path)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, COUNT - 1), st.integers(1, COUNT))
def test_equal_to_zarr_python_to_the_byte(whole: str, peer: list[np.ndarray], start: int, length: int) -> None:
    read = PairReader(whole)
    stop = min(COUNT, start + length)
    for ours, theirs in zip(read.run(start, stop), peer, strict=True):
        assert ours.tobytes() == theirs[start:stop].tobytes()
    sar, eo, valid = read(start)
    assert (sar.dtype, eo.dtype, valid.dtype) == (np.int16, np.uint16, np.bool_)
    np.testing.assert_array_equal(sar, peer[0][start])


def test_size_places_and_pickling(whole: str) -> None:
    read = PairReader(whole)
    assert (len(read), read.per_object) == (COUNT, PER)
    for bad in (-1, COUNT):
        with pytest.raises(IndexError, match=f"{bad}"):
            read(bad)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read))(6)[0], read(6)[0])


def test_each_sample_is_one_read_of_its_own_bytes(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = PairReader(whole)
    read(0)
    reads: list[tuple[int, int]] = []
    plain = reader._File.read

    def counted(self: reader._File, start: int, stop: int) -> bytes:
        reads.append((start, stop))
        return plain(self, start, stop)

    monkeypatch.setattr(reader._File, "read", counted)
    read(1)
    assert len(reads) == 2  # sar and eo; the whole of valid came with its index
    assert all(stop - start < 300_000 for start, stop in reads)
    read.run(0, 3)
    assert len(reads) == 4


def test_many_threads_share_one_reader(whole: str, peer: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "OPEN", 1)  # objects are dropped and opened all the time
    read, wrong = PairReader(whole), []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, COUNT, 40):
            if not np.array_equal(read(int(i))[1], peer[1][i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def object_of(store: Path, array: str = "eo", number: int = 1) -> Path:
    return next(p for p in (store / array / "c" / str(number)).rglob("*") if p.is_file())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = Path(make(str(tmp_path_factory.mktemp("flip")), 2, 2))
    path = object_of(store, data.draw(st.sampled_from(["sar", "eo", "valid"])), 0)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=str(path)):
        PairReader(str(store)).run(0, 2)


@pytest.mark.parametrize("keep", [0, 10, 1000, -1, -60])
def test_a_truncated_shard_is_named(store: Path, keep: int) -> None:
    path = object_of(store)
    path.write_bytes(path.read_bytes()[:keep])
    read = PairReader(str(store))
    read(0)  # the others are whole
    with pytest.raises(Corrupt, match=str(path)):
        read(4)


def test_an_object_that_shrinks_under_the_reader(store: Path) -> None:
    read = PairReader(str(store))
    read(3)
    path = object_of(store)
    with path.open("r+b") as f:
        f.truncate(1000)
    with pytest.raises(Corrupt, match=r"chunk 2 .* bytes are there"):
        read(5)


def test_an_index_that_disagrees_with_its_shard(store: Path) -> None:
    path = object_of(store)
    path.write_bytes(b"xx" + path.read_bytes())  # a valid index, but of other bytes
    with pytest.raises(Corrupt, match="its index describes"):
        PairReader(str(store))(4)


def test_a_missing_object_and_no_store(store: Path) -> None:
    object_of(store, "sar").unlink()
    read = PairReader(str(store))
    read(0)
    with pytest.raises(NotFound, match="sar/c/1"):
        read(3)
    with pytest.raises(NotFound, match="no pair store here"):
        PairReader(str(store / "nothing"))(0)


def test_a_chunk_that_was_never_written(tmp_path: Path) -> None:
    arrays = shards.pair_arrays(2, 2)
    shards.write_template(str(tmp_path), "p", arrays, {})
    group = zarr.open_group(str(tmp_path / "p"), mode="r+")
    for s in arrays:
        group[s.name][0:1] = np.ones((1, *s.shape[1:]), s.dtype)  # by zarr-python; the second sample is not there
    read = PairReader(str(tmp_path / "p"))
    assert (read(0)[0] == 1).all()
    with pytest.raises(Corrupt, match="chunk 1 is not in its shard"):
        read(1)


def test_arrays_that_this_reader_does_not_know(store: Path) -> None:
    path = store / "eo" / "zarr.json"
    meta = json.loads(path.read_text())
    for change in (
        {"zarr_format": 2},
        {"codecs": [{"name": "bytes"}]},
        {"shape": [COUNT, 3, 256, 512]},
        {"shape": None},
    ):
        path.write_text(json.dumps(meta | change))
        with pytest.raises(StorageError, match="open it with zarr-python"):
            PairReader(str(store))(0)
    path.write_text(json.dumps(meta | {"shape": [COUNT + 1, 3, 256, 256]}))
    with pytest.raises(Corrupt, match=f"eo {COUNT + 1} by {PER}"):
        PairReader(str(store))(0)
    path.write_text("{")
    with pytest.raises(Corrupt, match="not JSON"):
        PairReader(str(store))(0)


def write_index(store: Path, splits: list[str], mark: str = "abc") -> None:
    table = pa.table({"place": ["x"] * len(splits), "split": splits}).replace_schema_metadata({"store": mark})
    pq.write_table(table, store / "index.parquet", row_group_size=2)


def test_ranks_of_a_fold(store: Path) -> None:
    write_index(store, ["train"] * 4 + ["val"] * 3)
    assert ranks(str(store), "val").tolist() == [4, 5, 6]
    assert ranks(str(store), "train").dtype == np.int64
    assert ranks(str(store), "test").tolist() == []


def test_an_index_of_another_store_is_refused(store: Path) -> None:
    with pytest.raises(NotFound, match=r"index\.parquet"):
        ranks(str(store), "val")
    write_index(store, ["train"] * 6)
    with pytest.raises(Corrupt, match=r"6 rows.*7 samples.*--audit"):
        ranks(str(store), "val")
    write_index(store, ["train"] * 7, "other")
    with pytest.raises(Corrupt, match="store other"):
        ranks(str(store), "val")
    (store / "index.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(Corrupt, match="does not read"):
        ranks(str(store), "val")
