"""Mosaics: beside the bare networks and beside GDAL, memory as a mosaic grows, and the plan of the whole basin."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import small_mosaic
import torch
from rasterio.windows import Window

from sar2eo_dist import storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle, field
from sar2eo_dist.mosaic.grid import Grid
from sar2eo_dist.pipeline import cluster, forecast, mosaics, scene_list
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.translate import translate
from sar2eo_dist.records import digest

pytestmark = pytest.mark.timeout(3600)
SPAWN = multiprocessing.get_context("spawn")
SIDE, LARGE = 4096, 16_384
STORE_MB = 600  # Ray's object store: pages once touched stay, so its size is part of the peak
SCENES = 100_000
PIXEL = 10.0 / 1000  # km of a pixel


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """The result of work in a fresh process."""
    with SPAWN.Pool(1) as pool:
        result = pool.apply(work, given)
        pool.close()
        pool.join()
    return result


def table(title: str, rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:{width}s}  {value}")


# time -----------------------------------------------------------------------------------------------------------------


def config(base: Path, side: int, nets: list[str]) -> Config:
    scene = base / f"{side}.tif"
    if not scene.exists():
        small_mosaic.scene(scene, 50_000, 30_000, side, side)
    return load(overrides=[
        "translate={window: 512, halo: 96, block: 2048, statistics_window: 2048}",
        f"data.scenes={scene}", f"translate.bundles={nets}", f"run.out={base / f'run{side}'}",
        f"resources.object_store_mb={STORE_MB}", "resources.translators=1",
    ])  # fmt: skip


def made(cfg: Config) -> dict[str, float]:
    """Seconds of the verb after Ray's start, and of the steps of its units."""
    cluster.start(cfg)
    begin = time.perf_counter()
    summary = translate(cfg, Options())
    out = {"wall": time.perf_counter() - begin, "windows": float(summary.counts["windows"])}
    out |= {"blocks": float(summary.done), "bytes out": float(summary.bytes_out)}
    for stage in ("statistics", "translate"):
        for path in (Path(cfg.run.out) / "ledger" / stage).glob("*.json"):
            for step, seconds in Entry.from_json(path.read_bytes()).steps.items():
                out[step] = out.get(step, 0.0) + seconds
    return out


def bare(cfg: Config, side: int) -> tuple[float, float]:
    """Seconds of the same forward passes by the networks alone, one thread; and the share of pixels that are no halo."""
    chain = Chain(cfg.translate.bundles, cfg.translate.threads, cfg.speed)
    grid = Grid("EPSG:32721", (10, 0, 0, 0, -10, 0), side, side, 512, 0, 2048, 32, 96)
    lattice = grid.coarse(2048)
    places = [(grid.around(w), chain.nets) for b in grid.blocks() for w in grid.windows_of(b)]
    core = side * side / sum(p.height * p.width for p, _ in places)
    norms = [net for net in chain.nets if field.moments(net)]  # statistics need no more
    places += [(lattice.around(b), norms) for b in lattice.blocks()]
    seconds = 0.0
    with torch.inference_mode():
        for n, (place, nets) in enumerate([places[0], *places]):
            x = torch.rand(1, 3, place.height, place.width) * 2 - 1
            begin = time.perf_counter()
            for net in nets:
                x = net(x).clamp(-1, 1)
            seconds += (time.perf_counter() - begin) if n else 0.0
    return seconds, core


def gdal(cfg: Config, side: int, folder: Path) -> float:
    """Seconds in which GDAL reads the same windows of the scene and writes the same blocks as COGs."""
    grid = Grid("EPSG:32721", (10, 0, 0, 0, -10, 0), side, side, 512, 0, 2048, 32, 96)
    lattice = grid.coarse(2048)
    rgb = np.random.default_rng(0).integers(0, 255, (3, 2048, 2048), np.uint8)
    profile: dict[str, Any] = {
        "driver": "COG", "count": 3, "dtype": "uint8", "height": 2048, "width": 2048, "compress": "deflate",
        "predictor": "yes", "blocksize": 512, "crs": "EPSG:32721", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0),
    }  # fmt: skip
    begin = time.perf_counter()
    with rasterio.open(cfg.data.scenes) as scene:
        for b in grid.blocks():
            for place in (lattice.around(b), grid.reach(b)):
                scene.read(window=Window(place.col, place.row, place.width, place.height))
            with rasterio.open(folder / f"{b.key}.tif", "w", **profile) as out:
                out.write(rgb)
    return time.perf_counter() - begin


