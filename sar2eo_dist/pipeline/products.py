"""What the driver makes of a mosaic's blocks: the store's template, the quick-look (during the run as well), VRT and STAC."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import NotFound
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.mosaic import publish, stac, store
from sar2eo_dist.mosaic.grid import Block, Grid
from sar2eo_dist.pipeline.blocks import ATTRIBUTION, Task
from sar2eo_dist.pipeline.mosaics import Plan
from sar2eo_dist.pipeline.stage import Failure
from sar2eo_dist.radiometry import scale_sar, to_uint8, validity
from sar2eo_dist.records import SceneRef, Unit, digest
from sar2eo_dist.report.images import ERROR_WHITE
from sar2eo_dist.sources import composite

REFRESH_S = 30.0  # between two quick-looks of a run, at least; and at most a twentieth of the time goes into them
READERS = 16
RADAR = 4096  # pixels of a side up to which the radar's own quick-look is made


def template(plan: Plan) -> None:
    """All metadata of the store, before any block. Raises ConfigError where another grid's store lies there."""
    f = plan.frame
    about = {
        "title": f"SAR to EO mosaic {f.grid.name}",
        "attribution": ATTRIBUTION,
        "block": f.grid.block,
    } | f.properties
    if not store.check_template(f.root, f.store, f.layout):
        store.write_template(f.root, f.store, f.layout, about)


def watched(cfg: Config, plans: Sequence[Plan], results: Iterable[Entry | Failure]) -> Iterator[Entry | Failure]:
    """The results as they come; meanwhile the quick-look of the mosaic at hand is made anew, now and then."""
    by_unit = {u.id: (k, p.frame.grid.at(t.row, t.col)) for k, p in enumerate(plans) for u, t in p.blocks}
    finished: list[list[Block]] = [[] for _ in plans]
    for k, block in (by_unit[uid] for uid in Ledger(plans[0].frame.root).done("translate") if uid in by_unit):
        finished[k].append(block)
    due = time.monotonic() + REFRESH_S
    for result in results:
        yield result
        if not isinstance(result, Entry):
            continue
        k, block = by_unit[result.unit.id]
        finished[k].append(block)
        if time.monotonic() > due:
            begin = time.monotonic()
            quicklook(cfg, plans[k], finished[k])
            due = time.monotonic() + max(REFRESH_S, 20 * (time.monotonic() - begin))


