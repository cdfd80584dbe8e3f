"""The work of a unit of `grade`: one slice of S2 tiles, each pixel against the mosaic pixel that holds its centre.

A pixel is clear ground where the tile has data, its own mask (SCL, QA60) knows no cloud and no shadow, and `cca.cloud` sees
none. Ground that two tiles of one day show (scenes in two UTM zones) counts twice.
"""

from __future__ import annotations

import datetime as dt
import functools
import io
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.transform import Affine

from sar2eo_dist import storage
from sar2eo_dist.cca.cloud import Whiteness, white_pixels
from sar2eo_dist.cca.exposure import harmonise
from sar2eo_dist.cca.qa import CIRRUS, OPAQUE
from sar2eo_dist.errors import SourceChanged
from sar2eo_dist.evaluation import field
from sar2eo_dist.ledger import Entry
from sar2eo_dist.mosaic import store
from sar2eo_dist.mosaic.pyramid import Pixels
from sar2eo_dist.pipeline.graded import Mosaic
from sar2eo_dist.records import PATCH, S2, S2_BANDS, TileRef, Unit
from sar2eo_dist.sources import multiearth, warp
from sar2eo_dist.sources.reflectance import check_offset
from sar2eo_dist.sources.scene_header import Plane, Scene

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
AREA = 2048  # pixels of a scene whose tiles are read one after the other
KEPT = 4  # blocks of the mosaic in memory: a tile that is no larger than a block touches no more
#: scene classification: no data, shadow, cloud of medium and of high probability, thin cirrus
SCL_OUT = (0, 3, 8, 9, 10)
_INT = pa.int64()
_OWN = [("mosaic", pa.string()), ("date", pa.date32())]
#: a row a cell and S2 date; cell_row, cell_col: in cells from the mosaic's first pixel; then field.COLUMNS
CELLS = pa.schema([*_OWN, ("cell_row", _INT), ("cell_col", _INT), *((c, _INT) for c in field.COLUMNS)])
#: a row an S2 date: tiles compared, and the histogram of the clear truth of each band: DN that occur, and how often
DATES = pa.schema([*_OWN, ("tiles", _INT), *((f"{w}_{b}", pa.list_(_INT)) for w in ("dn", "count") for b in S2_BANDS)])


@dataclass(frozen=True, slots=True)
class Slice:
    """The payload of a unit: tiles in order of date and key, each with whether this run trained on it; blocks: (row,
    column) of the mosaic's blocks that may be read."""

    mosaic: Mosaic
    tiles: tuple[tuple[TileRef, bool], ...]
    blocks: frozenset[tuple[int, int]]


