"""translate: scenes to mosaics, block by block on the global lattice; MultiEarth targets to images; pairs for the enhancer.

A mosaic is made in ledger stages: statistics windows (`field`, `exact`), blocks, overviews level by level. What is on disk
after each is final, so a killed run goes on anywhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import yaml

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline import (
    blocks,
    cluster,
    confidence,
    forecast,
    mosaics,
    overviews,
    pairset,
    patches,
    products,
    scene_list,
    units,
)
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.compute import Compute
from sar2eo_dist.pipeline.mosaics import STAGE, Plan
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage, write_summary
from sar2eo_dist.records import Unit, digest
from sar2eo_dist.sections import Speed


def translate(cfg: Config, opts: Options) -> Summary:
    """Run the verb for `data.scenes`, `data.target` and `translate.pairs`, whichever are set.

    Raises ConfigError where none is, and for what cannot fit together.
    """
    if not (cfg.data.scenes or cfg.data.target or cfg.translate.pairs):
        raise ConfigError(
            "nothing to translate: set data.scenes (S1 for a mosaic), data.target (a MultiEarth NetCDF) or translate.pairs"
        )
    begun = time.monotonic()
    root = storage.absolute(cfg.run.out)
    uris = bundles_of(cfg, root)
    infos = [bundle.read(b) for b in uris]
    weights = digest([bundle.digest(i) for i in infos])
    planned: list[Plan] = []
    model: Unit | None = None
    if cfg.data.scenes:
        refs, _ = scene_list.index(cfg, root, keep=not opts.dry_run)
        scene_list.require_fit(infos, refs)
        model = confidence.plan(cfg, root, uris, infos, weights) if cfg.translate.confidence else None
        planned = mosaics.plans(cfg, root, refs, uris, weights, confidence.path(model) if model else "")
    targets = patches.plan(cfg, weights) if cfg.data.target else None
    made, shards = pairset.plan(cfg, root, bundle.digest(infos[0])) if cfg.translate.pairs else (None, [])

    plan = {u.id: (u, (k, t)) for k, p in enumerate(planned) for u, t in p.blocks}
    others: dict[str, tuple[Unit, Any]] = {unit.id: (unit, ("pairs", number)) for unit, number in shards}
    for key, part, inputs in targets.slices(cfg.translate.slice) if targets else ():
        unit = Unit(STAGE, f"{targets.folder}/{key}", patches.fingerprint(cfg), inputs)  # type: ignore[union-attr]
        others[unit.id] = (unit, ("patches", part))
    every = [u for u, _ in (*plan.values(), *others.values())]
    todo = every[: opts.limit] if opts.limit else every
    if planned:
        guess = forecast.guess(cfg, root, planned, {u.id for u in todo}, weights, opts.fresh, begun)
        print(guess.text(), flush=True)
    gathered: Summary | None = None
    if made and not opts.dry_run:
        pairset.write_template(root, made)
    if planned and not opts.dry_run:
        _prepare(cfg, planned)
        if model:
            confidence.run(cfg, opts, root, uris, model)
        gathered = _statistics(cfg, opts, planned, {u.id for u in todo})
    lost = {q["key"]: q["reason"] for q in gathered.quarantined} if gathered else {}

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        own = []
        for unit, (k, task) in (plan[u.id] for u in todo if u.id in plan):
            if reason := next((lost[key] for key in _needs(planned[k], task) if key in lost), ""):
                yield Failure(unit.id, f"statistics around it failed: {reason}")
            else:
                own.append((unit, (k, task)))
        if own:
            yield from products.watched(cfg, planned, _stream(cfg, planned, own, attempt))
        for what, where, nets in (("patches", targets and targets.folder, uris), ("pairs", made, uris[:1])):
            if rest := [others[u.id] for u in todo if u.id in others and others[u.id][1][0] == what]:
                part = cluster.share(
                    cfg.resources.translators, cfg.translate.threads, len(rest), *cluster.capacity(cfg)
                )
                make = partial(Worker, root, nets, cfg.translate.threads, cfg.speed, where)
                yield from units.run(None, rest, attempt, make=make, part=part)

    summary = run_stage(cfg, opts, STAGE, every, execute, "units")
    if opts.dry_run:
        return summary
    bad_units = {q["unit"] for q in summary.quarantined}
    done = {u.id for u in todo} - bad_units
    outputs: dict[str, str] = {}
    counts = dict(summary.counts)
    if planned:
        above = overviews.run(cfg, opts, planned, done)
        counts["overviews"] = above.done
        if above.quarantined:
            lost_too = [*summary.quarantined, *above.quarantined]
            summary = dataclasses.replace(summary, status="partial", quarantined=lost_too)
        for p in planned:
            outputs |= products.finish(cfg, p, done, first=p is planned[0])
        stages = [summary, above, *([gathered] if gathered else [])]
        outputs["forecast"] = forecast.compare(cfg, root, guess, planned, stages, weights, begun)
        summary = summary.beside(*stages[1:])
    if targets:
        parts = [part for u, (what, part) in others.values() if what == "patches" and u.id in done]
        outputs |= patches.publish(root, targets, {image.name for part in parts for image in part})
    if made:
        outputs["pairs"] = made.folder
    return write_summary(cfg, dataclasses.replace(summary, counts=counts, outputs=outputs))


def bundles_of(cfg: Config, root: str) -> list[str]:
    """URIs of the translator's bundle and the enhancer's: given, or trained in this run folder. Raises ConfigError."""
    if cfg.translate.bundles:
        return [storage.absolute(b) for b in cfg.translate.bundles]
    trained = read_summary(cfg, "train")["outputs"]
    found = [storage.join(root, trained[r]) for r in ("translate", "enhance") if r in trained]
    if not found:
        raise ConfigError("jobs/train.py left no translator: run it again")
    return found


def _prepare(cfg: Config, planned: Sequence[Plan]) -> None:
    """Everything that workers find: templates and tables. Raises ConfigError where another grid's store lies there."""
    for p in planned:
        products.template(p)
        mosaics.supersede(p.frame.root, p.frame.folder, [u for u, _ in (*p.statistics, *p.blocks)])
    config = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False).encode()
    for p in planned:
        mosaics.publish_plan(p, config)


