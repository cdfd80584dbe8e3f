"""A small main job: its config and what it left. The fixtures `ray_session` and `main_job` are in conftest.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar2eo_dist.config import Config, load
from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.evaluate import evaluate
from sar2eo_dist.pipeline.job import keep
from sar2eo_dist.pipeline.shard import shard
from sar2eo_dist.pipeline.stage import Options, Summary
from sar2eo_dist.pipeline.synthesise import synthesise, with_world
from sar2eo_dist.pipeline.train import train
from sar2eo_dist.pipeline.translate import translate

VERBS = [synthesise, collect, shard, train, translate, evaluate]
#: small, but every stage has several units and both folds have pairs
SMALL = [
    "synthetic.enabled=true", "synthetic.places=[3, 6]", "synthetic.dates=2", "synthetic.scene=[300, 420]",
    "synthetic.reference=8", "cca.extractor=efficientnet_lite0", "cca.pack=8", "cca.slice=12", "cca.beta=0.2",
    "split.cell_degrees=0.06", "split.val=0.3", "split.seed=4", "pairing.max_days=40", "shard.samples=4",
    "train.translate={options: {preset: tiny}, steps: 6, batch: 2, crop: 64, lr: 1.0e-3, checkpoint_every: 2, log_every: 2}",
    "train.enhance={options: {preset: tiny}, steps: 4, batch: 2, crop: 64, lr: 1.0e-3, checkpoint_every: 2, log_every: 2}",
    "train.validation=4", "translate={window: 128, halo: 64, statistics_window: 256, block: 128, max_days: 40, slice: 8}",
    "evaluate.slice=4", "evaluate.samples=2", "evaluate.extremes=1",
    "resources.object_store_mb=200", "resources.translators=1",
]  # fmt: skip


@dataclass(frozen=True)
class Done:
    cfg: Config
    summaries: dict[str, Summary]

    def path(self, stage: str, output: str) -> Path:
        return Path(self.cfg.run.out) / self.summaries[stage].outputs[output]


def small(base: Path, *more: str) -> Config:
    return with_world(load(overrides=[*SMALL, f"run.out={base / 'run'}", f"synthetic.root={base / 'world'}", *more]))


def run(base: Path) -> Done:
    """Every verb in turn."""
    cfg = small(base)
    keep(cfg)
    return Done(cfg, {verb.__name__: verb(cfg, Options()) for verb in VERBS})


def rerun(cfg: Config, verb: Any, **options: Any) -> Summary:
    summary: Summary = verb(cfg, Options(**options))
    return summary
