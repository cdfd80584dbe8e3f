"""A run folder as the verbs leave it, made from formulas: every number on the page can be predicted from here."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import yaml
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from sar2eo_dist.config import Config
from sar2eo_dist.mosaic import store
from sar2eo_dist.records import Calibration, Pair, Rejected, TileRef, Verdict, to_table

#: reason -> optical tiles that ended so: 100 in all
ENDS = {"": 46, "unreadable": 2, "all_nodata": 3, "qa60": 7, "alpha": 14, "brightness": 5, "dark": 9, "frechet": 14}
UNUSABLE = 9
THRESHOLD = 60.0
METHODS = {  # method -> mean MAE, mean PSNR
    "translated": (0.050, 21.0), "enhanced": (0.040, 22.5), "baseline_mean": (0.070, 18.0),
    "baseline_zero": (0.150, 12.0), "baseline_linear": (0.060, 19.0),
}  # fmt: skip
REFERENCE = (0.020, 26.0)  # of nearest_date, in scores.json and the samples alone
PAIRS = {"train": 30, "val": 12, "guard": 4}
VAL_DAYS = tuple(range(-5, 7))  # of the 12 val pairs


def scene(phase: float, cloud: float = 0.0, size: int = 256) -> np.ndarray:
    """(3, size, size) DN of B4, B3, B2: forest, a river, clearings, and cloud over about a share `cloud`."""
    y, x = np.mgrid[0:size, 0:size] / size
    rates = ((3, 1), (1, 4), (7, 5), (11, -9))
    wave = sum(np.sin(2 * np.pi * (f * x + g * y) + phase * k) for k, (f, g) in enumerate(rates, 1))
    texture = np.sin(2 * np.pi * 41 * x + phase) * np.sin(2 * np.pi * 37 * y + 2 * phase)
    bands = np.array([330.0, 480.0, 290.0])[:, None, None] + 28 * texture
    cleared = ((x * 6 + phase) % 1 < 0.35) & ((y * 5) % 1 < 0.5) & (wave > 0.4)
    bands = np.where(cleared, np.array([1500.0, 1250.0, 800.0])[:, None, None] + 60 * texture, bands)
    river = np.abs(y - 0.5 - 0.2 * np.sin(2 * np.pi * x + phase)) < 0.04
    bands = np.where(river, np.array([700.0, 720.0, 560.0])[:, None, None], bands)
    if cloud:
        thick = np.clip((wave / 4 + 2 * cloud - 0.8) * 3, 0, 1)
        bands = bands * (1 - thick) + 6200 * thick
    return np.clip(bands, 0, 65535)


def _write_tile(folder: Path, name: str, bands: np.ndarray) -> tuple[str, ...]:
    uris = []
    profile: dict[str, Any] = {"driver": "GTiff", "width": 256, "height": 256, "count": 1, "dtype": "uint16"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for band, pixels in zip(("B4", "B3", "B2"), bands.astype(np.uint16), strict=True):
            path = folder / f"Sentinel2_{band}_{name}.tiff"
            with rasterio.open(path, "w", **profile) as out:
                out.write(pixels, 1)
            uris.append(str(path))
    return tuple(uris)


def _measured(reason: str, i: int) -> dict[str, Any]:
    if reason == "unreadable":
        return {"detail": "B3, 120 bytes, does not decode as TIFF (torn)"}
    wave = math.sin(i)
    seen = {"valid_fraction": 1.0, "qa60_state": "clear", "qa60_fraction": 0.0, "max_dn": 2500.0 + 90 * i % 900}
    seen |= {"brightness": 58.0 + 9 * wave, "dark_fraction": 0.02}
    name = {"score_name": "fd_efficientnet_lite0"}
    special: dict[str, dict[str, Any]] = {
        "all_nodata": {"valid_fraction": 0.0},
        "qa60": {"qa60_state": "cloudy", "qa60_fraction": 0.12 + 0.05 * i},
        "alpha": {"max_dn": 4500.0 + 200 * i, "alpha_fraction": 0.01 * i},
        "brightness": {"brightness": 21.5 + i},
        "dark": {"dark_fraction": 0.14 + 0.04 * i},
        "frechet": {"score": 30.0 + 2 * i} | name,
        "": {"score": 86.0 + 24 * wave + i / 3} | name,
    }
    return seen | special[reason]


def verdict(ref: TileRef, reason: str, **measured: Any) -> Verdict:
    pointer = {f.name: getattr(ref, f.name) for f in dataclasses.fields(TileRef)}
    return Verdict(key=ref.key, place=ref.place, reason=reason, **pointer, **measured)


def verdicts(folder: Path) -> list[Verdict]:
    """140 verdicts by key; the optical ones point at real TIFFs, which are written to `folder`/tiles."""
    tiles = folder / "tiles"
    tiles.mkdir(parents=True, exist_ok=True)
    looks = {
        "": scene(1.0), "more": scene(2.2), "all_nodata": np.zeros((3, 256, 256)), "qa60": scene(3.0, 0.35),
        "alpha": scene(4.1, 0.55), "brightness": scene(0.4) * 0.45, "dark": scene(5.0) * 0.3,
        "frechet": scene(6.0, 0.8),
    }  # fmt: skip
    uris = {k: _write_tile(tiles, f"-55.{i:02d}_-4.39_2020_07_20", v) for i, (k, v) in enumerate(looks.items(), 10)}
    rows = []
    number = 0
    for reason, n in ENDS.items():
        for i in range(n):
            lon, lat = -55.0 - 0.02 * (number % 10), -4.0 - 0.02 * (number // 10)
            date = dt.date(2020, 7, 1) + dt.timedelta(days=5 * (number % 5))
            files = uris.get("more" if not reason and i % 2 else reason, ("torn.tiff",) * 3)
            ref = TileRef("s2", lon, lat, date, "multiearth_tiff", ("B4", "B3", "B2"), files, f"d{number}")
            rows.append(verdict(ref, reason, **_measured(reason, i)))
            number += 1
    for i in range(40):
        lon, lat = -55.0 - 0.02 * (i % 10), -4.0 - 0.02 * (i // 10)
        ref = TileRef("s1", lon, lat, dt.date(2020, 7, 5), "multiearth_tiff", ("VV", "VH"), ("a", "b"), f"e{i}")
        rows.append(verdict(ref, "all_nodata" if i == 7 else "", valid_fraction=1.0))
    return sorted(rows, key=lambda v: v.key)


def pairs() -> list[Pair]:
    out = []
    sar = dt.date(2020, 7, 5)
    for split, n in PAIRS.items():
        for i in range(n):
            days = VAL_DAYS[i] if split == "val" else round(9 * math.sin(1.7 * i))
            keys = (f"s1/{split}{i}/2020-07-05", f"s2/{split}{i}/x")
            eo = sar + dt.timedelta(days=days)
            out.append(Pair(f"p{i}", -55.0, -4.0, *keys, sar, eo, days, "descending", "S1A", "a", "b", split))
    return out


def yields() -> list[dict[str, int]]:
    """Days 0 to 60: the 46 pairs above as they come within reach, every tenth day one more combination each."""
    gaps = [abs(p.days) for p in pairs()]
    within = [sum(g <= d for g in gaps) for d in range(61)]
    return [{"days": d, "eo_images": n, "combinations": n * (1 + d // 10)} for d, n in enumerate(within)]


def metrics() -> list[dict[str, Any]]:
    """12 pairs, all 0.001 under the method's mean but the last, which is 0.011 over it: mean and median differ."""
    rows = []
    for i, days in enumerate(VAL_DAYS):
        for method, (mae, psnr) in METHODS.items():
            off = 0.0 if method == "baseline_zero" else 0.011 if i == 11 else -0.001
            figures = {"mae": mae + off, "rmse": 1.3 * (mae + off), "psnr": psnr - 30 * off, "ssim": 1 - 6 * mae - off}
            keys = {"sar_key": f"s1/val{i}/2020-07-05", "eo_key": f"s2/val{i}/x", "split": "val"}
            rows.append({"sample": ""} | keys | {"days": days, "method": method} | figures)
    return rows


