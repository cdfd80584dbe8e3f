"""What a job says on stderr: lines for a person, or JSON objects."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist.config import load
from sar2eo_dist.errors import TooManyFailures
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import log
from sar2eo_dist.pipeline.progress import Meter
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, run_stage
from sar2eo_dist.records import Unit

UNITS = [Unit("shard", f"k{i}", "f", "i") for i in range(3)]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    log.configure("text")


def stage(out: Path, *more: str, failing: int = 1, units: list[Unit] = UNITS) -> Summary:
    """A stage whose first unit fails in every attempt, and whose second one fails once."""
    cfg = load(overrides=[f"run.out={out}", "run.tolerance=0.5", "run.max_attempts=2", *more])

    def execute(todo: Any, attempt: int) -> Any:
        for unit in todo:
            bad = unit in units[:failing] or (unit is units[failing] and attempt == 1)
            yield Failure(unit.id, "NotFound: no band") if bad else Entry(unit, (), 0.5, attempt=attempt)

    return run_stage(cfg, Options(), "shard", units, execute, "")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines_name_unit_key_attempt_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path, "run.log=json")
    told = lines(capsys)
    assert [e["event"] for e in told] == [
        "stage_started", "unit_failed", "unit_failed", "unit_done", "unit_retried", "unit_retried", "unit_failed",
        "unit_done", "quarantined", "stage_ended",
    ]  # fmt: skip
    assert all({"ts", "level", "event", "stage"} <= set(e) for e in told)
    last = next(e for e in told if e["event"] == "quarantined")
    assert (last["unit"], last["key"], last["attempt"], last["level"]) == (UNITS[0].id, "k0", 2, "error")
    assert last["reason"] == "NotFound: no band"
    done = [e for e in told if e["event"] == "unit_done"]
    assert [(e["key"], e["attempt"], e["seconds"]) for e in done] == [("k2", 1, 0.5), ("k1", 2, 0.5)]
    assert told[-1]["status"] == "partial"
    assert "submission" not in told[0]


def test_a_submitted_jobs_lines_carry_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    stage(tmp_path, "run.log=json")
    assert {e["submission"] for e in lines(capsys)} == {"raysubmit_1"}


def test_a_person_reads_one_line_for_each_failed_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert told[0] == f"shard: k0 ({UNITS[0].id[:12]}) failed, attempt 1 of 2: NotFound: no band"
    assert "k0" in told[2]
    assert "attempt 2 of 2" in told[2]


def test_a_night_of_failures_does_not_bury_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [Unit("shard", f"k{i}", "f", "i") for i in range(100)]
    with pytest.raises(TooManyFailures):
        stage(tmp_path, failing=99, units=many)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 21
    assert told[-1] == "shard: more attempts failed; what stays so is in summary.json"


def test_progress_is_an_event_for_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    out = io.StringIO()
    with Meter("collect", 10, "tiles", every=0.0, out=out) as meter:
        meter.advance(4, "a note")
    told = lines(capsys)
    assert (told[0]["event"], told[0]["stage"], told[0]["done"], told[0]["total"]) == ("progress", "collect", 4, 10)
    assert out.getvalue() == ""


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_any_words_make_one_line_of_json(text: str, fields: dict[str, Any]) -> None:
    record = log.LOGGER.makeRecord("n", log.INFO, "f", 1, "%s", (text,), None, extra={"event": "e", "fields": fields})
    line = log.Json({}).format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert {k: v for k, v in told.items() if k in fields and k != "text"} == {
        k: v for k, v in fields.items() if k != "text"
    }


def test_an_event_without_words_is_not_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    log.tell(log.INFO, "unit_done", unit="x")
    log.tell(log.WARNING, "damaged", "made again")
    assert capsys.readouterr().err == "made again\n"
