"""Restormer (Zamir et al., CVPR 2022, arXiv 2111.09881), an independent implementation from the paper.

Argument names and state-dict keys are the published ones, so that weights fit. As a translator (the enhancer, EO -> EO)
it works on images in [-1, 1]; the network inside works in [0, 1], as published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo_dist.models import losses
from sar2eo_dist.models._network import ImageNetwork
from sar2eo_dist.models._options import complete as _complete
from sar2eo_dist.models._options import require, resolve
from sar2eo_dist.models._trainer import BaseTrainer, Losses
from sar2eo_dist.models._transformer import TransformerBlock

NORMS = ("WithBias", "BiasFree")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of `build` and `Trainer`; names and defaults are the published ones where there are any.

    dim .. LayerNorm_type: network. weight_decay: AdamW. clip: largest gradient norm (0 = no clipping). hold: share of
    the steps at the full rate, followed by half a cosine down to lr * lr_end.
    """

    preset: str = "paper"
    dim: int = 48
    num_blocks: tuple[int, ...] = (4, 6, 6, 8)
    num_refinement_blocks: int = 4
    heads: tuple[int, ...] = (1, 2, 4, 8)
    ffn_expansion_factor: float = 2.66
    bias: bool = False
    LayerNorm_type: str = "WithBias"
    weight_decay: float = 1e-4
    clip: float = 0.01
    hold: float = 92 / 300
    lr_end: float = 1 / 300

    def __post_init__(self) -> None:
        kinds, widths = self.LayerNorm_type, [self.dim * 2**i for i in range(4)]
        require(kinds in NORMS, f"restormer: LayerNorm_type must be one of {NORMS}, not {kinds!r}")
        require(self.dim >= 2 and self.dim % 2 == 0, f"restormer: dim must be even and >= 2, not {self.dim}")
        counts = len(self.num_blocks) == 4 and min(self.num_blocks) >= 0
        require(counts, f"restormer: num_blocks must be 4 counts, not {self.num_blocks}")
        fits = len(self.heads) == 4 and all(h >= 1 and w % h == 0 for h, w in zip(self.heads, widths, strict=True))
        require(fits, f"restormer: heads must be 4 divisors of {widths}, not {self.heads}")
        wide = self.ffn_expansion_factor * self.dim >= 1
        require(wide, f"restormer: ffn_expansion_factor {self.ffn_expansion_factor} leaves no hidden channel")
        for name in ("num_refinement_blocks", "weight_decay", "clip"):
            require(getattr(self, name) >= 0, f"restormer: {name} must be >= 0, not {getattr(self, name)}")
        for name in ("hold", "lr_end"):
            require(0 <= getattr(self, name) <= 1, f"restormer: {name} must lie in 0..1, not {getattr(self, name)}")


#: `base`: an eighth of the work of `paper`; `tiny`: 16.4 kMAC a pixel for 3 -> 3 bands, for tests and the demo
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "base": {"dim": 24, "num_blocks": [2, 3, 3, 4], "num_refinement_blocks": 2},
    "tiny": {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0},
}


class _Body(nn.Module):
    """A module whose only child is `body`, or `proj`: that is how the published keys are nested."""

    def __init__(self, **child: nn.Module) -> None:
        super().__init__()
        (self.child,) = child
        self.add_module(self.child, child[self.child])

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.child)(x)  # type: ignore[no-any-return]


def _down(dim: int) -> nn.Module:
    return _Body(body=nn.Sequential(nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)))


def _up(dim: int) -> nn.Module:
    return _Body(body=nn.Sequential(nn.Conv2d(dim, dim * 2, 3, padding=1, bias=False), nn.PixelShuffle(2)))


