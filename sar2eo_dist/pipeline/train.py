"""train: the translator (SAR -> EO), then the enhancer on its output, each with Ray Train, from shards to a bundle.

Training is one unit of work a network. Its checkpoints hold all that it goes on from; everything else is a pure function
of the step, so a killed run goes on from its last checkpoint as if nothing had happened. The worker is in `learner`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import PlacementGroupID
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sar2eo_dist import shards, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle, translator
from sar2eo_dist.pipeline import cluster, pairset
from sar2eo_dist.pipeline.learner import learn
from sar2eo_dist.pipeline.progress import Board, Watch
from sar2eo_dist.pipeline.shard import present, spread
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage, write_summary
from sar2eo_dist.pipeline.training_job import CHANNELS, Job, compatible, versions
from sar2eo_dist.reader import ranks
from sar2eo_dist.records import PATCH, Unit, digest
from sar2eo_dist.report import training as page
from sar2eo_dist.sections_training import Stage
from sar2eo_dist.training.phases import Phase, phases

STAGE = "train"
ROLES = ("coarse", "translate", "enhance")
PAUSE_S, MOST_S = 10.0, 60.0  # before the second attempt, twice as long before each further one: a node may come back
#: of a network's own part of the config: what changes no weight
NEUTRAL = {"log_every", "checkpoint_every"}


def plan(cfg: Config, root: str, sharded: dict[str, Any]) -> dict[str, tuple[Unit, Job]]:
    """The networks to train, in turn, by their units' ids. Raises ConfigError or ModelError: all that can be wrong before."""
    store = storage.join(root, sharded["outputs"]["store"])
    check_store(store)
    samples, held = (present(sharded, ranks(store, fold)) for fold in ("train", "val"))
    if not len(samples):
        raise ConfigError("no pair is in the training fold: change split.cell_degrees, split.val or split.seed")
    if cfg.train.validation and not len(held):
        raise ConfigError(
            f"no pair is held out to validate on (fold val; split.val {cfg.split.val:g}, split.cell_degrees "
            f"{cfg.split.cell_degrees:g}): change them, or train without with train.validation=0"
        )
    common, data = cfg.fingerprint(STAGE), str(sharded["digest"])
    planned: dict[str, tuple[Unit, Job]] = {}
    before = ""
    for role, model, stage in _roles(cfg):
        parts = check_stage(cfg, role, model, stage)
        given = storage.absolute(stage.start)
        start = given or (folder(root, before) if role == "translate" and before else "")
        part = {k: v for k, v in stage.model_dump(mode="json").items() if k not in NEUTRAL}
        chosen = (stage.checkpoint_every, cfg.train.validation) if stage.select == "best" else ()
        mark = bundle.digest(bundle.read(given)) if given else ""
        unit = Unit(STAGE, role, digest(common, model, part, chosen), digest(data, before, mark))
        job = Job(
            role, model, stage, cfg.train, parts, cfg.scaling, cfg.speed, cfg.cost,
            cfg.resources.loaders or (16 if "://" in store else 2), cfg.resources.prefetch_mb, store, "", start, samples,
            tuple(spread(held, cfg.train.validation)), data, f"{root}/{STAGE}/checkpoints/{unit.id[:12]}",
            f"{root}/{journal(unit)}", folder(root, unit.id), versions(),
        )  # fmt: skip
        if given:
            compatible(bundle.start(translator(model).build(stage.options, CHANNELS, CHANNELS), given), job)
        elif start:
            with torch.device("meta"):  # keys and shapes alone
                both = (stage.options, cfg.train.coarse.options if cfg.train.coarse else {})
                fine, coarse = (translator(model).build(options, CHANNELS, CHANNELS) for options in both)
            bundle.inherit(fine, coarse.state_dict(), "train.coarse")
        planned[unit.id] = unit, job
        before = unit.id
    return planned


