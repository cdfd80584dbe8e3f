"""The archive of verdicts: from the units' slices to one table, and back from what was published."""

from __future__ import annotations

import json
import sys
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
from sar2eo_dist.pipeline.stage import Summary, machine, now, write_summary
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
ROWS = 1 << 20  # of verdicts that are moved at a time
SCORES = ("score", "score_name", "scored_by")


def merge(cfg: Config, paths: Sequence[str]) -> tuple[pa.Table, list[Rejected]]:
    """Verdicts of all slices by sensor, date and key, and what was listed twice: scenes overlap, and of a tile in two the one
    with more data counts, then the first."""
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(lambda p: _read(storage.join(cfg.run.out, p)), paths))
    table = pa.concat_tables(tables) if tables else schema(Verdict).empty_table()
    data = pa.array(np.nan_to_num(table["valid_fraction"].to_numpy(), nan=-1.0))  # -1 of what could not be read
    order = pc.sort_indices(
        table.select(["sensor", "date", "key"])
        .append_column("data", data)
        .append_column("at", pa.array(np.arange(len(table)))),
        sort_keys=[
            ("sensor", "ascending"),
            ("date", "ascending"),
            ("key", "ascending"),
            ("data", "descending"),
            ("at", "ascending"),
        ],
    )
    # MultiEarth's slices come in order already, and millions of rows need not be moved
    if not np.array_equal(order, np.arange(len(table))):
        table = _take(table, order)
    keys = table["key"]
    twice = np.zeros(len(table), bool)
    twice[1:] = np.asarray(pc.equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0))))
    rejected = [
        Rejected(v["sensor"], v["uris"][0], "duplicate", f"{v['key']} is in another scene of that day too")
        for v in table.filter(pa.array(twice)).select(["sensor", "uris", "key"]).to_pylist()
    ]
    return (table.filter(pa.array(~twice)) if rejected else table), rejected


def _take(table: pa.Table, order: pa.Array) -> pa.Table:
    """Rows in another order. Of millions, strings and lists are more than 32 bit offsets reach: moved with 64, cut again."""
    wide = pa.schema([pa.field(f.name, _wide(f.type)) for f in table.schema])
    whole = table.cast(wide).combine_chunks()
    parts = [whole.take(order.slice(i, ROWS)).cast(table.schema) for i in range(0, len(order), ROWS)]
    return pa.concat_tables(parts)


def _wide(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.large_list(_wide(kind.value_type))
    return pa.large_string() if pa.types.is_string(kind) else kind


def unfinished(cfg: Config) -> None:
    """Say that what `collect` published is being written anew: until it is whole, no later verb or `--reselect` trusts it."""
    storage.delete(storage.join(cfg.run.out, ABOUT))
    why = {"unit": "", "key": "collect", "reason": "it ended while it published: run jobs/collect.py again"}
    write_summary(cfg, Summary("collect", "failed", quarantined=[why], started=now(), machine=machine()))


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
    columns = ["key", "digest", *SCORES]

    def read(uri: str) -> pa.Table:
        try:
            return _read(uri, columns)
        except (pa.ArrowInvalid, NotFound) as e:  # torn: its tiles are scored again
            print(f"collect: scores left out, {type(e).__name__}: {uri}", file=sys.stderr)
            return schema(Verdict).empty_table().select(columns)

    with ThreadPoolExecutor(16) as pool:
        new = pa.concat_tables(pool.map(read, uris))
    new = new.filter(pc.equal(new["scored_by"], mark))
    if not len(new):
        return table
    ours, theirs = (
        pc.binary_join_element_wise(
            *(t[c].cast(pa.large_string()) for c in ("key", "digest")), pa.scalar("|", pa.large_string())
        )
        for t in (table, new)
    )
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
