"""QA60, the cloud band of Sentinel-2: bit 10 is opaque cloud, bit 11 cirrus. It misses most cloud, and may be missing.

Three states: a product without QA60 is "unknown", never "clear" (the authors' script takes it for clear: the decision,
not to reject, is the same; the record is not).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import BadInput

CLEAR, CLOUDY, UNKNOWN = "clear", "cloudy", "unknown"
OPAQUE, CIRRUS = 1 << 10, 1 << 11


def fractions(qa60: npt.NDArray[np.integer] | None) -> tuple[float, float]:
    """Shares of a (H, W) QA60 band, 0..1: pixels with bit 10 or 11; pixels with any value > 0. NaN without a band.

    The first is what the bits mean, the second the rule of the authors' script.
    Raises BadInput where the band is not an integer image.
    """
    if qa60 is None:
        return math.nan, math.nan
    if qa60.ndim != 2 or not qa60.size:
        raise BadInput("wrong_shape", "(array)", f"QA60 {qa60.shape}, not (H, W)")
    if not np.issubdtype(qa60.dtype, np.integer):
        raise BadInput("wrong_dtype", "(array)", f"QA60 {qa60.dtype}, not an integer type")
    if qa60.max() == 0 == qa60.min():  # nearly every tile
        return 0.0, 0.0
    flagged = np.count_nonzero(qa60 & (OPAQUE | CIRRUS))
    return int(flagged) / qa60.size, int(np.count_nonzero(qa60 > 0)) / qa60.size


def state(fraction: float) -> str:
    """What the mask says of a tile, whatever is allowed: "cloudy" if it flags any pixel, "unknown" for NaN, or "clear"."""
    if math.isnan(fraction):
        return UNKNOWN
    return CLOUDY if fraction > 0 else CLEAR
