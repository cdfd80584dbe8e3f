"""Losses of pix2pixHD (arXiv 1711.11585, section 3.3) and of the challenge's variants, as plain functions.

All are means over every element of what they are given. An image pair is masked first (`_image.masked`): an invalid
pixel then adds zero to the numerator and still counts in the denominator, so a patch that is half empty weighs half,
and the mean of the ranks' losses is the loss of the global batch. Half-precision maps are reduced in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models._image import masked
from sar2eo_dist.models._network import single

#: weights of relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 of VGG19 in pix2pixHD
VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)

Pyramid = Sequence[Sequence[Tensor]]


class Backbone(Protocol):
    """Images (N, C, H, W) in [-1, 1] to feature maps, finest first, each differentiable; its own weights are frozen."""

    def __call__(self, images: Tensor) -> Sequence[Tensor]: ...


def lsgan(outputs: Pyramid, real: bool) -> Tensor:
    """Least-squares GAN loss: mean (d - 1)^2 or mean d^2 of the last map of every scale, summed over scales.

    outputs: per scale the maps of a discriminator, the decision map last. Scalar.
    """
    goal = 1.0 if real else 0.0
    decisions = [single(maps[-1]) for maps in outputs]
    return torch.stack([functional.mse_loss(d, torch.full_like(d, goal)) for d in decisions]).sum()


def feature_matching(fake: Pyramid, real: Pyramid) -> Tensor:
    """sum over scales and all maps but the last of mean |fake - real|, times 1 / scales times 4 / maps. Scalar.

    Official weights: (1 / num_D) * (4 / (n_layers_D + 1)); a scale of n_layers_D layers has n_layers_D + 2 maps. No
    gradient flows into `real`.
    """
    weight = 4.0 / (len(fake[0]) - 1) / len(fake)
    terms = [
        _distance(f, r.detach())
        for one, other in zip(fake, real, strict=True)
        for f, r in zip(one[:-1], other[:-1], strict=True)
    ]
    return weight * torch.stack(terms).sum()


def l1(fake: Tensor, real: Tensor, valid: Tensor | None = None) -> Tensor:
    """mean |fake - real| over all elements; (N, C, H, W) each; invalid pixels (valid (N, 1, H, W) bool) add zero."""
    if valid is not None:
        fake, real = masked(fake, valid), masked(real, valid)
    return _distance(fake, real)


def perceptual(fake: Tensor, real: Tensor, features: Backbone, weights: Sequence[float] = VGG_WEIGHTS) -> Tensor:
    """sum_i weights[i] * mean |features(fake)_i - features(real)_i|. Scalar; no gradient flows into `real`.

    Images go in as they are, in [-1, 1]: pix2pixHD applies no ImageNet normalisation. Raises ModelError where the
    backbone gives another number of maps than there are weights.
    """
    with torch.no_grad():
        wanted = features(real)
    found = features(fake)
    if len(found) != len(weights):
        raise ModelError(f"the perceptual backbone gives {len(found)} maps for {len(weights)} weights")
    terms = zip(weights, found, wanted, strict=True)
    return torch.stack([w * _distance(f, r.detach()) for w, f, r in terms]).sum()


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return functional.l1_loss(single(one), single(other))
