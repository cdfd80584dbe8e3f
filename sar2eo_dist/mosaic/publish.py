"""Rasters that people open: one COG a block, a VRT over all of them, and quick-looks. Bytes out, nothing is written.

Equal arguments give equal bytes (for one GDAL build): nothing in a file depends on time, name or threads.
"""

from __future__ import annotations

import io
import itertools
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.shutil
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from sar2eo_dist.errors import AlignmentError, BadInput
from sar2eo_dist.radiometry import display
from sar2eo_dist.sources.raster import Raster

COG_TILE = 512  # pixels; also where overviews end
DN_MAX = 3000  # white of a raster of DN, as in radiometry's `fixed`
_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True)
class BlockFile:
    """Where one block's COG lies in the mosaic. path: relative to the VRT; row, col, height, width: mosaic pixels."""

    path: str
    row: int
    col: int
    height: int
    width: int


def cog_bytes(rgb: NDArray[np.uint8], valid: NDArray[np.bool_], crs: str, transform: tuple[float, ...]) -> bytes:
    """One block as cloud-optimised GeoTIFF: RGB with an internal mask, which GDAL and QGIS show as transparent.

    rgb: (3, H, W) uint8; valid: (H, W) bool, pixels without data are written as 0; crs: WKT or "EPSG:n"; transform: the
    block's own affine (a, b, c, d, e, f), as in `records.SceneRef`. Deflate, 512 px tiles, overviews averaged over
    valid pixels only. Raises AlignmentError where shapes or types do not fit together.
    """
    _check(rgb, valid)
    height, width = valid.shape
    profile: dict[str, Any] = {"width": width, "height": height, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        MemoryFile(ext=".tif") as plain,
        MemoryFile(ext=".tif") as cog,
    ):
        affine = rasterio.Affine(*transform[:6])
        with plain.open(driver="GTiff", crs=CRS.from_string(crs), transform=affine, **profile) as dataset:
            dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            dataset.write(np.where(valid, rgb, np.uint8(0)))
            dataset.write_mask(valid)
        rasterio.shutil.copy(
            plain.name,
            cog.name,
            driver="COG",
            blocksize=COG_TILE,
            compress="DEFLATE",
            predictor="YES",
            overview_resampling="AVERAGE",
            num_threads=1,
        )
        return bytes(cog.read())


def vrt_xml(blocks: Iterable[BlockFile], crs: str, transform: tuple[float, ...], width: int, height: int) -> str:
    """The whole mosaic as one raster: a GDAL VRT over per-block COGs, masks included.

    transform: the mosaic's affine; width, height in pixels. A block that is not listed is no data.
    Raises AlignmentError for a block that lies outside.
    """
    blocks = sorted(blocks, key=lambda b: (b.row, b.col))
    for b in blocks:
        _check_inside(b.row, b.col, b.height, b.width, height, width, b.path)
    a, bb, c, d, e, f = transform[:6]
    root = ET.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ET.SubElement(root, "SRS").text = CRS.from_string(crs).to_wkt()
    ET.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in (c, a, bb, f, d, e))
    for number, colour in enumerate(_COLOURS, 1):
        band = ET.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number))
        ET.SubElement(band, "ColorInterp").text = colour
        _sources(band, blocks, str(number))
    mask = ET.SubElement(ET.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    _sources(mask, blocks, "mask,1")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _sources(band: ET.Element, blocks: list[BlockFile], source_band: str) -> None:
    for b in blocks:
        source = ET.SubElement(band, "SimpleSource")
        ET.SubElement(source, "SourceFilename", relativeToVRT="1").text = b.path
        ET.SubElement(source, "SourceBand").text = source_band
        w, h, tile = str(b.width), str(b.height), str(COG_TILE)
        ET.SubElement(  # with these GDAL opens a block only when a pixel of it is wanted
            source, "SourceProperties", RasterXSize=w, RasterYSize=h, DataType="Byte", BlockXSize=tile, BlockYSize=tile
        )
        ET.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=w, ySize=h)
        ET.SubElement(source, "DstRect", xOff=str(b.col), yOff=str(b.row), xSize=w, ySize=h)


