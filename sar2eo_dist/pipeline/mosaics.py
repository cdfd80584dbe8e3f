"""Plans of mosaics: from the scenes listed, the grid and the area of interest to units of work. Nothing is computed here.

A block's inputs are the scenes that touch what it is computed from, and the statistics windows around it with theirs: a new
or changed scene plans exactly those blocks again. A mosaic's folder is named by grid, config, weights and where the scenes
come from, so increments go into the mosaic that is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from sar2eo_dist import __version__, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, NotFound, NothingYet
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.mosaic import area as areas
from sar2eo_dist.mosaic import publish
from sar2eo_dist.mosaic.grid import Grid, utm_grid, utm_zone
from sar2eo_dist.mosaic.store import Layout
from sar2eo_dist.pipeline.blocks import EXACT, Frame, Task
from sar2eo_dist.pipeline.scene_list import put_table
from sar2eo_dist.records import SceneRef, Unit, digest, to_table
from sar2eo_dist.sources import scene_index
from sar2eo_dist.sources.ranged import ranged

STAGE = "translate"
#: window origins and halos are multiples of this: 2^5 downsamplings of the deepest preset (pix2pixHD's local enhancer)
MULTIPLE = 32
LOCKSTEP = 256  # windows of statistics=exact at most
LOOK = 1024  # pixels that the looks of a small mosaic keep along its longest side
MARGIN = 2000.0  # metres that data may lie outside of the outline that an item states
TABLE = "units.parquet"
#: of TABLE, a row a unit of the last plan: Task and Unit
UNITS = pa.schema([
    ("what", pa.string()), ("row", pa.int64()), ("col", pa.int64()), ("stage", pa.string()), ("key", pa.string()),
    ("fingerprint", pa.string()), ("inputs", pa.string()), ("scenes", pa.list_(pa.int32())),
    ("knots", pa.list_(pa.list_(pa.int64()))),
])  # fmt: skip
BASIN = "amazon"  # the area of interest that comes with the package


@dataclass(frozen=True, slots=True)
class Plan:
    """One mosaic. refs: the scenes it may use, rows of `frame.scenes`; statistics, blocks: its units in canonical order;
    bare: blocks of the area of interest that no scene touches."""

    frame: Frame
    refs: list[SceneRef]
    statistics: list[tuple[Unit, Task]]
    blocks: list[tuple[Unit, Task]]
    bare: int


def plans(
    cfg: Config, root: str, refs: Sequence[SceneRef], bundles: Sequence[str], weights: str, confidence: str = ""
) -> list[Plan]:
    """A plan for each grid that the scenes touch, in order of name; weights: digest of the bundles; confidence: where the
    model of the confidence band lies or will lie, "" = none. Raises ConfigError where they touch no grid."""
    m = cfg.mosaic
    chosen = [
        r for r in refs
        if (r.date is None or ((m.start is None or r.date >= m.start) and (m.end is None or r.date <= m.end)))
        and (m.orbit == "both" or r.orbit in (m.orbit, "unknown"))
    ]  # fmt: skip
    if not chosen:
        raise NothingYet(
            f"none of {len(refs)} scenes lies within mosaic.start {m.start}, end {m.end}, orbit {m.orbit}: {cfg.data.scenes}"
        )
    aoi = area_of(m.aoi)
    outlines = np.array(scene_index.footprints(chosen, areas.LONLAT), object)
    identity = np.array([_identity(r) for r in chosen], "S32")
    made = []
    for grid in grids(cfg, chosen, aoi, outlines):
        plan = _plan(cfg, root, grid, aoi, chosen, outlines, identity, bundles, digest(weights, confidence), confidence)
        if plan is not None:
            made.append(plan)
    if not made:
        raise NothingYet(
            f"no scene of {len(chosen)} touches the area of interest and its grid: {m.aoi or cfg.data.scenes}"
        )
    return made


def area_of(uri: str) -> Any:
    """The area of interest as a geometry in lon/lat, None where there is none. Raises ConfigError."""
    if not uri:
        return None
    if uri == BASIN:
        data = importlib.resources.files("sar2eo_dist.mosaic").joinpath("amazon.geojson").read_bytes()
        return areas.parse(data, uri)
    try:
        return areas.parse(storage.read_bytes(storage.absolute(uri)), uri)
    except NotFound as e:
        raise ConfigError(f"mosaic.aoi is neither a GeoJSON file nor `{BASIN}`: {uri}") from e


def _identity(r: SceneRef) -> str:
    """What the pixels of a scene mean and where they lie: its bytes, and how they are declared."""
    return digest(r.digest, r.units, r.quantity, r.date, r.orbit, r.crs, r.transform, r.width, r.height)


def grids(cfg: Config, refs: Sequence[SceneRef], aoi: Any, outlines: npt.NDArray[Any]) -> list[Grid]:
    """The grids of `mosaic.grid`, in order of name. Raises ConfigError."""
    m, t = cfg.mosaic, cfg.translate
    blended = t.statistics == "window"
    lattice: dict[str, Any] = {
        "window": t.window, "overlap": t.overlap if blended else 0, "block": t.block, "multiple": MULTIPLE,
        "halo": 0 if blended else t.halo,
    }  # fmt: skip
    if not m.grid and len(refs) == 1:
        r = refs[0]
        stem = storage.name(r.uri).rsplit(".", 1)[0]
        return [Grid(r.crs, r.transform, r.width, r.height, name=stem, **lattice)]
    if m.grid and m.grid != "utm":
        zone = utm_zone(m.grid)
        if zone is None:
            raise ConfigError(f"mosaic.grid is utm, EPSG:326nn, EPSG:327nn or empty, not {m.grid!r}")
        return [utm_grid(*zone, m.pixel, owned=False, **lattice)]
    if aoi is not None:
        found = set(areas.zones(aoi))
    else:
        west, south, east, north = shapely.bounds(outlines).T
        found = set()
        for is_south, there in ((True, south < 0), (False, north > 0)):
            first, last = (np.clip((v[there] + 180) // 6 + 1, 1, 60).astype(int) for v in (west, east))
            found |= {
                (z, is_south) for a, b in set(zip(first.tolist(), last.tolist(), strict=True)) for z in range(a, b + 1)
            }
    return sorted((utm_grid(*z, m.pixel, **lattice) for z in found), key=lambda g: g.name)


def _plan(
    cfg: Config, root: str, grid: Grid, aoi: Any, refs: Sequence[SceneRef], outlines: npt.NDArray[Any],
    identity: npt.NDArray[Any], bundles: Sequence[str], weights: str, confidence: str,
) -> Plan | None:  # fmt: skip
    t = cfg.translate
    near = _near(grid, t.block + 2 * t.statistics_window + t.halo, outlines)
    polygons = _outlines(grid, [refs[int(i)] for i in near])
    fingerprint = cfg.fingerprint(STAGE)
    mark = digest(fingerprint, weights, storage.absolute(cfg.data.scenes), dataclasses.astuple(grid))
    folder = f"{STAGE}/{grid.name}-{mark[:12]}"
    ground = aoi
    if aoi is None and utm_zone(grid.crs) and len(near):  # a zone's blocks are many: those near a scene will do
        ground = shapely.box(*shapely.total_bounds(outlines[near])).buffer(0.1, join_style="mitre")
    mask = areas.blocks_in(grid, areas.projected(ground, grid))
    before = _planned_before(root, folder)
    if aoi is None and before:
        mask[tuple(np.array(sorted(before)).T)] = True
    wanted = [grid.at(int(i), int(j)) for i, j in np.argwhere(mask)]
    starts, found = areas.touching(grid, [grid.reach(b) for b in wanted], polygons)
    places = [k for k, b in enumerate(wanted) if starts[k + 1] > starts[k] or (b.row, b.col) in before]
    if not places:
        return None
    lattice = None if t.statistics == "window" else grid.coarse(t.statistics_window)
    knots = {k: lattice.knots(grid.reach(wanted[k])) for k in places} if t.statistics == "field" and lattice else {}
    windows = sorted({(b.row, b.col) for around in knots.values() for b in around})
    if lattice and t.statistics == EXACT:
        windows = _all_windows(lattice)
    of = lattice or grid
    begin, seen = areas.touching(of, [of.around(of.at(*w)) for w in windows], polygons)
    used = np.union1d(np.concatenate([found[starts[k] : starts[k + 1]] for k in places]), seen)
    rank = np.zeros(len(near) + 1, np.int64)
    rank[used] = np.arange(len(used))
    marks = identity[near[used]]

    def inputs(scenes: npt.NDArray[Any]) -> tuple[tuple[int, ...], str]:
        own = rank[scenes]
        return tuple(own.tolist()), _sum(marks[own])

    statistics, ids = [], {}
    if lattice and t.statistics == EXACT:
        own, mark = inputs(used)
        unit = Unit("statistics", f"{folder}/{EXACT}", fingerprint, digest(weights, mark))
        statistics.append((unit, Task(EXACT, 0, 0, own)))
    for n, (row, col) in enumerate(windows if knots else ()):
        if begin[n + 1] > begin[n]:
            own, mark = inputs(seen[begin[n] : begin[n + 1]])
            unit = Unit("statistics", f"{folder}/{of.at(row, col).key}", fingerprint, digest(weights, mark))
            statistics.append((unit, Task("statistics", row, col, own)))
            ids[row, col] = unit.id
    blocks = []
    for k in places:
        own, mark = inputs(found[starts[k] : starts[k + 1]])
        around = tuple((b.row, b.col) for b in knots.get(k, ()) if (b.row, b.col) in ids)
        needs = [ids[n] for n in around] or [u.id for u, _ in statistics if t.statistics == EXACT]
        unit = Unit(STAGE, f"{folder}/{wanted[k].key}", fingerprint, digest(weights, mark, needs))
        blocks.append((unit, Task("block", wanted[k].row, wanted[k].col, own, around)))
    scene_table = f"{folder}/scenes-{digest(_sum(marks))[:12]}.parquet"
    look = publish.look_factor(grid.block, grid.height, grid.width, LOOK)
    properties = {"sar2eo:config": fingerprint, "sar2eo:weights": weights, "sar2eo:code": f"sar2eo_dist {__version__}",
                  "sar2eo:statistics": t.statistics}  # fmt: skip
    layout = Layout(grid.crs, grid.transform, grid.height, grid.width, grid.block, t.dtype, t.confidence)
    frame = Frame(
        root, folder, grid, layout, lattice, scene_table, cfg.mosaic.composite, cfg.mosaic.orbit, t.statistics,
        t.batch, t.dtype, look,
        tuple(bundles), t.threads, cfg.speed, confidence, properties,
    )  # fmt: skip
    bare = 0 if aoi is None else int(mask.sum()) - len(places)
    return Plan(frame, [refs[int(near[i])] for i in used], statistics, blocks, bare)


def _all_windows(lattice: Grid) -> list[tuple[int, int]]:
    rows, cols = lattice.shape
    if rows * cols > LOCKSTEP:
        raise ConfigError(
            f"statistics=exact runs {rows * cols} windows once for every layer, by one worker: at most {LOCKSTEP}. It is for "
            f"verification; use field, or a grid of its own on one small scene (mosaic.grid empty)"
        )
    return [(i, j) for i in range(rows) for j in range(cols)]


def _near(grid: Grid, reach: int, outlines: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Scenes that may touch what a grid's units are computed from, `reach` pixels around its own ground.

    The others are left out before their outlines are carried into its CRS, where those far away have no place.
    """
    zone = utm_zone(grid.crs)
    if zone is None:
        return np.arange(len(outlines))
    west, south, east, north = shapely.bounds(outlines).T
    centre = 6.0 * zone[0] - 183
    if grid.strip is None:
        return np.flatnonzero((west < centre + 9) & (east > centre - 9))
    degrees = 0.5 + reach * abs(grid.transform[0]) / 100_000
    across = degrees / np.maximum(np.cos(np.radians(np.maximum(np.abs(south), np.abs(north)))), 0.1)
    here = (west < grid.strip[1] + across) & (east > grid.strip[0] - across)
    return np.flatnonzero(here & ((south < degrees) if zone[1] else (north > -degrees)))


