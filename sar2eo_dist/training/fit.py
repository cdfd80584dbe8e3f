"""The training loop. What it keeps besides networks is a plain `Record`, so it can stop after any step and go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sar2eo_dist.errors import ModelError, NonFinite
from sar2eo_dist.training.loader import Loader, State, share
from sar2eo_dist.training.phases import Phase, batches, coarser

if TYPE_CHECKING:
    from sar2eo_dist.models import Trainer

SICK = 3  # lines of the log in a row that show a symptom before it is an event


@dataclass(slots=True)
class Record:
    """What a checkpoint keeps besides weights and optimisers; JSON values alone.

    step: steps done. since: losses of each step since the last line of `history`. validations: {"step", metrics, "peak"} of
    each; baselines: metrics by predictor; both from evaluation.validation. events: as `tell` keeps them. replaced: sample ->
    why it could not be read. sick: symptom -> lines of the log in a row. seconds: spent.
    """

    step: int = 0
    since: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    replaced: dict[int, str] = field(default_factory=dict)
    sick: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.0
    attempts: int = 0
    started: str = ""

    def tell(self, event: str, text: str) -> None:
        """Keep a named event of the step that is being done."""
        self.events.append({"step": self.step, "event": event, "text": text})

    def best(self, steps: Container[int] | None = None) -> dict[str, Any] | None:
        """The validation of the smallest MAE, the first of equals; of these steps alone, where some are given."""
        known = [v for v in self.validations if v["mae"] is not None and (steps is None or v["step"] in steps)]
        return min(known, key=lambda v: v["mae"]) if known else None

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Record:
        """The inverse of `dataclasses.asdict` and JSON."""
        return cls(**{**tree, "replaced": {int(k): v for k, v in tree["replaced"].items()}})


class Average:
    """Moving average of a network's weights: average = decay * average + (1 - decay) * weights after every step."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        mean = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.model = AveragedModel(net, multi_avg_fn=mean, use_buffers=True)

    def update(self, net: nn.Module) -> None:
        self.model.update_parameters(net)

    @property
    def net(self) -> nn.Module:
        """The network with averaged weights."""
        return self.model.module


@dataclass(slots=True)
class Clock:
    """Where the time goes, between two lines of the log; seconds."""

    begin: float = field(default_factory=time.monotonic)
    wait: float = 0.0
    busy: float = 0.0
    samples: int = 0

    def shares(self) -> dict[str, float]:
        """samples_per_s; wait: share of the time in which the loader was waited for; busy: that of the steps themselves."""
        whole = max(time.monotonic() - self.begin, 1e-9)
        return {
            "samples_per_s": round(self.samples / whole, 2),
            "wait": round(self.wait / whole, 4),
            "busy": round(self.busy / whole, 4),
        }


@dataclass(frozen=True, slots=True)
class Course:
    """What is trained on, and when what happens. n: training samples; make: the loader of a phase, from an origin on."""

    plan: Sequence[Phase]
    make: Callable[[Phase, State], Loader]
    n: int
    seed: int
    scale: int = 1
    log_every: int = 20
    checkpoint_every: int = 1000
    max_skipped: int = 10


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a caller does on the way; every rank calls each of them at the same steps.

    beat(): a step was done. log(line): one line of the history is complete, to be completed in place. pause(regular): a
    checkpoint is due; regular: also a validation. urgent(): whether one is due at once (the machine will be taken away).
    """

    beat: Callable[[], None]
    log: Callable[[dict[str, Any]], None]
    pause: Callable[[bool], None]
    urgent: Callable[[], bool]


def fit(
    trainer: Trainer,
    course: Course,
    record: Record,
    hooks: Hooks,
    average: Average | None = None,
    net: nn.Module | None = None,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Train from record.step to the end of the course; `record` is kept up to date in place.

    net: of which `average` is the moving average. Torch's generator is seeded from (seed, step) before every step, so no
    generator state need be kept. A step whose loss or gradient is not finite is skipped, on every rank at once; more of
    them than course.max_skipped raise ModelError. Errors of the loader pass through.
    """
    device = next(next(iter(trainer.networks.values())).parameters()).device
    clock, stop, last = Clock(), course.plan[-1].stop, time.monotonic()
    with closing(batches(course.plan, course.make, course.n, record.step, rank, world)) as coming:
        while record.step < stop:
            asked = time.monotonic()
            step, phase, loader, batch = next(coming)
            clock.wait += time.monotonic() - asked
            source, target, valid = coarser(tuple(p.to(device, non_blocking=True) for p in batch), course.scale)  # type: ignore[arg-type]
            seed(course.seed, step)
            began = time.monotonic()
            record.step = step + 1
            try:
                own = len(share(phase.batch, rank, world))
                record.since.append(trainer.step(step, source, target, valid, own * world / phase.batch))
                if average is not None and net is not None:
                    average.update(net)
            except NonFinite as e:
                _skipped(record, course, e, loader.samples(step))
            now = time.monotonic()
            clock.busy += now - began
            clock.samples += phase.batch
            record.seconds, last = record.seconds + now - last, now
            hooks.beat()
            if record.step % course.log_every == 0 or record.step == stop:
                line = {
                    "step": record.step,
                    **clock.shares(),
                    "lr": trainer.learning_rate(step),
                    "skipped": record.skipped,
                }
                means = {name: float(np.mean([s[name] for s in record.since])) for name in (record.since or [{}])[0]}
                record.since.clear()
                record.history.append(line | means)
                _symptoms(record, trainer.symptoms(means) if means else {})
                hooks.log(record.history[-1])
                clock = Clock()
            regular = record.step % course.checkpoint_every == 0 or record.step == stop
            if regular or hooks.urgent():
                hooks.pause(regular)
                now = time.monotonic()
                clock.begin += now - last
                record.seconds, last = record.seconds + now - last, now


