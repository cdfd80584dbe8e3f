"""pix2pixHD (Wang et al., arXiv 1711.11585): global generator, local enhancer, one official training step.

Class names, arguments and state-dict keys are those of the official implementation, so that its checkpoints fit; any
number of bands goes in and comes out. Written from the paper and from published facts about the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo_dist.models import losses, perceptual
from sar2eo_dist.models._image import masked
from sar2eo_dist.models._network import ImageNetwork
from sar2eo_dist.models._norm import NORMS
from sar2eo_dist.models._norm import norm as make_norm
from sar2eo_dist.models._options import complete as _complete
from sar2eo_dist.models._options import require, resolve
from sar2eo_dist.models._trainer import BaseTrainer, Losses
from sar2eo_dist.models.discriminator import MultiscaleDiscriminator, collapsed, official_init
from sar2eo_dist.models.losses import Pyramid

GENERATORS = ("global", "local")
_LAMBDAS = ("lambda_feat", "lambda_vgg", "lambda_l1")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of `build` and `Trainer`; names and defaults are those of the official command line where it has them.

    netG ("global" or "local"), ngf, n_downsampling, n_blocks, norm: generator; n_local_enhancers, n_blocks_local: of the
    local one, whose global net has n_downsampling, n_blocks and width ngf * 2^n_local_enhancers. ndf, n_layers_D, num_D:
    discriminator. lambda_feat, lambda_vgg, lambda_l1: weights of feature matching, perceptual and pixel L1 loss beside
    the GAN loss. perceptual, perceptual_weights, perceptual_bands: backbone of the perceptual loss, "none" = off; see
    `perceptual.backbone`. beta1: Adam. decay_from: share of the steps at the full rate before the linear decay to 0.
    niter_fix_global: share of the steps (officially: epochs) in which of the local net only the finest enhancer is trained.
    """

    preset: str = "paper"
    netG: str = "global"  # noqa: N815 (the official name)
    ngf: int = 64
    n_downsampling: int = 4
    n_blocks: int = 9
    n_local_enhancers: int = 1
    n_blocks_local: int = 3
    norm: str = "instance"
    ndf: int = 64
    n_layers_D: int = 3  # noqa: N815
    num_D: int = 2  # noqa: N815
    lambda_feat: float = 10.0
    lambda_vgg: float = 10.0
    lambda_l1: float = 0.0
    perceptual: str = "none"
    perceptual_weights: str = ""
    perceptual_bands: tuple[int, ...] = ()
    beta1: float = 0.5
    decay_from: float = 0.5
    niter_fix_global: float = 0.0

    def __post_init__(self) -> None:
        require(self.norm in NORMS, f"pix2pixhd: norm must be one of {NORMS}, not {self.norm!r}")
        require(self.netG in GENERATORS, f"pix2pixhd: netG must be one of {GENERATORS}, not {self.netG!r}")
        positive = ("ngf", "n_downsampling", "ndf", "n_layers_D", "num_D", "n_local_enhancers")
        others = ("n_blocks", "n_blocks_local", *_LAMBDAS)
        for name, least in ((n, int(n in positive)) for n in positive + others):
            require(getattr(self, name) >= least, f"pix2pixhd: {name} must be >= {least}, not {getattr(self, name)}")
        for name in ("decay_from", "niter_fix_global"):
            require(0 <= getattr(self, name) <= 1, f"pix2pixhd: {name} must lie in 0..1, not {getattr(self, name)}")
        fixed = self.netG == "local" or not self.niter_fix_global
        require(fixed, "pix2pixhd: niter_fix_global is of netG local, which has something else to train")
        perceptual.check(self.perceptual, self.perceptual_weights)


#: `paper`: the official defaults; `paper_local`: the official 1024p script; `base`: a quarter of the work of `paper`;
#: `tiny`: 15.2 kMAC a pixel for 3 -> 3 bands, for tests and the demo; pix2pix's L1 weight steadies a short training
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper_local": {"netG": "local", "ngf": 32, "num_D": 3},
    "base": {"ngf": 32, "ndf": 32},
    "tiny": {"ngf": 12, "n_downsampling": 3, "n_blocks": 3, "ndf": 16, "lambda_l1": 100.0},
}


