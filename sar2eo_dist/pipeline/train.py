"""train: the translator (SAR -> EO), then the enhancer on its output, each with Ray Train, from shards to a bundle.

Training is one unit of work a network. Its checkpoints hold weights, optimisers, step and history; everything else is a
pure function of the step, so a killed run goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from sar2eo_dist import __version__, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle, translator
from sar2eo_dist.models import speed as speeds
from sar2eo_dist.pipeline import cluster
from sar2eo_dist.pipeline.actors import exact
from sar2eo_dist.pipeline.progress import Board, Watch
from sar2eo_dist.pipeline.shard import present
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, now, read_summary, run_stage, write_summary
from sar2eo_dist.reader import PairReader, ranks
from sar2eo_dist.records import PATCH, S1_BANDS, S2_BANDS, Unit
from sar2eo_dist.sections import Scaling, Speed, Stage
from sar2eo_dist.training import checkpoint as checkpoints
from sar2eo_dist.training.enhance import Translated
from sar2eo_dist.training.fit import fit, seed
from sar2eo_dist.training.loader import Loader, State

STAGE = "train"
ROLES = ("translate", "enhance")
CHANNELS = 3  # of the scaled SAR (VV, VH, third) and of the EO (B4, B3, B2)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What one network is trained on and how; goes to every worker."""

    role: str
    model: str
    stage: Stage
    scaling: Scaling
    speed: Speed
    seed: int
    threads: int
    shuffle: int
    max_corrupt: int
    loaders: int
    prefetch_mb: int
    store: str
    samples: npt.NDArray[np.int64]  # training samples: their places in the store
    translator: str  # URI of the translator's bundle, for the enhancer


def train(cfg: Config, opts: Options) -> Summary:
    """Run the verb. Raises ConfigError where the training fold is empty or an option of a network is wrong."""
    sharded = read_summary(cfg, "shard")
    root = storage.absolute(cfg.run.out)
    store = storage.join(root, sharded["outputs"]["store"])
    samples = present(sharded, ranks(store, "train"))
    if not len(samples):
        raise ConfigError("no pair is in the training fold: change split.cell_degrees, split.val or split.seed")
    fingerprint, inputs = cfg.fingerprint(STAGE), str(sharded["digest"])
    plan: dict[str, tuple[Unit, Job]] = {}
    before = ""
    for role, model, stage in _roles(cfg):
        translator(model).complete(stage.options)  # what is wrong stops here, before anything starts
        if stage.crop > PATCH:
            raise ConfigError(f"train.{role}.crop {stage.crop} is larger than a patch of {PATCH} pixels")
        if stage.batch % cfg.resources.workers:
            raise ConfigError(
                f"train.{role}.batch {stage.batch} is no multiple of resources.workers {cfg.resources.workers}"
            )
        unit = Unit(STAGE, role, fingerprint, inputs + before)
        job = Job(
            role, model, stage, cfg.scaling, cfg.speed, cfg.train.seed, cfg.train.threads, cfg.train.shuffle,
            cfg.train.max_corrupt, cfg.resources.loaders or (16 if "://" in store else 2), cfg.resources.prefetch_mb, store,
            samples, before and folder(root, before),
        )  # fmt: skip
        plan[unit.id] = (unit, job)
        before = unit.id

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        for unit in todo:
            job = plan[unit.id][1]
            if opts.fresh and attempt == 1:
                storage.delete(storage.join(root, STAGE, "checkpoints", unit.id))
            try:
                yield _train(cfg, root, unit, job, sharded, attempt)
            except ray.train.TrainingFailedError as e:
                yield Failure(unit.id, _cause(e))
                return  # the enhancer needs the translator

    units = [u for u, _ in plan.values()]
    summary = run_stage(cfg, opts, STAGE, units, execute, "")
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"training pairs": len(samples)})
    lost = {q["unit"] for q in summary.quarantined}
    outputs = {u.key: folder("", u.id).lstrip("/") for u in units[: summary.planned] if u.id not in lost}
    for role in ROLES:  # the curves of these networks, whichever were trained last
        history = storage.join(root, STAGE, role, "history.jsonl")
        if role in outputs:
            storage.put(history, storage.read_bytes(storage.join(root, outputs[role], "history.jsonl")))
        else:
            storage.delete(history)
    counts = {"training pairs": len(samples)} | {
        k: n for k, n in summary.counts.items() if n and k.endswith("replaced")
    }
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=counts))


def folder(root: str, unit_id: str) -> str:
    """Where a unit's bundle lies."""
    return f"{root}/{STAGE}/bundles/{unit_id[:12]}"


def _roles(cfg: Config) -> list[tuple[str, str, Stage]]:
    roles = [
        ("translate", cfg.train.translator, cfg.train.translate),
        ("enhance", cfg.train.enhancer, cfg.train.enhance),
    ]
    return [r for r in roles if r[1]]


def _cause(e: BaseException) -> str:
    """The worker's own error, first line, in front of Ray's wrapping."""
    errors = getattr(e, "worker_failures", None) or {}
    first = next(iter(errors.values()), e)
    cause = getattr(first, "cause", None) or first
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else ''}"


