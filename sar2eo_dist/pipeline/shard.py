"""shard: write the pairs that survived as sharded zarr, one unit a shard.

A store's first unit is its template: the metadata, `index.parquet` (a row a sample, in the order of the store) and
`tiles.parquet` (the pointers, a row group a shard). It is written by the driver before any shard; all the others run anywhere.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import shards, sources, storage
from sar2eo_dist.cca import exposure
from sar2eo_dist.config import Config
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pairing.align import offset, shift
from sar2eo_dist.pairing.split import assign, assign_by_name
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage, write_summary
from sar2eo_dist.radiometry import encode_db, validity
from sar2eo_dist.records import KEPT, Artifact, Pair, Rejected, TileRef, Unit, digest, from_table, schema, to_table
from sar2eo_dist.sources.ranged import ranged

STAGE = "shard"
FORMAT = 2  # of a store; another one is another store, so that no run mixes two
#: canonical order of the folds in a store; `guard` pairs are in no split and take no room
SPLITS = ("train", "val", "test")
READERS, AHEAD = 8, 16  # threads that read pairs, and pairs read ahead, in one task
COLUMNS = [f.name for f in dataclasses.fields(TileRef)]


def shard(cfg: Config, opts: Options) -> Summary:
    """Run the verb. Raises ConfigError where there is no pair."""
    root = storage.absolute(cfg.run.out)
    ready = cfg.data.kind == "folder_pair"
    pairs, tiles = _ready(cfg, root, opts.dry_run) if ready else _collected(cfg, root)
    guard = pairs.num_rows
    pairs = canonical(pairs)
    guard -= pairs.num_rows
    if not pairs.num_rows:
        why = f"{guard} lie in the guard band between folds; change split.cell_degrees"
        collected = (
            "look at the reasons in the report, then widen pairing.max_days, change cca.beta or set cca.profile=none"
        )
        raise ConfigError(f"no pair to shard ({why}): {f'see {STAGE}/rejected.parquet' if ready else collected}")
    count, samples = pairs.num_rows, min(cfg.shard.samples, pairs.num_rows)
    arrays = shards.pair_arrays(count, samples)
    fingerprint = cfg.fingerprint(STAGE)
    marks = list(zip(*(pairs[c].to_pylist() for c in ("sar_digest", "eo_digest", "split")), strict=True))
    whole = digest(FORMAT, fingerprint, marks)
    store = f"shards/{whole[:12]}"
    template = Unit(STAGE, f"{store}/template", fingerprint, whole)
    plan: dict[str, tuple[Unit, int]] = {}
    for i in range(0, count, samples):
        unit = Unit(STAGE, f"{store}/{i // samples:05d}", fingerprint, digest(whole, marks[i : i + samples]))
        plan[unit.id] = (unit, i // samples)

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        if template in todo:
            yield _template(template, root, store, arrays, pairs, tiles, attempt)
        if rest := [plan[u.id] for u in todo if u != template]:
            cluster.start(cfg)
            work = partial(write, root=root, store=store, arrays=arrays)
            yield from units.run(work, rest, attempt, parallel=cfg.resources.readers)

    every = [template, *(u for u, _ in plan.values())]
    limited = dataclasses.replace(opts, limit=opts.limit + 1) if opts.limit else opts  # the template is no shard
    summary = run_stage(cfg, limited, STAGE, every, execute, "shards")
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"pairs": count})
    lost = {q["unit"] for q in summary.quarantined}
    _objects(root, store, [u for u in every[: summary.planned] if u.id not in lost])
    outputs = {"store": store, "index": f"{store}/index.parquet", "objects": f"{store}/objects.parquet"}
    splits = dict(zip(*(c.to_pylist() for c in pc.value_counts(pairs["split"]).flatten()), strict=True))
    counts = {"pairs": count, "pairs a shard": samples} | {f"pairs {s}": splits.get(s, 0) for s in SPLITS}
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=counts))


def present(sharded: dict[str, Any], ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those samples of a store that are really there: not where a shard was quarantined, or beyond `--limit`."""
    missing = [int(q["key"].rsplit("/", 1)[1]) for q in sharded["quarantined"]]
    number: npt.NDArray[np.int64] = ranks // sharded["counts"]["pairs a shard"]
    there = number < sharded["planned"] - 1  # the first unit is the template
    found: npt.NDArray[np.int64] = ranks[there & ~np.isin(number, missing)]
    return found


