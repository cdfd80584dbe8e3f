"""What every network here shares: input checks, padding to any size, precision, activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, autocast, nn
from torch.utils.checkpoint import checkpoint

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models._image import check, pad
from sar2eo_dist.models.statistics import Tapped

_FOLLOWERS = (nn.ReLU, nn.Tanh, nn.BatchNorm2d, Tapped)  # layers that belong to the convolution before them


class Accelerated(nn.Module):
    """A network whose `core` is what runs; `speed.apply` sets the rest.

    precision: dtype of convolutions and matrix products (autocast), float32 = as the weights are; checkpointing: keep
    few activations for backward and compute the others again.
    """

    precision: torch.dtype = torch.float32
    checkpointing: bool = False

    def core(self, x: Tensor) -> Any:
        """The network proper; torch.compile takes the place of this method."""
        raise NotImplementedError

    def run(self, x: Tensor) -> Any:
        """`core` under autocast of `precision`, whatever autocast is around."""
        with exact(x) if self.precision is torch.float32 or x.is_meta else autocast(x.device.type, self.precision):
            return self.core(x.to(self.precision) if x.is_meta else x)

    def segment(self, part: nn.Module, x: Tensor) -> Tensor:
        """part(x), whose inner activations are not kept for backward where checkpointing is on."""
        if self.checkpointing and torch.is_grad_enabled():
            y: Tensor = checkpoint(part, x, use_reentrant=False)  # type: ignore[assignment]
            return y
        return part(x)  # type: ignore[no-any-return]

    def segments(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        """layers(x), cut before every padding and convolution, so that no part starts with an in-place activation."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return layers(x)  # type: ignore[no-any-return]
        parts: list[list[nn.Module]] = []
        for layer in layers:
            padded = bool(parts) and isinstance(parts[-1][-1], nn.ReflectionPad2d)
            if not parts or (not isinstance(layer, _FOLLOWERS) and not padded):
                parts.append([])
            parts[-1].append(layer)
        for part in parts:
            x = self.segment(nn.Sequential(*part), x)
        return x


class ImageNetwork(Accelerated):
    """An image network under the contract `models.Network`: any size >= minimum, float32 in and out, named errors."""

    in_channels: int
    out_channels: int
    multiple: int
    minimum: int
    title: str
    inherits: str = ""  # keys that a coarser network of the same kind has too, from which training may start

    def forward(self, x: Tensor) -> Tensor:
        check(x, self.in_channels, self.minimum, self.title)
        y = single(self.run(pad(x, self.multiple)))[:, :, : x.shape[2], : x.shape[3]]
        if self.precision is torch.float16 and not self.training and not bool(torch.isfinite(y).all()):
            raise ModelError(f"{self.title} overflowed in float16: run it with precision bfloat16 or float32")
        return y


def exact(x: Tensor) -> autocast:
    """The context in which no autocast changes what is computed from x."""
    return autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def single(x: Tensor) -> Tensor:
    """x in float32 where it is of half precision, else x itself (float64 stays)."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
