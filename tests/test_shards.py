from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sar2eo_dist import shards, storage
from sar2eo_dist.errors import AlignmentError, NotFound
from sar2eo_dist.shards import ArraySpec, Shard


def spec(shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...], dtype: str = "int16") -> ArraySpec:
    return ArraySpec("a", shape, shard, chunk, dtype, tuple("xyzw"[: len(shape)]), fill=-1 if dtype == "int16" else 0)


def write_all(root: str, s: ArraySpec, data: np.ndarray) -> None:
    shards.write_template(root, "store", (s,), {})
    for index in np.ndindex(*s.grid):
        area = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, s.shard, strict=True))
        shards.write_shard(root, "store", s, index, data[area])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_any_store_reads_back_through_zarr_and_equals_its_own_writer_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, n: int, chunk: int, per: int, w: int, seed: int
) -> None:
    root = str(tmp_path_factory.mktemp("s"))
    s = spec((n, w), (chunk * per, w), (chunk, w))
    data = np.random.default_rng(seed).integers(-5, 5, s.shape).astype("int16")
    write_all(root, s, data)
    group = shards.open_store(storage.join(root, "store"))
    np.testing.assert_array_equal(group["a"][:], data)
    peer = s.create(storage.join(root, "peer"), config={"write_empty_chunks": True})
    peer[:] = data
    for index in np.ndindex(*s.grid):
        key = "/".join(("a", "c", *map(str, index)))
        assert storage.read_bytes(f"{root}/peer/{key}") == storage.read_bytes(f"{root}/store/{key}")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["lz4", "zstd"]))
def test_shards_of_many_rows_and_columns_are_clipped_at_the_edges(
    tmp_path_factory: pytest.TempPathFactory, h: int, w: int, chunk: int, per: int, compressor: str
) -> None:
    root = str(tmp_path_factory.mktemp("s"))
    s = ArraySpec(
        "a", (2, h, w), (2, chunk * per, chunk * per), (2, chunk, chunk), "uint8", ("b", "y", "x"), 7, compressor
    )
    data = np.random.default_rng(h * w).integers(0, 255, s.shape).astype("uint8")
    write_all(root, s, data)
    np.testing.assert_array_equal(zarr.open_group(f"{root}/store", mode="r")["a"][:], data)


def test_unaligned_writes_are_refused_with_the_numbers(tmp_path: Path) -> None:
    s = spec((10, 4), (4, 4), (1, 4))
    for index, shape in (((0, 0), (3, 4)), ((2, 0), (4, 4)), ((0, 0), (5, 4))):
        with pytest.raises(AlignmentError, match=str(shape[0])):
            shards.write_shard(str(tmp_path), "s", s, index, np.zeros(shape, "int16"))
    with pytest.raises(AlignmentError, match="float32"):
        shards.write_shard(str(tmp_path), "s", s, (0, 0), np.zeros((4, 4), "float32"))
    with pytest.raises(AlignmentError, match=r"\(3, 0\)"):
        Shard(s, (3, 0))
    made = Shard(s, (2, 0))  # the last: two chunks
    with pytest.raises(AlignmentError, match=r"a chunk is \(1, 4\) of int16, not \(2, 4\)"):
        made.add(np.zeros((2, 4), "int16"))
    made.add(np.zeros((1, 4), "int16"))
    with pytest.raises(AlignmentError, match="holds 2 chunks, 1 are missing"):
        made.finish()
    made.add(np.zeros((1, 4), "int16"))
    with pytest.raises(AlignmentError, match="holds 2 chunks, no more"):
        made.add(np.zeros((1, 4), "int16"))
    assert not any(tmp_path.iterdir())


def test_xarray_opens_a_pair_store_with_its_units_and_nodata(tmp_path: Path) -> None:
    arrays = shards.pair_arrays(2, 2)
    shards.write_template(str(tmp_path), "p", arrays, {})
    data = [np.ones(s.shape, s.dtype) for s in arrays]
    data[0][:] = -1234
    data[0][0, 1, 0, 0] = shards.NODATA_DB
    for s, d in zip(arrays, data, strict=True):
        shards.write_shard(str(tmp_path), "p", s, (0,) * d.ndim, d)
    with xarray.open_zarr(str(tmp_path / "p"), consolidated=False, zarr_format=3) as found:
        assert dict(found.sizes) == {"sample": 2, "polarisation": 2, "row": 256, "col": 256, "band": 3}
        sar = found["sar"].values
    assert np.isnan(sar[0, 1, 0, 0])
    assert sar[1, 0, 3, 4] == pytest.approx(-12.34)


def test_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing"):
        shards.open_store(str(tmp_path / "nothing"))
