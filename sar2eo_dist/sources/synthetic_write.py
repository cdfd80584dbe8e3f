"""The synthetic world as files: MultiEarth TIFFs and NetCDF, a cloud reference set, COG scenes, and the truth.

    sent1/, sent2/           one-band TIFFs as in the challenge; B4, B3, B2 and QA60
    truth/<place>.parquet    TRUTH: what each acquisition of a place holds
    truth/clear_<...>.tiff   cloud-free B4, B3, B2 of a place, one a season, georeferenced
    reference/               8-bit RGB of cloud, stretched as stage 2 of the collector does
    netcdf/                  the first places again, as sent1.nc, sent2.nc, and target.nc without images
    scene/                   s1.tif and truth.tif, COGs on ground that no patch touches

A task is small, pure and independent: any number of them may run anywhere, in any order, and again.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rasterio.windows import Window

from sar2eo_dist import storage
from sar2eo_dist.records import PATCH, S1, S1_BANDS, S2, S2_BANDS, Artifact, place_key
from sar2eo_dist.sections import Synthetic
from sar2eo_dist.sources import synthetic as syn
from sar2eo_dist.sources import synthetic_netcdf, synthetic_sky
from sar2eo_dist.sources import synthetic_noise as sn
from sar2eo_dist.sources.multiearth import stem
from sar2eo_dist.sources.synthetic import World

NORTH_WEST = (-5520, -440)  # hundredths of a degree: centre of the first place
STEP = 2
SLICE = 16  # reference images of one task
NETCDF_PLACES = 4
BLOCK = 512  # window of scene writing: memory is bounded by it
GAP = 384  # pixels of ground between the patches and the scene

#: one row an acquisition. key: as TileRef.key; label: of synthetic.LABELS, "" for S1; clear: path of the clear image
TRUTH = pa.schema(
    [pa.field(n, t, nullable=False) for n, t in {
        "key": pa.string(), "cloud_fraction": pa.float64(), "valid_fraction": pa.float64(), "label": pa.string(),
        "orbit": pa.string(), "clear": pa.string(),
    }.items()]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """A few files. kind: "patch" (a place: all dates, both sensors), "reference" (a slice), "netcdf", "scene"; `index`
    counts within the kind. key: canonical, unique in a plan."""

    kind: str
    index: int
    key: str


def places(cfg: Synthetic) -> list[tuple[float, float]]:
    """(lon, lat) of the patch centres, north-west first, row by row."""
    west, north = NORTH_WEST
    rows, cols = cfg.places
    return [((west + STEP * j) / 100, (north - STEP * i) / 100) for i in range(rows) for j in range(cols)]


def plan(cfg: Synthetic) -> list[Task]:
    """Everything that is to be written, the longest first, in canonical order."""
    tasks = [Task("scene", n, f"scene/{name}") for n, name in enumerate(("s1", "truth"))]
    tasks += [Task("netcdf", n, f"netcdf/{name}") for n, name in enumerate(("sent1", "sent2", "target"))]
    tasks += [Task("reference", n, f"reference/{n:04d}") for n in range(-(-cfg.reference // SLICE))]
    return tasks + [Task("patch", n, f"patch/{place_key(*place)}") for n, place in enumerate(places(cfg))]


def write(task: Task, cfg: Synthetic, root: str) -> list[Artifact]:
    """Do one task below `root` (any fsspec URI). The same bytes whenever and wherever it is done; atomic per object."""
    writers: dict[str, Callable[[int, Synthetic, str], list[Artifact]]] = {
        "patch": _write_place, "reference": _write_reference, "netcdf": _write_netcdf, "scene": _write_scene,
    }  # fmt: skip
    return writers[task.kind](task.index, cfg, root)


def _write_place(index: int, cfg: Synthetic, root: str) -> list[Artifact]:
    world, (lon, lat) = World(cfg.seed), places(cfg)[index]
    window, place = syn.patch_window(lon, lat), place_key(lon, lat)
    out: list[Artifact] = []
    rows: list[tuple[object, ...]] = []
    seasons: dict[str, dt.date] = {}

    def put(sensor: str, date: dt.date, band: str, pixels: npt.NDArray[Any]) -> None:
        folder, name = {S1: ("sent1", "Sentinel-1"), S2: ("sent2", "Sentinel-2")}[sensor]
        out.append(storage.publish(root, f"{folder}/{stem(name, lon, lat, date, band)}.tiff", _tiff(pixels[None])))

    for date in syn.sar_dates(cfg.dates):
        sar = world.sar(date, *window)
        for band, pixels in zip(S1_BANDS, sar, strict=True):
            put(S1, date, band, pixels)
        rows.append((f"{S1}/{place}/{date}", 0.0, float(np.mean(sar[0] != 0)), "", syn.orbit(date), ""))
    for date in syn.eo_dates(cfg.seed, cfg.dates):
        view = world.eo(date, *window)
        for band, plane in zip((*S2_BANDS, "QA60"), (*view.bands, view.qa60), strict=True):
            put(S2, date, band, plane)
        season = "wet" if synthetic_sky.wetness(date) > 0.5 else "dry"
        path = f"truth/clear_{place}_{season}.tiff"
        if seasons.setdefault(season, date) == date:
            tags = {"DATE": date.isoformat(), "SEASON": season}
            frame = Affine(*syn.transform(*window[:2]))
            data = _tiff(world.clear(date, *window), crs=syn.CRS, transform=frame, tags=tags)
            out.append(storage.publish(root, path, data))
        valid = float(np.mean(view.valid))
        rows.append((f"{S2}/{place}/{date}", view.cloud_fraction, valid, view.label, "descending", path))
    table = pa.table([list(c) for c in zip(*rows, strict=True)], schema=TRUTH)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    out.append(storage.publish(root, f"truth/{place}.parquet", buffer.getvalue()))
    return out


def _tiff(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    """(B, h, w) -> a deflated GeoTIFF; without CRS and geotransform unless given."""
    options |= {"predictor": 3 if pixels.dtype.kind == "f" else 2, "blockysize": pixels.shape[1]}
    return _raster(pixels, driver="GTiff", compress="deflate", zlevel=1, **options)


def _raster(pixels: npt.NDArray[Any], tags: dict[str, str] | None = None, **profile: Any) -> bytes:
    """(B, h, w) -> the bytes of a small raster file."""
    count, h, w = pixels.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(width=w, height=h, count=count, dtype=pixels.dtype, **profile) as dst:
            dst.write(pixels)
            dst.update_tags(**(tags or {}))
        data: bytes = memory.read()
    return data


def _reference_view(world: World, number: int) -> syn.EOView:
    """A cloudy patch north of all patches: closed cloud, broken cloud, scattered cloud and thin cloud take turns."""
    wanted = ((0.9, 1.01, 0.6, 1.0), (0.5, 0.9, 0.5, 1.0), (0.18, 0.5, 0.5, 1.0), (0.4, 1.01, 0.0, 0.3))[number % 4]
    dates = syn.eo_dates(world.seed, 40)
    for attempt in range(100_000):
        k = sn.key(world.seed, "reference", number, attempt)
        date = dates[k % len(dates)]
        window = -4000 - sn.key(k, "row") % 60_000, sn.key(k, "col") % 200_000 - 100_000, PATCH, PATCH
        cloud, thick = synthetic_sky.coverage(world.seed, date, *window)
        if wanted[0] <= cloud < wanted[1] and wanted[2] <= thick <= wanted[3]:
            view = world.eo(date, *window)
            if view.label in ("cloudy", "overcast", "thin"):
                return view
    raise AssertionError(f"no cloud in the world of seed {world.seed}")


def _write_reference(index: int, cfg: Synthetic, root: str) -> list[Artifact]:
    out = []
    for number in range(index * SLICE, min((index + 1) * SLICE, cfg.reference)):
        rgb = stretch(_reference_view(World(cfg.seed), number).bands)
        out.append(storage.publish(root, f"reference/cloud_{number:04d}.png", _raster(rgb, driver="PNG", zlevel=3)))
    return out


def stretch(bands: syn.U16) -> npt.NDArray[np.uint8]:
    """(B, h, w) DN -> uint8, each band from its own minimum to its maximum, truncated: stage 2 of the collector."""
    low, high = (f(bands, axis=(1, 2), keepdims=True).astype(np.float64) for f in (np.min, np.max))
    out: npt.NDArray[np.uint8] = ((bands - low) / np.maximum(high - low, 1) * 255).astype(np.uint8)
    return out


def _write_netcdf(index: int, cfg: Synthetic, root: str) -> list[Artifact]:
    world, some = World(cfg.seed), places(cfg)[:NETCDF_PLACES]
    sar, eo = syn.sar_dates(cfg.dates), syn.eo_dates(cfg.seed, cfg.dates)
    path = ("netcdf/sent1.nc", "netcdf/sent2.nc", "netcdf/target.nc")[index]
    uri = storage.join(root, path)
    if path == "netcdf/target.nc":
        done = synthetic_netcdf.write_targets(uri, some, eo)
    else:
        sensor, dates = ((S1, sar), (S2, eo))[index]
        done = synthetic_netcdf.write_sensor(world, sensor, uri, some, dates)
    return [Artifact(path, done.size, done.sha256)]


def scene_frame(cfg: Synthetic) -> tuple[dt.date, int, int]:
    """(S1 date, row, column) of the scene's first pixel: east of every patch, the first date whose gap shows in it."""
    corners = [syn.to_pixel(*p) for p in places(cfg)]
    row, col = min(r for r, _ in corners) - PATCH // 2, max(c for _, c in corners) + PATCH // 2 + GAP
    h, w = cfg.scene
    r, c = np.arange(row, row + h, 8), np.arange(col, col + w, 8)
    dates = syn.sar_dates(49)  # to the end of 2020
    cut = (d for d in dates if 0.004 < np.mean(syn.sar_gap(cfg.seed, d, r, c)) < 0.05)
    return next(cut, dates[0]), row, col


