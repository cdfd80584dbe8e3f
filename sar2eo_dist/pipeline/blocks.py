"""The work of a mosaic's units, in three steps that run apart: read (S1 composite, statistics), compute.Compute, write.

Reading and writing need no torch, so their worker processes stay small and start at once.
A statistics window becomes one safetensors object; a block becomes one object of each array, one COG, one STAC item and
one small look for the quick-look. Every step is a function of the unit, its payload and what the step before made.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.ledger import Entry
from sar2eo_dist.mosaic import area, publish, stac, store
from sar2eo_dist.mosaic.grid import Block, Grid, Window
from sar2eo_dist.mosaic.pyramid import Pixels
from sar2eo_dist.mosaic.sar import Sar
from sar2eo_dist.records import SceneRef, Unit, from_table
from sar2eo_dist.sections import Speed
from sar2eo_dist.sources import composite
from sar2eo_dist.sources.ranged import ranged

EXACT = "exact"  # key of the one statistics unit of statistics=exact
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
COLOURS = ("red", "green", "blue")
ATTRIBUTION = "Contains modified Copernicus Sentinel data"


@dataclass(frozen=True, slots=True)
class Frame:
    """One mosaic as its workers know it. folder: below root; scenes: its table of SceneRefs; properties: of every STAC
    item; confidence: where below root a fitted confidence.Model lies, or ""."""

    root: str
    folder: str
    grid: Grid
    layout: store.Layout
    lattice: Grid | None
    scenes: str
    composite: str
    orbit: str
    statistics_mode: str
    batch: int
    dtype: str
    look: int
    bundles: tuple[str, ...]
    threads: int
    speed: Speed
    confidence: str
    properties: dict[str, Any]

    def to_json(self) -> bytes:
        """All but the root: where a run folder lies is no part of what it holds."""
        tree = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("root", "layout", "speed")
        }
        tree |= {
            n: value and dataclasses.asdict(value) for n, value in (("grid", self.grid), ("lattice", self.lattice))
        }
        return json.dumps(tree | {"speed": self.speed.model_dump()}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, root: str) -> Frame:
        """The inverse. Raises KeyError, TypeError or ValueError where it is none."""
        tree = json.loads(data)
        grid, lattice = (value and Grid(**_tuples(value)) for value in (tree.pop("grid"), tree.pop("lattice")))
        layout = store.Layout(
            grid.crs, grid.transform, grid.height, grid.width, grid.block, tree["dtype"], bool(tree["confidence"])
        )
        speed = Speed.model_validate(tree.pop("speed"))
        return cls(root, grid=grid, lattice=lattice, layout=layout, speed=speed, **_tuples(tree))

    @property
    def store(self) -> str:
        return f"{self.folder}/mosaic.zarr"

    def cog(self, block: Block, band: str = "") -> str:
        return f"{self.folder}/cog/{block.key}{band and '_' + band}.tif"

    def look_of(self, block: Block) -> str:
        return f"{self.folder}/looks/{block.key}.png"

    def item(self, block: Block) -> str:
        return f"{self.folder}/stac/{block.key}.json"

    def needed(self, task: Task) -> list[str]:
        """Keys of the statistics that a block reads."""
        if self.lattice is None:
            return []
        return [EXACT] if self.statistics_mode == EXACT else [self.lattice.at(*k).key for k in task.knots]

    def statistics(self, key: str) -> str:
        return f"{self.folder}/statistics/{key}.safetensors"


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of a mosaic. what: "statistics", "exact" or "block"; scenes: rows of the mosaic's scene table that touch
    it; knots: (row, col) of the statistics windows around it that have scenes."""

    what: str
    row: int
    col: int
    scenes: tuple[int, ...]
    knots: tuple[tuple[int, int], ...] = ()


def _tuples(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}


@functools.lru_cache(maxsize=4)
def _table(uri: str) -> Any:
    with ranged(uri) as f:
        return pq.read_table(f)


def scenes_of(frame: Frame, task: Task) -> list[SceneRef]:
    """The SceneRefs that a unit is made from."""
    rows = pa.array(task.scenes, pa.int64())
    return from_table(_table(storage.join(frame.root, frame.scenes)).take(rows), SceneRef)


