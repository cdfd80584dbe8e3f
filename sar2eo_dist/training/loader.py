"""Training batches as a pure function of (seed, step): any step can be asked for directly, so a resume needs no more.

Samples are numbered on without end: position p of the global sequence is sample order(epoch p // n)[p % n], and step s of
a global batch of b holds positions s b to s b + b - 1, whatever the number of workers. A `State` carries the place in this
sequence over to another batch or number of workers.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sar2eo_dist import radiometry
from sar2eo_dist.errors import ConfigError, Corrupt, NotFound
from sar2eo_dist.radiometry import ScalingLike
from sar2eo_dist.training import scaling as batched
from sar2eo_dist.training.slots import Cut, Slots

Raw = tuple[npt.NDArray[Any], npt.NDArray[np.uint16], npt.NDArray[np.bool_]]
Read = Callable[[int], Raw]
Batch = tuple[Tensor, Tensor, Tensor]
Ranks = npt.NDArray[np.int64]
A = TypeVar("A", Tensor, npt.NDArray[Any])
_Unread = list[tuple[int, Corrupt | NotFound]]  # samples that were met and could not be read


@dataclass(frozen=True, slots=True)
class State:
    """Before step `step`, `epoch` whole epochs and `samples_seen` samples of the next one have been trained on."""

    epoch: int = 0
    samples_seen: int = 0
    step: int = 0


def order(seed: int, epoch: int, samples: Ranks, per_object: int, window: int) -> Ranks:
    """The permutation of range(len(samples)) in which an epoch meets its samples.

    samples: their places in the store, ascending; sample r lies in shard object r // per_object. The objects are shuffled
    and taken `window` at a time, and the samples are shuffled within each window, so that a reader has few objects open.
    """
    objects = samples // per_object
    group = np.cumsum(np.diff(objects, prepend=objects[:1]) != 0)  # the objects that occur, numbered from 0
    rng = np.random.default_rng([seed, epoch])
    turn = rng.permutation(int(group[-1]) + 1) // window
    shuffled = rng.permutation(len(samples))
    # a stable sort keeps the shuffle within each window; of 16 bit numbers it takes one pass
    windows = turn.astype(np.min_scalar_type(int(turn.max())))[group[shuffled]]
    return shuffled[np.argsort(windows, kind="stable")]


def share(batch: int, rank: int, world: int) -> range:
    """The places of a global batch that a rank trains on; of as equal length as can be."""
    return range(batch * rank // world, batch * (rank + 1) // world)


class Loader:
    """Scaled, cropped, turned pairs.

    read(rank): one sample, square: sar (2, S, S) int16 of 0.01 dB, or an image (C, S, S) float32 in [-1, 1] that is taken as
    it is (an enhancer's source); eo (C, S, S) uint16 DN, valid (S, S) bool; called from `threads` threads at once. samples:
    places in the store, ascending, of what is trained on, `per_object` to a shard object. batch: global batch; crop: side of
    the random crop, pixels; scaling: the config's section. Per-image scaling sees the full patch, before the crop.
    window: shard objects shuffled together. origin: where steps are counted from (`state` of an earlier loader).

    threads and prefetch_mb (memory of batches made ahead: one at least, four a thread at most) change no result. device:
    where batches are scaled and delivered. On the CPU the threads scale; elsewhere they read alone, and training.scaling
    does the rest.

    A sample that `read` finds Corrupt or NotFound is replaced by one of another shard object, chosen by (seed, epoch, sample)
    alone, said on stderr and kept in `replaced` (sample -> reason; the caller's own dict, with what was met before a resume);
    other errors pass through, at the step where they happen. Raises ConfigError: no samples, numbers out of range, a crop
    larger than a patch; Corrupt: more than max_corrupt samples cannot be read.
    """

    def __init__(
        self,
        read: Read,
        samples: Sequence[int] | Ranks,
        per_object: int,
        batch: int,
        crop: int,
        scaling: ScalingLike,
        seed: int,
        *,
        window: int = 8,
        origin: State | None = None,
        threads: int = 2,
        prefetch_mb: int = 256,
        max_corrupt: int = 16,
        replaced: dict[int, str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._samples: Ranks = np.array(samples, np.int64)
        self.n, self._origin = len(self._samples), origin or State()
        if not self.n:
            raise ConfigError("there is nothing to train on: the training split holds 0 pairs")
        if self._samples[0] < 0 or (np.diff(self._samples) <= 0).any():
            raise ConfigError("the places of the training samples in the store must be ascending, from 0, each once")
        if min(batch, crop, per_object, window, threads) < 1 or seed < 0:
            numbers = f"batch {batch}, crop {crop}, per_object {per_object}, window {window} and threads {threads}"
            raise ConfigError(f"{numbers} must be >= 1, seed {seed} >= 0")
        if not (0 <= self._origin.samples_seen < self.n and self._origin.epoch >= 0):
            raise ConfigError(f"{self._origin} is not one of {self.n} training samples: was it another data set's?")
        self.batch, self.crop, self.seed, self._per_object = batch, crop, seed, per_object
        self.replaced = {} if replaced is None else replaced
        self._read, self._scaling, self._threads, self._max_corrupt = read, scaling, threads, max_corrupt
        self._prefetch, self._device = prefetch_mb << 20, torch.device(device)
        self._late = self._device.type != "cpu"  # whether batches are scaled whole, on the device
        plan = functools.partial(order, samples=self._samples, per_object=per_object, window=window)
        self._order = functools.lru_cache(maxsize=4)(functools.partial(plan, seed))

    def state(self, step: int) -> State:
        """Where a training stands before `step`: the `origin` from which another batch or world goes on."""
        epoch, seen = divmod(self._position(step), self.n)
        return State(epoch, seen, step)

    def at(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The part of step's global batch that a rank trains on.

        source (B, C, crop, crop), target (B, C', crop, crop) float32 in [-1, 1]; valid (B, 1, crop, crop) bool; B as
        `share` says. Raises ConfigError where there are more workers than samples in a batch.
        """
        planned = self._planned(step, rank, world)
        slots = Slots(len(planned), self._device.type == "cuda")
        for j, (epoch, sample) in enumerate(planned):
            self._report(*self._make(slots, j, epoch, sample))
        return self._finished(slots)

    def samples(self, step: int) -> list[int]:
        """Places in the store of the step's global batch (before any that cannot be read is replaced)."""
        return [sample for _, sample in self._planned(step, 0, 1)]

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Generator[Batch, None, None]:
        """`at(step, rank, world)` for the steps [start, stop), whose samples `threads` threads make ahead."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        waiting: deque[tuple[Slots, list[Future[list[tuple[_Unread, int | None]]]]]] = deque()
        coming, ahead = iter(range(start, stop)), 1

        def fill() -> None:
            while len(waiting) < ahead and (step := next(coming, None)) is not None:
                planned = self._planned(step, rank, world)
                slots = Slots(len(planned), self._device.type == "cuda")
                per = -(-len(planned) // (2 * self._threads))  # each hand-over between threads costs as much as a pass
                groups = [list(enumerate(planned))[at : at + per] for at in range(0, len(planned), per)]
                waiting.append((slots, [pool.submit(self._some, slots, group) for group in groups]))

        try:
            fill()
            while waiting:
                slots, made = waiting.popleft()
                for group in made:
                    for found in group.result():
                        self._report(*found)
                ahead = max(1, min(self._prefetch // slots.nbytes, 4 * self._threads))
                fill()
                yield self._finished(slots)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _position(self, step: int) -> int:
        if step < self._origin.step:
            raise ConfigError(f"step {step} lies before step {self._origin.step}, from which this training goes on")
        return self._origin.epoch * self.n + self._origin.samples_seen + (step - self._origin.step) * self.batch

    def _planned(self, step: int, rank: int, world: int) -> list[tuple[int, int]]:
        """(epoch, sample) of a rank's part of the step's batch."""
        if self.batch < world:
            raise ConfigError(f"a global batch of {self.batch} leaves some of {world} workers without a sample")
        first, own = self._position(step), share(self.batch, rank, world)
        places = [divmod(first + position, self.n) for position in own]
        return [(epoch, int(self._samples[self._order(epoch)[place]])) for epoch, place in places]

    def _some(self, slots: Slots, group: list[tuple[int, tuple[int, int]]]) -> list[tuple[_Unread, int | None]]:
        return [self._make(slots, j, *what) for j, what in group]

    def _make(self, slots: Slots, j: int, epoch: int, sample: int) -> tuple[_Unread, int | None]:
        """Put a sample into its slot. Returns what could not be read, and the sample that was (None: none)."""
        unread, used, raw = self._found(epoch, sample)
        if raw is None:
            return unread, None
        # a hash draws as well as a generator and costs a tenth; 128 bits leave no bias worth a name
        draw = hashlib.blake2b(f"{self.seed} {epoch} {sample}".encode(), digest_size=16).digest()
        rest, symmetry = divmod(int.from_bytes(draw, "big"), 8)
        # turned before it is scaled, while pixels are small
        sar, eo, valid = (radiometry.turned(part, symmetry) for part in (raw[0], raw[1], raw[2][None]))
        size = valid.shape[1:]
        if self.crop > min(size):
            raise ConfigError(f"crop {self.crop} is larger than the patches of {size[0]} x {size[1]} pixels")
        rest, top = divmod(rest, size[0] - self.crop + 1)
        left = rest % (size[1] - self.crop + 1)
        slots.cuts[j] = cut = Cut(slice(top, top + self.crop), slice(left, left + self.crop))
        scaled = sar.dtype == np.float32
        if self._late:
            slots.put(j, sar, eo, valid)
        elif not scaled and size == (self.crop, self.crop):
            # scaled right where it is delivered: memory is passed over once less
            source, target, mask = slots.take(
                j, np.empty((3, *size), np.float32), np.empty(eo.shape, np.float32), valid
            )
            radiometry.scale_counts(sar, self._scaling, source)
            radiometry.scale_eo(eo, valid[0], self._scaling, target)
            mask[:] = valid
        else:
            image = sar if scaled else radiometry.scale_counts(sar, self._scaling)
            target = radiometry.scale_eo(eo, valid[0], self._scaling)
            slots.put(j, cut.of(image), cut.of(target), cut.of(valid))
        return unread, used

    def _finished(self, slots: Slots) -> Batch:
        if not self._late:
            source, target, valid = slots.tensors
            return source, target, valid
        sar, eo, valid = (part.to(self._device, non_blocking=True) for part in slots.tensors)
        source = sar if sar.dtype == torch.float32 else batched.scale_sar(sar, self._scaling)
        target = batched.scale_eo(eo, valid[:, 0], self._scaling)
        source, target, valid = (
            torch.stack([cut.of(image) for cut, image in zip(slots.cuts, part, strict=True)])
            for part in (source, target, valid)
        )
        return source, target, valid

    def _found(self, epoch: int, sample: int) -> tuple[_Unread, int, Raw | None]:
        """The sample's pixels, or those of the first of its substitutes that can be read; and what could not."""
        unread: _Unread = []
        for candidate in self._candidates(epoch, sample):
            try:
                return unread, candidate, self._read(candidate)
            except (Corrupt, NotFound) as e:
                unread.append((candidate, e))
                if len(unread) > self._max_corrupt:
                    break
        return unread, sample, None

    def _candidates(self, epoch: int, sample: int) -> Iterator[int]:
        yield sample
        apart = self._samples // self._per_object != sample // self._per_object
        others = self._samples[apart if apart.any() else self._samples != sample]
        yield from np.random.default_rng([self.seed, epoch, sample, 1]).permutation(others).tolist()

    def _report(self, unread: _Unread, used: int | None) -> None:
        """Count what could not be read, in the order of delivery, so that a run stops at the same step every time."""
        for sample, error in unread:
            if sample not in self.replaced:
                self.replaced[sample] = str(error)
                instead = "no other can be read" if used is None else f"sample {used} takes its place"
                print(f"warning: sample {sample} cannot be read ({error}); {instead}", file=sys.stderr)
        if unread and (used is None or len(self.replaced) > self._max_corrupt):
            first = "; ".join(f"sample {s}: {reason}" for s, reason in list(self.replaced.items())[:3])
            raise Corrupt(
                unread[-1][1].uri,
                f"{len(self.replaced)} training samples cannot be read, train.max_corrupt allows {self._max_corrupt}; "
                f"run `jobs/shard.py --audit`, which names what is broken and makes it again ({first})",
            )
