"""Network namespaces on one bridge, each test run's its own: names, making, and leaving nothing behind. See hosts.py."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "s2e"  # names of all bridges, links, namespaces, folders and memory groups that are ours
MEMORY = Path("/sys/fs/cgroup/memory")  # version 1, as Ray reads it: where the machine has it


def allowed() -> str:
    """Why this machine cannot hold such a cluster; "" where it can."""
    if os.geteuid():
        return "only root makes network namespaces"
    if lacking := [t for t in ("ip", "unshare", "nsenter", "mount") if not shutil.which(t)]:
        return f"not installed: {', '.join(lacking)}"
    name = f"{MARK}-try{os.getpid()}"
    made = [tried("ip", "netns", "add", name), tried("ip", "link", "add", name[:15], "type", "bridge")]
    tried("ip", "netns", "delete", name)
    tried("ip", "link", "delete", name[:15])
    return next((why for why in made if why), "")


def clean_up(number: int | None = None) -> None:
    """Remove one cluster's leavings, or of all whose test run is no more (it was killed before it could)."""
    for n in [number] if number is not None else _dead():
        spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
        for space in [s for s in spaces if s.startswith(f"{MARK}{n}-")]:
            for pid in map(int, subprocess.run(["ip", "netns", "pids", space], capture_output=True).stdout.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            tried("ip", "netns", "delete", space)
            tried("ip", "link", "delete", space)
        for group in MEMORY.glob(f"{MARK}{n}-*"):
            for _ in range(50):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)
        for disk in Path(f"/tmp/{MARK}{n}").glob("*/ray"):
            if disk.is_mount():
                tried("umount", "--lazy", str(disk))
        shutil.rmtree(f"/tmp/{MARK}{n}", ignore_errors=True)
        tried("ip", "link", "delete", f"{MARK}{n}")


def bridge() -> int:
    """Make a bridge whose number nobody has; its alias names the test run: process id and start."""
    taken = subprocess.run(["ip", "-o", "-4", "address"], capture_output=True, text=True).stdout
    for n in range(1, 255):
        if f" 10.201.{n}." not in taken and not tried("ip", "link", "add", f"{MARK}{n}", "type", "bridge"):
            do("ip", "link", "set", f"{MARK}{n}", "alias", f"{os.getpid()} {_born(os.getpid())}")
            return n
    raise RuntimeError(f"no network 10.201.N.0/24 is free: ip link | grep {MARK}")


def _dead() -> Iterator[int]:
    """Numbers of clusters whose test run is no more."""
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True).stdout or "[]")
    for link in links:
        if (name := link["ifname"]).startswith(MARK) and name[len(MARK) :].isdigit():
            pid, _, born = link.get("ifalias", "").partition(" ")
            if pid and _born(int(pid)) != born:
                yield int(name[len(MARK) :])


def _born(pid: int) -> str:
    """A process's start in clock ticks; "" of none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def do(*command: str) -> None:
    if why := tried(*command):
        raise RuntimeError(why)


def tried(*command: str) -> str:
    """Run a command; "" where it succeeds, else what it says."""
    ran = subprocess.run(command, capture_output=True, text=True)
    return "" if not ran.returncode else f"{' '.join(command)}: {ran.stderr.strip()}"
