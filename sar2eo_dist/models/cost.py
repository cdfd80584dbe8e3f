"""What a network costs, without running it: parameters, multiply-adds and peak memory, counted on meta tensors.

`python -m sar2eo_dist.models` prints the table, and proposes windows and batches for a memory budget.
"""

from __future__ import annotations

import bisect
import functools
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sar2eo_dist import models
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models import speed

#: of a budget, what tensors may take: the rest is for workspaces of kernels and gaps between tensors
SHARE = 0.85
WINDOWS = (128, 256, 512, 1024, 2048)  # sides that are proposed


@dataclass(frozen=True, slots=True)
class Case:
    """A network and how it is run. options: as for `build`; bands: (in, out); the others as in `speed.apply`."""

    model: str
    options: Mapping[str, Any]
    bands: tuple[int, int] = (3, 3)
    precision: str = "float32"
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class Proposal:
    """window: side in pixels; batch: windows at once; bytes: of all tensors at the peak, weights and optimiser included."""

    window: int
    batch: int
    bytes: int


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def macs(case: Case, window: int = 256, train: bool = False) -> int:
    """Multiply-adds of the convolutions and matrix products of one window: a forward pass, or a training step."""
    call = _Run(case, window, 1, train)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward}) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def memory(case: Case, window: int, batch: int, train: bool = False) -> int:
    """Bytes of all live tensors at the peak of a forward pass, or of a training step after the first.

    Counted as a GPU runs it without torch.compile; a CPU's fused kernels need a little less. Workspaces of kernels come on
    top, see SHARE.
    """
    with _Live() as live:
        call = _Run(case, window, batch, train)
        call()
        if train:
            call()  # the optimisers have their state only now
    return int(live.peak) + call.extra


def propose(case: Case, budget: int, train: bool = False, limit: int = 1 << 22) -> list[Proposal]:
    """For every window of WINDOWS that fits: the largest batch, a power of two, of at most `limit` pixels.

    budget: bytes of memory. The last row has the largest window, which wastes least on halos. Deterministic, whatever
    memory is free: the run then fixes both in its config. Raises ConfigError where not even the smallest window fits.
    """
    rows = []
    for window in WINDOWS:
        sizes = [1 << e for e in range(max(1, (limit // (window * window)).bit_length()))]
        needs = functools.cache(lambda batch, window=window: memory(case, window, batch, train))
        fitting = bisect.bisect_right(sizes, budget * SHARE, key=needs)  # memory grows with the batch
        if not fitting:
            break
        batch, total = sizes[fitting - 1], needs(sizes[fitting - 1])
        rows.append(Proposal(window, batch, total))
    if not rows:
        need = memory(case, WINDOWS[0], 1, train) / SHARE
        raise ConfigError(
            f"{case.model} wants {need / 2**30:.2f} GiB for one window of {WINDOWS[0]} px, the budget is "
            f"{budget / 2**30:.2f} GiB: use a smaller preset, checkpointing or bfloat16"
        )
    return rows


def _backward(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], _b: Any, _s: Any, _p: Any, _d: Any, transposed: bool,
    _o: Any, _g: Any, mask: Sequence[bool], out_shape: Any = None,
) -> int:  # fmt: skip
    """Of a convolution's backward pass, by shapes; torch's own formula does not know groups."""
    forward = 2 * math.prod(weight) * x[0] * math.prod((x if transposed else grad)[2:])
    return forward * (mask[0] + mask[1])


class _Run:
    """A forward pass or a training step on meta tensors.

    Autocast does not know them, so convolutions of half precision are converted. What they really hold besides is `extra`:
    weights in float32 beside their copies, and in training gradients and two moments in float32 too.
    """

    def __init__(self, case: Case, window: int, batch: int, train: bool) -> None:
        module = models.translator(case.model)
        incoming, outgoing = case.bands
        with torch.device("meta"):
            net = module.build(case.options, incoming, outgoing)
            self.x = torch.empty(batch, incoming, window, window).contiguous(memory_format=torch.channels_last)
            self.target = torch.empty(batch, outgoing, window, window)
            self.valid = torch.empty(batch, 1, window, window, dtype=torch.bool)
            trainer = module.Trainer(net, case.options, 1e-4, 100) if train else None
        if trainer:
            trainer.accelerate(case.precision, checkpointing=case.checkpointing)
        else:
            speed.apply(net.eval(), case.precision)
        dtype, nets = speed.PRECISIONS[case.precision], list(trainer.networks.values()) if trainer else [net]
        self.extra = 0
        if dtype is not torch.float32:
            for part in (m for net in nets for m in net.modules()):
                if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                    part.to(dtype)
            self.extra = (10 if train else 4) * sum(parameters(net) for net in nets)
        self.net, self.trainer = net, trainer

    def __call__(self) -> None:
        if self.trainer:
            self.trainer.step(0, self.x, self.target, self.valid)
        else:
            with torch.no_grad():
                self.net(self.x)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive; `peak` is the largest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size
