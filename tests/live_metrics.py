"""A small stage that tells everything it can, and what the node's metrics endpoint then serves."""

from __future__ import annotations

import functools
import re
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from sar2eo_dist import retry
from sar2eo_dist.config import Config, load
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import metrics, units
from sar2eo_dist.pipeline.cluster import Share
from sar2eo_dist.pipeline.progress import Board, Watch
from sar2eo_dist.pipeline.stage import Options, Summary, run_stage, write_summary
from sar2eo_dist.records import Artifact, Unit

RUN = "a-night"
UNITS = [Unit("collect", f"k{i}", "f", "i") for i in range(4)]
LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the endpoint."""

    name: str
    labels: dict[str, str]
    value: float


def maker() -> Any:
    """What a worker makes its work with; of this function, so that it travels to workers that know no tests."""

    def work(unit: Unit, payload: Any, number: int) -> Entry:
        """Loses a request to the store; k0 fails at first, k1 always."""
        answers = iter([ConnectionResetError("gone"), None])

        def ask(uri: str) -> None:
            if error := next(answers):
                raise error

        retry.BACKOFF_S = 0.01
        retry.retried(ask)("memory://x")
        if unit.key == "k1" or (unit.key == "k0" and number == 1):
            raise ValueError("no such band")
        counts = {"s1 pass": 2, "s2 pass": 3, "s2 dark": 5, "valid ha": 250}
        made = (Artifact(f"{unit.key}.bin", 10, "0" * 64),)
        return Entry(unit, made, 3.0, 100, number, counts, {"read": 1.0, "compute": 2.0})

    return lambda: work


def night(cfg: Config) -> Summary:
    """A collect of four units, of which one is quarantined, and a training that has got to step 7."""

    def execute(todo: Any, attempt: int) -> Any:
        yield from units.run(None, [(u, None) for u in todo], attempt, make=maker(), part=Share(1, 0.5, 0.0))

    summary = run_stage(cfg, Options(), "collect", UNITS, execute, "")
    metrics.put("sar2eo_calibration_drift", 0.04)
    board = Board.remote()  # type: ignore[attr-defined]
    line = {"step": 7, "samples_per_s": 12.5, "wait": 0.25, "busy": 0.7, "lr": 1e-4, "gan": 0.5, "grad_norm_g": 3.0}
    event = {"step": 5, "event": "checkpoint_failed", "text": "store down"}
    ray.get(board.post.remote(7, "", [event], {}, line))
    Watch(board, "translate", 10)._show()
    ray.kill(board)
    return write_summary(cfg, summary)


def scrape() -> list[Sample]:
    """What every node's agent serves now."""
    found = []
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=20).read().decode()
        for line in text.splitlines():
            if not line.startswith("#") and (m := LINE.match(line)):
                found.append(Sample(m[1], dict(re.findall(r'(\w+)="([^"]*)"', m[2] or "")), float(m[3])))
    return found


def own(samples: list[Sample], run: str = RUN) -> list[Sample]:
    return [s for s in samples if s.labels.get("run") == run]


@functools.cache
def live() -> tuple[Summary, list[Sample]]:
    """The night, once, and the endpoint when all of it has arrived (Ray exports every 10 s)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / RUN
        cfg = load(
            overrides=[
                f"run.out={out}",
                "run.tolerance=0.5",
                "run.max_attempts=2",
                "cost.gpu_hour=2",
                "cost.cpu_hour=0.05",
            ]
        )
        summary = night(cfg)
    wanted = {f"ray_{name}" for name, m in metrics.METRICS.items() if m.kind != "histogram"}
    until = time.monotonic() + 30
    while True:
        samples = scrape()
        if wanted <= {s.name for s in own(samples)} or time.monotonic() > until:
            return summary, samples
        time.sleep(0.5)
