"""One training worker, in this process: resumes, checkpoints, validates, and says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_training import alone as alone
from small_training import board, config, write_pairs

from sar2eo_dist import storage
from sar2eo_dist.errors import ConfigError, Corrupt, ModelError, NotFound, NotSaved, StorageFull, Unavailable
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline import learner
from sar2eo_dist.pipeline.stage import read_summary
from sar2eo_dist.pipeline.train import plan
from sar2eo_dist.pipeline.training_job import Job
from sar2eo_dist.training import checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(str(root))
    return root


@pytest.fixture
def root(store: Path, tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    for part in ("shards", "shard"):
        (tmp_path / "run" / part).symlink_to(store / part)
    return str(tmp_path / "run")


def jobs(root: str, *more: str) -> list[Job]:
    cfg = config(root, *more)
    return [job for _, job in plan(cfg, root, read_summary(cfg, "shard")).values()]


def weights(job: Job) -> bytes:
    return storage.read_bytes(storage.join(job.out, "weights.safetensors"))


def record(job: Job) -> dict[str, Any]:
    return json.loads(storage.read_bytes(storage.join(job.journal, "record.json")))


def curve(job: Job) -> list[dict[str, Any]]:
    timed = {"time", "samples_per_s", "busy", "wait"}
    return [{k: v for k, v in line.items() if k not in timed} for line in record(job)["history"]]


class Stop(Exception):
    pass


def dies_after(monkeypatch: pytest.MonkeyPatch, job: Job, step: int) -> None:
    """The worker ends in the middle of a step, after the checkpoint before it is safe."""

    def beat(self: learner.Learner) -> None:
        if self.record.step > step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "_beat", beat)
        put = checkpoint.Writer.put

        def at_once(self: checkpoint.Writer, *args: Any) -> None:
            put(self, *args)
            while self.done < args[0]:
                time.sleep(0.002)

        patch.setattr(checkpoint.Writer, "put", at_once)
        with pytest.raises(Stop):
            learner.learn({"job": job, "board": board()})


def test_a_training_that_died_goes_on_to_the_same_weights_curve_and_validations(
    root: str, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("train.translate.ema=0.9", "train.translate.micro=1", "train.translate.log_every=3")
    (job,) = jobs(root, *more)
    alone.run(job)
    whole, lines, every = weights(job), curve(job), record(job)
    storage.delete(job.checkpoints)
    for step in (2, 5):  # between the lines of the log; in the middle of one
        dies_after(monkeypatch, job, step)
    storage.delete(job.out)
    on = alone.run(job)
    assert weights(job) == whole
    assert curve(job) == lines
    again = record(job)
    assert again["validations"] == every["validations"]
    assert again["baselines"] == every["baselines"]
    assert again["attempts"] == 3
    assert [e["event"] for e in again["events"]] == ["resumed", "resumed"]
    assert on.ended.remote()[1][1] == {
        "translate steps": 6, "translate samples replaced": 0, "translate steps skipped": 0,
    }  # fmt: skip


def test_the_bundle_is_the_best_validated_where_asked_for(
    root: str, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    maes = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(learner, "mean", lambda rows: {"mae": next(maes), "rmse": 1.0, "psnr": None, "ssim": 0.5})
    (job,) = jobs(root, "train.translate.select=best")
    alone.run(job)
    info = bundle.read(job.out)
    assert (info.step, info.metrics) == (4, {"held_out_mae": 0.1, "held_out_rmse": 1.0, "held_out_ssim": 0.5})
    assert checkpoint.steps(job.checkpoints) == [4, 6]
    saved = checkpoint.decode(storage.read_bytes(checkpoint.path(job.checkpoints, 4)), "x")
    net, _ = bundle.load(job.out)
    assert all(torch.equal(v, saved["trainer"]["networks"]["G"][k]) for k, v in net.state_dict().items())
    assert record(job)["selected_step"] == 4


def test_a_preemption_notice_makes_a_checkpoint_once(root: str, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "ASK_S", 0.0)
    (job,) = jobs(root, "train.translate.checkpoint_every=100", "train.validation=0")
    alone.notice = SimpleNamespace(preempted_node_ids=["n1"])
    kept: list[int] = []
    put = checkpoint.Writer.put
    monkeypatch.setattr(checkpoint.Writer, "put", lambda self, step, *more: (kept.append(step), put(self, step, *more)))
    alone.run(job)
    assert kept == [1, 6]
    assert [(e["step"], e["event"]) for e in record(job)["events"]] == [(1, "preempted")]


def full(*_: Any, **__: Any) -> None:
    raise StorageFull("where", "cannot be written (No space left on device): make room")


@pytest.mark.parametrize("error", [StorageFull("u", "no room"), Unavailable("u", "no answer"), NotFound("u", "gone")])
def test_a_checkpoint_store_that_is_down_is_borne_for_a_while_and_then_a_clean_stop(
    root: str, alone: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (job,) = jobs(root, "train.outage_s=0.3", "train.translate.steps=2000", "train.validation=0")
    put = storage.put

    def down(uri: str, data: Any) -> None:
        if "/checkpoints/" in uri:
            raise error
        put(uri, data)

    monkeypatch.setattr(storage, "put", down)
    on = board()
    with pytest.raises(
        Unavailable, match=r"no checkpoint could be written for 0 s \(train.outage_s\).*the same command"
    ):
        alone.run(job, on)
    assert isinstance(on.failed.remote(), NotSaved)
    events = on.read.remote()[2]
    assert [e["event"] for e in events] == ["checkpoint_failed"]
    step = on.read.remote()[0]
    assert 2 <= step < 2000
    learner.learn({"job": job, "board": on})  # what starts again ends at once: the error stays
    assert on.read.remote()[0] == step


def test_an_outage_that_ends_in_time_costs_nothing(root: str, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs(root)
    alone.run(job)
    whole = weights(job)
    for folder in (job.checkpoints, job.out):
        storage.delete(folder)
    put, left = storage.put, [3]

    def shaky(uri: str, data: Any) -> None:
        if "/checkpoints/" in uri and left[0]:
            left[0] -= 1
            full()
        put(uri, data)

    monkeypatch.setattr(storage, "put", shaky)
    monkeypatch.setattr(checkpoint, "AGAIN_S", 0.01)
    alone.run(job)
    assert left == [0]
    assert weights(job) == whole
    assert "checkpoint_failed" in [e["event"] for e in record(job)["events"]]
    assert checkpoint.steps(job.checkpoints)[-1] == 6


def test_what_stays_wrong_is_told_to_all(root: str, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs(root)
    odd = dataclasses.replace(job, versions=job.versions | {"torch": "1.0"})
    on = board()
    with pytest.raises(ConfigError, match=r"worker on .*: torch .*, the driver has 1.0: use one image on all nodes"):
        alone.run(odd, on)
    assert "the driver has 1.0" in str(on.failed.remote())
    storage.put(checkpoint.path(job.checkpoints, 2), b"torn")
    with pytest.raises(ModelError, match="none of 1 checkpoints can be read, --fresh starts from the first step"):
        alone.run(job)
    storage.delete(job.checkpoints)
    on = board()

    def torn(*_: Any, **__: Any) -> None:
        raise Corrupt("s", "flipped")

    monkeypatch.setattr(learner.PairReader, "__call__", torn)
    with pytest.raises(Corrupt, match="training samples cannot be read"):
        alone.run(job, on)
    assert isinstance(on.failed.remote(), Corrupt)


def test_an_outage_while_pairs_are_read_is_tried_again(root: str, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs(root)

    def gone(*_: Any, **__: Any) -> None:
        raise Unavailable("s", "no answer")

    monkeypatch.setattr(learner.PairReader, "__call__", gone)
    on = board()
    with pytest.raises(Unavailable):
        alone.run(job, on)
    assert on.failed.remote() is None


def test_an_outage_while_checkpoints_are_listed_is_tried_again(
    root: str, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs(root)

    def gone(uri: str) -> Any:
        raise Unavailable(uri, "no answer")

    monkeypatch.setattr(storage, "list_files", gone)
    on = board()
    with pytest.raises(Unavailable, match=job.checkpoints):
        alone.run(job, on)
    assert on.failed.remote() is None


def test_a_gpu_out_of_memory_says_what_to_lower(root: str, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs(root)

    def out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(learner, "fit", out)
    with pytest.raises(ConfigError, match=r"halve train.translate.micro .*Tried to allocate 2 GiB\)"):
        alone.run(job)


def test_a_hang_is_told_and_kept_by_the_worker_that_starts_again(
    root: str, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs(root, "train.hang_s=0.2")
    ended: list[int] = []
    watchdog = learner.Watchdog
    monkeypatch.setattr(learner, "Watchdog", lambda limit, tell: watchdog(limit, tell, ended.append))
    on = board()
    monkeypatch.setattr(learner, "fit", lambda *args: time.sleep(0.6))
    monkeypatch.setattr(learner.Learner, "_finish", lambda self: None)
    alone.run(job, on)
    assert ended == [70]
    (event,) = on.read.remote()[2]
    assert event["event"] == "hang"
    assert "a step took longer than 0.2 s (train.hang_s)" in event["text"]
    monkeypatch.undo()
    again = learner.Record()
    again.events += on.told.remote()
    assert again.events == [event]
    assert on.told.remote() == []


def test_no_thread_is_left(root: str, alone: Any) -> None:
    before = set(threading.enumerate())
    (job,) = jobs(root, "train.translate.steps=2")
    alone.run(job)
    names, limit = ("checkpoints", "watchdog", "loader"), time.monotonic() + 5

    def left() -> list[str]:
        return [t.name for t in set(threading.enumerate()) - before if t.name.startswith(names)]

    while left() and time.monotonic() < limit:
        time.sleep(0.02)
    assert left() == []
