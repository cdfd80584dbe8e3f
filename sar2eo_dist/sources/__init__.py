"""What lies in a bucket: MultiEarth patches (TIFF folders, NetCDF files), ready pairs, scenes, and a synthetic world.

Listing gives pointers (`records.TileRef`), reading gives pixels; everything goes through `storage`, so any fsspec URI
will do. Layouts: those of the challenge's official loaders (MIT-AI-Accelerator/multiearth-challenge), and folder pairs as
pix2pix and pix2pixHD take them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, ConfigError, SourceChanged, StorageError
from sar2eo_dist.records import S1, Rejected, TileRef, by_key, digest, from_table
from sar2eo_dist.sources import folder_pair, multiearth_netcdf, multiearth_tiff, scene_tiles
from sar2eo_dist.sources.folder_pair import FolderPair, list_pairs
from sar2eo_dist.sources.multiearth import EO, Scan, Seen

__all__ = [
    "EO",
    "FolderPair",
    "Read",
    "list_pairs",
    "list_tiles",
    "read_eo",
    "read_many",
    "read_sar",
    "scan",
    "unchanged",
]

THREADS = 16  # tiles that one `read_many` fetches side by side from an object store
Read = NDArray[np.float32] | EO | BadInput | StorageError

#: kind -> module with scan(root, sensor, seen); read_sar(ref) and read_eo(ref), which threads may call at once; and
#: read_many(refs) where it knows better than that
_READERS: dict[str, ModuleType] = {
    "multiearth_tiff": multiearth_tiff,
    "multiearth_netcdf": multiearth_netcdf,
    folder_pair.KIND: folder_pair,
    scene_tiles.KIND: scene_tiles,
}


def _reader(kind: str) -> ModuleType:
    if kind not in _READERS:
        raise ConfigError(f"unknown data.kind {kind!r}; known: {', '.join(_READERS)}")
    return _READERS[kind]


def scan(kind: str, root: str, sensor: str, seen: Seen | None = None, units: str = "", quantity: str = "") -> Scan:
    """Every acquisition of one sensor below `root` as tables of columns, and what could not become one.

    kind: "multiearth_tiff" or "scenes" (root is a folder, searched recursively) or "multiearth_netcdf" (a file), any
    fsspec URI; sensor: "s1" or "s2"; what belongs to other sensors is passed over in silence; seen: told the number of
    objects (of NetCDF: rows) listed so far, about once a page; units, quantity: of S1 scenes whose tags do not say.

    Returns (tables, rejected). The tables have `multiearth.SCHEMA`: `key`, then the fields of TileRef; at most BATCH rows
    each. MultiEarth's are in order of date and key over all tables, no key twice; all is listed before this returns, as numbers
    and bytes, and tables are built as they are asked for. Scenes come one by one (see `scene_tiles.scan`). `rejected` is
    in no order, and complete once the tables are exhausted.

    Raises ConfigError (kind, sensor; "folder_pair" holds pairs: see `list_pairs`), BadInput (a file that is no NetCDF,
    or one without images), and storage's NotFound, AccessDenied, Unavailable and StorageError.
    """
    if kind == folder_pair.KIND:
        raise ConfigError(f"data.kind {kind!r} holds ready pairs, there is nothing to collect: run jobs/shard.py")
    declared = {"units": units, "quantity": quantity} if kind == scene_tiles.KIND else {}
    found: Scan = _reader(kind).scan(root, sensor, seen or (lambda _: None), **declared)
    return found


def list_tiles(kind: str, root: str, sensor: str) -> tuple[list[TileRef], list[Rejected]]:
    """`scan` as values, for archives that memory holds: acquisitions by key, rejections by URI."""
    tables, rejected = scan(kind, root, sensor)
    tiles = [tile for table in tables for tile in from_table(table, TileRef)]
    return by_key(tiles), sorted(rejected, key=lambda r: (r.uri, r.detail))


def read_sar(ref: TileRef) -> NDArray[np.float32]:
    """Pixels of an S1 tile: (2, 256, 256) float32, sigma-nought in dB, VV then VH, NaN = no data.

    Raises BadInput (unreadable, wrong_shape, wrong_dtype, missing_band, all_nodata): the tile is to be rejected; and
    storage's errors, NotFound included: the store failed, not the tile.
    """
    pixels: NDArray[np.float32] = _reader(ref.kind).read_sar(ref)
    return pixels


def read_eo(ref: TileRef) -> EO:
    """Pixels of an S2 tile, as DN. Raises as `read_sar`."""
    pixels: EO = _reader(ref.kind).read_eo(ref)
    return pixels


def read_many(refs: Iterable[TileRef], ahead: int = 2 * THREADS) -> Iterator[tuple[TileRef, Read]]:
    """Each tile with its pixels, or with the error that `read_sar` or `read_eo` raises of it, in the order of `refs`.

    From an object store, up to `ahead` tiles are in flight or wait to be taken (about 0.5 MB each), THREADS of them being
    fetched; from a local disk a tile is read when it is asked for. Scenes are read by strips of neighbours. Errors other
    than those two kinds are raised at their tile's place.
    """
    for kind, run in itertools.groupby(refs, key=lambda ref: ref.kind):
        read = getattr(_reader(kind), "read_many", partial(_read_ahead, ahead=ahead))
        yield from read(run)


def _read_ahead(refs: Iterator[TileRef], ahead: int) -> Iterator[tuple[TileRef, Read]]:
    first = next(refs)
    refs = itertools.chain([first], refs)
    if storage.local_path(first.uris[0]):
        yield from ((ref, _read(ref)) for ref in refs)
        return
    pool = ThreadPoolExecutor(min(THREADS, ahead), thread_name_prefix="tiles")
    waiting: deque[tuple[TileRef, Future[Read]]] = deque()
    try:
        while True:
            waiting.extend((ref, pool.submit(_read, ref)) for ref in itertools.islice(refs, ahead - len(waiting)))
            if not waiting:
                return
            ref, pixels = waiting.popleft()
            yield ref, pixels.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(ref: TileRef) -> Read:
    try:
        return read_sar(ref) if ref.sensor == S1 else read_eo(ref)
    except (BadInput, StorageError) as e:
        return e


def unchanged(ref: TileRef, info: Callable[[str], storage.Info] = storage.info) -> None:
    """Raise SourceChanged where a tile is not the version that was listed, NotFound where a file of it is gone.

    A digest is of what the files are, each once, in the order of `uris`, then of `rows`.
    """
    if digest(*(info(uri).digest for uri in dict.fromkeys(ref.uris)), *ref.rows) != ref.digest:
        raise SourceChanged(
            ref.uris[0],
            f"{ref.sensor} of {ref.date} is not as it was listed (size, ETag or mtime): list it again (jobs/collect.py)",
        )
