"""The translated mosaic (and patches) as the page shows them: quick-looks, georeference, where the files lie."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from PIL import Image
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform_bounds

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.report.facts import spaced
from sar2eo_dist.report.images import ERROR_WHITE, Album, Picture, brightened
from sar2eo_dist.report.load import Run, part
from sar2eo_dist.report.text import count, minus, number

LOOKS = (("sar_quicklook", "sar", "SAR"), ("quicklook", "translated", "Translated"), ("truth_quicklook", "true", "Truth"),
         ("error_quicklook", "error", "Typical error"))  # fmt: skip
FILES = ("mosaic", "vrt", "error_vrt", "stac", "quicklook")
PALETTE = "viridis"
PATCHES = 6  # shown
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Look:
    """name: of a layer; apart: it does not cover the same ground as the translated picture; more: what its colours say."""

    label: str
    picture: Picture
    name: str = ""
    apart: bool = False
    more: Markup | str = ""


@dataclass(frozen=True, slots=True)
class Mosaic:
    """looks: what pictures there are; facts: (name, value) in words; files: (name, path in the run folder); km2: ground
    of the valid pixels, None where it is not known."""

    looks: tuple[Look, ...]
    facts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    km2: float | None


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
    files = tuple((n, path) for n, path in outputs.items() if n.partition(" ")[0] in FILES)  # of every UTM zone
    facts, pixel = _georeference(run, outputs["mosaic"]) if "mosaic" in outputs else ([], None)
    pixels, valid = (stage.counts.get(k) if stage else None for k in ("pixels", "valid pixels"))
    if pixels and valid is not None:
        facts.append(("Valid", f"{count(valid)} of {count(pixels)} pixels ({100 * valid / pixels:.1f} %)"))
    km2 = valid * pixel / 1e6 if valid and pixel else None
    return Mosaic(_layers(outputs, album), tuple(facts), files, km2)


def _layers(outputs: Mapping[str, str], album: Album) -> tuple[Look, ...]:
    """The quick-looks of the first mosaic, and where the translated one has data."""
    found = [(name, label, outputs[key]) for key, name, label in LOOKS if key in outputs]
    side = 1024 if len(found) < 4 else 900
    looks = []
    for name, label, path in found:
        if name == "error":
            looks.append(Look(label, album.file(path, side, 86, _coloured), name, more=_scale()))
        else:
            looks.append(Look(label, album.file(path, side), name))
    if "quicklook" in outputs:
        more = "green: the mosaic has data; grey: no radar image covers it"
        looks.append(Look("Valid", album.file(outputs["quicklook"], side, 80, _mask), "valid", more=more))
    own = next((k.picture for k in looks if k.name == "translated" and k.picture.uri), None)
    return tuple(dataclasses.replace(k, apart=own is not None and not _fits(k.picture, own)) for k in looks)


def _fits(a: Picture, b: Picture) -> bool:
    """Whether two pictures can cover the same ground: the same proportions, to a pixel or two."""
    return not a.uri or abs(a.width * b.height - b.width * a.height) <= 2 * max(a.width, a.height, b.width, b.height)


def _mask(image: Image.Image) -> Image.Image:
    """Opacity as colour: grey where there is no data, green where there is."""
    share = np.asarray(image.convert("RGBA"))[..., 3:] / 255
    ends = np.array([[150, 152, 148], [47, 138, 99]])
    return Image.fromarray(np.round(ends[0] * (1 - share) + ends[1] * share).astype(np.uint8))


def _coloured(image: Image.Image) -> Image.Image:
    """An error quick-look (grey, 0..255 as 0..ERROR_WHITE DN) in colours; no data stays transparent."""
    pixels = np.asarray(image.convert("RGBA"))
    colours = matplotlib.colormaps[PALETTE](np.arange(256), bytes=True)[pixels[..., 0]]
    return Image.fromarray(np.dstack([colours[..., :3], pixels[..., 3]]))


def _scale() -> Markup:
    """The legend of `_coloured`."""
    stops = ", ".join(matplotlib.colors.to_hex(matplotlib.colormaps[PALETTE](t)) for t in np.linspace(0, 1, 9))
    return Markup(  # noqa: S704  colours of our own
        f'<span class="scale"><i style="background:linear-gradient(to right, {stops})"></i>0 to {ERROR_WHITE} DN and more: '
        "half of the pixels like it are off by less</span>"
    )


def _georeference(run: Run, path: str) -> tuple[list[tuple[str, str]], float | None]:
    """Size, CRS and bounds from the store's own metadata, and a pixel's area, m2 (None in degrees); what it does not say
    is left out, what is wrong is named."""
    try:
        group = _metadata(run, f"{path}/zarr.json").get("attributes") or {}
        height, width = (int(n) for n in _metadata(run, f"{path}/rgb/zarr.json")["shape"][-2:])
        transform, crs = Affine(*(float(v) for v in group["transform"][:6])), CRS.from_user_input(group["crs"])
        area = None if crs.is_geographic else abs(transform.a * transform.e)
        return _described(height, width, transform, crs), area
    except NotFound:
        run.problems[path] = "the mosaic's metadata is not there"
    except (ValueError, TypeError, KeyError, AttributeError, CRSError, RasterioError) as e:
        run.problems[path] = f"no georeference ({type(e).__name__}: {e})"
    return [], None


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
    looks = tuple(Look(n, album.file(f"{folder}/{n}.tiff", 160, 80, brightened)) for n in spaced(names, PATCHES))
    return Patches(folder, stage.counts.get("patches"), without, looks)