GROUPS = {
    "cover": ("forest", "water"), "days": ("0 to 3", "4 to 7"), "orbit": ("descending",), "cloud": ("under 5 %", ""),
}  # fmt: skip


def scores() -> dict[str, Any]:
    """evaluate/scores.json over the pairs of `metrics`; MS-SSIM of 9 of them alone."""
    names = ("mae", "rmse", "psnr", "ssim", "ms_ssim", "sam", "lpips")

    def figures(mae: float, psnr: float, n: int) -> dict[str, Any]:
        means = {"mae": mae, "rmse": 1.3 * mae, "psnr": psnr, "ssim": 1 - 6 * mae, "ms_ssim": 1 - 4 * mae, "sam": 2 * mae,
                 "lpips": 9 * mae}  # fmt: skip
        return {
            k: {"mean": v, "median": v * 0.98, "low": v * 0.9, "high": v * 1.1, "n": 9 if k == "ms_ssim" else n}
            for k, v in means.items()
        }

    rows = []
    for k, (method, (mae, psnr)) in enumerate((METHODS | {"nearest_date": REFERENCE}).items()):
        row = {"method": method, "n": 12} | figures(mae, psnr, 12)
        row["challenge"] = {"multiearth_mse_sum": 0.5 * mae, "mae_min": 2 * mae, "queries": 12, "images": 12}
        distance = {"name": "fd_efficientnet_lite0", "value": 40.0 + k, "low": 36.0, "high": 45.0, "n": 12}
        row["frechet"] = None if method == "baseline_zero" else distance | {"kid": 0.01 * (k + 1), "kid_n": 12}
        rows.append(row)
    groups = {
        name: [{"group": g, "method": m, "n": 6} | {k: f["mean"] for k, f in figures(mae * (1 + 0.2 * i), psnr, 6).items()}
               for i, g in enumerate(members) for m, (mae, psnr) in METHODS.items()]
        for name, members in GROUPS.items()
    }  # fmt: skip
    lower = {k: k not in ("psnr", "ssim", "ms_ssim") for k in names}
    head = {"split": "val", "pairs": 12, "measured": 12, "dn": 3000, "metrics": names, "lower": lower}
    return head | {"methods": rows, "groups": groups}


