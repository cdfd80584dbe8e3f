"""Normalisation layers. Arithmetic is float32 (float64 for float64), also where activations are of half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models._network import exact, single
from sar2eo_dist.models.statistics import Tapped, pixels

NORMS = ("instance", "batch")
EPS = 1e-5
_SMALL = 1024  # pixels: below, PyTorch's channels_last group norm on a CPU takes 10 to 50 times that of a plain one
#: pixels up to which it is used, of x less a rough mean: it sums x and x^2 in float32, one after the other, and is off by 1e-5
#: there, but by 1e-2 at 1024 x 1024 (measured); more than that of x itself, where the mean is far from 0
_FUSED = 1 << 16


class InstanceNorm2d(Tapped):
    """(x - mean) / sqrt(var + 1e-5) over each sample's and channel's pixels; (N, C, H, W).

    No parameters and no running statistics: train and eval outputs are identical, and it adds no keys.
    """

    keys = ("mean", "var")

    def forward(self, x: Tensor) -> Tensor:
        if self.given is None and self.taken is None and x.device.type == "cpu" and x.shape[2] * x.shape[3] <= _FUSED:
            # one group a channel is instance norm, and PyTorch's fused kernel for it is the faster one on a CPU
            if x.shape[2] * x.shape[3] <= _SMALL:
                return functional.group_norm(x.contiguous(), x.shape[1], eps=EPS)
            return functional.group_norm(x - x[:, :, ::8, ::8].detach().mean((2, 3), keepdim=True), x.shape[1], eps=EPS)
        wide = single(x)
        if self.taken is not None and self.found is not None:
            part = self.taken(wide)
            own = torch.var_mean(part, dim=(2, 3), correction=0)
            count = pixels(part)
            self.found.update({"mean": own[1].detach(), "var": own[0].detach(), "count": count})
            self.end()
        if self.given is not None:
            mean, var = (t.to(wide) if t.ndim == 4 else t.to(wide)[:, :, None, None] for t in self._outside(x))
        else:
            var, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
        if mean.shape[2:] != (1, 1):  # maps: in as few passes over memory as there can be
            return (wide - mean).mul_((var + EPS).rsqrt_()).to(x.dtype)
        scale = torch.rsqrt(var + EPS)
        return torch.addcmul(-mean * scale, wide, scale).to(x.dtype)

    def _outside(self, x: Tensor) -> list[Tensor]:
        return self.outside((x.shape[2], x.shape[3]))


def norm(kind: str, channels: int) -> nn.Module:
    """The norm layer of that name. Raises ConfigError."""
    if kind == "instance":
        return InstanceNorm2d()
    if kind == "batch":
        return nn.BatchNorm2d(channels, affine=True)
    raise ConfigError(f"norm must be one of {NORMS}, not {kind!r}")


class LayerNorm(nn.Module):
    """Restormer's: per pixel over channels, biased variance. Keys `body.weight` and, WithBias, `body.bias`.

    BiasFree divides by the standard deviation about the mean without subtracting the mean: it is not an RMS norm.
    """

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.body = nn.ParameterDict({"weight": torch.ones(dim)})
        if kind == "WithBias":
            self.body["bias"] = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.body["weight"]
        if "bias" in self.body and x.is_contiguous(memory_format=torch.channels_last):
            # pixels are rows of channels in memory, which is what PyTorch's fused layer norm wants; on a CPU it takes
            # half precision rows with float32 weights, and computes in float32
            rows = x.permute(0, 2, 3, 1)
            rows = rows if x.device.type == "cpu" else single(rows)
            with exact(x):
                y = functional.layer_norm(rows, weight.shape, weight, self.body["bias"], EPS)
            return y.permute(0, 3, 1, 2).to(x.dtype)
        wide = single(x)
        variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + EPS) * weight.view(1, -1, 1, 1)
        if "bias" not in self.body:
            return (wide * scale).to(x.dtype)  # type: ignore[no-any-return]
        return ((wide - mean) * scale + self.body["bias"].view(1, -1, 1, 1)).to(x.dtype)  # type: ignore[no-any-return]