def _outlines(grid: Grid, refs: Sequence[SceneRef]) -> npt.NDArray[Any]:
    """Footprints in the grid's CRS; those that an item states are simplified, so they are taken MARGIN wider."""
    polygons = scene_index.footprints(refs, grid.crs)
    stated = np.array([bool(r.footprint) for r in refs], bool)
    metres = utm_zone(grid.crs) is not None or abs(grid.transform[0]) > 0.1
    polygons[stated] = shapely.buffer(polygons[stated], MARGIN if metres else MARGIN / 100_000, join_style="mitre")
    return polygons


def _sum(marks: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(marks).tobytes()).hexdigest()


def _planned_before(root: str, folder: str) -> set[tuple[int, int]]:
    """Blocks of the last plan: they stay in the plan, so that a scene that is gone leaves no pixels behind."""
    try:
        with ranged(storage.join(root, folder, TABLE)) as f:
            table = pq.read_table(f, columns=["row", "col"], filters=[("what", "=", "block")])
    except NotFound:
        return set()
    return set(zip(table["row"].to_pylist(), table["col"].to_pylist(), strict=True))


def publish_plan(plan: Plan, config: bytes) -> None:
    """What workers and lineage read: the scenes, and of each unit which of them and which statistics windows it needs."""
    root, folder = plan.frame.root, plan.frame.folder
    put_table(root, plan.frame.scenes, to_table(plan.refs, SceneRef))
    units = [*plan.statistics, *plan.blocks]
    rows = [
        (t.what, t.row, t.col, u.stage, u.key, u.fingerprint, u.inputs, list(t.scenes), [list(k) for k in t.knots])
        for u, t in units
    ]
    put_table(
        root,
        f"{folder}/{TABLE}",
        pa.table([pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), UNITS, strict=True)], UNITS),
    )
    storage.put(storage.join(root, folder, "frame.json"), plan.frame.to_json())
    storage.put(storage.join(root, folder, "config.yaml"), config)


