"""Scenes as tiles: listings, pixels with their masks, faults while reading, real scenes."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scene_files import (
    COL,
    CORNERS,
    DB,
    DN,
    KIND,
    PLAIN,
    RGB,
    RNG,
    ROW,
    S1_NAME,
    S1_TAGS,
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
    s2_files,
    scanned,
    window,
)

from sar2eo_dist import sources, storage
from sar2eo_dist.errors import BadInput, ConfigError, NotFound, SourceChanged, Unavailable
from sar2eo_dist.records import TileRef
from sar2eo_dist.sources import scene_tiles


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


def test_tiles_that_share_a_place_are_rejected_by_name(root: str) -> None:
    """At 75 degrees north 10 m of Web Mercator are 2.6 m: four tiles in a row lie within 0.02 degrees of latitude."""
    put(root, f"{S2_NAME}.tif", cog(np.ones((3, 1024, 256), np.uint16), RGB, crs="EPSG:3857",
                                    transform=place(-1_292_800 // 256 * 256, 0), nodata=0))  # fmt: skip
    tiles, rejected = scanned(root, "s2")
    assert len(tiles) + len(rejected) == 4
    assert len({t.key for t in tiles}) == len(tiles) < 4
    assert {r.reason for r in rejected} == {"duplicate"}
    assert all(any(t.key in r.detail for t in tiles) for r in rejected)


# listing ---------------------------------------------------------------------------------------------------------------


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


def test_rows_come_scene_by_scene_and_row_by_row(root: str) -> None:
    big = np.ones((3, 700, 600), np.uint16)
    for name in ("b", "a/x", "c"):
        put(root, f"{name}/S2B_21MXT_20190606_0_L2A.tif", cog(big, RGB))
    tiles = listed(root, "s2")
    assert len(tiles) == 12
    assert [(t.uris[0], t.rows) for t in tiles] == sorted((t.uris[0], t.rows) for t in tiles)
    assert len({t.key for t in tiles}) == 4  # overlapping scenes of a day


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


def test_wrong_arguments_have_a_name(root: str) -> None:
    with pytest.raises(ConfigError, match="'sentinel'"):
        scene_tiles.scan(root, "sentinel", lambda _: None)
    tables, _ = sources.scan(KIND, storage.join(root, "none"), "s2")
    with pytest.raises(NotFound, match="none"):
        list(tables)


# pixels of S2 ----------------------------------------------------------------------------------------------------------


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


BAD_PIXELS: dict[str, tuple[dict[str, Any], str, str]] = {
    "negative": ({"B03": cog(np.where(DN[1] > 2990, -7, DN[1]).astype(np.int16))}, "wrong_dtype", "-7.."),
    "no SCL": ({"SCL": cog(SCL + np.uint8(50), transform=place(ROW // 2, COL // 2, 20))}, "wrong_dtype", "51..61"),
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


# pixels of S1 ----------------------------------------------------------------------------------------------------------


def test_sar_is_vv_then_vh_in_db(root: str) -> None:
    db = DB.copy()
    db[:, 21, 23], db[0, 22, 23] = 0, np.nan
    tile = s1(root, db)[0]
    pixels = sources.read_sar(tile)
    assert (pixels.dtype.name, pixels.shape) == ("float32", (2, 256, 256))
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


# while reading ---------------------------------------------------------------------------------------------------------


def test_a_torn_scene_fails_at_its_own_tiles(root: str) -> None:
    """Blocks are stored in order: without the end of the file the tiles of the first blocks are there."""
    data = cog(np.tile(DN, (1, 2, 2)), RGB, compress="deflate")
    uri = put(root, f"{S2_NAME}.tif", data[: len(data) * 4 // 5])
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
            assert isinstance(pixels, sources.EO)
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


# real scenes -----------------------------------------------------------------------------------------------------------


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
