"""Scenes as tiles: layouts, names, the lattice, refusals, and pixels with their masks and offsets."""

from __future__ import annotations

import datetime as dt
import gc
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from sar2eo_dist import sources, storage
from sar2eo_dist.errors import BadInput, ConfigError, NotFound, SourceChanged, Unavailable
from sar2eo_dist.records import Rejected, TileRef, from_table
from sar2eo_dist.sources import multiearth, scene_tiles
from sar2eo_dist.sources.raster import Raster
from sar2eo_dist.sources.scene_header import Grid
from sar2eo_dist.sources.scene_layout import Files, acquisitions, product

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


def place(row: int = ROW, col: int = COL, gsd: float = 10.0) -> rasterio.Affine:
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


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


# layouts --------------------------------------------------------------------------------------------------------------


def grouped(names: list[str], sensor: str) -> list[dict[str, str] | str]:
    """What a listing of these names becomes: {band: name} of each scene, or the reason of a rejection."""
    found = acquisitions((storage.Info(f"m/{n}", 1, "") for n in sorted(names)), sensor)
    return [{b: u[2:] for b, u in f.files} if isinstance(f, Files) else f.reason for f in found]


A, B = "S2A_21MXT_20190606_0_L2A", "S2B_21MXT_20190611_0_L2A"
LAYOUTS: dict[str, tuple[str, list[str], list[dict[str, str] | str]]] = {
    "one file a scene": ("s2", ["a.tif", "b/c.TIFF"], [{"": "a.tif"}, {"": "b/c.TIFF"}]),
    "Earth Search": (
        "s2",
        [f"{A}/{n}.tif" for n in ("red", "green", "blue", "nir", "scl", "visual", "rededge1", "coastal")],
        [{"B4": f"{A}/red.tif", "B3": f"{A}/green.tif", "B2": f"{A}/blue.tif", "SCL": f"{A}/scl.tif"}],
    ),
    "two scenes in one folder": (
        "s2",
        [f"{p}_{b}.tif" for p in (A, B) for b in ("B02", "B03", "B04", "B8A", "QA60")],
        [{"B4": f"{p}_B04.tif", "B3": f"{p}_B03.tif", "B2": f"{p}_B02.tif", "QA60": f"{p}_QA60.tif"} for p in (A, B)],
    ),
    "a prefix of another's name": (
        "s2",
        [f"{p}_{b}.tif" for p in ("x", "x_S") for b in ("B2", "B3", "B4", "SCL")],
        [{b: f"{p}_{b}.tif" for b in (*RGB, "SCL")} for p in ("x_S", "x")],
    ),
    "SAFE, converted": (
        "s2",
        [f"I/R{r}m/T21MXT_20190606T140059_{b}_{r}m.tif" for r in (10, 20, 60) for b in ("B02", "B03", "B04", "SCL", "AOT")],
        [{b: f"I/R10m/T21MXT_20190606T140059_{n}_10m.tif" for b, n in (("B4", "B04"), ("B3", "B03"), ("B2", "B02"))}
         | {"SCL": "I/R10m/T21MXT_20190606T140059_SCL_10m.tif"}, "duplicate"],
    ),
    "SCL at 20 m in its own folder": (
        "s2",
        [f"I/R10m/T_{b}_10m.tif" for b in ("B02", "B03", "B04")] + ["I/R20m/T_SCL_20m.tif", "I/R60m/T_SCL_60m.tif"],
        [{"B4": "I/R10m/T_B04_10m.tif", "B3": "I/R10m/T_B03_10m.tif", "B2": "I/R10m/T_B02_10m.tif",
          "SCL": "I/R20m/T_SCL_20m.tif"}],
    ),
    "SCL before QA60": (
        "s2",
        ["B02.tif", "B03.tif", "B04.tif", "QA60.tif", "SCL.tif"],
        [{"B4": "B04.tif", "B3": "B03.tif", "B2": "B02.tif", "SCL": "SCL.tif"}],
    ),
    "jp2": ("s2", ["a/B04.jp2", "a/B08.jp2", "T_TCI.jp2"], ["bad_name"]),
    "jp2 and S1": ("s1", ["a/B04.jp2", "x.jp2"], []),
    "no B3": ("s2", ["a/B02.tif", "a/B04.tif", "a/SCL.tif"], ["missing_band"]),
    "twice": ("s2", ["a/B02.tif", "a/B03.tif", "a/B04.tif", "a/red.tif"],
              ["duplicate", {"B4": "a/B04.tif", "B3": "a/B03.tif", "B2": "a/B02.tif"}]),
    "S1": ("s1", [f"{S1_NAME}_VV.tif", f"{S1_NAME}_VH.tif", f"{A}/B04.tif", "a.json", "a.tif.aux.xml"],
           [{"VV": f"{S1_NAME}_VV.tif", "VH": f"{S1_NAME}_VH.tif"}]),
    "S1 in small": ("s1", ["x/vv.tif", "x/vh.tif"], [{"VV": "x/vv.tif", "VH": "x/vh.tif"}]),
    "S1 of the Planetary Computer": ("s1", ["x/iw-vv.rtc.tiff", "x/iw-vh.rtc.tiff"],
                                     [{"VV": "x/iw-vv.rtc.tiff", "VH": "x/iw-vh.rtc.tiff"}]),
    "S1 without VH": ("s1", ["x/vv.tif"], ["missing_band"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_files_become_scenes(case: str) -> None:
    sensor, names, expected = LAYOUTS[case]
    assert sorted(grouped(names, sensor), key=str) == sorted(expected, key=str)


@settings(max_examples=60)
@given(
    st.sets(
        st.tuples(
            st.sampled_from(["", "x_", "x_S", "x_S2_", "d/", "d/e/", "d/x-"]), st.sampled_from([*RGB, "SCL", "VV"])
        )
    )
)
def test_no_file_is_lost_and_scenes_are_those_of_one_prefix(files: set[tuple[str, str]]) -> None:
    found = grouped([f"{prefix}{band}.tif" for prefix, band in files if prefix != "x_S"], "s2")
    wanted = [
        {b for p, b in files if p == prefix and b != "VV"} for prefix in ("", "x_", "x_S2_", "d/", "d/e/", "d/x-")
    ]
    assert sorted(len(f) for f in found if isinstance(f, dict)) == sorted(len(w) for w in wanted if set(RGB) <= w)
    assert sum(f == "missing_band" for f in found) == sum(bool(w) and not set(RGB) <= w for w in wanted)


@pytest.mark.parametrize(
    ("uri", "sensor", "platform", "date"),
    [
        ("S2A_MSIL2A_20190606T140059_N0212_R067_T21MXT_20190607T000000.tif", "s2", "S2A", "2019-06-06"),
        ("b/S2B_21MXT_20190606_0_L2A/B04.tif", "s2", "S2B", "2019-06-06"),
        ("S2C_T21MXT_20250606T140059_L2A/red.tif", "s2", "S2C", "2025-06-06"),
        ("S2B_MSIL2A_20170924T93020_69_24_B04.tif", "s2", "S2B", "2017-09-24"),
        ("S1A_IW_GRDH_1SDV_20190527T091543_20190527T091608_027414_0317B5.tif", "s1", "S1A", "2019-05-27"),
        ("S1B_IW_20190608T091543_DVP_RTC10_G_gpuned_3F1B/x_VV.tif", "s1", "S1B", "2019-06-08"),
        ("s1a-iw-grd-vv-20190527t091543-20190527t091608-027414-0317b5-001.tiff", "s1", "S1A", "2019-05-27"),
        ("S2A_X.SAFE/GRANULE/S2A_MSIL2A_20190606T140059/T21MXT_20190601T140059_B04.tif", "s2", "S2A", "2019-06-06"),
        ("20201002T221611_20201002T221610_T60HWB.tif", "s2", "unknown", "2020-10-02"),
        ("T21MXT_20190606T140059_B04_10m.tif", "s2", "unknown", "2019-06-06"),
        ("x_20190606T140059.tif", "", "unknown", "2019-06-06"),
        ("scene_20190606.tif", "", "unknown", None),
        ("Spain_7370579_S2Hand.tif", "", "unknown", None),
        ("S2A_OPER_PRD_MSIL1C_PDMC_20160101T000000_R067_V20151231T140059.tif", "", "unknown", None),
    ],
)
def test_product_names(uri: str, sensor: str, platform: str, date: str | None) -> None:
    said = product(f"s3://bucket/{uri}")
    assert (said.sensor, said.platform, said.date(uri)) == (
        sensor,
        platform,
        dt.date.fromisoformat(date) if date else None,
    )


@pytest.mark.parametrize("day", ["20191345", "20140101", "29990101"])
def test_impossible_days_of_names_are_rejected(root: str, day: str) -> None:
    uri = put(root, f"S2A_MSIL2A_{day}T140059.tif", cog(DN, RGB))
    bad = refused(root, "s2")
    assert (bad.reason, bad.uri) == ("bad_date", uri)
    assert day in bad.detail


# the lattice ----------------------------------------------------------------------------------------------------------


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


def test_tiles_that_share_a_place_are_rejected_by_name(root: str) -> None:
    """At 75 degrees north 10 m of Web Mercator are 2.6 m: four tiles in a row lie within 0.02 degrees of latitude."""
    put(root, f"{S2_NAME}.tif", cog(np.ones((3, 1024, 256), np.uint16), RGB, crs="EPSG:3857",
                                    transform=place(-1_292_800 // 256 * 256, 0), nodata=0))  # fmt: skip
    tiles, rejected = scanned(root, "s2")
    assert len(tiles) + len(rejected) == 4
    assert len({t.key for t in tiles}) == len(tiles) < 4
    assert {r.reason for r in rejected} == {"duplicate"}
    assert all(any(t.key in r.detail for t in tiles) for r in rejected)


# listing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["local", "memory"])
def test_a_scene_is_listed_with_all_that_it_says(tmp_path: Path, store: str) -> None:
    root = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    sar = s1(root)
    assert [t.rows for t in sar] == CORNERS
    first = sar[0]
    assert (first.sensor, first.kind, first.bands, first.rows) == ("s1", KIND, ("VV", "VH"), (20, 22))
    assert (first.date, first.orbit, first.platform) == (dt.date(2019, 6, 8), "descending", "S1A")
    eo = s2_files(root, SCL=cog(SCL, transform=place(ROW // 2, COL // 2, 20)))
    assert eo[0].bands == (*RGB, "SCL")
    assert [storage.name(u) for u in eo[0].uris] == ["B04.tif", "B03.tif", "B02.tif", "SCL.tif"]
    assert (eo[0].date, eo[0].platform) == (dt.date(2019, 6, 6), "S2A")
    for listed_tile in (*sar, *eo):
        sources.unchanged(listed_tile)
    again, bad = sources.list_tiles(KIND, root, "s2")
    assert (sorted(again, key=lambda t: t.rows), bad) == (eo, [])
    storage.put(eo[0].uris[3], b"other")
    with pytest.raises(SourceChanged):
        sources.unchanged(eo[0])


def test_tags_go_before_names(root: str) -> None:
    tile = s2(root, tags={"DATE": "2020-01-02", "PLATFORM": "S2B", "ORBIT": "ascending"})[0]
    assert (tile.date, tile.platform, tile.orbit) == (dt.date(2020, 1, 2), "S2B", "ascending")


def test_rows_come_scene_by_scene_and_row_by_row(root: str) -> None:
    big = np.ones((3, 1100, 900), np.uint16)
    for name in ("b", "a/S2A_21MXT_20190611_0_L2A", "c"):
        put(root, f"{name}/S2B_21MXT_20190606_0_L2A.tif", cog(big, RGB))
    tiles = listed(root, "s2")
    assert len(tiles) == 18
    assert [(t.uris[0], t.rows) for t in tiles] == sorted((t.uris[0], t.rows) for t in tiles)
    assert len({t.key for t in tiles}) == 6  # overlapping scenes of a day


def test_a_listing_streams(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables come while the walk goes on, and objects of any kind are counted."""
    for i in range(60):
        put(root, f"{i:02d}/{S2_NAME}.tif", cog(np.ones((3, 512, 512), np.uint16), RGB))
    infos, walked = storage.list_files(root), 0

    def walk(uri: str) -> Iterator[list[storage.Info]]:
        nonlocal walked
        for info in infos:
            walked += 1
            yield [info]

    monkeypatch.setattr(storage, "walk", walk)
    counts: list[int] = []
    tables, _ = scene_tiles.scan(root, "s2", counts.append)
    next(tables)
    assert walked < 30
    assert len(list(tables)) == 59
    assert counts == list(range(1, 61))


def test_one_folder_may_hold_both_sensors(root: str) -> None:
    s2_files(root, SCL=cog(SCL, transform=place(ROW // 2, COL // 2, 20)), TCI=b"passed over", B08=b"passed over")
    s1(root)
    put(root, "more/S2B_MSIL2A_20190611T140059.tif", b"torn: the listing of S2 says so")
    assert len(listed(root, "s1")) == 2
    tiles, rejected = scanned(root, "s2")
    assert len(tiles) == 2
    assert [(r.reason, storage.name(r.uri)) for r in rejected] == [("unreadable", "S2B_MSIL2A_20190611T140059.tif")]


def test_a_file_of_nobody_is_in_both_listings(root: str) -> None:
    put(root, "dem.tif", cog(DB[:1], ("height",)))
    for sensor in ("s1", "s2"):
        bad = refused(root, sensor)
        assert bad.reason == "missing_band"
        assert "('height',)" in bad.detail


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


def test_wrong_arguments_have_a_name(root: str) -> None:
    with pytest.raises(ConfigError, match="'sentinel'"):
        scene_tiles.scan(root, "sentinel", lambda _: None)
    tables, _ = sources.scan(KIND, storage.join(root, "none"), "s2")
    with pytest.raises(NotFound, match="none"):
        list(tables)


# pixels of S2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["local", "memory"])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_dn_are_as_stored_in_the_order_red_green_blue(tmp_path: Path, store: str, dtype: str) -> None:
    root = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    shuffled = np.stack([DN[2], DN[0], DN[0] * 0 + 7, DN[1]]).astype(dtype)
    for tile in s2(root, shuffled, ("Blue", "B04 - red", "B08", "sr_B3")):
        eo = sources.read_eo(tile)
        assert eo.bands.dtype == np.uint16
        np.testing.assert_array_equal(eo.bands, window(DN, tile))
        assert (eo.qa60, eo.offset) == (None, 0)


def test_one_band_a_file_is_the_same(root: str) -> None:
    for tile in s2_files(root):
        np.testing.assert_array_equal(sources.read_eo(tile).bands, window(DN, tile))


def bits(scl: np.ndarray) -> np.ndarray:
    return np.where((scl == 8) | (scl == 9), 1024, np.where(scl == 10, 2048, 0))


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_scl_of_20_m_lies_on_its_own_pixels(root: str, shift: int) -> None:
    """Its raster may begin before the bands', at any 10 m pixel: each pixel gets the class of the ground it shows."""
    scl = RNG.integers(1, 12, (H // 2 + 3, W // 2 + 3)).astype(np.uint8)
    where = rasterio.Affine(20, 0, (COL - shift) * 10, 0, -20, -(ROW - shift) * 10)
    fine = np.kron(scl, np.ones((2, 2), np.uint8))[shift : shift + H, shift : shift + W]
    for tile in s2_files(root, SCL=cog(scl, transform=where)):
        eo = sources.read_eo(tile)
        assert eo.qa60 is not None
        assert eo.qa60.dtype == np.uint16
        np.testing.assert_array_equal(eo.qa60, window(bits(fine), tile))
        np.testing.assert_array_equal(eo.bands, window(DN, tile))


def test_scl_0_is_no_data_and_its_nodata_value_too(root: str) -> None:
    scl = SCL.copy()
    scl[60:70] = 0
    fine = np.kron(scl, np.ones((2, 2), np.uint8))
    for nodata in (None, 0):
        tile = s2_files(root, SCL=cog(scl, transform=place(ROW // 2, COL // 2, 20), nodata=nodata))[0]
        np.testing.assert_array_equal(sources.read_eo(tile).bands, window(np.where(fine == 0, 0, DN), tile))


def test_masks_in_the_scenes_own_file(root: str) -> None:
    qa = RNG.choice([0, 1024, 2048], (1, H, W)).astype(np.uint16)
    tile = s2(root, np.concatenate([DN, qa]), (*RGB, "QA60"), nodata=0)[0]
    assert tile.bands == (*RGB, "QA60")
    qa60 = sources.read_eo(tile).qa60
    assert qa60 is not None
    np.testing.assert_array_equal(qa60, window(qa[0], tile))
    scl = np.kron(SCL, np.ones((2, 2), np.uint8)).astype(np.uint16)[None]
    tile = s2(root, np.concatenate([DN, qa, scl]), (*RGB, "QA60", "SCL"))[0]
    assert tile.bands == (*RGB, "SCL")
    np.testing.assert_array_equal(sources.read_eo(tile).qa60, window(bits(scl[0]), tile))


def test_a_60_m_qa60_is_repeated_too(root: str) -> None:
    qa = RNG.choice([0, 1024, 2048], (H // 6 + 2, W // 6 + 2)).astype(np.uint16)
    where = rasterio.Affine(60, 0, (COL - 4) * 10, 0, -60, -(ROW - 2) * 10)
    fine = np.kron(qa, np.ones((6, 6), np.uint16))[2 : 2 + H, 4 : 4 + W]
    for tile in s2_files(root, QA60=cog(qa, transform=where)):
        np.testing.assert_array_equal(sources.read_eo(tile).qa60, window(fine, tile))


def test_nodata_and_masked_pixels_are_dn_0(root: str) -> None:
    dn, mask = DN.astype(np.int16), np.ones((H, W), bool)
    dn[1, 100, 100], mask[110:120, 200:210] = -9999, False
    expected = DN.copy()
    expected[1, 100, 100] = 0
    tile = s2(root, dn, nodata=-9999)[0]
    np.testing.assert_array_equal(sources.read_eo(tile).bands, window(expected, tile))
    tile = s2(root, mask=mask)[0]
    np.testing.assert_array_equal(sources.read_eo(tile).bands, window(np.where(mask, DN, 0), tile))


@pytest.mark.parametrize(
    ("factor", "options"),
    [
        (1.0, {"scale": (1e-4, 0.0), **PLAIN}),
        (1e-4, {"tags": {"QUANTIFICATION_VALUE": "1"}}),
        (1e-2, {"band_tags": {"raster_bands": '{"scale": 0.01}'}}),
    ],
)
def test_floats_are_read_where_a_scale_says_what_they_are(root: str, factor: float, options: dict[str, Any]) -> None:
    stored = (DN * np.float64(factor)).astype(np.float32)
    stored[0, 100, 100] = np.nan
    tile = s2(root, stored, **options)[0]
    expected = DN.copy()
    expected[0, 100, 100] = 0
    np.testing.assert_array_equal(sources.read_eo(tile).bands, window(expected, tile))


def stac(scale: float | None, offset: float | None) -> str:
    return json.dumps([{k: v for k, v in (("scale", scale), ("offset", offset)) if v is not None}] * 3)


OFFSETS: dict[str, tuple[dict[str, Any], int]] = {
    "GDAL, in DN": ({"scale": (1.0, -1000.0), **PLAIN}, 1000),
    "GDAL, in reflectance": ({"scale": (1e-4, -0.1), **PLAIN}, 1000),
    "ESA, L2A": ({"tags": {"BOA_ADD_OFFSET": "-1000"}}, 1000),
    "ESA, L1C, a band": ({"band_tags": {"RADIO_ADD_OFFSET": "-1000"}}, 1000),
    "ESA, bands by number": ({"tags": {f"BOA_ADD_OFFSET_{i}": "-1000" for i in (1, 2, 3)}}, 1000),
    "ESA, removed": ({"tags": {"BOA_ADD_OFFSET": "0", "BOA_QUANTIFICATION_VALUE": "10000"}}, 0),
    "STAC": ({"tags": {"raster:bands": stac(1e-4, -0.1)}}, 1000),
    "STAC, harmonised": ({"tags": {"raster:bands": stac(1e-4, 0)}}, 0),
    "two that agree": ({"tags": {"raster:bands": stac(1e-4, -0.1), "BOA_ADD_OFFSET": "-1000"}}, 1000),
    "of other bands": ({"tags": {"AOT_QUANTIFICATION_VALUE": "1000", "PROCESSING_BASELINE": "05.10"}}, 0),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_the_offset_is_what_the_product_says(root: str, case: str) -> None:
    options, offset = OFFSETS[case]
    tile = s2(root, **options)[0]
    eo = sources.read_eo(tile)
    assert eo.offset == offset
    np.testing.assert_array_equal(eo.bands, window(DN, tile))


CONTRADICTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ESA and STAC": (
        {"tags": {"BOA_ADD_OFFSET": "-1000", "raster:bands": stac(1e-4, 0.0)}},
        ("BOA_ADD_OFFSET -1000", "raster:bands offset 0"),
    ),
    "GDAL and ESA": ({"scale": (1.0, -1000.0), "tags": {"BOA_ADD_OFFSET": "0"}, **PLAIN}, ("GDAL offset -1000",)),
    "two scales": ({"scale": (1e-4, 0.0), "tags": {"QUANTIFICATION_VALUE": "1000"}, **PLAIN}, ("0.0001", "1000")),
    "half a DN": ({"scale": (1.0, -0.5), **PLAIN}, ("-0.5", "0.5 DN")),
    "added reflectance": ({"tags": {"BOA_ADD_OFFSET": "1000"}}, ("BOA_ADD_OFFSET 1000", "-1000 DN")),
    "not a number": ({"tags": {"BOA_ADD_OFFSET": "nan"}}, ("BOA_ADD_OFFSET nan",)),
    "two entries for three bands": ({"tags": {"raster:bands": json.dumps([{}, {}])}}, ("2 entries for 3",)),
    "no JSON": ({"tags": {"raster:bands": "{scale"}}, ("'{scale'",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_statements_that_cannot_be_believed_are_refused(root: str, case: str) -> None:
    options, values = CONTRADICTIONS[case]
    put(root, f"{S2_NAME}.tif", cog(DN, RGB, **options))
    bad = refused(root, "s2")
    assert bad.reason == "wrong_dtype"
    for value in values:
        assert value in bad.detail


def test_bands_with_different_offsets_are_refused(root: str) -> None:
    for name, offset in (("B04", "-1000"), ("B03", "-1000"), ("B02", "0")):
        put(root, f"{S2_NAME}/{name}.tif", cog(DN[0], tags={"BOA_ADD_OFFSET": offset}))
    bad = refused(root, "s2")
    assert (bad.reason, "'B2': 0" in bad.detail) == ("wrong_dtype", True)


@pytest.mark.parametrize(("share", "fine"), [(0.005, True), (0.02, False)])
def test_an_offset_that_is_not_in_the_dn_is_doubted(root: str, share: float, fine: bool) -> None:
    """DN may fall a little below the offset (noise), not far below it on more than one valid pixel in a hundred."""
    dn = np.zeros_like(DN)
    dn[:, 20:120] = 850  # of 256 rows: the rest has no data
    low = np.zeros(100 * 256, bool)
    low[: round(share * low.size)] = True
    dn[2, 20:120, 22:278][low.reshape(100, 256)] = 700
    tile = s2(root, dn, tags={"BOA_ADD_OFFSET": "-1000"})[0]
    if fine:
        assert sources.read_eo(tile).offset == 1000
        return
    with pytest.raises(BadInput, match=r"wrong_dtype: declared offset 1000 but DN fall to 700 .*already removed\?"):
        sources.read_eo(tile)


BAD_PIXELS: dict[str, tuple[dict[str, Any], str, str]] = {
    "negative": ({"B03": cog(np.where(DN[1] > 2990, -7, DN[1]).astype(np.int16))}, "wrong_dtype", "-7.."),
    "no SCL": ({"SCL": cog(SCL + np.uint8(50), transform=place(ROW // 2, COL // 2, 20))}, "wrong_dtype", "61: classes"),
    "float SCL": ({"SCL": cog(SCL / np.float32(1), transform=place(ROW // 2, COL // 2, 20))}, "wrong_dtype", "float32"),
    "float QA60": ({"QA60": cog(DB[0])}, "wrong_dtype", "QA60 is float32"),
    "no data": (dict.fromkeys(("B02", "B03", "B04"), cog(DN[0] * 0)), "all_nodata", "0"),
}


@pytest.mark.parametrize("case", BAD_PIXELS)
def test_bad_pixels_are_refused_by_name(root: str, case: str) -> None:
    files, reason, value = BAD_PIXELS[case]
    tile = s2_files(root, **files)[0]
    with pytest.raises(BadInput) as e:
        sources.read_eo(tile)
    assert e.value.reason == reason
    assert value in e.value.detail


# pixels of S1 ---------------------------------------------------------------------------------------------------------


def test_sar_is_vv_then_vh_in_db(root: str) -> None:
    db = DB.copy()
    db[:, 21, 23], db[0, 22, 23] = 0, np.nan
    tile = s1(root, db)[0]
    pixels = sources.read_sar(tile)
    assert (pixels.dtype, pixels.shape) == (np.float32, (2, 256, 256))
    db[:, 21, 23] = np.nan
    np.testing.assert_array_equal(pixels, window(db, tile))


def test_linear_sar_by_tags_and_by_arguments(root: str) -> None:
    linear = (10 ** (DB.astype(np.float64) / 10)).astype(np.float32)
    tile = s1(root, linear, tags=S1_TAGS | {"SAR2EO_UNITS": "linear"})[0]
    assert tile.bands == ("VV", "VH")
    np.testing.assert_allclose(sources.read_sar(tile), window(DB, tile), atol=1e-5)
    put(f"{root}/2", f"{S1_NAME}.tif", cog(linear))  # two undescribed bands of an S1 product: VV and VH
    assert "undeclared units" in refused(f"{root}/2", "s1").detail
    assert "undeclared quantity" in refused(f"{root}/2", "s1", units="linear").detail
    (tile, _), _ = scanned(f"{root}/2", "s1", units="linear", quantity="gamma0")
    assert tile.bands == ("VV", "VH", "linear", "gamma0")
    np.testing.assert_allclose(sources.read_sar(tile), window(DB, tile), atol=1e-5)


def test_one_polarisation_a_file(root: str) -> None:
    put(root, f"{S1_NAME}_VH.tif", cog(DB[1], tags=S1_TAGS))
    put(root, f"{S1_NAME}_VV.tif", cog(np.rint(DB[0] * 100).astype(np.int16), tags=S1_TAGS, scale=(0.01, 0), **PLAIN))
    tile = listed(root, "s1")[0]
    assert [storage.name(u)[-6:] for u in tile.uris] == ["VV.tif", "VH.tif"]
    np.testing.assert_allclose(sources.read_sar(tile), window(DB, tile), atol=0.0051)
    put(root, f"{S1_NAME}_VV.tif", cog(DB[0], tags=S1_TAGS | {"SAR2EO_UNITS": "linear"}))
    assert "VV is linear sigma0, VH is db sigma0" in refused(root, "s1").detail
    put(root, f"{S1_NAME}_VV.tif", cog(DN[0], tags=S1_TAGS))
    assert (refused(root, "s1").reason, storage.name(refused(root, "s1").uri)) == ("wrong_dtype", f"{S1_NAME}_VV.tif")


def test_an_empty_sar_tile_is_refused(root: str) -> None:
    db = DB.copy()
    db[1] = np.nan
    with pytest.raises(BadInput, match=r"all_nodata: .*VV 65536, VH 0"):
        sources.read_sar(s1(root, db)[0])


# while reading --------------------------------------------------------------------------------------------------------


def test_a_torn_scene_fails_at_its_own_tiles(root: str) -> None:
    """Blocks are stored in order: without the end of the file the tiles of the first blocks are there."""
    data = cog(np.tile(DN, (1, 2, 2)), RGB, compress="deflate")
    uri = put(root, f"{S2_NAME}.tif", data[: len(data) * 3 // 5])
    tiles = listed(root, "s2")
    done = list(sources.read_many(tiles))
    assert [ref for ref, _ in done] == tiles
    bad = [isinstance(pixels, BadInput) for _, pixels in done]
    assert bad == sorted(bad)
    assert not bad[0]
    assert bad[-1]
    for ref, pixels in done:
        if isinstance(pixels, BadInput):
            assert (pixels.reason, pixels.uri) == ("unreadable", uri)
            with pytest.raises(BadInput, match="unreadable"):
                sources.read_eo(ref)
        else:
            np.testing.assert_array_equal(pixels.bands, window(np.tile(DN, (1, 2, 2)), ref))


def test_a_scene_that_changed_is_refused_and_listed_anew_is_read(root: str) -> None:
    before = s2(root)[0]
    sources.read_eo(before)
    after = s2(root, DN[::-1])[0]
    np.testing.assert_array_equal(sources.read_eo(after).bands, window(DN[::-1], after))
    with pytest.raises(BadInput, match="unreadable: changed since it was listed"):
        sources.read_eo(before)
    assert [type(p) for _, p in sources.read_many([before, after])] == [BadInput, sources.EO]


def test_a_mask_that_is_gone_is_the_stores_fault(root: str) -> None:
    tile = s2_files(root, SCL=cog(SCL, transform=place(ROW // 2, COL // 2, 20)))[0]
    storage.delete(tile.uris[3])
    with pytest.raises(NotFound, match=r"SCL\.tif"):
        sources.read_eo(tile)


def test_an_outage_is_not_the_tiles_fault(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = s2_files(root)

    def fail(uri: str, start: int, end: int) -> bytes:
        raise Unavailable(uri, "down")

    with monkeypatch.context() as m:
        m.setattr(storage, "read_range", fail)
        with pytest.raises(Unavailable, match="down"):
            sources.read_eo(tiles[0])
        assert [type(p) for _, p in scene_tiles.read_many(tiles)] == [Unavailable, Unavailable]
    assert [type(p) for _, p in scene_tiles.read_many(tiles)] == [sources.EO, sources.EO]


@pytest.mark.parametrize("read", [sources.read_many, scene_tiles.read_many])
def test_many_are_read_as_one_by_one(root: str, read: Callable[..., Any]) -> None:
    """Any selection, in its order, of both sensors: strips of neighbours and lone tiles."""
    big = np.tile(DN, (1, 2, 2))
    tiles = s2(root, big) + s1(root, np.tile(DB, (1, 2, 2)))
    assert len(tiles) == 16
    chosen = [tiles[i] for i in (0, 1, 2, 3, 5, 4, 8, 9, 7, 10, 11, 15, 0)]
    done = list(read(chosen))
    assert [ref for ref, _ in done] == chosen
    for ref, pixels in done:
        if ref.sensor == "s1":
            np.testing.assert_array_equal(pixels, sources.read_sar(ref))
        else:
            np.testing.assert_array_equal(pixels.bands, sources.read_eo(ref).bands)
            np.testing.assert_array_equal(pixels.bands, window(big, ref))


def test_threads_read_side_by_side(root: str) -> None:
    tiles = s2(root, np.tile(DN, (1, 2, 2))) * 3
    wrong: list[TileRef] = []

    def read(part: list[TileRef]) -> None:
        wrong.extend(t for t in part if (sources.read_eo(t).bands != window(np.tile(DN, (1, 2, 2)), t)).any())

    threads = [threading.Thread(target=read, args=(tiles[i::4],)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_a_raster_outlives_the_thread_that_opened_it(root: str) -> None:
    """rasterio keeps what GDAL reads from in the context of a thread: read or closed later, memory would be gone."""
    uri, kept = put(root, "a.tif", cog(DN)), []

    def opened() -> None:
        kept.append(Raster(uri))
        kept[-1].read([1], 0, 0, 10, 10)

    for _ in range(3):
        thread = threading.Thread(target=opened)
        thread.start()
        thread.join()
    gc.collect()
    for raster in kept:
        np.testing.assert_array_equal(raster.read([1, 2, 3], 0, 0, H, W)[0], DN)
    raster.close()
    del raster
    kept.clear()
    gc.collect()


# real scenes ----------------------------------------------------------------------------------------------------------


def test_real_bigearthnet_patches_are_understood_and_too_small(samples: Path) -> None:
    """One band a file, 12 bands of 10, 20 and 60 m, S1 and S2 in sister folders; 120 x 120 pixels hold no tile."""
    root = samples / "tier_a" / "pairs_bigearthnet"
    for sensor in ("s1", "s2"):
        tiles, rejected = scanned(str(root), sensor, units="db", quantity="sigma0")
        assert (tiles, len(rejected)) == ([], 4)
        assert {r.reason for r in rejected} == {"wrong_shape"}
        assert all("120 x 120 px of 10" in r.detail for r in rejected)


def test_real_bigearthnet_bands_are_read_right(samples: Path, tmp_path: Path) -> None:
    """Their pixels on a raster that holds a tile: the names and types as they are, mirrored to 512 x 512."""
    root = samples / "tier_a" / "pairs_bigearthnet" / "pair0"
    for file in sorted(root.rglob("*_B0[234].tif")) + sorted(root.rglob("*_V[VH].tif")):
        with rasterio.open(file) as src:
            data = cog(
                np.pad(src.read(), ((0, 0), (0, 392), (0, 392)), "symmetric"), crs=src.crs, transform=src.transform
            )
        put(str(tmp_path), f"{file.parent.name}/{file.name}", data)
    (eo, *_), _ = scanned(str(tmp_path), "s2")
    (sar, *_), _ = scanned(str(tmp_path), "s1", units="db", quantity="sigma0")
    assert (eo.date, eo.platform, sar.date, sar.platform) == (dt.date(2017, 6, 13), "S2A", dt.date(2017, 6, 13), "S1A")
    assert (eo.place, eo.rows) == (sar.place, sar.rows)
    assert sources.read_eo(eo).bands.max() < 10_000
    assert -40 < float(np.nanmedian(sources.read_sar(sar))) < -5


def test_real_sen1floods_chips(samples: Path, tmp_path: Path) -> None:
    """EPSG:4326, 13 described int16 bands and VV, VH: the same lattice tiles of both; dates are not in their names."""
    root = samples / "tier_b" / "pairs_sen1floods11"
    if not root.is_dir():
        pytest.skip("tier_b/pairs_sen1floods11 is not among the samples")
    assert refused(str(root), "s2").reason == "bad_name"
    assert refused(str(root), "s1", units="db", quantity="sigma0").reason == "bad_name"
    shutil.copy(root / "Spain_7370579_S2Hand.tif", tmp_path / "S2A_MSIL1C_20180918T105021_Spain.tif")
    shutil.copy(root / "Spain_7370579_S1Hand.tif", tmp_path / "S1B_IW_GRDH_1SDV_20180919T061001_Spain.tif")
    eo, bad = scanned(str(tmp_path), "s2")
    sar, worse = scanned(str(tmp_path), "s1", units="db", quantity="sigma0")
    assert (bad, worse) == ([], [])
    assert [t.rows for t in eo] == [t.rows for t in sar] == [(0, 0), (0, 256), (256, 0), (256, 256)]
    assert [t.place for t in eo] == [t.place for t in sar]
    with rasterio.open(root / "Spain_7370579_S2Hand.tif") as src:
        rgb = src.read([4, 3, 2])
        assert (eo[0].lon, eo[0].lat) == pytest.approx(src.xy(127.5, 127.5, offset="center"), abs=1e-6)
    with rasterio.open(root / "Spain_7370579_S1Hand.tif") as src:
        db = src.read()
    for one, other in zip(eo, sar, strict=True):
        np.testing.assert_array_equal(sources.read_eo(one).bands, window(rgb, one))
        np.testing.assert_array_equal(sources.read_sar(other), window(db, other))


def test_real_undescribed_bands_are_in_esas_order(samples: Path, tmp_path: Path) -> None:
    root = samples / "tier_a" / "s2_l1c_clear_nz"
    bad = refused(str(root), "s2")
    assert (bad.reason, "264 x 264 px of 10 from lattice row -569026" in bad.detail) == ("wrong_shape", True)
    file = next(root.glob("*.tif"))
    with rasterio.open(file) as src:
        pixels, options = src.read(), {"crs": src.crs, "nodata": src.nodata}
    put(str(tmp_path), file.name, cog(pixels, transform=place(-569_088, 56_320), **options))
    (tile,), _ = scanned(str(tmp_path), "s2")
    assert tile.date == dt.date(2020, 10, 2)
    np.testing.assert_array_equal(sources.read_eo(tile).bands, window(pixels[[3, 2, 1]], tile))
