"""pix2pixHD (Wang et al., arXiv 1711.11585): global generator, multi-scale discriminator, one official training step.

Class names, arguments and state-dict keys are those of the official implementation, so that its checkpoints fit; any
number of bands goes in and comes out. Written from the paper and from published facts about the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models import losses
from sar2eo_dist.models._image import check, masked, pad
from sar2eo_dist.models._options import complete as _complete
from sar2eo_dist.models._options import require, resolve
from sar2eo_dist.models._trainer import BaseTrainer, finite
from sar2eo_dist.models.losses import Pyramid

NORMS = ("instance", "batch")
_LAMBDAS = ("lambda_feat", "lambda_vgg", "lambda_l1")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of `build` and `Trainer`; names and defaults are those of the official command line where it has them.

    ngf, n_downsampling, n_blocks, norm: generator. ndf, n_layers_D, num_D: discriminator. lambda_feat, lambda_vgg,
    lambda_l1: weights of feature matching, perceptual (backbone `perceptual`, a key of losses.BACKBONES) and pixel L1
    loss beside the GAN loss. beta1: Adam. decay_from: share of the steps at the full rate before the linear decay to 0.
    """

    preset: str = "paper"
    ngf: int = 64
    n_downsampling: int = 4
    n_blocks: int = 9
    norm: str = "instance"
    ndf: int = 64
    n_layers_D: int = 3  # noqa: N815 (the official name)
    num_D: int = 2  # noqa: N815
    lambda_feat: float = 10.0
    lambda_vgg: float = 10.0
    lambda_l1: float = 0.0
    perceptual: str = "none"
    beta1: float = 0.5
    decay_from: float = 0.5

    def __post_init__(self) -> None:
        require(self.norm in NORMS, f"pix2pixhd: norm must be one of {NORMS}, not {self.norm!r}")
        positive, others = ("ngf", "n_downsampling", "ndf", "n_layers_D", "num_D"), ("n_blocks", *_LAMBDAS)
        for name, least in ((n, int(n in positive)) for n in positive + others):
            require(getattr(self, name) >= least, f"pix2pixhd: {name} must be >= {least}, not {getattr(self, name)}")
        require(0 <= self.decay_from <= 1, f"pix2pixhd: decay_from must lie in 0..1, not {self.decay_from}")
        require(self.perceptual in losses.BACKBONES, f"pix2pixhd: no perceptual backbone {self.perceptual!r}")


#: `tiny`: 15.2 kMAC a pixel for 3 -> 3 bands, for tests and the demo; pix2pix's L1 weight steadies a short training
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "tiny": {"ngf": 12, "n_downsampling": 3, "n_blocks": 3, "ndf": 16, "lambda_l1": 100.0},
}


def _norm(kind: str, channels: int) -> nn.Module:
    """Instance norm has neither parameters nor running statistics, so train and eval outputs are identical."""
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=False)
    if kind == "batch":
        return nn.BatchNorm2d(channels, affine=True)
    raise ConfigError(f"norm must be one of {NORMS}, not {kind!r}")


def _official_init(module: nn.Module) -> None:
    """N(0, 0.02) for conv weights; BatchNorm weight N(1, 0.02), bias 0; conv biases stay at torch's default."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class ResnetBlock(nn.Module):
    """x + conv_block(x): (pad 1, 3x3 conv, norm, ReLU, pad 1, 3x3 conv, norm), reflection padding, no ReLU after."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), _norm(norm, dim), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), _norm(norm, dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)  # type: ignore[no-any-return]


