"""The middle step of a mosaic's units: both networks in one process. `blocks` has the steps around it, and needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from sar2eo_dist import storage
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic import area
from sar2eo_dist.mosaic.confidence import Model
from sar2eo_dist.mosaic.grid import Block, Window
from sar2eo_dist.mosaic.sar import Sar
from sar2eo_dist.pipeline import blocks, windows
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.blocks import EXACT, Frame, Task, lattice_of
from sar2eo_dist.radiometry import to_uint8, unscale_eo, validity
from sar2eo_dist.records import Unit
from sar2eo_dist.sections import Scaling


class Compute:
    """Both networks in one process: the middle step.

    frame: of any mosaic of a run; they differ in grid and scenes alone, and the networks serve them all.
    """

    def __init__(self, frame: Frame) -> None:
        self.chain = Chain(frame.bundles, frame.threads, frame.speed)
        for k in range(len(self.chain.nets)):
            if self.chain.padded(k, frame.grid.multiple, 0)[0] != frame.grid.multiple:
                raise ConfigError(
                    f"network {k + 1} halves its input more often than windows of the lattice, multiples of "
                    f"{frame.grid.multiple} pixels, can be: {frame.bundles[k]}"
                )
        self.confidence = None
        if frame.confidence:
            uri = storage.join(frame.root, frame.confidence)
            self.confidence = Model.from_json(storage.read_bytes(uri).decode(), uri)

    def __call__(self, unit: Unit, task: Task, value: tuple[Any, Any], *, frame: Frame) -> tuple[int, Any]:
        """(bytes of pixels read, what `write` wants)."""
        if task.what == EXACT:
            refs, lattice = value[0], lattice_of(frame)
            return 0, bytes_of(windows.exact(self.chain, lattice, lambda b: blocks.sar(frame, refs, lattice.around(b))))
        pixels: Sar = value[0]
        if task.what == "statistics":
            lattice = lattice_of(frame)
            return pixels.db.nbytes, bytes_of(
                windows.gathered(self.chain, lattice, lattice.at(task.row, task.col), pixels)
            )
        return pixels.db.nbytes, self._block(frame, task, pixels, {k: tensors_of(v) for k, v in value[1].items()})

    def _block(self, frame: Frame, task: Task, pixels: Sar, found: dict[str, Any]) -> tuple[Any, ...]:
        """(image (3, h, w) uint8 or uint16, valid (h, w) bool, typical error (h, w) uint16 or None, windows run, on a GPU)."""
        grid, lattice = frame.grid, frame.lattice
        block = grid.at(task.row, task.col)
        valid = validity(pixels.cut(block)) & area.owned(grid, block)
        empty = {"weight": np.zeros(())}

        def knots(place: Window) -> list[tuple[Block, Any]]:
            assert lattice is not None  # noqa: S101 -- only a field asks
            return [(b, found.get(b.key, empty)) for b in lattice.knots(place)]

        given = None if lattice is None else found.get(EXACT, knots)
        made = windows.images(self.chain, grid, block, pixels, given, lattice, frame.batch, self.confidence)
        image = np.where(valid, made.image, np.float32(-1))
        if frame.dtype == "uint16":
            dn = np.rint(unscale_eo(image, Scaling(eo="fixed"))).astype(np.uint16)
            colours: npt.NDArray[Any] = np.where(valid, dn, np.uint16(0))
        else:
            colours = to_uint8(image)
        error = None if made.error is None else np.where(valid, made.error, np.uint16(0))
        return colours, valid, error, made.windows, self.chain.device != "cpu"
