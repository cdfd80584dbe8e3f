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
from sar2eo_dist.mosaic.publish import (
    COG_TILE,
    DN_MAX,
    LOOK_FACTOR,
    BlockFile,
    cog_bytes,
    look,
    look_bytes,
    look_factor,
    look_from,
    quicklook,
    raster_quicklook,
    vrt_xml,
)
from sar2eo_dist.radiometry import display

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
    [
        (RGB[:2], VALID),
        (RGB, VALID[:5]),
        (RGB.astype(float), VALID),
        (RGB.astype(np.int16), VALID),
        (RGB, VALID.astype(np.uint8)),
        (RGB[0], VALID),
    ],
)
def test_arrays_that_do_not_fit_are_refused(rgb: np.ndarray, valid: np.ndarray) -> None:
    with pytest.raises(AlignmentError, match="wanted uint8"):
        cog_bytes(rgb, valid, CRS, PLACE)
    with pytest.raises(AlignmentError, match="wanted uint8"):
        look(rgb, valid, 2)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numbers_of_other_kinds_with_scale_and_tags(tmp_path: Path, bands: int, dtype: type) -> None:
    image = (RGB[:bands].astype(np.uint16) * 200).astype(dtype)
    tags = {"SAR2EO_UNIT": "r00001c00002", "SAR2EO_BUNDLES": "a & <b>"}
    data = cog_bytes(image, VALID, CRS, PLACE, scale=1e-4, tags=tags)
    assert data == cog_bytes(image, VALID, CRS, PLACE, scale=1e-4, tags=dict(reversed(tags.items())))
    with MemoryFile(data) as memory, memory.open() as dataset:
        assert dataset.dtypes == (np.dtype(dtype).name,) * bands
        assert dataset.scales == (1e-4,) * bands
        assert tags.items() <= dataset.tags().items()
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.colorinterp[0] == (ColorInterp.gray if bands == 1 else ColorInterp.red)
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, VALID)
        np.testing.assert_array_equal(dataset.read(), np.where(VALID, image, 0))
    with MemoryFile(cog_bytes(image, VALID, CRS, PLACE)) as memory, memory.open() as dataset:
        assert dataset.scales == (1.0,) * bands


@pytest.mark.parametrize("side", [40, 700, 1100])
@pytest.mark.parametrize("bands", [1, 3])
def test_the_validator_of_rio_cogeo_finds_nothing(tmp_path: Path, side: int, bands: int) -> None:
    rio_cogeo = pytest.importorskip("rio_cogeo")
    for dtype in (np.uint8, np.uint16):
        path = tmp_path / f"{np.dtype(dtype).name}.tif"
        image, valid = RGB[:bands, :side, :side].astype(dtype), VALID[:side, :side]
        path.write_bytes(cog_bytes(image, valid, CRS, PLACE, 1e-4, {"A": "b"}))
        assert rio_cogeo.cog_validate(str(path), strict=True, quiet=True) == (True, [], [])


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
        quicklook([(-1, 0, np.zeros((4, 5, 5), np.uint8))], 10, 10, 5)


@pytest.mark.parametrize(("dtype", "bands"), [("uint16", 3), ("uint16", 1), ("uint8", 1)])
def test_the_vrt_of_other_kinds(tmp_path: Path, dtype: str, bands: int) -> None:
    image, files = (RGB[:bands].astype(np.uint16) * 200).astype(dtype), []
    for r, c, h, w in blocks_of(600, *VALID.shape):
        at = np.s_[r : r + h, c : c + w]
        (tmp_path / f"{r}_{c}.tif").write_bytes(cog_bytes(image[(slice(None), *at)], VALID[at], CRS, PLACE, 1e-4))
        files.append(BlockFile(f"{r}_{c}.tif", r, c, h, w))
    text = vrt_xml(files, CRS, PLACE, VALID.shape[1], VALID.shape[0], dtype, bands, 1e-4)
    (tmp_path / "m.vrt").write_text(text)
    with rasterio.open(tmp_path / "m.vrt") as dataset:
        assert dataset.dtypes == (dtype,) * bands
        assert dataset.scales == (1e-4,) * bands
        assert dataset.colorinterp[0] == (ColorInterp.gray if bands == 1 else ColorInterp.red)
        np.testing.assert_array_equal(dataset.read(), np.where(VALID, image, 0))
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, VALID)


