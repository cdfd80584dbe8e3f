"""A STAC item as one Sentinel-1 acquisition: which assets are VV and VH, and what need not be looked up in them.

Extensions: projection (1 and 2), sar, sat, eo or STAC 1.1's bands, file.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import shapely
from rasterio.crs import CRS
from shapely.geometry import shape

from sar2eo_dist.errors import BadInput
from sar2eo_dist.records import CITED, S1, S1_BANDS, Rejected, digest
from sar2eo_dist.sources.multiearth import date_fault
from sar2eo_dist.sources.scenes import crs_name, orbit_of

PROJECTION = ("proj:code", "proj:epsg", "proj:wkt2", "proj:transform", "proj:shape")
_EITHER = {*PROJECTION, "sar2eo:units", "sar2eo:quantity"}
#: of an asset, what is read
ASSET = _EITHER | {
    "href", "title", "type", "roles", "sar:polarizations", "eo:bands", "bands", "file:checksum", "file:size"
}  # fmt: skip
#: of an item, what is read
ITEM = _EITHER | {"datetime", "start_datetime", "updated", "platform", "sat:orbit_state"}
_PLATFORM = re.compile(r"sentinel-?1([a-d])", re.IGNORECASE)
_NO_DATA = {"thumbnail", "overview", "metadata", "visual"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One acquisition as an item has it: fields of records.SceneRef; crs "" and no transform where files must say."""

    uris: tuple[str, ...]
    digest: str
    date: dt.date | None
    orbit: str
    platform: str
    units: str
    quantity: str
    footprint: tuple[float, ...]
    crs: str = ""
    transform: tuple[float, float, float, float, float, float] | None = None
    height: int = 0
    width: int = 0


def entry(item: dict[str, Any], base: str, ring: tuple[float, ...] | None = None) -> Entry | Rejected:
    """The acquisition of an item (GeoJSON as a dictionary); Rejected where it has no VV and VH, or is no item.

    base: URI that relative hrefs are relative to; ring: the footprint where the caller has it, else of the geometry.
    """
    try:
        return _read(item, base, ring)
    except BadInput as e:
        return Rejected(S1, e.uri, e.reason, e.detail)
    except (TypeError, ValueError, AttributeError, KeyError, shapely.errors.ShapelyError) as e:
        return Rejected(S1, base, "unreadable", f"item {item.get('id')!r} is no STAC ({type(e).__name__}: {e})")


def _read(item: dict[str, Any], base: str, ring: tuple[float, ...] | None) -> Entry:
    properties = item.get("properties") or {}
    assets = _assets(item, base)
    uris = tuple(resolved(base, a["href"]) for a in assets)
    if ring is None:
        (ring,) = outlines([shape(item["geometry"]) if item.get("geometry") else None])
    marks = [(_unsigned(a["href"]), a.get("file:checksum"), a.get("file:size")) for a in assets]
    platform = str(properties.get("platform") or "unknown")
    numbered = _PLATFORM.fullmatch(platform)
    stated = [tuple(_said(k, a, properties) for k in PROJECTION) for a in assets]
    grid = _grid(*stated[0])
    if stated[-1] != stated[0] and _grid(*stated[-1]) != grid:
        raise BadInput("wrong_shape", uris[0], f"VV and VH are on two grids: {stated[0]} and {stated[-1]}")
    return Entry(
        uris,
        CITED + digest(item.get("id"), item.get("collection"), marks, properties.get("updated")),
        _date(properties, uris[0]),
        orbit_of(str(properties.get("sat:orbit_state") or "")),
        f"S1{numbered[1].upper()}" if numbered else platform,
        str(_said("sar2eo:units", assets[0], properties) or ""),
        str(_said("sar2eo:quantity", assets[0], properties) or ""),
        ring,
        *(grid or ("", None, 0, 0)),
    )


