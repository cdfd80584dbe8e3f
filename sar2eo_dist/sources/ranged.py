"""A seekable file over `storage.read_range`: whoever reads a corner of a large object fetches only that corner.

fsspec's own handles read ahead by megabytes and raise their backend's errors from inside C code. This one fetches what
is asked for, small reads by blocks that it keeps, and raises the named errors of storage, after its retries.
"""

from __future__ import annotations

import functools
import io
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, Unavailable

BLOCK = 64 << 10  # bytes; smaller reads (headers, chunk indices) are served from whole blocks
KEEP = 64  # blocks kept
PARALLEL = 8  # range requests in flight for one `read_ranges`


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(PARALLEL, thread_name_prefix="ranges")


def ranged(uri: str) -> RangedFile:
    """A `RangedFile` of an object as it is now. Raises NotFound."""
    return RangedFile(storage.info(uri))


class RangedFile(io.RawIOBase):
    """Read-only view of one listed object. Not for two threads at once.

    A read that storage cannot serve raises its error (NotFound, AccessDenied, Unavailable); one that comes back short
    (the object shrank since it was listed) raises Unavailable.
    """

    def __init__(self, info: storage.Info) -> None:
        self.info = info
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.info.size}[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on; fewer bytes only at the end of the object."""
        view = memoryview(buffer).cast("B")
        start, end = self._at, min(self._at + len(view), self.info.size)
        if end <= start:
            return 0
        view[: end - start] = self._fetch(start, end)
        self._at = end
        return end - start

    def read_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Several ranges at once, fetched side by side; the position does not move.

        Raises BadInput (unreadable) for a range beyond the end: the object's own index points past what is there.
        """
        end = max(map(int.__add__, offsets, sizes), default=0)
        if end > self.info.size:
            raise BadInput("unreadable", self.info.uri, f"torn: {self.info.size} bytes, where byte {end} was wanted")
        return list(_pool().map(lambda start, size: self._exact(start, start + size), offsets, sizes))

    def _fetch(self, start: int, end: int) -> bytes:
        if end - start >= BLOCK:
            return self._exact(start, end)
        first = start // BLOCK * BLOCK
        whole = b"".join(self._block(at) for at in range(first, end, BLOCK))
        return whole[start - first : end - first]

    def _block(self, at: int) -> bytes:
        if at not in self._blocks:
            self._blocks[at] = self._exact(at, min(at + BLOCK, self.info.size))
            if len(self._blocks) > KEEP:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(at)
        return self._blocks[at]

    def _exact(self, start: int, end: int) -> bytes:
        data = storage.read_range(self.info.uri, start, end)
        if len(data) != end - start:
            raise Unavailable(self.info.uri, f"got {len(data)} of the {end - start} bytes at {start}")
        return data
