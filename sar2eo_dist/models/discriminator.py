"""pix2pixHD's critic (arXiv 1711.11585, section 3.2): PatchGANs on an image pyramid. The init of all its networks too."""

from __future__ import annotations

from torch import Tensor, nn

from sar2eo_dist.models._network import Accelerated
from sar2eo_dist.models._norm import norm as make_norm


def official_init(module: nn.Module) -> None:
    """N(0, 0.02) for conv weights; BatchNorm weight N(1, 0.02), bias 0; conv biases stay at torch's default."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class MultiscaleDiscriminator(Accelerated):
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
        self.apply(official_init)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        return self.run(x)  # type: ignore[no-any-return]

    def core(self, x: Tensor) -> list[list[Tensor]]:
        scales: list[list[Tensor]] = []
        for i in reversed(range(self.num_D)):
            names = [f"scale{i}_layer{j}" for j in range(self.n_layers + 2)] if self.get_interm_feat else [f"layer{i}"]
            maps = [x]
            for name in names:
                maps.append(self.segment(self.get_submodule(name), maps[-1]))
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
        stages.append([conv, make_norm(norm, widths[i]), nn.LeakyReLU(0.2, True)])
    return [*stages, [nn.Conv2d(widths[-1], 1, 4, 1, 2)]]


def collapsed(real: float, fake: float, fooled: float) -> str:
    """What is wrong with a least-squares discriminator, in words; "" where nothing is.

    Its mean squared errors on real and fake images, and the generator's, each of one scale. It may win: it knows every
    fake, and the generator learns nothing from it. Or give up: 1/2 for everything, an error of 1/4 on both.
    """
    told = f"squared errors: real {real:.4f}, fake {fake:.4f}, generator's {fooled:.3f}"
    if real + fake < 0.02 and fooled > 0.8:
        return f"the discriminator knows every fake ({told}): lower lr, or raise lambda_feat"
    if abs(real - 0.25) < 2e-3 and abs(fake - 0.25) < 2e-3:
        return f"the discriminator answers 1/2 to everything ({told}): lower lr, or raise ndf"
    return ""
