"""Georeferenced scenes (COGs of Sentinel-1 and Sentinel-2) as 256 x 256 tiles of one lattice.

The lattice is absolute in each scene's own CRS: tiles begin at multiples of 256 pixels from its origin, so scenes of any
extent that share a pixel grid give the same tiles, S1 and S2 alike. What is laid out how: `scene_layout`; what headers
must say: `scene_header`; what S2's numbers mean: `reflectance`.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.warp import transform

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, NotFound, StorageError
from sar2eo_dist.records import PATCH, S1, S1_BANDS, S2, S2_BANDS, Rejected, TileRef, to_table
from sar2eo_dist.sources import multiearth, reflectance, scenes
from sar2eo_dist.sources.multiearth import EO, SCHEMA, Scan, Seen
from sar2eo_dist.sources.raster import gdal
from sar2eo_dist.sources.scene_header import Plane, Scene
from sar2eo_dist.sources.scene_layout import Files, acquisitions, product

KIND = "scenes"
HEADERS = 8  # scenes whose headers are read side by side
ODD = (
    RasterioError,
    ValueError,
    OverflowError,
)  # of headers that say the impossible: a CRS without units, NaN, no UTF-8
OPEN_SCENES = 2  # kept open by one thread
STRIP = 16  # tiles of one row of the lattice that `read_many` reads at once
#: scene classification (SCL): cloud of medium and of high probability, and thin cirrus, as bits of QA60. Shadow is none.
SCL_BITS = {8: 1 << 10, 9: 1 << 10, 10: 1 << 11}
_QA60 = np.array([SCL_BITS.get(c, 0) for c in range(12)], np.uint16)
_local = threading.local()

A = TypeVar("A")
B = TypeVar("B")
Listed = tuple[pa.Table | None, list[Rejected]]
Read = NDArray[np.float32] | EO | BadInput | StorageError


# listing --------------------------------------------------------------------------------------------------------------


def scan(root: str, sensor: str, seen: Seen, units: str = "", quantity: str = "") -> Scan:
    """Tiles of one sensor below a folder: one table a scene, rows in order of row and column; see `sources.scan`.

    Scenes come as they are listed, so that neighbours in the listing are neighbours in a file; a key may come again in
    another scene (overlapping scenes of one day). `seen` is told of objects of any kind; units, quantity: of S1 scenes,
    in place of their tags. Rejected are scenes that cannot be read, by the reasons of `Scene`, those smaller than a tile
    (wrong_shape), and tiles of one scene at one place_key (duplicate: only where 10 m of the CRS are less on the ground).
    """
    multiearth.required(sensor)
    rejected: list[Rejected] = []

    def one(found: Files | Rejected) -> Listed:
        return (None, [found]) if isinstance(found, Rejected) else _list(found, sensor, units, quantity)

    def tables() -> Iterator[pa.Table]:
        for table, bad in _in_order(one, acquisitions(_objects(root, seen), sensor), HEADERS):
            rejected.extend(bad)
            if table is not None:
                yield table

    return tables(), rejected


def _objects(root: str, seen: Seen) -> Iterator[storage.Info]:
    count = 0
    for page in storage.walk(root):
        count += len(page)
        seen(count)
        yield from page


def _in_order(fn: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`map` by threads; at most twice as many items are under way."""
    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="headers") as pool:
        waiting = deque(pool.submit(fn, item) for item in itertools.islice(items, 2 * threads))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(fn, item) for item in itertools.islice(items, 1))
            yield done


def _list(files: Files, sensor: str, units: str, quantity: str) -> Listed:
    """The tiles of one scene from its headers, and what it cannot give."""
    if not files.files[0][0] and product(files.uri).sensor == (S2 if sensor == S1 else S1):
        return None, []
    try:
        scene = Scene(files.files, sensor, units, quantity)
    except BadInput as e:
        return None, [Rejected(sensor, e.uri, e.reason, e.detail)]
    except NotFound as e:
        return None, [Rejected(sensor, e.uri, "unreadable", "gone since it was listed")]
    except ODD as e:
        return None, [Rejected(sensor, files.uri, "unreadable", f"header: {type(e).__name__}: {e}")]
    try:
        return _tiles(scene, sensor, (units, quantity)) if scene.bands else (None, [])
    except BadInput as e:
        return None, [Rejected(sensor, e.uri, e.reason, e.detail)]
    except ODD as e:
        return None, [Rejected(sensor, files.uri, "unreadable", f"header: {type(e).__name__}: {e}")]
    finally:
        scene.close()


