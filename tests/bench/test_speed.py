"""Speed of the inner loops beside a named peer and, where there is one, the physical limit. `make bench`."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from sar2eo_dist.cca import assess
from sar2eo_dist.cca.frechet import Reference, frechet_distance, point_distance
from sar2eo_dist.sections import CCA

RNG = np.random.default_rng(0)


def test_stages_1_and_2_against_opencv(versus: Any) -> None:
    """64 tiles; the peer does what the published scripts do: interleaved image, OpenCV's HSV and grey conversions."""
    tiles = RNG.integers(100, 3000, (64, 3, 256, 256)).astype(np.uint16)
    qa = np.zeros((256, 256), np.uint16)

    def peer() -> None:
        for bands in tiles:
            image = np.ascontiguousarray(bands.transpose(1, 2, 0)).astype(np.float64)
            low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
            stretched = ((image - low) / (high - low) * 255).astype(np.uint8)
            cv2.cvtColor(stretched, cv2.COLOR_RGB2HSV)[..., 2].mean()
            (cv2.cvtColor(stretched, cv2.COLOR_RGB2GRAY) < 10).mean()

    cfg = CCA()
    versus("stages 1 + 2, 64 tiles", lambda: [assess(t, qa, cfg) for t in tiles], peer, "OpenCV route")
    versus(
        "stages 1 + 2, 64 tiles",
        lambda: [assess(t, qa, cfg) for t in tiles],
        lambda: tiles.max(),
        "one pass over memory",
    )


def test_point_distance_against_a_distance_a_image(versus: Any) -> None:
    """32 images against a set of 100 in 256 dimensions; the peer is the full Frechet distance of each image put in twice."""
    reference = Reference.from_features(RNG.normal(size=(100, 256)).astype(np.float32), "x", "y")
    features = RNG.normal(size=(32, 256)).astype(np.float32)
    covariance = np.cov(RNG.normal(size=(100, 256)), rowvar=False)
    zero = np.zeros_like(covariance)
    versus(
        "point distance, 32 images", lambda: point_distance(features, reference),
        lambda: [frechet_distance(f, zero, reference.mean, covariance) for f in features.astype(np.float64)],
        "a full Frechet distance each", repeat=3,
    )  # fmt: skip
