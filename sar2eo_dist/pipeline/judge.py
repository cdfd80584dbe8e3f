"""What a collect task does with a manifest slice: read each tile, measure it, decide stages 1 and 2, pack survivors.

A pack is `cca.pack` survivors of one slice in canonical order: the forward that scores a tile is the same whatever the
workers do, so a slice's verdicts are equal bytes on every run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sar2eo_dist import sources
from sar2eo_dist.cca import assess, exposure
from sar2eo_dist.errors import AccessDenied, BadInput, NotFound, Sar2EoError
from sar2eo_dist.pipeline import driver, manifest
from sar2eo_dist.radiometry import validity
from sar2eo_dist.records import KEPT, TileRef, Verdict, from_table, to_table
from sar2eo_dist.sections import CCA
from sar2eo_dist.sources import EO

AHEAD = 32  # tiles in flight from an object store


class Judge:
    """A manifest slice -> packs: pixels are kept of survivors only, and only where they will be scored."""

    def __init__(self, cca: CCA, scored: bool) -> None:
        self.cca, self.scored, self.sender = cca, scored, driver.here()

    def __call__(self, batch: pa.Table) -> Iterator[dict[str, Any]]:
        self.sender.meet()
        for row in batch.to_pylist():
            yield from self._slice(row)

    def _slice(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        begin, size, number = time.time(), 0, 0
        verdicts: list[Verdict] = []
        pixels: list[npt.NDArray[np.uint8]] = []

        def pack(last: bool, error: str = "") -> dict[str, Any]:
            return {
                "unit": [row["unit"]], "pack": [number], "last": [last], "error": [error], "started": [begin],
                "bytes_in": [size], "verdicts": [to_ipc(to_table(verdicts, Verdict))],
                "shape": [list(pixels[0].shape) if pixels else []],
                "pixels": [b"".join(p.data for p in pixels)],
            }  # fmt: skip

        try:
            refs = from_table(manifest.read(row["manifest"], row["group"]), TileRef)
            lost = 0
            for ref, found in sources.read_many(refs, AHEAD):
                try:
                    verdict, image, nbytes = judge(ref, found, self.cca)
                except (NotFound, AccessDenied) as e:
                    lost += 1
                    if not row["final"] or lost == len(refs):  # the store's fault, not this tile's: try the unit again
                        raise
                    verdict, image, nbytes = bare(ref, "unreadable", f"{e.message} in every attempt"), None, 0
                size += nbytes
                if image is not None and pixels and image.shape != pixels[0].shape:
                    yield pack(last=False)  # a forward has one shape
                    number += 1
                    verdicts, pixels = [], []
                verdicts.append(dataclasses.replace(verdict, unit=row["unit"]))
                if self.scored and image is not None:
                    pixels.append(image)
                if len(pixels) == self.cca.pack:
                    yield pack(last=False)
                    number += 1
                    verdicts, pixels = [], []
        except Exception as e:  # an outage (or our own error) is no verdict on a tile: the unit is tried again
            verdicts, pixels = [], []
            yield pack(last=True, error=f"{type(e).__name__}: {e}")
            return
        yield pack(last=True)


def to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_ipc(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def bare(ref: TileRef, reason: str, detail: str = "") -> Verdict:
    """A verdict without measurements."""
    pointer = {f.name: getattr(ref, f.name) for f in dataclasses.fields(TileRef)}
    return Verdict(**pointer, key=ref.key, place=ref.place, reason=reason, detail=detail)


def judge(
    ref: TileRef, found: EO | npt.NDArray[np.float32] | Sar2EoError, cca: CCA
) -> tuple[Verdict, npt.NDArray[np.uint8] | None, int]:
    """Stages 1 and 2 on what was read: (verdict, stretched image (3, H, W) uint8 RGB of a survivor, bytes of pixels).

    A bad tile is a verdict with its reason; any other error of reading is raised.
    """
    if isinstance(found, BadInput):
        return bare(ref, found.reason, found.detail), None, 0
    if isinstance(found, Exception):
        raise found
    if not isinstance(found, EO):
        return dataclasses.replace(bare(ref, KEPT), valid_fraction=float(validity(found).mean())), None, found.nbytes
    m = assess(found.bands, found.qa60, cca, found.offset)
    verdict = dataclasses.replace(bare(ref, m.reason), **dataclasses.asdict(m))
    image = exposure.stretch(exposure.harmonise(found.bands, found.offset)) if m.reason == KEPT else None
    return verdict, image, found.bands.nbytes
