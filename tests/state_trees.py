"""States of networks and optimisers, as nested dicts and lists, compared bit by bit."""

from __future__ import annotations

from typing import Any

import torch


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """All leaves of a state by path."""
    if isinstance(tree, dict):
        return {k: v for key in tree for k, v in flat(tree[key], f"{name}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, e in enumerate(tree) for k, v in flat(e, f"{name}/{i}").items()}
    return {name: tree}


def same(a: Any, b: Any) -> bool:
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)
