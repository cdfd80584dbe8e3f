"""The pairs that evaluate measures, and how its workers are run over them: for figures, and for pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.measure import Sample, Setup, Show, Worker, stem
from sar2eo_dist.pipeline.near import other_dates
from sar2eo_dist.pipeline.shard import present, spread
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage
from sar2eo_dist.reader import ranks
from sar2eo_dist.records import Pair, TileRef, Unit, digest, from_table
from sar2eo_dist.sources.ranged import ranged

STAGE = "evaluate"
SHOWN = 8  # pairs of one unit of pictures
Planned = dict[str, tuple[Unit, list[Sample]]]


def prepare(cfg: Config, root: str) -> tuple[Setup, list[int]]:
    """What the workers load, and the ranks of the pairs to be measured. Raises Sar2EoError where the networks were trained on
    other shards, or scaled in another way than the config says."""
    sharded, trained = read_summary(cfg, "shard"), read_summary(cfg, "train")["outputs"]
    bundles = tuple(storage.join(root, trained[r]) for r in ("translate", "enhance") if r in trained)
    store = storage.join(root, sharded["outputs"]["store"])
    for uri in bundles:
        if bundle.read(uri).data != sharded["digest"]:  # its training pairs may be in this store's held-out fold
            raise Sar2EoError(f"this bundle was trained on other shards: run jobs/train.py again: {uri}")
        scaling = cfg.scaling.model_dump(mode="json")
        if odd := [k for k, v in scaling.items() if bundle.read(uri).scaling.get(k, v) != v]:
            was = ", ".join(f"scaling.{k} {bundle.read(uri).scaling[k]}" for k in odd)
            raise Sar2EoError(
                f"this bundle was trained with {was}, not as the config says: run jobs/train.py again: {uri}"
            )
    chosen, training = (present(sharded, ranks(store, s)).tolist() for s in (cfg.evaluate.split, "train"))
    if not chosen or not training:
        raise ConfigError(
            f"split {cfg.evaluate.split!r} holds {len(chosen)} pairs and 'train' {len(training)}: change evaluate.split, or "
            f"split.cell_degrees ({cfg.split.cell_degrees:g}), split.val ({cfg.split.val:g}) and split.seed of collect"
        )
    whole = digest(sharded["digest"], [bundle.digest(bundle.read(b)) for b in bundles])
    fit = tuple(spread(training, cfg.evaluate.fit))
    return Setup(root, store, bundles, cfg.evaluate, cfg.cca, cfg.speed, fit, whole), chosen


def pairs_of(cfg: Config, root: str, setup: Setup, chosen: Sequence[int], near: bool = True) -> list[Sample]:
    """The pairs of some ranks, each with the nearest other clear date of its place, where collect kept one (and `near`)."""
    with ranged(storage.join(setup.store, "index.parquet")) as f:
        rows = from_table(pq.read_table(f).take(chosen), Pair)
    others: Sequence[TileRef | None] = [None] * len(rows)
    if near and cfg.data.kind != "folder_pair":  # which has no other dates
        collected = read_summary(cfg, "collect")["outputs"]["verdicts"]
        others = other_dates(storage.join(root, collected), rows)
    featured = set(spread(chosen, cfg.evaluate.frechet)) if cfg.evaluate.extractor != "none" else set()
    return [Sample(i, p, n, i in featured) for i, p, n in zip(chosen, rows, others, strict=True)]


def runner(
    cfg: Config, setup: Setup, plan: Planned, kind: type[Worker]
) -> Callable[[Sequence[Unit], int], Iterator[Entry | Failure]]:
    """Runs units of a plan in actors of a kind."""

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        part = cluster.share(cfg.resources.translators, cfg.evaluate.threads, len(todo), *cluster.capacity(cfg))
        make: Any = partial(kind, setup)
        yield from units.run(None, [plan[u.id] for u in todo], attempt, make=make, part=part)

    return execute


def make_pictures(
    cfg: Config, opts: Options, setup: Setup, every: Sequence[Sample], key: str
) -> tuple[Summary, dict[int, str]]:
    """Pictures of some pairs: (what was done, rank -> how the names of its pictures begin, of those that were made)."""
    plan: Planned = {}
    every = sorted(every, key=lambda s: s.rank)
    for at in range(0, len(every), SHOWN):
        part = every[at : at + SHOWN]
        unit = Unit(STAGE, f"{key}{at:04d}", cfg.fingerprint(STAGE), digest(setup.whole, [s.mark()[:2] for s in part]))
        plan[unit.id] = unit, part
    again = dataclasses.replace(opts, limit=0)
    planned = list(plan.values())
    # of so many: figures stand without pictures, none of these fails the run
    summary = run_stage(cfg, again, STAGE, [u for u, _ in planned], runner(cfg, setup, plan, Show), "pictures", 1 << 40)
    lost = {q["unit"] for q in summary.quarantined}
    return summary, {s.rank: stem(u, s) for u, part in planned if u.id not in lost for s in part}
