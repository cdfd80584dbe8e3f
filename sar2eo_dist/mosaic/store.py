"""The mosaic as one zarr v3 store: a template, blocks of pixels, and a pyramid of overviews, written by independent units.

Layout below the store's root: `rgb`, `valid` and, if wanted, `error` at full resolution; the same arrays at 1/2, 1/4 ...
in the groups `overviews/2`, `overviews/4` ... Each group has coordinates `x`, `y` of its pixel centres and the scalar
`spatial_ref`, so that xarray and rioxarray need no help. A block of a level is one storage object of each array, so
each unit of work owns whole objects; a block that nobody wrote is no data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from sar2eo_dist import shards, storage
from sar2eo_dist.errors import AlignmentError, ConfigError, Corrupt, NotFound
from sar2eo_dist.mosaic import geozarr
from sar2eo_dist.mosaic.grid import Transform
from sar2eo_dist.mosaic.pyramid import Pixels, downsample
from sar2eo_dist.records import Artifact
from sar2eo_dist.shards import ArraySpec

DN_SCALE = 1e-4  # reflectance of one DN
CHUNK = 256  # side of what one read decodes, pixels
COORDINATES = 1 << 16  # values of a coordinate in one object


def levels(height: int, width: int, block: int) -> int:
    """Number of overviews, each half the size of the one before (rounded up), the last no larger than a block."""
    longest, count = max(height, width), 0
    while longest > block:
        longest, count = -(-longest // 2), count + 1
    return count


@dataclass(frozen=True, slots=True)
class Layout:
    """What a mosaic's store is: its grid, and what its arrays hold.

    crs: WKT or "EPSG:n"; transform: affine (a, b, c, d, e, f) of the first pixel's corner; height, width, block: pixels;
    dtype: "uint8" (colours) or "uint16" (DN) of `rgb`; error: with the array `error`. Raises ConfigError.
    """

    crs: str
    transform: Transform
    height: int
    width: int
    block: int
    dtype: str = "uint8"
    error: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.block) < 1:
            raise ConfigError(
                f"mosaic of {self.height} x {self.width} pixels in blocks of {self.block}: all must be 1 or more"
            )
        if self.dtype not in ("uint8", "uint16"):
            raise ConfigError(f"mosaic of dtype {self.dtype!r}, not uint8 or uint16")
        geozarr.parse(self.crs)

    @property
    def levels(self) -> int:
        """Number of overviews below full resolution, level 0."""
        return levels(self.height, self.width, self.block)

    def size(self, level: int) -> tuple[int, int]:
        """Height and width of a level in its own pixels. Raises AlignmentError where there is no such level."""
        if not 0 <= level <= self.levels:
            raise AlignmentError(f"level {level} of a mosaic of {self.levels} overviews ({self.height} x {self.width})")
        return -(-self.height // 2**level), -(-self.width // 2**level)

    def shape(self, level: int) -> tuple[int, int]:
        """Rows and columns of blocks of a level."""
        height, width = self.size(level)
        return -(-height // self.block), -(-width // self.block)

    def extent(self, level: int, row: int, col: int) -> tuple[int, int]:
        """Height and width of a block of a level, clipped at the far edges. Raises AlignmentError."""
        rows, cols = self.shape(level)
        if not (0 <= row < rows and 0 <= col < cols):
            raise AlignmentError(f"block ({row}, {col}) of level {level} lies outside of {rows} x {cols} blocks")
        height, width = self.size(level)
        return min(self.block, height - row * self.block), min(self.block, width - col * self.block)

    def transform_of(self, level: int) -> Transform:
        return geozarr.coarser(self.transform, 2**level)

    def arrays(self, level: int) -> tuple[ArraySpec, ...]:
        """rgb (3, h, w), valid (h, w) uint8 (1 = data) and, with `error`, error (h, w) uint16 of a level."""
        (height, width), block, chunk = self.size(level), self.block, math.gcd(self.block, CHUNK)
        folder = folder_of(level)
        # xarray makes `spatial_ref` a coordinate through `coordinates`, rioxarray finds it through `grid_mapping`
        where = {"grid_mapping": geozarr.GRID_MAPPING, "coordinates": geozarr.GRID_MAPPING}
        others = "valid error" if self.error else "valid"
        colours: dict[str, Any] = {"long_name": "translated optical image", "band": ["red", "green", "blue"]}
        if self.dtype == "uint16":
            colours |= {"long_name": "translated surface reflectance", "scale_factor": DN_SCALE, "units": "1"}

        def plane(name: str, dtype: str, attributes: Mapping[str, Any]) -> ArraySpec:
            return ArraySpec(folder + name, (height, width), (block, block), (chunk, chunk), dtype, ("y", "x"), 0, "zstd",
                             {**attributes, **where})  # fmt: skip

        rgb = ArraySpec(folder + "rgb", (3, height, width), (3, block, block), (3, chunk, chunk), self.dtype,
                        ("band", "y", "x"), 0, "zstd", {**colours, "ancillary_variables": others, **where})  # fmt: skip
        valid = plane("valid", "uint8", {"long_name": "1 where rgb is data", "flag_values": [0, 1],
                                         "flag_meanings": "no_data data"})  # fmt: skip
        if not self.error:
            return rgb, valid
        said = {"long_name": "typical (median) absolute error of reflectance, mean of the bands", "units": "1"}
        return rgb, valid, plane("error", "uint16", {**said, "scale_factor": DN_SCALE})


def folder_of(level: int) -> str:
    """Where a level's arrays lie below the store: "" or "overviews/2/" ..."""
    return f"overviews/{2**level}/" if level else ""


