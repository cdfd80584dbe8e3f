"""Strict loading of a state dict, with a named diff where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sar2eo_dist.errors import ModelError


def load_weights(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Strict loading, all or nothing. Raises ModelError with every missing, unexpected and misshapen key (and `where`).

    A long list is cut after its first eight, with the count of the others.
    """
    if text := difference(net.state_dict(), state):
        raise ModelError(f"weights do not fit {type(net).__name__}: {text}: {where}")
    net.load_state_dict(dict(state))


def difference(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected and misshapen in `found`, in words; empty where keys and shapes agree."""
    shapes = [
        f"{k} is {tuple(found[k].shape)}, wanted {tuple(wanted[k].shape)}"
        for k in sorted(wanted.keys() & found.keys())
        if found[k].shape != wanted[k].shape
    ]
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    parts = [("missing", missing), ("unexpected", unexpected), ("misshapen", shapes)]
    return "; ".join(f"{len(names)} {what}: {first(names)}" for what, names in parts if names)


def first(names: list[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
