"""The state of a training in a local folder: tensors and plain values only, read back with weights_only."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sar2eo_dist.errors import ModelError

if TYPE_CHECKING:
    from sar2eo_dist.models import Trainer

STATE, META = "state.pt", "meta.json"


def save(folder: str, trainer: Trainer, step: int, meta: Mapping[str, Any]) -> None:
    """Write the trainer's state after `step` steps, and `meta` (JSON values). Each file appears complete or not at all.

    The state is written first: a folder that has `meta.json` is complete.
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{STATE}.{os.getpid()}"
    torch.save({"step": step, "trainer": trainer.state_dict()}, temporary)
    temporary.replace(home / STATE)
    temporary = home / f".{META}.{os.getpid()}"
    temporary.write_text(json.dumps({**meta, "step": step}, sort_keys=True, indent=2) + "\n")
    temporary.replace(home / META)


def load(folder: str, trainer: Trainer) -> int:
    """Restore a trainer of the same networks; returns the number of steps done.

    Raises ModelError: no or torn state, a pickle with code in it (refused, never run), state of another trainer.
    """
    path = Path(folder) / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, inner = int(state["step"]), state["trainer"]
    except pickle.UnpicklingError as e:
        raise ModelError(f"not a plain state of tensors, refused ({e}): {path}") from e
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as e:
        raise ModelError(f"no readable checkpoint ({type(e).__name__}: {e}): {path}") from e
    try:
        trainer.load_state_dict(inner)
    except ModelError as e:
        raise ModelError(f"{e}: {path}") from e
    return step


def read_meta(folder: str) -> dict[str, Any]:
    """The `meta` that `save` was given, with its "step". Raises ModelError where the folder holds no checkpoint."""
    path = Path(folder) / META
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ModelError(f"no readable checkpoint ({type(e).__name__}: {e}): {path}") from e
    return meta
