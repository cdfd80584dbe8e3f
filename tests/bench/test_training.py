"""Training through Ray Train: two workers against one, the loader's share of the time, what a checkpoint costs.

The physical limit beside it: two trainings of one worker at the same time, which share memory and caches but no gradient.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import small_training

from sar2eo_dist import storage
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.train import train

PRESETS = {
    "translate": "train.translate={options: {preset: tiny}, steps: 50, batch: 8, crop: 128, lr: 1.0e-3, log_every: 5, "
    "checkpoint_every: 25}",
    "enhance": "train.enhance={options: {preset: tiny}, steps: 40, batch: 8, crop: 96, lr: 1.0e-3, log_every: 5, "
    "checkpoint_every: 20}",
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    small_training.write_pairs(str(root), 96, 8, 32)
    return root


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=True, object_store_memory=200 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def trained(pairs: Path, out: Path, *more: str) -> dict[str, dict[str, Any]]:
    """Records of a training's networks, by role."""
    out.mkdir()
    for part in ("shards", "shard"):
        (out / part).symlink_to(pairs / part)
    cfg = small_training.config(str(out), *PRESETS.values(), "train.enhancer=restormer", "train.validation=8", *more)
    outputs = train(cfg, Options()).outputs
    return {
        role: json.loads(storage.read_bytes(storage.join(str(out), outputs[f"{role} journal"], "record.json")))
        for role in PRESETS
    }


def rate(record: dict[str, Any]) -> tuple[float, float, float]:
    """(samples/s, loader wait, share of the steps): medians over the log, its first line left out."""
    lines = record["history"][1:]
    return tuple(statistics.median(line[k] for line in lines) for k in ("samples_per_s", "wait", "busy"))  # type: ignore[return-value]


@pytest.mark.timeout(1500)
def test_two_workers_against_one(pairs: Path, tmp_path: Path) -> None:
    one = trained(pairs, tmp_path / "one")
    two = trained(pairs, tmp_path / "two", "resources.workers=2")
    script = (
        "import sys; sys.path[:0] = ['tests', 'tests/bench']; from pathlib import Path; import json, ray, test_training as t;"
        "ray.init(address='local', num_cpus=1, include_dashboard=True, object_store_memory=100 << 20, log_to_driver=False);"
        "found = t.trained(Path(sys.argv[1]), Path(sys.argv[2])); print(json.dumps({k: t.rate(v) for k, v in found.items()}))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(pairs), str(tmp_path / f"beside{i}")], stdout=subprocess.PIPE
        )
        for i in range(2)
    ]
    beside = [json.loads(p.communicate()[0].decode().splitlines()[-1]) for p in both]
    print()
    for role in PRESETS:
        (a, wait1, busy1), (b, wait2, busy2) = rate(one[role]), rate(two[role])
        limit = sum(found[role][0] for found in beside)
        print(
            f"{role}: one worker {a:.2f} samples/s, two {b:.2f} (efficiency {b / a / 2:.2f}); two trainings side by side "
            f"{limit:.2f} (the limit of this machine: {limit / a / 2:.2f}); loader wait {wait1:.1%}, {wait2:.1%}; steps "
            f"{busy1:.1%}, {busy2:.1%} of the time"
        )
