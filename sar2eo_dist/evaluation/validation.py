"""How good a network is on held-out pairs while it trains, beside trivial predictors, and whether blobs grow in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sar2eo_dist.evaluation.baselines import fit
from sar2eo_dist.evaluation.metrics import BASIC, image_metrics
from sar2eo_dist.radiometry import ScalingLike, decode_db, scale_counts, scale_eo

F32 = npt.NDArray[np.float32]
Pair = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16], npt.NDArray[np.bool_]]
FIT = 512  # training pairs at most that the baselines are fitted on
Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out samples, whole patches.

    pairs(i): counts (2, S, S) int16 of 0.01 dB, DN (C, S, S) uint16, valid (S, S) bool; image(i): an enhancer's source
    (C, S, S) float32 in [-1, 1], None for a translator; scaling: the config's; scale: pixels so many times coarser.
    """

    pairs: Callable[[int], Pair]
    image: Callable[[int], F32] | None
    samples: Sequence[int]
    scaling: ScalingLike
    scale: int = 1

    def read(self, i: int) -> tuple[F32, F32, npt.NDArray[np.bool_], F32]:
        """source (C, S, S) in [-1, 1], truth (C, S, S) in [0, 1], valid (S, S), dB (2, S, S) of a sample."""
        counts, eo, valid = self.pairs(i)
        source = scale_counts(counts, self.scaling) if self.image is None else self.image(i)
        truth = (scale_eo(eo, valid, self.scaling) + np.float32(1)) / np.float32(2)
        return (
            coarse(source, self.scale), coarse(truth, self.scale), coarse(valid[None], self.scale)[0] == 1,
            coarse(decode_db(counts), self.scale),
        )  # fmt: skip


def coarse(image: npt.NDArray[np.generic], scale: int) -> F32:
    """(C, H, W) to float32 means over blocks of scale x scale pixels."""
    c, h, w = image.shape
    blocks = image.astype(np.float32).reshape(c, h // scale, scale, w // scale, scale)
    return np.asarray(blocks.mean((2, 4), dtype=np.float32))


def measure(net: nn.Module, held: Held, device: torch.device, rank: int = 0, world: int = 1) -> dict[int, Row]:
    """Metrics of this rank's part of the held-out samples, by sample; one patch a forward, so no batch matters."""
    found: dict[int, Row] = {}
    with _evaluating(net), torch.no_grad():
        for i in held.samples[rank::world]:
            source, truth, valid, _ = held.read(i)
            made: Tensor = net(torch.from_numpy(source)[None].to(device))
            found[i] = _row((made.float().cpu().numpy() + np.float32(1)) / np.float32(2), truth, valid)
    return found


def mean(rows: Mapping[int, Row]) -> dict[str, float | None]:
    """Mean of each metric over the samples that have it, in their order; None where none has."""
    out: dict[str, float | None] = {}
    for name in BASIC:
        values = np.array([rows[i][name] for i in sorted(rows)])
        known = values[np.isfinite(values)]
        out[name] = float(known.mean()) if len(known) else None
    return out


def baselines(held: Held, training: Sequence[int]) -> dict[str, dict[str, float | None]]:
    """The same metrics of predictors that know no more than averages (see evaluation.baselines), fitted on training
    pairs; for an enhancer also of its source, `translated`."""
    shown = (held.read(i) for i in training[:: max(1, -(-len(training) // FIT))])
    trivial = fit((db, truth, valid) for _, truth, valid, db in shown)
    found: dict[str, dict[int, Row]] = {}
    for i in held.samples:
        source, truth, valid, db = held.read(i)
        made = trivial.images(db)
        if held.image is not None:
            made["translated"] = (source + np.float32(1)) / np.float32(2)
        for name, image in made.items():
            found.setdefault(name, {})[i] = _row(image[None], truth, valid)
    return {name: mean(rows) for name, rows in found.items()}


def _row(image: F32, truth: F32, valid: npt.NDArray[np.bool_]) -> Row:
    """Metrics of an image (1, C, S, S); NaN where it is not finite at a valid pixel."""
    if not np.isfinite(image[0][:, valid]).all():
        return dict.fromkeys(BASIC, float("nan"))
    image = np.clip(image, 0, 1)
    return {name: float(v[0]) for name, v in image_metrics(image, truth[None], valid[None], 1.0).items()}


def peak(net: nn.Module, source: Tensor) -> float:
    """How far one place stands out in the network's features: the largest over convolutions of max / rms over places.

    source (N, C, H, W). pix2pixHD's blobs are such places: a generator under instance norm can blow one up to move the
    statistics of all the others. About 3 to 10 in a healthy network.
    """
    peaks: list[Tensor] = []

    def look(_: nn.Module, __: object, features: Tensor) -> None:
        power = features.float().square().mean(1).flatten(1)  # (N, H W)
        peaks.append((power.amax(1) / power.mean(1).clamp_min(1e-12)).sqrt().amax())

    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [m.register_forward_hook(look) for m in convolutions]
    try:
        with _evaluating(net), torch.no_grad(), torch.compiler.set_stance("force_eager"):  # where the hooks are seen
            net(source)
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.stack(peaks).amax()) if peaks else 0.0


class _evaluating:  # noqa: N801 (used as a function)
    """Eval mode for a while, then the mode that was."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __enter__(self) -> None:
        self._was = self._net.training
        self._net.eval()

    def __exit__(self, *error: object) -> None:
        self._net.train(self._was)
