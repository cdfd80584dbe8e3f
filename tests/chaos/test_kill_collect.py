"""Workers and a whole node die in the middle of a collect: no verdict changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_job import Done

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(420),
    pytest.mark.skipif("not config.getoption('--benchmark')", reason="a cluster of two nodes: make chaos"),
]


def test_killed_workers_and_a_lost_node_change_no_verdict(main_job: Done, tmp_path: Path) -> None:
    tree = main_job.cfg.model_dump(mode="json")
    tree["run"] |= {"out": str(tmp_path / "run"), "max_attempts": 6}
    tree["resources"] |= {"address": "", "extractors_min": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    script = Path(__file__).with_name("killed_collect.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "config.yaml")], capture_output=True, timeout=220
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    told = json.loads(next(line for line in done.stdout.decode().splitlines() if line.startswith('{"status"')))
    assert told["status"] == "complete"
    assert "node" in told["killed"]
    assert len(told["killed"]) >= 3
    assert told["digest"] == main_job.summaries["collect"].digest
    for name in ("verdicts", "pairs", "calibration"):
        path = main_job.summaries["collect"].outputs[name]
        assert (tmp_path / "run" / path).read_bytes() == main_job.path("collect", name).read_bytes(), name
