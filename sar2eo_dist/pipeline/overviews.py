"""Overviews of a mosaic: units of their own, level by level, each from the up to four blocks below it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.mosaic import store
from sar2eo_dist.mosaic.pyramid import Pixels
from sar2eo_dist.mosaic.store import Layout
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.mosaics import Plan, supersede
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, now, run_stage
from sar2eo_dist.records import Unit, digest

STAGE = "overviews"
Place = tuple[int, int]


def run(cfg: Config, opts: Options, plans: Sequence[Plan], done: set[str]) -> Summary:
    """Make what is missing. done: ids of the blocks that are there; the others count as no data.

    A unit's inputs are the bytes of what it shrinks, so only what lies above a changed block is made again.
    """
    total = Summary(STAGE, "complete", started=now())
    for plan in plans:
        below = _digests(plan.frame.root, {(t.row, t.col): u for u, t in plan.blocks if u.id in done})
        for level in range(1, plan.frame.layout.levels + 1):
            if not below:
                break
            made, below = _level(cfg, opts, plan, level, below)
            total = dataclasses.replace(
                total.beside(made), seconds=total.seconds + made.seconds,
                start_seconds=max(total.start_seconds, made.start_seconds),
                planned=total.planned + made.planned, done=total.done + made.done, resumed=total.resumed + made.resumed,
                quarantined=[*total.quarantined, *made.quarantined],
                status="partial" if made.quarantined else total.status,
            )  # fmt: skip
    return total


def _digests(root: str, found: dict[Place, Unit]) -> dict[Place, str]:
    """Digest of what each unit wrote of the store."""
    entries = Ledger(root).entries(list(found.values()))
    return {
        place: digest([a.sha256 for a in e.outputs if ".zarr/" in a.path])
        for place, e in zip(found, entries, strict=True)
    }


def _level(
    cfg: Config, opts: Options, plan: Plan, level: int, below: dict[Place, str]
) -> tuple[Summary, dict[Place, str]]:
    frame = plan.frame
    places = sorted({(r // 2, c // 2) for r, c in below})
    made: dict[Place, Unit] = {}
    for row, col in places:
        inputs = digest([(c, below.get(c, "")) for c in ((2 * row + i, 2 * col + j) for i in (0, 1) for j in (0, 1))])
        made[row, col] = Unit(STAGE, f"{frame.folder}/{level}/r{row:05d}c{col:05d}", "", inputs)
    supersede(frame.root, f"{frame.folder}/overviews", list(made.values()))
    plan_of = {u.id: (u, place) for place, u in made.items()}

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        work = partial(shrink, root=frame.root, path=frame.store, layout=frame.layout, level=level)
        yield from units.run(work, [plan_of[u.id] for u in todo], attempt, parallel=cfg.resources.readers)

    whole = dataclasses.replace(opts, limit=0)
    summary = run_stage(cfg, whole, STAGE, list(made.values()), execute, "blocks", of=1 << 40)
    bad = {q["unit"] for q in summary.quarantined}
    return summary, _digests(frame.root, {p: u for p, u in made.items() if u.id not in bad})


def shrink(unit: Unit, place: Place, attempt: int, *, root: str, path: str, layout: Layout, level: int) -> Entry:
    """One block of an overview. Where nothing below it is valid, an empty block is written: there may be an old one."""
    begin = time.time()
    uri = storage.join(root, path)
    pixels = store.read_overview(uri, layout, level, *place) or _empty(layout, level, *place)
    outputs = store.write_block(root, path, layout, level, *place, pixels)
    return Entry(unit, outputs, time.time() - begin, 0, attempt)


def _empty(layout: Layout, level: int, row: int, col: int) -> Pixels:
    extent = layout.extent(level, row, col)
    error = np.zeros(extent, np.uint16) if layout.error else None
    return Pixels(np.zeros((3, *extent), layout.dtype), np.zeros(extent, bool), error)
