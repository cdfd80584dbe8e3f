"""GeoTIFFs over any fsspec URI, read by windows.

Local files are GDAL's own; others are read by ranges through `storage`, so that a window costs its own tiles and an
outage has storage's name. Sidecar files (.aux.xml, .msk, .ovr) are ignored: the digest covers one object.
"""

from __future__ import annotations

import contextvars
import weakref
from typing import Any

import numpy as np
import rasterio
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.session import DummySession
from rasterio.windows import Window

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, Sar2EoError, StorageError
from sar2eo_dist.sources.ranged import RangedFile

CACHE = 256 << 20  # bytes of decoded blocks that a process keeps: the row of blocks across a scene fits


class _GdalFile:
    """A RangedFile as rasterio's opener wants one. It never raises: an exception in GDAL's callback ends the process.

    The error is kept in the container and zeros or nothing are given back; whoever asked GDAL looks there afterwards.
    """

    def __init__(self, container: _Container) -> None:
        self._container = container
        self._file = RangedFile(container.info)
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close

    def __enter__(self) -> _GdalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size) or b""
        except Exception as e:
            self._container.error = self._container.error or e
            return b""

    def get_byte_ranges(self, offsets: list[int], sizes: list[int]) -> list[bytes]:
        try:
            return self._file.read_ranges(offsets, sizes)
        except Exception as e:
            self._container.error = self._container.error or e
            return [bytes(size) for size in sizes]  # GDAL copies `size` bytes whatever the length


class _Container:
    """The one object that GDAL may see, under the name NAME."""

    NAME = "raster.tif"

    def __init__(self, info: storage.Info) -> None:
        self.info = info
        self.error: Exception | None = None

    def open(self, path: str, mode: str = "r", **_: Any) -> _GdalFile:
        if path != self.NAME:
            raise FileNotFoundError(path)
        return _GdalFile(self)

    def isfile(self, path: str) -> bool:
        return path == self.NAME

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def size(self, path: str) -> int:
        return self.info.size


MultiByteRangeResourceContainer.register(_Container)


class Raster:
    """An open GeoTIFF: `info` as listed, `dataset` of rasterio. For one thread at a time: GDAL's handles must not be shared.

    Raises BadInput (unreadable) for what is no GeoTIFF, and storage's errors. After a failed read it is to be closed:
    GDAL may have kept half of what it asked for.
    """

    def __init__(self, uri: str) -> None:
        self.info = storage.info(uri)
        fs, path = storage.filesystem(uri)
        self._container = None if isinstance(fs, LocalFileSystem) else _Container(self.info)
        # Of its own: rasterio keeps the files that GDAL holds in the current context, which ends with its thread, and a
        # dataset that outlives it (an error's traceback is enough) would be closed through freed memory.
        self._context = contextvars.Context()
        try:
            with gdal():
                if self._container is None:
                    self.dataset = rasterio.open(path, driver="GTiff")
                else:
                    source = {"driver": "GTiff", "opener": self._container}
                    self.dataset = self._context.run(lambda: rasterio.open(_Container.NAME, **source))
        except RasterioError as e:
            raise self._fault(f"does not open as GeoTIFF ({e})") from e
        # At exit too: while the interpreter is torn down GDAL can no longer call back, and says so on the terminal.
        self.close = weakref.finalize(self, self._context.run, self.dataset.close)

    def read(self, bands: list[int], row: int, col: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(pixels as stored (B, h, w), bool (B, h, w) where they are data) of 1-based bands; inside the raster.

        No data: the nodata value, an internal mask, alpha. Raises BadInput (unreadable) and storage's errors.
        """
        window = Window(col, row, width, height)
        try:
            with gdal():
                raw, valid = self._context.run(self._read, bands, window)
        except RasterioError as e:
            raise self._fault(f"{window} does not decode ({e})") from e
        if self._container and self._container.error:
            raise self._fault("")
        return raw, valid

    def _read(self, bands: list[int], window: Window) -> tuple[NDArray[Any], NDArray[Any]]:
        raw = self.dataset.read(bands, window=window)
        flags = [self.dataset.mask_flag_enums[b - 1] for b in bands]
        if all(MaskFlags.all_valid in f for f in flags):
            return raw, np.ones(raw.shape, bool)
        if raw.dtype.kind in "iu" and all(f == [MaskFlags.nodata] for f in flags):  # without reading it all again
            values = [self.dataset.nodatavals[b - 1] for b in bands]
            return raw, np.stack(
                [p != (int(v) if float(v).is_integer() else v) for p, v in zip(raw, values, strict=True)]
            )
        return raw, self.dataset.read_masks(bands, window=window) > 0

    def _fault(self, detail: str) -> Exception:
        error = self._container.error if self._container else None
        if error is None:
            return BadInput("unreadable", self.info.uri, detail)
        return error if isinstance(error, Sar2EoError) else StorageError(self.info.uri, f"read failed ({error!r})")


def gdal() -> Any:
    """GDAL's settings: no credentials, no sidecars, and a bound on decoded blocks, of which its own is 5 % of the
    machine's memory in every process."""
    return rasterio.Env(DummySession(), GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_CACHEMAX=CACHE)
