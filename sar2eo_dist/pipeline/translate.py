"""translate: a scene to a mosaic, block by block on the global lattice; or MultiEarth targets to one image each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist import shards, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle
from sar2eo_dist.mosaic import publish
from sar2eo_dist.mosaic.blend import Blender
from sar2eo_dist.mosaic.grid import Block, Grid
from sar2eo_dist.pipeline import cluster, patches, units
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage, write_summary
from sar2eo_dist.radiometry import scale_sar, to_uint8, validity
from sar2eo_dist.records import SceneRef, Unit, digest
from sar2eo_dist.sections import Speed
from sar2eo_dist.sources import scenes

STAGE = "translate"
#: window origins are multiples of this: 2^4 downsamplings of the largest translator, 2^3 of Restormer
MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Where one scene's mosaic goes and on which lattice."""

    folder: str  # below the run folder
    scene: SceneRef
    grid: Grid

    @property
    def store(self) -> str:
        return f"{self.folder}/mosaic.zarr"

    def cog(self, block: Block) -> str:
        return f"{self.folder}/cog/{block.key}.tif"

    @property
    def arrays(self) -> tuple[shards.ArraySpec, shards.ArraySpec]:
        return shards.mosaic_arrays(self.grid.height, self.grid.width, self.grid.block)


def translate(cfg: Config, opts: Options) -> Summary:
    """Run the verb for `data.scene` and `data.target`, whichever are set. Raises ConfigError where neither is."""
    if not cfg.data.scene and not cfg.data.target:
        raise ConfigError("nothing to translate: set data.scene (an S1 COG) and/or data.target (a MultiEarth NetCDF)")
    trained = read_summary(cfg, "train")["outputs"]
    root = storage.absolute(cfg.run.out)
    bundles = [storage.join(root, trained[r]) for r in ("translate", "enhance") if r in trained]
    fingerprint = cfg.fingerprint(STAGE)
    if not bundles:
        raise ConfigError("jobs/train.py left no translator: run it again")
    weights = digest([bundle.digest(bundle.read(b)) for b in bundles])
    plan: dict[str, tuple[Unit, Any]] = {}
    mosaic = plan_mosaic(cfg, weights) if cfg.data.scene else None
    if mosaic:
        require_fit(bundle.read(bundles[0]), mosaic.scene)
        for block in mosaic.grid.blocks():
            unit = Unit(STAGE, f"{mosaic.folder}/{block.key}", fingerprint, digest(weights, _identity(mosaic.scene)))
            plan[unit.id] = (unit, ("block", block))
    targets = patches.plan(cfg, weights) if cfg.data.target else None
    if targets:
        for key, part in targets.slices(cfg.translate.slice):
            inputs = digest(weights, [(t.name, ref.digest) for t, ref in part])
            unit = Unit(STAGE, f"{targets.folder}/{key}", fingerprint, inputs)
            plan[unit.id] = (unit, ("patches", part))

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        if mosaic:
            attributes = {"crs": mosaic.grid.crs, "transform": list(mosaic.grid.transform), "created_by": "sar2eo_dist"}
            shards.write_template(root, mosaic.store, mosaic.arrays, attributes)
        cluster.start(cfg)
        part = cluster.share(cfg.resources.translators, cfg.translate.threads, len(todo), *cluster.capacity(cfg))
        make = partial(
            Worker, root, bundles, cfg.translate.threads, cfg.speed, mosaic, targets.folder if targets else ""
        )
        yield from units.run(None, [plan[u.id] for u in todo], attempt, make=make, part=part)

    summary = run_stage(cfg, opts, STAGE, [u for u, _ in plan.values()], execute, "blocks")
    if opts.dry_run:
        return summary
    outputs: dict[str, str] = {}
    if mosaic:
        outputs |= _publish_mosaic(cfg, root, mosaic)
    if targets:
        lost = {q["unit"] for q in summary.quarantined}
        done = [
            what for u, (kind, what) in list(plan.values())[: summary.planned] if kind == "patches" and u.id not in lost
        ]
        outputs |= patches.publish(root, targets, {target.name for part in done for target, _ in part})
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs))


def plan_mosaic(cfg: Config, weights: str) -> Mosaic:
    """The mosaic of `data.scene`: its folder carries the digest of scene, weights and config."""
    scene = scenes.open_scene(storage.absolute(cfg.data.scene), cfg.data.units, cfg.data.quantity)
    t = cfg.translate
    grid = Grid(scene.crs, scene.transform, scene.width, scene.height, t.window, t.overlap, t.block, MULTIPLE)
    stem = storage.name(scene.uri).rsplit(".", 1)[0]
    return Mosaic(f"{STAGE}/{stem}-{digest(cfg.fingerprint(STAGE), weights, _identity(scene))[:12]}", scene, grid)


def _identity(scene: SceneRef) -> str:
    """What the pixels of a scene mean: its bytes, and how they are declared."""
    return digest(scene.digest, scene.units, scene.quantity)