def sar(frame: Frame, refs: list[SceneRef], place: Window) -> Sar:
    """The S1 composite of a place."""
    db = composite.read(
        refs, frame.grid.crs, frame.grid.transform, place.row, place.col, place.height, place.width,
        frame.composite, frame.orbit,
    )  # fmt: skip
    return Sar(place.row, place.col, db)


def read(unit: Unit, task: Task, _: None, *, frame: Frame) -> tuple[Any, Any]:
    """(SAR of all that the unit reaches, statistics around it by window key)."""
    refs = scenes_of(frame, task)
    if task.what == EXACT:
        return refs, None
    if task.what == "statistics":
        lattice = lattice_of(frame)
        return sar(frame, refs, lattice.around(lattice.at(task.row, task.col))), None
    block = frame.grid.at(task.row, task.col)
    found = {k: storage.read_bytes(storage.join(frame.root, frame.statistics(k))) for k in frame.needed(task)}
    return sar(frame, refs, frame.grid.reach(block)), found


def lattice_of(frame: Frame) -> Grid:
    if frame.lattice is None:
        raise TypeError("a statistics unit of a mosaic without any")
    return frame.lattice


def write(unit: Unit, task: Task, value: tuple[int, Any], *, frame: Frame) -> Entry:
    """Publish what was made; the entry names every object."""
    size, made = value
    if task.what != "block":
        key = EXACT if task.what == EXACT else lattice_of(frame).at(task.row, task.col).key
        return Entry(unit, (storage.publish(frame.root, frame.statistics(key), made),), 0.0, size)
    image, valid, error, ran, gpu = made
    grid, block = frame.grid, frame.grid.at(task.row, task.col)
    pixels = Pixels(image, valid, error)
    outputs = list(store.write_block(frame.root, frame.store, frame.layout, 0, task.row, task.col, pixels))
    where = (valid, grid.crs, grid.block_transform(block))
    scale = store.DN_SCALE if frame.dtype == "uint16" else None
    tags = {"UNIT": unit.id, "ATTRIBUTION": ATTRIBUTION}
    files = {frame.cog(block): publish.cog_bytes(image, *where, scale, tags)}
    if error is not None:
        files[frame.cog(block, "error")] = publish.cog_bytes(error[None], *where, store.DN_SCALE, tags)
    files[frame.look_of(block)] = publish.look_bytes(publish.look(image, valid, frame.look))
    files[frame.item(block)] = _item(frame, unit, task, block, error is not None)
    outputs += [storage.publish(frame.root, path, data) for path, data in files.items()]
    counts = {"blocks": 1, "pixels": valid.size, "valid pixels": int(valid.sum()), "windows": ran}
    counts["valid ha"] = area.hectares(grid, block, counts["valid pixels"])
    counts |= {"empty blocks": int(not valid.any()), "blocks on a GPU": int(gpu)}
    return Entry(unit, tuple(outputs), 0.0, size, 1, counts)


def _item(frame: Frame, unit: Unit, task: Task, block: Block, error: bool) -> bytes:
    """The block's STAC item: where it lies, which files it has, what it is made from."""
    refs = scenes_of(frame, task)
    days = sorted(r.date for r in refs if r.date)
    assets = {
        "visual": stac.Asset(f"../cog/{storage.name(frame.cog(block))}", COG, ("data", "visual"), "Image", COLOURS)
    }
    if error:
        href = f"../cog/{storage.name(frame.cog(block, 'error'))}"
        assets["error"] = stac.Asset(href, COG, ("data",), "Typical (median) absolute error")
    assets["thumbnail"] = stac.Asset(f"../looks/{storage.name(frame.look_of(block))}", "image/png", ("thumbnail",))
    properties = dict(sorted((frame.properties | {"sar2eo:unit": unit.id}).items()))
    return stac.item(
        block.key, frame.grid.crs, frame.grid.block_transform(block), block.height, block.width, assets,
        days[0] if days else None, days[-1] if days else None, properties,
        [uri for r in refs for uri in r.uris], (storage.name(frame.folder), "./collection.json"),
    )  # fmt: skip