def test_throughput(tmp_path: Path) -> None:
    """4096 x 4096 pixels, both `tiny` networks, one translator with one thread."""
    cfg = config(tmp_path, SIDE, small_mosaic.bundles(str(tmp_path / "bundles")))
    ours = apart(made, cfg)
    (raw, core), limit = apart(bare, cfg, SIDE), apart(gdal, cfg, SIDE, tmp_path)
    wall, area, written = ours["wall"], (SIDE * PIXEL) ** 2, ours["bytes out"] / 1e6
    steps = ours["compute"]
    table(f"mosaic of {SIDE} x {SIDE}, tiny networks, one translator of one thread", {
        "whole verb": f"{wall:.1f} s: {area / wall:.1f} km2/s, {ours['windows'] / wall:.2f} windows/s",
        "the bare networks": f"{raw:.1f} s; the verb takes {wall / raw:.2f} of it, its compute steps {steps / raw:.2f}",
        "share of halo": f"{1 - core:.2f} of all pixels that the networks run over",
        "compute": f"{steps:.1f} s, busy {steps / wall:.2f} of the verb",
        "read, write": f"{ours['read']:.1f} s and {ours['write']:.1f} s beside it, in tasks; {written:.0f} MB written",
        "GDAL": f"{limit:.1f} s for reading the same windows and writing the same blocks once: {limit / wall:.2f} of the verb",
    })  # fmt: skip


# memory ---------------------------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Proportional memory (PSS: what is shared counts once) of this process's descendants at its peak, MB by kind.

    `store` is Ray's: its pages stay once they were touched, so it fills up to its size in any long run.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stop, self.peak = threading.Event(), dict[str, float]()

    def run(self) -> None:
        while not self.stop.wait(0.5):
            parts = dict.fromkeys(("store", "translator", "tasks", "rest"), 0.0)
            for process in psutil.Process().children(recursive=True):
                try:
                    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                    title = "".join(process.cmdline()[:1])
                except (OSError, psutil.Error):
                    continue
                kind = "translator" if title.startswith("ray::MapWorker") else "tasks" if "ray::" in title else "rest"
                found = {line.split()[0]: int(line.split()[1]) / 1000 for line in text.splitlines()[1:]}
                parts["store"] += found["Pss_Shmem:"]
                parts[kind] += found["Pss:"] - found["Pss_Shmem:"]
            if sum(parts.values()) > sum(self.peak.values()):
                self.peak = parts


def test_memory_does_not_grow_with_the_mosaic(tmp_path: Path) -> None:
    """A small translator alone, so that 16 times the blocks take minutes: what a network holds depends on the window alone."""
    nets = small_mosaic.bundles(str(tmp_path / "bundles"), enhancer=False, ngf=2, n_blocks=1)
    peaks, rows = list[tuple[float, float]](), dict[str, str]()
    for side in (SIDE, LARGE):
        cfg, watch = config(tmp_path, side, nets), Watch()
        watch.start()
        ours = apart(made, cfg)
        watch.stop.set()
        watch.join()
        peaks.append((sum(watch.peak.values()), watch.peak["store"]))
        parts = ", ".join(f"{k} {v:,.0f}" for k, v in watch.peak.items())
        rows[f"{side} x {side}"] = (
            f"{peaks[-1][0]:,.0f} MB ({parts}); {ours['blocks']:.0f} blocks in {ours['wall']:.0f} s"
        )
    (small, store), (large, full) = peaks
    rows["ratio"] = f"{large / small:.2f}; without the store {(large - full) / (small - store):.2f}"
    table(f"peak memory of driver, workers and Ray (PSS), object store {STORE_MB} MB", rows)


# planning -------------------------------------------------------------------------------------------------------------


