"""A script: a network is trained by two ranks on two nodes; ranks, the controller, drivers and nodes are killed.

python killed_train.py CONFIG OUT KILLS SEED   prints one JSON line: kills by kind, attempts, whether the weights, the curve
and the validations are those of an undisturbed run on the same cluster.
python killed_train.py CONFIG OUT elastic SEED   takes one node away for good, with resources.workers_min=1, and prints the
steps, the workers at the end and the events. The cluster lives in a process of its own, which
every driver joins as `ray job submit` would; only its processes are ever killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

if __name__ == "__main__":
    os.environ |= {
        "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_initial_delay_ms": "500", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }  # fmt: skip
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from killed_translate import child
from ray.cluster_utils import Cluster

from sar2eo_dist.config import Config, load
from sar2eo_dist.pipeline.stage import Options, read_summary
from sar2eo_dist.pipeline.train import plan, train
from sar2eo_dist.pipeline.training_job import Job
from sar2eo_dist.training import checkpoint

KINDS = {"rank": "ray::RayTrainWorker", "controller": "ray::TrainController", "driver": "", "node": ""}


def host(pipe: Connection) -> None:
    """Hold the cluster: send its address; on "lose" a node dies, on "replace" another comes too."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
    pipe.send(cluster.address)
    while (said := pipe.recv()) != "end":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        if said == "replace":
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=100 << 20))
        pipe.send("lost")
    cluster.shutdown()


def job_of(cfg: Config) -> Job:
    ((_, job),) = plan(cfg, cfg.run.out, read_summary(cfg, "shard")).values()
    return job


def result(job: Job) -> tuple[bytes, object, object]:
    record = json.loads(Path(job.journal, "record.json").read_text())
    timed = {"time", "samples_per_s", "busy", "wait"}
    curve = [{k: v for k, v in line.items() if k not in timed} for line in record["history"]]
    return Path(job.out, "weights.safetensors").read_bytes(), curve, record["validations"]


def kill(root: int, title: str, rng: random.Random) -> bool:
    found = [p.pid for p in psutil.Process(root).children(recursive=True) if _title(p).startswith(title)]
    if found:
        os.kill(rng.choice(sorted(found)), signal.SIGKILL)
    return bool(found)


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def main(config: str, out: str, kills: int, seed: int) -> None:
    rng, killed = random.Random(seed), Counter[str]()
    ours, theirs = Pipe()
    cluster = child(lambda: host(theirs))
    where = f"resources.address={ours.recv()}"
    calm = load(config, [f"run.out={Path(out).with_name('undisturbed')}", where])
    assert os.waitpid(child(lambda: train(calm, Options())), 0)[1] == 0
    cfg = load(config, [f"run.out={out}", where, "run.max_attempts=100"])
    job = job_of(cfg)
    while True:
        driver = child(lambda: train(cfg, Options()))
        while not (ended := os.waitpid(driver, os.WNOHANG))[0]:
            before = max(checkpoint.steps(job.checkpoints), default=0)
            pause = time.monotonic() + rng.uniform(0.1, 3.0)
            time.sleep(0.1)
            if killed.total() >= kills:
                continue
            # some way into the work: after a new checkpoint, then a random while
            while max(checkpoint.steps(job.checkpoints), default=0) <= before or time.monotonic() < pause:
                time.sleep(0.01)
                if psutil.Process(driver).status() == psutil.STATUS_ZOMBIE:
                    break
            kind = rng.choice(sorted(KINDS))
            if KINDS[kind]:
                killed[kind] += kill(cluster, KINDS[kind], rng)
            elif kind == "driver":
                os.kill(driver, signal.SIGKILL)
                killed[kind] += 1
            else:
                ours.send("replace")
                killed[ours.recv().replace("lost", "node")] += 1
        if os.waitstatus_to_exitcode(ended[1]) == 0:
            break
    ours.send("end")
    os.waitpid(cluster, 0)
    attempts = json.loads(Path(job.journal, "record.json").read_text())["attempts"]
    print(json.dumps({"killed": killed, "attempts": attempts, "equal": result(job) == result(job_of(calm))}))


def elastic(config: str, out: str) -> None:
    ours, theirs = Pipe()
    cluster = child(lambda: host(theirs))
    cfg = load(config, [f"run.out={out}", f"resources.address={ours.recv()}", "resources.workers_min=1"])
    job = job_of(cfg)
    driver = child(lambda: train(cfg, Options()))
    while not checkpoint.steps(job.checkpoints):
        time.sleep(0.01)
    ours.send("lose")
    ours.recv()
    code = os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])
    ours.send("end")
    os.waitpid(cluster, 0)
    record = json.loads(Path(job.journal, "record.json").read_text())
    told = {
        "exit": code,
        "step": record["history"][-1]["step"],
        "workers": record["workers"],
        "events": record["events"],
    }
    print(json.dumps(told))


if __name__ == "__main__" and sys.argv[3] == "elastic":
    elastic(sys.argv[1], sys.argv[2])
elif __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
