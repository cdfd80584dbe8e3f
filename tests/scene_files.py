"""Scenes for tests: COGs written by rasterio on one pixel grid, as one file or one band a file, and their listing."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from sar2eo_dist import storage
from sar2eo_dist.records import Rejected, TileRef, from_table
from sar2eo_dist.sources import multiearth, scene_tiles

KIND = "scenes"
CRS = "EPSG:32721"
ROW, COL = -949_780, 40_170  # of the first pixel, from the CRS's origin; tiles begin 20 rows and 22 columns further
H, W = 300, 540
RNG = np.random.default_rng(3)
DN = RNG.integers(1200, 3000, (3, H, W)).astype(np.uint16)  # B4, B3, B2
DB = np.stack([RNG.normal(-9, 2, (H, W)), RNG.normal(-15, 2, (H, W))]).astype(np.float32)
SCL = RNG.integers(1, 12, (H // 2, W // 2)).astype(np.uint8)
S2_NAME, S1_NAME = "S2A_MSIL2A_20190606T140059_N0212_R067_T21MXT", "S1A_IW_GRDH_1SDV_20190608T091543"
S1_TAGS = {
    "SAR2EO_UNITS": "db",
    "SAR2EO_QUANTITY": "sigma0",
    "ORBIT": "DESCENDING",
    "PLATFORM": "S1A",
    "DATE": "2019-06-08",
}
CORNERS = [(20, 22), (20, 278)]
PLAIN: dict[str, Any] = {"driver": "GTiff", "blocksize": None, "overviews": None}


def place(row: float = ROW, col: float = COL, gsd: float = 10.0) -> rasterio.Affine:
    return rasterio.Affine(gsd, 0, col * gsd, 0, -gsd, -row * gsd)


def cog(
    pixels: np.ndarray,
    names: tuple[str, ...] = (),
    tags: dict[str, str] | None = None,
    band_tags: dict[str, str] | None = None,
    scale: tuple[float, float] | None = None,
    mask: np.ndarray | None = None,
    **options: Any,
) -> bytes:
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    profile = {"driver": "COG", "blocksize": 256, "overviews": "NONE", "crs": CRS, "transform": place()} | options
    profile = {k: v for k, v in profile.items() if v is not None}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(count=count, height=height, width=width, dtype=pixels.dtype.name, **profile) as dataset:
            dataset.write(pixels)
            dataset.update_tags(**(tags or {}))
            for i in range(1, count + 1):
                dataset.update_tags(i, **(band_tags or {}))
                if names:
                    dataset.set_band_description(i, names[i - 1])
            if mask is not None:
                dataset.write_mask(mask)
            if scale:
                dataset.scales, dataset.offsets = [scale[0]] * count, [scale[1]] * count
        return bytes(memory.read())


RGB = ("B4", "B3", "B2")


def put(root: str, name: str, data: bytes) -> str:
    uri = storage.join(root, name)
    storage.put(uri, data)
    return uri


def s2(root: str, pixels: np.ndarray = DN, names: tuple[str, ...] = RGB, **options: Any) -> list[TileRef]:
    put(root, f"{S2_NAME}.tif", cog(pixels, names, **options))
    return listed(root, "s2")


def s2_files(root: str, **files: bytes) -> list[TileRef]:
    for band, data in {b: cog(p) for b, p in zip(("B04", "B03", "B02"), DN, strict=True)}.items():
        put(root, f"{S2_NAME}/{band}.tif", files.pop(band, data))
    for band, data in files.items():
        put(root, f"{S2_NAME}/{band}.tif", data)
    return listed(root, "s2")


def s1(root: str, pixels: np.ndarray = DB, **options: Any) -> list[TileRef]:
    put(root, "scene.tif", cog(pixels, ("VV", "VH"), **({"tags": S1_TAGS} | options)))
    return listed(root, "s1")


def scanned(root: str, sensor: str, **given: str) -> tuple[list[TileRef], list[Rejected]]:
    """Rows in the listing's order; each key is its tile's."""
    tables, rejected = scene_tiles.scan(root, sensor, lambda _: None, **given)
    tiles = []
    for table in tables:
        assert table.schema == multiearth.SCHEMA
        rows = from_table(table, TileRef)
        assert table["key"].to_pylist() == [t.key for t in rows]
        tiles += rows
    return tiles, rejected


def listed(root: str, sensor: str) -> list[TileRef]:
    tiles, rejected = scanned(root, sensor)
    assert rejected == []
    return tiles


def refused(root: str, sensor: str, **given: str) -> Rejected:
    """The one rejection of a listing without tiles."""
    tiles, rejected = scanned(root, sensor, **given)
    assert tiles == []
    assert len(rejected) == 1
    return rejected[0]


def window(pixels: np.ndarray, ref: TileRef) -> np.ndarray:
    row, col = ref.rows
    return pixels[..., row : row + 256, col : col + 256]
