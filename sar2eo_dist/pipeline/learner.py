"""One worker of a training under Ray Train: resumes, steps, checkpoints, validates; rank 0 also tells and writes.

Checkpoints go through our own storage, not through Ray's: one object each, written beside the training, so that an
outage is borne, a resume needs nothing of the Ray that ran before, and any worker, driver or controller may die.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device
from torch import Tensor

from sar2eo_dist import storage
from sar2eo_dist.errors import ConfigError, NotFound, NotSaved, Sar2EoError, Unavailable
from sar2eo_dist.evaluation.validation import Held, baselines, mean, measure
from sar2eo_dist.models import bundle, speed, translator
from sar2eo_dist.pipeline import journal
from sar2eo_dist.pipeline.actors import exact
from sar2eo_dist.pipeline.pairset import TranslatedReader
from sar2eo_dist.pipeline.progress import losses
from sar2eo_dist.pipeline.stage import now
from sar2eo_dist.pipeline.training_job import CHANNELS, Job, compatible, versions
from sar2eo_dist.reader import PairReader
from sar2eo_dist.training import checkpoint
from sar2eo_dist.training.fit import Average, Course, Hooks, Record, fit, restore, seed, state, watched
from sar2eo_dist.training.loader import Loader, State
from sar2eo_dist.training.phases import Phase
from sar2eo_dist.training.watchdog import Watchdog

ASK_S = 2.0  # between two looks for a notice that a machine will be taken away


def learn(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in every process of the group. What another try would only repeat ends them all."""
    board = config["board"]
    if ray.get(board.failed.remote()) is not None:  # another worker, or this one before, met an error that stays
        return
    try:
        Learner(config["job"], board).run()
    except torch.OutOfMemoryError as e:
        stage = config["job"].role
        error = ConfigError(
            f"the GPU is out of memory: halve train.{stage}.micro (samples of one forward pass) or train.{stage}.crop, or set "
            f"speed.checkpointing ({str(e).splitlines()[0]})"
        )
        ray.get(board.stop.remote(error))
        raise error from e
    except Sar2EoError as e:
        if isinstance(e, NotSaved) or not isinstance(e, Unavailable):  # an outage may pass
            ray.get(board.stop.remote(e))
        raise


