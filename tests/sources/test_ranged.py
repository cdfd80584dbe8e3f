"""A file read by ranges: equal to the object itself, few bytes, and its faults by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, NotFound, Unavailable
from sar2eo_dist.sources import ranged
from sar2eo_dist.sources.ranged import BLOCK, RangedFile

DATA = bytes(i * i % 251 for i in range(3 * BLOCK + 777))
URI = "memory://ranged/data"


@pytest.fixture(scope="module")
def info() -> storage.Info:
    storage.put(URI, DATA)
    return storage.info(URI)


moves = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-len(DATA) - 9, len(DATA) + 9), st.integers(0, 2 * BLOCK)), max_size=12
)


@settings(max_examples=50)
@given(moves)
def test_it_reads_as_the_bytes_do(info: storage.Info, steps: list[tuple[int, int, int]]) -> None:
    file, reference = RangedFile(info), io.BytesIO(DATA)
    for whence, offset, size in steps:
        base = (0, reference.tell(), len(DATA))[whence]
        reference.seek(max(0, base + offset))
        assert file.seek(offset, whence) == reference.tell()
        assert file.read(size) == reference.read(size)
        assert file.tell() == reference.tell()


def test_ranges_come_in_their_order_and_leave_the_position(info: storage.Info) -> None:
    file = RangedFile(info)
    file.seek(5)
    places = [(BLOCK, 10), (0, 3 * BLOCK), (len(DATA) - 4, 4), (7, 0)]
    assert file.read_ranges([p for p, _ in places], [n for _, n in places]) == [DATA[p : p + n] for p, n in places]
    assert file.read_ranges([], []) == []
    assert file.tell() == 5


def test_small_reads_share_a_block_and_large_ones_cost_their_own_bytes(
    info: storage.Info, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[int, int]] = []
    real = storage.read_range

    def counted(uri: str, start: int, end: int) -> bytes:
        fetched.append((start, end))
        return real(uri, start, end)

    monkeypatch.setattr(storage, "read_range", counted)
    file = RangedFile(info)
    for at in (100, 4, 300, BLOCK - 20):
        file.seek(at)
        file.read(20)
    assert fetched == [(0, BLOCK)]
    file.seek(10)
    file.read(BLOCK + 1)
    assert fetched[1:] == [(10, BLOCK + 11)]


def test_few_blocks_are_kept(info: storage.Info, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "KEEP", 2)
    file = RangedFile(info)
    for at in (0, 1, 2, 3, 0):
        file.seek(at * BLOCK)
        assert file.read(9) == DATA[at * BLOCK :][:9]
    assert len(file._blocks) == 2


def test_a_range_past_the_end_says_that_the_object_is_torn(info: storage.Info) -> None:
    with pytest.raises(BadInput, match=f"torn: {len(DATA)} bytes, where byte {len(DATA) + 1}"):
        RangedFile(info).read_ranges([len(DATA) - 9], [10])


def test_an_object_that_shrank_or_went_is_an_outage(tmp_path: Path) -> None:
    uri = f"memory://{tmp_path}/x"
    storage.put(uri, DATA)
    file = RangedFile(storage.info(uri))
    storage.put(uri, DATA[:BLOCK])
    file.seek(BLOCK)
    with pytest.raises(Unavailable, match="got 0 of the"):
        file.read(10)
    storage.delete(uri)
    with pytest.raises(NotFound):
        file.read(10)


def test_parquet_reads_through_it_and_an_outage_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow hands our own errors on; fsspec's handles would raise their backend's, without a retry."""
    table = pa.table({"a": np.arange(200_000), "b": np.random.default_rng(0).random(200_000)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=50_000)
    with ranged.ranged(str(tmp_path / "x.parquet")) as f:
        assert pq.ParquetFile(f).read_row_group(2).equals(table.slice(100_000, 50_000))
    with ranged.ranged(str(tmp_path / "x.parquet")) as f:
        file = pq.ParquetFile(f)

        def down(uri: str, start: int, end: int) -> bytes:
            raise Unavailable(uri, "store did not answer")

        monkeypatch.setattr(storage, "read_range", down)
        with pytest.raises(Unavailable, match=r"x\.parquet"):
            file.read_row_group(0)