def _needs(plan: Plan, task: blocks.Task) -> list[str]:
    """Keys of the statistics units that a block reads."""
    return [f"{plan.frame.folder}/{k}" for k in plan.frame.needed(task)]


def _statistics(cfg: Config, opts: Options, planned: Sequence[Plan], todo: set[str]) -> Summary | None:
    """Run the statistics windows that the blocks to do read; None where they read none.

    Those that fail, fail no run: the blocks around them do, and theirs is the count that is judged.
    """
    wanted = {k for p in planned for u, t in p.blocks if u.id in todo for k in _needs(p, t)}
    plan = {u.id: (u, (k, t)) for k, p in enumerate(planned) for u, t in p.statistics if u.key in wanted}
    if not plan:
        return None

    def execute(some: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        yield from _stream(cfg, planned, [plan[u.id] for u in some], attempt)

    whole = dataclasses.replace(opts, limit=0)
    made = run_stage(cfg, whole, "statistics", [u for u, _ in plan.values()], execute, "windows", of=1 << 40)
    print(made.line(), flush=True)
    return made


def _stream(
    cfg: Config, planned: Sequence[Plan], todo: Sequence[tuple[Unit, tuple[int, blocks.Task]]], attempt: int
) -> Iterator[Entry | Failure]:
    """Units of all mosaics through one set of translators: to start one a zone would take many GPUs longer than to compute.

    todo: (unit, (which of the plans, its task)).
    """
    frames = tuple(p.frame for p in planned)
    read, write = partial(_of_mosaic, blocks.read, frames), partial(_of_mosaic, blocks.write, frames)
    yield from units.stream(todo, attempt, read, partial(_networks, frames), write, cluster.translators(cfg, len(todo)))


def _networks(frames: Sequence[blocks.Frame]) -> units.Step:
    return partial(_of_mosaic, Compute(frames[0]), frames)


def _of_mosaic(
    step: Callable[..., Any], frames: Sequence[blocks.Frame], unit: Unit, payload: tuple[int, blocks.Task], value: Any
) -> Any:
    return step(unit, payload[1], value, frame=frames[payload[0]])


class Worker:
    """Networks in one process; makes slices of patches, or shards of the enhancement set."""

    def __init__(self, root: str, bundles: Sequence[str], threads: int, speed: Speed, where: Any) -> None:
        self.root, self.where = root, where
        self.chain = Chain(bundles, threads, speed)

    def __call__(self, unit: Unit, payload: tuple[str, Any], attempt: int) -> Entry:
        what, part = payload
        write: Any = patches.write if what == "patches" else pairset.write
        entry: Entry = write(self.chain, self.root, self.where, unit, part, attempt)
        return entry
