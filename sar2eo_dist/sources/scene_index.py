"""Every Sentinel-1 raster that a mosaic can be made of, from a file, a folder, a list, STAC or a zarr store."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, NotFound
from sar2eo_dist.records import S1, S2, Rejected, SceneRef, digest
from sar2eo_dist.sources.scene_layout import acquisitions, product
from sar2eo_dist.sources.scene_stac import entries
from sar2eo_dist.sources.scenes import QUANTITIES, UNITS, OtherSensor, declared, open_scene
from sar2eo_dist.sources.stac_item import Entry
from sar2eo_dist.sources.warp import project
from sar2eo_dist.sources.zarr_scene import is_zarr

LONLAT = "EPSG:4326"
EDGE = 8  # points that stand for one edge of a footprint
EVERY = 100  # scenes between two reports of progress
_STAC = (".json", ".geojson", ".parquet", ".geoparquet")
#: of headers that say the impossible: a CRS without units, NaN, no UTF-8
_ODD = (RasterioError, ValueError, OverflowError)

Tell = Callable[[int, int], None]
Result = SceneRef | Rejected | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """Rasters that may be a scene. digest: "" where it takes a request; alone: one file of a folder, of any sensor."""

    uris: tuple[str, ...]
    digest: str = ""
    alone: bool = False


def index(
    uri: str,
    units: str = "",
    quantity: str = "",
    known: Iterable[SceneRef] = (),
    tell: Tell | None = None,
    threads: int = 16,
) -> tuple[list[SceneRef], list[Rejected]]:
    """Scenes in order of date (undated first) and URIs, and what cannot be one, in order of URI.

    uri: one GeoTIFF; a folder, searched recursively (scene_layout); a `.txt` list: a URI, or those of VV and VH, a line,
    relative to the list, # begins a comment; STAC `.json` or `.parquet` (scene_stac); a `.zarr` store (zarr_scene).
    units, quantity: in place of what tags (SAR2EO_UNITS, SAR2EO_QUANTITY) or items (sar2eo:units, sar2eo:quantity) say.
    known: of an earlier index with the same units and quantity: not opened again where the digest is the same.
    tell: told (scenes done, of all) now and then; threads: headers read side by side.

    Items that have projection, transform and shape are not opened. Rejected are files that `scenes.open_scene` refuses,
    those gone since they were listed, items without VV and VH, and a second mention of a scene (duplicate).
    Raises NotFound where `uri` is not there, BadInput where it is no list and no STAC, and storage's other errors.
    """
    earlier = {s.digest: s for s in known}
    found = list(_candidates(storage.absolute(uri), threads))
    todo, results = [], list[Result]()
    for each in found:
        done = _at_once(each, units, quantity, earlier)
        if isinstance(done, _Found | Entry):
            todo.append(done)
        else:
            results.append(done)
    tell = tell or (lambda done, total: None)
    tell(len(results), len(found))
    with ThreadPoolExecutor(threads, thread_name_prefix="headers") as pool:
        waiting = iter(todo)
        while batch := list(itertools.islice(waiting, EVERY)):
            results += pool.map(lambda each: _opened(each, units, quantity, earlier), batch)
            tell(len(results), len(found))
    return _ordered(results)


def _ordered(results: Iterable[Result]) -> tuple[list[SceneRef], list[Rejected]]:
    scenes: dict[tuple[str, ...], SceneRef] = {}
    rejected = []
    for each in results:
        if isinstance(each, Rejected):
            rejected.append(each)
        elif each and scenes.setdefault(each.uris, each) is not each:
            rejected.append(Rejected(S1, each.uri, "duplicate", "the scene is mentioned twice"))
    in_order = sorted(scenes.values(), key=lambda s: (s.date.toordinal() if s.date else 0, s.uris))
    return in_order, sorted(rejected, key=lambda r: (r.uri, r.reason, r.detail))


# what there is --------------------------------------------------------------------------------------------------------


def _candidates(uri: str, threads: int) -> Iterator[_Found | Entry | Rejected]:
    ending = uri.lower()
    if is_zarr(uri) or ending.endswith((".tif", ".tiff")):
        yield _Found((uri,))
    elif ending.endswith(".txt"):
        yield from _listed(uri)
    elif ending.endswith(_STAC):
        yield from entries(uri, threads)
    else:
        yield from _folder(uri)


def _folder(root: str) -> Iterator[_Found | Rejected]:
    marks: dict[str, str] = {}

    def objects() -> Iterator[storage.Info]:
        for page in storage.walk(root):
            marks.update((i.uri, i.digest) for i in page)
            yield from page

    for files in acquisitions(objects(), S1):
        if isinstance(files, Rejected):
            yield files
            continue
        uris = tuple(uri for _, uri in files.files)
        alone = not files.files[0][0]
        if not (alone and product(uris[0]).sensor == S2):
            mine = [marks[u] for u in uris]
            yield _Found(uris, mine[0] if alone else digest(*mine), alone)


def _listed(uri: str) -> Iterator[_Found]:
    try:
        lines = storage.read_bytes(uri).decode().splitlines()
    except UnicodeDecodeError as e:
        raise BadInput("unreadable", uri, f"no text ({e})") from e
    folder = uri.rpartition("/")[0]
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if len(words) > 2:
            raise BadInput("unreadable", uri, f"line {number} holds {len(words)} URIs: give one raster, or VV and VH")
        if words:
            yield _Found(tuple(storage.join(folder, word) for word in words))


# what it is -----------------------------------------------------------------------------------------------------------


def _at_once(
    each: _Found | Entry | Rejected, units: str, quantity: str, earlier: dict[str, SceneRef]
) -> _Found | Entry | Result:
    """What is known without asking the store; else what it was."""
    if isinstance(each, Rejected):
        return each
    if isinstance(each, Entry) and each.transform:
        return _cited(each, each.transform, units, quantity)
    if each.digest in earlier:  # by other URIs, perhaps: hrefs are signed anew
        return dataclasses.replace(earlier[each.digest], uris=each.uris)
    return each


def _cited(
    entry: Entry, transform: tuple[float, float, float, float, float, float], units: str, quantity: str
) -> Result:
    """The scene of an item that says all itself."""
    try:
        units = declared("units", units or entry.units, UNITS, entry.uris[0])
        quantity = declared("quantity", quantity or entry.quantity, QUANTITIES, entry.uris[0])
    except BadInput as e:
        return Rejected(S1, e.uri, e.reason, f"{e.detail} (of an item: the property sar2eo:units, sar2eo:quantity)")
    return SceneRef(
        entry.uris, entry.crs, transform, entry.width, entry.height, entry.date, entry.orbit, entry.platform, units,
        quantity, entry.digest, entry.footprint,
    )  # fmt: skip


def _opened(each: _Found | Entry, units: str, quantity: str, earlier: dict[str, SceneRef]) -> Result:
    """A scene by its header."""
    try:
        if isinstance(each, Entry):
            scene = open_scene(each.uris, units or each.units, quantity or each.quantity)
            return dataclasses.replace(
                scene,
                date=each.date or scene.date,
                orbit=scene.orbit if each.orbit == "unknown" else each.orbit,
                platform=scene.platform if each.platform == "unknown" else each.platform,
                digest=each.digest,
                footprint=each.footprint,
            )
        if not each.digest and earlier and not is_zarr(each.uris[0]):
            marks = [storage.info(u).digest for u in each.uris]
            if (now := marks[0] if len(marks) == 1 else digest(*marks)) in earlier:
                return earlier[now]
        return open_scene(each.uris, units, quantity)
    except OtherSensor as e:
        alone = isinstance(each, _Found) and each.alone
        return None if alone else Rejected(S1, e.uri, e.reason, e.detail)
    except BadInput as e:
        return Rejected(S1, e.uri, e.reason, e.detail)
    except NotFound as e:
        return Rejected(S1, e.uri, "unreadable", "there is no such file")
    except _ODD as e:
        return Rejected(S1, each.uris[0], "unreadable", f"header: {type(e).__name__}: {e}")


# where it is ----------------------------------------------------------------------------------------------------------


def footprints(refs: Sequence[SceneRef], crs: str) -> NDArray[np.object_]:
    """(n,) shapely polygons in a CRS, one a scene: its footprint, or else the rectangle of its raster.

    Edges are cut into EDGE parts before they are transformed. What lies nowhere in the CRS is an empty polygon.
    """
    out = np.full(len(refs), shapely.Polygon(), object)
    groups: dict[str, list[int]] = {}
    for i, ref in enumerate(refs):
        groups.setdefault(LONLAT if ref.footprint else ref.crs, []).append(i)
    for source, mine in groups.items():
        rings = [_ring(refs[i]) for i in mine]
        counts = np.array([len(r) - 1 for r in rings]) * EDGE  # points: each edge without its end
        points = np.concatenate(rings)
        ends = np.cumsum([len(r) for r in rings])
        edges = np.delete(np.arange(len(points)), ends - 1)  # all but the last point of each ring begin one
        part = np.arange(EDGE)[:, None] / EDGE
        dense = (points[edges, None] * (1 - part) + points[edges + 1, None] * part).reshape(-1, 2)
        dense = project(source, crs, dense[:, 0], dense[:, 1]).T
        of = np.repeat(np.arange(len(mine)), counts)
        lost = np.zeros(len(mine), bool)
        np.logical_or.at(lost, of, ~np.isfinite(dense).all(axis=1))
        whole = np.flatnonzero(~lost)
        if len(whole):
            keep = ~lost[of]
            number = np.cumsum(~lost) - 1
            out[np.array(mine)[whole]] = shapely.polygons(shapely.linearrings(dense[keep], indices=number[of[keep]]))
    return out


def _ring(ref: SceneRef) -> NDArray[np.float64]:
    """(n + 1, 2) closed."""
    if ref.footprint:
        ring = np.reshape(ref.footprint, (-1, 2))
        return ring if (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])
    a, b, c, d, e, f = ref.transform
    w, h = ref.width, ref.height
    at = np.array([(0, 0), (w, 0), (w, h), (0, h), (0, 0)], np.float64)
    corners: NDArray[np.float64] = at @ np.array([(a, d), (b, e)]) + (c, f)
    return corners
