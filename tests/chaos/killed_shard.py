"""A script: shard a run folder, kill -9 at random moments, again and again. python killed_shard.py CONFIG OUT KILLS SEED

It forks a child for every attempt, after all imports, so that moments fall into the work and not into the start of
Python. In the child the verb is the real one; only Ray is left out: units run one after the other in the child itself.
Prints one JSON line: kills (of a child that was at work), faults found after them, the last exit code and digest.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sar2eo_dist import storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import Corrupt
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.shard import shard
from sar2eo_dist.pipeline.stage import Options, attempt, read_summary
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Unit


def here(work: units.Work, todo: list[tuple[Unit, Any]], number: int, **_: object) -> Iterator[Any]:
    for unit, payload in todo:
        yield attempt(unit, partial(work, unit, payload, number))


def child(cfg: Config) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        shard(cfg, Options())
        os._exit(0)
    finally:
        os._exit(1)


def faults(root: str) -> list[str]:
    """Whatever is visible must be whole: entries have their bytes, objects without an entry decode to the end."""
    ledger = Ledger(root)
    entries = [json.loads(p.read_text())["unit"] for p in Path(root, "ledger", "shard").glob("*.json")]
    made = [Unit(*(e[k] for k in ("stage", "key", "fingerprint", "inputs"))) for e in entries]
    found = [f"{f.path} {f.problem}" for f in ledger.audit(made)]
    for store in Path(root, "shards").glob("*"):
        if not (store / "eo" / "zarr.json").exists():
            continue
        read = PairReader(str(store))
        for path in store.glob("valid/c/*/0/0"):  # the last object of a unit: the others are there
            i = int(path.parts[-3])
            try:
                read.run(i * read.per_object, min(len(read), (i + 1) * read.per_object))
            except (Corrupt, storage.StorageError) as e:
                found.append(str(e))
    return found


def main(config: str, out: str, kills: int, seed: int) -> None:
    cfg = load(config, [f"run.out={out}"])
    units.run = here  # type: ignore[assignment]
    cluster.start = lambda cfg: None  # type: ignore[assignment]
    rng, found, busy = random.Random(seed), [], 0
    begin = time.monotonic()
    if kills:  # how long an undisturbed run takes here, to know which moments there are
        os.waitpid(child(load(config, [f"run.out={out}.clock"])), 0)
    span = time.monotonic() - begin
    while busy < kills:
        Ledger(out).forget(
            [u for u in _done(out) if rng.random() < 0.8]
        )  # so that there is always work to be killed in
        pid = child(cfg)
        time.sleep(rng.uniform(0.02, 0.8 * span))
        os.kill(pid, signal.SIGKILL)
        busy += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        found += faults(out)
    pid = child(cfg)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found += faults(out)
    digest = read_summary(cfg, "shard")["digest"]
    print(json.dumps({"kills": busy, "faults": found, "exit": code, "digest": digest}))


def _done(out: str) -> list[Unit]:
    entries = [json.loads(p.read_text())["unit"] for p in sorted(Path(out, "ledger", "shard").glob("*.json"))]
    return [Unit(*(e[k] for k in ("stage", "key", "fingerprint", "inputs"))) for e in entries]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