def measure(unit: Unit, part: Slice, attempt: int, *, root: str, cell: int, cca: Whiteness) -> Entry:
    """Compare a slice's tiles with the mosaic; leaves two tables below `grade/slices`.

    <unit>.parquet: CELLS, sums of a date's pixels in each cell of `cell` x `cell` mosaic pixels. <unit>-dates.parquet:
    DATES, what the trivial predictor needs. Raises SourceChanged for a tile that is not the one that was listed, BadInput
    and storage's errors: the unit fails with that reason.
    """
    begin, m, size = time.time(), part.mosaic, 0
    counts: Counter[str] = Counter()
    read = functools.lru_cache(KEPT)(functools.partial(_block, m, part.blocks))
    across = -(-m.layout.width // cell)
    tables: dict[str, list[pa.Table]] = {"": [], "-dates": []}
    for date, tiles in itertools.groupby(part.tiles, key=lambda tile: tile[0].date):
        tallies, seen, graded = [], np.zeros((len(S2_BANDS), field.LEVELS), np.int64), 0
        for scene, ref, trained in _opened(sorted(tiles, key=_near)):
            rows, cols = _pixels(scene, ref, m.layout)
            mosaic, there = _values(m.layout, rows, cols, read)
            if not there.any():
                counts["tiles outside"] += 1
                continue
            truth, clear = _truth(scene, ref, cca)
            size += truth.nbytes
            clear &= there
            if not clear.any():
                counts["tiles without clear pixels"] += 1
                continue
            dn = truth[:, clear].astype(np.int64)
            tallies.append(field.tally(mosaic[:, clear], dn, rows[clear] // cell * across + cols[clear] // cell))
            seen += field.histogram(dn)
            graded += 1
            counts.update({"tiles graded": 1, "tiles trained on": int(trained), "clear pixels": dn.shape[1]})
        if tallies:
            cells, sums = field.merge(tallies)
            tables[""].append(_cells(m, date, cells // across, cells % across, sums))
            tables["-dates"].append(_date(m, date, graded, seen))
    outputs = []
    for (suffix, found), schema in zip(tables.items(), (CELLS, DATES), strict=True):
        sink = io.BytesIO()
        pq.write_table(pa.concat_tables([schema.empty_table(), *found]), sink, compression="zstd")
        outputs.append(storage.publish(root, f"grade/slices/{unit.id}{suffix}.parquet", sink.getvalue()))
    return Entry(unit, tuple(outputs), time.time() - begin, size, attempt, dict(counts))


def _cells(m: Mosaic, date: dt.date, rows: Ints, cols: Ints, sums: Ints) -> pa.Table:
    n = len(rows)
    own = [pa.array([m.name] * n), pa.array([date] * n, pa.date32()), rows, cols]
    return pa.table([*own, *np.ascontiguousarray(sums.T)], schema=CELLS)


def _date(m: Mosaic, date: dt.date, tiles: int, seen: Ints) -> pa.Table:
    levels = [np.flatnonzero(band) for band in seen]
    counted = [band[at] for band, at in zip(seen, levels, strict=True)]
    return pa.table([[v] for v in (m.name, date, tiles, *levels, *counted)], schema=DATES)


def _near(tile: tuple[TileRef, bool]) -> tuple[Any, ...]:
    """Scene by scene, and squares of AREA pixels of it one after the other: few blocks of the mosaic at a time."""
    ref, _ = tile
    return ref.uris, [n // AREA for n in ref.rows], ref.rows, ref.key


def _opened(tiles: Iterable[tuple[TileRef, bool]]) -> Iterator[tuple[Scene, TileRef, bool]]:
    """Each tile with its open scene."""
    for (uris, bands), some in itertools.groupby(tiles, key=lambda tile: (tile[0].uris, tile[0].bands)):
        scene = Scene(tuple(zip(bands if len(uris) > 1 else ("",), uris, strict=False)), S2)
        try:
            for ref, trained in some:
                if scene.digest(*ref.rows) != ref.digest:
                    raise SourceChanged(uris[0], f"S2 of {ref.date} is not as it was listed: run jobs/collect.py again")
                yield scene, ref, trained
        finally:
            scene.close()


def _pixels(scene: Scene, ref: TileRef, layout: store.Layout) -> tuple[Ints, Ints]:
    """(PATCH, PATCH) row and column of the mosaic pixel that holds the centre of each of a tile's pixels; -1 = outside."""
    grid, n = scene.grid, PATCH
    corner = (grid.col + ref.rows[1]) * grid.gsd, -(grid.row + ref.rows[0]) * grid.gsd
    own = warp.Grid(scene.crs.to_wkt(), (grid.gsd, 0.0, corner[0], 0.0, -grid.gsd, corner[1]))
    steps = np.arange(n)
    first = warp.offset(own, n, n, warp.Grid(layout.crs, layout.transform))
    if first:  # one grid: no rounding in between
        rows, cols = np.broadcast_arrays(steps[:, None] + first[0], steps + first[1])
    else:
        centres = (steps + 0.5) * grid.gsd
        x, y = np.broadcast_arrays(corner[0] + centres, corner[1] - centres[:, None])
        x, y = warp.project(own.crs, layout.crs, x.ravel(), y.ravel())
        there = np.isfinite(x) & np.isfinite(y)
        a, b, c, d, e, f, *_ = ~Affine(*layout.transform)
        x, y = np.where(there, x, 0), np.where(there, y, 0)
        rows, cols = (
            np.where(there, np.clip(np.floor(v), -1, 2**40), -1).astype(np.int64).reshape(n, n)
            for v in (d * x + e * y + f, a * x + b * y + c)
        )
    inside = (rows >= 0) & (rows < layout.height) & (cols >= 0) & (cols < layout.width)
    return np.where(inside, rows, -1), np.where(inside, cols, -1)


def _block(m: Mosaic, made: frozenset[tuple[int, int]], row: int, col: int) -> Pixels | None:
    return store.read_block(m.store, m.layout, 0, row, col) if (row, col) in made else None


def _values(
    layout: store.Layout, rows: Ints, cols: Ints, read: Callable[[int, int], Pixels | None]
) -> tuple[Ints, Mask]:
    """((3, h, w) DN, (h, w) bool where they are data) of mosaic pixels; row and column -1 are none."""
    out, there, side = np.zeros((3, *rows.shape), np.int64), np.zeros(rows.shape, bool), layout.block
    blocks = np.where(rows < 0, -1, rows // side * layout.shape(0)[1] + cols // side)
    for number in np.unique(blocks).tolist():
        row, col = divmod(number, layout.shape(0)[1])
        pixels = read(row, col) if number >= 0 else None
        if pixels is not None:
            here = blocks == number
            y, x = rows[here] - row * side, cols[here] - col * side
            out[:, here] = field.as_dn(pixels.rgb[:, y, x])
            there[here] = pixels.valid[y, x]
    return out, there


def _truth(scene: Scene, ref: TileRef, cca: Whiteness) -> tuple[npt.NDArray[np.uint16], Mask]:
    """((3, PATCH, PATCH) DN without the product's offset, where they are clear ground: data, no cloud, no known shadow)."""
    row, col = ref.rows
    planes = scene.read(row, col, PATCH)
    uri = scene.uri(S2_BANDS[0])
    dn = np.stack([multiearth.as_dn(scene.dn(b, planes[b]), uri, b, any_integer=True) for b in S2_BANDS])
    out = np.zeros((PATCH, PATCH), bool)
    if "SCL" in planes:
        classes = _mask(planes["SCL"])
        dn[:, classes == 0] = 0
        out = np.isin(classes, SCL_OUT)
    elif "QA60" in planes:
        out = (_mask(planes["QA60"]).astype(np.int64) & (OPAQUE | CIRRUS)) != 0
    check_offset(dn, scene.offset, uri)
    dn = harmonise(dn, scene.offset)
    return dn, (dn != 0).all(axis=0) & ~out & ~white_pixels(dn, cca)


def _mask(plane: Plane) -> npt.NDArray[Any]:
    raw, valid = plane
    return np.where(valid, raw, np.zeros((), raw.dtype))
