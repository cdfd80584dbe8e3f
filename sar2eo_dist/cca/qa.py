"""QA60, the cloud band of Sentinel-2: bit 10 is opaque cloud, bit 11 cirrus. It misses most cloud, and may be missing.

Three states: a product without QA60 is "unknown", never "clear" (the authors' script takes it for clear: the decision,
not to reject, is the same; the record is not).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import BadInput

CLEAR, CLOUDY, UNKNOWN = "clear", "cloudy", "unknown"
OPAQUE, CIRRUS = 1 << 10, 1 << 11


def cloud_fraction(qa60: npt.NDArray[np.integer] | None, profile: str) -> float:
    """Share of cloudy pixels of a (H, W) QA60 band, 0..1; NaN where there is no band.

    paper, none: bit 10 or 11 is set; released: any value > 0, as the authors' script has it.
    Raises BadInput where the band is not an integer image.
    """
    if qa60 is None:
        return float("nan")
    if qa60.ndim != 2 or not qa60.size:
        raise BadInput("wrong_shape", "(array)", f"QA60 {qa60.shape}, not (H, W)")
    if not np.issubdtype(qa60.dtype, np.integer):
        raise BadInput("wrong_dtype", "(array)", f"QA60 {qa60.dtype}, not an integer type")
    cloudy = qa60 > 0 if profile == "released" else (qa60 & (OPAQUE | CIRRUS)) != 0
    return int(np.count_nonzero(cloudy)) / qa60.size


def state(fraction: float, max_fraction: float) -> str:
    """ "unknown" for NaN, "cloudy" above `max_fraction`, else "clear"."""
    if np.isnan(fraction):
        return UNKNOWN
    return CLOUDY if fraction > max_fraction else CLEAR
