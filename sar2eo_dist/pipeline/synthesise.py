"""synthesise: write the seeded synthetic world, so that everything can be tried without data. One unit a place."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, run_stage, write_summary
from sar2eo_dist.records import Unit
from sar2eo_dist.sections import Synthetic
from sar2eo_dist.sources import synthetic_write as world

STAGE = "synthesise"


def folder(cfg: Config) -> str:
    """Where the world lies: outside the run folder, since it is data and runs share it; named by what it is made of."""
    return f"{cfg.synthetic.root}-{cfg.fingerprint(STAGE)[:8]}"


def with_world(cfg: Config) -> Config:
    """The config with `data` and `cca.reference` pointing at the synthetic world, where they are not set otherwise."""
    if not cfg.synthetic.enabled:
        return cfg
    root = folder(cfg)
    places = {
        "s1": "sent1", "s2": "sent2", "target": "netcdf/target.nc", "scenes": "scene/s1.tif", "truth": "scene/truth.tif",
    }  # fmt: skip
    data = {k: getattr(cfg.data, k) or storage.join(root, v) for k, v in places.items()}
    reference = cfg.cca.reference or storage.join(root, "reference")
    cca = cfg.cca.model_copy(update={"reference": reference if cfg.cca.profile != "none" else ""})
    return cfg.model_copy(update={"data": cfg.data.model_copy(update=data), "cca": cca})


def synthesise(cfg: Config, opts: Options) -> Summary:
    """Run the verb."""
    root = storage.absolute(folder(cfg))
    own = cfg.model_copy(update={"run": cfg.run.model_copy(update={"out": root})})  # the world keeps its own ledger
    fingerprint = cfg.fingerprint(STAGE)
    plan = {(u := Unit(STAGE, task.key, fingerprint, "")).id: (u, task) for task in world.plan(cfg.synthetic)}

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        work = partial(_write, cfg=cfg.synthetic, root=root)
        yield from units.run(work, [plan[u.id] for u in todo], attempt, parallel=cfg.resources.readers)

    summary = run_stage(own, opts, STAGE, [u for u, _ in plan.values()], execute, "places")
    if opts.dry_run:
        return summary
    return write_summary(cfg, dataclasses.replace(summary, outputs={"world": folder(cfg)}))


def _write(unit: Unit, task: world.Task, attempt: int, *, cfg: Synthetic, root: str) -> Entry:
    begin = time.time()
    outputs = tuple(world.write(task, cfg, root))
    return Entry(unit, outputs, time.time() - begin, 0, attempt, {"objects": len(outputs)})
