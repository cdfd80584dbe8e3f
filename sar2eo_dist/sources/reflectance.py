"""What the numbers of a Sentinel-2 band mean, from its product's own metadata and nothing else (never by date).

EO pixels are DN = reflectance x 10000. Since processing baseline 04.00 products add 1000 to them, unless whoever
distributes them took that off again: only a statement beside the pixels can tell. Statements that are understood:
GDAL's scale and offset of the band, the tags BOA_ADD_OFFSET and RADIO_ADD_OFFSET (ESA's, with or without a band behind
them), BOA_QUANTIFICATION_VALUE, and STAC's `raster:bands` as a JSON tag. None: 0 is added.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar2eo_dist.errors import BadInput

DN = 10_000.0  # DN of reflectance 1
BELOW = 200  # DN: how far below the offset (reflectance 0) noise and haze correction reach
FEW = 0.01  # share of pixels that may lie lower still
_OFFSET = re.compile(r"(BOA|RADIO)_ADD_OFFSET(_\w+)?", re.ASCII)
_QUANTIFICATION = re.compile(r"(L[12][AC]_)?((BOA|RADIO)_)?QUANTIFICATION_VALUE", re.ASCII)

Statement = tuple[str, float]


def meaning(dataset: Any, number: int, uri: str) -> tuple[float, int]:
    """(factor from stored values to DN, DN that the product added) of a 1-based band of a rasterio dataset.

    uint16 and int16 are DN; floats are read only where a scale says what they are. Raises BadInput wrong_dtype: another
    type, floats without a scale, statements that contradict each other, an offset that is no whole DN of 0..10000.
    """
    tags = {k.upper(): v.strip() for k, v in (dataset.tags() | dataset.tags(number)).items()}
    stac = _stac(tags, number, dataset.count, uri)
    scale, addend = dataset.scales[number - 1], dataset.offsets[number - 1]
    scales = [(f"GDAL scale {scale}", scale)] if scale != 1 else []
    scales += [(f"{k} {v}", 1 / v) for k, v in _numbers(tags, _QUANTIFICATION, uri) if v]
    scales += [(f"raster:bands scale {stac['scale']}", stac["scale"])] if "scale" in stac else []
    unit = _agreed(scales, 1e-9, uri)
    if unit is not None and unit <= 0:
        raise BadInput("wrong_dtype", uri, f"{scales[0][0]} is no scale")
    dtype = dataset.dtypes[number - 1]
    if dtype in ("uint16", "int16"):
        if unit is not None and not math.isclose(unit * DN, 1, rel_tol=1e-6):
            raise BadInput("wrong_dtype", uri, f"{scales[0][0]} on {dtype}: DN of reflectance x 10000 are wanted")
        factor = 1.0
    elif dtype not in ("float32", "float64"):
        raise BadInput("wrong_dtype", uri, f"band {number} is {dtype}, not uint16")
    elif unit is None:
        why = "no scale says whether reflectance or DN: store uint16 DN, or set the band's scale (0.0001 for DN)"
        raise BadInput("wrong_dtype", uri, f"band {number} is {dtype}: {why}")
    else:
        factor = unit * DN

    def added(value: float, beside: float) -> float:
        """An addend in DN: of reflectance where a scale stands beside it, else of the stored numbers."""
        return -value * (factor if beside == 1 else DN) + 0.0

    offsets = [(f"GDAL offset {addend}", added(addend, scale))] if addend else []
    offsets += [(f"{k} {v}", -v + 0.0) for k, v in _numbers(tags, _OFFSET, uri)]
    if "offset" in stac:
        offsets.append((f"raster:bands offset {stac['offset']}", added(stac["offset"], stac.get("scale", 1))))
    offset = _agreed(offsets, 0.01, uri) or 0.0
    if abs(offset - round(offset)) > 0.01 or not 0 <= round(offset) <= DN:
        raise BadInput("wrong_dtype", uri, f"{offsets[0][0]} means {offset:g} DN added, not a whole number of 0..10000")
    return factor, round(offset)


def check_offset(bands: NDArray[np.uint16], offset: int, uri: str) -> None:
    """Raise BadInput wrong_dtype where DN say that the offset declared is not in them. bands: (3, h, w), 0 = no data."""
    if not offset:
        return
    valid = bands.all(axis=0)
    low = np.count_nonzero((bands.min(axis=0) < max(offset - BELOW, 0)) & valid)
    if low > FEW * np.count_nonzero(valid):
        detail = (
            f"declared offset {offset} but DN fall to {bands[:, valid].min()} ({low} pixels under {offset - BELOW})"
        )
        raise BadInput("wrong_dtype", uri, f"{detail}: already removed? correct the product's offset tags")


def _numbers(tags: dict[str, str], pattern: re.Pattern[str], uri: str) -> list[Statement]:
    found = [(k, v) for k, v in sorted(tags.items()) if pattern.fullmatch(k)]
    try:
        return [(k, float(v)) for k, v in found]
    except ValueError as e:
        raise BadInput("wrong_dtype", uri, f"tags {dict(found)} hold no number") from e


def _stac(tags: dict[str, str], number: int, count: int, uri: str) -> dict[str, float]:
    """scale and offset of one band in a raster:bands tag: a list with an entry a band, or one entry."""
    # a colon ends a name in GDAL's tags: "raster:bands" comes back as "raster", its value with the rest
    text = tags.get("RASTER_BANDS") or tags.get("RASTER", "")
    if not (text := text.removeprefix("bands=")).startswith(("[", "{")):
        return {}
    try:
        entries = json.loads(text)
        entry = entries if isinstance(entries, dict) else entries[0 if len(entries) == 1 else number - 1]
        if isinstance(entries, list) and len(entries) not in (1, count):
            raise ValueError(f"{len(entries)} entries for {count} bands")
        return {k: float(entry[k]) for k in ("scale", "offset") if entry.get(k) is not None}
    except (ValueError, TypeError, LookupError, AttributeError) as e:
        raise BadInput("wrong_dtype", uri, f"tag raster:bands {text[:80]!r} cannot be read ({e})") from e


def _agreed(statements: list[Statement], tolerance: float, uri: str) -> float | None:
    """What all statements say; None where there is none. Raises BadInput wrong_dtype where two differ."""
    for name, value in statements:
        if not math.isfinite(value):
            raise BadInput("wrong_dtype", uri, f"{name} is no scale or offset")
        if abs(value - statements[0][1]) > tolerance:
            raise BadInput("wrong_dtype", uri, f"the product contradicts itself: {statements[0][0]}, {name}")
    return statements[0][1] if statements else None
