"""Exposure against OpenCV's own colour conversions and a literal re-statement of the published arithmetic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca import exposure
from sar2eo_dist.errors import ConfigError


def literal_stretch(bands: np.ndarray) -> np.ndarray:
    """(3, H, W): the script's float64 operations in its order; a constant band is 0."""
    planes = [(b - b.min()) / max(1, int(b.max()) - int(b.min())) * 255 for b in bands]
    return np.stack(planes).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 65535), st.integers(0, 65535), st.tuples(*[st.integers(1, 17)] * 2))
def test_all_counts_equal_their_restatement(seed, span, low, shape):
    rng = np.random.default_rng(seed)
    bands = rng.integers(low, min(low + span, 65535) + 1, (3, *shape)).astype(np.uint16)
    bands[rng.random(bands.shape) < 0.1] = 0
    image = literal_stretch(bands)
    alpha = low + span // 2
    np.testing.assert_array_equal(exposure.stretch(bands), image)
    exact = image.astype(int)
    assert exposure.expose(bands, alpha) == (
        bands.all(axis=0).sum(), (bands >= alpha).any(axis=0).sum(), bands.max(),
        min(int(b.max()) - int(b.min()) for b in bands), exact.max(axis=0).sum(),
        (299 * exact[0] + 587 * exact[1] + 114 * exact[2] < 10_000).sum(),
        ((3735 * exact[0] + 19235 * exact[1] + 9798 * exact[2] + (1 << 14)) >> 15 <= 10).sum(),
    )  # fmt: skip


@pytest.mark.parametrize("span", [1, 2, 15, 254, 255, 256, 1000, 4095, 29309, 65025, 65533, 65534, 65535])
def test_stretch_of_every_level(span):
    bands = np.stack([np.arange(span + 1, dtype=np.uint16)[None]] * 3)
    np.testing.assert_array_equal(exposure.stretch(bands), literal_stretch(bands))


def image_of(levels: np.ndarray) -> np.ndarray:
    """Bands that stretch to these levels: 0 and 255 are there."""
    bands = levels.astype(np.uint16)
    bands[:, 0, 0], bands[:, 0, 1] = 0, 255
    return bands


@pytest.mark.parametrize("top", [256, 40, 20, 14])
def test_brightness_and_dark_equal_opencv(top):
    bands = image_of(np.random.default_rng(top).integers(0, top, (3, 64, 64)))
    hwc = np.ascontiguousarray(np.moveaxis(bands, 0, -1)).astype(np.uint8)
    got = exposure.expose(bands, 4096)
    assert got.bright / 4096 == np.mean(cv2.cvtColor(hwc, cv2.COLOR_BGR2HSV)[:, :, 2])
    assert got.dark_released == (cv2.cvtColor(hwc, cv2.COLOR_BGR2GRAY) <= 10).sum()


def test_released_grey_of_every_dark_colour():
    """All 64^3 colours around the threshold: OpenCV's rounding, weights of red and blue swapped."""
    bands = image_of(np.indices((64, 64, 64)).reshape(3, 512, 512))
    hwc = np.ascontiguousarray(np.moveaxis(bands, 0, -1)).astype(np.uint8)
    assert exposure.expose(bands, 4096).dark_released == (cv2.cvtColor(hwc, cv2.COLOR_BGR2GRAY) <= 10).sum()
    blue = np.array([[[0, 255, 0]], [[0, 255, 0]], [[0, 255, 60]]], np.uint16)
    # 0.114 * 60 = 6.8 is dark, 0.299 * 60 = 17.9 is not
    assert exposure.expose(blue, 4096)[-2:] == (2, 1)


def test_layouts_and_read_only_pixels_make_no_difference():
    bands = np.random.default_rng(1).integers(0, 3000, (3, 20, 31)).astype(np.uint16)
    seen = exposure.expose(bands, 2000)
    hwc = np.ascontiguousarray(np.moveaxis(bands, 0, -1))
    assert exposure.expose(np.moveaxis(hwc, -1, 0), 2000) == seen
    frozen = np.frombuffer(bands.tobytes(), np.uint16).reshape(bands.shape)
    assert exposure.expose(frozen, 2000) == seen
    assert bands.flags.writeable


def test_harmonise():
    bands = np.array([[[0, 1, 999, 1000, 1001, 65535]]] * 3, np.uint16)
    got = exposure.harmonise(bands, 1000)
    assert got.dtype == np.uint16
    assert got[0, 0].tolist() == [0, 1, 1, 1, 1, 64535]
    assert exposure.harmonise(bands, 0) is bands
    for offset in (-1000, 65535):
        with pytest.raises(ConfigError, match=str(offset)):
            exposure.harmonise(bands, offset)


def test_without_a_place_for_the_cache_it_compiles_all_the_same(tmp_path: Path):
    """An image run from a read-only disk as a user without a home."""
    (tmp_path / "mod.py").write_text(
        "from sar2eo_dist.compiled import compiled\n@compiled\ndef twice(x):\n    return 2 * x\n"
    )
    code = (
        "import numba.core.caching as c; c.CacheImpl._locator_classes = []; import mod; assert mod.twice(21) == 42;"
        "print(mod.twice.stats.cache_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
