"""The lattice of scenes, and headers that are refused by name."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from scene_files import (
    COL,
    CORNERS,
    CRS,
    DB,
    DN,
    PLAIN,
    RGB,
    ROW,
    S2_NAME,
    SCL,
    H,
    W,
    cog,
    listed,
    place,
    put,
    refused,
    s1,
    s2,
    scanned,
    window,
)

from sar2eo_dist import sources
from sar2eo_dist.sources.scene_header import Grid


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


@settings(max_examples=60)
@given(row=st.integers(-(10**6), 10**6), col=st.integers(-100, 10**6), h=st.integers(1, 900), w=st.integers(1, 900))
def test_tiles_are_the_lattices_whole_cells(row: int, col: int, h: int, w: int) -> None:
    inside = [
        (r, c) for r in range(h - 255) for c in range(w - 255) if (row + r) % 256 == 0 and (col + c) % 256 == 0
    ]  # fmt: skip
    assert Grid(10.0, row, col, h, w).tiles().tolist() == [list(i) for i in inside]


def test_scenes_of_any_extent_give_the_same_tiles(root: str) -> None:
    """S1 from another corner: the common tiles have S2's places, and their pixels are of the same ground."""
    eo = s2(root)
    more = np.pad(DB, ((0, 0), (300, 0), (77, 0)), constant_values=-5)
    sar = s1(root, more, transform=place(ROW - 300, COL - 77))
    assert [t.rows for t in eo] == CORNERS
    assert {t.place for t in eo} < {t.place for t in sar}
    for tile in eo:
        other = next(t for t in sar if t.place == tile.place)
        assert other.rows == (tile.rows[0] + 300, tile.rows[1] + 77)
        assert (other.lon, other.lat) == pytest.approx((tile.lon, tile.lat), abs=1e-9)
        np.testing.assert_array_equal(sources.read_sar(other), window(DB, tile))


def test_a_tiles_centre_is_where_its_pixels_are(root: str) -> None:
    """On the central meridian of zone 21 (57 W) the longitude is exact, on the equator the latitude; in degrees both."""
    top, left = -128, 50_000 - 128  # UTM south: the equator is at 10,000 km, a multiple of 10 m but not of a tile
    put(
        root,
        "S2A_MSIL2A_20190606T1400.tif",
        cog(np.ones((3, 512, 512), np.uint16), RGB, transform=place(-1_000_192, 49_920), crs=CRS),
    )
    tile = listed(root, "s2")[0]
    row, col = -1_000_192 + tile.rows[0] + 128, 49_920 + tile.rows[1] + 128
    assert row % 256 == col % 256 == 128
    assert tile.lat == pytest.approx(-(1_000_000 + row) * 10 / 110_574, abs=2e-4)  # degrees of the ellipsoid at 0 N
    assert tile.lon == pytest.approx(-57 + (col - 50_000) * 10 / 111_319.5 / 0.9996, abs=1e-4)
    g = 8.983152841195215e-05
    put(
        f"{root}/deg",
        f"{S2_NAME}.tif",
        cog(np.ones((3, 512, 512), np.uint16), RGB, transform=place(top, left, g), crs="EPSG:4326"),
    )
    tile = listed(f"{root}/deg", "s2")[0]
    assert (tile.lon, tile.lat) == pytest.approx(((left + tile.rows[1] + 128) * g, -(top + tile.rows[0] + 128) * g))


GCPS = [GroundControlPoint(r, c, -55 + c / 1e4, -4 - r / 1e4) for r in (0, H) for c in (0, W)]

GRIDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "off by a fraction": (
        {"transform": rasterio.Affine(10, 0, 400_003, 0, -10, 9_500_100)},
        "wrong_shape",
        "0.300 pixels off",
    ),
    "rotated": ({"transform": rasterio.Affine(10, 1, 4e5, 1, -10, 9e6), **PLAIN}, "wrong_shape", "is rotated"),
    "south up": ({"transform": rasterio.Affine(10, 0, 4e5, 0, 10, 9e6), **PLAIN}, "wrong_shape", "not north-up"),
    "not square": ({"transform": rasterio.Affine(10, 0, 4e5, 0, -20, 9e6)}, "wrong_shape", "10 x 20"),
    "20 m": ({"transform": place(gsd=20)}, "wrong_shape", "pixels of 20 metre, not 10 m"),
    "10 feet": ({"crs": "EPSG:2263"}, "wrong_shape", "US survey foot"),
    "100 m in degrees": ({"crs": "EPSG:4326", "transform": place(9, 9, 9e-4)}, "wrong_shape", "0.0009 degrees"),
    "no CRS": ({"crs": None}, "unreadable", "no CRS"),
    "GCPs": ({"transform": None, "crs": "EPSG:4326", "gcps": GCPS, **PLAIN}, "unreadable", "raw GRD (4 ground"),
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("case", GRIDS)
def test_grids_off_the_lattice_are_refused_with_their_numbers(root: str, case: str) -> None:
    options, reason, value = GRIDS[case]
    uri = put(root, f"{S2_NAME}.tif", cog(DN, RGB, **options))
    bad = refused(root, "s2")
    assert (bad.sensor, bad.uri, bad.reason) == ("s2", uri, reason)
    assert value in bad.detail


