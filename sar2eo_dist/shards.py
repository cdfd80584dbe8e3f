"""The stores: zarr v3 arrays whose every shard object is encoded in memory and published with one atomic PUT.

A store's metadata (the template) is written once, before any shard. A shard object is a pure function of its pixels, so
the same samples give the same bytes wherever and however often they are written. Any zarr v3 reader opens the result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from sar2eo_dist import storage
from sar2eo_dist.errors import AlignmentError, NotFound, StorageError
from sar2eo_dist.records import PATCH, Artifact

NODATA_DB = -32768  # of the int16 SAR array; see radiometry.encode_db


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One sharded array: `shard` is what one object holds (a unit writes whole ones), `chunk` what one read decodes."""

    name: str
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    fill: int = 0
    level: int = 3
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def create(self, store: MemoryStore, shape: tuple[int, ...] | None = None) -> Any:
        return zarr.create_array(
            store, name=self.name, shape=shape or self.shape, shards=self.shard, chunks=self.chunk, dtype=self.dtype,
            compressors=ZstdCodec(level=self.level), fill_value=self.fill, dimension_names=self.dims,
            attributes=dict(self.attributes), config={"write_empty_chunks": True},
        )  # fmt: skip

    @property
    def grid(self) -> tuple[int, ...]:
        """Shards along each axis."""
        return tuple(math.ceil(n / s) for n, s in zip(self.shape, self.shard, strict=True))


def pair_arrays(count: int, samples: int, level: int) -> tuple[ArraySpec, ArraySpec, ArraySpec]:
    """The pair store of `count` samples, `samples` to an object.

    sar (N, 2, H, W) int16: VV, VH in 0.01 dB; eo (N, 3, H, W) uint16: DN of B4, B3, B2; valid (N, H, W) uint8: 1 where
    both have data. One inner chunk a sample.
    """
    n = (samples,)
    return (
        ArraySpec("sar", (count, 2, PATCH, PATCH), (*n, 2, PATCH, PATCH), (1, 2, PATCH, PATCH), "int16",
                  ("sample", "polarisation", "row", "col"), NODATA_DB, level,
                  {"scale_factor": 0.01, "units": "dB", "polarisation": ["VV", "VH"], "_FillValue": NODATA_DB}),
        ArraySpec("eo", (count, 3, PATCH, PATCH), (*n, 3, PATCH, PATCH), (1, 3, PATCH, PATCH), "uint16",
                  ("sample", "band", "row", "col"), 0, level, {"units": "DN", "band": ["B4", "B3", "B2"]}),
        ArraySpec("valid", (count, PATCH, PATCH), (*n, PATCH, PATCH), (1, PATCH, PATCH), "uint8",
                  ("sample", "row", "col"), 0, level),
    )  # fmt: skip


def mosaic_arrays(height: int, width: int, block: int, level: int = 3) -> tuple[ArraySpec, ArraySpec]:
    """The mosaic store: rgb (3, H, W) uint8 and valid (H, W) uint8 (1 = data), one object of each a block."""
    chunk = math.gcd(block, 256)
    return (
        ArraySpec("rgb", (3, height, width), (3, block, block), (3, chunk, chunk), "uint8", ("band", "y", "x"), 0, level,
                  {"band": ["red", "green", "blue"]}),
        ArraySpec("valid", (height, width), (block, block), (chunk, chunk), "uint8", ("y", "x"), 0, level),
    )  # fmt: skip


def write_template(
    root: str, store: str, arrays: tuple[ArraySpec, ...], attributes: Mapping[str, Any]
) -> list[Artifact]:
    """Publish the metadata of a group and its arrays below `root`/`store`. Call once, before any shard is written."""
    memory = MemoryStore()
    zarr.create_group(memory, attributes=dict(attributes))
    for spec in arrays:
        spec.create(memory)
    documents = sorted(memory._store_dict.items())
    return [storage.publish(root, storage.join(store, key), value.to_bytes()) for key, value in documents]


def encode(spec: ArraySpec, index: tuple[int, ...], data: npt.NDArray[Any]) -> bytes:
    """The shard object at `index` of the shard grid.

    data: exactly the pixels of that shard, clipped at the array's end. Raises AlignmentError with the numbers where the
    data cover more or less than the shard, or have another dtype.
    """
    if len(index) != len(spec.shape) or any(not 0 <= i < g for i, g in zip(index, spec.grid, strict=True)):
        raise AlignmentError(f"{spec.name}: shard {index} is outside the grid {spec.grid} of shape {spec.shape}")
    extents = zip(index, spec.shape, spec.shard, strict=True)
    expected = tuple(min(s, n - i * s) for i, n, s in extents)
    if data.shape != expected or data.dtype != np.dtype(spec.dtype):
        raise AlignmentError(
            f"{spec.name}: shard {index} holds {expected} of {spec.dtype}, the data are {data.shape} of {data.dtype}"
        )
    memory = MemoryStore()
    array = spec.create(memory, shape=spec.shard)
    array[tuple(slice(0, n) for n in expected)] = data
    return memory._store_dict[object_path(spec, (0,) * len(index))].to_bytes()


def object_path(spec: ArraySpec, index: tuple[int, ...]) -> str:
    """Key of a shard object in its store."""
    return "/".join((spec.name, "c", *map(str, index)))


def write_shard(root: str, store: str, spec: ArraySpec, index: tuple[int, ...], data: npt.NDArray[Any]) -> Artifact:
    """Encode one shard and publish it atomically as one object."""
    return storage.publish(root, storage.join(store, object_path(spec, index)), encode(spec, index, data))


def open_store(uri: str) -> Any:
    """A store for reading, as zarr-python's Group. Raises NotFound or StorageError with the URI."""
    try:
        return zarr.open_group(uri, mode="r", use_consolidated=False)
    except FileNotFoundError as e:
        raise NotFound(uri, "no zarr store") from e
    except Exception as e:
        raise StorageError(uri, f"cannot open the zarr store ({type(e).__name__}: {e})") from e


class PairReader:
    """Samples of a pair store by index: a callable that can be shipped to a worker, opened at its first use there."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @functools.cached_property
    def _arrays(self) -> tuple[Any, Any, Any]:
        group = open_store(self.uri)
        return group["sar"], group["eo"], group["valid"]

    def __len__(self) -> int:
        return int(self._arrays[0].shape[0])

    def __call__(self, i: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16], npt.NDArray[np.bool_]]:
        """sar (2, H, W) int16 of 0.01 dB, eo (3, H, W) uint16 DN, valid (H, W) bool. Raises IndexError outside."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of a store of {len(self)}: {self.uri}")
        sar, eo, valid = self._arrays
        return sar[i], eo[i], valid[i].astype(bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return PairReader, (self.uri,)


@dataclass(frozen=True)
class Subset:
    """Some samples of a reader, numbered anew from 0."""

    read: PairReader
    indices: tuple[int, ...]

    def __call__(self, i: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16], npt.NDArray[np.bool_]]:
        return self.read(self.indices[i])
