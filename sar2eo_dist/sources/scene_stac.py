"""STAC as a list of Sentinel-1 rasters: JSON followed by its links, and GeoParquet read by batches of rows.

What the items themselves say: `stac_item`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, NotFound
from sar2eo_dist.records import S1, Rejected
from sar2eo_dist.sources.ranged import ranged
from sar2eo_dist.sources.stac_item import ASSET, ITEM, Entry, entry, outlines, resolved

ROWS = 8192  # of a GeoParquet file, decoded at once
Document = tuple[list[Entry | Rejected], list[str]]


def entries(uri: str, threads: int) -> Iterator[Entry | Rejected]:
    """Every item of a STAC document: of a `.parquet` file, or an Item, ItemCollection, Collection or Catalog in JSON.

    Collections and catalogues are followed by their links (child, item), side by side; relative hrefs are resolved against
    the document, of an item within another document against its own `self` link first. Rejected are items without VV and
    VH, with an impossible date, and links that lead nowhere. Raises BadInput where `uri` itself is no STAC, and
    storage's errors.
    """
    if uri.lower().endswith((".parquet", ".geoparquet")):
        yield from _rows(uri)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="stac") as pool:
        seen, wave = {uri}, [_read(uri)]
        while wave:
            yield from (each for found, _ in wave for each in found)
            links = dict.fromkeys(link for _, more in wave for link in more if link not in seen)
            seen.update(links)
            wave = list(pool.map(_tried, links))


def _tried(uri: str) -> Document:
    try:
        return _read(uri)
    except NotFound:
        return [Rejected(S1, uri, "unreadable", "a link of the catalogue leads to nothing")], []
    except BadInput as e:
        return [Rejected(S1, e.uri, e.reason, e.detail)], []


def _read(uri: str) -> Document:
    """The items of one document, and where its links lead."""
    document = _document(uri)
    if document["type"] == "Feature":
        return [entry(document, uri)], []
    if document["type"] == "FeatureCollection":
        items = document["features"]
        return [entry(i, _base(i, uri)) if isinstance(i, dict) else _no_item(uri, i) for i in items], []
    return [], [resolved(uri, x["href"]) for x in _links(document, ("child", "item"))]


def _no_item(uri: str, what: Any) -> Rejected:
    return Rejected(S1, uri, "unreadable", f"a feature is {str(what)[:40]!r}: no STAC Item")


def _document(uri: str) -> dict[str, Any]:
    try:
        document = json.loads(storage.read_bytes(uri))
    except ValueError as e:
        raise BadInput("unreadable", uri, f"no JSON ({e})") from e
    kind = document.get("type") if isinstance(document, dict) else None
    if kind not in ("Feature", "FeatureCollection", "Collection", "Catalog") or (
        kind == "FeatureCollection" and not isinstance(document.get("features"), list)
    ):
        raise BadInput("unreadable", uri, f"type {kind!r}: no STAC Item, ItemCollection, Collection or Catalog")
    return dict(document)


def _links(document: dict[str, Any], kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    return [x for x in document.get("links") or () if isinstance(x, dict) and x.get("rel") in kinds and x.get("href")]


def _base(item: dict[str, Any], where: str) -> str:
    """What an item's relative hrefs are relative to, where it lies in the document `where`."""
    return next((resolved(where, x["href"]) for x in _links(item, ("self",))), where)


# GeoParquet -----------------------------------------------------------------------------------------------------------


def _rows(uri: str) -> Iterator[Entry | Rejected]:
    """Items of a GeoParquet file, as stac-geoparquet lays them out; columns that nobody asks for are not fetched."""
    try:
        file = pq.ParquetFile(ranged(uri))
        known = file.schema_arrow
        if missing := [n for n in ("id", "assets") if n not in known.names]:
            raise BadInput("unreadable", uri, f"no STAC GeoParquet: no column {' '.join(missing)}")
        columns = [n for n in known.names if n in ITEM | {"id", "collection", "geometry", "links"}]
        columns += [f"assets.{a.name}.{f.name}" for a in known.field("assets").type for f in a.type if f.name in ASSET]
        for batch in file.iter_batches(ROWS, columns=columns):
            yield from _batch(batch, uri)
    except (pa.ArrowException, TypeError) as e:
        raise BadInput("unreadable", uri, f"does not read as GeoParquet ({e})") from e


def _batch(batch: pa.RecordBatch, uri: str) -> Iterator[Entry | Rejected]:
    rings: Sequence[tuple[float, ...]] = [()] * len(batch)
    if "geometry" in batch.schema.names:
        rings = outlines(shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False), on_invalid="ignore"))
        batch = batch.drop_columns(["geometry"])
    for row, ring in zip(
        pa.Table.from_batches([batch]).cast(_micro(batch.schema), safe=False).to_pylist(), rings, strict=True
    ):
        links = {"links": row.get("links")}
        assets = {k: v for k, v in (row["assets"] or {}).items() if v}
        item = {"id": row["id"], "collection": row.get("collection"), "properties": row, "assets": assets}
        yield entry(item, _base(links, uri), ring)


def _micro(known: pa.Schema) -> pa.Schema:
    """Times in microseconds: Python's have no more."""
    for i, field in enumerate(known):
        if pa.types.is_timestamp(field.type):
            known = known.set(i, field.with_type(pa.timestamp("us", field.type.tz)))
    return known
