"""Samples of a pair store, straight from its shard objects: their index once, then one ranged read and one decode each.

Equal to what zarr-python reads, without its layers. Every chunk's CRC32C is checked; nothing that is torn or flipped is
ever returned. For any other zarr store, and for other tools: zarr-python, see `shards.open_store`.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numcodecs import blosc, zstd

from sar2eo_dist import storage
from sar2eo_dist.errors import Corrupt, NotFound, StorageError

Sample = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16], npt.NDArray[np.bool_]]

OPEN = 64  # shard objects whose index (and local file) is kept
TAIL = 256 << 10  # bytes read to find an index; an object that is no longer is kept whole: one read for all its chunks
RESIDUE = 0x48674BC7  # CRC32C of any bytes followed by their own CRC32C
ARRAYS = ("sar", "eo", "valid")
AGAIN = "jobs/shard.py --audit makes it again"


def ranks(store: str, split: str) -> npt.NDArray[np.int64]:
    """Places in the store of a fold's samples, ascending: (n,). Decodes one column of `index.parquet`, no row of it.

    Raises NotFound; Corrupt where the index is not that of this store.
    """
    attributes = _metadata(storage.join(store, "zarr.json")).get("attributes", {})
    uri = storage.join(store, "index.parquet")
    data = storage.read_bytes(uri)
    try:
        file = pq.ParquetFile(io.BytesIO(data), read_dictionary=["split"])
        table = file.read(["split"])
        mark = (file.schema_arrow.metadata or {}).get(b"store", b"").decode()
    except (pa.ArrowException, OSError, KeyError) as e:
        raise Corrupt(uri, f"the index does not read: {e} ({AGAIN})") from e
    count = StoredArray(store, "sar").count
    if mark != attributes.get("store") or table.num_rows != count:
        raise Corrupt(
            uri, f"the index ({table.num_rows} rows, of store {mark[:12] or '?'}) is not that of this store "
            f"({count} samples, {str(attributes.get('store'))[:12]}); {AGAIN}"
        )  # fmt: skip
    return np.flatnonzero(pc.equal(table["split"], split).to_numpy(zero_copy_only=False)).astype(np.int64)


class PairReader:
    """Samples of the pair store at a URI, by place. Opened at its first use; many threads may share it.

    Errors name the object: NotFound (it is gone), Corrupt (cut short, a flipped bit, an index that disagrees),
    StorageError (no pair store of ours), Unavailable (an outage that outlasts the retries of `storage`).
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._open: tuple[StoredArray, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return PairReader, (self.uri,)

    @property
    def _arrays(self) -> tuple[StoredArray, ...]:
        with self._lock:
            if not self._open:
                arrays = tuple(StoredArray(self.uri, name) for name in ARRAYS)
                if len({(a.count, a.per_object) for a in arrays}) > 1:
                    shapes = ", ".join(f"{a.name} {a.count} by {a.per_object}" for a in arrays)
                    raise Corrupt(self.uri, f"the arrays of the pair store disagree on their samples ({shapes})")
                self._open = arrays
            return self._open

    def __len__(self) -> int:
        return self._arrays[0].count

    @property
    def per_object(self) -> int:
        """Samples in one shard object."""
        return self._arrays[0].per_object

    def __call__(self, i: int) -> Sample:
        """sar (2, H, W) int16 of 0.01 dB, eo (3, H, W) uint16 DN, valid (H, W) bool. Raises IndexError outside."""
        sar, eo, valid = self.run(i, i + 1)
        return sar[0], eo[0], valid[0]

    def run(self, start: int, stop: int) -> Sample:
        """Samples [start, stop) with a leading axis: one ranged read of each shard object that holds some of them."""
        arrays = self._arrays
        if not 0 <= start < stop <= arrays[0].count:
            raise IndexError(f"samples {start} to {stop} of a store of {arrays[0].count}: {self.uri}")
        out = [np.empty((stop - start, *a.shape), a.dtype) for a in arrays]
        per, at = arrays[0].per_object, start
        while at < stop:
            number, first = divmod(at, per)
            last = min(first + stop - at, per)
            wanted = [a.object(number).locate(first, last) for a in arrays]
            blocks = fetch([w for w in wanted if isinstance(w, Range)])
            for a, w, pixels in zip(arrays, wanted, out, strict=True):
                held = a.object(number)
                data = next(blocks) if isinstance(w, Range) else w
                for k in range(first, last):
                    held.decode(a, data, w.start if isinstance(w, Range) else 0, k, pixels[at - start + k - first])
            at += last - first
        return out[0], out[1], out[2].view(np.bool_)


@dataclass(frozen=True, slots=True)
class Range:
    held: _Object
    start: int
    stop: int


def fetch(ranges: list[Range]) -> Any:
    """The bytes of some ranges, in order; from an object store side by side."""
    if all(r.held.file for r in ranges):
        return iter([r.held.file.read(r.start, r.stop) for r in ranges if r.held.file])
    return iter(storage.read_ranges([(r.held.uri, r.start, r.stop) for r in ranges]))


class _File:
    """A local file for positioned reads by many threads; closed when nobody holds it any more."""

    def __init__(self, path: str, uri: str) -> None:
        self.fd, self.uri = -1, uri
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise storage.named(uri, e) from e
        self.size = os.fstat(self.fd).st_size

    def read(self, start: int, stop: int) -> bytes:
        try:
            return os.pread(self.fd, stop - start, start)
        except OSError as e:
            raise storage.named(self.uri, e) from e

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class StoredArray:
    """One array of the store: what its metadata say, and its shard objects."""

    def __init__(self, store: str, name: str) -> None:
        self.uri, self.name = storage.join(store, name), name
        meta = _metadata(storage.join(self.uri, "zarr.json"))
        try:
            shape, outer = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
            (sharding,) = meta["codecs"]
            inner = sharding["configuration"]
            chain = [codec["name"] for codec in inner["codecs"]]
            known = (
                sharding["name"] == "sharding_indexed"
                and meta["zarr_format"] == 3
                and inner["chunk_shape"] == [1, *shape[1:]]
                and outer[1:] == shape[1:]
                and len(chain) == 3
                and chain[0] == "bytes"
                and chain[1] in _DECODERS
                and chain[2] == "crc32c"
                and [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
                and inner.get("index_location", "end") == "end"
            )
        except (KeyError, TypeError, ValueError, IndexError):
            known = False
        if not known:
            raise StorageError(
                self.uri, "not an array of a pair store that this reader knows: open it with zarr-python"
            )
        self.count, self.per_object, self.shape = int(shape[0]), int(outer[0]), tuple(shape[1:])
        self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
        self.unpack = _DECODERS[chain[1]]
        self._tail = "/".join(["0"] * len(self.shape))
        self._kept: OrderedDict[int, _Object] = OrderedDict()
        self._lock = threading.Lock()

    def object(self, number: int) -> _Object:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        made = _Object(storage.join(self.uri, "c", str(number), self._tail), self.per_object)
        with self._lock:
            self._kept[number] = made
            while len(self._kept) > OPEN:
                self._kept.popitem(last=False)
        return made


class _Object:
    """One shard object: the index at its end, checked, and all its bytes where they are few."""

    def __init__(self, uri: str, chunks: int) -> None:
        self.uri = uri
        path = storage.local_path(uri)
        self.file = _File(path, uri) if path else None
        length = 16 * chunks + 4
        want = max(TAIL, length)
        if self.file:
            tail = self.file.read(max(0, self.file.size - want), self.file.size)
        else:
            tail = storage.read_tail(uri, want)
        index = tail[-length:]
        if len(index) < length or google_crc32c.value(index) != RESIDUE:
            raise Corrupt(
                uri, f"no valid index in the last {length} bytes of the shard, cut short or damaged ({AGAIN})"
            )
        self.entries = np.frombuffer(index, "<u8", 2 * chunks).reshape(chunks, 2).astype(np.int64)
        ends = self.entries[self.entries[:, 0] >= 0].sum(axis=1)  # 2^64 - 1, "never written", is -1 here
        size = int(ends.max(initial=0)) + length
        if self.file and self.file.size != size:
            raise Corrupt(uri, f"the shard has {self.file.size} bytes, its index describes {size} ({AGAIN})")
        self.whole = tail if len(tail) == size else b""

    def locate(self, first: int, last: int) -> Range | bytes:
        """Where chunks [first, last) lie; the object itself where it is held whole."""
        entries = self.entries[first:last]
        if (entries[:, 0] < 0).any():
            k = first + int(np.argmax(entries[:, 0] < 0))
            raise Corrupt(self.uri, f"chunk {k} is not in its shard: it was never written")
        if self.whole:
            return self.whole
        return Range(self, int(entries[:, 0].min()), int(entries.sum(axis=1).max()))

    def decode(self, array: StoredArray, data: bytes, offset: int, k: int, out: npt.NDArray[Any]) -> None:
        """Chunk k, from bytes that begin at `offset` of the object, into `out`. Raises Corrupt."""
        start, size = (int(n) for n in self.entries[k])
        chunk = data if size == len(data) else data[start - offset : start - offset + size]
        if len(chunk) != size or google_crc32c.value(chunk) != RESIDUE:
            problem = (
                f"{len(chunk)} of its {size} bytes are there" if len(chunk) != size else "its CRC32C does not hold"
            )
            raise Corrupt(self.uri, f"chunk {k} at byte {start} is damaged, {problem} ({AGAIN})")
        try:
            array.unpack(memoryview(chunk)[:-4], out)
        except (RuntimeError, ValueError) as e:
            raise Corrupt(self.uri, f"chunk {k} at byte {start} does not decode ({e})") from e


def _metadata(uri: str) -> dict[str, Any]:
    try:
        tree = json.loads(storage.read_bytes(uri))
    except NotFound as e:
        raise NotFound(uri, "no pair store here") from e
    except ValueError as e:
        raise Corrupt(uri, f"not JSON ({e})") from e
    return tree if isinstance(tree, dict) else {}


_DECODERS: dict[str, Callable[[Any, Any], Any]] = {"blosc": blosc.decompress, "zstd": zstd.decompress}
