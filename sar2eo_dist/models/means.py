"""An extractor without a network: channel means and deviations. For measuring what everything but a network costs, and tests.

It looks at brightness, colour and contrast alone, so it tells a white cloud from a forest and little else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.models.extractors import Network

if TYPE_CHECKING:
    from torch import Tensor

GRID = 8  # cells a side of the map: as many as inception has positions


class Means(Network):
    """Mean and deviation of R, G, B over an image, 6 numbers in 0..255; the map holds those of 8 x 8 cells, (6, 8, 8).

    The mean of the positions is not `features`: a deviation over the image is more than that within cells. `weights`
    must be empty. Raises ModelError: image smaller than 8 x 8. Rows and columns beyond a multiple of 8 are left out.
    """

    score_name = "fd_means"
    dims = 6
    map_dims = (6,)
    preprocessing = f"none; mean and deviation of R, G, B, 0..255, over the image or {GRID} x {GRID} cells"

    def __init__(self, weights: str) -> None:
        super().__init__()
        if weights:
            raise ConfigError(f"means has no network: leave cca.weights empty, not {weights!r}")

    def forward(self, images: Tensor) -> Tensor:
        count, first, second = _sums(images)
        return _moments(count * GRID * GRID, first.sum((2, 3)), second.sum((2, 3)))

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        return (_moments(*_sums(images)),)


def _sums(images: Tensor) -> tuple[int, Tensor, Tensor]:
    """Pixels of a cell, and over each cell the sums of x - 128 and of its square, (N, 3, 8, 8) float64."""
    high, wide = images.shape[2] // GRID, images.shape[3] // GRID
    if not high or not wide:
        raise ModelError(f"means wants images of {GRID} x {GRID} or more, got {images.shape[2]} x {images.shape[3]}")
    # float32 is the fastest here, and exact: in 256 x 256 images a cell's squares add up to 2^24 at most
    x = images[:, :, : high * GRID, : wide * GRID].float().sub_(128)
    cells = x.view(len(x), 3, GRID, high, GRID, wide)
    return high * wide, cells.sum(5).sum(3).double(), cells.square().sum(5).sum(3).double()


def _moments(count: int, first: Tensor, second: Tensor) -> Tensor:
    """Means, then deviations, along axis 1; float32."""
    spread = (count * second - first.square()).clamp(min=0).sqrt() / count
    return torch.cat((first / count + 128, spread), 1).float()
