"""What lies in a bucket: MultiEarth patches (TIFF folders, NetCDF files), ready pairs, scenes, and a synthetic world.

Listing gives pointers (`records.TileRef`), reading gives pixels; everything goes through `storage`, so any fsspec URI
will do. Layouts: those of the challenge's official loaders (MIT-AI-Accelerator/multiearth-challenge), and folder pairs as
pix2pix and pix2pixHD take them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from sar2eo_dist import storage
from sar2eo_dist.errors import ConfigError, SourceChanged
from sar2eo_dist.records import Rejected, TileRef, digest
from sar2eo_dist.sources import folder_pair, multiearth_netcdf, multiearth_tiff
from sar2eo_dist.sources.folder_pair import FolderPair, list_pairs
from sar2eo_dist.sources.multiearth import EO

__all__ = ["EO", "FolderPair", "list_pairs", "list_tiles", "read_eo", "read_sar", "unchanged"]

_READERS: dict[str, ModuleType] = {
    "multiearth_tiff": multiearth_tiff,
    "multiearth_netcdf": multiearth_netcdf,
    folder_pair.KIND: folder_pair,
}


def _reader(kind: str) -> ModuleType:
    if kind not in _READERS:
        raise ConfigError(f"unknown data.kind {kind!r}; known: {', '.join(_READERS)}")
    return _READERS[kind]


def list_tiles(kind: str, root: str, sensor: str) -> tuple[list[TileRef], list[Rejected]]:
    """Every acquisition of one sensor below `root`, by key, and what could not become one, by URI.

    kind: "multiearth_tiff" (root is a folder, searched recursively) or "multiearth_netcdf" (a file), any fsspec URI;
    sensor: "s1" or "s2"; what belongs to other sensors is passed over in silence.
    Raises ConfigError (kind, sensor; "folder_pair" holds pairs: see `list_pairs`), BadInput (a file that is no NetCDF,
    or one without images), and storage's NotFound, AccessDenied, Unavailable and StorageError.
    """
    if kind == folder_pair.KIND:
        raise ConfigError(f"data.kind {kind!r} holds ready pairs, there is nothing to collect: run jobs/shard.py")
    tiles, rejected = _reader(kind).list_tiles(root, sensor)
    return sorted(tiles, key=lambda t: t.key), sorted(rejected, key=lambda r: (r.uri, r.detail))


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


def unchanged(ref: TileRef, info: Callable[[str], storage.Info] = storage.info) -> None:
    """Raise SourceChanged where a tile is not the version that was listed, NotFound where a file of it is gone."""
    if digest(*(info(uri).digest for uri in ref.uris), *ref.rows) != ref.digest:
        raise SourceChanged(
            ref.uris[0],
            f"{ref.sensor} of {ref.date} is not as it was listed (size, ETag or mtime): list it again (jobs/collect.py)",
        )
