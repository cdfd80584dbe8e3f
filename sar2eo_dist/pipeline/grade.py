"""grade: mosaics against clear Sentinel-2 tiles of later days: a skill map of each, and a time series of all.

A unit is a slice of one mosaic's tiles; it leaves exact sums by date and cell (evaluation/field.py), which the driver adds
up. Truth is never resampled: each of its pixels is compared with the mosaic pixel that holds its centre.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rasterio.shutil
from rasterio.io import MemoryFile

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import NothingYet
from sar2eo_dist.evaluation import field
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.mosaic import geozarr
from sar2eo_dist.mosaic.area import LONLAT
from sar2eo_dist.pipeline import cluster, fieldwork, graded, units
from sar2eo_dist.pipeline.blocks import ATTRIBUTION
from sar2eo_dist.pipeline.fieldwork import Slice
from sar2eo_dist.pipeline.graded import ClearTiles, Mosaic
from sar2eo_dist.pipeline.near import pointers
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, run_stage, write_summary
from sar2eo_dist.records import S2_BANDS, Unit, digest
from sar2eo_dist.report.field import picture
from sar2eo_dist.report.page import write as write_report
from sar2eo_dist.sources import warp
from sar2eo_dist.sources.ranged import ranged

STAGE = "grade"
FORMAT = 1  # of what a unit leaves
REACH = 0.02  # degrees around a tile's centre (of latitude; of longitude as much on the ground) that hold all of it
LONGEST = 480  # cells of the quick-look's longest side: of a larger map several are added up
Tile = tuple[dt.date, str, str, int]  # date, key and digest: their order; row of the table of verdicts
PLACE = ("cell_row", "cell_col")
FIGURES = (
    "mae", "rmse", "bias", "skill", "trivial_mae", "trivial_rmse",
    *(f"{what}_{band}" for what in ("mae", "rmse", "bias") for band in S2_BANDS),
)  # fmt: skip
#: a row a mosaic and S2 date; days: after the mosaic's last radar day; pixels: clear ones; the rest: field.figures
SERIES = pa.schema([
    ("mosaic", pa.string()), ("date", pa.date32()), ("days", pa.int64()), ("tiles", pa.int64()), ("pixels", pa.int64()),
    *((name, pa.float64()) for name in FIGURES),
])  # fmt: skip


def grade(cfg: Config, opts: Options) -> Summary:
    """Run the verb for `grade.mosaics`, or for those of the run's last translate, and write `report.html`.

    Counts: `tiles kept` (clear by collect's verdicts, georeferenced) = `tiles graded` + `tiles without clear pixels` + `tiles
    outside` (no mosaic pixel under them) + `tiles out of days` + `tiles left out` (of units quarantined or beyond --limit);
    where there are several mosaics, a tile is counted for each. `tiles trained on`: of those graded, targets of this run's
    own training pairs. Raises ConfigError: no mosaic, one without a date, no georeferenced tile; NothingYet: none kept, or
    none on a mosaic in `grade.days`.
    """
    root = storage.absolute(cfg.run.out)
    mosaics = graded.mosaics(cfg, root)
    truth = graded.clear_tiles(cfg, root)
    plan: list[tuple[Unit, Slice]] = []
    counts: Counter[str] = Counter({"tiles kept": len(truth.row) * len(mosaics)})
    for m in mosaics:
        plan += _plan(cfg, m, truth, counts)
    if not plan:
        last = ", ".join(f"{m.name} until {m.last}" for m in mosaics)
        raise NothingYet(
            f"no S2 tile to grade with: of {len(truth.row)} clear ones on {len(mosaics)} mosaic(s) ({last}), "
            f"{counts['tiles outside']} lie outside and {counts['tiles out of days']} are not {cfg.grade.days[0]} to "
            f"{cfg.grade.days[1]} days later: collect other dates and places, or set grade.days"
        )
    payloads = {u.id: (u, part) for u, part in plan}
    work = partial(fieldwork.measure, root=root, cell=cfg.grade.cell, cca=cfg.cca)

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        yield from units.run(work, [payloads[u.id] for u in todo], attempt, parallel=cfg.resources.readers)

    summary = run_stage(cfg, opts, STAGE, [u for u, _ in plan], execute, "slices")
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"tiles": sum(len(p.tiles) for _, p in plan)})
    lost = {q["unit"] for q in summary.quarantined}
    done = [(u, p) for u, p in plan[: summary.planned] if u.id not in lost]
    counts["tiles left out"] = sum(len(p.tiles) for _, p in plan) - sum(len(p.tiles) for _, p in done)
    entries = Ledger(root).entries([u for u, _ in done])
    outputs: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for m in mosaics:
        own = [e for e, (_, p) in zip(entries, done, strict=True) if p.mosaic == m]
        series, made = _publish(root, m, cfg.grade.cell, own)
        rows += series
        outputs |= {f"{k} {m.name}": v for k, v in made.items()} if "skill" in outputs else made
    outputs["series"] = f"{STAGE}/series.parquet"
    storage.put(storage.join(root, outputs["series"]), _parquet(pa.Table.from_pylist(rows, schema=SERIES)))
    every = dict(sorted((Counter(summary.counts) + counts).items()))
    write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=every))
    outputs["report"] = write_report(root).path
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=every))


# plan -----------------------------------------------------------------------------------------------------------------


def _plan(cfg: Config, m: Mosaic, truth: ClearTiles, counts: Counter[str]) -> list[tuple[Unit, Slice]]:
    """Slices of the tiles that may touch a made block of a mosaic, within `grade.days`; the others are counted."""
    made = graded.made_blocks(m)
    after = truth.day - m.last.toordinal()
    timely = (after >= cfg.grade.days[0]) & (after <= cfg.grade.days[1])
    touched = dict(_touched(m, truth, made))
    chosen = {int(truth.row[i]): around for i, around in touched.items() if timely[i]}
    counts["tiles outside"] += len(after) - len(touched)
    counts["tiles out of days"] += len(touched) - len(chosen)
    marks = graded.versions(m, made, {b for around in chosen.values() for b in around})
    with ranged(truth.verdicts) as f:
        refs = pointers(pq.ParquetFile(f), sorted(chosen))
    look = [cfg.cca.level, cfg.cca.white_dn, cfg.cca.white_blue, cfg.cca.white_spread]
    same = digest(FORMAT, look, dataclasses.astuple(m.layout))
    out = []
    for part in _slices(sorted((r.date, r.key, r.digest, row) for row, r in refs.items()), cfg.grade.slice):
        around = sorted({b for *_, row in part for b in chosen[row]})
        tiles = tuple((refs[row], refs[row].digest in truth.targets) for *_, row in part)
        inputs = digest(same, [(r.digest, t) for r, t in tiles], [(b, marks[b]) for b in around])
        key = f"{m.name}/{tiles[0][0].date}/{tiles[0][0].place}"
        out.append((Unit(STAGE, key, cfg.fingerprint(STAGE), inputs), Slice(m, tiles, frozenset(around))))
    return out


def _touched(m: Mosaic, truth: ClearTiles, made: graded.Blocks) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(tile, made blocks near it) of each tile that has any: generous, a worker looks exactly."""
    if not made:
        return
    lon, lat = np.concatenate([truth.lon] * 4), np.concatenate([truth.lat] * 4)
    n = len(truth.lon)
    side, up = np.repeat([-1, 1, -1, 1], n), np.repeat([-1, -1, 1, 1], n)
    wide = REACH / np.maximum(np.cos(np.radians(lat)), 0.05)
    x, y = warp.project(LONLAT, m.layout.crs, lon + side * wide, lat + up * REACH)
    with np.errstate(invalid="ignore"):
        a, b, c, d, e, f, *_ = ~rasterio.Affine(*m.layout.transform)
        ends = [v.reshape(4, n) / m.layout.block for v in (d * x + e * y + f, a * x + b * y + c)]
    low, high = (np.stack([g(v, axis=0) for v in ends]) for g in (np.min, np.max))
    held = np.array(sorted(made))
    first, last = held.min(axis=0)[:, None], held.max(axis=0)[:, None] + 1
    near = np.isfinite(low).all(axis=0) & np.isfinite(high).all(axis=0) & (low < last).all(axis=0)
    for i in np.flatnonzero(near & (high >= first).all(axis=0)).tolist():
        (top, left), (bottom, right) = (np.floor(v[:, i]).astype(int).tolist() for v in (low, high))
        around = ((r, c) for r in range(top, bottom + 1) for c in range(left, right + 1))
        if found := [b for b in around if b in made]:
            yield i, found


def _slices(tiles: Sequence[Tile], size: int) -> Iterator[list[Tile]]:
    """Tiles by date cut into slices of at most `size`, between dates where a date fits: a later date moves no earlier cut."""
    part: list[Tile] = []
    for _, same in itertools.groupby(tiles, key=lambda tile: tile[0]):
        group = list(same)
        if part and len(part) + len(group) > size:
            yield part
            part = []
        part += group
        while len(part) > size:
            yield part[:size]
            part = part[size:]
    if part:
        yield part


# products -------------------------------------------------------------------------------------------------------------


def _publish(root: str, m: Mosaic, cell: int, entries: Sequence[Entry]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows of SERIES, outputs) of one mosaic: its skill map and quick-look, where any pixel was compared.

    The slices' tables are read one by one, twice: a date's mean colour is known once all of it was seen.
    """
    totals: dict[Any, npt.NDArray[np.int64]] = {}
    low, high = [1 << 62, 1 << 62], [-1, -1]
    for date, place, sums in _cells(root, entries):
        totals[date] = totals.get(date, 0) + sums.sum(axis=0)
        low, high = np.minimum(low, place.min(axis=1)).tolist(), np.maximum(high, place.max(axis=1)).tolist()
    if not totals:
        return [], {}
    colours = {date: field.mean_colour(sums) for date, sums in totals.items()}
    found = field.SkillMap.around((low[0], high[0]), (low[1], high[1]))
    for date, (rows, cols), sums in _cells(root, entries):
        found.add(rows, cols, sums, colours[date])
    tiles, apart = Counter[Any](), Counter[Any]()
    for e in entries:
        for row in _read(root, e.outputs[1].path).to_pylist():
            tiles[row["date"]] += row["tiles"]
            for band, colour in zip(S2_BANDS, colours[row["date"]], strict=True):
                dn, often = (np.array(row[f"{what}_{band}"], np.int64) for what in ("dn", "count"))
                apart[row["date"]] += field.trivial_absolute(dn, often, int(colour))
    series = [
        {"mosaic": m.name, "date": d, "days": (d - m.last).days, "tiles": tiles[d], "pixels": int(totals[d][0])}
        | field.figures(totals[d], apart[d])
        for d in sorted(totals)
    ]
    tags = {
        "ATTRIBUTION": ATTRIBUTION, "MOSAIC": m.name, "RADAR_UNTIL": m.last.isoformat(), "CELL": f"{cell} mosaic pixels",
        "S2_DATES": " ".join(d.isoformat() for d in sorted(totals)), "S2_TILES": str(sum(tiles.values())),
        "DAYS_AFTER_RADAR": f"{series[0]['days']} to {series[-1]['days']}",
        "SKILL": "1 - MSE / MSE of the mean colour of the same date's clear pixels over all of the graded area",
    }  # fmt: skip
    files = {"skill": (f"{STAGE}/skill_{m.name}.tif", _cog(found, m, cell, tags))}
    shrunk = found.coarser(max(1, -(-max(found.sums.shape[1:]) // LONGEST)))
    files["skill_quicklook"] = (f"{STAGE}/skill_{m.name}.png", picture(*shrunk.planes()[[0, 2]]))
    for path, data in files.values():
        storage.put(storage.join(root, path), data)
    return series, {name: path for name, (path, _) in files.items()}


def _cells(root: str, entries: Sequence[Entry]) -> Iterator[tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(date, (2, k) row and column of cells, (k, 16) sums) of each date of each slice."""
    for e in entries:
        table = _read(root, e.outputs[0].path)
        for date in table["date"].unique().to_pylist():
            some = table.filter(pc.equal(table["date"], pa.scalar(date, pa.date32())))
            places, sums = (np.stack([some[c].to_numpy() for c in names]) for names in (PLACE, field.COLUMNS))
            yield date, places, sums.T


def _read(root: str, path: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, path))))


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _cog(found: field.SkillMap, m: Mosaic, cell: int, tags: dict[str, str]) -> bytes:
    """The skill map: float32 bands field.MAP_BANDS, NaN = nothing compared, a pixel a cell, in the mosaic's CRS."""
    planes = found.planes()
    a, b, c, d, e, f = geozarr.coarser(m.layout.transform, cell)
    corner = c + a * found.col + b * found.row, f + d * found.col + e * found.row
    affine = rasterio.Affine(a, b, corner[0], d, e, corner[1])
    profile = {"count": len(planes), "height": planes.shape[1], "width": planes.shape[2], "dtype": "float32"}
    with MemoryFile(ext=".tif") as plain, MemoryFile(ext=".tif") as cog:
        with plain.open(
            driver="GTiff", crs=geozarr.parse(m.layout.crs), transform=affine, nodata=np.nan, **profile
        ) as dataset:
            dataset.descriptions = field.MAP_BANDS
            dataset.units = ("DN", "DN", "1", "pixels")
            dataset.update_tags(**dict(sorted(tags.items())))
            dataset.write(planes)
        rasterio.shutil.copy(plain.name, cog.name, driver="COG", blocksize=512, compress="DEFLATE", predictor="YES",
                             overview_resampling="NEAREST", num_threads=1)  # fmt: skip
        return bytes(cog.read())
