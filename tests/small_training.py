"""A small pair store to train on, and a training in this process: the worker of pipeline/learner.py without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sar2eo_dist import shards, storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.pipeline import learner
from sar2eo_dist.pipeline.progress import Board
from sar2eo_dist.pipeline.training_job import Job

STORE = "shards/abc"
TRANSLATE = (
    "train.translate={options: {ngf: 4, n_downsampling: 1, n_blocks: 1, ndf: 4, lambda_l1: 1.0}, steps: 6, batch: 2, "
    "crop: 32, lr: 1.0e-3, checkpoint_every: 2, log_every: 2}"
)
ENHANCE = (
    "train.enhance={options: {dim: 4, num_blocks: [1, 1, 1, 1], num_refinement_blocks: 0, heads: [1, 1, 2, 2]}, steps: 4, "
    "batch: 2, crop: 32, lr: 1.0e-3, checkpoint_every: 2, log_every: 2}"
)


def write_pairs(root: str, train: int = 7, val: int = 2, per: int = 4) -> None:
    """A pair store of a run folder: EO follows SAR, so that there is something to learn."""
    rng, count = np.random.default_rng(7), train + val
    arrays = shards.pair_arrays(count, per)
    splits = ["train"] * train + ["val"] * val
    index = pa.table({"split": splits}).replace_schema_metadata({"store": "s" * 32})
    pq.write_table(index, _made(Path(root) / STORE) / "index.parquet")
    shards.write_template(root, STORE, arrays, {"store": "s" * 32})
    sar = rng.integers(-2000, -800, (count, 2, 256, 256)).astype(np.int16)
    eo = (3000 + sar[:, :1] // np.array([1, 2, 3])[None, :, None, None]).astype(np.uint16)
    data = {"sar": sar, "eo": eo, "valid": np.ones((count, 256, 256), np.uint8)}
    for spec in arrays:
        for i in range(spec.grid[0]):
            part = data[spec.name][i * per : (i + 1) * per]
            shards.write_shard(root, STORE, spec, (i,) + (0,) * (part.ndim - 1), part)
    summary = {
        "status": "complete", "planned": arrays[0].grid[0] + 1, "digest": "d" * 32, "quarantined": [], "bytes_out": 1,
        "counts": {"pairs": count, "pairs a shard": per}, "outputs": {"store": STORE},
    }  # fmt: skip
    storage.put(storage.join(root, "shard/summary.json"), json.dumps(summary).encode())


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def config(root: str, *more: str) -> Config:
    return load(overrides=[f"run.out={root}", "split.seed=1", "train.enhancer=", TRANSLATE, ENHANCE, *more])


class Here:
    """An actor's methods, called in this process."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._obj, name))


def board() -> Any:
    return Here(Board.__ray_metadata__.modified_class())


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`learn` of a group of one in this process; `alone.notice` is what Ray says about a preemption."""
    place = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    state = SimpleNamespace(notice=None)
    monkeypatch.setattr(learner.ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(learner.ray.train, "get_context", lambda: place)
    monkeypatch.setattr(learner.ray.train, "get_preemption_info", lambda: state.notice)
    monkeypatch.setattr(learner, "get_device", lambda: torch.device("cpu"))
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    def run(job: Job, on: Any = None) -> Any:
        on = on or board()
        learner.learn({"job": job, "board": on})
        return on

    state.run = run
    yield state
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)
