"""Bad nights of a real cluster of three hosts on real object storage: every object equals that of an undisturbed night.

Jobs are submitted by `ray job submit` with a token; run folder and imagery lie on a Ceph server that the hosts reach by the
network alone. Then a host is cut off, a host's raylet is killed, the driver is killed and submitted again, the store is
killed for a minute, a host runs out of memory, another out of disk, and jobs are stopped by `ray job stop`. make chaos;
about 50 minutes on two cores. SAR2EO_NIGHTS="cut store" chooses.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ceph_server
import pytest
from conftest import need
from host_networks import allowed
from hosts import Hosts
from small_job import SMALL

from sar2eo_dist import storage
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.records import Unit

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif("not config.getoption('--benchmark')", reason="bad nights of three hosts: make chaos"),
]
VERBS = ("collect", "shard", "train", "translate")
#: of all that lies in a run folder, what tells of a run and not of its results: times, rates, attempts
TOLD = ("summary.json", "archive.json", "rates.json", "forecast.json", "config.yaml", "train.html", "record.json",
        "history.jsonl", "written_by.json")  # fmt: skip
PASSING = ("ledger", "lease", "train/checkpoints", "train/ray")
#: the folders that each verb makes; below `shards`, a training keeps its translated samples
MAKES = {
    "collect": ("collect", "reference"), "shard": ("shard", "shards"), "train": ("train",), "translate": ("translate",),
}  # fmt: skip
LEDGERS = {"collect": ("collect", "reference", "score"), "shard": ("shard",), "train": ("train",),
           "translate": ("translate", "statistics", "overviews")}  # fmt: skip
#: units (of a training: checkpoints, of which two are kept) that are done when the night turns bad: from, to
MIDDLE = {"collect": (2, 5), "shard": (1, 4), "train": (2, 2), "translate": (2, 18)}
OUTAGE_S = 60
#: long enough to be disturbed in the middle
STEPS = [
    "train.translate={options: {preset: tiny}, steps: 24, batch: 2, crop: 64, lr: 1.0e-3, checkpoint_every: 3, log_every: 3}",
    "train.enhance={options: {preset: tiny}, steps: 4, batch: 2, crop: 64, lr: 1.0e-3, checkpoint_every: 2, log_every: 2}",
]


@dataclass
class Night:
    """The cluster, its store, the undisturbed run, and what was measured."""

    hosts: Hosts
    server: ceph_server.Server
    bucket: str
    calm: dict[str, str] = field(default_factory=dict)
    table: list[tuple[str, ...]] = field(default_factory=list)
    jobs: int = 0

    def submit(self, verb: str, out: str) -> str:
        self.jobs += 1
        sets = [*SMALL, *STEPS, f"run.out={out}", f"synthetic.root={self.bucket}/world", "resources.workers=2",
                "run.max_attempts=8"]  # fmt: skip
        self.hosts.submit([f"jobs/{verb}.py", *(w for s in sets for w in ("--set", s))], name := f"job-{self.jobs}")
        return name

    def done(self, verb: str, out: str) -> list[str]:
        """Entries of a verb in the ledger, and checkpoints."""
        folders = [f"{out}/ledger/{stage}" for stage in LEDGERS[verb]]
        folders += [f"{out}/train/checkpoints"] if verb == "train" else []
        return [i.uri for folder in folders for i in _files(folder)]

    def until(self, verb: str, out: str, job: str, wanted: int) -> None:
        """Wait until a job has finished so many units (written so many checkpoints)."""
        limit = time.monotonic() + 300
        while len(self.done(verb, out)) < wanted:
            assert self.hosts.status(job) in ("PENDING", "RUNNING"), (
                f"it ended too soon:\n{self.hosts.logs(job)[-3000:]}"
            )
            assert time.monotonic() < limit, self.hosts.logs(job)[-3000:]
            time.sleep(0.1)

    def well(self) -> None:
        """No job runs and all hosts are up, as whoever runs a cluster would see to: one that died is started again."""
        for job in (f"job-{n}" for n in range(1, self.jobs + 1)):  # of a night that failed
            if self.hosts.status(job) in ("PENDING", "RUNNING"):
                self.hosts.stop(job)
        everyone = sorted(h.address for h in self.hosts.hosts.values())
        for name, host in self.hosts.hosts.items():
            if name != "head":
                self.hosts.mend(name)
                self.hosts.free_disk(name)
                if host.address not in self.hosts.alive() or not self.hosts.pids(name, "raylet/raylet"):
                    self.hosts.start_worker(name)
        limit = time.monotonic() + 60
        while self.hosts.alive() != everyone:
            assert time.monotonic() < limit, self.hosts.alive()
            time.sleep(0.3)


def _files(folder: str) -> list[Any]:
    try:
        return list(storage.list_files(folder))
    except storage.NotFound:
        return []


def objects(out: str) -> dict[str, str]:
    """sha256 of every object of a run folder, by path, but for what tells of the run; of a training's curve too."""
    found: dict[str, str] = {}
    for info in _files(out):
        path = info.uri.split("://")[-1].split(out.split("://")[-1] + "/")[-1]
        name = storage.name(info.uri)
        if name == "record.json":
            found[path] = storage.sha256(json.dumps(_curve(json.loads(storage.read_bytes(info.uri)))).encode())
        elif name not in TOLD and not name.startswith("events.") and not path.startswith(PASSING):
            data = storage.read_bytes(info.uri)
            # a mosaic names the bundles that it was made with, below the run folder
            found[path] = storage.sha256(data.replace(out.encode(), b"") if name == "frame.json" else data)
    return found


def made_by(verb: str, found: dict[str, str]) -> dict[str, str]:
    """The objects that a verb makes."""
    folders = tuple(f"{folder}/" for folder in MAKES[verb])
    return {
        path: sha
        for path, sha in found.items()
        if (verb == "train" if "-translated-" in path else path.startswith(folders))
    }


def _curve(record: dict[str, Any]) -> list[Any]:
    timed = {"time", "samples_per_s", "busy", "wait"}
    return [[{k: v for k, v in line.items() if k not in timed} for line in record["history"]], record["validations"]]


def entries(out: str) -> list[dict[str, Any]]:
    return [json.loads(storage.read_bytes(i.uri)) for i in _files(f"{out}/ledger") if i.uri.endswith(".json")]


def faults(out: str) -> list[str]:
    """What the ledger names must be there, to the byte."""
    units = [Unit(*(e["unit"][k] for k in ("stage", "key", "fingerprint", "inputs"))) for e in entries(out)]
    return [f"{f.path} {f.problem}" for f in Ledger(out).audit(units)]


def summary(verb: str, out: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(storage.read_bytes(f"{out}/{verb}/summary.json"))
    return tree


@pytest.fixture(scope="module")
def night() -> Iterator[Night]:
    need("namespaces", not (why := allowed()), why)
    need("ceph", not (why := ceph_server.lacking()), why)
    hosts = Hosts(memory_mb=2500, disk_mb=400)
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="s2e-ceph", dir="/tmp") as folder:
        server = ceph_server.start(Path(folder) / "c", host=hosts.gateway)
        try:
            os.environ |= server.environment()
            hosts.env = server.environment()
            with hosts:
                made = Night(hosts, server, server.bucket("night"))
                print(
                    f"\ncluster of 3 hosts up in {hosts.seconds['start']:.1f} s (its head in {hosts.seconds['head']:.1f} s)"
                )
                yield made
            print(f"\ncluster ended in {hosts.seconds['close']:.1f} s")
        finally:
            hosts.close()
            server.stop()
            for key in server.environment():
                os.environ.pop(key, None)
            os.environ |= before
    head = ("what happened", "verb", "units done before", "units tried again", "seconds", "objects equal")
    rows = [head, *made.table]
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    print("\n" + "\n".join(" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows))


@pytest.fixture(scope="module")
def calm(night: Night) -> str:
    """The undisturbed run, all verbs; its folder. While it trains, both worker hosts are seen to hold a rank."""
    out, seconds, ranks = f"{night.bucket}/calm", {}, set()
    for verb in ("synthesise", *VERBS):
        begin = time.monotonic()
        job = night.submit(verb, out)
        while night.hosts.status(job) in ("PENDING", "RUNNING"):
            ranks |= {h for h in ("w1", "w2") if night.hosts.pids(h, "ray::RayTrainWorker.run_train_fn")}
            time.sleep(0.3)
        assert night.hosts.wait(job) == "SUCCEEDED", night.hosts.logs(job)[-3000:]
        seconds[verb] = time.monotonic() - begin
    assert ranks == {"w1", "w2"}
    records = [json.loads(storage.read_bytes(i.uri)) for i in _files(f"{out}/train") if i.uri.endswith("record.json")]
    assert [r["workers"] for r in records] == [2, 2]
    night.calm = objects(out)
    assert faults(out) == []
    for kind in (
        "collect/verdicts.parquet",
        "collect/pairs.parquet",
        "shards/",
        "weights.safetensors",
        "record.json",
        "/cog/",
    ):
        assert any(kind in path for path in night.calm), kind
    for verb in VERBS:
        night.table.append(("nothing", verb, "", "", f"{seconds[verb]:.0f}", str(len(made_by(verb, night.calm)))))
    return out


def before(calm: str, verb: str, out: str) -> None:
    """A run folder as the verbs before have left it."""
    fs, _ = storage.filesystem(calm)
    for earlier in VERBS[: VERBS.index(verb)]:
        for folder in (*MAKES[earlier], *(f"ledger/{stage}" for stage in LEDGERS[earlier])):
            for info in _files(f"{calm}/{folder}"):
                if earlier != "shard" or "-translated-" not in info.uri:
                    fs.copy(info.uri, info.uri.replace(calm, out))


# ---------------------------------------------------------------------------------------------------- what happens


def cut(night: Night, verb: str, out: str, job: str) -> str:
    """The cable is pulled; 12 s later it is back, and the host, found dead meanwhile, joins again.

    Were it never back, calls that are open to that host would be given up after seven minutes: gRPC's keep-alive of Ray.
    """
    name = random.choice(["w1", "w2"])
    night.hosts.cut(name)
    time.sleep(12)
    night.well()
    return job


def raylet(night: Night, verb: str, out: str, job: str) -> str:
    """kill -9 of a host's raylet, with which its workers go; its supervisor starts it again 5 s later."""
    name = random.choice(["w1", "w2"])
    night.hosts.kill_raylet(name)
    time.sleep(5)
    night.well()
    return job


def driver(night: Night, verb: str, out: str, job: str) -> str:
    """kill -9 of the job's own process; the same command again."""
    assert night.hosts.kill("head", f"python jobs/{verb}.py")
    assert night.hosts.wait(job) == "FAILED"
    assert faults(out) == []
    return night.submit(verb, out)


def store(night: Night, verb: str, out: str, job: str) -> str:
    """kill -9 of all the store's processes; they come back a minute later."""
    night.server.kill()
    time.sleep(OUTAGE_S)
    night.server.restart()
    return job


def memory(night: Night, verb: str, out: str, job: str) -> str:
    """Something else eats a host's memory until Ray's memory monitor kills workers there."""

    def killed() -> int:
        logs = (night.hosts.folder / name / "ray").glob("session_2*/logs/raylet*.out")  # one of each start
        return sum(log.read_text(errors="replace").count("\nRay killed ") for log in logs)

    busy: list[str] = []
    while not busy:  # of a verb that ends soon, from its first task on
        assert night.hosts.status(job) in ("PENDING", "RUNNING"), night.hosts.logs(job)[-3000:]
        work = ("ray::Map", "ray::RayTrainWorker")
        busy = [h for h in ("w1", "w2") if any(night.hosts.pids(h, words) for words in work)]
    name = random.choice(busy)
    earlier = killed()
    for _ in range(3):
        night.hosts.fill(name, 6)
        if killed() > earlier:
            return job
    raise AssertionError(f"Ray's memory monitor on {name} killed nothing")


def disk(night: Night, verb: str, out: str, job: str) -> str:
    """The disk under a host's Ray folder is full to the last byte, and stays so until the job has ended.

    A training wants a rank on either host, and none can start there: it waits, and after 20 s there is room again.
    """
    night.hosts.fill_disk(name := random.choice(["w1", "w2"]))
    if verb == "train":
        time.sleep(20)
        night.hosts.free_disk(name)
    return job


def stopped(night: Night, verb: str, out: str, job: str) -> str:
    """`ray job stop`; what is finished is whole, and the same command goes on."""
    night.hosts.stop(job)
    assert night.hosts.wait(job) == "STOPPED"
    assert faults(out) == []
    told = summary(verb, out)
    assert (told["status"], told["submission"]) == ("stopped", job)
    return night.submit(verb, out)


NIGHTS = (cut, raylet, driver, store, memory, disk, stopped)
CHOSEN = os.environ.get("SAR2EO_NIGHTS", "").split()


@pytest.mark.parametrize(
    ("what", "verb"),
    [
        pytest.param(what, verb, id=f"{what.__name__}-{verb}")
        for what in NIGHTS
        for verb in VERBS
        if not CHOSEN or what.__name__ in CHOSEN
    ],
)
def test_a_bad_night_changes_no_object(night: Night, calm: str, what: Any, verb: str) -> None:
    night.well()
    out = f"{night.bucket}/{what.__name__}-{verb}"
    before(calm, verb, out)
    begin = time.monotonic()
    job = night.submit(verb, out)
    soon = what is memory and verb == "shard"  # memory takes as long to fill as all its units
    night.until(verb, out, job, 0 if soon else random.randint(*MIDDLE[verb]))
    finished = len(night.done(verb, out))
    last = what(night, verb, out, job)
    status = night.hosts.wait(last, 420)
    seconds = time.monotonic() - begin
    assert status == "SUCCEEDED", night.hosts.logs(last)[-4000:]
    told = summary(verb, out)
    assert (told["status"], told["digest"]) == ("complete", summary(verb, calm)["digest"])
    assert faults(out) == []
    made = made_by(verb, objects(out))
    # a training's picture of one step may lack: killed between the checkpoint and the picture, it goes on from the first
    wanted = {p: sha for p, sha in made_by(verb, night.calm).items() if p in made or "/samples/" not in p}
    assert made == wanted
    again = sum(e["attempt"] > 1 for e in entries(out))
    if verb == "train":
        again = max(json.loads(storage.read_bytes(i.uri))["attempts"] - 1
                    for i in _files(f"{out}/train") if i.uri.endswith("record.json"))  # fmt: skip
    night.table.append(
        (what.__name__, verb, str(finished), str(again), f"{seconds:.0f}", f"{len(made)} of {len(wanted)}")
    )
    print(" ".join(night.table[-1]), flush=True)
