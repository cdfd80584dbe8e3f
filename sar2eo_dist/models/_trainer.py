"""What all trainers share: wrapping, state, the check for finite losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.models import speed
from sar2eo_dist.models._weights import load_weights


class BaseTrainer(ABC):
    """Networks and their optimisers by the same name; see `models.Trainer` for the contract."""

    def __init__(self, networks: dict[str, nn.Module], optimisers: dict[str, torch.optim.Optimizer]) -> None:
        self.networks = networks
        self.optimisers = optimisers
        self.running: dict[str, nn.Module] = dict(networks)
        self.frozen: list[nn.Module] = []

    def accelerate(self, precision: str = "float32", compile: bool = False, checkpointing: bool = False) -> None:
        """`speed.apply` for every network; before `wrap`. Raises ConfigError: float16, whose loss nothing scales here."""
        if precision == "float16":
            raise ConfigError("precision float16 is for inference alone: train in bfloat16 or float32")
        for net in (*self.networks.values(), *self.frozen):
            speed.apply(net, precision, compile, checkpointing)

    def wrap(self, fn: Callable[[nn.Module], nn.Module]) -> None:
        """Forward passes that train go through `fn(module)` from now on."""
        self.running = {name: fn(net) for name, net in self.networks.items()}

    @abstractmethod
    def learning_rate(self, index: int) -> float:
        """The rate of step `index`."""

    def set_learning_rate(self, index: int) -> None:
        rate = self.learning_rate(index)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate

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


def finite(losses: Mapping[str, Tensor], index: int) -> dict[str, float]:
    """The losses as floats, by one transfer. Raises ModelError naming step and losses where one is NaN or infinite."""
    stacked = torch.stack([loss.detach().float() for loss in losses.values()])
    values = [0.0] * len(losses) if stacked.is_meta else stacked.tolist()  # a meta tensor (cost.py) has no value
    named = dict(zip(losses, values, strict=True))
    bad = {k: v for k, v in named.items() if not math.isfinite(v)}
    if bad:
        text = ", ".join(f"{k} = {v}" for k, v in bad.items())
        raise ModelError(
            f"step {index}: {text}: training diverged or the input is not finite; resume from the last "
            f"checkpoint with a lower learning rate"
        )
    return named
