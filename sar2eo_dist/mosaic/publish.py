"""Rasters that people open: one COG a block, a VRT over all of them, and quick-looks. Bytes out, nothing is written.

Equal arguments give equal bytes (for one GDAL build): nothing in a file depends on time, name or threads.
"""

from __future__ import annotations

import io
import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.shutil
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from sar2eo_dist.errors import AlignmentError, BadInput
from sar2eo_dist.radiometry import display
from sar2eo_dist.sources.raster import Raster

COG_TILE = 512  # pixels; also where overviews end
DN_MAX = 3000  # white of a raster of DN, as in radiometry's `fixed`
LOOK_FACTOR = 32  # looks are at most so many times smaller than their block
_FINE = (
    4  # looks have so many times the quick-look's pixels along a side: shrunk again, it keeps 4/5 of its size or more
)
_BANDS: dict[int, tuple[ColorInterp, ...]] = {
    1: (ColorInterp.gray,),
    3: (ColorInterp.red, ColorInterp.green, ColorInterp.blue),
}
_GDAL = {"uint8": "Byte", "uint16": "UInt16"}


@dataclass(frozen=True, slots=True)
class BlockFile:
    """Where one block's COG lies in the mosaic. path: relative to the VRT; row, col, height, width: mosaic pixels."""

    path: str
    row: int
    col: int
    height: int
    width: int


def cog_bytes(
    image: NDArray[Any],
    valid: NDArray[np.bool_],
    crs: str,
    transform: tuple[float, ...],
    scale: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> bytes:
    """One block as cloud-optimised GeoTIFF with an internal mask, which GDAL and QGIS show as transparent.

    image: uint8 or uint16, (3, H, W) red, green, blue or (1, H, W); valid: (H, W) bool, pixels without data are written
    as 0; crs: WKT or "EPSG:n"; transform: the block's own affine (a, b, c, d, e, f), as in `records.SceneRef`; scale: what
    a value is multiplied by (reflectance of a DN: 1e-4), None = nothing is said; tags: more metadata of the file. Deflate,
    512 px tiles, overviews averaged over valid pixels only. Raises AlignmentError where shapes or types do not fit together.
    """
    _check(image, valid)
    bands, height, width = image.shape
    profile: dict[str, Any] = {"width": width, "height": height, "count": bands, "dtype": image.dtype.name,
                               "photometric": "RGB" if bands == 3 else "MINISBLACK"}  # fmt: skip
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        MemoryFile(ext=".tif") as plain,
        MemoryFile(ext=".tif") as cog,
    ):
        affine = rasterio.Affine(*transform[:6])
        with plain.open(driver="GTiff", crs=CRS.from_string(crs), transform=affine, **profile) as dataset:
            dataset.colorinterp = _BANDS[bands]
            if scale is not None:
                dataset.scales = (scale,) * bands
            if tags:
                dataset.update_tags(**dict(sorted(tags.items())))
            dataset.write(np.where(valid, image, image.dtype.type(0)))
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


def vrt_xml(
    blocks: Iterable[BlockFile],
    crs: str,
    transform: tuple[float, ...],
    width: int,
    height: int,
    dtype: str = "uint8",
    bands: int = 3,
    scale: float | None = None,
) -> str:
    """The whole mosaic as one raster: a GDAL VRT over per-block COGs, masks included.

    transform: the mosaic's affine; width, height in pixels; dtype ("uint8" or "uint16"), bands (3 or 1) and scale: those of
    the COGs. A block that is not listed is no data. Raises AlignmentError for a block that lies outside.
    """
    blocks = sorted(blocks, key=lambda b: (b.row, b.col))
    for b in blocks:
        _check_inside(b.row, b.col, b.height, b.width, height, width, b.path)
    a, bb, c, d, e, f = transform[:6]
    root = ET.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ET.SubElement(root, "SRS").text = CRS.from_string(crs).to_wkt()
    ET.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in (c, a, bb, f, d, e))
    for number, colour in enumerate(_BANDS[bands], 1):
        band = ET.SubElement(root, "VRTRasterBand", dataType=_GDAL[dtype], band=str(number))
        ET.SubElement(band, "ColorInterp").text = colour.name.capitalize()
        if scale is not None:
            ET.SubElement(band, "Scale").text = repr(float(scale))
        _sources(band, blocks, str(number), _GDAL[dtype])
    mask = ET.SubElement(ET.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    _sources(mask, blocks, "mask,1", "Byte")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _sources(band: ET.Element, blocks: list[BlockFile], source_band: str, kind: str) -> None:
    for b in blocks:
        source = ET.SubElement(band, "SimpleSource")
        ET.SubElement(source, "SourceFilename", relativeToVRT="1").text = b.path
        ET.SubElement(source, "SourceBand").text = source_band
        w, h, tile = str(b.width), str(b.height), str(COG_TILE)
        ET.SubElement(  # with these GDAL opens a block only when a pixel of it is wanted
            source, "SourceProperties", RasterXSize=w, RasterYSize=h, DataType=kind, BlockXSize=tile, BlockYSize=tile
        )
        ET.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=w, ySize=h)
        ET.SubElement(source, "DstRect", xOff=str(b.col), yOff=str(b.row), xSize=w, ySize=h)


def look_factor(block: int, height: int, width: int, longest: int) -> int:
    """How many times smaller than the mosaic its looks are: a power of two that divides `block`, at most LOOK_FACTOR.

    height, width: the mosaic; longest: the quick-look's longest side, all in pixels. As large as the quick-look allows.
    """
    factor = 1
    while factor < LOOK_FACTOR and block % (2 * factor) == 0 and max(height, width) >= 2 * factor * _FINE * longest:
        factor *= 2
    return factor