def _skipped(record: Record, course: Course, e: NonFinite, samples: list[int]) -> None:
    record.skipped += 1
    shown = ", ".join(map(str, samples[:16])) + (" ..." if len(samples) > 16 else "")
    record.tell("non_finite", f"{e}; the step was skipped; its samples in the store: {shown}")
    if record.skipped > course.max_skipped:
        raise ModelError(
            f"{record.skipped} steps were skipped, train.max_skipped allows {course.max_skipped}: training diverged or its "
            f"input is wrong; try a lower lr, or precision float32. The last: {record.events[-1]['text']}"
        )


def _symptoms(record: Record, found: dict[str, str]) -> None:
    record.sick = {name: record.sick.get(name, 0) + 1 for name in found}
    for name, text in found.items():
        if record.sick[name] == SICK:
            record.tell(name, text)


def watched(record: Record) -> None:
    """Events that the last validation shows: blobs (METHOD: light or dark spots that never heal) and overfitting."""
    every = record.validations
    peaks = [v["peak"] for v in every[:-1] if v["peak"] is not None]
    peak = every[-1]["peak"]
    if len(peaks) >= 3 and peak is not None and peak > max(3 * float(np.median(peaks)), 10.0):
        usual = float(np.median(peaks))
        text = f"the largest activation is {peak:.1f} times its layer's root mean square, it used to be {usual:.1f}: "
        record.tell("blob", text + "look at the samples; go back to an earlier checkpoint, or lower lr")
    best = record.best()
    if best is None or every[-1]["mae"] is None:
        return
    since = [v for v in every if v["step"] > best["step"]]
    if len(since) == 5 and all((v["mae"] or math.inf) > 1.02 * best["mae"] for v in since):
        text = f"held-out MAE was best at step {best['step']} ({best['mae']:.4f}) and is {every[-1]['mae']:.4f} now"
        record.tell("overfit", f"{text}: fewer steps, more pairs, or select: best")


def state(trainer: Trainer, average: Average | None, record: Record) -> dict[str, Any]:
    """All that a training goes on from, for checkpoint.encode."""
    tree = {"step": record.step, "trainer": trainer.state_dict(), "record": asdict(record)}
    return tree | ({"average": average.model.state_dict()} if average is not None else {})


def restore(tree: dict[str, Any], trainer: Trainer, average: Average | None, where: str) -> Record:
    """The inverse of `state`. Raises ModelError: the state of another trainer."""
    try:
        trainer.load_state_dict(tree["trainer"])
        if average is not None:
            average.model.load_state_dict(tree["average"])
        return Record.of(tree["record"])
    except (KeyError, TypeError, RuntimeError, AttributeError) as e:
        raise ModelError(f"checkpoint of another training ({type(e).__name__}: {e}): {where}") from e
    except ModelError as e:
        raise ModelError(f"{e}: {where}") from e


def seed(run: int, step: int) -> None:
    """Seed torch from the run's seed (>= 0) and a step (-1: before the networks are made)."""
    torch.manual_seed(int(np.random.SeedSequence([run, step + 1]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
