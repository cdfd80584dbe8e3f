"""A lease on a run folder, kept in the store: two jobs never write one folder at a time.

A lease is a row of generations, `lease/00000001.json` and so on, each created if absent by one holder, who then renews it
by writing it again. So any store with a conditional create will do, and no clock is compared with another machine's: who
wants a lease that is held looks whether it is renewed, on his own stopwatch. Not renewed for `ttl` seconds, it is taken
over by creating the next generation. A holder that was cut off meanwhile finds that generation, and ends.

Overlapping writers would still leave the same bytes (units of work are pure functions of their inputs): the lease spares
work, and products of half a plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sar2eo_dist import storage
from sar2eo_dist.errors import LeaseHeld, LeaseLost, NotFound, StorageError

FOLDER = "lease"
BEATS = 6  # renewals within the time after which a lease counts as dead
LOST = signal.SIGUSR2  # not SIGINT, which a shell lets jobs in the background ignore


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, in words for a person and in marks for a process of the same machine.

    what: the job; submission: its Ray submission id, if any; since: UTC; place: boot id and pid namespace; pid, born: of
    the process, and its start in clock ticks; beat: renewals so far; released: given back.
    """

    token: str
    what: str
    submission: str
    since: str
    host: str
    place: str
    pid: int
    born: str
    beat: int = 0
    released: bool = False

    def words(self) -> str:
        job = f", submission {self.submission}" if self.submission else ""
        return f"{self.what} on {self.host} (process {self.pid}{job}), since {self.since}"

    def gone(self) -> bool:
        """Whether it was a process of this very machine that lives no more; False where that cannot be told."""
        return bool(self.place) and self.place == _place() and _born(self.pid) != self.born

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Holder:
        """Of any version of this package: what it does not know is left out, what lacks is empty."""
        tree = json.loads(data)
        told = {f.name: tree[f.name] for f in dataclasses.fields(cls) if f.name in tree}
        return cls(
            **(dict.fromkeys(("token", "what", "submission", "since", "host", "place", "born"), "") | {"pid": 0} | told)
        )


@contextlib.contextmanager
def held(root: str, what: str, ttl: float, submission: str = "") -> Iterator[None]:
    """Hold the lease on a run folder; it is renewed by a thread and given back at the end.

    ttl: seconds without a renewal after which a lease counts as dead. Raises LeaseHeld where another job holds it and lives,
    LeaseLost (instead of whatever was going on) where another one took it over, having seen no renewal for so long.
    """
    holder = Holder(
        uuid.uuid4().hex, what, submission, dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), socket.gethostname(),
        _place(), os.getpid(), _born(os.getpid()),
    )  # fmt: skip
    number = _take(root, holder, ttl)
    beat = _Beat(root, number, holder, ttl)
    with _heard():
        beat.thread.start()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):  # the second: what a library makes of the first
            beat.require(root)
            raise
        else:
            beat.require(root)
        finally:
            beat.end()


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """In the main thread, LOST is a KeyboardInterrupt, wherever it waits; in others a loss is told at the end alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt("lease lost")

    before = signal.signal(LOST, interrupt)
    try:
        yield
    finally:
        signal.signal(LOST, before)


class _Beat:
    """Renews a lease until it is told to end, or finds that another one has it."""

    def __init__(self, root: str, number: int, holder: Holder, ttl: float) -> None:
        self.root, self.number, self.holder, self.ttl = root, number, holder, ttl
        self.over, self.lost = threading.Event(), ""
        self.thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def _run(self) -> None:
        while not self.over.wait(self.ttl / BEATS):
            try:
                newest, other = newest_of(self.root)
                if newest > self.number:
                    self.lost = other.words() if other else "another job"
                    if callable(signal.getsignal(LOST)):  # and `require` says why
                        signal.pthread_kill(threading.main_thread().ident or 0, LOST)
                    return
                self.holder = dataclasses.replace(self.holder, beat=self.holder.beat + 1)
                storage.put(_uri(self.root, self.number), self.holder.to_json())
            except StorageError as e:  # an outage: the work itself waits for the store, and others cannot look either
                print(f"lease: not renewed: {e}", file=sys.stderr, flush=True)

    def require(self, root: str) -> None:
        if self.lost:
            raise LeaseLost(
                root, f"another job took this run folder over, having seen no sign of this one: {self.lost}"
            )

    def end(self) -> None:
        self.over.set()
        self.thread.join(timeout=5)
        if not self.lost:
            with contextlib.suppress(StorageError):  # it runs out by itself
                storage.put(_uri(self.root, self.number), dataclasses.replace(self.holder, released=True).to_json())


def _take(root: str, holder: Holder, ttl: float) -> int:
    """The generation that now is the holder's. Raises LeaseHeld."""
    number, other = newest_of(root)
    if other and not other.released and not other.gone():
        print(
            f"the run folder is in use by {other.words()}: looking for a sign of life, {ttl:.0f} s at most",
            file=sys.stderr,
            flush=True,
        )
        begin = time.monotonic()
        while time.monotonic() - begin < ttl and not other.gone():
            time.sleep(ttl / BEATS / 4)
            now, seen = newest_of(root)
            if seen is None or seen.released:
                number = now
                break
            if now != number or seen.beat != other.beat:
                raise LeaseHeld(
                    root, f"in use by {seen.words()}: wait for it, stop it (ray job stop), or choose another run.out"
                )
        else:
            print(f"no sign of life: taken over from {other.words()}", file=sys.stderr, flush=True)
    created = storage.put_if_absent(_uri(root, number + 1), holder.to_json())
    newest, winner = newest_of(root)
    if not created or newest != number + 1:  # the second: others came and went since we looked, and cleared up
        raise LeaseHeld(
            root, f"another job took this run folder at the same moment: {winner.words() if winner else '?'}"
        )
    for info in _listed(root):
        if (
            int(storage.name(info)[:-5]) < number
        ):  # the last one stays: who just looked at it must not find its place free
            storage.delete(info)
    return number + 1


def newest_of(root: str) -> tuple[int, Holder | None]:
    """The newest generation and its holder; (0, None) where there was never one."""
    there = _listed(root)
    if not there:
        return 0, None
    with contextlib.suppress(NotFound):
        return int(storage.name(there[-1])[:-5]), Holder.from_json(storage.read_bytes(there[-1]))
    return newest_of(root)  # older generations were removed while we looked


def taken(root: str) -> bool:
    """Whether another process holds the lease: what this one still has to say of the run folder is out of date."""
    _, newest = newest_of(root)
    ours = (_place(), os.getpid(), _born(os.getpid()))
    return newest is not None and not newest.released and (newest.place, newest.pid, newest.born) != ours


def _listed(root: str) -> list[str]:
    with contextlib.suppress(NotFound):
        return sorted(i.uri for i in storage.list_files(storage.join(root, FOLDER)) if i.uri.endswith(".json"))
    return []


def _uri(root: str, number: int) -> str:
    return storage.join(root, FOLDER, f"{number:08d}.json")


def _place() -> str:
    """What tells whether a process id means the same: the machine since its start, and its pid namespace; "" unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a living process started, in clock ticks since the machine's start; "" where there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
