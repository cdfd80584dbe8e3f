"""COGs, the VRT over them and the quick-look: what other readers see in the bytes that we write."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import MemoryFile
from rasterio.windows import Window

from sar2eo_dist import storage
from sar2eo_dist.errors import AlignmentError, BadInput
from sar2eo_dist.mosaic.publish import COG_TILE, BlockFile, cog_bytes, quicklook, raster_quicklook, vrt_xml

CRS, PLACE = "EPSG:32721", (10.0, 0.0, 700_000.0, 0.0, -10.0, 9_500_000.0)
RNG = np.random.default_rng(8)


def picture(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(3, H, W) uint8 and (H, W) valid with a hole and an edge without data."""
    rows, cols = np.mgrid[:height, :width]
    rgb = np.stack([rows % 256, cols % 256, (rows + cols) // 2 % 256]).astype(np.uint8)
    valid = (cols > width // 8) & ((rows - height / 2) ** 2 + (cols - width / 2) ** 2 > (height / 6) ** 2)
    return rgb, valid


RGB, VALID = picture(1100, 1300)
COG = cog_bytes(RGB, VALID, CRS, PLACE)


# COG ------------------------------------------------------------------------------------------------------------------


def test_a_block_is_a_cog_with_its_georeference() -> None:
    with MemoryFile(COG) as memory, memory.open() as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "DEFLATE"
        assert dataset.block_shapes == [(COG_TILE, COG_TILE)] * 3
        assert [dataset.overviews(i) for i in (1, 2, 3)] == [[2, 4]] * 3
        assert dataset.crs.to_epsg() == 32721
        assert tuple(dataset.transform[:6]) == PLACE
        assert dataset.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert dataset.nodata is None


def test_pixels_and_mask_come_back() -> None:
    with MemoryFile(COG) as memory, memory.open() as dataset:
        assert dataset.mask_flag_enums == ([MaskFlags.per_dataset],) * 3
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, VALID)
        np.testing.assert_array_equal(dataset.read(), np.where(VALID, RGB, 0))


def test_the_layout_is_header_first_and_overviews_before_pixels() -> None:
    """The COG rule itself: every image directory lies before any pixel, and small overviews before large ones."""
    le, at, directories, offsets, colours = "little", int.from_bytes(COG[4:8], "little"), [], [], []
    assert COG[:4] == b"II*\0"
    while at:
        directories.append(at)
        count = int.from_bytes(COG[at : at + 2], le)
        entries = [COG[at + 2 + 12 * i :][:12] for i in range(count)]
        tags = {int.from_bytes(e[:2], le): e for e in entries}
        colours.append(int.from_bytes(tags[262][8:10], le))  # PhotometricInterpretation
        values, where = (int.from_bytes(tags[324][i : i + 4], le) for i in (4, 8))  # TileOffsets
        tiles = [where] if values == 1 else [int.from_bytes(COG[where + 4 * i :][:4], le) for i in range(values)]
        offsets.append(min(t for t in tiles if t))
        at = int.from_bytes(COG[at + 2 + 12 * count :][:4], le)
    assert len(directories) == 6  # image and two overviews, each with its mask
    assert sorted(colours) == [2, 2, 2, 4, 4, 4]  # RGB, transparency mask
    assert max(directories) < min(offsets)
    assert offsets[0] > offsets[-2]  # full resolution comes last


def test_overviews_are_means_of_valid_pixels_only() -> None:
    with MemoryFile(COG) as memory, memory.open(overview_level=0) as half:
        small, mask = half.read(), half.dataset_mask() > 0
    assert small.shape == (3, 550, 650)
    cells = np.where(VALID, RGB, 0).reshape(3, 550, 2, 650, 2).sum((2, 4), dtype=np.int64)
    count = VALID.reshape(550, 2, 650, 2).sum((1, 3))
    np.testing.assert_array_equal(mask, count > 0)
    mean = cells / np.maximum(count, 1)
    assert np.abs(small - mean)[:, mask].max() <= 0.5 + 1e-9


def test_pixels_below_the_mask_and_the_process_do_not_matter() -> None:
    garbage = np.where(VALID, RGB, RNG.integers(0, 256, RGB.shape)).astype(np.uint8)
    assert cog_bytes(garbage, VALID, CRS, PLACE) == COG
    code = (
        "import hashlib, numpy as np; from sar2eo_dist.mosaic.publish import cog_bytes;"
        "x = np.arange(3 * 40 * 50).astype(np.uint8).reshape(3, 40, 50);"
        f"print(hashlib.sha256(cog_bytes(x, x[0] > 9, {CRS!r}, {PLACE!r})).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    x = np.arange(3 * 40 * 50).astype(np.uint8).reshape(3, 40, 50)
    assert other == hashlib.sha256(cog_bytes(x, x[0] > 9, CRS, PLACE)).hexdigest()


@pytest.mark.parametrize("valid", [np.zeros((40, 50), bool), np.ones((40, 50), bool)], ids=["nothing", "everything"])
def test_a_small_block_with_no_or_only_data(valid: np.ndarray) -> None:
    rgb = RNG.integers(0, 256, (3, 40, 50), np.uint8)
    with MemoryFile(cog_bytes(rgb, valid, CRS, PLACE)) as memory, memory.open() as dataset:
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, valid)
        np.testing.assert_array_equal(dataset.read(), np.where(valid, rgb, 0))


def test_wkt_and_a_turned_transform_come_back() -> None:
    wkt = rasterio.crs.CRS.from_epsg(4326).to_wkt()
    turned = (1e-4, 2e-5, -55.1234567, 2e-5, -1e-4, -4.7654321)
    with MemoryFile(cog_bytes(RGB[:, :9, :9], VALID[:9, :9], wkt, turned)) as memory, memory.open() as dataset:
        assert dataset.crs.to_epsg() == 4326
        np.testing.assert_allclose(dataset.transform[:6], turned, rtol=1e-12)


@pytest.mark.parametrize(
    ("rgb", "valid"),
    [(RGB[:2], VALID), (RGB, VALID[:5]), (RGB.astype(float), VALID), (RGB, VALID.astype(np.uint8))],
)
def test_arrays_that_do_not_fit_are_refused(rgb: np.ndarray, valid: np.ndarray) -> None:
    with pytest.raises(AlignmentError, match="wanted uint8"):
        cog_bytes(rgb, valid, CRS, PLACE)
    with pytest.raises(AlignmentError, match="wanted uint8"):
        quicklook([(0, 0, rgb, valid)], 1300, 1100, 100)


# VRT ------------------------------------------------------------------------------------------------------------------


def blocks_of(side: int, rows: int, cols: int) -> list[tuple[int, int, int, int]]:
    return [
        (r, c, min(side, rows - r), min(side, cols - c)) for r in range(0, rows, side) for c in range(0, cols, side)
    ]


def write_mosaic(folder: Path, missing: tuple[int, int]) -> tuple[Path, np.ndarray, np.ndarray]:
    """A mosaic of 600 px blocks, one left out: (VRT, expected RGB, expected valid)."""
    (folder / "cog").mkdir()
    files, expected = [], VALID.copy()
    for r, c, h, w in blocks_of(600, *VALID.shape):
        if (r, c) == missing:
            expected[r : r + h, c : c + w] = False
            continue
        place = tuple(rasterio.Affine(*PLACE) @ rasterio.Affine.translation(c, r))[:6]
        data = cog_bytes(RGB[:, r : r + h, c : c + w], VALID[r : r + h, c : c + w], CRS, place)
        (folder / "cog" / f"{r}_{c}.tif").write_bytes(data)
        files.append(BlockFile(f"cog/{r}_{c}.tif", r, c, h, w))
    vrt = folder / "mosaic.vrt"
    vrt.write_text(vrt_xml(reversed(files), CRS, PLACE, VALID.shape[1], VALID.shape[0]))
    return vrt, np.where(expected, RGB, 0), expected


def test_the_vrt_is_the_whole_mosaic(tmp_path: Path) -> None:
    vrt, rgb, valid = write_mosaic(tmp_path, missing=(600, 0))
    with rasterio.open(vrt) as dataset:
        assert (dataset.height, dataset.width, dataset.count) == (1100, 1300, 3)
        assert dataset.crs.to_epsg() == 32721
        assert tuple(dataset.transform[:6]) == PLACE
        assert dataset.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert dataset.mask_flag_enums == ([MaskFlags.per_dataset],) * 3
        np.testing.assert_array_equal(dataset.read(), rgb)
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, valid)
        across = Window(550, 550, 100, 100)
        np.testing.assert_array_equal(dataset.read(window=across), rgb[:, 550:650, 550:650])
        small = dataset.read(out_shape=(3, 275, 325), masked=True)
        assert small.mask.any()
        assert not small.mask.all()


def test_a_moved_folder_still_opens(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    _, rgb, _ = write_mosaic(tmp_path / "a", missing=(-1, -1))
    (tmp_path / "a").rename(tmp_path / "b & <c>")
    with rasterio.open(tmp_path / "b & <c>" / "mosaic.vrt") as dataset:
        np.testing.assert_array_equal(dataset.read(), rgb)


def test_names_are_escaped_and_order_does_not_matter() -> None:
    blocks = [BlockFile("a&b <1>.tif", 0, 0, 5, 5), BlockFile("c.tif", 0, 5, 5, 5)]
    text = vrt_xml(blocks, CRS, PLACE, 10, 5)
    assert text == vrt_xml(blocks[::-1], CRS, PLACE, 10, 5)
    assert [e.text for e in ET.fromstring(text).iter("SourceFilename")] == ["a&b <1>.tif", "c.tif"] * 4


def test_a_block_outside_is_refused() -> None:
    with pytest.raises(AlignmentError, match=r"5 x 5 at \(0, 6\) lies outside of 5 x 10: far\.tif"):
        vrt_xml([BlockFile("far.tif", 0, 6, 5, 5)], CRS, PLACE, 10, 5)
    with pytest.raises(AlignmentError, match=r"\(-1, 0\)"):
        quicklook([(-1, 0, RGB[:, :5, :5], VALID[:5, :5])], 10, 10, 5)


# quick-look -----------------------------------------------------------------------------------------------------------


def cut(rgb: np.ndarray, valid: np.ndarray, side: int) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    return [
        (r, c, rgb[:, r : r + h, c : c + w], valid[r : r + h, c : c + w])
        for r, c, h, w in blocks_of(side, *valid.shape)
    ]


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def brute(rgb: np.ndarray, valid: np.ndarray, factor: int) -> np.ndarray:
    """The quick-look by loops."""
    height, width = valid.shape
    out = np.zeros((-(-height // factor), -(-width // factor), 4), np.uint8)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            cell = np.s_[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            v = valid[cell]
            if v.any():
                out[i, j, :3] = np.floor(rgb[:, cell[0], cell[1]][:, v].mean(1) + 0.5)
            out[i, j, 3] = np.floor(255 * v.mean() + 0.5)
    return out


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    side=st.integers(1, 30),
    longest=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_a_quicklook_is_exact_whatever_the_blocks(height: int, width: int, side: int, longest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgb, valid = rng.integers(0, 256, (3, height, width), np.uint8), rng.random((height, width)) < 0.7
    blocks = cut(rgb, valid, side)
    png = quicklook(iter(blocks), width, height, longest)
    assert max(decoded(png).shape[:2]) <= longest
    np.testing.assert_array_equal(decoded(png), brute(rgb, valid, max(1, -(-max(height, width) // longest))))
    assert quicklook(reversed(blocks), width, height, longest) == png


def test_what_no_block_covers_is_transparent() -> None:
    rgb, valid = RGB[:, 500:600, 1000:1100], np.ones((100, 100), bool)
    out = decoded(quicklook([(0, 0, rgb, valid)], 300, 100, 30))
    assert out.shape == (10, 30, 4)
    assert (out[:, :10, 3] == 255).all()
    assert (out[:, 10:] == 0).all()


def test_memory_is_a_block_and_the_canvas() -> None:
    side, rows, cols = 256, 8, 8

    def stream() -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        rgb, valid = np.full((3, side, side), 7, np.uint8), np.ones((side, side), bool)
        for i in range(rows * cols):
            yield i // cols * side, i % cols * side, rgb, valid

    tracemalloc.start()
    out = quicklook(stream(), cols * side, rows * side, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (decoded(out) == [7, 7, 7, 255]).all()
    assert peak < 12 * 3 * side * side  # the mosaic has 64 blocks


@pytest.mark.parametrize("store", ["local", "memory"])
def test_the_quicklook_of_a_raster(tmp_path: Path, store: str) -> None:
    root = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    storage.put(f"{root}/8.tif", COG)
    assert raster_quicklook(f"{root}/8.tif", 100) == quicklook(cut(RGB, VALID & RGB.any(0), 300), 1300, 1100, 100)
    dn = np.stack([np.full((30, 40), v, np.uint16) for v in (0, 1500, 65535)])
    dn[:, 0] = 0
    with MemoryFile() as memory:
        profile = {"crs": CRS, "transform": rasterio.Affine(*PLACE)}
        with memory.open(driver="GTiff", width=40, height=30, count=3, dtype="uint16", **profile) as dataset:
            dataset.write(dn)
        storage.put(f"{root}/16.tif", bytes(memory.read()))
    out = decoded(raster_quicklook(f"{root}/16.tif", 40))
    assert (out[0] == 0).all()
    assert (out[1:] == [0, 128, 255, 255]).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"), [((2, 9, 9), "uint8", "missing_band"), ((3, 9, 9), "float32", "wrong_dtype")]
)
def test_a_raster_that_is_no_picture_is_refused(
    tmp_path: Path, shape: tuple[int, int, int], dtype: str, reason: str
) -> None:
    profile = {"crs": CRS, "transform": rasterio.Affine(*PLACE), "dtype": dtype}
    with rasterio.open(
        tmp_path / "x.tif", "w", driver="GTiff", count=shape[0], width=9, height=9, **profile
    ) as dataset:
        dataset.write(np.ones(shape, dtype))
    with pytest.raises(BadInput, match=reason):
        raster_quicklook(str(tmp_path / "x.tif"), 9)
