"""A script: every verb of the small main job, its scenes and its run folder below one URI, with a Ray of two CPUs.

python stored_job.py ROOT     prints one JSON line: seconds, and by verb the summary's status and digest
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import small_job

from sar2eo_dist import storage
from sar2eo_dist.config import load
from sar2eo_dist.pipeline.job import keep
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.synthesise import with_world


def main(root: str) -> None:
    begin = time.monotonic()
    ray.init(address="local", num_cpus=2, include_dashboard=True, object_store_memory=200 << 20, log_to_driver=False)
    out, world = (storage.join(root, name) for name in ("run", "world"))
    cfg = with_world(load(overrides=[*small_job.SMALL, f"run.out={out}", f"synthetic.root={world}"]))
    keep(cfg)
    told = {}
    for verb in small_job.VERBS:
        summary = verb(cfg, Options())
        told[verb.__name__] = [summary.status, summary.digest]
    ray.shutdown()
    print(json.dumps({"seconds": time.monotonic() - begin, "verbs": told}))


if __name__ == "__main__":
    main(sys.argv[1])
