"""A zarr store (v2 or v3) as a geocoded S1 raster: where its bands and its georeference are, and windows of it.

    one array (2, y, x), VV then VH unless its attribute `bands` says otherwise; or two arrays (y, x) named vv and vh
    georeference, the first of: attributes crs_wkt and GeoTransform of a variable `spatial_ref` (CF, rioxarray); attributes
    crs and transform of the group; coordinate arrays x and y of pixel centres, with a CRS from either place

Read by zarr-python through `storage`, chunk by chunk.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from rasterio.crs import CRS
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, NotFound, Sar2EoError
from sar2eo_dist.records import S1_BANDS

UNEVEN = 0.01  # pixels that a coordinate may lie off even spacing
OPEN = 4  # stores that a process keeps open
_METADATA = {"zarr.json": 3, ".zarray": 2, ".zgroup": 2}
_lock = threading.Lock()
_opened: OrderedDict[tuple[str, str], ZarrScene] = OrderedDict()


def is_zarr(uri: str) -> bool:
    return uri.rstrip("/").lower().endswith(".zarr")


def shared(uri: str, digest: str) -> ZarrScene:
    """The store that all threads of this process read, opened (and listed) at the first use under a digest."""
    with _lock:
        if (uri, digest) not in _opened:
            _opened[uri, digest] = ZarrScene(uri)
            if len(_opened) > OPEN:
                _opened.popitem(last=False)
        _opened.move_to_end((uri, digest))
        return _opened[uri, digest]


class ZarrScene:
    """An open store. Any number of threads may read it. Raises BadInput, and storage's errors.

    digest: of the store's listing; tags: attributes, names in upper case; scales: (factor, addend) of VV and of VH.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        sha, nodes = hashlib.sha256(), dict[str, int]()  # folder with metadata -> its zarr format
        for page in storage.walk(self.uri):
            for info in page:
                sha.update(info.digest.encode())
                folder, _, name = info.uri.rpartition("/")
                if name in _METADATA:
                    nodes[folder] = max(_METADATA[name], nodes.get(folder, 0))
        self.digest = sha.hexdigest()[:32]
        root = min(nodes, key=len, default="")
        names = {n[len(root) + 1 :] for n in nodes}
        if storage.name(root) != storage.name(self.uri):
            raise self._bad("unreadable", "no zarr metadata (zarr.json, .zgroup or .zarray) at its root")
        try:
            form: Any = nodes[root]
            top: Any = zarr.open(_Storage(self.uri), mode="r", use_consolidated=False, zarr_format=form)
            inside = [] if isinstance(top, zarr.Array) else sorted(n for n in names if n and "/" not in n)
            arrays = {n: top[n] for n in inside} or {"": top}
        except Sar2EoError:
            raise
        except Exception as e:
            raise self._bad("unreadable", f"does not open as zarr ({type(e).__name__}: {e})") from e
        arrays = {n: a for n, a in arrays.items() if isinstance(a, zarr.Array)}
        self._planes = self._bands(arrays)
        self.height, self.width = self._planes[0][0].shape[-2:]
        own = dict(self._planes[0][0].attrs)
        attributes = dict(top.attrs) | own
        self.crs, self.transform = self._georeference(arrays, attributes)
        tags = {k.upper(): v.strip() for k, v in attributes.items() if isinstance(v, str)}
        self.tags = {f"SAR2EO_{k}": tags[k] for k in ("UNITS", "QUANTITY") if tags.get(k)} | tags
        both = [dict(a.attrs) for a, _ in self._planes]
        try:
            self.scales = [(float(a.get("scale_factor", 1.0)), float(a.get("add_offset", 0.0))) for a in both]
            self._nodata = [_nodata(a) for a, _ in self._planes]
        except (TypeError, ValueError, struct.error) as e:
            raise self._bad("unreadable", f"scale_factor, add_offset or _FillValue: {e}") from e
        for (array, _), scale in zip(self._planes, self.scales, strict=True):
            if array.dtype.kind != "f" and not (array.dtype.kind in "iu" and scale != (1.0, 0.0)):
                raise self._bad("wrong_dtype", f"/{array.path} is {array.dtype}: no scale says what it means")

    def read(self, row: int, col: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(pixels as stored (2, h, w), VV then VH; bool where they are data) inside the raster. Only chunks that it touches."""
        raw = []
        for array, index in self._planes:
            place: tuple[Any, ...] = (slice(row, row + height), slice(col, col + width))
            try:
                raw.append(np.asarray(array[place if index is None else (index, *place)]))
            except Sar2EoError:
                raise
            except Exception as e:
                what = f"/{array.path} rows {row}..{row + height}, columns {col}..{col + width} do not decode"
                raise self._bad("unreadable", f"{what} ({type(e).__name__}: {e})") from e
        valid = [np.ones(p.shape, bool) if v is None else p != v for p, v in zip(raw, self._nodata, strict=True)]
        return np.stack(raw), np.stack(valid)

    def close(self) -> None:
        """Nothing is held open."""

    def _bands(self, arrays: dict[str, Any]) -> list[tuple[Any, int | None]]:
        """(array, index of its first axis or None) of VV and of VH."""
        named = {n.upper(): a for n, a in arrays.items() if a.ndim == 2 and n.upper() in S1_BANDS}
        if len(named) == 2:
            if named["VV"].shape != named["VH"].shape:
                raise self._bad("wrong_shape", f"VV is {named['VV'].shape}, VH is {named['VH'].shape}")
            return [(named[b], None) for b in S1_BANDS]
        cubes = [a for a in arrays.values() if a.ndim == 3 and a.shape[0] == 2]
        if len(cubes) != 1:
            said = ", ".join(f"/{n} {a.shape}" for n, a in arrays.items()) or "no array"
            raise self._bad("missing_band", f"{said}: neither one array (2, y, x) nor arrays vv and vh (y, x)")
        order = cubes[0].attrs.get("bands")
        names = [str(b).upper() for b in order] if isinstance(order, list | tuple) else list(S1_BANDS)
        if sorted(names) != sorted(S1_BANDS):
            raise self._bad("missing_band", f"bands are {names}, not VV and VH")
        return [(cubes[0], names.index(b)) for b in S1_BANDS]

    def _georeference(self, arrays: dict[str, Any], attributes: dict[str, Any]) -> tuple[CRS, tuple[float, ...]]:
        mapping = dict(arrays["spatial_ref"].attrs) if "spatial_ref" in arrays else {}
        wkt = mapping.get("crs_wkt") or mapping.get("spatial_ref")
        text = wkt or attributes.get("crs")
        if not text:
            raise self._bad("unreadable", "no CRS: neither spatial_ref's crs_wkt nor an attribute crs")
        try:
            crs = CRS.from_user_input(text)
            if wkt and mapping.get("GeoTransform"):
                c, a, b, f, d, e = map(float, str(mapping["GeoTransform"]).split())
                return crs, (a, b, c, d, e, f)
            if attributes.get("transform") is not None:
                a, b, c, d, e, f = map(float, attributes["transform"][:6])
                return crs, (a, b, c, d, e, f)
        except (ValueError, TypeError) as error:  # rasterio's CRSError is a ValueError
            raise self._bad("unreadable", f"georeference: {error}") from error
        if not {"x", "y"} <= set(arrays):
            raise self._bad("unreadable", "no geotransform: no GeoTransform, transform, nor coordinates x and y")
        (a, c), (e, f) = self._axis(arrays["x"], self.width), self._axis(arrays["y"], self.height)
        return crs, (a, 0.0, c, 0.0, e, f)

    def _axis(self, array: Any, count: int) -> tuple[float, float]:
        """(step, outer edge of the first pixel) of evenly spaced pixel centres."""
        at = np.asarray(array[...], np.float64)
        if at.shape != (count,) or count < 2:
            raise self._bad("wrong_shape", f"coordinate /{array.path} is {at.shape} for {count} pixels")
        step = float(at[-1] - at[0]) / (count - 1)
        off = np.abs(at - (at[0] + step * np.arange(count))).max()
        if not (step and off <= UNEVEN * abs(step)):
            raise self._bad("wrong_shape", f"coordinate /{array.path} is not evenly spaced: off by {off:g} of {step:g}")
        return step, float(at[0]) - step / 2

    def _bad(self, reason: str, detail: str) -> BadInput:
        return BadInput(reason, self.uri, detail)


def _nodata(array: Any) -> Any:
    """The stored value that means no data, None where there is none (NaN always does).

    The attribute _FillValue, which xarray writes as base64 for floats in zarr v3; else the fill value of v2, as xarray
    has it; else v3's where it is not 0, which is every array's default there.
    """
    value = array.attrs.get("_FillValue")
    if value is None:
        fill = array.fill_value
        return None if fill is None or (array.metadata.zarr_format == 3 and fill == 0) else fill
    if isinstance(value, str) and array.dtype.kind == "f":
        try:
            value = float(value)
        except ValueError:
            value = struct.unpack("<d", base64.standard_b64decode(value))[0]
    return array.dtype.type(value)


class _Storage(Store):
    """`storage` as zarr-python wants to read it: its retries, its named errors. A missing object is None."""

    supports_writes = supports_deletes = supports_listing = False

    def __init__(self, uri: str) -> None:
        super().__init__(read_only=True)
        self._uri = uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Storage) and other._uri == self._uri

    __hash__ = None  # type: ignore[assignment]

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            return prototype.buffer.from_bytes(await asyncio.to_thread(self._get, key, byte_range))
        except NotFound:
            return None

    def _get(self, key: str, part: ByteRequest | None) -> bytes:
        uri = storage.join(self._uri, key)
        match part:
            case RangeByteRequest(start, end):
                return storage.read_range(uri, start, end)
            case OffsetByteRequest(offset):
                return storage.read_range(uri, offset, storage.info(uri).size)
            case SuffixByteRequest(suffix):
                return storage.read_tail(uri, suffix)
        return storage.read_bytes(uri)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(storage.exists, storage.join(self._uri, key))

    async def set(self, key: str, value: Buffer) -> None:
        raise PermissionError(key)

    async def delete(self, key: str) -> None:
        raise PermissionError(key)

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError
