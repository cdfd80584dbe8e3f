"""A real Ray cluster of several hosts on one machine, for tests: needs root, network namespaces, and nothing else.

A host is a network namespace with an address, a host name, a folder for Ray and, on request, a memory limit and a disk (a
tmpfs) of its own, on one bridge. So a host can be cut off, can die alone, and can run out of memory or disk alone. The head
has no CPUs for work; drivers run there. The hosts do not see this checkout's package and jobs: what runs is what
`ray job submit --working-dir` shipped.

    with Hosts() as hosts:
        hosts.submit(["jobs/collect.py", "--config", "jobs/configs/demo.yaml"], "night-1")
        hosts.cut("w1")
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host_networks import MARK, MEMORY, bridge, clean_up, do, title

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
HIDDEN = ("sar2eo_dist", "jobs")  # of this checkout, on every host
#: a host that does not answer is found dead within about six seconds
HEALTH = {
    "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000", "BAD_RUNTIME_ENV_CACHE_TTL_SECONDS": "5",  # as of the images
}  # fmt: skip
#: runs in the host's network: a host name and folders that are its own, for it and all that it starts
ENTER = """#!/bin/sh
set -e
hostname {name}
mount --bind {folder}/{name}/hosts /etc/hosts
mount --bind {folder}/{name}/ray {folder}/ray
for hidden in {hidden}; do mount --bind {folder}/empty $hidden; done
if [ -n "{group}" ]; then echo $$ > {group}/cgroup.procs; mount --bind {group} {memory}; fi
cd /
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Host:
    """name: its host name; address: IPv4; space: its network namespace; link: the bridge's end of its cable."""

    name: str
    address: str
    space: str
    link: str


class Hosts:
    """The cluster; a context manager. Whatever happens, `close` leaves no process, link, namespace or folder behind."""

    def __init__(self, workers: int = 2, cpus: float = 1, memory_mb: int = 0, disk_mb: int = 0) -> None:
        """The bridge is there from now on, its address `gateway` is this machine's: what serves the hosts may start there.

        cpus: of each worker host; memory_mb: its limit (0 = none); disk_mb: of the disk under its Ray folder
        (0 = this machine's).
        """
        clean_up()
        self.number = bridge()
        self.folder = Path(f"/tmp/{MARK}{self.number}")  # short: a path of a unix socket has 107 characters at most
        net = f"10.201.{self.number}"
        self.bridge, self.gateway = f"{MARK}{self.number}", f"{net}.1"
        names = {"head": 2} | {f"w{n}": 10 + n for n in range(1, workers + 1)}
        self.hosts = {
            name: Host(name, f"{net}.{last}", f"{MARK}{self.number}-{name}", f"{MARK}{self.number}-{name}")
            for name, last in names.items()
        }
        self.cpus, self.memory_mb, self.disk_mb = cpus, memory_mb, disk_mb
        self.token = self.folder / "token"
        self.env: dict[str, str] = {}  # of all Ray processes, as of a pod's template; fill it before entering
        self.seconds: dict[str, float] = {}  # what took how long: start, close
        self.api = f"http://{self.hosts['head'].address}:8265"
        do("ip", "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        do("ip", "link", "set", self.bridge, "up")

    def __enter__(self) -> Hosts:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Of every process that speaks to the cluster. token: another one than the cluster's; "": none at all."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
        own |= HEALTH | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "RAY_memory_monitor_refresh_ms": "250",
            "RAY_memory_usage_threshold": "0.8", "RAY_API_SERVER_ADDRESS": self.api,
        }  # fmt: skip
        if token is not None:
            del own["RAY_AUTH_TOKEN_PATH"]
            own |= {"RAY_AUTH_TOKEN": token} if token else {"HOME": str(self.folder / "empty")}
        return own | self.env

    def _start(self) -> None:
        begin = time.monotonic()
        for folder in ("ray", "empty", *(f"{h}/ray" for h in self.hosts)):
            (self.folder / folder).mkdir(parents=True)
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        table = "127.0.0.1 localhost\n" + "".join(f"{h.address} {h.name}\n" for h in self.hosts.values())
        for host in self.hosts.values():
            if self.disk_mb and host.name != "head":
                do(
                    "mount",
                    "-t",
                    "tmpfs",
                    "-o",
                    f"size={self.disk_mb}m",
                    host.space,
                    str(self.folder / host.name / "ray"),
                )
            group = self._group(host.name)
            (self.folder / host.name / "hosts").write_text(table)
            script = self.folder / host.name / "enter"
            hidden = " ".join(str(ROOT / h) for h in HIDDEN)
            text = ENTER.format(name=host.name, folder=self.folder, hidden=hidden, group=group or "", memory=MEMORY)
            script.write_text(text)
            script.chmod(0o755)
            do("ip", "netns", "add", host.space)
            do("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.space)
            do("ip", "link", "set", host.link, "master", self.bridge, "up")
            for words in (f"address add {host.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                do("ip", "-n", host.space, *words.split())
            if group:
                group.mkdir()
                (group / "memory.limit_in_bytes").write_text(str(self.memory_mb << 20))
        head = self.hosts["head"]
        self.run("head", RAY, "start", "--head", f"--node-ip-address={head.address}", f"--dashboard-host={head.address}",
                 "--num-cpus=0", *self._common())  # fmt: skip
        self.seconds["head"] = time.monotonic() - begin
        self._together(self.start_worker, [h for h in self.hosts if h != "head"])
        self.seconds["start"] = time.monotonic() - begin

    def _common(self) -> list[str]:
        return ["--object-store-memory=200000000", "--disable-usage-stats", f"--temp-dir={self.folder}/ray"]

    def _group(self, name: str) -> Path | None:
        return MEMORY / f"{self.bridge}-{name}" if self.memory_mb and name != "head" else None

    @staticmethod
    def _together(work: Callable[[str], None], names: list[str]) -> None:
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    # ------------------------------------------------------------------------------------------------- hosts

    def command(self, name: str, *command: str) -> list[str]:
        """The command line that runs a command on a host."""
        inside = ["nsenter", f"--net=/run/netns/{self.hosts[name].space}", "unshare", "--uts", "--mount"]
        return [*inside, str(self.folder / name / "enter"), *command]

    def run(self, name: str, *command: str, timeout: float = 120) -> str:
        """Run a command on a host; what it prints. Raises RuntimeError with it where it fails."""
        log = self.folder / name / "log"  # a file: what it starts in the background keeps a pipe open
        with log.open("wb") as sink:
            ran = subprocess.run(self.command(name, *command), env=self.environment(), stdout=sink,
                                 stderr=subprocess.STDOUT, timeout=timeout)  # fmt: skip
        if ran.returncode:
            raise RuntimeError(f"{name}: {' '.join(command)}: exit {ran.returncode}\n{log.read_text()[-3000:]}")
        return log.read_text()

    def pids(self, name: str, words: str = "") -> list[int]:
        """Processes of a host whose command line contains these words."""
        told = subprocess.run(["ip", "netns", "pids", self.hosts[name].space], capture_output=True, text=True).stdout
        return [p for p in map(int, told.split()) if words in title(p)]

    def start_worker(self, name: str) -> None:
        """`ray start` on a host, once all that ran there before is gone."""
        self._end(name)
        host, head = self.hosts[name], self.hosts["head"]
        self.run(name, RAY, "start", f"--address={head.address}:6379", f"--node-ip-address={host.address}",
                 f"--num-cpus={self.cpus:g}", *self._common())  # fmt: skip

    def cut(self, name: str) -> None:
        """Pull the cable: its processes live on and reach nobody."""
        do("ip", "link", "set", self.hosts[name].link, "down")

    def mend(self, name: str) -> None:
        do("ip", "link", "set", self.hosts[name].link, "up")

    def kill_raylet(self, name: str) -> None:
        """kill -9; its workers notice and end by themselves."""
        self.kill(name, "raylet/raylet")

    def kill(self, name: str, words: str) -> list[int]:
        """kill -9 the processes of a host whose command line contains these words; their ids."""
        found = self.pids(name, words)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def fill(self, name: str, seconds: float) -> None:
        """Something else on the host takes its memory, up to nine tenths of the limit, for a while; wait for it."""
        group = self._group(name)
        assert group is not None, "a host without a memory limit"
        subprocess.run(self.command(name, sys.executable, "-c", FILL, str(MEMORY), str(seconds)), check=True)

    def fill_disk(self, name: str) -> None:
        """Not a byte is left on the host's disk, until `free_disk`."""
        assert self.disk_mb, "a host without a disk of its own"
        with (self.folder / name / "ray/ballast").open("wb", buffering=0) as sink, contextlib.suppress(OSError):
            while sink.write(b"x" * 4096):
                pass

    def free_disk(self, name: str) -> None:
        (self.folder / name / "ray/ballast").unlink(missing_ok=True)

    def alive(self) -> list[str]:
        """Addresses of the hosts that Ray says are alive."""
        nodes = self.get("/api/v0/nodes?limit=1000&detail=False")["data"]["result"]["result"]
        return sorted(n["node_ip"] for n in nodes if n["state"] == "ALIVE")

    # ------------------------------------------------------------------------------------------------- jobs

    def ray(self, *words: str, token: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """The command `ray`, from outside the cluster, as a person's laptop would."""
        return subprocess.run([RAY, *words], env=self.environment(token), cwd=cwd, capture_output=True, text=True,
                              timeout=180)  # fmt: skip

    def submit(self, command: list[str], submission: str, token: str | None = None) -> str:
        """`ray job submit --no-wait` of a job of this checkout; what it says. Raises RuntimeError where it is refused."""
        words = ["--no-wait", "--submission-id", submission, "--working-dir", ".", "--", "python", *command]
        ran = self.ray("job", "submit", *words, token=token)
        if ran.returncode:
            raise RuntimeError(f"ray job submit: exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}")
        return ran.stdout + ran.stderr

    def status(self, submission: str) -> str:
        """Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(self.get(f"/api/jobs/{submission}")["status"])

    def logs(self, submission: str) -> str:
        return str(self.get(f"/api/jobs/{submission}/logs")["logs"])

    def stop(self, submission: str) -> str:
        return self.ray("job", "stop", submission).stdout

    def wait(self, submission: str, seconds: float = 240) -> str:
        """How a job ended. Raises TimeoutError with the tail of its log."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if (status := self.status(submission)) in ("SUCCEEDED", "FAILED", "STOPPED"):
                return status
            time.sleep(0.3)
        raise TimeoutError(f"{submission} after {seconds:.0f} s:\n{self.logs(submission)[-3000:]}")

    def get(self, path: str) -> Any:
        """One answer of the cluster's HTTP interface. A busy head may refuse once or twice."""
        request = urllib.request.Request(self.api + path, headers={"Authorization": f"Bearer {self.token.read_text()}"})
        for attempt in range(20):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.load(answer)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
                if (isinstance(e, urllib.error.HTTPError) and e.code < 500) or attempt == 19:
                    raise
                time.sleep(0.5)
        raise AssertionError

    # ------------------------------------------------------------------------------------------------- the end

    def _end(self, name: str, grace: float = 0.0) -> None:
        """End all processes of a host, its raylet first and politely where there is time."""
        if grace:
            for pid in self.pids(name, "raylet/raylet"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        limit = time.monotonic() + grace
        while time.monotonic() < limit and self.pids(name, "raylet/raylet"):
            time.sleep(0.1)
        for _ in range(50):
            if not self.kill(name, ""):
                return
            time.sleep(0.1)
        raise RuntimeError(f"processes of {name} do not end: {self.pids(name)}")

    def close(self) -> None:
        """End the cluster; safe to call again."""
        begin = time.monotonic()
        self._together(lambda name: self._end(name, grace=5), [h for h in self.hosts if h != "head"])
        self._end("head")
        clean_up(self.number)
        self.seconds["close"] = time.monotonic() - begin


#: fill memory to nine tenths of the host's limit, by Ray's own arithmetic: cache that can be given back does not count
FILL = """
import sys, time
def told(name):
    return int(open(f"{sys.argv[1]}/memory.{name}").read())
def used():
    stat = dict(line.split() for line in open(f"{sys.argv[1]}/memory.stat"))
    return told("usage_in_bytes") - int(stat["total_inactive_file"]) - int(stat["total_active_file"])
held, end = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    if used() < 0.9 * told("limit_in_bytes"):
        held.append(b"x" * (8 << 20))
    else:
        time.sleep(0.05)
"""
