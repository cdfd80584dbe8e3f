from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sar2eo_dist import shards, storage
from sar2eo_dist.errors import AlignmentError, NotFound
from sar2eo_dist.shards import ArraySpec


def spec(shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...], dtype: str = "int16") -> ArraySpec:
    return ArraySpec("a", shape, shard, chunk, dtype, tuple("xyzw"[: len(shape)]), fill=-1 if dtype == "int16" else 0)


def write_all(root: str, s: ArraySpec, data: np.ndarray) -> None:
    shards.write_template(root, "store", (s,), {})
    for index in np.ndindex(*s.grid):
        area = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, s.shard, strict=True))
        shards.write_shard(root, "store", s, index, data[area])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_any_store_reads_back_through_zarr_and_equals_its_own_writer(
    tmp_path_factory: pytest.TempPathFactory, n: int, chunk: int, per: int, w: int, seed: int
) -> None:
    root = str(tmp_path_factory.mktemp("s"))
    s = spec((n, w), (chunk * per, w), (chunk, w))
    data = np.random.default_rng(seed).integers(-5, 5, s.shape).astype("int16")
    write_all(root, s, data)
    group = shards.open_store(storage.join(root, "store"))
    np.testing.assert_array_equal(group["a"][:], data)
    peer = zarr.create_array(
        storage.join(root, "peer"), shape=s.shape, shards=s.shard, chunks=s.chunk, dtype=s.dtype, fill_value=s.fill,
        compressors=zarr.codecs.ZstdCodec(level=s.level), config={"write_empty_chunks": True},
    )  # fmt: skip
    peer[:] = data
    for index in np.ndindex(*s.grid):
        key = "/".join(("c", *map(str, index)))
        assert storage.read_bytes(f"{root}/peer/{key}") == storage.read_bytes(f"{root}/store/a/{key}")


def test_a_mosaic_block_at_the_edge_is_clipped(tmp_path: Path) -> None:
    rgb, valid = shards.mosaic_arrays(100, 70, 64)
    data = np.random.default_rng(0).integers(0, 255, rgb.shape).astype("uint8")
    shards.write_template(str(tmp_path), "m", (rgb, valid), {"crs": "EPSG:32721"})
    for _, r, c in np.ndindex(*rgb.grid):
        shards.write_shard(str(tmp_path), "m", rgb, (0, r, c), data[:, r * 64 : r * 64 + 64, c * 64 : c * 64 + 64])
    group = zarr.open_group(str(tmp_path / "m"), mode="r")
    np.testing.assert_array_equal(group["rgb"][:], data)
    assert group.attrs["crs"] == "EPSG:32721"
    assert group["valid"][:].max() == 0  # never written: no data


def test_unaligned_writes_are_refused_with_the_numbers() -> None:
    s = spec((10, 4), (4, 4), (1, 4))
    for index, shape in (((0, 0), (3, 4)), ((2, 0), (4, 4)), ((0, 0), (5, 4))):
        with pytest.raises(AlignmentError, match=str(shape[0])):
            shards.encode(s, index, np.zeros(shape, "int16"))
    with pytest.raises(AlignmentError, match="float32"):
        shards.encode(s, (0, 0), np.zeros((4, 4), "float32"))
    with pytest.raises(AlignmentError, match=r"\(3, 0\)"):
        shards.encode(s, (3, 0), np.zeros((4, 4), "int16"))


def test_pair_reader_reads_single_samples(tmp_path: Path) -> None:
    arrays = shards.pair_arrays(3, 2, 1)
    shards.write_template(str(tmp_path), "p", arrays, {})
    rng = np.random.default_rng(1)
    data = [rng.integers(0, 2, s.shape).astype(s.dtype) for s in arrays]
    for s, d in zip(arrays, data, strict=True):
        for i in range(2):
            shards.write_shard(str(tmp_path), "p", s, (i,) + (0,) * (d.ndim - 1), d[2 * i : 2 * i + 2])
    read = shards.PairReader(str(tmp_path / "p"))
    assert len(read) == 3
    sar, eo, valid = read(2)
    np.testing.assert_array_equal(sar, data[0][2])
    np.testing.assert_array_equal(eo, data[1][2])
    assert valid.dtype == bool
    with pytest.raises(IndexError):
        read(3)
    with pytest.raises(NotFound, match="nothing"):
        len(shards.PairReader(str(tmp_path / "nothing")))
