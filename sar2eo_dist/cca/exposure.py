"""Stages 1 and 2 of the Clean Collector Algorithm without QA60: exposure, on planar arrays.

Bands are (3, H, W) uint16 DN in the order B4, B3, B2 (R, G, B). Sources: arXiv 2306.12626 (profile `paper`) and the
authors' published script (profile `released`). Planar: reductions over (H, W, 3) cost 8 to 78 times as much.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DN = npt.NDArray[np.uint16]
RGB8 = npt.NDArray[np.uint8]

#: largest share of dark pixels: more than this rejects
DARK_MAX = {"paper": 0.10, "released": 0.30}


def valid_fraction(bands: DN) -> float:
    """Share of pixels with data (DN 0 is Sentinel-2's nodata) in every band, 0..1."""
    return float(np.count_nonzero(bands.all(axis=0)) / bands[0].size)


def constant(bands: DN) -> bool:
    """Whether any band has one single value."""
    return any(bool(band.min() == band.max()) for band in bands)


def alpha_fraction(bands: DN, alpha: int) -> float:
    """Share of pixels where any band reaches `alpha` (DN), 0..1."""
    return float(np.count_nonzero(bands.max(axis=0) >= alpha) / bands[0].size)


def stretch(bands: DN) -> RGB8:
    """Each band stretched from its own minimum and maximum to 0..255 and truncated, (3, H, W) uint8.

    Equal to the script's float64 arithmetic to the bit, by one table per band (the order of its operations decides some
    truncations). A constant band becomes 0; the script has rejected such an image before.
    """
    out = np.zeros(bands.shape, np.uint8)
    for band, image in zip(bands, out, strict=True):
        low = band.min()
        span = int(band.max()) - int(low)
        if span:
            table = (np.arange(span + 1) / span * 255).astype(np.uint8)
            np.take(table, band - low, out=image)
    return out


def brightness(image: RGB8) -> float:
    """Mean V of HSV of a (3, H, W) 8-bit image, 0..255: V is the largest of the three, so nothing is converted."""
    return float(image.max(axis=0).mean())


def dark_count(image: RGB8, profile: str) -> int:
    """Number of dark pixels of a (3, H, W) 8-bit R, G, B image.

    paper (and none): 0.299 R + 0.587 G + 0.114 B < 10, in exact arithmetic.
    released: the script hands its R, G, B array to the B, G, R to grey conversion, so red and blue swap their weights;
    <= 10 after OpenCV's fixed-point rounding (15 bits), to the bit.
    """
    red, green, blue = image.astype(np.int32)
    if profile == "released":
        return int(np.count_nonzero((3735 * red + 19235 * green + 9798 * blue + (1 << 14)) >> 15 <= 10))
    return int(np.count_nonzero(299 * red + 587 * green + 114 * blue < 10_000))
