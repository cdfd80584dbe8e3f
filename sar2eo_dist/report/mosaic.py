"""The translated mosaic (and patches) as the page shows them: quick-looks, georeference, where the files lie."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform_bounds

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.report.facts import spaced
from sar2eo_dist.report.images import Album, Picture
from sar2eo_dist.report.load import Run, part
from sar2eo_dist.report.text import count, minus, number

LOOKS = (("sar_quicklook", "SAR"), ("quicklook", "Translated"), ("truth_quicklook", "Truth"))
FILES = ("mosaic", "vrt", "error_vrt", "stac", "quicklook")
PATCHES = 6  # shown
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Look:
    label: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Mosaic:
    """looks: what pictures there are; facts: (name, value) in words; files: (name, path in the run folder)."""

    looks: tuple[Look, ...]
    facts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Patches:
    """Single images made for the targets of a MultiEarth file. without: targets that had no SAR in range."""

    folder: str
    made: float | None
    without: int | None
    looks: tuple[Look, ...]


def mosaic(run: Run, album: Album) -> Mosaic | None:
    """None where no mosaic was made."""
    stage = run.stages.get("translate")
    outputs = stage.outputs if stage else {}
    if not {"mosaic", "vrt", "quicklook"} & set(outputs):
        return None
    found = [(label, outputs[name]) for name, label in LOOKS if name in outputs]
    side = 1024 if len(found) < 4 else 768
    looks = tuple(Look(label, album.file(path, side)) for label, path in found)
    files = tuple((n, path) for n, path in outputs.items() if n.partition(" ")[0] in FILES)  # of every UTM zone
    facts = _georeference(run, outputs["mosaic"]) if "mosaic" in outputs else []
    pixels, valid = (stage.counts.get(k) if stage else None for k in ("pixels", "valid pixels"))
    if pixels and valid is not None:
        facts.append(("Valid", f"{count(valid)} of {count(pixels)} pixels ({100 * valid / pixels:.1f} %)"))
    return Mosaic(looks, tuple(facts), files)


def _georeference(run: Run, path: str) -> list[tuple[str, str]]:
    """Size, CRS and bounds from the store's own metadata; what it does not say is left out, what is wrong is named."""
    try:
        group = _metadata(run, f"{path}/zarr.json").get("attributes") or {}
        height, width = (int(n) for n in _metadata(run, f"{path}/rgb/zarr.json")["shape"][-2:])
        transform, crs = Affine(*(float(v) for v in group["transform"][:6])), CRS.from_user_input(group["crs"])
        return _described(height, width, transform, crs)
    except NotFound:
        run.problems[path] = "the mosaic's metadata is not there"
    except (ValueError, TypeError, KeyError, AttributeError, CRSError, RasterioError) as e:
        run.problems[path] = f"no georeference ({type(e).__name__}: {e})"
    return []


def _metadata(run: Run, path: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(storage.read_bytes(part(run.uri, path)))
    return tree


def _described(height: int, width: int, transform: Affine, crs: CRS) -> list[tuple[str, str]]:
    degrees = crs.is_geographic
    unit = "°" if degrees else " m"
    step = abs(transform.a)
    facts = [("Size", f"{count(width)} {TIMES} {count(height)} pixels")]
    if not degrees:
        facts.append(("Ground", f"{number(width * step / 1000)} {TIMES} {number(height * abs(transform.e) / 1000)} km"))
    facts.append(("Pixel", f"{number(step)}{unit}"))
    code = crs.to_epsg()
    facts.append(("CRS", f"EPSG:{code}" if code else crs.to_string()[:120]))
    west, south, east, north = array_bounds(height, width, transform)
    facts.append(("Upper left", f"{west:,.6g}, {north:,.6g}" if degrees else f"{west:,.0f} E, {north:,.0f} N"))
    west, south, east, north = transform_bounds(crs, "EPSG:4326", west, south, east, north)
    facts.append(("Longitude", minus(f"{west:.4f} to {east:.4f}")))
    facts.append(("Latitude", minus(f"{south:.4f} to {north:.4f}")))
    return facts


def patches(run: Run, album: Album) -> Patches | None:
    """None where no target file was translated."""
    stage = run.stages.get("translate")
    folder = stage.outputs.get("patches", "") if stage else ""
    if not stage or not folder:
        return None
    names: list[str] = []
    without: int | None = None
    table = stage.outputs.get("patch_table", "")
    if table:
        try:
            rows = pq.read_table(io.BytesIO(storage.read_bytes(part(run.uri, table)))).to_pylist()
            names = [str(r["name"]) for r in rows if r["status"] == "translated"]
            without = len(rows) - len(names)
        except (NotFound, ValueError, KeyError, OSError, pa.ArrowException) as e:
            run.problems[table] = f"{type(e).__name__}: {e}"
    looks = tuple(Look(n, album.file(f"{folder}/{n}.tiff", 160, 80, bright=True)) for n in spaced(names, PATCHES))
    return Patches(folder, stage.counts.get("patches"), without, looks)
