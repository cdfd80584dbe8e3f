"""Mosaics for tests: tiny bundles of random weights, scenes of random ground, and runs that need no Ray.

A run folder needs no training: `translate.bundles` names what `bundles` wrote, `data.scenes` what `scene` wrote.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import rasterio
import scene_files
import shapely
import torch
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from sar2eo_dist import storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle, translator
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.stage import Failure, Summary, attempt
from sar2eo_dist.records import S1_BANDS, S2_BANDS, Unit

#: what tells of a run, not of the mosaic: seconds, rates, the run folder's own name
TOLD = ("summary.json", "rates.json", "forecast.json", "config.yaml")
#: 3 x 3 blocks of 256 in a whole UTM zone: two scenes of two dates, overlapping in part, two corners without any
SMALL = [
    "mosaic.grid=EPSG:32721", "translate={window: 128, halo: 32, block: 256, statistics_window: 256}",
    "resources.object_store_mb=200", "resources.translators=1", "run.max_attempts=6",
]  # fmt: skip
#: first row and column, height and width on the grid of EPSG:32721, and the tags that differ
SCENES = (
    (50_216, 30_248, 400, 400, {"DATE": "2020-06-01"}),
    (50_376, 30_408, 484, 482, {"DATE": "2020-06-13"}),
)
AREA = (50_200, 30_230, 660, 660)  # of interest, in the same pixels: the nine blocks


def bundles(root: str, enhancer: bool = True, data: str = "random", seed: int = 0, **options: Any) -> list[str]:
    """URIs of a translator and an enhancer of random weights, both `tiny` unless options of the translator differ."""
    made = []
    for n, (model, given) in enumerate({"pix2pixhd": options, "restormer": {}}.items()):
        if model == "restormer" and not enhancer:
            continue
        torch.manual_seed(seed + n)
        chosen = {"preset": "tiny", **given}
        info = bundle.BundleInfo(
            model, chosen, 3, 3, load().scaling.model_dump(), "db", "sigma0", S1_BANDS, S2_BANDS, data, "test", 0
        )
        bundle.save(uri := storage.join(root, model), translator(model).build(chosen, 3, 3), info)
        made.append(uri)
    return made


def scene(path: Path, row: int, col: int, height: int, width: int, **tags: str) -> None:
    """One S1 scene in dB (GeoTIFF) at a place of the 10 m grid of EPSG:32721; written strip by strip, whatever its size.

    row, col: from the corner (100,000 E, 10,000,000 N), as mosaic.grid counts them. Speckle over ground that varies over
    64 pixels and from place to place.
    """
    rng = np.random.default_rng([row, col, height])
    path.parent.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {
        "driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "count": 2, "dtype": "float32",
        "compress": "zstd", "predictor": 3, "crs": scene_files.CRS, "height": height, "width": width,
        "transform": rasterio.Affine(10, 0, 100_000 + 10 * col, 0, -10, 10_000_000 - 10 * row), "bigtiff": "IF_SAFER",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.update_tags(**(scene_files.S1_TAGS | tags))
        for band, name in enumerate(S1_BANDS, 1):
            out.set_band_description(band, name)
        for top in range(0, height, 256):
            rows = min(256, height - top)
            ground = rng.normal(0, 2, (2, -(-rows // 64), -(-width // 64))).repeat(64, 1).repeat(64, 2)
            speckle = rng.normal(0, 1, (2, rows, width)).astype(np.float32)
            db = np.float32([[[-10]], [[-16]]]) + ground[:, :rows, :width].astype(np.float32) + speckle
            out.write(db, window=Window(0, top, width, rows))


def area(row: int, col: int, height: int, width: int) -> str:
    """GeoJSON of a box of pixels."""
    left, top = 100_000 + 10 * col, 10_000_000 - 10 * row
    box = (left, top - 10 * height, left + 10 * width, top)
    return json.dumps(shapely.geometry.mapping(shapely.box(*transform_bounds(scene_files.CRS, "EPSG:4326", *box))))


def small(base: Path, *more: str) -> Config:
    """The config of the small mosaic with its run folder `base`/run; bundles and scenes are written where they lack."""
    if not (base / "scenes").exists():
        for n, (*place, tags) in enumerate(SCENES):
            scene(base / f"scenes/{n}.tif", *place, **tags)
        bundles(str(base / "bundles"))
        (base / "area.json").write_text(area(*AREA))
    nets = [str(base / "bundles" / n) for n in ("pix2pixhd", "restormer")]
    where = [f"data.scenes={base / 'scenes'}", f"mosaic.aoi={base / 'area.json'}", f"run.out={base / 'run'}"]
    return load(overrides=[*SMALL, *where, f"translate.bundles={nets}", *more])


def elsewhere(cfg: Config, out: Path) -> Config:
    """The same config with another run folder."""
    return cfg.model_copy(update={"run": cfg.run.model_copy(update={"out": str(out)})})


def folder(summary: Summary) -> str:
    """The mosaic's folder below the run folder."""
    return summary.outputs["mosaic"].rpartition("/")[0]


def objects(root: Path) -> dict[str, str]:
    """sha256 of every visible object below a run folder's `translate`, by path, but for what tells of the run."""
    found = sorted(p for p in (root / "translate").rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(root)): storage.sha256(p.read_bytes()) for p in found if p.name not in TOLD}


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Units run in this process, one after the other, in their planned order: the plain functions alone."""

    def stream(
        todo: Sequence[tuple[Unit, Any]], number: int, read: Any, make: Any, write: Any, feed: Any
    ) -> Iterator[Entry | Failure]:
        steps = {"read": read, "compute": make(), "write": write}

        def work(unit: Unit, task: Any) -> Entry:
            value, spent = None, {}
            for name, step in steps.items():
                begin = time.monotonic()
                value = step(unit, task, value)
                spent[name] = time.monotonic() - begin
            return dataclasses.replace(value, seconds=sum(spent.values()), steps=spent)  # type: ignore[type-var]

        for unit, task in todo:
            yield attempt(unit, partial(work, unit, task))

    def run(
        work: Any, todo: Sequence[tuple[Unit, Any]], number: int, *, make: Any = None, **_: Any
    ) -> Iterator[Entry | Failure]:
        work = work or make()
        for unit, payload in todo:
            yield attempt(unit, partial(work, unit, payload, number))

    with (
        mock.patch.object(units, "stream", stream), mock.patch.object(units, "run", run),
        mock.patch.object(cluster, "start"), mock.patch.object(cluster, "nodes", return_value=[(8.0, 0.0)]),
        mock.patch.object(cluster, "capacity", return_value=(8.0, 0.0)),
    ):  # fmt: skip
        yield
