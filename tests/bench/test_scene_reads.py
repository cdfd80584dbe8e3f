"""Tiles of scenes through `sources.read_many`, beside reading the same files whole with rasterio and cutting them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scene_files as scenes

from sar2eo_dist import sources
from sar2eo_dist.records import PATCH

SIDE = 2048
RNG = np.random.default_rng(5)
GROUND = RNG.integers(300, 3000, (3, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
DN = (GROUND + RNG.integers(0, 60, GROUND.shape)).astype(np.uint16)  # B4, B3, B2: compresses about as imagery does
SCL = RNG.integers(1, 12, (SIDE // 32, SIDE // 32)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
BLOCKS = {"compress": "DEFLATE", "predictor": 2, "blocksize": 512}


def on_the_lattice() -> rasterio.Affine:
    """A place at which SIDE pixels are whole tiles."""
    return scenes.place(row=-3700 * PATCH, col=160 * PATCH)


@pytest.mark.parametrize("layout", ["one file of three bands", "a file a band, with SCL"])
def test_reading_scenes(layout: str, tmp_path: Path) -> None:
    root, at = str(tmp_path), on_the_lattice()
    if layout.startswith("one"):
        scenes.put(root, f"{scenes.S2_NAME}.tif", scenes.cog(DN, scenes.RGB, transform=at, **BLOCKS))
    else:
        files = {"B04": DN[0], "B03": DN[1], "B02": DN[2]}
        for band, plane in files.items():
            scenes.put(root, f"{scenes.S2_NAME}/{band}.tif", scenes.cog(plane, transform=at, **BLOCKS))
        coarse = rasterio.Affine(20, 0, at.c, 0, -20, at.f)
        scenes.put(root, f"{scenes.S2_NAME}/SCL.tif", scenes.cog(SCL, transform=coarse, **BLOCKS))
    refs = scenes.listed(root, "s2")
    assert len(refs) == (SIDE // PATCH) ** 2
    ours, theirs = [], []
    for _ in range(5):  # by turns, since the machine's speed wanders
        begin = time.perf_counter()
        found = [eo for _, eo in sources.read_many(refs)]
        ours.append(len(refs) / (time.perf_counter() - begin))
        assert all(isinstance(eo, sources.EO) for eo in found)
        begin = time.perf_counter()
        planes = []
        for path in sorted(tmp_path.rglob("*.tif")):
            with rasterio.open(path) as dataset:
                planes.append(dataset.read())
        tiles = [p[:, y : y + PATCH, x : x + PATCH].copy() for p in planes
                 for y in range(0, SIDE, PATCH) for x in range(0, SIDE, PATCH)]  # fmt: skip
        theirs.append(len(refs) / (time.perf_counter() - begin))
        assert tiles
    ratio = np.median(np.divide(ours, theirs))
    print(f"\n{layout}, {SIDE} x {SIDE}: {np.median(ours):,.0f} tiles/s, {ratio:.2f} of whole reads by rasterio")
