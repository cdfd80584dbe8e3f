"""Training batches as a pure function of (seed, step): any step can be asked for directly, so a resume needs no more.

Samples are numbered on without end: position p of the global sequence is sample order(seed, p // n)[p % n] of epoch
p // n, and step s of a global batch of b holds positions s b to s b + b - 1, whatever the number of workers.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sar2eo_dist import radiometry
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.radiometry import ScalingLike

Raw = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16], npt.NDArray[np.bool_]]
Read = Callable[[int], Raw]
Batch = tuple[Tensor, Tensor, Tensor]
PREFETCH = 2  # batches made ahead


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The permutation of range(n) in which an epoch meets its samples."""
    permutation = np.random.default_rng([seed, epoch]).permutation(n)
    permutation.flags.writeable = False
    return permutation


class Loader:
    """Scaled, cropped, turned pairs.

    read(i): raw shard values of sample i: sar (2, H, W) int16 of 0.01 dB, eo (C, H, W) uint16 DN, valid (H, W) bool.
    n: samples; batch: global batch; crop: side of the random crop, pixels; scaling: the config's section. Per-image
    scaling sees the full patch, before the crop; so does `transform`, which maps the scaled source (C, H, W) to the
    source that is trained on (see training.enhance): the statistics of a window are then those of a whole patch.
    cache_mb bounds the memory in which prepared full patches are kept; it changes no result.
    Raises ConfigError: no samples, batch < 1, seed < 0; and, when the first patch is read, a crop larger than it.
    """

    def __init__(
        self,
        read: Read,
        n: int,
        batch: int,
        crop: int,
        scaling: ScalingLike,
        seed: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        cache_mb: int = 256,
    ) -> None:
        if n < 1:
            raise ConfigError("there is nothing to train on: the training split holds 0 pairs")
        if batch < 1 or crop < 1 or seed < 0:
            raise ConfigError(f"batch {batch} and crop {crop} must be >= 1, seed {seed} >= 0")
        self.n, self.batch, self.crop, self.seed = n, batch, crop, seed
        self._read, self._scaling, self._transform = read, scaling, transform
        self._cache: OrderedDict[int, Batch] = OrderedDict()
        self._room, self._lock = cache_mb << 20, threading.Lock()

    def at(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The part of step's global batch that a rank trains on.

        source (B, C, crop, crop), target (B, C', crop, crop) float32 in [-1, 1]; valid (B, 1, crop, crop) bool; B =
        batch / world. Raises ConfigError where world does not divide the batch.
        """
        if self.batch % world:
            raise ConfigError(f"a global batch of {self.batch} cannot be shared evenly by {world} workers")
        share = self.batch // world
        first = step * self.batch + rank * share
        samples = [self._sample(position) for position in range(first, first + share)]
        source, target, valid = (torch.stack(parts) for parts in zip(*samples, strict=True))
        return source, target, valid

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """`at(step, rank, world)` for the steps [start, stop), made ahead by one thread; memory: PREFETCH batches."""
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(start, stop + PREFETCH):
                if step < stop:
                    waiting.append(pool.submit(self.at, step, rank, world))
                if step >= start + PREFETCH:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, position: int) -> Batch:
        epoch, place = divmod(position, self.n)
        index = int(order(self.seed, epoch, self.n)[place])
        arrays = self._patch(index)
        height, width = arrays[0].shape[1:]
        if self.crop > min(height, width):
            raise ConfigError(f"crop {self.crop} is larger than the patches of {height} x {width} pixels")
        rng = np.random.default_rng([self.seed, epoch, index])
        top, left = (int(rng.integers(0, side - self.crop + 1)) for side in (height, width))
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        source, target, valid = (
            _turned(a[:, top : top + self.crop, left : left + self.crop], turns, mirror) for a in arrays
        )
        return source, target, valid

    def _patch(self, index: int) -> Batch:
        """Prepared full patch: source (C, H, W), target (C', H, W), valid (1, H, W)."""
        with self._lock:
            found = self._cache.get(index)
            if found is not None:
                self._cache.move_to_end(index)
                return found
            sar, eo, valid = self._read(index)
            source = torch.from_numpy(radiometry.scale_sar(radiometry.decode_db(sar), self._scaling))
            if self._transform is not None:
                source = self._transform(source)
            target = torch.from_numpy(radiometry.scale_eo(eo, valid, self._scaling))
            patch = source, target, torch.from_numpy(np.ascontiguousarray(valid, dtype=bool))[None]
            size = sum(part.nbytes for part in patch)
            if size <= self._room:
                self._cache[index] = patch
                while sum(part.nbytes for kept in self._cache.values() for part in kept) > self._room:
                    self._cache.popitem(last=False)
            return patch


def _turned(image: Tensor, turns: int, mirror: bool) -> Tensor:
    """One of the eight symmetries of the square."""
    image = torch.rot90(image, turns, (1, 2))
    return (image.flip(2) if mirror else image).contiguous()