def write_template(root: str, store: str, layout: Layout, attributes: Mapping[str, Any]) -> list[Artifact]:
    """Publish all metadata and coordinates of a store below `root`/`store`, before any block is written.

    attributes: more of them, for the root group. Written again, it gives the same objects; pixels are left alone. Raises
    ConfigError where the store of another grid lies there (`check_template`).
    """
    check_template(root, store, layout)
    memory = MemoryStore()
    sizes = [(f"{folder_of(k)}rgb", 2**k, *layout.size(k)) for k in range(layout.levels + 1)]
    own = {
        "crs": layout.crs,
        "transform": list(layout.transform),
        "created_by": "sar2eo_dist",
        "Conventions": "CF-1.11",
    }
    place = (layout.crs, layout.transform, layout.height, layout.width)
    zarr.create_group(memory, attributes={**geozarr.pyramid(*place, sizes), **own, **attributes})
    if layout.levels:
        zarr.create_group(memory, path="overviews")
    made: list[Artifact] = []
    for k in range(layout.levels + 1):
        folder, transform, size = folder_of(k), layout.transform_of(k), layout.size(k)
        if k:
            zarr.create_group(memory, path=folder[:-1], attributes=geozarr.group(layout.crs, transform, *size))
        zarr.create_array(
            memory, name=folder + geozarr.GRID_MAPPING, shape=(), dtype="int64", fill_value=0, compressors=None,
            attributes=geozarr.grid_mapping(layout.crs, transform),
        )  # fmt: skip
        for spec in layout.arrays(k):
            spec.create(memory)
        for spec, values in _coordinates(layout, k):
            spec.create(memory)
            for i, start in enumerate(range(0, values.size, spec.shard[0])):
                made.append(shards.write_shard(root, store, spec, (i,), values[start : start + spec.shard[0]]))
    # the root's metadata are the last of all: where they are, everything is
    documents = sorted(memory._store_dict.items(), key=lambda d: (d[0] == "zarr.json", d[0]))
    return made + [storage.publish(root, storage.join(store, key), value.to_bytes()) for key, value in documents]


def _coordinates(layout: Layout, level: int) -> list[tuple[ArraySpec, npt.NDArray[np.float64]]]:
    """`x` and `y` of a level's pixel centres; none of a turned grid, whose pixels have no such axes."""
    a, b, c, d, e, f = layout.transform_of(level)
    if b or d:
        return []
    height, width = layout.size(level)
    out: list[tuple[ArraySpec, npt.NDArray[np.float64]]] = []
    for name, count, step, first in (("y", height, e, f), ("x", width, a, c)):
        part = (min(count, COORDINATES),)
        spec = ArraySpec(folder_of(level) + name, (count,), part, part, "float64", (name,), 0, "zstd",
                         geozarr.axis(layout.crs, name))  # fmt: skip
        out.append((spec, first + step * (np.arange(count, dtype=np.float64) + 0.5)))
    return out


def read_layout(uri: str) -> Layout:
    """The layout of the store at a URI, from its metadata. Raises NotFound, Corrupt where they are not of a mosaic."""

    def document(path: str) -> Any:
        return json.loads(storage.read_bytes(storage.join(uri, path)))

    try:
        group, rgb = document("zarr.json")["attributes"], document("rgb/zarr.json")
        _, height, width = rgb["shape"]
        block = int(rgb["chunk_grid"]["configuration"]["chunk_shape"][-1])
        a, b, c, d, e, f = (float(v) for v in group["transform"])
        crs, dtype = str(group["crs"]), str(rgb["data_type"])
        try:
            error = bool(document("error/zarr.json"))
        except NotFound:
            error = False
        return Layout(crs, (a, b, c, d, e, f), int(height), int(width), block, dtype, error)
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as e:
        raise Corrupt(uri, f"not the metadata of a mosaic ({type(e).__name__}: {e})") from e


