"""The commonest class around a place, whatever the raster's CRS; the radar's guess without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.sources.land_cover import LandCover, guessed


def raster(path: Path, classes: np.ndarray, crs: str, west: float, north: float, step: float, **more: object) -> str:
    profile = {"driver": "GTiff", "height": classes.shape[0], "width": classes.shape[1], "count": 1, "crs": crs}
    with rasterio.open(
        path, "w", dtype=classes.dtype, transform=from_origin(west, north, step, step), **profile, **more
    ) as f:
        f.write(classes, 1)
    return str(path)


def test_the_commonest_class_of_a_patch_in_degrees_and_in_metres(tmp_path):
    rng = np.random.default_rng(3)
    classes = rng.choice([10, 30, 80], size=(400, 400), p=[0.2, 0.5, 0.3]).astype(np.uint8)
    classes[:200, :200] = 80
    found = LandCover(raster(tmp_path / "a.tif", classes, "EPSG:4326", -55.2, -4.0, 0.0005))
    assert found(-55.15, -4.05) == "water"
    assert found(-55.05, -4.15) == "grassland"
    (x,), (y,) = transform("EPSG:4326", "EPSG:32721", [-55.0], [-4.0])
    metres = LandCover(raster(tmp_path / "b.tif", classes, "EPSG:32721", x, y, 50.0))
    (lon,), (lat,) = transform("EPSG:32721", "EPSG:4326", [x + 5000], [y - 5000])
    assert metres(lon, lat) == "water"


def test_outside_unknown_and_no_data_are_no_class(tmp_path):
    classes = np.full((100, 100), 7, np.uint8)
    classes[:, 50:] = 0
    found = LandCover(raster(tmp_path / "a.tif", classes, "EPSG:4326", -55.0, -4.0, 0.001, nodata=0))
    assert found(-54.97, -4.03) == "class 7"
    assert found(-54.92, -4.07) == ""
    assert found(10.0, 10.0) == ""
    assert found(float("nan"), 0.0) == found(0.0, float("nan")) == found(0.0, 90.0) == ""
    assert found(-54.95, -4.05) == "class 7"  # half of it has data


def test_a_raster_that_holds_no_classes_is_refused_by_name(tmp_path):
    floats = raster(tmp_path / "f.tif", np.ones((4, 4), np.float32), "EPSG:4326", 0, 0, 0.1)
    with pytest.raises(ConfigError, match=r"float32.*f\.tif"):
        LandCover(floats)


def test_the_radar_tells_water_open_land_and_forest():
    db = np.full((2, 8, 8), -12.0, np.float32)
    assert guessed(db) == "forest (by radar)"
    db[1, :5] = -27.0
    assert guessed(db) == "water (by radar)"
    db[1] = -19.0
    db[1, 0] = np.nan
    assert guessed(db) == "open (by radar)"
    assert guessed(np.full((2, 4, 4), np.nan, np.float32)) == ""
