"""Radar of an area of a grid: what is read once and cut into windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sar2eo_dist.mosaic.grid import Block, Window


@dataclass(frozen=True, slots=True)
class Sar:
    """SAR of an area of the grid: db (2, h, w) float32 dB, NaN = no data; (row, col): its first pixel."""

    row: int
    col: int
    db: npt.NDArray[np.float32]

    def cut(self, place: Window | Block) -> npt.NDArray[np.float32]:
        """The part that a place covers. Raises ValueError where it is not all inside."""
        y, x = (place.row, place.col) if isinstance(place, Window) else (place.y, place.x)
        top, left = y - self.row, x - self.col
        if min(top, left) < 0 or top + place.height > self.db.shape[1] or left + place.width > self.db.shape[2]:
            raise ValueError(f"{place} is not inside the {self.db.shape[1:]} pixels at ({self.row}, {self.col})")
        return self.db[:, top : top + place.height, left : left + place.width]
