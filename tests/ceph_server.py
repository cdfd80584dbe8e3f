"""A real S3 server with real authentication, for tests: Ceph's gateway over one monitor and one store, as plain processes.

Needs root and Debian's packages ceph-mon, ceph-osd, ceph-common and radosgw; no container, no network. The monitor and the
store listen on loopback, the gateway where it is told. All state lies in one folder: killed and started again, the
server holds what it answered for.

    server = start(folder)                          # about 15 s
    os.environ |= server.environment()
    python tests/ceph_server.py start FOLDER [--host H] [--port P]
    python tests/ceph_server.py env FOLDER          # lines for a shell's eval
    python tests/ceph_server.py stop FOLDER         # ends the processes and removes the folder
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
REGION = "us-east-1"
WAIT_S = 120.0  # for a first start on a busy machine
#: one copy of everything, few placement groups, no manager, a small cache; sockets for administrators need short paths
CONF = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {folder}/keyring
auth allow insecure global id reclaim = false
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
log file = {folder}/log/$type.log
admin socket =
pid file =
crash dir = {folder}/log
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
objecter timeout = 1
objecter tick interval = 0.5
paxos propose interval = 0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = bluestore
osd memory target = 939524096
osd op num shards = 2
bluestore block size = 21474836480
rgw frontends = beast endpoint={host}:{port}
rgw thread pool size = 64
rgw dns name = localhost
"""


def lacking() -> str:
    """Why this machine cannot run the server; "" where it can."""
    if missing := [p for p in PROGRAMS if not shutil.which(p)]:
        return f"not installed: {', '.join(missing)} (apt-get install radosgw ceph-mon ceph-osd ceph-common)"
    return "only root can" if os.geteuid() else ""


@dataclass(frozen=True, slots=True)
class Server:
    """endpoint: its URL; access_key, secret_key: of the owner of all buckets; other_*: of a user without a right on them."""

    folder: Path
    endpoint: str
    access_key: str
    secret_key: str
    other_access_key: str
    other_secret_key: str

    def environment(self) -> dict[str, str]:
        """What the standard chain of AWS's libraries reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key, "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }  # fmt: skip

    def client(self) -> Any:
        """A plain botocore client of the owner, that bypasses what is tested."""
        import botocore.config
        import botocore.session

        config = botocore.config.Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return botocore.session.Session().create_client(
            "s3", region_name=REGION, endpoint_url=self.endpoint, aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key, config=config,
        )  # fmt: skip

    def bucket(self, name: str) -> str:
        """A bucket, made where there is none: `s3://name`."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def pause(self) -> None:
        """The gateway takes connections and answers nothing, until `resume`."""
        _signal(self.folder, signal.SIGSTOP, ("radosgw",))

    def resume(self) -> None:
        _signal(self.folder, signal.SIGCONT, ("radosgw",))

    def kill(self) -> None:
        """kill -9 of all processes: connections are refused from now on."""
        _signal(self.folder, signal.SIGKILL)
        _until(lambda: not _pids(self.folder), "its processes did not end", self.folder)

    def restart(self) -> None:
        """All processes again, with what was stored."""
        self.kill()
        _ready(self.folder, self.endpoint, _run(self.folder, first=False))

    def stop(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)


def start(folder: Path, host: str = "127.0.0.1", port: int = 0) -> Server:
    """A new server. folder: made, must be empty or absent; host: an address of this machine; port: 0 for a free one."""
    if why := lacking():
        raise RuntimeError(f"no Ceph server can be started here: {why}")
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"not empty: {folder}")
    for name in ("mon", "osd", "rgw", "log"):
        (folder / name).mkdir(parents=True)
    port = port or _free_port(host)
    server = Server(folder, f"http://{host}:{port}", *(secrets.token_hex(n) for n in (10, 20, 10, 20)))
    fsid = str(uuid.uuid4())
    (folder / "ceph.conf").write_text(CONF.format(fsid=fsid, mon=_free_port(), folder=folder, host=host, port=port))
    try:
        _make(folder, fsid)
        _ready(folder, server.endpoint, _run(folder, first=True))
        keys = (server.access_key, server.secret_key), (server.other_access_key, server.other_secret_key)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda n, k: _user(folder, n, *k), ("owner", "other"), keys))
    except BaseException:
        _signal(folder, signal.SIGKILL)
        raise
    told = {k: str(v) for k, v in asdict(server).items()}
    (folder / "server.json").write_text(json.dumps(told))
    (folder / "server.json").chmod(0o600)
    return server