def _assets(item: dict[str, Any], base: str) -> list[dict[str, Any]]:
    """The assets of VV and of VH, or the one that holds both. Raises BadInput missing_band."""
    found: dict[str, list[dict[str, Any]]] = {"VV": [], "VH": [], "VV VH": []}
    exact = {
        k.upper(): a for k, a in (item.get("assets") or {}).items() if a and a.get("href") and k.upper() in S1_BANDS
    }
    if len(exact) == 2:
        return [exact[b] for b in S1_BANDS]
    for key, asset in (item.get("assets") or {}).items():
        kind = str((asset or {}).get("type") or "tiff").lower()
        if (
            asset
            and asset.get("href")
            and ("tiff" in kind or "zarr" in kind)
            and not _NO_DATA & set(asset.get("roles") or ())
        ):
            found.setdefault(" ".join(b for b in S1_BANDS if b in _polarisations(key, asset)), []).append(asset)
    if len(found["VV"]) == len(found["VH"]) == 1:
        return [found["VV"][0], found["VH"][0]]
    if len(found["VV VH"]) == 1 and not found["VV"] and not found["VH"]:
        return found["VV VH"]
    counts = ", ".join(f"{len(a)} of {k}" for k, a in found.items() if k)
    names = " ".join(item.get("assets") or ()) or "none"
    raise BadInput("missing_band", base, f"item {item.get('id')!r}: {counts} among its assets: {names}")


def _polarisations(key: str, asset: dict[str, Any]) -> set[str]:
    """What an asset's key says it holds; else its metadata; else its title."""
    bands = [
        str(b.get(k) or "") for n in ("eo:bands", "bands") for b in asset.get(n) or () for k in ("name", "description")
    ]
    listed = [str(p) for p in asset.get("sar:polarizations") or ()]
    for texts in ([key], listed, bands, [str(asset.get("title") or "")]):
        if words := {w for t in texts for w in re.split(r"[^A-Z0-9]+", t.upper())} & set(S1_BANDS):
            return words
    return set()


def _said(name: str, asset: dict[str, Any], properties: dict[str, Any]) -> Any:
    value = asset.get(name)
    return properties.get(name) if value is None else value


def _grid(
    code: Any, epsg: Any, wkt: Any, affine: Any, size: Any
) -> tuple[str, tuple[float, float, float, float, float, float], int, int] | None:
    """(CRS, affine, height, width) where the item has all of it, and sense."""
    text = code or (f"EPSG:{int(epsg)}" if epsg else wkt)
    if not text or affine is None or size is None or len(affine) not in (6, 9) or len(size) != 2:
        return None
    a, b, c, d, e, f = (float(v) for v in affine[:6])
    height, width = int(size[0]), int(size[1])
    crs = _crs(str(text))
    if not crs or not math.isfinite(a + b + c + d + e + f) or not a * e - b * d or min(height, width) < 1:
        return None
    return crs, (a, b, c, d, e, f), height, width


@functools.lru_cache(256)
def _crs(text: str) -> str:
    try:
        return crs_name(CRS.from_user_input(text))
    except ValueError:  # rasterio's CRSError is one
        return ""


def _date(properties: dict[str, Any], uri: str) -> dt.date | None:
    value = properties.get("datetime") or properties.get("start_datetime")
    if value is None:
        return None
    try:
        time = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(str(value))
        date = (time.astimezone(dt.UTC) if time.tzinfo else time).date()
    except (ValueError, OverflowError) as e:
        raise BadInput("bad_date", uri, f"datetime {value!r}: {e}") from e
    if fault := date_fault(date):
        raise BadInput("bad_date", uri, f"datetime: {fault}")
    return date


def _unsigned(href: str) -> str:
    """An href without its query: signatures change, files do not."""
    return href.partition("?")[0]


def resolved(base: str, href: str) -> str:
    """An href relative to the document `base`, as a URI."""
    if "://" in href:
        return href
    scheme, mark, path = base.rpartition("://")
    if not mark:
        return posixpath.normpath(posixpath.join(posixpath.dirname(base), href))
    host, slash, path = path.partition("/")
    return f"{scheme}://{host}{posixpath.normpath(posixpath.join(posixpath.dirname(slash + path), href))}"


def outlines(geometries: Iterable[Any]) -> list[tuple[float, ...]]:
    """The outline of each geometry, flat; of one in several parts its convex hull; () of none."""
    out = []
    for g in geometries:
        if g is not None and g.geom_type != "Polygon":
            g = g.convex_hull
        usable = g is not None and g.geom_type == "Polygon" and not g.is_empty
        out.append(tuple(shapely.get_coordinates(g.exterior).ravel().tolist()) if usable else ())
    return out
