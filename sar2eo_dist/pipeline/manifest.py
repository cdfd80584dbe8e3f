"""The listing of an archive as manifest slices: what `collect` plans, without a Python object a tile.

Sources yield Arrow tables of pointers in canonical order; they are cut into slices, one row group of a parquet file each.
The driver keeps a few words a slice, whatever the archive's size.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from sar2eo_dist import sources, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline.progress import Meter
from sar2eo_dist.records import S1, S2, Rejected, TileRef, schema
from sar2eo_dist.sources.ranged import ranged

SLICES = 64  # slices in one manifest file: its footer, which every reader of a slice fetches, stays small


@dataclass(frozen=True, slots=True)
class Slice:
    """Pointers of one unit of work: key of the first, digest of all their inputs, where they lie, how many."""

    key: str
    inputs: str
    uri: str
    group: int
    tiles: int


def cut(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Slices of about `size` rows (half to twice), at places that the keys themselves decide.

    Content-defined: a tile that appears or vanishes changes the slice it falls in, and not the ones after it. A slice
    never holds two scenes, whose blocks would be fetched twice.
    """
    half, most = max(size // 2, 1), 2 * size
    parts: list[pa.Table] = []
    length, scene = 0, ""
    for table in tables:
        start = 0
        keys = table["key"].to_pylist()
        whole = _scenes(table)
        for i, key in enumerate(keys):
            if length and whole and whole[i] != scene:
                yield pa.concat_tables([*parts, table.slice(start, i - start)])
                parts, length, start = [], 0, i
            scene = whole[i] if whole else ""
            length += 1
            if length >= most or (length >= half and zlib.crc32(key.encode()) % half == 0):
                yield pa.concat_tables([*parts, table.slice(start, i + 1 - start)])
                parts, length, start = [], 0, i + 1
        if start < len(keys):
            parts.append(table.slice(start))
    if parts:
        yield pa.concat_tables(parts)


def as_listed(refs: pa.Table) -> pa.Table:
    """Pointers that come by date and key in the order in which `scan` lists them: windows scene by scene, row by row."""
    if not _scenes(refs):
        return refs
    at = list(zip(_scenes(refs), refs["rows"].to_pylist(), strict=True))
    return refs.take(pa.array(sorted(range(len(at)), key=at.__getitem__)))


def _scenes(table: pa.Table) -> list[str]:
    """The first file of each row where rows are windows of scenes; else nothing."""
    if not len(table) or table["kind"][0].as_py() != "scenes":
        return []
    return [uris[0] for uris in table["uris"].to_pylist()]


def write(slices: Iterable[pa.Table], folder: str) -> Iterator[Slice]:
    """Put slices below a folder as they come, SLICES of them in one parquet file; without a folder, only count them."""
    batch: list[pa.Table] = []
    number = 0
    for part in slices:
        batch.append(part)
        if len(batch) == SLICES:
            yield from _put(batch, _file(folder, number))
            batch, number = [], number + 1
    if batch:
        yield from _put(batch, _file(folder, number))


def _file(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:05d}.parquet") if folder else ""


def _put(batch: list[pa.Table], uri: str) -> Iterator[Slice]:
    if uri:
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, batch[0].schema, compression="zstd") as writer:
            for part in batch:
                writer.write_table(part, row_group_size=len(part))
        storage.put(uri, sink.getvalue())
    for group, part in enumerate(batch):
        inputs = hashlib.sha256("".join(part["digest"].to_pylist()).encode()).hexdigest()[:32]
        yield Slice(part["key"][0].as_py(), inputs, uri, group, len(part))


def read(uri: str, group: int) -> pa.Table:
    """The pointers of one slice (columns of TileRef)."""
    with ranged(uri) as f:
        return pq.ParquetFile(f).read_row_group(group).select(schema(TileRef).names)


def list_archive(cfg: Config, keep: bool = True) -> tuple[list[Slice], list[Rejected]]:
    """List both sensors, with progress, into `collect/manifest/` (unless `keep` is off: a dry run).

    Raises ConfigError where a source is not set or holds nothing, and what `sources.scan` raises. Without pairing, radar
    may be left out.
    """
    rejected: list[Rejected] = []

    def tables() -> Iterator[pa.Table]:
        for sensor, root in ((S1, cfg.data.s1), (S2, cfg.data.s2)):
            if not root and sensor == S1 and cfg.pairing.mode == "none":
                continue
            if not root and cfg.data.kind != "folder_pair":  # which is refused by its own name
                raise ConfigError(
                    f"data.{sensor} is empty: set it to a TIFF folder, NetCDF file or folder of scenes (any URI)"
                )
            with Meter(f"listing {sensor}", None, "objects") as meter:
                found, bad = sources.scan(
                    cfg.data.kind,
                    storage.absolute(root),
                    sensor,
                    lambda n: meter.advance(n - meter.count),
                    cfg.data.units,
                    cfg.data.quantity,
                )
                yield from found
                rejected.extend(sorted(bad, key=lambda r: (r.uri, r.detail)))

    folder = storage.absolute(storage.join(cfg.run.out, "collect/manifest")) if keep else ""
    slices = list(write(cut(tables(), cfg.cca.slice), folder))
    if not slices:
        raise ConfigError(f"no Sentinel-1 or Sentinel-2 tile in {cfg.data.s1} or {cfg.data.s2}")
    return slices, rejected