def archive(path: Path, count: int) -> None:
    """STAC GeoParquet of S1 scenes over the basin: 250 x 170 km, tilted, dates over two years."""
    rng, basin = np.random.default_rng(0), mosaics.area_of(mosaics.BASIN)
    west, south, east, north = basin.bounds
    at = rng.uniform((west, south), (east, north), (4 * count, 2))
    lon, lat = at[shapely.contains_xy(basin, at)][:count].T
    assert len(lon) == count
    up = rng.random(count) < 0.5
    tilt = np.deg2rad(np.where(up, -12, 12))[:, None]
    x, y = np.array([-125, 125, 125, -125, -125.0]), np.array([-85, -85, 85, 85, -85.0])
    east_km, north_km = x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)
    rings = np.stack(
        [lon[:, None] + east_km / 111 / np.cos(np.deg2rad(lat))[:, None], lat[:, None] + north_km / 111], 2
    )
    zone = ((lon + 180) // 6 + 1).astype(int)
    e0 = 500_000 + (lon - (6 * zone - 183)) * 111_000 * np.cos(np.deg2rad(lat)) - 140_000
    n0 = np.where(lat < 0, 10_000_000, 0) + lat * 110_600 + 110_000
    times = np.datetime64("2019-01-01T10:00:00", "ms") + rng.integers(0, 730, count) * np.timedelta64(86_400_000, "ms")
    steps = np.column_stack([np.full(count, 10.0), np.zeros(count), e0, np.zeros(count), np.full(count, -10.0), n0])
    href = [f"s3://bucket/s1/{i:06d}" for i in range(count)]
    kind = pa.array(["image/tiff; application=geotiff; profile=cloud-optimized"] * count)
    sides = [
        pa.StructArray.from_arrays([pa.array([f"{h}/{band}.tif" for h in href]), kind], ["href", "type"])
        for band in ("vv", "vh")
    ]
    columns = {
        "id": [f"S1_{i:06d}" for i in range(count)], "geometry": shapely.to_wkb(shapely.polygons(rings)),
        "datetime": pa.array(times, pa.timestamp("ms", "UTC")), "platform": ["sentinel-1a"] * count,
        "sat:orbit_state": np.where(up, "ascending", "descending").tolist(),
        "proj:epsg": np.where(lat < 0, 32700, 32600) + zone,
        "proj:transform": pa.array(steps.tolist()), "proj:shape": [[22_000, 28_000]] * count, "sar2eo:units": ["db"] * count,
        "sar2eo:quantity": ["sigma0"] * count, "assets": pa.StructArray.from_arrays(sides, ["vv", "vh"]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), path)


def _peak_mb() -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) / 1000


def planned(cfg: Config) -> dict[str, float]:
    """Seconds and peak memory of what comes before the first unit."""
    root, uris = storage.absolute(cfg.run.out), list(cfg.translate.bundles)
    weights = digest([bundle.digest(bundle.read(u)) for u in uris])
    out = {"before": _peak_mb()}
    begin = time.perf_counter()
    refs, rejected = scene_list.index(cfg, root, keep=True)
    assert not rejected
    out["index"] = time.perf_counter() - begin
    begin = time.perf_counter()
    plans = mosaics.plans(cfg, root, refs, uris, weights)
    out["plans"] = time.perf_counter() - begin
    begin = time.perf_counter()
    forecast.guess(cfg, root, plans, {u.id for p in plans for u, _ in p.blocks}, weights, False)
    out |= {"forecast": time.perf_counter() - begin, "peak": _peak_mb(), "mosaics": float(len(plans))}
    out["blocks"] = float(sum(len(p.blocks) for p in plans))
    out["statistics"] = float(sum(len(p.statistics) for p in plans))
    out["scenes a block"] = float(np.mean([len(t.scenes) for p in plans for _, t in p.blocks]))
    begin = time.perf_counter()
    for p in plans:
        mosaics.publish_plan(p, b"")
    return out | {"publish": time.perf_counter() - begin, "peak published": _peak_mb()}


def test_planning_the_basin(tmp_path: Path) -> None:
    """100,000 scenes over the Amazon basin in native UTM zones: all of two years, and a window of 24 days."""
    archive(tmp_path / "s1.parquet", SCENES)
    nets = small_mosaic.bundles(str(tmp_path / "bundles"))
    first = dt.date(2019, 9, 1)
    windows = {"two years": [], "24 days": [f"mosaic.start={first}", f"mosaic.end={first + dt.timedelta(days=23)}"]}
    for name, more in windows.items():
        cfg = load(overrides=[
            "mosaic={grid: utm, aoi: amazon}", f"data.scenes={tmp_path / 's1.parquet'}", f"translate.bundles={nets}",
            f"run.out={tmp_path / name.replace(' ', '')}", *more,
        ])  # fmt: skip
        p = apart(planned, cfg)
        table(f"plan of the basin, {SCENES:,} scenes, {name}", {
            "units": f"{p['blocks']:,.0f} blocks and {p['statistics']:,.0f} statistics windows of {p['mosaics']:.0f} zones, "
                     f"{p['scenes a block']:.0f} scenes a block",
            "index": f"{p['index']:.1f} s to read the GeoParquet and store the index",
            "plans, forecast": f"{p['plans']:.1f} s and {p['forecast']:.1f} s (a measured window within)",
            "peak memory": f"{p['peak']:,.0f} MB, of it {p['before']:,.0f} MB before the first scene",
            "publish the plan": f"{p['publish']:.1f} s more; peak then {p['peak published']:,.0f} MB",
        })  # fmt: skip