class Learner:
    """The state of one worker."""

    def __init__(self, job: Job, board: Any) -> None:
        self.job, self.board = job, board
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        exact(self.device.type, job.train.threads)
        self._same_versions()
        self.model = translator(job.model)
        seed(job.train.seed, -1)
        self.net = self.model.build(job.stage.options, CHANNELS, CHANNELS).to(self.device)
        if job.start:
            compatible(bundle.start(self.net, job.start), job)
        self.trainer = self.model.Trainer(self.net, job.stage.options, job.stage.lr, job.plan[-1].stop)
        # a copy of the network: before anything is compiled
        self.average = Average(self.net, job.stage.ema) if job.stage.ema else None
        if self.average is not None:
            speed.apply(self.average.net, job.speed.precision)
        self.trainer.accelerate(**job.speed.model_dump(), micro=job.stage.micro)
        self.read = PairReader(job.store)
        self.images = TranslatedReader(job.images) if job.images else None
        self.held = Held(self.read, self.images, job.held, job.scaling, job.stage.scale)
        self.record = Record()
        self.writer: checkpoint.Writer | None = None
        self.grids: dict[int, bytes] = {}
        self._asked, self._preempted = time.monotonic(), ""

    def run(self) -> None:
        job = self.job
        if (saved := self._newest()) is not None:
            self.record = restore(saved, self.trainer, self.average, job.checkpoints)
        begun, record = self.record.step, self.record
        record.attempts += 1
        record.started = record.started or now()
        if self.rank == 0:
            record.events += ray.get(self.board.told.remote())
        if begun:
            self._tell("resumed", f"from the checkpoint of step {begun}, with {self.world} workers")
        if self.world > 1:
            self.trainer.wrap(torch.nn.parallel.DistributedDataParallel, self._mean)
        course = Course(
            job.plan, self._loader, len(job.samples), job.train.seed, job.stage.scale, job.stage.log_every,
            job.stage.checkpoint_every, job.train.max_skipped,
        )  # fmt: skip
        if self.rank == 0:
            self.writer = checkpoint.Writer(job.checkpoints, job.train.outage_s, self._unwritten)
        self.dog = Watchdog(job.train.hang_s, self._hangs)
        hooks = Hooks(self._beat, self._log, self._pause, self._urgent)
        try:
            fit(self.trainer, course, record, hooks, self.average, self.net, self.rank, self.world)
            self.dog.stop()
            if self.writer is not None:
                self.writer.close()
                self._finish()
        finally:
            self.dog.stop()
            if self.writer is not None:
                self.writer.abandon()

    def _newest(self) -> dict[str, Any] | None:
        """The checkpoint to go on from: the same for all ranks, also while a cut-off rank 0 still writes another."""
        saved = checkpoint.newest(self.job.checkpoints) if self.rank == 0 else None
        step = self._gathered(saved["step"] if saved else -1)[0]
        if self.rank and step >= 0:
            where = checkpoint.path(self.job.checkpoints, step)
            try:
                saved = checkpoint.decode(storage.read_bytes(where), where)
            except NotFound as e:  # that other rank 0 deleted it after a newer one: start again
                raise Unavailable(where, "the checkpoint went while it was read") from e
        return saved

    @property
    def kept(self) -> torch.nn.Module:
        """The network that is validated and kept."""
        return self.net if self.average is None else self.average.net

    def _loader(self, phase: Phase, origin: State) -> Loader:
        job, images = self.job, self.images

        def read(i: int) -> Any:
            if images is None:
                return self.read(i)
            _, eo, valid = self.read(i)
            return images(i), eo, valid

        return Loader(
            read, job.samples, self.read.per_object, phase.batch, phase.crop, job.scaling, job.train.seed,
            window=job.train.shuffle, origin=origin, threads=job.loaders, prefetch_mb=job.prefetch_mb,
            max_corrupt=job.train.max_corrupt, replaced=self.record.replaced, device=self.device,
        )  # fmt: skip

    def _beat(self) -> None:
        self.dog.beat()
        if self.writer is not None:
            self.writer.check()

    def _log(self, line: dict[str, Any]) -> None:
        line["time"] = now()
        self._union()
        line["replaced"] = len(self.record.replaced)
        if self.rank == 0:
            terms = [f"{k} {v:.3f}" for k, v in losses(line).items()]
            shares = f"busy {line['busy']:.0%}, loader {line['wait']:.0%}"
            note = "  ".join([f"{line['samples_per_s']:.1f} samples/s", shares, *terms[:3]])
            self.board.post.remote(self.record.step, note, self.record.events, dict(self.record.replaced), dict(line))

    def _pause(self, regular: bool) -> None:
        """A checkpoint; where it is a regular one, a validation before it."""
        self.dog.at_rest()
        record, job = self.record, self.job
        self._union()
        grid = b""
        if regular and job.held:
            rows: dict[int, Any] = measure(self.kept, self.held, self.device, self.rank, self.world)
            for some in self._gathered(rows):
                rows |= some
            if self.rank == 0:
                if not record.baselines:
                    record.baselines = baselines(self.held, job.samples.tolist())  # type: ignore[assignment]
                grid, peak = journal.look(self.kept, self.held, self.device)
                record.validations.append({"step": record.step, **mean(rows), "peak": peak})
                watched(record)
        if self.writer is not None:
            best = record.best()
            data = checkpoint.encode(state(self.trainer, self.average, record))
            tree, step, grids = self._describe(""), record.step, self._grids(grid)
            keep = [best["step"]] if best else []
            self.writer.put(step, data, keep, lambda: journal.publish(job.journal, tree, grids, step))
            self.board.post.remote(record.step, "", record.events, dict(record.replaced))
        self.dog.beat()

    def _urgent(self) -> bool:
        """Whether Ray says that a machine of this group will soon be taken away; once for each notice."""
        due = torch.tensor(float(time.monotonic() - self._asked > ASK_S), device=self.device)
        if self.world > 1:  # all ask, or none: asking is a barrier
            torch.distributed.broadcast(due, 0)
        if not due:
            return False
        self._asked = time.monotonic()
        notice = ray.train.get_preemption_info()
        nodes = ",".join(notice.preempted_node_ids) if notice else ""
        if not nodes or nodes == self._preempted:
            return False
        self._preempted = nodes
        self._tell("preempted", f"a machine will be taken away (node {nodes}): checkpoint of step {self.record.step}")
        return True

    def _finish(self) -> None:
        """Publish the bundle; post what the driver's ledger wants to know."""
        job, record = self.job, self.record
        # what a newer one overtook while the store was down is not there
        best = record.best({*checkpoint.steps(job.checkpoints), record.step})
        chosen = best["step"] if job.stage.select == "best" and best else record.step
        if chosen != record.step:
            where = checkpoint.path(job.checkpoints, chosen)
            restore(checkpoint.decode(storage.read_bytes(where), where), self.trainer, self.average, where)
        measured = next((v for v in record.validations if v["step"] == chosen), {})
        metrics = {
            f"held_out_{k}": v for k, v in measured.items() if v is not None and k in ("mae", "rmse", "psnr", "ssim")
        }
        artifacts = bundle.save(job.out, self.kept, dataclasses.replace(job.info(), step=chosen, metrics=metrics))
        tree = self._describe(now()) | {"bundle": "/".join(job.out.split("/")[-3:]), "selected_step": chosen}
        journal.publish(job.journal, tree, self.grids, record.step)
        counts = {f"{job.role} steps": record.step, f"{job.role} samples replaced": len(record.replaced),
                  f"{job.role} steps skipped": record.skipped}  # fmt: skip
        ray.get(self.board.finish.remote((artifacts, counts, record.seconds)))

    def _grids(self, grid: bytes) -> dict[int, bytes]:
        """The newest sample grids by step, with this step's."""
        if not self.grids:
            self.grids = journal.grids(self.job.journal, self.record.step)
        if grid:
            self.grids[self.record.step] = grid
        self.grids = dict(sorted(self.grids.items())[-journal.KEPT :])
        return dict(self.grids)

    def _describe(self, ended: str) -> dict[str, Any]:
        job = self.job
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        facts = {
            "role": job.role, "model": job.model, "options": translator(job.model).complete(job.stage.options),
            "scaling": job.scaling.model_dump(), "bundle": "", "selected": job.stage.select,
            "selected_step": self.record.step, "pairs": len(job.samples), "validation_pairs": len(job.held),
            "batch": job.plan[-1].batch, "workers": self.world, "threads": job.train.threads, "device": name,
            "precision": job.speed.precision, "versions": job.versions, "columns": journal.columns(job.role),
        }  # fmt: skip
        return journal.describe(facts, job.plan, self.record, job.cost, ended)

    def _tell(self, event: str, text: str) -> None:
        self.record.tell(event, text)
        if self.rank == 0:
            self.board.post.remote(self.record.step, "", self.record.events, dict(self.record.replaced))

    def _unwritten(self, text: str) -> None:
        self._tell(
            "checkpoint_failed", f"{text}; training goes on for {self.job.train.outage_s:.0f} s (train.outage_s)"
        )

    def _hangs(self, text: str) -> None:
        """Said at once, by any rank: this process ends, and what it has not written is lost."""
        event = {
            "step": self.record.step,
            "event": "hang",
            "text": f"rank {self.rank} on {socket.gethostname()}: {text}",
        }
        ray.get(self.board.tell.remote(event), timeout=10)

    def _same_versions(self) -> None:
        own = versions()
        if odd := [f"{k} {own[k]}, the driver has {v}" for k, v in self.job.versions.items() if own[k] != v]:
            raise ConfigError(f"worker on {socket.gethostname()}: {'; '.join(odd)}: use one image on all nodes")

    def _mean(self, x: Tensor) -> Tensor:
        torch.distributed.all_reduce(x)
        return x.div_(self.world)

    def _gathered(self, value: Any) -> list[Any]:
        every: list[Any] = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(every, value)
        return every

    def _union(self) -> None:
        """What any rank replaced, to all of them: the bound is on all."""
        for some in self._gathered(dict(self.record.replaced)):
            self.record.replaced.update(some)