def quicklook(cfg: Config, plan: Plan, blocks: list[Block]) -> str:
    """Publish the quick-look of some blocks; its path."""
    f, (top, left, height, width) = plan.frame, _extent(plan)

    def look(b: Block) -> tuple[int, int, npt.NDArray[np.uint8]]:
        uri = storage.join(f.root, f.look_of(b))
        return (b.y - top) // f.look, (b.x - left) // f.look, publish.look_from(storage.read_bytes(uri), uri)

    path = f"{f.folder}/quicklook.png"
    with ThreadPoolExecutor(READERS) as pool:
        size = (-(-height // f.look), -(-width // f.look), cfg.translate.quicklook)
        data = publish.quicklook(_some(pool, look, blocks), *size, bright=True)
    storage.put(storage.join(f.root, path), data)
    return path


def _extent(plan: Plan) -> tuple[int, int, int, int]:
    """First row and column, height and width of all blocks of the plan, done or not, in pixels."""
    all_of = [plan.frame.grid.at(t.row, t.col) for _, t in plan.blocks]
    top, left = min(b.y for b in all_of), min(b.x for b in all_of)
    return top, left, max(b.y + b.height for b in all_of) - top, max(b.x + b.width for b in all_of) - left


def _some(
    pool: ThreadPoolExecutor, look: object, blocks: list[Block]
) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
    for at in range(0, len(blocks), 16 * READERS):  # so that few looks wait at a time
        yield from pool.map(look, blocks[at : at + 16 * READERS])  # type: ignore[arg-type]


def finish(cfg: Config, plan: Plan, done: set[str], first: bool) -> dict[str, str]:
    """VRT, STAC collection and quick-looks of the blocks that are done; the outputs by name, with the grid's where several.

    Nothing is made again where they are of these blocks already.
    """
    f = plan.frame
    there = [(u, t, f.grid.at(t.row, t.col)) for u, t in plan.blocks if u.id in done]
    mark = digest([u.id for u, _, _ in there], cfg.translate.quicklook, cfg.data.truth, first)
    kept = storage.join(f.root, f.folder, "products.json")
    with contextlib.suppress(NotFound):
        last = json.loads(storage.read_bytes(kept))
        if last["mark"] == mark:
            found: dict[str, str] = last["outputs"]
            return found
    out = _made(cfg, plan, there, first)
    storage.put(kept, json.dumps({"mark": mark, "outputs": out}, indent=1).encode())
    return out


def _made(cfg: Config, plan: Plan, there: list[tuple[Unit, Task, Block]], first: bool) -> dict[str, str]:
    f = plan.frame
    blocks = [b for _, _, b in there]
    files: dict[str, tuple[str, bytes]] = {}
    for name, band in (("vrt", ""), ("error_vrt", "error")) if f.layout.error else (("vrt", ""),):
        cogs = [publish.BlockFile(f"cog/{storage.name(f.cog(b, band))}", b.y, b.x, b.height, b.width) for b in blocks]
        kind = ("uint16", 1, store.DN_SCALE) if band else (
            f.dtype, 3, store.DN_SCALE if f.dtype == "uint16" else None)  # fmt: skip
        xml = publish.vrt_xml(cogs, f.grid.crs, f.grid.transform, f.grid.width, f.grid.height, *kind)
        files[name] = (f"{'error' if band else 'mosaic'}.vrt", xml.encode())
    files["stac"] = ("stac/collection.json", _collection(plan, there))
    out = {"mosaic": f.store} | {k: f"{f.folder}/{name}" for k, (name, _) in files.items()}
    for name, data in files.values():
        storage.put(storage.join(f.root, f.folder, name), data)
    out["quicklook"] = quicklook(cfg, plan, blocks)
    if max(f.grid.height, f.grid.width) <= RADAR:
        out["sar_quicklook"] = f"{f.folder}/sar_quicklook.png"
        storage.put(storage.join(f.root, out["sar_quicklook"]), _radar(cfg, f.grid, plan.refs))
    if f.layout.error and max(_extent(plan)[2:]) <= RADAR:
        out["error_quicklook"] = f"{f.folder}/error_quicklook.png"
        storage.put(storage.join(f.root, out["error_quicklook"]), error_quicklook(cfg, plan, blocks))
    if cfg.data.truth and first:
        out["truth_quicklook"] = f"{f.folder}/truth_quicklook.png"
        data = publish.raster_quicklook(storage.absolute(cfg.data.truth), cfg.translate.quicklook, bright=True)
        storage.put(storage.join(f.root, out["truth_quicklook"]), data)
    return out if first else {f"{k} {f.grid.name}": v for k, v in out.items()}


def _collection(plan: Plan, there: list[tuple[Unit, Task, Block]]) -> bytes:
    f, days = plan.frame, [r.date for r in plan.refs]
    items = []
    for _, task, b in there:
        box = stac.bbox(stac.footprint(f.grid.crs, f.grid.block_transform(b), b.height, b.width))
        own = sorted(d for i in task.scenes if (d := days[i]))
        items.append((b.key, f"./{b.key}.json", box, (own[0], own[-1]) if own else (None, None)))
    whole = {
        "mosaic": stac.Asset(
            "../mosaic.zarr", "application/vnd.zarr; version=3", ("data",), "The mosaic with overviews"
        ),
        "vrt": stac.Asset("../mosaic.vrt", "application/xml", ("data",), "All blocks as one raster"),
        "quicklook": stac.Asset("../quicklook.png", "image/png", ("overview",)),
    }
    about = "Optical images translated from Sentinel-1 radar: what a network expects to be there, not an observation."
    name = storage.name(f.folder)
    return stac.collection(name, f"Mosaic {f.grid.name}", f"{about} {ATTRIBUTION}.", items, "other", assets=whole)


def error_quicklook(cfg: Config, plan: Plan, blocks: list[Block]) -> bytes:
    """The confidence band of some blocks as PNG, pixel for pixel on the quick-look: grey 0 to 255 is 0 to ERROR_WHITE DN
    of typical error, no data is transparent."""
    f, (top, left, height, width) = plan.frame, _extent(plan)

    def looks() -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        for b in blocks:
            pixels = store.read_block(storage.join(f.root, f.store), f.layout, 0, b.row, b.col)
            if pixels is None or pixels.error is None:
                continue
            grey = np.minimum(pixels.error, ERROR_WHITE) * np.uint16(publish.DN_MAX // ERROR_WHITE)  # a look's white
            small = publish.look(np.stack([grey] * 3), pixels.valid, f.look)
            yield (b.y - top) // f.look, (b.x - left) // f.look, small

    return publish.quicklook(looks(), -(-height // f.look), -(-width // f.look), cfg.translate.quicklook)


def _radar(cfg: Config, grid: Grid, refs: list[SceneRef]) -> bytes:
    """The quick-look of the composite itself."""
    scaling = cfg.scaling.model_copy(update={"sar": "fixed", "third": "difference_db", "median": 0})
    factor = publish.look_factor(grid.block, grid.height, grid.width, cfg.translate.quicklook)

    def looks() -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        for b in grid.blocks():
            db = composite.read(refs, grid.crs, grid.transform, b.y, b.x, b.height, b.width,
                                cfg.mosaic.composite, cfg.mosaic.orbit)  # fmt: skip
            yield b.y // factor, b.x // factor, publish.look(to_uint8(scale_sar(db, scaling)), validity(db), factor)

    return publish.quicklook(looks(), -(-grid.height // factor), -(-grid.width // factor), cfg.translate.quicklook)
