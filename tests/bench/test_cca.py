"""Stages 1 and 2 from uint16 DN beside planar numpy, the published scripts' own route, and one read of the memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloud_scenes
import cv2
import numpy as np
import pytest

from sar2eo_dist.cca import assess, decide, measure
from sar2eo_dist.sections import CCA

TILES = 64


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """(64, 3, 256, 256) uint16 of the synthetic world, clear and cloudy, in one piece of memory."""
    return np.stack([v.bands for v in cloud_scenes.world(5, TILES)])


def planar(bands: np.ndarray, qa60: np.ndarray) -> tuple[float, ...]:
    """Both published profiles' numbers, as good planar numpy makes them: tables for the stretch, no colour conversion."""
    size = qa60.size
    low, high = [int(b.min()) for b in bands], [int(b.max()) for b in bands]
    image = np.zeros(bands.shape, np.uint8)
    for band, out, a, b in zip(bands, image, low, high, strict=True):
        if b > a:
            np.take((np.arange(b - a + 1) / (b - a) * 255).astype(np.uint8), band - np.uint16(a), out=out)
    r, g, b = image.astype(np.int32)
    return (
        np.count_nonzero(bands.all(axis=0)) / size, np.count_nonzero(qa60 & 3072) / size, np.count_nonzero(qa60) / size,
        max(high), np.count_nonzero(bands.max(axis=0) >= 4096) / size, min(y - x for x, y in zip(low, high, strict=True)),
        int(image.max(axis=0).sum()) / size, np.count_nonzero(299 * r + 587 * g + 114 * b < 10_000) / size,
        np.count_nonzero((3735 * r + 19235 * g + 9798 * b + 16384) >> 15 <= 10) / size,
    )  # fmt: skip


def planar_clouds(bands: np.ndarray) -> tuple[float, ...]:
    """What `recommended` adds: white blocks, light, haze; OpenCV's opening."""
    r, g, b = bands.astype(np.int32)
    there, top = bands.all(axis=0), bands.max(axis=0)
    white = there & (b > 900) & (4 * b > 3 * r) & (30 * (top - bands.min(axis=0).astype(np.int32)) < 7 * (r + g + b))
    opened = cv2.morphologyEx(white.view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8),
                              borderType=cv2.BORDER_CONSTANT, borderValue=0)  # fmt: skip
    lit = np.minimum(top[::4, ::4][there[::4, ::4]], 4095)
    hot = (2 * b[::4, ::4] - r[::4, ::4])[(there & ~white)[::4, ::4]]
    light = np.partition(lit, (lit.size - 1) // 10)[(lit.size - 1) // 10] if lit.size else 0
    haze = np.partition(hot, (hot.size - 1) // 2)[(hot.size - 1) // 2] / 2 - 100 if hot.size else math.nan
    return int(opened.sum()) / max(1, np.count_nonzero(there)), light, haze


def published(bands: np.ndarray, qa60: np.ndarray) -> tuple[float, ...]:
    """The scripts' own route: (H, W, 3) float64 stretch, OpenCV's HSV and grey conversions."""
    image = np.ascontiguousarray(bands.transpose(1, 2, 0)).astype(np.float64)
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    stretched = ((image - low) / (high - low) * 255).astype(np.uint8)
    value, grey = cv2.cvtColor(stretched, cv2.COLOR_BGR2HSV)[:, :, 2], cv2.cvtColor(stretched, cv2.COLOR_BGR2GRAY)
    return qa60.max(), image.max(), np.mean(value), np.count_nonzero(grey <= 10)


def test_stages_1_and_2(versus: Any, tiles: np.ndarray) -> None:
    """64 tiles of 256 x 256, all numbers of all profiles; every peer gives the same numbers."""
    qa60, cca = np.zeros((256, 256), np.uint16), CCA()
    names = ("valid_fraction", "qa60_fraction", "qa60_any", "max_dn", "alpha_fraction", "contrast", "brightness",
             "dark_fraction", "dark_released", "white_fraction", "light", "haze")  # fmt: skip
    for bands in tiles:
        m = measure(bands, qa60, cca)
        np.testing.assert_equal(planar(bands, qa60) + planar_clouds(bands), tuple(getattr(m, n) for n in names))

    def ours() -> None:
        for bands in tiles:
            assess(bands, qa60, cca)

    def all_planar() -> None:
        for bands in tiles:
            planar(bands, qa60)
            planar_clouds(bands)

    label = f"measure + decide, {TILES} tiles"
    versus(label, ours, all_planar, "planar numpy and OpenCV, the same numbers")
    versus(label, ours, lambda: [planar(b, qa60) for b in tiles], "planar numpy, the published stages' numbers alone")
    versus(
        label, ours, lambda: [published(b, qa60) for b in tiles], "the published scripts' route, their numbers alone"
    )
    versus(label, ours, tiles.max, "one read of the same memory: fraction of read bandwidth")


def test_decide_again(versus: Any) -> None:
    """A million rows; the peer decides row by row what it can in a hundredth of them."""
    rng = np.random.default_rng(0)
    names = [f for f in measure(np.ones((3, 4, 4), np.uint16), None, CCA()).__dataclass_fields__ if f != "qa60_state"]
    columns = {n: rng.random(1_000_000) * (6000 if n in {"max_dn", "light", "contrast"} else 1) for n in names}
    few = {n: c[:10_000] for n, c in columns.items()}
    cca = CCA(profile="recommended")
    versus("decide 1,000,000 rows", lambda: decide(columns, cca),
           lambda: [decide({n: c[i : i + 1] for n, c in few.items()}, cca) for i in range(10_000)],
           "10,000 rows one by one", repeat=3)  # fmt: skip


def test_start(tmp_path: Path) -> None:
    """Seconds until the first tile is judged, by a process that must compile, and by the next one."""
    code = (
        "import time, numpy as np; a = time.perf_counter(); from sar2eo_dist.cca import assess;"
        "from sar2eo_dist.sections import CCA; b = time.perf_counter(); x = np.ones((3, 8, 8), np.uint16);"
        "x[:, :5, :5] = 5000; assess(x, None, CCA());"
        "print(f'import {b - a:.2f} s, first tile {time.perf_counter() - b:.2f} s')"
    )
    for label in ("compiled", "from the cache"):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
                              capture_output=True, text=True, check=True)  # fmt: skip
        print(f"\nstages 1 + 2, {label}: {done.stdout.strip()}, process {time.perf_counter() - begin:.2f} s")
