"""jobs/wait.py: what an ended job is worth, by what it left and by what Ray says of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sar2eo_dist.pipeline import wait
from sar2eo_dist.pipeline.stage import Summary, submission, write_summary


class Cluster:
    """A jobs server: statuses in turn, the last for ever; an exception is raised."""

    def __init__(self, command: str, *statuses: str | Exception) -> None:
        self.command, self.statuses = command, list(statuses)

    def get_job_info(self, name: str) -> Any:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        return SimpleNamespace(entrypoint=self.command, status=status)

    def get_job_logs(self, name: str) -> str:
        return "first\n" * 20 + "the last words"


def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *statuses: str | Exception,
    left: str = "",
    of: str = "night-1",
    extra: Any = (),
) -> int:
    from sar2eo_dist.config import load

    command = f"python jobs/translate.py --set run.out={tmp_path}"
    if left:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": of}}))
        bad = [{"unit": "u", "key": "r1c2", "reason": "Corrupt: flipped"}] if left == "partial" else []
        write_summary(
            load(overrides=[f"run.out={tmp_path}"]), Summary("translate", left, 4, 4 - len(bad), quarantined=bad)
        )
    monkeypatch.setattr(wait, "EVERY_S", 0.01)
    monkeypatch.setattr(wait, "GONE_S", 0.05)
    monkeypatch.setattr(wait, "connect", lambda address: Cluster(command, *statuses))
    return wait.main(["night-1", *extra])


@pytest.mark.parametrize(
    ("statuses", "left", "extra", "code"),
    [
        (("PENDING", "RUNNING", "SUCCEEDED"), "complete", (), 0),
        (("SUCCEEDED",), "partial", (), 0),
        (("SUCCEEDED",), "partial", ("--strict",), 3),
        (("FAILED",), "failed", (), 1),
        (("FAILED",), "complete", (), 1),  # killed after its last summary but one
        (("STOPPED",), "stopped", (), 130),
        (("STOPPED",), "", (), 130),  # killed before it could say so
        (("RUNNING", OSError("gone")), "complete", (), 0),  # RayJob's cluster is deleted once it ended
        (("RUNNING", OSError("gone")), "", (), 1),
        (("RUNNING",), "", ("--timeout", "0.05"), 124),
        ((RuntimeError("status code 404"),), "", (), 2),
    ],
)
def test_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: Any, left: str, extra: Any, code: int
) -> None:
    assert run(tmp_path, monkeypatch, *statuses, left=left, extra=extra) == code


def test_a_summary_of_another_submission_is_not_this_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, "RUNNING", OSError("gone"), left="complete", of="yesterday") == 1
    assert "left no translate/summary.json" in capsys.readouterr().out


def test_it_tells_what_was_quarantined_and_the_end_of_a_failed_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, monkeypatch, "FAILED", left="partial")
    out = capsys.readouterr().out
    assert "r1c2: Corrupt: flipped" in out
    assert "the last words" in out
    assert out.count("first") < 20


def test_the_job_is_found_in_its_entrypoint() -> None:
    assert wait.entry("sleep 1") is None
    assert wait.entry("python /app/jobs/basin.py --strict") == wait.Job("basin", ("--strict",))
    command = "python jobs/check.py --config a && python jobs/basin.py --config '/etc/my config.yaml' --set x=[1, 2]; echo done"
    assert wait.entry(command) == wait.Job("basin", ("--config", "/etc/my config.yaml", "--set", "x=[1,", "2]"))


def test_no_server_and_no_token_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(words: str) -> Any:
        def client(address: str | None) -> None:
            raise RuntimeError(words)

        return client

    for words, remedy in (("Failed to connect", "is the head up"), ("status code 401", "RAY_AUTH_TOKEN")):
        monkeypatch.setattr(wait, "JobSubmissionClient", refuse(words))
        assert wait.main(["night-1", "--address", "http://127.0.0.1:1"]) == 1
        assert remedy in capsys.readouterr().err


def test_a_process_that_nobody_submitted_has_no_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert submission() == ""