def _tiles(scene: Scene, sensor: str, given: tuple[str, str]) -> Listed:
    date, orbit, platform = scene.acquired()
    uris, grid = tuple(r.info.uri for r in scene.rasters), scene.grid
    corners = grid.tiles()
    if not len(corners):
        detail = f"{grid} holds no whole {PATCH} x {PATCH} tile of the lattice"
        return None, [Rejected(sensor, uris[0], "wrong_shape", detail)]
    y, x = (-(grid.row + corners[:, 0] + PATCH / 2) * grid.gsd, (grid.col + corners[:, 1] + PATCH / 2) * grid.gsd)
    with gdal():
        lons, lats = transform(scene.crs, "EPSG:4326", x, y)
    if not np.isfinite([lons, lats]).all():
        raise BadInput("unreadable", uris[0], f"{grid} in {scene.crs} lies nowhere on Earth")
    bands = scene.bands + ((scene.units, scene.quantity) if any(given) else ())  # which tags will not say to a reader
    found: dict[str, TileRef] = {}
    rejected = []
    for (row, col), lon, lat in zip(corners.tolist(), lons, lats, strict=True):
        mark = scene.digest(row, col)
        ref = TileRef(sensor, lon, lat, date, KIND, bands, uris, mark, (row, col), orbit, platform)
        if (first := found.setdefault(ref.key, ref)) is not ref:
            detail = f"the tile at row {row}, column {col} has the key {ref.key} of that at {first.rows}"
            rejected.append(Rejected(sensor, uris[0], "duplicate", detail))
    table = to_table(list(found.values()), TileRef)
    return table.add_column(0, SCHEMA.field("key"), pa.array(list(found), pa.string())), rejected


# pixels ---------------------------------------------------------------------------------------------------------------


def read_sar(ref: TileRef) -> NDArray[np.float32]:
    """See `sources.read_sar`."""
    return _sar(*_read(ref, PATCH), 0)


def read_eo(ref: TileRef) -> EO:
    """See `sources.read_eo`. qa60 of a scene classification: SCL_BITS; its class 0 is no data."""
    return _eo(*_read(ref, PATCH), 0)