class Restormer(ImageNetwork):
    """(N, inp_channels, H, W) in [0, 1] to (N, out_channels, H, W), about [0, 1], not clamped. Any H, W >= 8.

    The input image is added to the output, so the channel counts must agree, unless `dual_pixel_task`: then a 1x1 conv
    of the embedding is added before the last conv instead. Raises ConfigError where they do not agree.
    """

    title = "Restormer"

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        dual_pixel_task: bool = False,
    ) -> None:
        super().__init__()
        same = inp_channels == out_channels or dual_pixel_task
        require(same, f"Restormer adds {inp_channels} input to {out_channels} output bands: set dual_pixel_task")
        require(LayerNorm_type in NORMS, f"LayerNorm_type must be one of {NORMS}, not {LayerNorm_type!r}")

        def level(width: int, count: int, head: int) -> nn.Sequential:
            block = (width, head, ffn_expansion_factor, bias, LayerNorm_type)
            return nn.Sequential(*(TransformerBlock(*block) for _ in range(count)))

        d, n, h = dim, num_blocks, heads
        self.in_channels, self.out_channels, self.dual_pixel_task = inp_channels, out_channels, dual_pixel_task
        self.multiple = self.minimum = 8
        self.patch_embed = _Body(proj=nn.Conv2d(inp_channels, d, 3, padding=1, bias=False))
        self.encoder_level1 = level(d, n[0], h[0])
        self.down1_2 = _down(d)
        self.encoder_level2 = level(2 * d, n[1], h[1])
        self.down2_3 = _down(2 * d)
        self.encoder_level3 = level(4 * d, n[2], h[2])
        self.down3_4 = _down(4 * d)
        self.latent = level(8 * d, n[3], h[3])
        self.up4_3 = _up(8 * d)
        self.reduce_chan_level3 = nn.Conv2d(8 * d, 4 * d, 1, bias=bias)
        self.decoder_level3 = level(4 * d, n[2], h[2])
        self.up3_2 = _up(4 * d)
        self.reduce_chan_level2 = nn.Conv2d(4 * d, 2 * d, 1, bias=bias)
        self.decoder_level2 = level(2 * d, n[1], h[1])
        self.up2_1 = _up(2 * d)
        # no reduction at level 1: the decoder and the refinement run at twice the width, with the heads of level 1
        self.decoder_level1 = level(2 * d, n[0], h[0])
        self.refinement = level(2 * d, num_refinement_blocks, h[0])
        if dual_pixel_task:
            self.skip_conv = nn.Conv2d(d, 2 * d, 1, bias=bias)
        self.output = nn.Conv2d(2 * d, out_channels, 3, padding=1, bias=bias)

    def core(self, image: Tensor) -> Tensor:
        def level(blocks: nn.Sequential, x: Tensor) -> Tensor:
            for block in blocks:
                x = self.segment(block, x)
            return x

        embedded = self.patch_embed(image)
        one = level(self.encoder_level1, embedded)
        two = level(self.encoder_level2, self.down1_2(one))
        three = level(self.encoder_level3, self.down2_3(two))
        x = level(self.latent, self.down3_4(three))
        x = level(self.decoder_level3, self.reduce_chan_level3(torch.cat((self.up4_3(x), three), 1)))
        x = level(self.decoder_level2, self.reduce_chan_level2(torch.cat((self.up3_2(x), two), 1)))
        x = level(self.refinement, level(self.decoder_level1, torch.cat((self.up2_1(x), one), 1)))
        if self.dual_pixel_task:
            return self.output(x + self.skip_conv(embedded))  # type: ignore[no-any-return]
        return self.output(x) + image  # type: ignore[no-any-return]


class Enhancer(Restormer):
    """Restormer under the contract `models.Network`: [-1, 1] on both sides, any size, the published keys.

    With unequal band counts it takes the dual-pixel form, which needs no image to add. In eval mode the output is
    clamped to [-1, 1], as the published inference clamps to [0, 1]; in train mode it is not, or gradients would die.
    """

    def __init__(self, in_channels: int, out_channels: int, o: Options) -> None:
        super().__init__(
            in_channels, out_channels, o.dim, o.num_blocks, o.num_refinement_blocks, o.heads, o.ffn_expansion_factor,
            o.bias, o.LayerNorm_type, dual_pixel_task=in_channels != out_channels,
        )  # fmt: skip

    def core(self, image: Tensor) -> Tensor:
        return super().core(image * 0.5 + 0.5) * 2.0 - 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.training else y.clamp(-1.0, 1.0)


def _resolve(options: Mapping[str, Any]) -> Options:
    return resolve(Options, PRESETS, options, "restormer")


def build(options: Mapping[str, Any], in_channels: int, out_channels: int) -> nn.Module:
    """See `models.Translator.build`."""
    return Enhancer(in_channels, out_channels, _resolve(options))


def complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """See `models.Translator.complete`."""
    return _complete(_resolve(options))


class Trainer(BaseTrainer):
    """Network `G`; AdamW, L1 loss in units of [0, 1], clipped gradient norm; see `models.Trainer`.

    Losses: l1.
    """

    def __init__(self, net: nn.Module, options: Mapping[str, Any], lr: float, steps: int) -> None:
        self.options = o = _resolve(options)
        self.lr, self.steps = lr, steps
        adam = torch.optim.AdamW(
            net.parameters(),
            lr=lr,
            betas=(0.9, 0.999),
            weight_decay=o.weight_decay,
            fused=not next(net.parameters()).is_meta,
        )
        super().__init__({"G": net}, {"G": adam})
        self.clip = {"G": o.clip}

    def learning_rate(self, index: int) -> float:
        """lr for `hold` of the steps, then half a cosine down to lr * lr_end."""
        constant = int(self.steps * self.options.hold)
        x = max(0, index - constant) / max(1, self.steps - constant)
        low = self.lr * self.options.lr_end
        return low + (self.lr - low) * 0.5 * (1.0 + math.cos(math.pi * x))

    def losses(self, source: Tensor, target: Tensor, valid: Tensor) -> tuple[Losses, Losses]:
        loss = 0.5 * losses.l1(self.running["G"](source), target, valid)
        return {"l1": loss}, {"G": loss}