def look(rgb: NDArray[Any], valid: NDArray[np.bool_], factor: int) -> NDArray[np.uint8]:
    """A block made small: (4, ceil(H / factor), ceil(W / factor)) uint8, red, green, blue and opacity.

    rgb: (3, H, W), uint8 as it is or uint16 as DN of 0..DN_MAX; valid: (H, W) bool. A pixel is the mean of the valid
    pixels that it covers, its opacity their share; in integers, rounded half up. Raises AlignmentError.
    """
    _check(rgb, valid)
    if rgb.shape[0] != 3:
        raise AlignmentError(f"a look is made of red, green and blue, not of {rgb.shape[0]} bands")
    white = 255 if rgb.dtype == np.uint8 else DN_MAX
    count = _shrink(valid[None], 0, 0, factor)[0]
    out = np.zeros((4, *count.shape), np.uint8)
    divisor = 2 * white * np.maximum(count, 1)
    for band in range(3):
        total = _shrink((np.minimum(rgb[band], rgb.dtype.type(white)) * valid)[None], 0, 0, factor)[0]
        out[band] = (2 * 255 * total + white * count) // divisor
    height, width = valid.shape
    area = _areas(height, width, factor)
    out[3] = (2 * 255 * count + area) // (2 * area)
    return out


def look_bytes(rgba: NDArray[np.uint8]) -> bytes:
    """(4, h, w) uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgba.transpose(1, 2, 0)), "RGBA").save(out, "PNG")
    return out.getvalue()


def look_from(data: bytes, uri: str = "look") -> NDArray[np.uint8]:
    """The inverse of `look_bytes`. Raises BadInput (unreadable) with the URI that the bytes came from."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode != "RGBA":
                raise BadInput("unreadable", uri, f"a look is RGBA, not {image.mode}")
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:
        raise BadInput("unreadable", uri, f"does not decode as PNG ({e})") from e


def quicklook(
    looks: Iterable[tuple[int, int, NDArray[np.uint8]]], height: int, width: int, longest: int, bright: bool = False
) -> bytes:
    """A small PNG (RGBA) of a mosaic, from its looks as they come; memory is one look and the small canvas.

    looks: (row, col, rgba (4, h, w) uint8), in any order, not overlapping; row, col, height, width: in pixels of the looks;
    longest: the longest side wanted. All is shrunk by a whole factor, so that sums are of integers and the result does
    not depend on how the mosaic is cut. A pixel is the mean of those that it covers, weighted by opacity; its opacity is
    their mean. `bright` maps the colours through radiometry.display. Raises AlignmentError for a look that lies outside.
    """
    factor = max(1, -(-max(width, height) // longest))
    rows, cols = -(-height // factor), -(-width // factor)
    sums = np.zeros((3, rows, cols), np.uint64)
    weights = np.zeros((rows, cols), np.uint64)
    for row, col, rgba in looks:
        if rgba.ndim != 3 or rgba.shape[0] != 4 or rgba.dtype != np.uint8:
            raise AlignmentError(f"a look is uint8 (4, h, w), not {rgba.dtype} {rgba.shape}")
        _check_inside(row, col, rgba.shape[1], rgba.shape[2], height, width, "quick-look")
        if not rgba.size:
            continue
        part = _shrink(rgba[3:], row, col, factor)[0]
        at = np.s_[row // factor : row // factor + part.shape[0], col // factor : col // factor + part.shape[1]]
        weights[at] += part
        for band in range(3):
            weighted = rgba[band] * rgba[3].astype(np.uint16)
            sums[band][at] += _shrink(weighted[None], row, col, factor)[0]
    covered = np.maximum(weights, 1)
    colour = ((2 * sums + covered) // (2 * covered)).astype(np.uint8)  # rounded half up
    area = _areas(height, width, factor)
    opacity = ((2 * weights + area) // (2 * area)).astype(np.uint8)
    return look_bytes(np.concatenate([display(colour) if bright else colour, opacity[None]]))


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
    height, width, side = dataset.height, dataset.width, 4 * COG_TILE
    factor = look_factor(side, height, width, longest)

    def looks() -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        for row, col in itertools.product(range(0, height, side), range(0, width, side)):
            raw, valid = raster.read([1, 2, 3], row, col, min(side, height - row), min(side, width - col))
            yield row // factor, col // factor, look(raw, np.asarray(valid.all(axis=0) & raw.any(axis=0)), factor)

    try:
        return quicklook(looks(), math.ceil(height / factor), math.ceil(width / factor), longest, bright)
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


def _areas(height: int, width: int, factor: int) -> NDArray[np.uint64]:
    """Pixels of each cell of a raster: those of the last row and column may be fewer."""
    down = np.minimum(height - np.arange(0, height, factor), factor)
    across = np.minimum(width - np.arange(0, width, factor), factor)
    return np.outer(down, across).astype(np.uint64)


def _check(image: np.ndarray, valid: np.ndarray) -> None:
    shapes = image.ndim == 3 and image.shape[0] in _BANDS and image.shape[1:] == valid.shape
    if not shapes or image.dtype.name not in _GDAL or valid.dtype != np.bool_:
        raise AlignmentError(f"image {image.dtype} {image.shape} with valid {valid.dtype} {valid.shape}; wanted uint8 or "
                             "uint16 (3, H, W) or (1, H, W) with bool (H, W)")  # fmt: skip


def _check_inside(row: int, col: int, height: int, width: int, rows: int, cols: int, what: str) -> None:
    if row < 0 or col < 0 or row + height > rows or col + width > cols:
        raise AlignmentError(f"block of {height} x {width} at ({row}, {col}) lies outside of {rows} x {cols}: {what}")
