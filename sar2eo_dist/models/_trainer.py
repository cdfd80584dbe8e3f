"""What all trainers share: wrapping, state, the check for finite losses. Shared weights loading with a named diff."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ModelError


class BaseTrainer(ABC):
    """Networks and their optimisers by the same name; see `models.Trainer` for the contract."""

    def __init__(self, networks: dict[str, nn.Module], optimisers: dict[str, torch.optim.Optimizer]) -> None:
        self.networks = networks
        self.optimisers = optimisers
        self.running: dict[str, nn.Module] = dict(networks)

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
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    named = dict(zip(losses, values, strict=True))
    bad = {k: v for k, v in named.items() if not math.isfinite(v)}
    if bad:
        text = ", ".join(f"{k} = {v}" for k, v in bad.items())
        raise ModelError(
            f"step {index}: {text}: training diverged or the input is not finite; resume from the last "
            f"checkpoint with a lower learning rate"
        )
    return named


def load_weights(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Strict loading. Raises ModelError with every missing, unexpected and misshapen key (and `where`)."""
    own = net.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(state[k].shape)}, wanted {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if state[k].shape != own[k].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("misshapen", shapes)]
    text = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in parts if names)
    if text:
        raise ModelError(f"weights do not fit {type(net).__name__}: {text}: {where}")
    net.load_state_dict(dict(state))


def _first(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