def planned(frame: Frame, what: str, row: int, col: int) -> tuple[Unit, Task] | None:
    """One unit of the last plan of a mosaic; None where it is not in it."""
    with ranged(storage.join(frame.root, frame.folder, TABLE)) as f:
        found = pq.read_table(f, filters=[("what", "=", what), ("row", "=", row), ("col", "=", col)]).to_pylist()
    if not found:
        return None
    t = found[0]
    unit = Unit(t["stage"], t["key"], t["fingerprint"], t["inputs"])
    return unit, Task(what, row, col, tuple(t["scenes"]), tuple((r, c) for r, c in t["knots"]))


def supersede(root: str, folder: str, units: Sequence[Unit]) -> None:
    """Take back the completions of units whose objects these units are about to overwrite.

    Otherwise, where inputs go back to what they were (a scene is withdrawn), their old units would count as done. To be
    called before any of the units runs; which unit wrote a key last is kept in `units.json`.
    """
    uri = storage.join(root, folder, "units.json")
    try:
        last: dict[str, str] = json.loads(storage.read_bytes(uri))
    except NotFound:
        last = {}
    now = {f"{u.stage}/{u.key}": u.id for u in units}
    old = [(name.partition("/")[0], uid) for name, uid in last.items() if now.get(name, uid) != uid]
    Ledger(root).retract(old)
    if now.items() - last.items():
        storage.put(uri, json.dumps(last | now, indent=0, sort_keys=True).encode())
