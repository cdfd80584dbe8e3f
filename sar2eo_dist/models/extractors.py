"""Feature extractors by name: what turns an 8-bit image into the vector whose Frechet distance is scored.

A score carries the name of what made it: "fid" only from pytorch-fid's network with its official weights, otherwise
"fd_<extractor>".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
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
    "means": ("means", "Means"),
}

Forward = Callable[[Tensor], tuple[Tensor, ...]]


class Network(nn.Module):
    """What an extractor's file defines: __init__(weights), and forward of (N, 3, H, W) uint8 to (N, dims) float32.

    map_dims: channels of the maps that `maps` returns, a block each; empty: the network gives none.
    """

    score_name: str
    dims: int
    preprocessing: str
    map_dims: tuple[int, ...] = ()

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) uint8 to the spatial maps (N, C, h, w) float32 of every block."""
        raise NotImplementedError


CPU_CHUNK = 4  # images in one forward on a CPU: activations stay in cache, 4 times faster than 32 at once


class Extractor:
    """Features of 8-bit images, the same numbers wherever they are computed on one device type.

    name, score_name, dims (length of a vector), preprocessing (in words: keep it beside every stored feature), map_dims
    (channels of each block's map; empty where the network has none to give).
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
        self.map_dims = network.map_dims
        self.device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self.device)
        if self.device.type == "cpu":
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(N, 3, H, W) uint8 RGB to (N, dims) float32.

        Raises ModelError on another shape or dtype, or N = 0; ConfigError, with the batch that fits, where a GPU has
        no memory for this one.
        """
        return self._run(images, lambda part: (self._network(part),))[0]

    def maps(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """(N, 3, H, W) uint8 RGB to the spatial maps of every block, (N, map_dims[i], h, w) float32 each.

        Raises ModelError as `features` does, and where the network has no maps.
        """
        self._wants_maps()
        return self._run(images, self._network.maps)

    def pooled(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """As `maps`, each averaged over its pixels: (N, map_dims[i]) float32; the last one is `features` (not of "null")."""
        self._wants_maps()
        return self._run(images, lambda part: tuple(m.mean((2, 3)) for m in self._network.maps(part)))

    def positions(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(N, 3, H, W) uint8 RGB to every position of the last map, (N, P, D) float32: rows from the top, left to right.

        Their mean over P is `features` but for rounding (not for "means"): one forward gives both. P is 64 for inception,
        49 for efficientnet_lite0. Raises as `maps` does.
        """
        self._wants_maps()
        return self._run(images, lambda part: (self._network.maps(part)[-1].flatten(2).transpose(1, 2),))[0]

    def _wants_maps(self) -> None:
        if not self.map_dims:
            raise ModelError(f"{self.name} has no maps of its blocks: use one of {', '.join(EXTRACTORS)}")

    def _run(self, images: npt.NDArray[np.uint8], forward: Forward) -> list[npt.NDArray[np.float32]]:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8 or 0 in images.shape:
            raise ModelError(f"{self.name} wants (N, 3, H, W) uint8 RGB, got {images.shape} {images.dtype}")
        batch = torch.from_numpy(np.require(images, requirements=("C", "W")))
        parts: Sequence[Tensor] = [batch]
        if self.device.type == "cpu":
            fill = -len(batch) % CPU_CHUNK
            parts = torch.split(torch.cat((batch, batch[:1].expand(fill, -1, -1, -1))), CPU_CHUNK)
        with torch.inference_mode(), _exact():
            outputs = zip(*(self._forward(part, forward) for part in parts), strict=True)
            found = [torch.cat(pieces)[: len(batch)] for pieces in outputs]
            return [x.float().cpu().contiguous().numpy() for x in found]

    def _forward(self, part: Tensor, forward: Forward) -> tuple[Tensor, ...]:
        try:
            return forward(self._moved(part))
        except torch.OutOfMemoryError as e:
            said = str(e).partition("\n")[0]
        # after the except: the error's traceback holds the tensors of the forward that failed
        fits = self._fitting(part, forward)
        advice = f"{fits} fit: set cca.pack to {fits}" if fits else "not even 1 fits: use a GPU with more free memory"
        raise ConfigError(
            f"extractor {self.name}: {self.device} has no memory for a batch of {len(part)} images of "
            f"{part.shape[2]} x {part.shape[3]}; {advice}, or let fewer extractors share a GPU ({said})"
        )

    def _fitting(self, part: Tensor, forward: Forward) -> int:
        """The largest power of two below the size of `part` that has room; 0: not even 1 image has."""
        size = 1 << (len(part) - 1).bit_length() >> 1
        while size:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                forward(self._moved(part[:size]))
                break
            except torch.OutOfMemoryError:
                size //= 2
        return size

    def _moved(self, part: Tensor) -> Tensor:
        """On the device; to a GPU from pinned memory, so that the copy waits for nothing."""
        return part.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else part


@contextmanager
def _exact() -> Iterator[None]:
    """Convolutions and matrix products in true float32 by deterministic kernels, and no autocast, whatever is set."""
    back: Any = torch.backends
    # torch >= 2.9 has a switch per operator; reading the old ones fails in a process that has used the new
    precision: list[tuple[Any, str, Any]] = [(back.cudnn, "allow_tf32", False), (back.cuda.matmul, "allow_tf32", False)]
    if hasattr(back.cudnn, "conv"):
        switches = (back.cudnn.conv, back.cuda.matmul, back.mkldnn.conv, back.mkldnn.matmul)
        precision = [(switch, "fp32_precision", "ieee") for switch in switches]
    wanted = [*precision, (back.cudnn, "deterministic", True), (back.cudnn, "benchmark", False)]
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
    """The extractor of that name ("inception", "efficientnet_lite0", "means") on a device ("cpu", "cuda", "cuda:1").

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
