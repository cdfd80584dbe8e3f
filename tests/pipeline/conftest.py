"""One Ray for the whole test run, and one small main job on it that many tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sar2eo_dist.config import Config, load
from sar2eo_dist.pipeline import cluster
from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.evaluate import evaluate
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
    "split.cell_degrees=0.06", "split.val=0.4", "split.seed=1", "pairing.max_days=40", "shard.samples=8",
    "train.translate={options: {preset: tiny}, steps: 6, batch: 2, crop: 64, lr: 1.0e-3, checkpoint_every: 2, log_every: 2}",
    "train.enhance={options: {preset: tiny}, steps: 4, batch: 2, crop: 64, lr: 1.0e-3, checkpoint_every: 2, log_every: 2}",
    "translate={window: 128, overlap: 64, block: 128, max_days: 40, slice: 8}", "evaluate.slice=4", "evaluate.samples=2",
    "resources.object_store_mb=200",
]  # fmt: skip


@dataclass(frozen=True)
class Done:
    cfg: Config
    summaries: dict[str, Summary]

    def path(self, stage: str, output: str) -> Path:
        return Path(self.cfg.run.out) / self.summaries[stage].outputs[output]


def small(base: Path, *more: str) -> Config:
    return with_world(load(overrides=[*SMALL, f"run.out={base / 'run'}", f"synthetic.root={base / 'world'}", *more]))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    cluster.start(Config())
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def main_job(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The whole main job, once."""
    cfg = small(tmp_path_factory.mktemp("job"))
    summaries: dict[str, Summary] = {}
    for verb in VERBS:
        summaries[verb.__name__] = verb(cfg, Options())
    return Done(cfg, summaries)


def rerun(cfg: Config, verb: Any, **options: Any) -> Summary:
    summary: Summary = verb(cfg, Options(**options))
    return summary