def _write_scene(index: int, cfg: Synthetic, root: str) -> list[Artifact]:
    world, (date, row, col) = World(cfg.seed), scene_frame(cfg)
    h, w = cfg.scene
    profile: dict[str, Any] = {"width": w, "height": h, "crs": syn.CRS, "transform": Affine(*syn.transform(row, col))}
    tags = {"DATE": date.isoformat(), "SOURCE": f"synthetic world, seed {cfg.seed}"}

    def sar(r: int, c: int, height: int, width: int) -> npt.NDArray[Any]:
        return world.sar(date, row + r, col + c, height, width)

    def eo(r: int, c: int, height: int, width: int) -> npt.NDArray[Any]:
        return world.clear(date, row + r, col + c, height, width)

    if index == 0:
        platform = "S1A" if syn.orbit(date) == "descending" else "S1B"
        tags |= {"ORBIT": syn.orbit(date), "PLATFORM": platform, "SAR2EO_UNITS": "db", "SAR2EO_QUANTITY": "sigma0"}
        return [_cog(root, "scene/s1.tif", S1_BANDS, {**profile, "dtype": "float32"}, tags, sar)]
    return [_cog(root, "scene/truth.tif", S2_BANDS, {**profile, "dtype": "uint16"}, tags, eo)]


def _windows(h: int, w: int) -> Iterator[tuple[int, int, int, int]]:
    for r in range(0, h, BLOCK):
        for c in range(0, w, BLOCK):
            yield r, c, min(BLOCK, h - r), min(BLOCK, w - c)


