"""Completions that go to the ledger side by side: order, errors, and what an error leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sar2eo_dist import storage
from sar2eo_dist.errors import Unavailable
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline import commit
from sar2eo_dist.pipeline.stage import Failure
from sar2eo_dist.records import Unit

ENTRIES = [Entry(Unit("shard", f"k{i}", "f", "i"), (), 0.1) for i in range(40)]


def test_results_come_in_order_and_entries_are_in_the_ledger_by_then(tmp_path: Path) -> None:
    ledger, some = Ledger(str(tmp_path)), [*ENTRIES[:3], Failure("x", "boom"), *ENTRIES[3:]]
    told = []
    for result, seconds in commit.committed(ledger, some):
        if isinstance(result, Entry):
            assert ledger.entry(result.unit) == result
            assert seconds > 0
        told.append(result)
    assert [r for r in told if isinstance(r, Entry)] == ENTRIES
    assert sorted(map(id, told)) == sorted(map(id, some))


def test_several_are_on_their_way_at_a_time_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, lock = [0], [0], threading.Lock()

    def slow(uri: str, data: bytes) -> bool:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        with lock:
            inside[0] -= 1
        return True

    monkeypatch.setattr(storage, "put_if_absent", slow)
    begin = time.monotonic()
    assert len(list(commit.committed(Ledger(str(tmp_path)), ENTRIES))) == len(ENTRIES)
    assert 2 <= most[0] <= commit.AT_A_TIME
    assert time.monotonic() - begin < 0.6 * 0.05 * len(ENTRIES)


@pytest.mark.parametrize("error", [RuntimeError("worker died"), KeyboardInterrupt()])
def test_what_came_before_an_error_is_committed_and_told_first(tmp_path: Path, error: BaseException) -> None:
    def dying() -> Iterator[Entry]:
        yield from ENTRIES[:5]
        raise error

    told = []

    def consume() -> None:
        for result, _ in commit.committed(Ledger(str(tmp_path)), dying()):
            told.append(result)

    with pytest.raises(type(error)):
        consume()
    assert told == ENTRIES[:5]
    assert Ledger(str(tmp_path)).done("shard") == {e.unit.id for e in ENTRIES[:5]}


def test_a_store_that_refuses_a_commit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, data: bytes) -> bool:
        raise Unavailable(uri, "store did not answer")

    monkeypatch.setattr(storage, "put_if_absent", refuse)
    with pytest.raises(Unavailable):
        list(commit.committed(Ledger(str(tmp_path)), ENTRIES[:3]))