class GlobalGenerator(nn.Module):
    """(N, input_nc, H, W) float32 in [-1, 1] to (N, output_nc, H, W) in [-1, 1]; state-dict keys `model.N...`.

    Any H, W >= `minimum`; padded by reflection to `multiple` = 2^n_downsampling and cropped back. Raises ModelError.
    """

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
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, 7), _norm(norm, ngf), nn.ReLU(True)]
        widths = [ngf * 2**i for i in range(n_downsampling + 1)]
        for fine, coarse in pairwise(widths):
            layers += [nn.Conv2d(fine, coarse, 3, stride=2, padding=1), _norm(norm, coarse), nn.ReLU(True)]
        layers += [ResnetBlock(widths[-1], norm) for _ in range(n_blocks)]
        for coarse, fine in pairwise(reversed(widths)):
            up = nn.ConvTranspose2d(coarse, fine, 3, stride=2, padding=1, output_padding=1)
            layers += [up, _norm(norm, fine), nn.ReLU(True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        self.apply(_official_init)

    def forward(self, x: Tensor) -> Tensor:
        check(x, self.in_channels, self.minimum, "pix2pixHD's generator")
        y: Tensor = self.model(pad(x, self.multiple))
        return y[:, :, : x.shape[2], : x.shape[3]]


class MultiscaleDiscriminator(nn.Module):
    """num_D PatchGANs on an image pyramid. (N, input_nc, H, W) to a list of scales, finest first, each a list of maps.

    With `get_interm_feat` a scale gives all n_layers + 2 maps (keys `scale{i}_layer{j}`), else only the decision map
    (keys `layer{i}`). As in the official one, the finest scale is `scale{num_D - 1}`.
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm: str = "instance",
        num_D: int = 2,
        get_interm_feat: bool = True,
    ) -> None:
        super().__init__()
        self.num_D, self.n_layers, self.get_interm_feat = num_D, n_layers, get_interm_feat
        for i in range(num_D):
            stages = _patch_gan(input_nc, ndf, n_layers, norm)
            if get_interm_feat:
                for j, stage in enumerate(stages):
                    self.add_module(f"scale{i}_layer{j}", nn.Sequential(*stage))
            else:
                self.add_module(f"layer{i}", nn.Sequential(*(layer for stage in stages for layer in stage)))
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.apply(_official_init)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        scales: list[list[Tensor]] = []
        for i in reversed(range(self.num_D)):
            names = [f"scale{i}_layer{j}" for j in range(self.n_layers + 2)] if self.get_interm_feat else [f"layer{i}"]
            maps = [x]
            for name in names:
                maps.append(getattr(self, name)(maps[-1]))
            scales.append(maps[1:])
            if i:
                x = self.downsample(x)
        return scales


def _patch_gan(input_nc: int, ndf: int, n_layers: int, norm: str) -> list[list[nn.Module]]:
    """4x4 convs with padding 2: n_layers of stride 2, one of stride 1, then the decision map; width capped at 512."""
    widths = [min(ndf * 2**i, 512) for i in range(n_layers + 1)]
    stages: list[list[nn.Module]] = [[nn.Conv2d(input_nc, ndf, 4, 2, 2), nn.LeakyReLU(0.2, True)]]
    for i in range(1, n_layers + 1):
        conv = nn.Conv2d(widths[i - 1], widths[i], 4, 2 if i < n_layers else 1, 2)
        stages.append([conv, _norm(norm, widths[i]), nn.LeakyReLU(0.2, True)])
    return [*stages, [nn.Conv2d(widths[-1], 1, 4, 1, 2)]]


def _resolve(options: Mapping[str, Any]) -> Options:
    return resolve(Options, PRESETS, options, "pix2pixhd")


def build(options: Mapping[str, Any], in_channels: int, out_channels: int) -> nn.Module:
    """The generator; see `models.Translator.build`."""
    o = _resolve(options)
    return GlobalGenerator(in_channels, out_channels, o.ngf, o.n_downsampling, o.n_blocks, o.norm)


def complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """See `models.Translator.complete`."""
    return _complete(_resolve(options))


class Trainer(BaseTrainer):
    """Networks `G` (the generator) and `D`; see `models.Trainer`.

    One step, in the official order: fake = G(source); D judges the detached fake, the real and the fake image, each
    beside its condition; G backward and step; then D backward from the same graph, and step. Losses: G_GAN,
    G_GAN_Feat, G_VGG, G_L1 as weighted, those that are on; D_real, D_fake. D minimises (D_real + D_fake) / 2.
    """

    def __init__(self, net: nn.Module, options: Mapping[str, Any], lr: float, steps: int) -> None:
        if not isinstance(net, GlobalGenerator):
            raise TypeError(f"pix2pixhd.Trainer trains a GlobalGenerator, not a {type(net).__name__}")
        self.options = o = _resolve(options)
        self.lr, self.steps = lr, steps
        where = next(net.parameters()).device
        critic = MultiscaleDiscriminator(
            net.in_channels + net.out_channels, o.ndf, o.n_layers_D, o.norm, o.num_D, get_interm_feat=True
        ).to(where)
        nets: dict[str, nn.Module] = {"G": net, "D": critic}
        adams: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(n.parameters(), lr=lr, betas=(o.beta1, 0.999)) for name, n in nets.items()
        }
        super().__init__(nets, adams)
        self.backbone = losses.backbone(o.perceptual, net.out_channels)

    def learning_rate(self, index: int) -> float:
        """lr, then linear to 0. The first step after `decay_from` still has the full rate, as the official epochs."""
        constant = int(self.steps * self.options.decay_from)
        return self.lr * (1.0 - max(0, index - constant) / max(1, self.steps - constant))

    def step(self, index: int, source: Tensor, target: Tensor, valid: Tensor) -> dict[str, float]:
        self.set_learning_rate(index)
        o = self.options
        fake = masked(self.running["G"](source), valid)
        real = masked(target, valid)
        judged_fake: Pyramid = self.running["D"](torch.cat((source, fake.detach()), 1))
        judged_real: Pyramid = self.running["D"](torch.cat((source, real), 1))
        through = self._judge_frozen(torch.cat((source, fake), 1))

        parts = {"G_GAN": losses.lsgan(through, True)}
        if o.lambda_feat:
            parts["G_GAN_Feat"] = o.lambda_feat * losses.feature_matching(through, judged_real)
        if self.backbone is not None and o.lambda_vgg:
            parts["G_VGG"] = o.lambda_vgg * losses.perceptual(fake, real, self.backbone)
        if o.lambda_l1:
            parts["G_L1"] = o.lambda_l1 * losses.l1(fake, real)
        loss_g = torch.stack(list(parts.values())).sum()
        parts |= {"D_real": losses.lsgan(judged_real, True), "D_fake": losses.lsgan(judged_fake, False)}
        loss_d = (parts["D_real"] + parts["D_fake"]) * 0.5
        values = finite(parts, index)

        for name, loss in (("G", loss_g), ("D", loss_d)):
            self.optimisers[name].zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimisers[name].step()
        return values

    def _judge_frozen(self, x: Tensor) -> Pyramid:
        """D(x) through which gradients reach x but not D's weights.

        The same numbers as the official step, which lets G's backward write gradients into D and throws them away; that
        would also fire DDP's reduction of D a second time.
        """
        critic = self.networks["D"]
        weights = {name: p.detach() for name, p in critic.named_parameters()}
        maps: Pyramid = torch.func.functional_call(critic, weights, (x,))
        return maps