def read_many(refs: Iterable[TileRef]) -> Iterator[tuple[TileRef, Read]]:
    """See `sources.read_many`: by strips of at most STRIP neighbours, the next being read while one is taken.

    One thread reads them in order: each block of a file is fetched and decoded once, those of a strip in one go.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="strips") as pool:
        waiting: deque[Future[list[tuple[TileRef, Read]]]] = deque()
        for strip in _strips(refs):
            waiting.append(pool.submit(_strip, strip))
            if len(waiting) > 1:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _strips(refs: Iterable[TileRef]) -> Iterator[list[TileRef]]:
    """Runs of neighbours in one row of one scene."""
    strip: list[TileRef] = []
    for ref in refs:
        if strip and (
            len(strip) == STRIP
            or (ref.uris, ref.bands) != (strip[0].uris, strip[0].bands)
            or ref.rows != (strip[0].rows[0], strip[-1].rows[1] + PATCH)
        ):
            yield strip
            strip = []
        strip.append(ref)
    if strip:
        yield strip


def _strip(refs: list[TileRef]) -> list[tuple[TileRef, Read]]:
    cut = _sar if refs[0].sensor == S1 else _eo
    try:
        scene, planes = _read(refs[0], PATCH * len(refs))
    except StorageError as e:
        return [(ref, e) for ref in refs]
    except BadInput as e:
        # one torn block spoils only the tiles that it touches
        return [(refs[0], e)] if len(refs) == 1 else [done for ref in refs for done in _strip([ref])]
    out: list[tuple[TileRef, Read]] = []
    for i, ref in enumerate(refs):
        try:
            _check(scene, ref)
            out.append((ref, cut(scene, planes, i * PATCH)))
        except BadInput as e:
            out.append((ref, e))
    return out


def _read(ref: TileRef, width: int) -> tuple[Scene, dict[str, Plane]]:
    """The scene of a tile, kept open by this thread, and `width` columns of it from the tile's first pixel on."""
    cache: OrderedDict[tuple[tuple[str, ...], ...], Scene] = _local.__dict__.setdefault("cache", OrderedDict())
    name = ref.uris, ref.bands
    if name in cache and cache[name].digest(*ref.rows) != ref.digest:
        cache.pop(name).close()  # this thread saw another version than the listing did
    if name not in cache:
        bands = ref.bands if len(ref.uris) > 1 else ("",)
        given = ref.bands[2:] if ref.sensor == S1 else ()
        cache[name] = Scene(tuple(zip(bands, ref.uris, strict=False)), ref.sensor, *given)
        if len(cache) > OPEN_SCENES:
            cache.popitem(last=False)[1].close()
    cache.move_to_end(name)
    scene = cache[name]
    _check(scene, ref)
    try:
        row, col = ref.rows
        return scene, scene.read(row, col, width)
    except Exception:
        cache.pop(name).close()  # GDAL may have kept half of what it asked for
        raise


def _check(scene: Scene, ref: TileRef) -> None:
    if scene.digest(*ref.rows) != ref.digest:
        sizes = ", ".join(f"{r.info.size} bytes" for r in scene.rasters)
        raise BadInput("unreadable", ref.uris[0], f"changed since it was listed ({sizes} now): list it again")


def _sar(scene: Scene, planes: dict[str, Plane], at: int) -> NDArray[np.float32]:
    """(2, 256, 256) float32 dB of the columns from `at` on."""
    raw, valid = (np.stack([planes[b][i][:, at : at + PATCH] for b in S1_BANDS]) for i in (0, 1))
    db = scenes.decibel(raw, valid, [scene.scale(b) for b in S1_BANDS], scene.units)
    if not (data := np.isfinite(db)).all(axis=0).any():
        detail = f"no pixel with VV and VH (finite: VV {data[0].sum()}, VH {data[1].sum()})"
        raise BadInput("all_nodata", scene.uri(S1_BANDS[0]), detail)
    return db


def _eo(scene: Scene, planes: dict[str, Plane], at: int) -> EO:
    """DN and mask of the columns from `at` on."""
    cut = {band: (raw[:, at : at + PATCH], valid[:, at : at + PATCH]) for band, (raw, valid) in planes.items()}
    bands = [multiearth.as_dn(scene.dn(b, cut[b]), scene.uri(b), b, any_integer=True) for b in S2_BANDS]
    qa60 = None
    if "SCL" in cut:
        raw, valid = cut["SCL"]
        classes = np.where(valid, raw, np.zeros((), raw.dtype))
        if raw.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= len(_QA60):
            detail = f"SCL is {raw.dtype} of {classes.min()}..{classes.max()}: classes are 0..{len(_QA60) - 1}"
            raise BadInput("wrong_dtype", scene.uri("SCL"), detail)
        qa60 = _QA60.take(classes)
        if (classes == 0).any():
            for band in bands:
                band[classes == 0] = 0
    elif "QA60" in cut:
        raw, valid = cut["QA60"]
        stored = np.where(valid, raw, np.zeros((), raw.dtype))
        qa60 = multiearth.as_dn(stored, scene.uri("QA60"), "QA60", any_integer=True)
    eo = multiearth.eo_patch(bands, qa60, scene.uri(S2_BANDS[0]))
    reflectance.check_offset(eo.bands, scene.offset, scene.uri(S2_BANDS[0]))
    return replace(eo, offset=scene.offset)
