"""A collect on a cluster of two worker nodes; workers and one node are killed in its middle. Run by test_kill_collect.py.

python killed_collect.py CONFIG.yaml   prints the digest of the verdicts, what was killed, and how often units were tried
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

os.environ |= {
    "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "500", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
}  # fmt: skip

import psutil
import ray
from ray.cluster_utils import Cluster

from sar2eo_dist.config import load
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.stage import Options


def main(config: str) -> None:
    cfg = load(config)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150 << 20})
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=150 << 20) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    killed: list[str] = []
    stop = threading.Event()

    def havoc() -> None:
        ledger, rng, lost = Ledger(cfg.run.out), random.Random(1), False
        while not stop.wait(0.4):
            ours = ("ray::MapWorker", "ray::MapBatches", "ray::_Map")
            busy = [p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or []).startswith(ours)]
            if busy and len(killed) < 4 and ledger.done("collect"):
                victim = rng.choice(sorted(busy, key=lambda p: p.pid))
                killed.append(str(victim.info["cmdline"][0])[:40])
                os.kill(victim.pid, signal.SIGKILL)
                time.sleep(1.0)
            if len(killed) >= 2 and not lost:
                cluster.remove_node(nodes[1], allow_graceful=False)
                killed.append("node")
                lost = True

    thread = threading.Thread(target=havoc, daemon=True)
    thread.start()
    summary = collect(cfg, Options())
    stop.set()
    thread.join()
    entries = [json.loads(p.read_text()) for p in Path(cfg.run.out).glob("ledger/collect/*.json")]
    print(json.dumps({
        "status": summary.status, "digest": summary.digest, "killed": killed, "attempts": max(e["attempt"] for e in entries),
    }))  # fmt: skip
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
