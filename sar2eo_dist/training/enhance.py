"""What an enhancer is trained on: the output of a frozen translator against the real image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Translated:
    """A `Loader` transform: the scaled SAR patch (C, H, W) to the translator's image (C', H, W), float32, where that was.

    The whole patch is translated, then cropped: instance norm and attention read statistics of the window, and those of
    a crop are not the ones that the enhancer will meet. One patch a forward, so the result depends on no batch.
    """

    def __init__(self, net: nn.Module, device: str = "cpu") -> None:
        self._net = net.eval().to(device)
        self._device = device

    def __call__(self, source: Tensor) -> Tensor:
        with torch.no_grad():
            image: Tensor = self._net(source[None].to(self._device))[0]
        return image.float().to(source.device)
