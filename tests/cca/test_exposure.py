"""Exposure against OpenCV's own colour conversions and a literal re-statement of the published arithmetic."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca import exposure


def literal_stretch(bands: np.ndarray) -> np.ndarray:
    """(3, H, W) -> (H, W, 3): the script's float64 operations in its order."""
    planes = [((b - b.min()) / (b.max() - b.min())) * 255 for b in bands]
    return np.stack(planes, axis=-1).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 65535), st.integers(0, 65535))
def test_stretch_to_the_bit(seed, span, low):
    rng = np.random.default_rng(seed)
    bands = rng.integers(low, min(low + span, 65535) + 1, (3, 16, 16)).astype(np.uint16)
    if exposure.constant(bands):
        bands[:, 0, 0] ^= 1
        bands[:, 0, 1] = bands[:, 0, 0] ^ 1
    got = exposure.stretch(bands)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.moveaxis(literal_stretch(bands), -1, 0))


def test_stretch_of_every_level():
    for span in (1, 254, 255, 256, 1000, 4095, 65535):
        band = np.arange(span + 1, dtype=np.uint16)[None]
        bands = np.stack([band] * 3)
        np.testing.assert_array_equal(exposure.stretch(bands), np.moveaxis(literal_stretch(bands), -1, 0))


def test_constant_band():
    bands = np.arange(48, dtype=np.uint16).reshape(3, 4, 4)
    assert not exposure.constant(bands)
    bands[1] = 7
    assert exposure.constant(bands)
    assert (exposure.stretch(bands)[1] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_brightness_and_dark_equal_opencv(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, (256, 40, 20, 14)[seed], (3, 64, 64)).astype(np.uint8)
    hwc = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    assert exposure.brightness(image) == np.mean(cv2.cvtColor(hwc, cv2.COLOR_BGR2HSV)[:, :, 2])
    grey = cv2.cvtColor(hwc, cv2.COLOR_BGR2GRAY)
    assert exposure.dark_count(image, "released") == (grey <= 10).sum()
    exact = image.astype(object)
    assert exposure.dark_count(image, "paper") == (299 * exact[0] + 587 * exact[1] + 114 * exact[2] < 10_000).sum()


def test_released_grey_of_every_dark_colour():
    """All 64^3 colours around the threshold: OpenCV's rounding, weights of red and blue swapped."""
    image = np.indices((64, 64, 64), dtype=np.uint8).reshape(3, 512, 512)
    hwc = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    dark = cv2.cvtColor(hwc, cv2.COLOR_BGR2GRAY) <= 10
    ours = sum(exposure.dark_count(image[:, row : row + 1], "released") for row in range(512))
    assert exposure.dark_count(image, "released") == ours == dark.sum()
    pure_blue = np.zeros((3, 1, 1), np.uint8)
    pure_blue[2] = 60  # 0.114 * 60 = 6.8 is dark, 0.299 * 60 = 17.9 is not
    assert exposure.dark_count(pure_blue, "paper") == 1
    assert exposure.dark_count(pure_blue, "released") == 0


def test_alpha_and_valid_fractions():
    bands = np.full((3, 2, 4), 100, np.uint16)
    bands[0, 0, 0], bands[2, 0, 1], bands[1, 1, 3], bands[1, 0, 0] = 4096, 5000, 0, 4095
    assert exposure.alpha_fraction(bands, 4096) == 2 / 8
    assert exposure.valid_fraction(bands) == 7 / 8