class ResnetBlock(nn.Module):
    """x + conv_block(x): (pad 1, 3x3 conv, norm, ReLU, pad 1, 3x3 conv, norm), reflection padding, no ReLU after."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), make_norm(norm, dim), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), make_norm(norm, dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)  # type: ignore[no-any-return]


def _stem(input_nc: int, width: int, norm: str) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(input_nc, width, 7), make_norm(norm, width), nn.ReLU(True)]


def _down(width: int, norm: str) -> list[nn.Module]:
    conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
    return [conv, make_norm(norm, 2 * width), nn.ReLU(True)]


def _up(width: int, norm: str) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
    return [conv, make_norm(norm, width), nn.ReLU(True)]


def _head(width: int, output_nc: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(width, output_nc, 7), nn.Tanh()]


class GlobalGenerator(ImageNetwork):
    """(N, input_nc, H, W) float32 in [-1, 1] to (N, output_nc, H, W) in [-1, 1]; state-dict keys `model.N...`.

    Any H, W >= `minimum`; padded by reflection to `multiple` = 2^n_downsampling and cropped back. Raises ModelError.
    """

    title = "pix2pixHD's generator"

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 64,
        n_downsampling: int = 4,
        n_blocks: int = 9,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = input_nc, output_nc
        self.multiple = 2**n_downsampling
        # reflection padding wants 4 px around the first conv, and 2 px at the coarsest level
        self.minimum = max(4, self.multiple + 1)
        widths = [ngf * 2**i for i in range(n_downsampling)]
        layers = _stem(input_nc, ngf, norm)
        for width in widths:
            layers += _down(width, norm)
        layers += [ResnetBlock(ngf * self.multiple, norm) for _ in range(n_blocks)]
        for width in reversed(widths):
            layers += _up(width, norm)
        self.model = nn.Sequential(*layers, *_head(ngf, output_nc))
        self.apply(official_init)

    def core(self, x: Tensor) -> Tensor:
        return self.segments(self.model, x)


class LocalEnhancer(ImageNetwork):
    """A GlobalGenerator of width ngf * 2^n_local_enhancers at coarse scale, refined by enhancers of twice the side each.

    (N, input_nc, H, W) float32 in [-1, 1] to (N, output_nc, H, W) in [-1, 1]. Keys `model.N...` are those of the global
    net without its last conv, `model{n}_1` (what enhancer n makes of its finer input, added to the coarser features)
    and `model{n}_2`. The default ngf is that of the official 1024p scripts. Any H, W >= `minimum`. Raises ModelError.
    """

    title = "pix2pixHD's local enhancer"
    inherits = "model."

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 32,
        n_downsample_global: int = 4,
        n_blocks_global: int = 9,
        n_local_enhancers: int = 1,
        n_blocks_local: int = 3,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.n_local_enhancers = input_nc, output_nc, n_local_enhancers
        self.multiple = 2 ** (n_downsample_global + n_local_enhancers)
        self.minimum = max(4, self.multiple + 1)
        wide = ngf * 2**n_local_enhancers
        coarse = GlobalGenerator(input_nc, output_nc, wide, n_downsample_global, n_blocks_global, norm)
        self.model = nn.Sequential(*list(coarse.model)[:-3])
        for n in range(1, n_local_enhancers + 1):
            width = ngf * 2 ** (n_local_enhancers - n)
            blocks = [ResnetBlock(2 * width, norm) for _ in range(n_blocks_local)]
            last = _head(width, output_nc) if n == n_local_enhancers else []
            self.add_module(f"model{n}_1", nn.Sequential(*_stem(input_nc, width, norm), *_down(width, norm)))
            self.add_module(f"model{n}_2", nn.Sequential(*blocks, *_up(width, norm), *last))
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.apply(official_init)

    def core(self, x: Tensor) -> Tensor:
        pyramid = [x]
        for _ in range(self.n_local_enhancers):
            pyramid.append(self.downsample(pyramid[-1]))
        y = self.segments(self.model, pyramid[-1])
        for n in range(1, self.n_local_enhancers + 1):
            finer = self.segments(getattr(self, f"model{n}_1"), pyramid[-1 - n])
            y = self.segments(getattr(self, f"model{n}_2"), finer + y)
        return y


def _resolve(options: Mapping[str, Any]) -> Options:
    return resolve(Options, PRESETS, options, "pix2pixhd")


def build(options: Mapping[str, Any], in_channels: int, out_channels: int) -> nn.Module:
    """The generator; see `models.Translator.build`."""
    o = _resolve(options)
    if o.netG == "local":
        return LocalEnhancer(
            in_channels,
            out_channels,
            o.ngf,
            o.n_downsampling,
            o.n_blocks,
            o.n_local_enhancers,
            o.n_blocks_local,
            o.norm,
        )
    return GlobalGenerator(in_channels, out_channels, o.ngf, o.n_downsampling, o.n_blocks, o.norm)


def complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """See `models.Translator.complete`."""
    return _complete(_resolve(options))


class Trainer(BaseTrainer):
    """Networks `G` (the generator) and `D`; see `models.Trainer`.

    One step is the official one: fake = G(source); D judges the detached fake, the real and the fake image, each beside
    its condition; G backward, then D backward from the same graph, and both step. Losses: G_GAN, G_GAN_Feat, G_VGG,
    G_L1 as weighted, those that are on; D_real, D_fake. D minimises (D_real + D_fake) / 2.

    After `niter_fix_global` the optimiser of G starts anew, over all parameters.
    """

    def __init__(self, net: nn.Module, options: Mapping[str, Any], lr: float, steps: int) -> None:
        if not isinstance(net, GlobalGenerator | LocalEnhancer):
            raise TypeError(f"pix2pixhd.Trainer trains a generator of this file, not a {type(net).__name__}")
        self.options = o = _resolve(options)
        self.lr, self.steps = lr, steps
        where = next(net.parameters()).device
        critic = MultiscaleDiscriminator(
            net.in_channels + net.out_channels, o.ndf, o.n_layers_D, o.norm, o.num_D, get_interm_feat=True
        ).to(where)
        nets: dict[str, nn.Module] = {"G": net, "D": critic}
        adams: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(n.parameters(), lr=lr, betas=(o.beta1, 0.999), fused=where.type != "meta")
            for name, n in nets.items()
        }
        super().__init__(nets, adams)
        name = o.perceptual if o.lambda_vgg else "none"
        self.backbone = perceptual.backbone(name, net.out_channels, o.perceptual_weights, o.perceptual_bands)
        if self.backbone is not None:
            self.frozen = [self.backbone.to(where)]

    def learning_rate(self, index: int) -> float:
        """lr, then linear to 0. The first step after `decay_from` still has the full rate, as the official epochs."""
        constant = int(self.steps * self.options.decay_from)
        return self.lr * (1.0 - max(0, index - constant) / max(1, self.steps - constant))

    @property
    def _fixed(self) -> int:
        """Steps in which only the finest enhancer is trained."""
        return int(self.steps * self.options.niter_fix_global)

    def begin(self, index: int) -> None:
        super().begin(index)
        if 0 < index == self._fixed:  # a new Adam, officially
            self.optimisers["G"].state.clear()

    def idle(self, index: int) -> list[nn.Parameter]:
        own = f"model{self.options.n_local_enhancers}_"
        named = self.networks["G"].named_parameters() if index < self._fixed else ()
        return [weights for name, weights in named if not name.startswith(own)]

    def losses(self, source: Tensor, target: Tensor, valid: Tensor) -> tuple[Losses, Losses]:
        o = self.options
        fake = masked(self.running["G"](source), valid)
        real = masked(target, valid)
        judged_fake: Pyramid = self.running["D"](torch.cat((source, fake.detach()), 1))
        judged_real: Pyramid = self.running["D"](torch.cat((source, real), 1))
        through = self._judge_frozen(torch.cat((source, fake), 1))

        parts = {"G_GAN": losses.lsgan(through, True)}
        if o.lambda_feat:
            parts["G_GAN_Feat"] = o.lambda_feat * losses.feature_matching(through, judged_real)
        if self.backbone is not None:
            parts["G_VGG"] = o.lambda_vgg * losses.perceptual(fake, real, self.backbone)
        if o.lambda_l1:
            parts["G_L1"] = o.lambda_l1 * losses.l1(fake, real)
        loss_g = torch.stack(list(parts.values())).sum()
        parts |= {"D_real": losses.lsgan(judged_real, True), "D_fake": losses.lsgan(judged_fake, False)}
        return parts, {"G": loss_g, "D": (parts["D_real"] + parts["D_fake"]) * 0.5}

    def symptoms(self, means: Mapping[str, float]) -> dict[str, str]:
        text = collapsed(*(means[k] / self.options.num_D for k in ("D_real", "D_fake", "G_GAN")))
        return {"discriminator_collapse": text} if text else {}

    def _judge_frozen(self, x: Tensor) -> Pyramid:
        """D(x) through which gradients reach x but not D's weights.

        The same numbers as the official step, which lets G's backward write gradients into D and throws them away; that
        would also fire DDP's reduction of D a second time.
        """
        critic = self.networks["D"]
        weights = {name: p.detach() for name, p in critic.named_parameters()}
        maps: Pyramid = torch.func.functional_call(critic, weights, (x,))
        return maps