def train(cfg: Config, opts: Options) -> Summary:
    """Run the verb. Raises ConfigError where a fold is empty, or an option of a network or the store is wrong."""
    sharded = read_summary(cfg, "shard")
    root = storage.absolute(cfg.run.out)
    planned = plan(cfg, root, sharded)

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        for unit in todo:
            job = planned[unit.id][1]
            earlier = [j for _, j in planned.values()][: list(planned).index(unit.id)]
            # not there where that network's own attempt has crashed
            if earlier and not storage.exists(storage.join(earlier[-1].out, "bundle.json")):
                yield Failure(unit.id, f"the {earlier[-1].role} network, from which it goes on, is not trained yet")
                return
            if opts.fresh and attempt == 1:
                storage.delete(job.checkpoints)
            if job.role == "enhance":
                job = _with_images(cfg, opts, root, job, earlier[-1].out)
            if attempt > 1:
                time.sleep(min(PAUSE_S * 2 ** (attempt - 2), MOST_S))
            try:
                yield _train(cfg, root, unit, job, int(sharded["bytes_out"]), attempt)
            except ray.train.TrainingFailedError as e:
                yield Failure(unit.id, _cause(e))
                return  # the enhancer needs the translator

    first = next(iter(planned.values()))[1]
    pairs = {"training pairs": len(first.samples), "held-out pairs": len(first.held)}
    every = [u for u, _ in planned.values()]
    try:
        summary = run_stage(cfg, opts, STAGE, every, execute, "")
    except Sar2EoError:
        if not opts.dry_run:
            _page(root, every)
        raise
    if opts.dry_run:
        return dataclasses.replace(summary, counts=pairs)
    lost = {q["unit"] for q in summary.quarantined}
    done = [u for u in every[: summary.planned] if u.id not in lost]
    outputs = {u.key: folder("", u.id).lstrip("/") for u in done} | {f"{u.key} journal": journal(u) for u in done}
    for role in ROLES:  # the curves of these networks, whichever were trained last
        history = storage.join(root, STAGE, role, "history.jsonl")
        if role in outputs:
            storage.put(history, storage.read_bytes(storage.join(root, outputs[f"{role} journal"], "history.jsonl")))
        else:
            storage.delete(history)
    outputs |= _page(root, [u for u in every if u in done])
    counts = pairs | {k: n for k, n in summary.counts.items() if n and k.endswith(("replaced", "skipped"))}
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=counts))


def folder(root: str, unit_id: str) -> str:
    """Where a unit's bundle lies."""
    return f"{root}/{STAGE}/bundles/{unit_id[:12]}"


def journal(unit: Unit) -> str:
    """Where a unit's record, curves and pictures lie, below the run folder."""
    return f"{STAGE}/{unit.key}-{unit.id[:12]}"


def check_store(store: str) -> None:
    """Raises ConfigError where a pair store's bands, steps or patches are not those that training reads."""
    group = shards.open_store(store)
    for wanted in shards.pair_arrays(1, 1):
        found = group.get(wanted.name)
        have = dict(found.attrs) if found is not None else {}
        odd = [f"{k} {have.get(k)!r} instead of {v!r}" for k, v in wanted.attributes.items() if have.get(k) != v]
        if found is None or found.shape[1:] != wanted.shape[1:] or found.dtype != wanted.dtype:
            odd.append(
                f"{found.shape if found is not None else 'nothing'} instead of (N, {wanted.shape[1:]}) {wanted.dtype}"
            )
        if odd:
            raise ConfigError(
                f"array {wanted.name!r} of these shards holds {'; '.join(odd)}: write them again: {store}"
            )


def check_stage(cfg: Config, role: str, model: str, stage: Stage) -> tuple[Phase, ...]:
    """The phases of a network's training. Raises ConfigError; what is wrong stops here, before anything starts."""
    translator(model).complete(stage.options)
    parts = stage.phases
    made = phases(
        stage.steps, [p.length for p in parts] or [1], [p.crop for p in parts] or [stage.crop],
        [p.batch for p in parts] or [stage.batch],
    )  # fmt: skip
    for phase in made:
        if phase.crop > PATCH or phase.crop % stage.scale:
            limit = f"at most a patch of {PATCH} pixels, and a multiple of scale {stage.scale}"
            raise ConfigError(f"train.{role}: crop {phase.crop} must be {limit}")
        if phase.batch < cfg.resources.workers:
            workers = f"resources.workers {cfg.resources.workers}"
            raise ConfigError(f"train.{role}: a batch of {phase.batch} leaves some of {workers} without a sample")
    return made


def _roles(cfg: Config) -> list[tuple[str, str, Stage]]:
    roles = [
        ("coarse", cfg.train.translator, cfg.train.coarse),
        ("translate", cfg.train.translator, cfg.train.translate),
        ("enhance", cfg.train.enhancer, cfg.train.enhance),
    ]
    return [(role, model, stage) for role, model, stage in roles if stage and model]


