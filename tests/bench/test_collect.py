"""`collect` through Ray beside the same functions in a plain process pool, memory over a long run, and choosing again."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from memory_watch import Watch

from sar2eo_dist import storage
from sar2eo_dist.cca.reference import Reference
from sar2eo_dist.config import Config, load
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models.extractors import extractor
from sar2eo_dist.pipeline import archive as archives
from sar2eo_dist.pipeline import calibration as calibrations
from sar2eo_dist.pipeline import collect as verb
from sar2eo_dist.pipeline import manifest, selection
from sar2eo_dist.pipeline.actors import Scorer, scored
from sar2eo_dist.pipeline.judge import Judge, from_ipc, to_ipc
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.records import Calibration, Rejected, Verdict, place_key, schema, to_table

pytestmark = pytest.mark.timeout(900)
mpl.use("Agg")
TILES, DISTINCT = 20_000, 200
OUT = Path(os.environ.get("SAR2EO_BENCH_OUT", "runs/bench"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 S2 acquisitions of 3 bands and QA60 as TIFF: 200 distinct synthetic ones under 100 names each (hard links)."""
    root = tmp_path_factory.mktemp("archive")
    (root / "sent2").mkdir()
    (root / "sent1").mkdir()
    rng = np.random.default_rng(0)
    ground = rng.normal(size=(DISTINCT, 3, 32, 32)).repeat(8, axis=2).repeat(8, axis=3)
    for i in range(TILES):
        lon, lat = -60 + 0.02 * (i % 500), -5 + 0.02 * (i // 500)
        name = f"_{lon:.2f}_{lat:.2f}_2019_06_06.tiff"
        for b, band in enumerate(("B4", "B3", "B2", "QA60")):
            path = root / "sent2" / f"Sentinel2_{band}{name}"
            if i >= DISTINCT:
                j = i % DISTINCT
                first = f"_{-60 + 0.02 * (j % 500):.2f}_{-5 + 0.02 * (j // 500):.2f}_2019_06_06.tiff"
                os.link(root / "sent2" / f"Sentinel2_{band}{first}", path)
                continue
            pixels = (
                np.zeros((256, 256)) if band == "QA60" else 900 + 250 * ground[i, b] + rng.normal(0, 60, (256, 256))
            )
            profile: dict[str, Any] = {"driver": "GTiff", "height": 256, "width": 256, "count": 1, "dtype": "uint16"}
            with rasterio.open(path, "w", **profile) as out:
                out.write(np.clip(pixels, 1, 4000).astype(np.uint16), 1)
    for band in ("VV", "VH"):
        profile = {"driver": "GTiff", "height": 256, "width": 256, "count": 1, "dtype": "float32"}
        with rasterio.open(root / "sent1" / f"Sentinel1_{band}_-60.00_-5.00_2019_06_06.tiff", "w", **profile) as out:
            out.write(rng.normal(-12, 1, (256, 256)).astype(np.float32), 1)
    net = extractor("means")
    images = rng.integers(0, 255, (64, 3, 256, 256)).astype(np.uint8)
    reference = Reference.from_features(net.features(images), net.name, net.preprocessing)
    (root / "reference.npz").write_bytes(reference.to_bytes())
    return root


def config(archive: Path, out: Path) -> Config:
    settings = [
        f"data.s1={archive / 'sent1'}", f"data.s2={archive / 'sent2'}", f"cca.reference={archive / 'reference.npz'}",
        "cca.extractor=means", "cca.brightness_min=0", "cca.dark_max_fraction=1", "cca.rule=quantile", f"run.out={out}",
        "cca.min_kept=0", "cca.slice=1000", "resources.object_store_mb=4000",
    ]  # fmt: skip
    return load(overrides=settings)


def rate(times: list[tuple[float, int]]) -> float:
    """Tiles a second from the first verdicts to the last."""
    times.sort()
    return sum(n for _, n in times[1:]) / (times[-1][0] - times[0][0])


def _pool_work(job: tuple[Any, str, str, int]) -> tuple[str, int]:
    cca, reference, uri, group = job
    global _scorer
    if "_scorer" not in globals():
        _scorer = Scorer(cca, reference)
    tables = []
    for pack in Judge(cca, True)._slice({"unit": "u", "manifest": uri, "group": group, "final": False}):
        table = from_ipc(pack["verdicts"][0])
        if pack["shape"][0]:
            images = np.frombuffer(pack["pixels"][0], np.uint8).reshape(-1, *pack["shape"][0])
            table = from_ipc(to_ipc(scored(table, _scorer(images), "fd_means", "m")))
        tables.append(table)
    table = pa.concat_tables(tables)
    return uri, len(table)


def test_through_ray_against_a_process_pool(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short turns of both by turns, since the machine's own speed wanders; then the whole archive through Ray, with memory."""
    times: list[tuple[float, int]] = []
    watch, real = Watch(), verb._complete

    def complete(*args: Any) -> Entry:
        entry: Entry = real(*args)
        times.append((time.time(), sum(entry.counts.values())))
        watch.done += sum(entry.counts.values())
        return entry

    monkeypatch.setattr(verb, "_complete", complete)
    ratios = []
    for turn in range(5):
        cfg = config(archive, tmp_path / f"run{turn}")
        slices = manifest.list_archive(cfg)[0][:8]
        pooled: list[tuple[float, int]] = []
        with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
            jobs = [(cfg.cca, str(archive / "reference.npz"), s.uri, s.group) for s in slices]
            for _, n in pool.imap_unordered(_pool_work, jobs):
                pooled.append((time.time(), n))
            pool.close()
            pool.join()
        times.clear()
        verb.collect(cfg, Options(limit=len(slices)))
        ratios.append(rate(times) / rate(pooled))
        print(f"\npool {rate(pooled):,.0f}, Ray {rate(times):,.0f} tiles/s")
    print(
        f"collect through Ray: {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the process pool's rate"
    )
    times.clear()
    watch.done = 0
    watch.start()
    summary = verb.collect(config(archive, tmp_path / "whole"), Options())
    watch.stop.set()
    assert summary.counts["S2 tiles"] == TILES
    print(f"the whole: {rate(times):,.0f} tiles/s from the first verdicts to the last")
    rows = np.array(watch.rows)
    OUT.mkdir(parents=True, exist_ok=True)
    _plot(rows)
    for column, name in ((1, "driver"), (2, "largest worker")):
        early = np.median(rows[(rows[:, 0] >= 2000) & (rows[:, 0] < 6000), column])
        late = np.median(rows[rows[:, 0] >= 16000, column])
        print(
            f"{name}: private memory {early:.0f} MB from tile 2,000 on, {late:.0f} MB at the end; {OUT / 'collect.png'}"
        )


def _plot(rows: np.ndarray) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(rows[:, 0], rows[:, 1], label="driver", drawstyle="steps-post")
    axes.plot(rows[:, 0], rows[:, 2], label="largest worker", drawstyle="steps-post")
    axes.set(xlabel="tiles judged", ylabel="private resident memory, MB", ylim=(0, None),
             title=f"collect, {TILES:,} tiles of 256 x 256, extractor `means`")  # fmt: skip
    axes.legend()
    figure.savefig(OUT / "collect.png", dpi=120)


def test_choosing_again_among_a_million(tmp_path: Path) -> None:
    """1,000,000 verdicts in one parquet file: another beta, another rule, a stricter profile."""
    out = tmp_path / "run"
    table = million()
    (out / "collect").mkdir(parents=True)
    pq.write_table(table, out / "collect/verdicts.parquet", compression="zstd")
    pq.write_table(to_table([], Rejected), out / "collect/rejected.parquet")
    given = [f"run.out={out}", "cca.extractor=efficientnet_lite0", "cca.reference=x"]
    own = np.sort(np.random.default_rng(2).normal(2, 0.3, 1000))
    score = table["score"].to_numpy()
    made = Calibration("fd_means", "range", 0.4, 1.0, 3.0, 1.8, len(score), "m", 1, 0.9,
                       tuple(np.quantile(score, np.linspace(0, 1, 101))))  # fmt: skip
    storage.put(str(out / calibrations.CURRENT), calibrations.to_json(made))
    for change in ("beta=0.5", "rule=quantile", "rule=otsu", "alpha_max_fraction=0.3", "profile=recommended"):
        cfg = load(overrides=[*given, f"cca.{change}"])
        begin = time.perf_counter()
        found = selection.preview(cfg, "m", own)
        seconds = time.perf_counter() - begin
        print(f"\nreselect 1,000,000 rows, cca.{change}: {seconds:.2f} s; {found.text().splitlines()[0]}")
    cfg = load(overrides=[*given, "cca.beta=0.5", "cca.min_kept=0"])
    begin = time.perf_counter()
    selection.publish(cfg, *archives.stored(cfg), {"whole": True}, "m", True)
    print(f"\npublishing them anew, cca.beta=0.5: {time.perf_counter() - begin:.2f} s")


def million(count: int = 1_000_000) -> pa.Table:
    """Verdicts as `collect` writes them: nine in ten S2, one row in twenty rejected by stages 1 and 2."""
    rng = np.random.default_rng(1)
    lon, lat = -70 + 0.02 * (np.arange(count) % 1000), -10 + 0.02 * (np.arange(count) // 1000)
    eo = np.arange(count) % 10 > 0
    places = [place_key(a, b) for a, b in zip(lon.tolist(), lat.tolist(), strict=True)]
    sensor = np.where(eo, "s2", "s1")
    bad = eo & (rng.random(count) < 0.05)
    numbers = {f.name: rng.random(count) for f in schema(Verdict) if pa.types.is_floating(f.type)}
    numbers |= {
        "lon": lon, "lat": lat, "valid_fraction": np.ones(count), "qa60_fraction": np.zeros(count),
        "qa60_any": np.zeros(count), "alpha_fraction": np.where(bad, 0.2, 0), "max_dn": np.where(bad, 6000.0, 3000.0),
        "contrast": np.full(count, 900.0), "brightness": rng.uniform(40, 90, count), "dark_fraction": np.zeros(count),
        "dark_released": np.zeros(count), "brightness_released": rng.uniform(40, 90, count),
        "light": np.where(eo, rng.uniform(300, 900, count), np.nan),
        "score": np.where(eo & ~bad, rng.normal(2, 0.3, count), np.nan), "offset": np.zeros(count),
    }  # fmt: skip
    words: dict[str, Any] = {
        "key": [f"{s}/{p}/2019-06-06" for s, p in zip(sensor.tolist(), places, strict=True)], "sensor": sensor.tolist(),
        "place": places, "orbit": ["unknown"] * count, "platform": ["unknown"] * count, "kind": ["multiearth_netcdf"] * count,
        "digest": [f"{i:032x}" for i in range(count)], "reason": np.where(bad, "alpha", "").tolist(), "detail": [""] * count,
        "qa60_state": np.where(eo, "clear", "").tolist(), "score_name": np.where(eo, "fd_means", "").tolist(),
        "scored_by": np.where(eo & ~bad, "m", "").tolist(), "unit": [f"u{i // 2000}" for i in range(count)],
    }  # fmt: skip
    lists = {"uris": [["s3://bucket/multiearth/sent2_train.nc"]] * count, "bands": [["B4", "B3", "B2", "QA60"]] * count,
             "rows": [[i] for i in range(count)]}  # fmt: skip
    dates = np.full(count, "2019-06-06", "datetime64[D]")
    columns = {**numbers, **words, **lists, "date": dates}
    table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in schema(Verdict)}, schema=schema(Verdict))
    return table.sort_by([("key", "ascending")])