def require_fit(info: bundle.BundleInfo, scene: SceneRef) -> None:
    """Refuse a bundle that cannot make this mosaic. Raises ConfigError.

    Per-image scaling gives neighbours another radiometry, and sigma-nought and gamma-nought differ by the incidence
    angle: a network knows only the one that it learned.
    """
    found = (info.scaling["sar"], info.scaling["eo"])
    if found != ("fixed", "fixed"):
        raise ConfigError(
            f"this bundle was trained with scaling sar={found[0]}, eo={found[1]}; a mosaic needs fixed on both sides "
            f"(patches do not): set scaling.sar, scaling.eo and train again, or leave data.scene empty"
        )
    if scene.quantity != info.quantity:
        raise ConfigError(f"the bundle was trained on {info.quantity}, the scene is {scene.quantity}: {scene.uri}")


class Worker:
    """Both models in one process; translates a block of the mosaic or a slice of patches."""

    def __init__(
        self, root: str, bundles: Sequence[str], threads: int, speed: Speed, mosaic: Mosaic | None, folder: str
    ) -> None:
        self.root, self.mosaic, self.folder = root, mosaic, folder
        self.chain = Chain(bundles, threads, speed)

    def __call__(self, unit: Unit, payload: tuple[str, Any], attempt: int) -> Entry:
        kind, what = payload
        if kind == "patches":
            return patches.write(self.chain, self.root, self.folder, unit, what, attempt)
        return self._block(unit, what, attempt)

    def _block(self, unit: Unit, block: Block, attempt: int) -> Entry:
        begin, mosaic = time.time(), self.mosaic
        if mosaic is None:
            raise TypeError("a block without a mosaic")
        rgb, valid, size = translate_block(self.chain, mosaic.scene, mosaic.grid, block)
        colours, mask = mosaic.arrays
        at = (block.row, block.col)
        cog = publish.cog_bytes(rgb, valid, mosaic.grid.crs, mosaic.grid.block_transform(block))
        outputs = (
            shards.write_shard(self.root, mosaic.store, colours, (0, *at), rgb),
            shards.write_shard(self.root, mosaic.store, mask, at, valid.astype(np.uint8)),
            storage.publish(self.root, mosaic.cog(block), cog),
        )
        counts = {"pixels": valid.size, "valid pixels": int(valid.sum())}
        return Entry(unit, outputs, time.time() - begin, size, attempt, counts)


def translate_block(
    chain: Chain, scene: SceneRef, grid: Grid, block: Block
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], int]:
    """(rgb (3, h, w) uint8, valid (h, w) bool, bytes read) of one block, from every lattice window that touches it.

    A pixel's value depends on the windows over it alone, so neighbouring blocks agree at their border.
    """
    blender = Blender(grid, block)
    size = 0
    for window in grid.windows_of(block):
        db = scenes.read_window(scene, window.row, window.col, window.height, window.width)
        size += db.nbytes
        seen = validity(db)
        if seen.any():
            blender.add(window, chain(db)[-1], seen)
    own = scenes.read_window(scene, block.y, block.x, block.height, block.width)
    valid = validity(own)
    rgb = to_uint8(np.where(valid, blender.result(), np.float32(-1)))
    return rgb, valid, size + own.nbytes


def _publish_mosaic(cfg: Config, root: str, mosaic: Mosaic) -> dict[str, str]:
    """The VRT over the blocks' COGs and the quick-looks, made by the driver from what the units wrote."""
    grid, folder = mosaic.grid, mosaic.folder
    group = shards.open_store(storage.join(root, mosaic.store))
    blocks = [b for b in grid.blocks() if storage.exists(storage.join(root, mosaic.cog(b)))]

    def translated() -> Iterator[tuple[int, int, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
        for b in blocks:
            area = (slice(b.y, b.y + b.height), slice(b.x, b.x + b.width))
            yield b.y, b.x, group["rgb"][(slice(None), *area)], group["valid"][area].astype(bool)

    def radar() -> Iterator[tuple[int, int, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
        look = cfg.scaling.model_copy(update={"sar": "fixed", "third": "difference_db", "median": 0})
        for b in grid.blocks():
            db = scenes.read_window(mosaic.scene, b.y, b.x, b.height, b.width)
            yield b.y, b.x, to_uint8(scale_sar(db, look)), validity(db)

    longest = cfg.translate.quicklook
    size = (grid.width, grid.height, longest)
    cogs = [publish.BlockFile(f"cog/{b.key}.tif", b.y, b.x, b.height, b.width) for b in blocks]
    files = {
        "vrt": ("mosaic.vrt", publish.vrt_xml(cogs, grid.crs, grid.transform, grid.width, grid.height).encode()),
        "quicklook": ("quicklook.png", publish.quicklook(translated(), *size, bright=True)),
        "sar_quicklook": ("sar_quicklook.png", publish.quicklook(radar(), *size)),
    }
    if cfg.data.truth:
        files["truth_quicklook"] = (
            "truth_quicklook.png",
            publish.raster_quicklook(storage.absolute(cfg.data.truth), longest, bright=True),
        )
    for name, data in files.values():
        storage.put(storage.join(root, folder, name), data)
    return {"mosaic": mosaic.store} | {k: f"{folder}/{name}" for k, (name, _) in files.items()}
