"""Bring the SAR image of a pair onto the grid of its EO image, where their centres differ."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sar2eo_dist.pairing.split import METRES_PER_DEGREE

GSD = 10.0  # metres a pixel


def offset(sar: tuple[float, float], eo: tuple[float, float]) -> tuple[int, int]:
    """Whole pixels (rows down, columns right) by which the SAR image's centre lies off the EO image's.

    sar, eo: (lon, lat) of the centres, degrees; both images north-up at 10 m. At most half a pixel is left. Unknown
    positions (NaN) count as equal.
    """
    if not all(map(math.isfinite, (*sar, *eo))):
        return 0, 0
    down = (eo[1] - sar[1]) * METRES_PER_DEGREE / GSD
    right = (sar[0] - eo[0]) * METRES_PER_DEGREE * math.cos(math.radians(eo[1])) / GSD
    return round(down), round(right)


def shift(db: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """(C, H, W) moved down by `rows` and right by `columns` pixels; NaN where nothing moved in."""
    if not rows and not columns:
        return db
    out = np.full_like(db, np.nan)
    height, width = db.shape[1:]
    to = [slice(max(0, n), max(0, min(size, size + n))) for n, size in ((rows, height), (columns, width))]
    source = [slice(max(0, -n), max(0, min(size, size - n))) for n, size in ((rows, height), (columns, width))]
    out[:, to[0], to[1]] = db[:, source[0], source[1]]
    return out
