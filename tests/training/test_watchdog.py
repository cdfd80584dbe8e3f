"""A step that hangs ends the process, once, with a word; one that does not is left alone."""

from __future__ import annotations

import threading
import time

import pytest

from sar2eo_dist.training.watchdog import Watchdog


class Dog:
    """A watchdog that ends nothing, and what it said and did."""

    def __init__(self, limit, tell=None):
        self.did = []
        before = set(threading.enumerate())
        self.dog = Watchdog(limit, tell or (lambda text: self.did.append(text)), self.did.append)
        self.threads = set(threading.enumerate()) - before

    def ended(self, seconds=5.0):
        deadline = time.monotonic() + seconds
        while any(t.is_alive() for t in self.threads) and time.monotonic() < deadline:
            time.sleep(5e-3)
        return not any(t.is_alive() for t in self.threads)


def test_no_beat_is_told_and_ends_the_process_once(capfd):
    began, made = time.monotonic(), Dog(0.15)
    assert len(made.threads) == 1
    assert made.ended()
    assert 0.15 < time.monotonic() - began < 3
    assert made.did == ["a step took longer than 0.15 s (train.hang_s): the workers start again", 70]
    assert "Thread 0x" in capfd.readouterr().err  # where each thread was
    made.dog.beat()
    assert len(made.did) == 2


def test_beats_keep_it_quiet_until_they_stop():
    made = Dog(0.6)
    for _ in range(16):
        time.sleep(0.05)
        made.dog.beat()
    assert made.did == []
    assert made.ended()
    assert made.did[1:] == [70]


def test_at_rest_nothing_is_awaited_until_the_next_beat():
    made = Dog(0.3)
    made.dog.at_rest()
    time.sleep(0.5)
    assert made.did == []
    made.dog.beat()
    assert made.ended()
    assert made.did[1:] == [70]


def test_stopped_it_says_nothing_and_leaves_no_thread():
    made = Dog(0.3)
    made.dog.stop()
    assert made.ended()
    time.sleep(0.4)
    assert made.did == []


def test_no_limit_starts_nothing():
    made = Dog(0)
    assert made.threads == set()
    for call in (made.dog.beat, made.dog.at_rest, made.dog.stop):
        call()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_process_ends_though_nobody_hears():
    """Where a step hangs, whom it tells may be gone as well."""

    def deaf(text):
        raise TimeoutError("no answer")

    made = Dog(0.05, deaf)
    assert made.ended()
    assert made.did == [70]
