"""Stages 1 and 2 of the Clean Collector Algorithm without QA60: exposure, on planar arrays.

Bands are (3, H, W) uint16 DN in the order B4, B3, B2 (R, G, B). Sources: arXiv 2306.12626 (profile `paper`) and the
authors' published script (profile `released`). All is counted in integers, so it is exact and the same everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sar2eo_dist.compiled import compiled
from sar2eo_dist.errors import ConfigError

DN = npt.NDArray[np.uint16]
RGB8 = npt.NDArray[np.uint8]


def planes(bands: DN) -> DN:
    """The same pixels in the one layout that the loops are compiled for: contiguous, read-only."""
    view = np.ascontiguousarray(bands).view()
    view.flags.writeable = False
    return view


def harmonise(bands: DN, offset: int) -> DN:
    """DN with the product's radiometric offset removed, uint16: reflectance x 10000.

    offset: what the product adds to every DN, from its own metadata, 0 or 1000 (BOA_ADD_OFFSET -1000 is 1000 here).
    No data (0) stays 0; everything else is at least 1. Raises ConfigError outside 0..65534.
    """
    if not 0 <= offset < 65535:
        raise ConfigError(f"offset {offset}: it is the DN that the product adds, 0 or 1000 (BOA_ADD_OFFSET reversed)")
    if not offset:
        return bands
    out: DN = np.maximum(bands, np.uint16(offset + 1)) - np.uint16(offset)
    out[bands == 0] = 0
    return out


def stretch(bands: DN) -> RGB8:
    """Each band stretched from its own minimum and maximum to 0..255 and truncated, (3, H, W) uint8.

    floor(255 (DN - min) / (max - min)) in integers: equal to the script's float64 arithmetic for every DN and range (all
    2.1e9 cases were run through). A constant band becomes 0; the script has rejected such an image before.
    """
    return _stretched(planes(bands))[0]


class Exposure(NamedTuple):
    """Counts over the n = H W pixels of a tile.

    valid, alpha    pixels with data in every band; pixels with any band >= alpha
    max_dn          largest DN; contrast: smallest (max - min) of a band
    bright          sum of V of HSV of the stretched image (V is the largest of the three: nothing is converted), n * 255
    dark            0.299 R + 0.587 G + 0.114 B < 10 on the stretched image, exactly: the paper's
    dark_released   <= 10 after OpenCV's fixed-point rounding (15 bits), to the bit; the script hands its R, G, B array
                    to the B, G, R to grey conversion, so red and blue swap their weights
    """

    valid: int
    alpha: int
    max_dn: int
    contrast: int
    bright: int
    dark: int
    dark_released: int


def expose(bands: DN, alpha: int) -> Exposure:
    """What stages 1 and 2 of both published profiles look at, in one go. bands (3, H, W) uint16."""
    bands = planes(bands)
    image, low, high = _stretched(bands)
    valid, over = _present(bands, min(max(alpha, 0), 65536))
    bright, dark, released = _darkness(image)
    return Exposure(
        int(valid), int(over), int(high.max()), int((high - low).min()), int(bright), int(dark), int(released)
    )


@compiled
def _stretched(bands: DN) -> tuple[RGB8, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The stretched image, and each band's minimum and maximum."""
    image = np.empty(bands.shape, np.uint8)
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for c in range(3):
        band, out = bands[c].ravel(), image[c].ravel()
        least = most = band[0]
        for i in range(band.size):
            least, most = min(least, band[i]), max(most, band[i])
        low[c], high[c] = least, most
        if most == least:
            out[:] = 0
        else:
            # 32 fraction bits: too large by less than span / 2^32 < 1 / span, so the floor is that of the quotient
            factor, base = np.uint64((255 << 32) // (high[c] - low[c]) + 1), np.uint64(least)
            for i in range(band.size):
                out[i] = np.uint8((np.uint64(band[i]) - base) * factor >> np.uint64(32))
    return image, low, high


@compiled
def _present(bands: DN, alpha: int) -> tuple[np.int64, np.int64]:
    r, g, b = bands[0].ravel(), bands[1].ravel(), bands[2].ravel()
    valid = over = np.int64(0)
    level = np.int32(alpha)
    for i in range(r.size):
        valid += (r[i] != 0) & (g[i] != 0) & (b[i] != 0)
        over += max(r[i], max(g[i], b[i])) >= level
    return valid, over


@compiled
def _darkness(image: RGB8) -> tuple[np.int64, np.int64, np.int64]:
    r, g, b = image[0].ravel(), image[1].ravel(), image[2].ravel()
    bright = dark = released = np.int64(0)
    for i in range(r.size):
        # int32 throughout (numba would widen): twice as many pixels in one vector
        x, y, z = np.int32(r[i]), np.int32(g[i]), np.int32(b[i])
        bright += max(x, max(y, z))
        dark += np.int32(299 * x + 587 * y + 114 * z) < np.int32(10_000)
        released += np.int32(3735 * x + 19235 * y + 9798 * z) < np.int32((11 << 15) - (1 << 14))
    return bright, dark, released
