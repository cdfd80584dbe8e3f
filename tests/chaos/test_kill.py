"""kill -9 of the driver in the middle of a verb, then the same command: it resumes, and every digest is equal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import ray
from small_job import SMALL, VERBS, Done

from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.records import Unit

pytestmark = pytest.mark.cluster
LONG = pytest.mark.skipif(
    "not config.getoption('--benchmark')", reason="what is killed there has tests of its own: make chaos"
)
ROOT = Path(__file__).resolve().parents[2]
VERB = {v.__name__: v for v in VERBS}


def start(verb: str, done: Done, out: Path) -> subprocess.Popen[bytes]:
    address = (
        ray.get_runtime_context().gcs_address
    )  # as `ray job submit` does: a driver of its own on a running cluster
    overrides = [*SMALL, f"run.out={out}", f"synthetic.root={done.cfg.synthetic.root}", f"resources.address={address}"]
    command = [sys.executable, f"jobs/{verb}.py", *(part for o in overrides for part in ("--set", o))]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # where these tests run in the background
    )  # fmt: skip


def kill_when(process: subprocess.Popen[bytes], ready: object, number: int = signal.SIGKILL) -> str:
    """Signal the driver the moment `ready()` holds, and wait for its end; what it printed."""
    limit = time.monotonic() + 150
    while not ready():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise AssertionError(f"the job ended before it could be killed:\n{process.communicate()[0].decode()}")
        time.sleep(0.005)
    os.kill(process.pid, number)
    return process.communicate(timeout=60)[0].decode()


@pytest.mark.parametrize("stage", ["shard", *(pytest.param(s, marks=LONG) for s in ("collect", "translate"))])
def test_a_killed_verb_resumes_to_equal_digests(main_job: Done, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "run"
    before = list(VERB)[: list(VERB).index(stage)]
    for earlier in before[1:]:
        shutil.copytree(Path(main_job.cfg.run.out) / "ledger" / earlier, out / "ledger" / earlier)
    shutil.copytree(
        main_job.cfg.run.out, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("ledger", stage, "evaluate")
    )
    if stage == "shard":
        shutil.rmtree(out / "shards")
    planned = main_job.summaries[stage].planned
    ledger = Ledger(str(out))
    assert not ledger.done(stage)
    kill_when(start(stage, main_job, out), lambda: len(ledger.done(stage)) >= 1)
    finished = len(ledger.done(stage))
    assert 1 <= finished < planned, "killed too late to show anything"
    cfg = main_job.cfg.model_copy(update={"run": main_job.cfg.run.model_copy(update={"out": str(out)})})
    again = VERB[stage](cfg, Options())
    assert (again.status, again.resumed, again.done) == ("complete", finished, planned)
    assert again.digest == main_job.summaries[stage].digest
    units = [Unit(*(json.loads(p.read_text())["unit"][k] for k in ("stage", "key", "fingerprint", "inputs")))
             for p in (out / "ledger" / stage).glob("*.json")]  # fmt: skip
    assert len(units) == planned
    assert ledger.audit(units) == []  # and the bytes are those that the entries name
    for name, path in again.outputs.items():
        if (out / path).is_file() and name != "forecast":  # which tells seconds
            assert (out / path).read_bytes() == main_job.path(stage, name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=LONG)])
def test_a_killed_training_resumes_from_its_checkpoint_to_the_same_weights(
    main_job: Done, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    ignore = shutil.ignore_patterns("train", "translate", "evaluate")
    shutil.copytree(main_job.cfg.run.out, out, ignore=ignore)
    checkpoints = out / "train" / "checkpoints"
    process = start("train", main_job, out)
    told = kill_when(process, lambda: any(checkpoints.glob("*/*.pt")), number)
    if number == signal.SIGINT:
        assert process.returncode == 130, told
        assert "train stopped; the same command resumes it" in told
        assert json.loads((out / "train/summary.json").read_text())["status"] == "stopped"
    assert not Ledger(str(out)).done("train")
    assert any(checkpoints.glob("*/*.pt"))
    cfg = main_job.cfg.model_copy(update={"run": main_job.cfg.run.model_copy(update={"out": str(out)})})
    again = VERB["train"](cfg, Options(limit=1))  # the translator alone
    made = out / again.outputs["translate"] / "weights.safetensors"
    assert made.read_bytes() == (main_job.path("train", "translate") / "weights.safetensors").read_bytes()
    steps = [line for line in (out / "train" / "translate" / "history.jsonl").read_text().splitlines() if line]
    assert len(steps) == 3
