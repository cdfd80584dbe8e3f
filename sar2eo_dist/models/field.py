"""Statistics that vary over a mosaic (`Field`), and those of a whole scene gathered window by window (`lockstep`).

A field holds mean and variance of every norm layer at knots, the centres of the windows that they were gathered in, and
interpolates both bilinearly in between, so that neighbouring windows agree at their border without any blending. Layers
without moments (channel attention) keep the statistics of the window that they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import statistics

F64 = npt.NDArray[np.float64]
Core = tuple[int, int, int, int]


def moments(net: nn.Module) -> list[str]:
    """Names of the layers whose statistics are a mean and a variance, in the order in which they run."""
    return [name for name in statistics.layers(net) if "mean" in statistics.keys(net, name)]


class Field:
    """Norm statistics at the knots of a regular lattice, interpolated.

    rows, cols: positions of the knots, pixels, ascending; weights (rows, cols): how much data each stands for (0 = none),
    which scales its share; values: layer -> (mean, var), each (rows, cols, C) float32. Beyond the outermost knots their
    values hold. Memory: that of the knots given, so give those around a window alone.
    """

    def __init__(
        self, rows: Sequence[float], cols: Sequence[float], weights: npt.NDArray[np.floating],
        values: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:  # fmt: skip
        shape = (len(rows), len(cols))
        bad = [n for n, pair in values.items() if any(t.shape[:2] != shape for t in pair)]
        if np.shape(weights) != shape or bad:
            raise ModelError(f"a field of {shape} knots with weights {np.shape(weights)} and other values in {bad[:3]}")
        self.rows, self.cols = np.asarray(rows, np.float64), np.asarray(cols, np.float64)
        self.weights, self.values = torch.from_numpy(np.asarray(weights, np.float32)), values
        self.uneven = bool((self.weights != self.weights.flatten()[0]).any())

    def maps(
        self, name: str, row: int, col: int, padded: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance, (1, C, h, w) each, channels last in memory, over a layer's map of size (h, w).

        row, col: first pixel of the window; padded: its height and width as the network pads it.
        """
        mean, var = self.values[name]
        h, w = size
        down, across = padded[0] / h, padded[1] / w
        device = mean.device
        up = _hats(self.rows, row + (np.arange(h) + 0.5) * down - 0.5).to(device)  # (h, knots)
        side = _hats(self.cols, col + (np.arange(w) + 0.5) * across - 0.5).to(device)  # (w, knots)
        weights = self.weights.to(device)
        total = (up @ weights @ side.T)[..., None] if self.uneven else None

        def spread(knots: Tensor) -> Tensor:
            if total is not None:
                knots = knots * weights[..., None]
            lines = torch.einsum("jl,klc->kjc", side, knots).flatten(1)  # (knots, w C)
            plane = (up @ lines).view(h, w, -1)
            if total is not None:  # where no knot with data is near there is no data either: anything usual will do
                plane = torch.where(total > 0, plane / total, knots.sum((0, 1)) / weights.sum())
            return plane.permute(2, 0, 1)[None]

        return spread(mean), spread(var)


def source(places: Sequence[tuple[Field, int, int]], padded: tuple[int, int]) -> statistics.Source:
    """What `statistics.use` wants for a batch of windows of one size: of each its field, first row and column."""

    def given(name: str, size: tuple[int, int]) -> Mapping[str, Tensor]:
        maps = [field.maps(name, row, col, padded, size) for field, row, col in places]
        return {
            k: torch.cat([m[i] for m in maps]) if len(maps) > 1 else maps[0][i] for i, k in enumerate(("mean", "var"))
        }

    return given


def _hats(knots: F64, at: npt.NDArray[np.floating]) -> Tensor:
    """(points, knots) float32: bilinear weights of each knot at each point; rows add up to 1."""
    right = np.clip(np.searchsorted(knots, at, side="right"), 1, max(1, len(knots) - 1))
    out = np.zeros((len(at), len(knots)))
    if len(knots) == 1:
        out[:, 0] = 1
        return torch.from_numpy(out.astype(np.float32))
    share = np.clip((at - knots[right - 1]) / (knots[right] - knots[right - 1]), 0, 1)
    points = np.arange(len(at))
    out[points, right - 1], out[points, right] = 1 - share, share
    return torch.from_numpy(out.astype(np.float32))


def lockstep(
    net: nn.Module, inputs: Callable[[], Iterable[tuple[Tensor, tuple[int, int], Core]]]
) -> dict[str, statistics.Statistic]:
    """Every layer's statistics over a whole scene, as whole-image inference would compute them.

    inputs: makes all windows anew at each call, in one order: (x (1, C, H, W) with its halo, padded (H, W), core within
    it); the cores cover the scene once. Layer after layer: a layer's sums over all windows are pooled before the next
    layer is met, so the scene is passed once a layer, each time a little deeper. Memory is one window's.
    """
    known: dict[str, statistics.Statistic] = {}
    for name in statistics.layers(net):
        parts = []
        for x, window, core in inputs():
            with (
                torch.inference_mode(),
                statistics.use(net, known, only=known),
                statistics.gather(net, window, core, last=name) as found,
            ):
                net(x)
            parts.append({name: dict(found[name])})
        known |= statistics.merge(parts)
    return known
