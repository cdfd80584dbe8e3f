"""What all trainers share: gradient accumulation, wrapping, state, the check that all is finite before a step is taken."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ConfigError, ModelError, NonFinite
from sar2eo_dist.models import speed
from sar2eo_dist.models._weights import load_weights

Losses = dict[str, Tensor]


class BaseTrainer(ABC):
    """Networks and their optimisers by the same name; see `models.Trainer` for the contract."""

    def __init__(self, networks: dict[str, nn.Module], optimisers: dict[str, torch.optim.Optimizer]) -> None:
        self.networks = networks
        self.optimisers = optimisers
        self.running: dict[str, nn.Module] = dict(networks)
        self.frozen: list[nn.Module] = []
        self.clip: dict[str, float] = {}  # largest gradient norm, of the networks that have one
        self.micro = 0
        self._mean: Callable[[Tensor], Tensor] = lambda x: x

    def accelerate(
        self, precision: str = "float32", compile: bool = False, checkpointing: bool = False, micro: int = 0
    ) -> None:
        """`speed.apply` for every network; before `wrap`. Raises ConfigError: float16, whose loss nothing scales here."""
        if precision == "float16":
            raise ConfigError("precision float16 is for inference alone: train in bfloat16 or float32")
        for net in (*self.networks.values(), *self.frozen):
            speed.apply(net, precision, compile, checkpointing)
        self.micro = micro

    def wrap(self, fn: Callable[[nn.Module], nn.Module], mean: Callable[[Tensor], Tensor]) -> None:
        """Forward passes that train go through `fn(module)` from now on; `mean` averages a tensor over the ranks."""
        self.running = {name: fn(net) for name, net in self.networks.items()}
        self._mean = mean

    @abstractmethod
    def learning_rate(self, index: int) -> float:
        """The rate of step `index`."""

    @abstractmethod
    def losses(self, source: Tensor, target: Tensor, valid: Tensor) -> tuple[Losses, Losses]:
        """(what is reported, what each network minimises by its name); the latter go backward in this order."""

    def symptoms(self, means: Mapping[str, float]) -> dict[str, str]:
        """What the mean losses of some steps say that a person should know: name of an event -> words."""
        return {}

    def begin(self, index: int) -> None:
        """What the schedule wants before step `index`."""
        rate = self.learning_rate(index)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate

    def idle(self, index: int) -> list[nn.Parameter]:
        """Parameters that step `index` leaves alone."""
        return []

    def step(self, index: int, source: Tensor, target: Tensor, valid: Tensor, weight: float = 1.0) -> dict[str, float]:
        self.begin(index)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        total: Losses = {}
        count, size = len(source), self.micro or len(source)
        for first in range(0, count, size):
            part = slice(first, first + size)
            share = weight * len(source[part]) / count
            with ExitStack() as stack:
                if first + size < count:  # gradients cross the network once a step, not once a piece
                    for net in self.running.values():
                        if isinstance(net, nn.parallel.DistributedDataParallel):
                            stack.enter_context(net.no_sync())
                reported, minimised = self.losses(source[part], target[part], valid[part])
                for loss in minimised.values():
                    (loss * share).backward()  # type: ignore[no-untyped-call]
            for name, value in reported.items():
                value = value.detach().float() * share
                total[name] = total[name] + value if name in total else value
        for parameter in self.idle(index):
            parameter.grad = None
        norms = {f"grad_norm_{name}": _norm(net) for name, net in self.networks.items()}
        values = finite(dict(zip(total, self._mean(torch.stack(list(total.values()))), strict=True)) | norms, index)
        for name, optimiser in self.optimisers.items():
            if limit := self.clip.get(name):
                weights = self.networks[name].parameters()
                nn.utils.clip_grads_with_norm_(weights, limit, norms[f"grad_norm_{name}"])
            optimiser.step()
        return values

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"networks", "optimisers"} or set(state["networks"]) != set(self.networks):
            had = sorted(state.get("networks", state))
            raise ModelError(f"checkpoint of another trainer: it holds {had}, this one wants {sorted(self.networks)}")
        for name, net in self.networks.items():
            load_weights(net, state["networks"][name], f"checkpoint of {name}")
        for name, optimiser in self.optimisers.items():
            try:
                optimiser.load_state_dict(state["optimisers"][name])
            except (KeyError, ValueError) as e:
                raise ModelError(f"optimiser state of {name} does not fit: {e}") from e


def _norm(net: nn.Module) -> Tensor:
    """Euclidean norm of a network's gradient (after DDP's average: the same on every rank)."""
    found = [p.grad for p in net.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(found).float()


def finite(values: Mapping[str, Tensor], index: int) -> dict[str, float]:
    """Losses and norms as floats, by one transfer. Raises NonFinite naming step and those that are NaN or infinite."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    numbers = [0.0] * len(values) if stacked.is_meta else stacked.tolist()  # a meta tensor (cost.py) has no value
    named = dict(zip(values, numbers, strict=True))
    if bad := {k: v for k, v in named.items() if not math.isfinite(v)}:
        raise NonFinite(f"step {index}: " + ", ".join(f"{k} = {v}" for k, v in bad.items()))
    return named