def spread(ranks: Sequence[int] | npt.NDArray[np.int64], n: int) -> list[int]:
    """At most n of some samples, evenly spaced: the same ones whenever the samples are."""
    n = min(n, len(ranks))
    return [int(ranks[i * len(ranks) // n]) for i in range(n)]


def canonical(pairs: pa.Table) -> pa.Table:
    """The rows of a pair table that are in a fold, in the order of the store: fold, place, EO key, SAR key, digests."""
    rank = pc.index_in(pairs["split"], pa.array(SPLITS))
    pairs = pairs.append_column("rank", rank).filter(pc.is_valid(rank))
    keys = ("rank", "place", "eo_key", "sar_key", "eo_digest", "sar_digest")
    return pairs.sort_by([(k, "ascending") for k in keys]).drop_columns("rank")


def _collected(cfg: Config, root: str) -> tuple[pa.Table, pa.Table]:
    """(pairs, tiles that they may point at) of collect."""
    outputs = read_summary(cfg, "collect")["outputs"]
    tables = []
    for path, columns in ((outputs["pairs"], None), (outputs["verdicts"], [*COLUMNS, "reason"])):
        with ranged(storage.join(root, path)) as f:
            tables.append(pq.read_table(f, columns=columns))
    return tables[0], tables[1].filter(pc.equal(tables[1]["reason"], KEPT)).drop_columns("reason")


def _ready(cfg: Config, root: str, dry_run: bool) -> tuple[pa.Table, pa.Table]:
    """(pairs, tiles) of a folder of ready pairs; what could not become one goes to `shard/rejected.parquet`."""
    if not cfg.data.pairs:
        raise ConfigError(
            "data.kind=folder_pair wants data.pairs: the folder that holds A and B, or {split}_A and {split}_B"
        )
    listed, rejected = sources.list_pairs(storage.absolute(cfg.data.pairs))
    if len({bool(p.split) for p in listed}) > 1:
        raise ConfigError(
            f"some pairs have a split of their own and some have none: give all one, or none: {cfg.data.pairs}"
        )
    if not dry_run:
        _put_table(root, f"{STAGE}/rejected.parquet", [to_table(rejected, Rejected)])
    if rejected:
        print(f"shard: {len(rejected)} files are in no pair, see {STAGE}/rejected.parquet", file=sys.stderr)
    pairs = to_table([p.pair for p in listed], Pair)
    if not any(p.split for p in listed):
        known = pc.is_finite(pairs["lon"])
        named = assign_by_name(pairs.filter(pc.invert(known)), cfg.split)
        pairs = pa.concat_tables([assign(pairs.filter(known), cfg.split), named])
    return pairs, to_table([ref for p in listed for ref in (p.sar, p.eo)], TileRef)


def _template(
    unit: Unit,
    root: str,
    store: str,
    arrays: tuple[shards.ArraySpec, ...],
    pairs: pa.Table,
    tiles: pa.Table,
    number: int,
) -> Entry:
    """Everything of a store but its shards; the metadata last, so that a store that opens has its index."""
    begin = time.time()
    pairs = pairs.replace_schema_metadata({"store": unit.inputs})
    outputs = [_put_table(root, f"{store}/index.parquet", [pairs.combine_chunks()])]
    samples = arrays[0].shard[0]
    groups = (pairs.slice(at, samples) for at in range(0, pairs.num_rows, samples))
    outputs.append(_put_table(root, f"{store}/tiles.parquet", (_pointers(group, tiles) for group in groups)))
    attributes = {"created_by": "sar2eo_dist", "index": "index.parquet", "store": unit.inputs}
    outputs += shards.write_template(root, store, arrays, attributes)
    return Entry(unit, tuple(outputs), time.time() - begin, 0, number, {})


def _pointers(pairs: pa.Table, tiles: pa.Table) -> pa.Table:
    """The TileRefs of both sides of some pairs: columns `sar_*` and `eo_*`."""
    columns: dict[str, Any] = {}
    for side in ("sar", "eo"):
        found = tiles.take(pc.index_in(pairs[f"{side}_digest"], tiles["digest"]))
        columns |= {f"{side}_{name}": found[name] for name in COLUMNS}
    return pa.table(columns)


def _put_table(root: str, path: str, groups: Iterable[pa.Table]) -> Artifact:
    """A parquet of one row group a table (several where a table is long), published atomically."""
    sink, writer = io.BytesIO(), None
    for table in groups:
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=1 << 16)
    if writer:
        writer.close()
    return storage.publish(root, path, sink.getvalue())


def _objects(root: str, store: str, finished: Sequence[Unit]) -> None:
    """objects.parquet: path, size and sha256 of every object, so that nobody need list or hash them to know them."""
    rows = [a for e in Ledger(root).entries(finished) for a in e.outputs]
    _put_table(root, f"{store}/objects.parquet", [to_table(rows, Artifact)])


def write(unit: Unit, i: int, number: int, *, root: str, store: str, arrays: tuple[shards.ArraySpec, ...]) -> Entry:
    """One shard: read its pairs, encode each as it comes, publish an object of each array."""
    begin, size = time.time(), 0
    bad: list[BadInput] = []
    with ranged(storage.join(root, store, "tiles.parquet")) as f:
        rows = pq.ParquetFile(f).read_row_group(i)
    refs = list(zip(_refs(rows, "sar"), _refs(rows, "eo"), strict=True))
    objects = [shards.Shard(spec, (i,) + (0,) * (len(spec.shape) - 1)) for spec in arrays]
    with ThreadPoolExecutor(READERS, thread_name_prefix="pairs") as pool:
        for pixels in _ahead(pool, _read, refs):
            if isinstance(pixels, BadInput):
                bad.append(pixels)
            elif not bad:
                for built, chunk in zip(objects, pixels, strict=True):
                    built.add(chunk[None])
                    size += chunk.nbytes
        if bad:  # all of them, so that they can be seen to at once
            rest = f" (and {len(bad) - 1} more: {', '.join(e.uri for e in bad[1:10])})" if len(bad) > 1 else ""
            raise BadInput(bad[0].reason, bad[0].uri, bad[0].detail + rest)
        check = partial(sources.unchanged, info=cache(storage.info))
        list(pool.map(check, {ref.digest: ref for pair in refs for ref in pair}.values()))  # after all was read
    outputs = tuple(built.publish(root, store) for built in objects)
    return Entry(unit, outputs, time.time() - begin, size, number, {"pairs": rows.num_rows})


def _refs(rows: pa.Table, side: str) -> list[TileRef]:
    table = rows.select([f"{side}_{name}" for name in COLUMNS]).rename_columns(COLUMNS)
    return from_table(table.cast(schema(TileRef)), TileRef)


def _ahead(pool: ThreadPoolExecutor, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """fn of each item, in order, with AHEAD of them under way."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(fn, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _read(
    refs: tuple[TileRef, TileRef],
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16], npt.NDArray[np.uint8]] | BadInput:
    """Pixels of a pair as they are stored, SAR on the grid of EO: a sample shows the ground of its EO image and no other.

    Returns what is wrong with an image; raises SourceChanged and storage's errors: the unit fails with that reason.
    """
    sar, eo = refs
    try:
        db, seen = sources.read_sar(sar), sources.read_eo(eo)
        dn = exposure.harmonise(seen.bands, seen.offset)
    except BadInput as e:
        for ref in refs:
            sources.unchanged(ref)  # collect could read it: most likely it is another file now
        return e
    db = shift(db, *offset((sar.lon, sar.lat), (eo.lon, eo.lat)))
    valid = validity(db) & (dn > 0).all(axis=0)
    return encode_db(db), dn, valid.astype(np.uint8)