def _train(cfg: Config, root: str, unit: Unit, job: Job, sharded: dict[str, Any], attempt: int) -> Entry:
    """Train one network to its last step and publish its bundle and history."""
    begin = time.time()
    cpus, gpus = cluster.capacity(cfg)
    workers = cfg.resources.workers
    if workers > (gpus if gpus >= 1 else cpus):
        has = f"{gpus:g} GPUs" if gpus >= 1 else f"{cpus:g} CPUs"
        raise ConfigError(f"resources.workers {workers}: the cluster has {has}, the job would wait for ever")
    again = cfg.run.max_attempts - 1
    board = Board.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    fs, path = storage.filesystem(storage.join(root, STAGE, "checkpoints"))
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus >= 1,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpus >= 1 else {}),
        ),
        run_config=RunConfig(
            name=unit.id,
            storage_path=path,
            storage_filesystem=PyFileSystem(FSSpecHandler(fs)) if "://" in root else None,
            failure_config=FailureConfig(max_failures=again, controller_failure_limit=again),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with Watch(board, f"train {job.role}", job.stage.steps):
        result = trainer.fit()
    with result.checkpoint.as_directory() as local:
        net = translator(job.model).build(job.stage.options, CHANNELS, CHANNELS)
        final = translator(job.model).Trainer(net, job.stage.options, job.stage.lr, job.stage.steps)
        checkpoints.load(local, final)
        history = checkpoints.read_meta(local)["history"]
    lines = "".join(json.dumps(line, sort_keys=True) + "\n" for line in history)
    info = bundle.BundleInfo(
        role=job.role,
        model=job.model,
        options=translator(job.model).complete(job.stage.options),
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        scaling=job.scaling.model_dump(),
        units="db",
        quantity="sigma0",
        sar_bands=S1_BANDS,
        eo_bands=S2_BANDS,
        data=str(sharded["digest"]),
        code=f"sar2eo_dist {__version__}",
        step=job.stage.steps,
    )
    outputs = bundle.save(folder(root, unit.id), net, info)
    relative = folder("", unit.id).lstrip("/")
    outputs = [dataclasses.replace(a, path=storage.join(relative, storage.name(a.path))) for a in outputs]
    storage.put(storage.join(folder(root, unit.id), "history.jsonl"), lines.encode())
    counts = {f"{job.role} steps": job.stage.steps, f"{job.role} samples replaced": history[-1]["replaced"]}
    return Entry(unit, tuple(outputs), time.time() - begin, int(sharded["bytes_out"]), attempt, counts)


def _loop(config: dict[str, Any]) -> None:
    """One worker of the training: runs in every process of the group."""
    job: Job = config["job"]
    context, device = ray.train.get_context(), get_device()
    rank, world = context.get_world_rank(), context.get_world_size()
    exact(device.type, job.threads)
    seed(job.seed, -1)
    net = translator(job.model).build(job.stage.options, CHANNELS, CHANNELS).to(device)
    trainer = translator(job.model).Trainer(net, job.stage.options, job.stage.lr, job.stage.steps)
    trainer.accelerate(**job.speed.model_dump())
    start, origin, replaced = 0, State(), {}
    history: list[dict[str, Any]] = []
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as local:
            start = checkpoints.load(local, trainer)
            meta = checkpoints.read_meta(local)
            history, origin = meta["history"], State(**meta["state"])
            replaced = {int(sample): reason for sample, reason in meta["replaced"].items()}
    if world > 1:
        trainer.wrap(torch.nn.parallel.DistributedDataParallel)
    transform = None
    if job.translator:
        translate = speeds.apply(bundle.load(job.translator, str(device))[0], job.speed.precision, job.speed.compile)
        transform = Translated(translate, str(device))
    read = PairReader(job.store)
    loader = Loader(
        read, job.samples, per_object=read.per_object, batch=job.stage.batch, crop=job.stage.crop, scaling=job.scaling,
        seed=job.seed, window=job.shuffle, origin=origin, transform=transform, threads=job.loaders,
        prefetch_mb=job.prefetch_mb, max_corrupt=job.max_corrupt, replaced=replaced, device=device,
    )  # fmt: skip
    clock = {"at": time.monotonic(), "step": start}

    def on_log(step: int, losses: dict[str, float]) -> None:
        mean = _mean_over_ranks(losses, world, device)
        _union(loader.replaced, world)
        seconds = time.monotonic() - clock["at"]
        speed = (step - clock["step"]) * job.stage.batch / max(seconds, 1e-9)
        clock.update(at=time.monotonic(), step=step)
        line = {"step": step, "time": now(), "samples_per_s": round(speed, 2), "replaced": len(loader.replaced)}
        history.append(line | mean)
        if rank == 0:
            config["board"].tell.remote(dict(loader.replaced))
            note = "  ".join(f"{k} {v:.3f}" for k, v in list(mean.items())[:3])
            note += f"  {len(loader.replaced)} unreadable samples replaced" if loader.replaced else ""
            config["board"].post.remote(step, f"{speed:.1f} samples/s  {note}")

    def on_checkpoint(step: int) -> None:
        _union(loader.replaced, world)
        if rank:
            ray.train.report({"step": step})
            return
        with tempfile.TemporaryDirectory() as local:
            meta = {"history": history, "state": asdict(loader.state(step)), "replaced": loader.replaced}
            checkpoints.save(local, trainer, step, meta)
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(local))

    every = job.stage.log_every, job.stage.checkpoint_every
    fit(trainer, loader, start, job.stage.steps, every[0], on_log, every[1], on_checkpoint, rank, world)


def _union(replaced: dict[int, str], world: int) -> None:
    """What any rank replaced, to all of them: the bound is on all."""
    if world > 1:
        every: list[dict[int, str]] = [{}] * world
        torch.distributed.all_gather_object(every, dict(replaced))
        for some in every:
            replaced |= some


def _mean_over_ranks(losses: dict[str, float], world: int, device: torch.device) -> dict[str, float]:
    if world == 1:
        return losses
    values = torch.tensor(
        list(losses.values()), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
    )
    torch.distributed.all_reduce(values)
    return {k: float(v) / world for k, v in zip(losses, values, strict=True)}