def _cog(
    root: str, path: str, bands: tuple[str, ...], profile: dict[str, Any], tags: dict[str, str],
    render: Callable[[int, int, int, int], npt.NDArray[Any]],
) -> Artifact:  # fmt: skip
    """Render window by window into a tiled GeoTIFF, copy it as a COG, publish it: memory holds one window."""
    predictor = 3 if profile["dtype"] == "float32" else 2
    with tempfile.TemporaryDirectory() as folder, rasterio.Env(GDAL_CACHEMAX=64 << 20):
        flat, cog = str(Path(folder) / "flat.tif"), Path(folder) / "cog.tif"
        with rasterio.open(flat, "w", driver="GTiff", count=len(bands), tiled=True, blockxsize=BLOCK, blockysize=BLOCK,
                           BIGTIFF="IF_SAFER", **profile) as dst:  # fmt: skip
            dst.descriptions = bands
            dst.update_tags(**tags)
            if len(bands) == 3:
                dst.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            for r, c, height, width in _windows(profile["height"], profile["width"]):
                dst.write(render(r, c, height, width), window=Window(c, r, width, height))
        rasterio.shutil.copy(flat, str(cog), driver="COG", COMPRESS="DEFLATE", LEVEL=1, PREDICTOR=predictor,
                             BLOCKSIZE=BLOCK, OVERVIEW_RESAMPLING="NEAREST", BIGTIFF="IF_SAFER")  # fmt: skip
        storage.put_file(storage.join(root, path), str(cog))
        with cog.open("rb") as f:
            return Artifact(path, cog.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())
