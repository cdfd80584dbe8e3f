"""The archive of verdicts: from the units' slices to one table, and back from what was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, NotFound
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.records import Rejected, Verdict, from_table, schema
from sar2eo_dist.sources.ranged import ranged

OUTPUTS = {
    "verdicts": "collect/verdicts.parquet",
    "rejected": "collect/rejected.parquet",
    "pairs": "collect/pairs.parquet",
    "yield": "collect/yield.parquet",
}
ABOUT = "collect/archive.json"  # what a run leaves for a later `reselect`
SCORE = "score"  # stage of the units that score what has no score yet
SCORES = ("score", "score_name", "scored_by")


def merge(cfg: Config, paths: Sequence[str]) -> tuple[pa.Table, list[Rejected]]:
    """Verdicts of all slices by sensor, date and key, and what was listed twice: scenes overlap, the first of them counts."""
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(lambda p: _read(storage.join(cfg.run.out, p)), paths))
    table = pa.concat_tables(tables) if tables else schema(Verdict).empty_table()
    # MultiEarth's slices come in order already, and millions of rows need not be moved
    order = pc.sort_indices(
        table.select(["sensor", "date", "key"]).append_column("at", pa.array(np.arange(len(table)))),
        sort_keys=[(c, "ascending") for c in ("sensor", "date", "key", "at")],
    )
    if not np.array_equal(order, np.arange(len(table))):
        table = table.take(order)
    keys = table["key"]
    twice = np.zeros(len(table), bool)
    twice[1:] = np.asarray(pc.equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0))))
    rejected = [
        Rejected(v["sensor"], v["uris"][0], "duplicate", f"{v['key']} is in another scene of that day too")
        for v in table.filter(pa.array(twice)).select(["sensor", "uris", "key"]).to_pylist()
    ]
    return (table.filter(pa.array(~twice)) if rejected else table), rejected


def stored(cfg: Config) -> tuple[pa.Table, list[Rejected]]:
    """What an earlier collect published."""
    table = _read(storage.join(cfg.run.out, OUTPUTS["verdicts"]))
    return table, from_table(_read(storage.join(cfg.run.out, OUTPUTS["rejected"])), Rejected)


def with_scores(cfg: Config, table: pa.Table, mark: str, inline: bool = False) -> pa.Table:
    """The table with the scores that later units gave under this mark (`collect._rescore`); where a tile has one already,
    or is another version now, it stays as it is. inline: also those of the slices, which another cloud set's may hide.
    """
    uris = later(cfg, mark) if mark else []
    uris += _committed(cfg, "collect", "collect/slices") if mark and inline else []
    if not uris:
        return table
    with ThreadPoolExecutor(16) as pool:
        new = pa.concat_tables(pool.map(lambda u: _read(u, ["key", "digest", *SCORES]), uris))
    new = new.filter(pc.equal(new["scored_by"], mark))
    if not len(new):
        return table
    ours, theirs = (pc.binary_join_element_wise(t["key"], t["digest"], "|") for t in (table, new))
    at = pc.index_in(ours, value_set=theirs.combine_chunks())
    found = pc.and_(pc.is_valid(at), pc.not_equal(table["scored_by"], mark))
    for name in SCORES:
        table = put_column(table, name, pc.if_else(found, new[name].take(pc.fill_null(at, 0)), table[name]))
    return table


def later(cfg: Config, mark: str) -> list[str]:
    """URIs of the scores that were given after a tile was measured, under this mark."""
    return _committed(cfg, SCORE, f"collect/scores/{mark[:12]}")


def _committed(cfg: Config, stage: str, folder: str) -> list[str]:
    """URIs of a folder's parquet files whose units are in the ledger."""
    done = Ledger(cfg.run.out).done(stage)
    try:
        listed = storage.list_files(storage.join(cfg.run.out, folder)) if done else []
    except NotFound:
        return []
    return [i.uri for i in listed if storage.name(i.uri).removesuffix(".parquet") in done]


def about(cfg: Config) -> dict[str, Any]:
    """What the collect that made the archive left. Raises ConfigError where there is none."""
    uri = storage.join(cfg.run.out, ABOUT)
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except NotFound:
        raise ConfigError(f"no archive to choose from: run jobs/collect.py with this config first ({uri})") from None
    return found


def put_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with other values in a column."""
    at = table.schema.get_field_index(name)
    return table.set_column(at, pa.field(name, values.type, nullable=False), values)


def _read(uri: str, columns: list[str] | None = None) -> pa.Table:
    with ranged(uri) as f:
        return pq.read_table(f, columns=columns)