def _with_images(cfg: Config, opts: Options, root: str, job: Job, uri: str) -> Job:
    """The enhancer's job on the enhancement set, which is made first where it is not there yet."""
    images, lost = pairset.make(cfg, opts, root, uri)
    per = int(read_summary(cfg, "shard")["counts"]["pairs a shard"])
    samples = job.samples[~np.isin(job.samples // per, sorted(lost))]
    held = tuple(i for i in job.held if i // per not in lost)
    return dataclasses.replace(job, images=images, samples=samples, held=held)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ctrl-C, and a lease that is lost, end a training as they end every verb: with a KeyboardInterrupt.

    Ray would put a handler of its own in the place of Python's, and leave it there: after a training the next verb of the
    same job would not hear the first two Ctrl-C. What runs on the cluster ends with the driver.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def _page(root: str, units: Sequence[Unit]) -> dict[str, str]:
    """The summary page, as far as there is something to show."""
    there = [u for u in units if storage.exists(storage.join(root, journal(u), "record.json"))]
    return {"page": page.write(root, [storage.name(journal(u)) for u in there])} if there else {}


def _cause(e: BaseException) -> str:
    """The worker's own error, first line, in front of Ray's wrapping."""
    errors = getattr(e, "worker_failures", None) or {}
    first = next(iter(errors.values()), e)
    cause = getattr(first, "cause", None) or first
    if "No space left on device" in str(cause):
        node = re.search(r"\[Node ([\w.:]+)\]|\bip=([\w.:]+)", str(cause))
        where = f"of node {node[1] or node[2]}" if node else "of a node"
        return f"the disk {where} under Ray's folder (/tmp/ray) is full: make room there, then the same command goes on"
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else ''}"


def _release() -> None:
    """Remove the placement groups of this job: none is left by a training that ended well, and all its workers are in them.

    Where Ray (2.60) itself fails to shut a worker group down, as after one of its nodes ran out of memory, it forgets the
    group: its CPUs and GPUs would stay reserved for as long as this driver lives, and every further attempt wait for them.
    """
    job = ray.get_runtime_context().get_job_id()
    for name, told in placement_group_table().items():
        if name.endswith(job) and told["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def _train(cfg: Config, root: str, unit: Unit, job: Job, size: int, attempt: int) -> Entry:
    """Train one network to its last step; its rank 0 publishes the bundle. Raises what a worker says that stays."""
    begin = time.time()
    cpus, gpus = cluster.capacity(cfg)
    most = cfg.resources.workers
    least = cfg.resources.workers_min or most
    threads = 1 if gpus >= 1 else job.train.threads
    if least > (gpus if gpus >= 1 else cpus // threads):
        has = f"{gpus:g} GPUs" if gpus >= 1 else f"{cpus:g} CPUs for train.threads {threads} each"
        raise ConfigError(f"resources.workers {least}: the cluster has {has}, the job would wait for ever")
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # it lives as the driver does
    board = Board.options(num_cpus=0, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    where = storage.join(root, STAGE, "ray")
    fs, path = storage.filesystem(where)
    trainer = Trainer(
        learn,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=gpus >= 1,
            resources_per_worker={"CPU": threads} | ({"GPU": 1} if gpus >= 1 else {}),
        ),
        run_config=RunConfig(  # Ray keeps next to nothing there: checkpoints are our own
            name=unit.id,
            storage_path=path,
            storage_filesystem=PyFileSystem(FSSpecHandler(fs)) if "://" in root else None,
            failure_config=FailureConfig(
                max_failures=cfg.run.max_attempts - 1,
                controller_failure_limit=cfg.run.max_attempts - 1,
                max_preemption_failures=-1,  # a machine taken away is nobody's fault
            ),
        ),
    )
    try:
        with Watch(board, job.role, job.plan[-1].stop):
            trainer.fit()
    except ray.train.TrainingFailedError:
        if error := ray.get(board.failed.remote()):
            raise error from None
        raise
    else:
        error, result = ray.get(board.ended.remote())
        if error:
            raise error
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # of a cluster that is gone: what goes on above says so
            _release()
        ray.kill(board)
        with contextlib.suppress(Sar2EoError):
            storage.delete(where)
    artifacts, counts, seconds = result
    relative = folder("", unit.id).lstrip("/")
    outputs = tuple(dataclasses.replace(a, path=storage.join(relative, storage.name(a.path))) for a in artifacts)
    print(f"train {job.role}: {job.plan[-1].stop:,} steps in {seconds:,.0f} s of training", file=sys.stderr)
    return Entry(unit, outputs, time.time() - begin, size, attempt, counts)
