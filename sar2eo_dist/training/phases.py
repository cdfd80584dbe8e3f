"""A training as phases, each with patches and batches of its own, over one sequence of samples without a gap."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.training.loader import Batch, Loader, State


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps [start, stop) with square patches of `crop` pixels and a global batch of `batch`."""

    start: int
    stop: int
    crop: int
    batch: int


def phases(steps: int, lengths: Sequence[float], crops: Sequence[int], batches: Sequence[int]) -> tuple[Phase, ...]:
    """`steps` cut in the proportion of `lengths`. Raises ConfigError where a phase is left without a step."""
    whole, ends, done = sum(lengths), [0], 0.0
    for length in lengths:
        done += length
        ends.append(round(steps * done / whole))
    if any(a == b for a, b in itertools.pairwise(ends)):
        raise ConfigError(
            f"{steps} steps in {len(lengths)} phases of relative lengths {list(lengths)}: one has no step"
        )
    parts = zip(itertools.pairwise(ends), crops, batches, strict=True)
    return tuple(Phase(start, stop, crop, batch) for (start, stop), crop, batch in parts)


def origin(plan: Sequence[Phase], step: int, n: int) -> State:
    """Where step `step` begins in the sequence of `n` samples: what phases before it have used."""
    position = sum((min(step, p.stop) - p.start) * p.batch for p in plan if p.start < step)
    return State(*divmod(position, n), step)


def batches(
    plan: Sequence[Phase], make: Callable[[Phase, State], Loader], n: int, start: int, rank: int, world: int
) -> Generator[tuple[int, Phase, Loader, Batch], None, None]:
    """(step, its phase, its loader, this rank's part of its batch) from `start` to the end of the plan."""
    for phase in plan:
        if start < phase.stop:
            first = max(start, phase.start)
            loader = make(phase, origin(plan, phase.start, n))
            with closing(loader.batches(first, phase.stop, rank, world)) as parts:
                for step, batch in zip(range(first, phase.stop), parts, strict=True):
                    yield step, phase, loader, batch


def coarser(batch: Batch, scale: int) -> Batch:
    """The batch on pixels `scale` times as large: means; valid where every pixel was. Sides must be multiples of it."""
    if scale == 1:
        return batch
    source, target, valid = batch
    return _mean(source, scale), _mean(target, scale), _mean(valid.to(torch.float32), scale) == 1


def _mean(image: Tensor, scale: int) -> Tensor:
    return functional.avg_pool2d(image, scale)
