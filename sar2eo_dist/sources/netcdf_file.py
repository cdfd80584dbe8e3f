"""What h5py reads a NetCDF file through: indices read ahead, and pixels fetched by whoever holds no lock of HDF5's."""

from __future__ import annotations

from sar2eo_dist import storage
from sar2eo_dist.sources.ranged import BLOCK, KEEP, RangedFile

AHEAD = 32  # blocks fetched at once, at most, where small reads run on


class Wanted(Exception):
    """A read of pixels that is left to the caller, who holds no lock."""

    def __init__(self, file: HDF5File, start: int, end: int) -> None:
        self.file, self.start, self.end = file, start, end


class HDF5File(RangedFile):
    """A ranged file that reads ahead where small reads run on (an index), and leaves large ones (pixels) to others.

    given   bytes that were fetched for it, by their offset
    defer   raise Wanted for a large read of what is not given
    """

    def __init__(self, info: storage.Info) -> None:
        super().__init__(info)
        self.given: dict[int, bytes] = {}
        self.defer = False
        self._next, self._ahead = -1, 1

    def fetch(self, start: int, end: int) -> bytes:
        """Bytes [start, end), from any thread."""
        return self._exact(start, end)

    def _fetch(self, start: int, end: int) -> bytes:
        if len(given := self.given.get(start, b"")) == end - start:
            return given
        if self.defer and end - start >= BLOCK:
            raise Wanted(self, start, end)
        return super()._fetch(start, end)

    def _block(self, at: int) -> bytes:
        if at not in self._blocks:
            self._ahead = min(2 * self._ahead, AHEAD) if at == self._next else 1
            self._next = at + self._ahead * BLOCK
            data = self._exact(at, min(self._next, self.info.size))
            self._blocks.update({at + i: data[i : i + BLOCK] for i in range(0, len(data), BLOCK)})
            while len(self._blocks) > KEEP:
                self._blocks.popitem(last=False)
        return super()._block(at)
