"""shard: write the pairs that survived as sharded zarr, one unit a shard."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sar2eo_dist import shards, sources, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage, write_summary
from sar2eo_dist.radiometry import encode_db, validity
from sar2eo_dist.records import Pair, TileRef, Unit, Verdict, digest, from_table, to_table

STAGE = "shard"
#: canonical order of the folds in a store; `guard` pairs are in no split and take no room
SPLITS = ("train", "val", "test")


def shard(cfg: Config, opts: Options) -> Summary:
    """Run the verb. Raises ConfigError where collect left no pair."""
    collected = read_summary(cfg, "collect")
    root = storage.absolute(cfg.run.out)
    pairs = from_table(_table(root, collected["outputs"]["pairs"]), Pair)
    guard = [p for p in pairs if p.split not in SPLITS]
    pairs = sorted((p for p in pairs if p.split in SPLITS), key=_canonical)
    if not pairs:
        raise ConfigError(
            f"no pair to shard ({len(guard)} lie in the guard band between folds): look at the reasons in the report, then "
            f"widen pairing.max_days, change cca.beta or split.cell_degrees, "
            "or set cca.profile=none"
        )
    samples = min(cfg.shard.samples, len(pairs))
    arrays = shards.pair_arrays(len(pairs), samples, cfg.shard.level)
    fingerprint = cfg.fingerprint(STAGE)
    whole = digest(fingerprint, [(p.sar_digest, p.eo_digest, p.split) for p in pairs])
    store = f"shards/{whole[:12]}"
    groups = [pairs[at : at + samples] for at in range(0, len(pairs), samples)]
    plan: dict[str, tuple[Unit, int]] = {}
    for i, group in enumerate(groups):
        inputs = digest(whole, [(p.sar_digest, p.eo_digest) for p in group])
        unit = Unit(STAGE, f"{store}/{i:05d}", fingerprint, inputs)
        plan[unit.id] = (unit, i)

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        _write_index(root, store, pairs, samples, collected["outputs"]["verdicts"])
        shards.write_template(root, store, arrays, {"created_by": "sar2eo_dist", "index": "index.parquet"})
        cluster.start(cfg)
        work = partial(_write, root=root, store=store, arrays=arrays)
        yield from units.run(work, [plan[u.id] for u in todo], attempt, parallel=cfg.resources.readers)

    summary = run_stage(cfg, opts, STAGE, [u for u, _ in plan.values()], execute, "shards")
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"pairs": len(pairs)})
    outputs = {"store": store, "index": f"{store}/index.parquet"}
    counts = {"pairs": len(pairs), "pairs a shard": samples} | {
        f"pairs {s}": sum(p.split == s for p in pairs) for s in SPLITS
    }
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=counts))


def present(sharded: dict[str, Any]) -> Callable[[int], bool]:
    """Whether a sample of a store is really there: not where its shard was quarantined, or beyond `--limit`."""
    missing = {int(q["key"].rsplit("/", 1)[1]) for q in sharded["quarantined"]}
    size, planned = sharded["counts"]["pairs a shard"], sharded["planned"]
    return lambda i: i // size < planned and i // size not in missing


def _canonical(p: Pair) -> tuple[int, str, str, str]:
    return SPLITS.index(p.split), p.place, p.eo_key, p.sar_key


def _table(root: str, path: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, path))))


def _write_index(root: str, store: str, pairs: Sequence[Pair], samples: int, verdicts: str) -> None:
    """index.parquet: a row a sample in the order of the store, with both pointers; a row group a shard."""
    wanted = {k for p in pairs for k in (p.sar_key, p.eo_key)}
    table = _table(root, verdicts)
    table = table.filter(pa.array([k in wanted for k in table["key"].to_pylist()]))
    refs = {v.key: json.dumps(dataclasses.asdict(v.ref), default=str) for v in from_table(table, Verdict)}
    index = to_table(pairs, Pair)
    for column, keys in (("sar_ref", "sar_key"), ("eo_ref", "eo_key")):
        index = index.append_column(column, pa.array([refs[k] for k in index[keys].to_pylist()], pa.string()))
    sink = io.BytesIO()
    pq.write_table(index, sink, compression="zstd", row_group_size=samples)
    storage.put(storage.join(root, store, "index.parquet"), sink.getvalue())


def _ref(text: str) -> TileRef:

    tree = json.loads(text)
    for name in ("bands", "uris", "rows"):
        tree[name] = tuple(tree[name])
    return TileRef(**tree | {"date": dt.date.fromisoformat(tree["date"])})


def _write(unit: Unit, i: int, number: int, *, root: str, store: str, arrays: tuple[shards.ArraySpec, ...]) -> Entry:
    """One shard: read its pairs, encode the three arrays, publish an object of each."""
    begin = time.time()
    with storage.open_read(storage.join(root, store, "index.parquet")) as f:
        rows = pq.ParquetFile(f).read_row_group(i, columns=["sar_ref", "eo_ref"]).to_pylist()
    n = len(rows)
    data = [np.empty((n, *spec.shape[1:]), spec.dtype) for spec in arrays]
    for k, row in enumerate(rows):
        db = sources.read_sar(_ref(row["sar_ref"]))
        eo = sources.read_eo(_ref(row["eo_ref"])).bands
        data[0][k], data[1][k] = encode_db(db), eo
        data[2][k] = validity(db) & (eo > 0).all(axis=0)
    outputs = [
        shards.write_shard(root, store, spec, (i,) + (0,) * (len(spec.shape) - 1), array)
        for spec, array in zip(arrays, data, strict=True)
    ]
    return Entry(unit, tuple(outputs), time.time() - begin, sum(a.nbytes for a in data), number, {"pairs": n})
