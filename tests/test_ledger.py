from __future__ import annotations

from pathlib import Path

import pytest

from sar2eo_dist import storage
from sar2eo_dist.errors import AuditError, NotFound
from sar2eo_dist.ledger import Entry, Ledger, outputs_digest, require
from sar2eo_dist.records import Unit

UNITS = [Unit("shard", f"k{i}", "f", "i") for i in range(3)]


def complete(root: str, unit: Unit, data: bytes, seconds: float = 1.0) -> Entry:
    entry = Entry(unit, (storage.publish(root, f"out/{unit.id}", data),), seconds, 7, 1, {"pairs": 2})
    Ledger(root).commit(entry)
    return entry


def test_plan_minus_ledger(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    assert ledger.done("shard") == set()
    entry = complete(str(tmp_path), UNITS[1], b"x")
    assert ledger.done("shard") == {UNITS[1].id}
    assert ledger.entry(UNITS[1]) == entry
    with pytest.raises(NotFound):
        ledger.entry(UNITS[0])
    ledger.forget(UNITS)
    assert ledger.done("shard") == set()


def test_the_first_commit_stands(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    first = complete(str(tmp_path), UNITS[0], b"x", seconds=1)
    assert not ledger.commit(Entry(UNITS[0], first.outputs, 99.0))
    assert ledger.entry(UNITS[0]).seconds == 1


def test_audit_finds_missing_resized_and_changed_data(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    entries = [complete(str(tmp_path), u, b"data") for u in UNITS]
    assert ledger.audit(UNITS) == []
    paths = [tmp_path / e.outputs[0].path for e in entries]
    paths[0].unlink()
    paths[1].write_bytes(b"longer than before")
    paths[2].write_bytes(b"atad")
    problems = [f.problem.split()[0] for f in ledger.audit(UNITS)]
    assert problems == ["missing", "size", "sha256"]
    assert [f.problem.split()[0] for f in ledger.audit(UNITS, rehash=False)] == ["missing", "size"]
    with pytest.raises(AuditError, match=r"3 audit failure\(s\).*missing"):
        require(ledger.audit(UNITS))


def test_outputs_digest_ignores_schedule(tmp_path: Path) -> None:
    a = [complete(str(tmp_path / "a"), u, b"x", seconds=1) for u in UNITS]
    b = [complete(str(tmp_path / "b"), u, b"x", seconds=2) for u in reversed(UNITS)]
    c = [complete(str(tmp_path / "c"), u, b"y") for u in UNITS]
    assert outputs_digest(a) == outputs_digest(b) != outputs_digest(c)
