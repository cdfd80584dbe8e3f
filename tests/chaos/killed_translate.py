"""A script: a mosaic on a cluster of two worker nodes; actors, tasks, drivers and nodes are killed again and again.

python killed_translate.py CONFIG OUT KILLS SEED   prints one JSON line: kills by kind, faults found after them, the last
exit code, and the sha256 of every object by path. Also the tools of test_kill_translate.py: `victims`, `faults`, `worker`.

Drivers are forked after all imports, so that moments fall into the work and not into the start of Python. The cluster
lives in a process of its own, which every driver joins as `ray job submit` would; only its processes are ever killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

if __name__ == "__main__":  # not where the tests import its tools: they share a Ray of their own
    os.environ |= {
        "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_initial_delay_ms": "500", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import small_mosaic
from ray.cluster_utils import Cluster

from sar2eo_dist.config import Config, load
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.translate import translate
from sar2eo_dist.records import Unit

STAGES = ("statistics", "translate", "overviews")
#: kind -> how a worker's title begins while it is at work
TITLES = {"actor": "ray::MapWorker", "task": "ray::MapBatches"}
KINDS = ("actor", "actor", "task", "task", "driver", "driver", "node")


def victims(root: int, kind: str) -> list[int]:
    """Workers of one kind at work, among the descendants of a process."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(TITLES[kind]):
                found.append(process.pid)
    return sorted(found)


def worker(root: int, kind: str, rng: random.Random, alive: Callable[[], bool]) -> bool:
    """SIGKILL one worker that is at work, as soon as there is one; False where the work ended before."""
    while alive():
        if found := victims(root, kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                return True
        time.sleep(0.01)
    return False


def done(out: Path) -> list[Unit]:
    entries = [json.loads(p.read_text())["unit"] for s in STAGES for p in sorted((out / "ledger" / s).glob("*.json"))]
    return [Unit(*(e[k] for k in ("stage", "key", "fingerprint", "inputs"))) for e in entries]


def faults(out: Path, whole: dict[str, str]) -> list[str]:
    """Whatever is visible must be what the undisturbed run left, to the byte, and entries must have their bytes."""
    found = [f"{f.path} {f.problem}" for f in Ledger(str(out)).audit(done(out))]
    return found + [p for p, sha in small_mosaic.objects(out).items() if whole.get(p) != sha and not _growing(p)]


def _growing(path: str) -> bool:
    """Which unit wrote a key last: it grows with the run, level by level of the overviews."""
    return path.endswith("overviews/units.json")


def child(work: Callable[[], object]) -> int:
    """Fork; the child does the work and ends. Its id."""
    if pid := os.fork():
        return pid
    os.setsid()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def host(pipe: Connection) -> None:
    """Hold the cluster: send its address; on "lose" a node dies and another comes; end on "end"."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150 << 20})
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=150 << 20) for _ in range(2)]
    pipe.send(cluster.address)
    while pipe.recv() == "lose":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        pipe.send("lost")
        nodes.append(cluster.add_node(num_cpus=2, object_store_memory=150 << 20))
    cluster.shutdown()


def undisturbed(cfg: Config) -> None:
    with small_mosaic.without_ray():
        translate(cfg, Options())


def main(config: str, out: Path, kills: int, seed: int) -> None:
    cfg, rng, found = load(config, [f"run.out={out}"]), random.Random(seed), list[str]()
    assert os.waitpid(child(lambda: undisturbed(small_mosaic.elsewhere(cfg, out.with_name("whole")))), 0)[1] == 0
    whole = small_mosaic.objects(out.with_name("whole"))
    ours, theirs = Pipe()
    cluster = child(lambda: host(theirs))
    address = ours.recv()
    cfg = cfg.model_copy(update={"resources": cfg.resources.model_copy(update={"address": address})})
    killed: Counter[str] = Counter()
    while True:
        driver = child(lambda: translate(cfg, Options()))
        code: list[int] = []

        def alive(driver: int = driver, code: list[int] = code) -> bool:
            if not code and (ended := os.waitpid(driver, os.WNOHANG))[0]:
                code.append(os.waitstatus_to_exitcode(ended[1]))
            return not code

        while alive():
            time.sleep(rng.uniform(0.1, 4.0) if killed.total() < kills else 0.1)
            if killed.total() >= kills or not alive():
                continue
            kind = rng.choice(KINDS)
            if kind in TITLES:
                killed[kind] += worker(cluster, kind, rng, alive)
            elif kind == "node":
                ours.send("lose")
                killed[ours.recv()[:4].replace("lost", "node")] += 1
            else:
                os.kill(driver, signal.SIGKILL)
                killed["driver"] += 1
        found += faults(out, whole)
        if killed.total() >= kills and code != [-signal.SIGKILL]:
            break
        if code == [0]:  # so that there is always work to be killed in
            Ledger(str(out)).forget(u for u in done(out) if rng.random() < 0.8)
    ours.send("end")
    os.waitpid(cluster, 0)
    print(json.dumps({"killed": killed, "faults": found, "exit": code[0], "whole": whole,
                      "objects": small_mosaic.objects(out)}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
