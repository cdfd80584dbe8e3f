"""LPIPS of images (Zhang et al., arXiv 1801.03924, version 0.1, AlexNet): torchmetrics', backbone weights by URI.

The linear heads come with torchmetrics. The backbone's ImageNet weights come with nothing that is installed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn

from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.evaluation.metrics import Array, Floats, check, one_thread
from sar2eo_dist.models import _torchvision, bundle, official

SOURCE = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
MINIMUM = 64  # px: below, the last maps are of 2 x 2 places, borders nearly all of it


class Lpips:
    """LPIPS with the backbone of `uri` on a device; float32, precision as `speed.apply` sets it.

    uri: torchvision's alexnet-owt-7be5be79.pth (SOURCE, 244 MB), or its `features.*` alone.
    Raises ConfigError: the file is not AlexNet's, torn, or holds more than tensors; NotFound and other storage errors.
    """

    def __init__(self, uri: str, device: str = "cpu") -> None:
        try:
            state = official.read(b"".join(bundle.pieces(uri)), uri)
            net = _network()
            official.fit(_features(net), {k: v for k, v in state.items() if not k.startswith("classifier.")}, uri)
        except ModelError as e:
            raise ConfigError(
                f"evaluate.lpips wants torchvision's AlexNet: give the URI of a copy of {SOURCE}, "
                f"or leave it empty and LPIPS is not measured: {e}"
            ) from e
        self._net, self._device = net.to(device), torch.device(device)

    def __call__(self, pred: Array, true: Array, valid: Array) -> Floats:
        """LPIPS of each image, (N,) float64, about 0 (equal) to 1; lower is better.

        pred, true  (N, 3, H, W) red, green, blue in [0, 1]; values beyond are taken as they are
        valid       (N, H, W) bool: pixels that count. The others are set to 0 in both images, so that what they hold
                    has no influence, and add nothing; but the mean is over the whole image, so that one of few valid
                    pixels scores lower for that alone: compare methods, over the same images, not images
        NaN: no valid pixel, or a side under 64 pixels. One image a forward, on the CPU on one thread: no batch matters.
        Raises ModelError: shapes or dtypes that do not fit, another count of bands, a valid pixel that is not finite.
        """
        check(pred, true, valid)
        if pred.shape[1] != 3:
            raise ModelError(f"LPIPS wants three bands (red, green, blue), not {pred.shape[1]}")
        out = np.full(len(pred), np.nan)
        if min(valid.shape[1:]) < MINIMUM:
            return out
        with torch.no_grad(), one_thread():
            for i, mask in enumerate(valid):
                if mask.any():
                    a, b = (
                        torch.from_numpy(np.where(mask, image[i], 0).astype(np.float32))[None].to(self._device)
                        for image in (pred, true)
                    )
                    out[i] = float(self._net(a, b, normalize=True))
        return out


def _network() -> Any:
    _torchvision.ensure()
    from torchmetrics.functional.image.lpips import _LPIPS

    with torch.random.fork_rng(devices=[]):  # it draws a random backbone: the global generator stays as it is
        return _LPIPS(pretrained=True, net="alex", pnet_rand=True)


def _features(net: Any) -> nn.Module:
    """The backbone's layers under torchvision's names, `features.N`: LPIPS has them in five slices."""
    layers = OrderedDict((name, layer) for part in net.net.children() for name, layer in part.named_children())
    return nn.ModuleDict({"features": nn.Sequential(layers)})