# looks and quick-look -------------------------------------------------------------------------------------------------


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def rounded(x: float) -> int:
    return int(np.floor(x + 0.5))


def brute_look(rgb: np.ndarray, valid: np.ndarray, factor: int) -> np.ndarray:
    """A look by loops."""
    height, width = valid.shape
    top = 255 if rgb.dtype == np.uint8 else DN_MAX
    out = np.zeros((4, -(-height // factor), -(-width // factor)), np.uint8)
    for i, j in np.ndindex(out.shape[1:]):
        cell = np.s_[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
        v = valid[cell]
        if v.any():
            sums = np.minimum(rgb[:, cell[0], cell[1]][:, v], top).sum(1, dtype=np.int64)
            out[:3, i, j] = [rounded(int(s) * 255 / (top * int(v.sum()))) for s in sums]
        out[3, i, j] = rounded(255 * int(v.sum()) / v.size)
    return out


def brute(rgba: np.ndarray, factor: int) -> np.ndarray:
    """The quick-look of a whole mosaic's look by loops, (h, w, 4)."""
    out = np.zeros((-(-rgba.shape[1] // factor), -(-rgba.shape[2] // factor), 4), np.uint8)
    for i, j in np.ndindex(out.shape[:2]):
        cell = rgba[:, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].astype(np.int64)
        weight = cell[3].sum()
        if weight:
            out[i, j, :3] = [rounded((c * cell[3]).sum() / weight) for c in cell[:3]]
        out[i, j, 3] = rounded(cell[3].mean())
    return out


def looks_of(rgb: np.ndarray, valid: np.ndarray, side: int, factor: int) -> list[tuple[int, int, np.ndarray]]:
    return [
        (r // factor, c // factor, look(rgb[:, r : r + h, c : c + w], valid[r : r + h, c : c + w], factor))
        for r, c, h, w in blocks_of(side, *valid.shape)
    ]


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), per=st.integers(1, 12), factor=st.sampled_from([1, 2, 4]),
    longest=st.integers(1, 50), dtype=st.sampled_from([np.uint8, np.uint16]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_quicklook_is_exact_whatever_the_blocks(
    height: int, width: int, per: int, factor: int, longest: int, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256 if dtype is np.uint8 else 5000, (3, height, width)).astype(dtype)
    valid = rng.random((height, width)) < 0.7
    looks = looks_of(rgb, valid, per * factor, factor)
    whole = brute_look(rgb, valid, factor)
    for row, col, rgba in looks:
        np.testing.assert_array_equal(rgba, whole[:, row : row + rgba.shape[1], col : col + rgba.shape[2]])
        np.testing.assert_array_equal(look_from(look_bytes(rgba)), rgba)
    size = whole.shape[1:]
    png = quicklook(iter(looks), *size, longest)
    assert max(decoded(png).shape[:2]) <= longest
    np.testing.assert_array_equal(decoded(png), brute(whole, max(1, -(-max(size) // longest))))
    assert quicklook(reversed(looks), *size, longest) == png


def test_pixels_that_are_not_valid_have_no_colour() -> None:
    rgb = np.full((3, 4, 4), 50, np.uint16)
    rgb[:, 0] = 65535
    valid = np.ones((4, 4), bool)
    valid[0] = False
    small = look(rgb, valid, 4)
    assert small[:, 0, 0].tolist() == [4, 4, 4, 191]  # 50 of 3000 is 4.25 of 255; 12 of 16 pixels
    assert look(rgb, ~valid, 4)[:, 0, 0].tolist() == [255, 255, 255, 64]


@given(
    power=st.integers(0, 12), odd=st.sampled_from([1, 3]), height=st.integers(1, 10**6), width=st.integers(1, 10**6),
    longest=st.integers(64, 4096),
)  # fmt: skip
def test_looks_are_fine_enough_for_the_quicklook(power: int, odd: int, height: int, width: int, longest: int) -> None:
    block, whole = odd << power, max(height, width)
    factor = look_factor(block, height, width, longest)
    assert block % factor == 0
    assert factor <= LOOK_FACTOR
    assert factor & (factor - 1) == 0
    small = -(-whole // factor)
    shown = -(-small // max(1, -(-small // longest)))
    assert factor == 1 or shown >= 0.79 * longest
    may_grow = factor < LOOK_FACTOR and block % (2 * factor) == 0
    assert not may_grow or -(-whole // (2 * factor)) <= 4 * longest


def test_the_basin_is_looked_at_from_afar() -> None:
    assert look_factor(2048, 890_000, 80_000, 1024) == 32
    assert look_factor(2048, 1024, 1024, 1024) == 1


def test_what_no_block_covers_is_transparent() -> None:
    rgba = look(RGB[:, 500:600, 1000:1100], np.ones((100, 100), bool), 1)
    out = decoded(quicklook([(0, 0, rgba)], 100, 300, 30))
    assert out.shape == (10, 30, 4)
    assert (out[:, :10, 3] == 255).all()
    assert (out[:, 10:] == 0).all()


def test_bright_is_for_the_eye_alone() -> None:
    looks = looks_of(RGB, VALID, 512, 4)
    dark, bright = (decoded(quicklook(looks, 275, 325, 100, bright=b)) for b in (False, True))
    np.testing.assert_array_equal(bright[..., :3], display(dark[..., :3]))
    np.testing.assert_array_equal(bright[..., 3], dark[..., 3])


def test_memory_is_a_look_and_the_canvas() -> None:
    side, rows, cols = 256, 8, 8

    def stream() -> Iterator[tuple[int, int, np.ndarray]]:
        rgba = np.full((4, side, side), 7, np.uint8)
        rgba[3] = 255
        for i in range(rows * cols):
            yield i // cols * side, i % cols * side, rgba

    tracemalloc.start()
    out = quicklook(stream(), rows * side, cols * side, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (decoded(out) == [7, 7, 7, 255]).all()
    assert peak < 12 * 4 * side * side  # the mosaic has 64 blocks


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n torn", look_bytes(np.zeros((4, 9, 9), np.uint8))[:-30]])
def test_a_torn_look_is_named(data: bytes) -> None:
    with pytest.raises(BadInput, match=r"unreadable.*looks/r1\.png"):
        look_from(data, "looks/r1.png")


def test_what_is_no_look_is_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(out, "PNG")
    with pytest.raises(BadInput, match="RGBA, not RGB"):
        look_from(out.getvalue())
    for bad in (np.zeros((3, 5, 5), np.uint8), np.zeros((4, 5, 5)), np.zeros((4, 5), np.uint8)):
        with pytest.raises(AlignmentError, match="a look is uint8"):
            quicklook([(0, 0, bad)], 10, 10, 5)
    with pytest.raises(AlignmentError, match="not of 1 bands"):
        look(RGB[:1], VALID, 2)


@pytest.mark.parametrize("store", ["local", "memory"])
def test_the_quicklook_of_a_raster(tmp_path: Path, store: str) -> None:
    root = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    storage.put(f"{root}/8.tif", COG)
    for longest in (100, 1300):  # read in blocks of 2048 or so, shrunk by 2 first, or not
        factor = look_factor(2048, 1100, 1300, longest)
        expected = looks_of(RGB, VALID & RGB.any(0), 512, factor)
        assert raster_quicklook(f"{root}/8.tif", longest) == quicklook(
            expected, -(-1100 // factor), -(-1300 // factor), longest
        )
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
