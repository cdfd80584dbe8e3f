"""The training loop: no state of its own, so that it can stop after any step and go on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from sar2eo_dist.training.loader import Loader

if TYPE_CHECKING:
    from sar2eo_dist.models import Trainer


def fit(
    trainer: Trainer,
    loader: Loader,
    start: int,
    stop: int,
    log_every: int,
    on_log: Callable[[int, dict[str, float]], None],
    checkpoint_every: int,
    on_checkpoint: Callable[[int], None],
    rank: int = 0,
    world: int = 1,
) -> None:
    """Steps [start, stop) of a training. `done` below is the number of steps done since step 0.

    on_log(done, losses): when done is a multiple of log_every and at the end; the losses' means over this rank's steps
    since the last log (in this call: with checkpoint_every a multiple of log_every, a resumed curve equals an
    undisturbed one). Averages over ranks are the caller's. on_checkpoint(done): when done is a multiple of
    checkpoint_every and at the end, after on_log. Torch's generator is seeded from (loader.seed, step) before every
    step, so no generator state need be kept. Errors of the loader and ModelError of the trainer pass through.
    """
    device = next(next(iter(trainer.networks.values())).parameters()).device
    since: list[dict[str, float]] = []
    for step, batch in zip(range(start, stop), loader.batches(start, stop, rank, world), strict=True):
        seed(loader.seed, step)
        source, target, valid = (part.to(device, non_blocking=True) for part in batch)
        since.append(trainer.step(step, source, target, valid))
        done = step + 1
        if done % log_every == 0 or done == stop:
            on_log(done, {name: float(np.mean([losses[name] for losses in since])) for name in since[0]})
            since.clear()
        if done % checkpoint_every == 0 or done == stop:
            on_checkpoint(done)


def seed(run: int, step: int) -> None:
    """Seed torch from the run's seed (>= 0) and a step (-1: before the networks are made)."""
    torch.manual_seed(int(np.random.SeedSequence([run, step + 1]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
