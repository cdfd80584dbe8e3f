"""The land cover of a patch: the commonest class of a class raster, or a guess from the radar where there is no raster."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError
from rasterio.transform import AffineTransformer
from rasterio.warp import transform

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.sources.raster import Raster

SPAN = 2560.0  # metres: side of a patch
METRES_PER_DEGREE = 111_320.0
POLE = 89.0  # degrees of latitude from which a patch may have no place in a raster's CRS
#: ESA WorldCover 10 m, product user manual v2.0; another class of another raster is told by its number
WORLD_COVER = {
    10: "tree cover", 20: "shrubland", 30: "grassland", 40: "cropland", 50: "built-up", 60: "bare", 70: "snow and ice",
    80: "water", 90: "wetland", 95: "mangroves", 100: "moss and lichen",
}  # fmt: skip
#: dB: median VH of calm water lies below the first, of closed forest above the second (C band; Amazon forest -12 to -14)
WATER, FOREST = -23.0, -16.0


class LandCover:
    """A class raster (GeoTIFF or COG, any CRS and any URI), read by windows. For one thread at a time.

    Raises ConfigError where it is no raster of whole numbers with a CRS, and storage's errors.
    """

    def __init__(self, uri: str) -> None:
        self._raster = Raster(uri)
        data = self._raster.dataset
        if data.crs is None or np.dtype(data.dtypes[0]).kind not in "iu":
            raise ConfigError(
                f"evaluate.land_cover wants classes as whole numbers, with a CRS, not {data.dtypes[0]}, CRS {data.crs}: {uri}"
            )

    def __call__(self, lon: float, lat: float) -> str:
        """The commonest class within a patch around a place, in words (of equal counts the lower); "" outside or unknown."""
        if not (math.isfinite(lon) and abs(lat) < POLE):
            return ""
        data: Any = self._raster.dataset
        half = SPAN / 2 / METRES_PER_DEGREE
        wide = half / max(math.cos(math.radians(lat)), 0.01)
        try:
            xs, ys = transform("EPSG:4326", data.crs, [lon - wide, lon + wide] * 2, [lat - half] * 2 + [lat + half] * 2)
            rows, cols = AffineTransformer(data.transform).rowcol(xs, ys)
        except RasterioError:
            return ""
        top, left = max(0, int(min(rows))), max(0, int(min(cols)))
        bottom, right = min(data.height, int(max(rows)) + 1), min(data.width, int(max(cols)) + 1)
        if bottom <= top or right <= left:
            return ""
        classes, known = self._raster.read([1], top, left, bottom - top, right - left)
        values, counts = np.unique(classes[known], return_counts=True)
        if not len(values):
            return ""
        value = int(values[np.argmax(counts)])
        return WORLD_COVER.get(value, f"class {value}")


def guessed(db: npt.NDArray[np.float32]) -> str:
    """Water, open land or forest by the median VH of a patch (2, H, W) dB; "" without data."""
    vh = db[1][np.isfinite(db[1])]
    if not len(vh):
        return ""
    middle = float(np.median(vh))
    return "water (by radar)" if middle < WATER else "forest (by radar)" if middle > FOREST else "open (by radar)"