def opened(folder: Path) -> Server:
    """The server that was started on a folder."""
    told = json.loads((folder.resolve() / "server.json").read_text())
    return Server(**told | {"folder": Path(told["folder"])})


def _make(folder: Path, fsid: str) -> None:
    """Keys of the daemons, and the monitor's store."""
    ring, address = str(folder / "keyring"), (folder / "ceph.conf").read_text().split("mon host = ")[1].splitlines()[0]
    everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
    for number, (name, caps) in enumerate({
        "mon.": ("--cap", "mon", "allow *"), "client.admin": everything, "client.radosgw": everything,
        "osd.0": ("--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"),
    }.items()):  # fmt: skip
        _do(folder, "ceph-authtool", *(() if number else ("-C",)), ring, "--gen-key", "-n", name, *caps)
    _do(folder, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap"))
    _do(folder, "ceph-mon", *_conf(folder), "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), "--keyring", ring)


def _run(folder: Path, first: bool) -> list[subprocess.Popen[bytes]]:
    """Start the three daemons; each finds the others by itself."""
    monitor = _daemon(folder, "ceph-mon", "-i", "a")
    if first:
        store = str(uuid.uuid4())
        _do(folder, "ceph", *_conf(folder), "--connect-timeout", "60", "osd", "new", store)
        _do(folder, "ceph-osd", *_conf(folder), "-i", "0", "--mkfs", "--osd-uuid", store)
    return [monitor, _daemon(folder, "ceph-osd", "-i", "0"), _daemon(folder, "radosgw", "-n", "client.radosgw")]


def _user(folder: Path, name: str, access: str, secret: str) -> None:
    _do(folder, "radosgw-admin", *_conf(folder), "user", "create", "--uid", name, "--display-name", name,
        "--access-key", access, "--secret-key", secret)  # fmt: skip


def _conf(folder: Path) -> tuple[str, str]:
    return "-c", str(folder / "ceph.conf")


def _environment() -> dict[str, str]:
    """Ceph's own tools are of the system's Python and must not meet this one's settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CEPH"))}


def _do(folder: Path, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, env=_environment(), check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}\n{_logs(folder)}")


def _daemon(folder: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    """A daemon that outlives this process, in a session of its own."""
    with (folder / "log" / f"{name}.out").open("ab") as out:
        return subprocess.Popen([name, "-f", *_conf(folder), *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                start_new_session=True, env=_environment(), cwd="/")  # fmt: skip


def _pids(folder: Path) -> dict[int, str]:
    """The daemons of a folder that run: process id -> program. Known by their command line, so never another's."""
    found, mine = {}, str(folder / "ceph.conf")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_text().split("\0")
                if mine in words and Path(words[0]).name in PROGRAMS:
                    found[int(entry.name)] = Path(words[0]).name
    return found


def _signal(folder: Path, number: signal.Signals, programs: tuple[str, ...] = PROGRAMS) -> None:
    for pid, program in _pids(folder).items():
        if program in programs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if number is signal.SIGKILL:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _ready(folder: Path, endpoint: str, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Wait until the gateway answers; fail at once, with the logs, where a daemon has ended."""

    def answers() -> bool:
        if ended := [d.args[0] for d in daemons if d.poll() is not None]:
            raise RuntimeError(f"{', '.join(ended)} ended while the server started\n{_logs(folder)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(endpoint, timeout=5):
            return True
        return False

    _until(answers, f"{endpoint} does not answer", folder)


def _until(true: Callable[[], bool], otherwise: str, folder: Path) -> None:
    limit = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError(f"{otherwise}, {WAIT_S:.0f} s long\n{_logs(folder)}")
        time.sleep(0.1)


def _logs(folder: Path) -> str:
    files = sorted((folder / "log").glob("*.*"))
    return "\n".join(f"--- {f.name}\n" + "\n".join(f.read_text(errors="replace").splitlines()[-8:]) for f in files)


def _free_port(host: str = "127.0.0.1") -> int:
    """Below the ports of outgoing connections, so that it is free again for a restart."""
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as s:
            try:
                s.bind((host, port))
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise RuntimeError(f"no free port on {host}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["start", "stop", "env", "restart", "kill"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    if args.verb == "start":
        print(start(args.folder, args.host, args.port).endpoint)
    elif args.verb == "env":
        print("\n".join(f"export {k}={v}" for k, v in opened(args.folder).environment().items()))
    else:
        getattr(opened(args.folder), args.verb)()


if __name__ == "__main__":
    main()
