"""Plans of mosaics: from the scenes listed, the grid and the area of interest to units of work. Nothing is computed here.

A block's inputs are the scenes that touch what it is computed from, and the statistics windows around it with theirs: a new
or changed scene plans exactly those blocks again. A mosaic's folder is named by grid, config, weights and where the scenes
come from, so increments go into the mosaic that is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import io
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
from sar2eo_dist.errors import ConfigError, NotFound
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.models import bundle
from sar2eo_dist.mosaic import area as areas
from sar2eo_dist.mosaic import publish
from sar2eo_dist.mosaic.grid import Block, Grid, utm_grid, utm_zone
from sar2eo_dist.mosaic.store import Layout
from sar2eo_dist.pipeline.blocks import EXACT, Frame, Task
from sar2eo_dist.pipeline.progress import Meter
from sar2eo_dist.records import Rejected, SceneRef, Unit, digest, from_table, to_table
from sar2eo_dist.sources import scene_index
from sar2eo_dist.sources.ranged import ranged

STAGE = "translate"
#: window origins and halos are multiples of this: 2^5 downsamplings of the deepest preset (pix2pixHD's local enhancer)
MULTIPLE = 32
LOCKSTEP = 256  # windows of statistics=exact at most
LOOK = (
    1024  # pixels that the looks of a small mosaic keep along its longest side; those of a large one shrink it 32 times
)
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

    @property
    def table(self) -> str:
        """Below root: which scenes and statistics windows each block is made from, and its unit."""
        return f"{self.frame.folder}/blocks.parquet"


def scenes(cfg: Config, root: str, keep: bool) -> tuple[list[SceneRef], list[Rejected]]:
    """The index of `data.scenes`: what is known from the last time is not opened again; with `keep`, it is stored.

    Raises ConfigError where no scene is usable, with the first reason.
    """
    where = storage.join(root, STAGE, "scenes.parquet")
    known: list[SceneRef] = []
    try:
        with ranged(where) as f:
            known = from_table(pq.read_table(f), SceneRef)
    except (NotFound, pa.ArrowInvalid, KeyError):
        pass
    uri = storage.absolute(cfg.data.scenes)
    with Meter("scenes", None, "headers") as meter:
        found, rejected = scene_index.index(
            uri, cfg.data.units, cfg.data.quantity, known, lambda done, total: meter.advance(done - meter.count)
        )
    if keep:
        _put(root, f"{STAGE}/scenes.parquet", to_table(found, SceneRef))
        _put(root, f"{STAGE}/rejected.parquet", to_table(rejected, Rejected))
    if not found:
        why = (
            f"the first of {len(rejected)}: {rejected[0].reason}: {rejected[0].detail}: {rejected[0].uri}"
            if rejected
            else "it is empty"
        )
        raise ConfigError(f"no usable S1 scene in data.scenes ({why}): {uri}")
    return found, rejected


def _put(root: str, path: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.put(storage.join(root, path), sink.getvalue())


def require_fit(infos: Sequence[bundle.BundleInfo], refs: Sequence[SceneRef]) -> None:
    """Refuse bundles that cannot make this mosaic. Raises ConfigError.

    Per-image scaling gives neighbours another radiometry, and sigma-nought and gamma-nought differ by the incidence
    angle: a network knows only the one that it learned.
    """
    for info in infos:
        found = (info.scaling["sar"], info.scaling["eo"])
        if found != ("fixed", "fixed"):
            raise ConfigError(
                f"this bundle ({info.model}) was trained with scaling sar={found[0]}, eo={found[1]}; a mosaic needs fixed on "
                f"both sides (patches do not): set scaling.sar, scaling.eo and train again, or leave data.scenes empty"
            )
    other = next((r for r in refs if r.quantity != infos[0].quantity), None)
    if other:
        raise ConfigError(
            f"the bundle was trained on {infos[0].quantity}, the scene is {other.quantity}: {other.uri}. Use scenes of one "
            f"kind, or declare data.quantity where a tag is wrong"
        )


def plans(cfg: Config, root: str, refs: Sequence[SceneRef], bundles: Sequence[str], weights: str) -> list[Plan]:
    """A plan for each grid that the scenes touch, in order of name. Raises ConfigError where they touch none."""
    m = cfg.mosaic
    chosen = [
        r for r in refs
        if (r.date is None or ((m.start is None or r.date >= m.start) and (m.end is None or r.date <= m.end)))
        and (m.orbit == "both" or r.orbit in (m.orbit, "unknown"))
    ]  # fmt: skip
    if not chosen:
        raise ConfigError(
            f"none of {len(refs)} scenes lies within mosaic.start {m.start}, end {m.end}, orbit {m.orbit}: {cfg.data.scenes}"
        )
    aoi = area_of(m.aoi)
    outlines = np.array(scene_index.footprints(chosen, areas.LONLAT), object)
    identity = np.array([_identity(r) for r in chosen], "S32")
    made = []
    for grid in grids(cfg, chosen, aoi, outlines):
        plan = _plan(cfg, root, grid, aoi, chosen, outlines, identity, bundles, weights)
        if plan is not None:
            made.append(plan)
    if not made:
        raise ConfigError(
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
    lattice = {
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
        for left, right, is_south, there in (
            (w, e, s, t) for w, e in ((west, east),) for s, t in ((True, south < 0), (False, north > 0))
        ):
            first, last = (np.clip((v[there] + 180) // 6 + 1, 1, 60).astype(int) for v in (left, right))
            found |= {
                (z, is_south) for a, b in set(zip(first.tolist(), last.tolist(), strict=True)) for z in range(a, b + 1)
            }
    return sorted((utm_grid(*z, m.pixel, **lattice) for z in found), key=lambda g: g.name)


def _plan(
    cfg: Config, root: str, grid: Grid, aoi: Any, refs: Sequence[SceneRef], outlines: npt.NDArray[Any],
    identity: npt.NDArray[Any], bundles: Sequence[str], weights: str,
) -> Plan | None:  # fmt: skip
    t = cfg.translate
    near = np.arange(len(refs))
    if grid.strip is not None or utm_zone(grid.crs):  # scenes far from a zone have no place in its CRS
        zone = utm_zone(grid.crs)
        centre = 6.0 * zone[0] - 183 if zone else 0.0
        west, _, east, _ = shapely.bounds(outlines).T
        near = np.flatnonzero((west < centre + 9) & (east > centre - 9))
    polygons = scene_index.footprints([refs[i] for i in near], grid.crs) if len(near) else []
    fingerprint = cfg.fingerprint(STAGE)
    folder = f"{STAGE}/{grid.name}-{digest(fingerprint, weights, storage.absolute(cfg.data.scenes), dataclasses.astuple(grid))[:12]}"
    mask = areas.blocks_in(grid, areas.projected(aoi, grid))
    wanted = [grid.at(int(i), int(j)) for i, j in np.argwhere(mask)]
    starts, found = areas.touching(grid, [grid.reach(b) for b in wanted], polygons)
    before = _planned_before(root, folder)
    places = [k for k, b in enumerate(wanted) if starts[k + 1] > starts[k] or (b.row, b.col) in before]
    if not places:
        return None
    used = np.unique(np.concatenate([found[starts[k] : starts[k + 1]] for k in places])) if len(found) else found
    rank = np.zeros(len(near) + 1, np.int64)
    rank[used] = np.arange(len(used))
    table = [refs[near[i]] for i in used]
    marks = identity[near[used]] if len(used) else identity[:0]
    lattice = None if t.statistics == "window" else grid.coarse(t.statistics_window)
    statistics, ids = _statistics(t.statistics, folder, fingerprint, weights, grid, lattice, [wanted[k] for k in places],
                                  [polygons[i] for i in used], marks)  # fmt: skip
    blocks = []
    for k in places:
        block = wanted[k]
        own = rank[found[starts[k] : starts[k + 1]]]
        knots = (
            tuple((b.row, b.col) for b in lattice.knots(grid.reach(block)) if (b.row, b.col) in ids) if lattice else ()
        )
        around = [ids[n] for n in knots] if t.statistics == "field" else sorted(ids.values())
        unit = Unit(STAGE, f"{folder}/{block.key}", fingerprint, digest(weights, _sum(marks[own]), around))
        task = Task("block", block.row, block.col, tuple(own.tolist()), knots if t.statistics == "field" else ())
        blocks.append((unit, task))
    scene_table = f"{folder}/scenes-{digest(_sum(marks))[:12]}.parquet"
    look = publish.look_factor(grid.block, grid.height, grid.width, LOOK)
    properties = {"sar2eo:config": fingerprint, "sar2eo:weights": weights, "sar2eo:code": f"sar2eo_dist {__version__}",
                  "sar2eo:statistics": t.statistics}  # fmt: skip
    layout = Layout(grid.crs, grid.transform, grid.height, grid.width, grid.block, t.dtype, t.confidence)
    frame = Frame(
        root, folder, grid, layout, lattice, scene_table, cfg.mosaic.composite, cfg.mosaic.orbit, t.batch, t.dtype, look,
        tuple(bundles), t.threads, cfg.speed, "", properties,
    )  # fmt: skip
    return Plan(frame, table, statistics, blocks, int(mask.sum()) - len(places))


def _statistics(
    mode: str, folder: str, fingerprint: str, weights: str, grid: Grid, lattice: Grid | None, blocks: Sequence[Block],
    polygons: Sequence[Any], marks: npt.NDArray[Any],
) -> tuple[list[tuple[Unit, Task]], dict[tuple[int, int], str]]:  # fmt: skip
    """Units of the statistics windows that the blocks interpolate between, and their ids by (row, col)."""
    if lattice is None:
        return [], {}
    if mode == EXACT:
        if (count := lattice.shape[0] * lattice.shape[1]) > LOCKSTEP:
            raise ConfigError(
                f"statistics=exact runs {count} windows once for every layer, by one worker: at most {LOCKSTEP}. It is for "
                f"verification; use field, or a grid of its own on one small scene (mosaic.grid empty)"
            )
        unit = Unit("statistics", f"{folder}/{EXACT}", fingerprint, digest(weights, _sum(marks)))
        return [(unit, Task(EXACT, 0, 0, tuple(range(len(marks)))))], {(0, 0): unit.id}
    windows = sorted({(b.row, b.col) for block in blocks for b in lattice.knots(grid.reach(block))})
    starts, found = areas.touching(lattice, [lattice.around(lattice.at(*w)) for w in windows], polygons)
    units, ids = [], {}
    for k, (row, col) in enumerate(windows):
        own = found[starts[k] : starts[k + 1]]
        if len(own):
            key = f"{folder}/{lattice.at(row, col).key}"
            unit = Unit("statistics", key, fingerprint, digest(weights, _sum(marks[own])))
            units.append((unit, Task("statistics", row, col, tuple(own.tolist()))))
            ids[row, col] = unit.id
    return units, ids


def _sum(marks: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(marks).tobytes()).hexdigest()


def _planned_before(root: str, folder: str) -> set[tuple[int, int]]:
    """Blocks of the last plan: they stay in the plan, so that a scene that is gone leaves no pixels behind."""
    try:
        with ranged(storage.join(root, folder, "blocks.parquet")) as f:
            table = pq.read_table(f, columns=["row", "col"])
    except NotFound:
        return set()
    return set(zip(table["row"].to_pylist(), table["col"].to_pylist(), strict=True))


def publish_plan(plan: Plan, config: bytes) -> None:
    """What workers and lineage read: the scenes, and for each block its unit, scenes and statistics windows."""
    root = plan.frame.root
    _put(root, plan.frame.scenes, to_table(plan.refs, SceneRef))
    rows = [
        (t.row, t.col, u.key, u.inputs, u.fingerprint, list(t.scenes), [list(k) for k in t.knots])
        for u, t in plan.blocks
    ]
    names = ("row", "col", "key", "inputs", "fingerprint", "scenes", "knots")
    types = (
        pa.int64(),
        pa.int64(),
        pa.string(),
        pa.string(),
        pa.string(),
        pa.list_(pa.int32()),
        pa.list_(pa.list_(pa.int64())),
    )
    columns = list(zip(*rows, strict=True))
    table = pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})
    _put(root, plan.table, table.replace_schema_metadata({"scenes": plan.frame.scenes}))
    storage.put(storage.join(root, plan.frame.folder, "config.yaml"), config)


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
