"""A lease on a run folder: one holder, a dead one's place is taken, a cut-off one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sar2eo_dist import lease, storage
from sar2eo_dist.errors import LeaseHeld, LeaseLost

TTL = 3.0
HOLD = """
import sys, time
from sar2eo_dist import lease
with lease.held(sys.argv[1], "jobs/basin.py", {ttl}, "night-1"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "disk" else request.getfixturevalue("s3") + "/run"


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen from another machine, where process ids mean nothing."""
    monkeypatch.setattr(lease, "_place", lambda: "another machine")


def holder(root: str, ttl: float = 30.0) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(ttl=ttl), root], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_one_holds_it_at_a_time_and_it_is_given_back(root: str) -> None:
    refused = pytest.raises(LeaseHeld, match=r"jobs/basin\.py on .*night-1")
    with lease.held(root, "jobs/basin.py", TTL, "night-1"), refused, lease.held(root, "jobs/basin.py", TTL):
        pass
    with lease.held(root, "jobs/grade.py", TTL):
        number, who = lease.newest_of(root)
        assert (number, who and who.what, who and who.released) == (2, "jobs/grade.py", False)
    assert lease.newest_of(root)[1].released  # type: ignore[union-attr]


def test_of_many_that_come_at_once_one_gets_it(root: str) -> None:
    inside, most, gate = [], [], threading.Barrier(8)

    def come(n: int) -> str:
        gate.wait()
        try:
            with lease.held(root, f"job {n}", 5.0):
                inside.append(n)
                most.append(len(inside))
                time.sleep(1.0)
                inside.remove(n)
            return "held"
        except LeaseHeld:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(come, range(8)))
    assert max(most) == 1
    assert ends.count("refused") == 8 - len(most) >= 1


def test_the_place_of_a_process_killed_here_is_free_at_once(tmp_path: Path) -> None:
    process = holder(str(tmp_path))
    process.kill()  # not yet reaped: a zombie counts as gone
    begin = time.monotonic()
    with lease.held(str(tmp_path), "jobs/basin.py", 30.0):
        assert time.monotonic() - begin < 5
    process.wait()


def test_the_place_of_a_machine_that_is_gone_is_taken_after_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holder(str(tmp_path))
    process.kill()
    process.wait()
    elsewhere(monkeypatch)
    begin = time.monotonic()
    with lease.held(str(tmp_path), "jobs/basin.py", 1.5):
        assert time.monotonic() - begin > 1.4
    assert "no sign of life: taken over from jobs/basin.py" in capsys.readouterr().err


def test_a_clock_an_hour_off_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease.held(str(tmp_path), "jobs/basin.py", TTL):
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        elsewhere(monkeypatch)
        with pytest.raises(LeaseHeld), lease.held(str(tmp_path), "jobs/basin.py", TTL):
            pass


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["front", "background"])
def test_a_holder_that_was_cut_off_ends_by_name(tmp_path: Path, ctrl_c: Any) -> None:
    """Also a job in the background, which a shell lets ignore Ctrl-C."""
    root = str(tmp_path)

    def work() -> None:
        with lease.held(root, "jobs/basin.py", TTL):
            other = lease.Holder("x", "jobs/other.py", "", "now", "host", "", 1, "")
            assert storage.put_if_absent(lease._uri(root, lease.newest_of(root)[0] + 1), other.to_json())
            time.sleep(30)
            raise AssertionError("it was not told")

    before, unheard = signal.signal(signal.SIGINT, ctrl_c), signal.getsignal(lease.LOST)
    try:
        with pytest.raises(LeaseLost, match="jobs/other.py"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(lease.LOST) == unheard
    assert lease.newest_of(root)[1].what == "jobs/other.py"  # type: ignore[union-attr]


def test_a_loss_in_another_thread_is_told_at_the_end(tmp_path: Path) -> None:
    root = str(tmp_path)

    def work() -> None:
        with lease.held(root, "jobs/basin.py", TTL):
            other = lease.Holder("x", "jobs/other.py", "", "now", "host", "", 1, "")
            assert storage.put_if_absent(lease._uri(root, lease.newest_of(root)[0] + 1), other.to_json())
            time.sleep(TTL)

    with ThreadPoolExecutor(1) as pool, pytest.raises(LeaseLost, match="jobs/other.py"):
        pool.submit(work).result()


def test_an_outage_shorter_than_the_time_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sar2eo_dist.errors import Unavailable

    real, down = storage.put, threading.Event()

    def put(uri: str, data: bytes) -> None:
        if down.is_set():
            raise Unavailable(uri, "store did not answer")
        real(uri, data)

    monkeypatch.setattr(storage, "put", put)
    with lease.held(str(tmp_path), "jobs/basin.py", TTL):
        down.set()
        time.sleep(TTL / 2)
        down.clear()
        beats = lease.newest_of(str(tmp_path))[1].beat  # type: ignore[union-attr]
        time.sleep(TTL / 2)
        assert lease.newest_of(str(tmp_path))[1].beat > beats  # type: ignore[union-attr]


def test_a_lease_of_a_newer_version_is_read(tmp_path: Path) -> None:
    tree = json.loads(lease.Holder("x", "jobs/basin.py", "", "now", "host", "", 1, "").to_json())
    del tree["submission"]
    made = lease.Holder.from_json(json.dumps(tree | {"colour": "green"}).encode())
    assert (made.what, made.submission, made.pid) == ("jobs/basin.py", "", 1)


def test_old_generations_are_cleared(tmp_path: Path) -> None:
    for _ in range(4):
        with lease.held(str(tmp_path), "jobs/basin.py", TTL):
            pass
    assert sorted(os.listdir(tmp_path / "lease")) == ["00000003.json", "00000004.json"]