def test_a_scene_without_a_whole_tile_is_not_lost(root: str) -> None:
    put(root, f"{S2_NAME}.tif", cog(DN[:, :275], RGB))  # 20 rows before the lattice, 255 after
    bad = refused(root, "s2")
    assert bad.reason == "wrong_shape"
    assert "275 x 540 px of 10 from lattice row -949780, column 40170" in bad.detail
    s2(root, DN[:, :276])


def test_tags_go_before_names(root: str) -> None:
    tile = s2(root, tags={"DATE": "2020-01-02", "PLATFORM": "S2B", "ORBIT": "ascending"})[0]
    assert (tile.date, tile.platform, tile.orbit) == (dt.date(2020, 1, 2), "S2B", "ascending")


UNREADABLE: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "undescribed": (lambda: cog(DN), "missing_band", "3 bands, undescribed"),
    "described twice": (lambda: cog(DN, ("B4", "red", "B2")), "missing_band", "('B4', 'red', 'B2')"),
    "red edge is not red": (lambda: cog(DN, ("Red Edge 1", "B3", "B2")), "missing_band", "Red Edge 1"),
    "8 bit": (lambda: cog(DN.astype(np.uint8), RGB), "wrong_dtype", "uint8"),
    "32 bit": (lambda: cog(DN.astype(np.uint32), RGB), "wrong_dtype", "uint32"),
    "reflectance": (lambda: cog((DN / 1e4).astype(np.float32), RGB), "wrong_dtype", "float32: no scale"),
    "odd scale": (lambda: cog(DN, RGB, scale=(2.75e-5, -0.2), **PLAIN), "wrong_dtype", "2.75e-05"),
    "no scale": (lambda: cog(DN, RGB, tags={"QUANTIFICATION_VALUE": "many"}), "wrong_dtype", "'many'"),
    "empty": (lambda: b"", "unreadable", "does not open"),
    "torn header": (lambda: cog(DN, RGB)[:200], "unreadable", "does not open"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_scene_that_cannot_be_read_is_one_rejection(root: str, case: str) -> None:
    make, reason, value = UNREADABLE[case]
    uri = put(root, f"{S2_NAME}.tif", make())
    bad = refused(root, "s2")
    assert (bad.uri, bad.reason) == (uri, reason)
    assert value in bad.detail


def test_no_date_says_what_was_looked_for(root: str) -> None:
    put(root, "scene.tif", cog(DN, RGB))
    bad = refused(root, "s2")
    assert bad.reason == "bad_name"
    assert "tag DATE" in bad.detail
    assert "S2A_MSIL2A_20190606T" in bad.detail


BAD_FILES: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "smaller band": ("B03", lambda: cog(DN[1, :250]), "wrong_shape", "B3 is 250 x 540"),
    "band elsewhere": ("B02", lambda: cog(DN[2], transform=place(ROW + 1)), "wrong_shape", "lattice row -949779"),
    "band at 20 m": ("B02", lambda: cog(DN[2, :150, :270], transform=place(ROW // 2, COL // 2, 20)), "wrong_shape", "of 20"),
    "another CRS": ("B03", lambda: cog(DN[1], crs="EPSG:32720"), "wrong_shape", "EPSG:32720"),
    "three bands in a file": ("B04", lambda: cog(DN), "wrong_shape", "B4 has 3 bands"),
    "small SCL": ("SCL", lambda: cog(SCL[:99], transform=place(ROW // 2, COL // 2, 20)), "wrong_shape", "does not cover"),
    "SCL begins later": ("SCL", lambda: cog(SCL, transform=place(ROW // 2, COL // 2 + 1, 20)), "wrong_shape", "does not cover"),
    "SCL off": ("SCL", lambda: cog(SCL, transform=place(ROW / 2 - 0.2, COL / 2 - 0.2, 20)), "wrong_shape", "0.400 pixels off"),
    "SCL of 25 m": ("SCL", lambda: cog(SCL, transform=place(ROW // 3, COL // 3, 25)), "wrong_shape", "no multiple"),
    "torn SCL": ("SCL", lambda: cog(SCL)[:90], "unreadable", "does not open"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_band_that_does_not_fit_is_named(root: str, case: str) -> None:
    band, make, reason, value = BAD_FILES[case]
    for name, pixels in zip(("B04", "B03", "B02"), DN, strict=True):
        put(root, f"{S2_NAME}/{name}.tif", cog(pixels))
    uri = put(root, f"{S2_NAME}/{band}.tif", make())
    bad = refused(root, "s2")
    assert (bad.uri, bad.reason) == (uri, reason)
    assert value in bad.detail


@pytest.mark.parametrize(
    "odd",
    [{"crs": 'LOCAL_CS["unknown"]'}, {"crs": "EPSG:4978"}, {"transform": rasterio.Affine(10, 0, np.nan, 0, -10, 0)},
     {"transform": rasterio.Affine(10, 0, np.inf, 0, -10, 0)}],
)  # fmt: skip
def test_an_impossible_header_rejects_its_scene_and_no_other(root: str, odd: dict[str, object]) -> None:
    put(root, f"{S2_NAME}.tif", cog(DN, RGB))
    put(root, f"{S2_NAME.replace('20190606', '20190706')}.tif", cog(DN, RGB, **(PLAIN | odd)))
    tiles, rejected = scanned(root, "s2")
    assert len(tiles) == 2
    assert len(rejected) == 1
    assert rejected[0].reason in ("unreadable", "wrong_shape", "no_crs", "wrong_crs")