def summary(stage: str, hour: int, **changes: Any) -> dict[str, Any]:
    day = f"2026-11-22T{hour:02d}"
    return {
        "stage": stage, "status": "complete", "planned": 4, "done": 4, "resumed": 0, "quarantined": [], "seconds": 60.0,
        "unit_seconds": 100.0, "bytes_in": 2_000_000, "bytes_out": 1_500_000, "started": f"{day}:00:00+00:00",
        "ended": f"{day}:05:30+00:00", "digest": "d", "counts": {}, "outputs": {},
        "machine": {"cpus": 2, "system": "Linux", "python": "3.11.7"},
    } | changes  # fmt: skip


SUMMARIES = {
    "synthesise": summary("synthesise", 8, counts={"objects": 1200}, bytes_out=312_400_000, unit_seconds=48.0),
    "collect": summary("collect", 9, unit_seconds=75.4, seconds=3.2, resumed=4, counts={"S2 tiles": 100, "none": 0}),
    "shard": summary("shard", 10, unit_seconds=21.0, bytes_out=48_250_000),
    "train": summary("train", 11, planned=2, done=2, unit_seconds=3725.0, bytes_out=999_960),
    "translate": summary(
        "translate", 12, status="partial", done=3, unit_seconds=130.0, puts=24,
        quarantined=[{"unit": "abc", "key": "scene/r00001c00001", "reason": "ModelError: not finite at window 3"}],
        counts={"pixels": 262_144, "valid pixels": 249_037, "patches": 3},
        outputs={"mosaic": "translate/scene/mosaic.zarr", "vrt": "translate/scene/mosaic.vrt",
                 "quicklook": "translate/scene/quicklook.png", "sar_quicklook": "translate/scene/sar.png",
                 "truth_quicklook": "translate/scene/truth.png",
                 "error_quicklook": "translate/scene/error.png", "patches": "translate/p/translation",
                 "patch_table": "translate/p/patches.parquet"},
    ),
    "evaluate": summary("evaluate", 13, unit_seconds=40.0, outputs={"metrics": "evaluate/metrics.parquet"}),
}  # fmt: skip