def quicklook(
    blocks: Iterable[tuple[int, int, NDArray[np.uint8], NDArray[np.bool_]]],
    width: int,
    height: int,
    longest: int,
    bright: bool = False,
) -> bytes:
    """A small PNG (RGBA) of a mosaic, from its blocks as they come; memory is one block and the small canvas.

    blocks: (row, col, rgb (3, h, w) uint8, valid (h, w) bool), in any order, not overlapping; width, height: the
    mosaic in pixels; longest: the longest side wanted. The mosaic is shrunk by a whole factor, so that sums are of
    integers and the result does not depend on how it is cut into blocks. A pixel is the mean of the valid pixels that
    it covers, its opacity their share;
    `bright` maps the colours through radiometry.display. Raises AlignmentError for a block that lies outside.
    """
    factor = max(1, -(-max(width, height) // longest))
    rows, cols = -(-height // factor), -(-width // factor)
    sums = np.zeros((3, rows, cols), np.uint64)
    counts = np.zeros((rows, cols), np.uint64)
    for row, col, rgb, valid in blocks:
        _check(rgb, valid)
        _check_inside(row, col, valid.shape[0], valid.shape[1], height, width, "quick-look")
        if not valid.size:
            continue
        part = _shrink(valid[None], row, col, factor)[0]
        at = np.s_[row // factor : row // factor + part.shape[0], col // factor : col // factor + part.shape[1]]
        counts[at] += part
        for band in range(3):
            sums[band][at] += _shrink((rgb[band] * valid)[None], row, col, factor)[0]
    covered = np.maximum(counts, 1)
    colour = (2 * sums + covered) // (2 * covered)  # rounded half up
    down = np.minimum(height - factor * np.arange(rows), factor)  # the last row and column may cover fewer pixels
    across = np.minimum(width - factor * np.arange(cols), factor)
    area = np.outer(down, across).astype(np.uint64)
    opacity = (2 * 255 * counts + area) // (2 * area)
    if bright:
        colour = display(colour.astype(np.uint8))
    rgba = np.concatenate([colour, opacity[None]]).astype(np.uint8).transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgba), "RGBA").save(out, "PNG")
    return out.getvalue()


def raster_quicklook(uri: str, longest: int, bright: bool = False) -> bytes:
    """The quick-look of an RGB raster, any fsspec URI, read block by block.

    Its first three bands are red, green, blue: uint8 as they are, uint16 as DN of 0..DN_MAX. Pixels that are masked, or
    0 in all three, are no data. Raises BadInput (unreadable, missing_band, wrong_dtype) and storage's errors.
    """
    raster = Raster(uri)
    dataset, name = raster.dataset, raster.info.uri
    if dataset.count < 3:
        raise BadInput("missing_band", name, f"{dataset.count} bands, where red, green and blue are needed")
    if any(d not in ("uint8", "uint16") for d in dataset.dtypes[:3]):
        raise BadInput("wrong_dtype", name, f"{dataset.dtypes[:3]}, not uint8 or uint16")

    def blocks() -> Iterator[tuple[int, int, NDArray[np.uint8], NDArray[np.bool_]]]:
        side = 4 * COG_TILE
        for row, col in itertools.product(range(0, dataset.height, side), range(0, dataset.width, side)):
            raw, valid = raster.read(
                [1, 2, 3], row, col, min(side, dataset.height - row), min(side, dataset.width - col)
            )
            white = 255 if raw.dtype == np.uint8 else DN_MAX
            rgb = np.rint(np.minimum(raw, white) * (255 / white)).astype(np.uint8)
            yield row, col, rgb, np.asarray(valid.all(axis=0) & raw.any(axis=0))

    try:
        return quicklook(blocks(), dataset.width, dataset.height, longest, bright)
    finally:
        raster.close()


def _shrink(x: NDArray[Any], row: int, col: int, factor: int) -> NDArray[np.uint64]:
    """(C, h, w) at (row, col) of the mosaic -> sums over the cells of `factor` pixels that it touches."""
    for axis, start in ((1, row), (2, col)):
        first = -start % factor  # where the first whole cell begins
        edges = np.arange(first, x.shape[axis], factor)
        edges = np.concatenate([[0], edges]) if first else edges
        x = np.add.reduceat(x, edges, axis=axis, dtype=np.uint64)
    return x


def _check(rgb: np.ndarray, valid: np.ndarray) -> None:
    if rgb.shape != (3, *valid.shape) or valid.ndim != 2 or rgb.dtype != np.uint8 or valid.dtype != np.bool_:
        raise AlignmentError(f"RGB {rgb.dtype} {rgb.shape} with valid {valid.dtype} {valid.shape}; "
                             "wanted uint8 (3, H, W) with bool (H, W)")  # fmt: skip


def _check_inside(row: int, col: int, height: int, width: int, rows: int, cols: int, what: str) -> None:
    if row < 0 or col < 0 or row + height > rows or col + width > cols:
        raise AlignmentError(f"block of {height} x {width} at ({row}, {col}) lies outside of {rows} x {cols}: {what}")