def check_template(root: str, store: str, layout: Layout) -> bool:
    """Whether the store's template is there already. Raises ConfigError, naming both, where it is of another layout."""
    uri = storage.join(root, store)
    try:
        there = read_layout(uri)
    except NotFound:
        return False
    same_crs = there.crs == layout.crs or geozarr.parse(there.crs) == geozarr.parse(layout.crs)
    names = [n for n in Layout.__slots__ if n != "crs" and getattr(there, n) != getattr(layout, n)]
    names = names if same_crs else ["crs", *names]
    if names:
        said = "; ".join(f"{n} {getattr(there, n)!s:.300} there, {getattr(layout, n)!s:.300} wanted" for n in names)
        raise ConfigError(f"the store already there is another mosaic's: {said}: {uri}")
    return True


def empty(layout: Layout, level: int, row: int, col: int) -> Pixels:
    """A block of a level without data."""
    extent = layout.extent(level, row, col)
    error = np.zeros(extent, np.uint16) if layout.error else None
    return Pixels(np.zeros((3, *extent), layout.dtype), np.zeros(extent, bool), error)


def write_block(
    root: str, store: str, layout: Layout, level: int, row: int, col: int, pixels: Pixels
) -> tuple[Artifact, ...]:
    """Publish one block of a level: one object of each array. Pixels that are not valid are written as 0.

    row, col: in blocks of the level. Raises AlignmentError where the pixels are not exactly those of the block.
    """
    extent, wanted = layout.extent(level, row, col), layout.arrays(level)
    valid = pixels.valid
    if valid.shape != extent or valid.dtype != np.bool_ or (pixels.error is not None) != layout.error:
        raise AlignmentError(
            f"block ({row}, {col}) of level {level} is {extent}, bool, {'with' if layout.error else 'without'} error; the "
            f"pixels are {valid.shape}, {valid.dtype}, {'with' if pixels.error is not None else 'without'} error"
        )
    planes = [pixels.rgb, valid.view(np.uint8)] + ([] if pixels.error is None else [pixels.error])
    if any(p.shape[-2:] != extent for p in planes):
        raise AlignmentError(f"block ({row}, {col}) of level {level} is {extent}, not {[p.shape for p in planes]}")
    pairs = list(zip(wanted, planes, strict=True))
    pairs.append(pairs.pop(1))  # `valid` is the last: readers begin with it
    return tuple(
        shards.write_shard(root, store, spec, (0,) * (len(spec.shape) - 2) + (row, col), plane * valid.view(np.uint8))
        for spec, plane in pairs
    )


def read_block(uri: str, layout: Layout, level: int, row: int, col: int) -> Pixels | None:
    """One block of a level of the store at a URI; None where nobody wrote it, or no pixel of it is valid.

    Raises AlignmentError for a block outside, Corrupt where an object's bytes are not those that were written, and
    storage's errors.
    """
    layout.extent(level, row, col)
    colours, mask, *error = layout.arrays(level)
    valid = _read(uri, mask, (row, col))
    if valid is None or not valid.any():
        return None
    planes = [_read(uri, colours, (0, row, col)), *(_read(uri, spec, (row, col)) for spec in error)]
    if any(p is None for p in planes):
        raise Corrupt(uri, f"block ({row}, {col}) of level {level} has `valid`, but not all of its other arrays")
    return Pixels(planes[0], valid.view(np.bool_), planes[1] if error else None)


def _read(uri: str, spec: ArraySpec, index: tuple[int, ...]) -> Any:
    """The pixels of one object, read whole in one request and decoded by zarr; None where there is none."""
    key = "/".join((spec.name, "c", *map(str, index)))
    try:
        data = storage.read_bytes(storage.join(uri, key))
    except NotFound:
        return None
    if not data:  # which zarr would take for one that was never written
        raise Corrupt(storage.join(uri, key), "an empty object")
    alone = ArraySpec(
        "a", spec.extent(index), spec.shard, spec.chunk, spec.dtype, spec.dims, spec.fill, spec.compressor
    )
    memory = MemoryStore({"/".join(("a", "c", *("0" for _ in index))): cpu.Buffer.from_bytes(data)})
    try:
        return alone.create(memory)[...]
    except Exception as e:
        raise Corrupt(storage.join(uri, key), f"does not decode ({type(e).__name__}: {e})") from e


def read_overview(uri: str, layout: Layout, level: int, row: int, col: int) -> Pixels | None:
    """A block of an overview, computed from the blocks of the level below it; None where none of them is there."""
    layout.extent(level, row, col)
    below, (rows, cols), (height, width) = level - 1, layout.shape(level - 1), layout.size(level - 1)
    children = [
        [read_block(uri, layout, below, i, j) for j in range(2 * col, min(2 * col + 2, cols))]
        for i in range(2 * row, min(2 * row + 2, rows))
    ]
    side = 2 * layout.block
    return downsample(children, layout.block, min(side, height - row * side), min(side, width - col * side))
