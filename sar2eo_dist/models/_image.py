"""What every network asks of its input, and the padding that lets it take any size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sar2eo_dist.errors import ModelError


def check(x: Tensor, channels: int, minimum: int, owner: str) -> None:
    """Raises ModelError unless x is (N, channels, H, W), H and W >= minimum, float, and finite."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ModelError(
            f"{owner} wants (N, {channels}, H, W), got {tuple(x.shape)}: give it the bands that it was built for, "
            f"or build it with in_channels = {x.shape[1] if x.ndim == 4 else 'the number of bands'}"
        )
    if min(x.shape[2:]) < minimum:
        raise ModelError(
            f"{owner} wants at least {minimum} x {minimum} pixels, got {x.shape[2]} x {x.shape[3]}: "
            f"use larger windows, or options with fewer levels"
        )
    if not x.dtype.is_floating_point:
        raise ModelError(f"{owner} wants float input in [-1, 1], got {x.dtype}: scale it first (radiometry)")
    if not x.is_meta and not bool(torch.isfinite(x).all()):  # a meta tensor (cost.py) has no values
        bad = int((~torch.isfinite(x)).sum())
        raise ModelError(f"{owner}: {bad} of {x.numel()} input values are NaN or infinite: fill nodata first")


def pad(x: Tensor, multiple: int) -> Tensor:
    """x padded right and bottom by reflection until H and W are multiples of `multiple`; x itself where they are."""
    height, width = x.shape[2:]
    bottom, right = -height % multiple, -width % multiple
    return functional.pad(x, (0, right, 0, bottom), mode="reflect") if bottom or right else x


def masked(x: Tensor, valid: Tensor) -> Tensor:
    """x (N, C, H, W) with 0 wherever valid (N, 1, H, W) bool is False, whatever stood there (NaN too)."""
    return torch.where(valid, x, torch.zeros((), dtype=x.dtype, device=x.device))
