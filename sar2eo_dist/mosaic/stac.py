"""A mosaic as a STAC catalogue: one Item a block, one Collection over them. Bytes out, nothing is written.

STAC 1.1 with the extensions projection 2.0 and, where properties use it, processing 1.2. Links are as given, best relative,
so that the folder can be moved; no date but the imagery's own enters, so equal arguments give equal bytes.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pystac
import rasterio.warp

from sar2eo_dist.mosaic import geozarr
from sar2eo_dist.mosaic.grid import Transform

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
EDGE = 4  # pieces that an edge of a footprint is cut into: 20 km of UTM are then within a metre of a chord
#: STAC knows no item without a time, so what is undated may be of any day of Sentinel-1: from its launch to far ahead
SINCE, UNTIL = dt.date(2014, 4, 3), dt.date(2100, 12, 31)
BBox = tuple[float, float, float, float]
Interval = tuple[dt.date | None, dt.date | None]


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of an item: href relative to the item's own file (or any URI), media type, roles, names of its bands."""

    href: str
    media_type: str
    roles: tuple[str, ...] = ("data",)
    title: str = ""
    bands: tuple[str, ...] = ()

    def pystac(self) -> pystac.Asset:
        """The same as pystac has it."""
        bands = {"bands": [{"name": b} for b in self.bands]} if self.bands else {}
        return pystac.Asset(self.href, self.title or None, None, self.media_type, list(self.roles), bands)


def footprint(crs: str, transform: Transform, height: int, width: int) -> list[tuple[float, float]]:
    """The outline of a raster as a closed ring of (longitude, latitude), anticlockwise, to 1e-7 degrees (1 cm)."""
    across, down = np.linspace(0, width, EDGE + 1), np.linspace(0, height, EDGE + 1)
    zero = np.zeros(EDGE)
    cols = np.concatenate([zero, across[:-1], zero + width, across[:0:-1]])  # down the left side, then round
    rows = np.concatenate([down[:-1], zero + height, down[:0:-1], zero])
    a, b, c, d, e, f = transform
    xs, ys = rasterio.warp.transform(
        geozarr.parse(crs), "EPSG:4326", (a * cols + b * rows + c).tolist(), (d * cols + e * rows + f).tolist()
    )
    ring = [(round(x, 7), round(y, 7)) for x, y in zip(xs, ys, strict=True)]
    twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True))
    ring = ring if twice >= 0 else ring[::-1]
    return [*ring, ring[0]]


def bbox(ring: Iterable[tuple[float, float]]) -> BBox:
    """(west, south, east, north) of a ring of (longitude, latitude)."""
    xs, ys = zip(*ring, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def item(
    key: str,
    crs: str,
    transform: Transform,
    height: int,
    width: int,
    assets: Mapping[str, Asset],
    start: dt.date | None,
    end: dt.date | None,
    properties: Mapping[str, Any],
    derived_from: Iterable[str] = (),
    collection: tuple[str, str] | None = None,
) -> bytes:
    """One block as a STAC Item, JSON.

    key: its id; crs: "EPSG:n" or WKT; transform, height, width: the block's own affine and pixels; start, end: first and last
    acquisition day (UTC) of what it is made of. An unknown one becomes SINCE or UNTIL, and `sar2eo:undated` is true: STAC
    wants a time, and these days bound it. properties: more of them; derived_from: hrefs of the scenes, in the order given;
    collection: (id, href) of the Collection. Raises ConfigError for an unknown CRS.
    """
    system, ring = geozarr.parse(crs), footprint(crs, transform, height, width)
    about = dict(properties)
    if start is None or end is None:
        about["sar2eo:undated"] = True
    if system.is_projected:
        about["gsd"] = math.hypot(transform[0], transform[3]) * system.linear_units_factor[1]
    about |= geozarr.system(crs) | {"proj:shape": [height, width], "proj:transform": [float(v) for v in transform]}
    extensions = [PROJECTION] + ([PROCESSING] if any(k.startswith("processing:") for k in about) else [])
    geometry = {"type": "Polygon", "coordinates": [[list(p) for p in ring]]}
    made = pystac.Item(
        key, geometry, list(bbox(ring)), None, about, _moment(start or SINCE, False), _moment(end or UNTIL, True),
        extensions, collection=collection[0] if collection else None,
    )  # fmt: skip
    for name, asset in assets.items():
        made.add_asset(name, asset.pystac())
    if collection:
        made.add_links([pystac.Link(r, collection[1], pystac.MediaType.JSON) for r in ("root", "parent", "collection")])
    made.add_links([pystac.Link(pystac.RelType.DERIVED_FROM, href) for href in derived_from])
    return _bytes(made)


def collection(
    name: str,
    title: str,
    description: str,
    items: Iterable[tuple[str, str, BBox, Interval]],
    license_id: str,
    href: str = "./collection.json",
    item_assets: Mapping[str, Asset] | None = None,
    assets: Mapping[str, Asset] | None = None,
    summaries: Mapping[str, Any] | None = None,
    derived_from: Iterable[str] = (),
) -> bytes:
    """All blocks as a STAC Collection, JSON; with a link to each item.

    name: its id; items: (key, href relative to the collection, bbox in degrees, (first, last) acquisition day) each; the
    extent is what they cover together, open-ended where one is undated, the world where there is none. license_id: an SPDX
    identifier or "other"; href: of the collection itself; item_assets: what each item has (hrefs are not read); assets: files
    of the whole (the zarr store, the VRT, the quick-look); summaries: values that properties of items take.
    """
    listed = list(items)
    days = [interval for *_, interval in listed] or [(None, None)]
    first, last = [s for s, _ in days if s], [e for _, e in days if e]
    boxes = np.array([box for _, _, box, _ in listed] or [(-180.0, -90.0, 180.0, 90.0)], np.float64)
    around = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    extent = pystac.Extent(
        pystac.SpatialExtent([around]),
        pystac.TemporalExtent([[
            _moment(min(first), False) if len(first) == len(days) else None,
            _moment(max(last), True) if len(last) == len(days) else None,
        ]]),
    )  # fmt: skip
    made = pystac.Collection(
        name, description, extent, title, license=license_id, assets={n: a.pystac() for n, a in (assets or {}).items()},
        summaries=pystac.Summaries(dict(summaries or {})),
    )  # fmt: skip
    if item_assets:
        definitions = {n: a.pystac().to_dict() for n, a in item_assets.items()}
        made.extra_fields["item_assets"] = {
            n: {k: v for k, v in d.items() if k != "href"} for n, d in definitions.items()
        }
    made.clear_links()  # pystac's own link to the root is the object itself
    made.add_link(pystac.Link(pystac.RelType.ROOT, href, pystac.MediaType.JSON))
    made.add_links([pystac.Link(pystac.RelType.ITEM, at, pystac.MediaType.GEOJSON, key) for key, at, *_ in listed])
    made.add_links([pystac.Link(pystac.RelType.DERIVED_FROM, uri) for uri in derived_from])
    return _bytes(made)


def _moment(day: dt.date, end: bool) -> dt.datetime:
    """The first or the last second of a day, UTC."""
    return dt.datetime.combine(day, dt.time(23, 59, 59) if end else dt.time(), dt.UTC)


def _bytes(made: pystac.Item | pystac.Collection) -> bytes:
    tree = made.to_dict(include_self_link=False, transform_hrefs=False)
    return (json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