def table(rows: Iterable[dict[str, Any]], most: int | None = None) -> bytes:
    """At most `most` of the rows as parquet."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)).slice(0, most), sink)
    return sink.getvalue()


def records(rows: list[Any], kind: type) -> bytes:
    sink = io.BytesIO()
    pq.write_table(to_table(rows, kind), sink)
    return sink.getvalue()


def picture(bands: np.ndarray, kind: str = "PNG", alpha: bool = False) -> bytes:
    rgb = np.clip(bands / 3000 * 255, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if alpha:
        seen = np.full(rgb.shape[:2], 255, np.uint8)
        seen[:, : len(seen) // 20] = 0
        rgb = np.dstack([rgb, seen])
    sink = io.BytesIO()
    Image.fromarray(rgb).save(sink, kind)
    return sink.getvalue()


def _blurred(bands: np.ndarray, k: int) -> np.ndarray:
    small = bands[:, ::k, ::k]
    return np.repeat(np.repeat(small, k, 1), k, 2)[:, : bands.shape[1], : bands.shape[2]]


def _radar(bands: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[0 : bands.shape[1], 0 : bands.shape[2]]
    speckle = np.sin(12.9898 * x + 78.233 * y) * 43758.5453 % 1
    return np.stack([900 + bands[0] * 0.5, 500 + bands[0] * 0.8, 700 - bands[1] * 0.2]) * (0.6 + 0.8 * speckle)


def _history(names: tuple[str, ...], steps: int, every: int) -> bytes:
    lines = []
    for step in range(every, steps + 1, every):
        decay = 0.25 + math.exp(-3 * step / steps)
        losses = {n: (k + 1) * decay * (1 + 0.12 * math.sin(step * (k + 1))) for k, n in enumerate(names)}
        lines.append(json.dumps({"step": step, "seconds": step * 0.2, "samples_per_s": 5.0} | losses))
    return "\n".join([*lines, ""]).encode()


def files(folder: Path, size: int = 128) -> dict[str, bytes]:
    """path -> content of every part but the mosaic's metadata; tiles are written to `folder`/tiles."""
    cfg = Config.model_validate(
        {
            "synthetic": {"enabled": True},
            "cca": {"extractor": "efficientnet_lite0"},
            "cost": {"cpu_hour": 0.05, "gb_month": 0.02, "currency": "EUR", "cpu_watts": 10, "kwh_co2": 98},
            "translate": {"threads": 2},
        }
    )
    out = {f"{s}/summary.json": json.dumps(v).encode() for s, v in SUMMARIES.items()}
    out["config.yaml"] = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False).encode()
    out["collect/verdicts.parquet"] = records(verdicts(folder), Verdict)
    rejected = [Rejected("s2", f"s3://me:secret@bucket/bad_{i}.tiff", "bad_date", "month 13") for i in range(UNUSABLE)]
    out["collect/rejected.parquet"] = records(rejected, Rejected)
    calibration = Calibration("fd_efficientnet_lite0", "range", 0.4, 30.0, 123.4, THRESHOLD, 60, "ref")
    out["collect/calibration.json"] = json.dumps(dataclasses.asdict(calibration)).encode()
    out["collect/pairs.parquet"] = records(pairs(), Pair)
    out["collect/yield.parquet"] = table(yields())
    out["train/translate/history.jsonl"] = _history(("D", "G_gan", "G_fm", "G_vgg"), 4000, 10)
    out["train/enhance/history.jsonl"] = _history(("l1",), 2000, 20)
    out["evaluate/metrics.parquet"] = table(metrics())
    out["evaluate/scores.json"] = json.dumps(scores()).encode()
    spent = {"cost": {"gpu_hours": 0.0, "cpu_hours": 1.5, "amount": None, "currency": "USD"}, "history": []}
    out["train/translate/record.json"] = json.dumps(spent).encode()
    samples = []
    for i, why in ((0, "spread"), (5, "spread"), (11, "spread"), (10, "worst"), (2, "best")):
        true = scene(0.7 * i, size=size)
        images = {"sar": _radar(true), "translated": _blurred(true, 8), "enhanced": _blurred(true, 4), "true": true,
                  "nearest_date": scene(0.7 * i, 0.2, size=size)}  # fmt: skip
        paths = {name: f"evaluate/samples/{i}_{name}.png" for name in images}
        out |= {paths[name]: picture(bands) for name, bands in images.items()}
        keys = {"sar_key": f"s1/val{i}/2020-07-05", "eo_key": f"s2/val{i}/x", "days": VAL_DAYS[i], "why": why}
        mae = {"translated": 0.05, "enhanced": 0.04 + 0.01 * i, "baseline_zero": 0.15, "nearest_date": 0.02}
        samples.append(keys | {"images": paths, "mae": mae})
    out["evaluate/samples.json"] = json.dumps(samples).encode()
    land = scene(2.0, size=4 * size)
    out["translate/scene/quicklook.png"] = picture(_blurred(land, 4), alpha=True)
    out["translate/scene/sar.png"] = picture(_radar(land), alpha=True)
    out["translate/scene/truth.png"] = picture(land)
    out["translate/scene/error.png"] = picture(np.repeat(land[:1] * 2, 3, 0), alpha=True)
    names = [f"Sentinel2_-55.{i}0_-4.39_2020_07_20" for i in range(4)]
    rows = [{"name": n, "status": "no SAR in range" if i == 3 else "translated"} for i, n in enumerate(names)]
    out["translate/p/patches.parquet"] = table(rows)
    for i, n in enumerate(names[:3]):
        out[f"translate/p/translation/{n}.tiff"] = picture(scene(i, size=size), "TIFF")
    return out


def make(folder: Path, size: int = 128) -> Path:
    """A complete run folder at `folder`/run."""
    run = folder / "run"
    for path, data in files(folder, size).items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(data)
    layout = store.Layout("EPSG:32721", (10.0, 0.0, 600_000.0, 0.0, -10.0, 9_520_000.0), 512, 512, 256)
    store.write_template(str(run), "translate/scene/mosaic.zarr", layout, {})
    return run
