"""Feature extractors by name: what turns an 8-bit image into the vector whose Frechet distance is scored.

A score carries the name of what made it: "fid" only from pytorch-fid's network with its official weights, otherwise
"fd_<extractor>".
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ConfigError, ModelError

#: name -> module of this folder and class in it
EXTRACTORS = {
    "inception": ("inception", "Inception"),
    "efficientnet_lite0": ("efficientnet", "EfficientNetLite0"),
}


class Network(nn.Module):
    """What an extractor's file defines: __init__(weights), and forward of (N, 3, H, W) uint8 to (N, dims) float32."""

    score_name: str
    dims: int
    preprocessing: str


CPU_CHUNK = 4  # images in one forward on a CPU: activations stay in cache, 4 times faster than 32 at once


class Extractor:
    """Features of 8-bit images, the same numbers wherever they are computed on one device type.

    name, score_name, dims (length of a vector), preprocessing (in words: keep it beside every stored feature).
    Kernels are chosen by tensor shape, and then differ in the last bits. On a CPU every forward therefore holds
    CPU_CHUNK images, the last one padded here. On a GPU a call is one forward: use ONE pack size (`cca.pack`), the last
    pack padded by the caller with any images, whose rows are dropped. Doing so everywhere is right on both. The CPU
    thread count (`cca.threads`) is the caller's to fix. Float32, TF32 off, deterministic kernels, eval, no gradient.
    """

    def __init__(self, name: str, network: Network, device: str = "cpu") -> None:
        self.name = name
        self.score_name = network.score_name
        self.dims = network.dims
        self.preprocessing = network.preprocessing
        self.device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self.device)
        if self.device.type == "cpu":
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(N, 3, H, W) uint8 RGB to (N, dims) float32. Raises ModelError on another shape or dtype, or N = 0."""
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8 or 0 in images.shape:
            raise ModelError(f"{self.name} wants (N, 3, H, W) uint8 RGB, got {images.shape} {images.dtype}")
        batch = torch.from_numpy(np.ascontiguousarray(images))
        parts = [batch.to(self.device)]
        if self.device.type == "cpu":
            fill = -len(batch) % CPU_CHUNK
            parts = list(torch.split(torch.cat((batch, batch[:1].expand(fill, -1, -1, -1))), CPU_CHUNK))
        with torch.inference_mode(), _exact():
            found: Tensor = torch.cat([self._network(part) for part in parts])[: len(batch)]
        return found.float().cpu().numpy()


@contextmanager
def _exact() -> Iterator[None]:
    """Convolutions in true float32 by deterministic kernels, and no autocast, whatever the process has set."""
    cudnn = torch.backends.cudnn
    # torch >= 2.9 has a switch per operator; reading the old one fails in a process that has used the new
    precision: tuple[Any, str, Any] = (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (
        cudnn, "allow_tf32", False)  # fmt: skip
    wanted = [precision, (cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    before = [getattr(owner, name) for owner, name, _ in wanted]
    try:
        for owner, name, value in wanted:
            setattr(owner, name, value)
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for (owner, name, _), value in zip(wanted, before, strict=True):
            setattr(owner, name, value)


def extractor(name: str, weights: str = "", device: str = "cpu") -> Extractor:
    """The extractor of that name ("inception" or "efficientnet_lite0") on a device ("cpu", "cuda", "cuda:1").

    weights: inception only, URI of the official file (see `inception.Inception`). Raises ConfigError: unknown name,
    missing or wrong weights, no such device.
    """
    if name not in EXTRACTORS:
        raise ConfigError(f"no feature extractor {name!r}; there are: {', '.join(sorted(EXTRACTORS))}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"extractor {name}: device {device!r} asked for, but torch sees no GPU")
    module, kind = EXTRACTORS[name]
    try:
        network: Network = getattr(importlib.import_module(f"sar2eo_dist.models.{module}"), kind)(weights)
    except ImportError as e:
        raise ConfigError(f"extractor {name} needs a package that is not installed: {e}") from e
    return Extractor(name, network, device)
