"""Clouds, haze and light against a plain numpy and OpenCV re-statement, and against the physics they claim."""

from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca import cloud
from sar2eo_dist.sections import CCA

FOREST, SOIL, SAND, CLOUD = (225, 415, 225), (1330, 900, 640), (1900, 1600, 1250), (5000, 5000, 5000)


def restated(bands: np.ndarray, cfg: SimpleNamespace) -> tuple[int, float, float]:
    x = np.maximum(bands.astype(np.int64) - np.array(cloud.PATH[cfg.level])[:, None, None], 1)
    there, blue, red = bands.all(axis=0), x[2], x[0]
    white = there & (blue > cfg.white_dn) & (1000 * blue > round(1000 * cfg.white_blue) * red)
    white &= 3000 * (x.max(axis=0) - x.min(axis=0)) < round(1000 * cfg.white_spread) * x.sum(axis=0)
    opened = cv2.morphologyEx(
        np.pad(white.astype(np.uint8), 3), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)
    )  # outside nothing is white
    every = (slice(None, None, 4),) * 2
    light = np.sort(np.minimum(x.max(axis=0), 4095)[every][there[every]])
    hot = np.sort(np.clip(2 * blue - red, -8192, 8191)[every][(there & ~white)[every]])
    return (
        int(opened.sum()),
        float(light[(light.size - 1) // 10]) if light.size else 0.0,
        hot[(hot.size - 1) // 2] / 2 - 100 if hot.size else math.nan,
    )


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 21)] * 2),
    st.sampled_from((1500, 5000, 65535)),
    st.floats(0, 1),
    st.sampled_from(("l2a", "l1c")),
    st.integers(0, 3000),
    st.floats(0, 2),
    st.floats(0, 3),
)
def test_it_is_what_it_says(seed, shape, top, mixed, level, dn, blue, spread):
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, top, (1, *shape))
    bands = np.clip(mixed * rng.integers(0, top, (3, *shape)) + (1 - mixed) * grey, 0, 65535).astype(np.uint16)
    bands[:, rng.random(shape) < 0.05] = 0
    cfg = SimpleNamespace(level=level, white_dn=dn, white_blue=blue, white_spread=spread)
    np.testing.assert_equal(tuple(cloud.look(bands, cfg)), restated(bands, cfg))


def scene(ground: tuple[int, int, int], side: int = 64) -> np.ndarray:
    """Bands B4, B3, B2 of one ground with 3 % of noise."""
    rng = np.random.default_rng(0)
    return np.rint(np.array(ground)[:, None, None] * rng.normal(1, 0.03, (3, side, side))).astype(np.uint16)


def covered(ground: tuple[int, int, int], opacity: float, side: int) -> np.ndarray:
    bands = scene(ground)
    spot = bands[:, 20 : 20 + side, 30 : 30 + side]
    spot[:] = np.rint((1 - opacity) * spot + opacity * np.array(CLOUD)[:, None, None])
    return bands


@pytest.mark.parametrize("ground", [FOREST, SOIL, SAND], ids=["forest", "soil", "sand"])
def test_clouds_are_found_over_any_ground_and_ground_is_no_cloud(ground):
    cfg = CCA(profile="recommended")
    assert cloud.look(scene(ground), cfg).white == 0
    assert cloud.look(covered(ground, 0.8, 10), cfg).white == 100
    assert cloud.look(covered(ground, 0.3, 10), cfg).white > 80
    assert cloud.look(covered(ground, 1.0, 2), cfg).white == 0  # a roof of 20 m
    assert cloud.look(covered(FOREST, 0.17, 10), cfg).white == 100


def test_the_borders_of_white():
    def count(r: int, g: int, b: int) -> int:
        return cloud.look(np.full((3, 3, 3), np.array([r, g, b])[:, None, None], np.uint16), CCA()).white

    assert [count(800, 800, b) for b in (900, 901)] == [0, 9]
    assert [count(r, 1000, 960) for r in (1280, 1279)] == [0, 9]  # blue at 3/4 of red
    assert [count(r, 1000, 1300) for r in (618, 619)] == [0, 9]  # (max - min) / mean = 0.701 and 0.6999


def test_coloured_brightness_is_no_cloud():
    cfg = CCA(profile="recommended")
    assert cloud.look(scene((600, 900, 1800)), cfg).white == 0  # blue roofs, heavy smoke
    assert cloud.look(scene((1500, 1300, 1000)), cfg).white == 0  # brown water


def test_haze_is_dn_of_blue_light_too_much():
    clear = scene(FOREST)
    assert abs(cloud.look(clear, CCA()).haze) < 30
    smoke = clear + np.array([110, 140, 200], np.uint16)[:, None, None]
    assert cloud.look(smoke, CCA()).haze == pytest.approx(cloud.look(clear, CCA()).haze + 200 - 110 / 2, abs=2)
    half = clear.copy()
    half[:, :, :40] = 6000  # cloud does not count
    assert cloud.look(half, CCA()).haze == pytest.approx(cloud.look(clear, CCA()).haze, abs=5)
    assert math.isnan(cloud.look(np.full((3, 8, 8), 6000, np.uint16), CCA()).haze)


def test_light_is_no_stretch():
    bands = scene(FOREST)
    dim = cloud.look(bands, CCA()).light
    assert 390 < dim < 415
    bands[:, 5:9, 5:9] = 9000
    assert cloud.look(bands, CCA()).light == dim
    assert cloud.look(np.ones_like(bands), CCA()).light == 1
    assert cloud.look(np.zeros_like(bands), CCA()) == (0, 0, pytest.approx(math.nan, nan_ok=True))


def test_rayleigh_light():
    """The formula by hand: l^-4 = 17.347, 10.168, 5.1135 at 0.490, 0.560, 0.665 um."""
    sun = math.cos(cloud.SUN_ZENITH)
    depth = [cloud.rayleigh(w) * 1e-4 * 4 * sun / (0.75 * (1 + sun * sun)) for w in (0.49, 0.56, 0.665)]
    assert depth == pytest.approx([0.1560, 0.0904, 0.0450], rel=0.005)
    assert cloud.PATH == {"l2a": (0, 0, 0), "l1c": (170, 342, 591)}
    toa = scene(FOREST) + np.array(cloud.PATH["l1c"], np.uint16)[:, None, None]
    assert cloud.look(toa, CCA(level="l1c")) == cloud.look(scene(FOREST), CCA())
    assert cloud.look(toa, CCA()).haze > 300  # taken for a surface, the molecules look like smoke
