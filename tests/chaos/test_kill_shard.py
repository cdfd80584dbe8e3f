"""kill -9 at random moments of sharding: nothing torn is ever visible, and the digests are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from small_job import Done

from sar2eo_dist.pipeline.shard import shard
from sar2eo_dist.pipeline.stage import Options

pytestmark = pytest.mark.cluster
KILLS = int(os.environ.get("SAR2EO_KILLS", "20"))


def collected(main_job: Done, out: Path) -> Path:
    """A copy of the run folder in which nothing is sharded yet."""
    ignore = shutil.ignore_patterns("shards", "shard", "train", "translate", "evaluate")
    shutil.copytree(main_job.cfg.run.out, out, ignore=ignore)
    return out


def test_twenty_random_moments(main_job: Done, tmp_path: Path) -> None:
    collected(main_job, tmp_path / "run")
    collected(main_job, tmp_path / "run.clock")
    config = tmp_path / "config.yaml"
    tree = main_job.cfg.model_dump(mode="json")
    tree["shard"]["samples"] = 2  # many units
    config.write_text(yaml.safe_dump(tree))
    seed = random.randrange(1 << 30)
    script = [sys.executable, str(Path(__file__).with_name("killed_shard.py")), str(config)]
    killed = subprocess.run([*script, str(tmp_path / "run"), str(KILLS), str(seed)], capture_output=True, text=True)
    assert killed.returncode == 0, f"seed {seed}: {killed.stderr}"
    result = json.loads(killed.stdout)
    assert result["kills"] == KILLS
    assert (result["faults"], result["exit"]) == ([], 0), f"seed {seed}"
    undisturbed = json.loads((tmp_path / "run.clock" / "shard" / "summary.json").read_text())
    assert result["digest"] == undisturbed["digest"]


def test_workers_that_are_killed_change_nothing(main_job: Done, tmp_path: Path) -> None:
    """SIGKILL of Ray's worker processes while they write; the driver lives."""
    out = collected(main_job, tmp_path / "run")
    cfg = main_job.cfg.model_copy(update={"run": main_job.cfg.run.model_copy(update={"out": str(out)})})
    victims: list[int] = []
    done = threading.Event()

    def hunt() -> None:
        while not done.wait(0.02) and len(victims) < 3:
            for process in psutil.process_iter(["name", "cmdline"]):
                title = " ".join(process.info["cmdline"] or [])
                if title.startswith("ray::") and "MapBatches" in title and process.pid not in victims:
                    time.sleep(random.uniform(0, 0.05))
                    try:
                        os.kill(process.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    victims.append(process.pid)
                    break

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        summary = shard(cfg, Options())
    finally:
        done.set()
        hunter.join()
    assert victims, "no worker was met"
    assert (summary.status, summary.digest) == ("complete", main_job.summaries["shard"].digest)
