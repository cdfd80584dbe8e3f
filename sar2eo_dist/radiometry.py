"""Radiometry of Sentinel-1 and Sentinel-2: what is stored, what a network sees, and the way back.

Shards keep raw values (dB as scaled int16, DN as uint16); everything here happens at load, so one store serves every
variant. Named variants follow arXiv 2306.12626 (dataset1 = `minmax`, dataset2 = `tanh`) and the authors' published
channel script (`ratio_stretched`); `fixed` and `tanh_fixed` are ours, with constants in place of image statistics, so
that neighbouring windows of a mosaic get the same radiometry. Nodata is NaN in dB and 0.0 after scaling.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import BadInput, ConfigError

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

DB_STEP = 0.01  # dB of one count of the stored int16
DB_NODATA = -32768
DB_LIMIT = 327.67  # dB; int16 holds +- this, what lies beyond is clipped

#: fixed ranges: dB, and for the ratio its own unit. mean_db is the mean of both dB ranges. The ratio of two channels
#: that are stretched by their fixed ranges lies near 1 over land; 0..2 is our choice, nothing is published.
RANGES: dict[str, tuple[float, float]] = {
    "VV": (-25.0, 0.0),
    "VH": (-32.0, -5.0),
    "difference_db": (0.0, 20.0),
    "mean_db": (-28.5, -2.5),
    "ratio_stretched": (0.0, 2.0),
}
DN_RANGE = (0.0, 3000.0)  # reflectance 0 to 0.3; forest is near DN 300, bare soil near 2500


class ScalingLike(Protocol):
    """`config.Scaling`, without importing pydantic into the training step."""

    @property
    def sar(self) -> str: ...
    @property
    def eo(self) -> str: ...
    @property
    def third(self) -> str: ...
    @property
    def median(self) -> int: ...


_DISPLAY = np.rint(255 * (np.arange(256) / 255) ** (1 / 1.8)).astype(np.uint8)


def encode_db(db: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """dB, any shape, as int16 counts of 0.01 dB; non-finite values become -32768.

    Within +-327.67 dB the error is at most 0.005 dB (plus < 2e-5 dB of float32); values beyond are clipped to that.
    """
    hole, x = ~np.isfinite(db), np.array(db, np.float64)  # in float32 a value between two counts could round wrongly
    x[hole] = 0
    counts = np.rint(np.divide(np.clip(x, -DB_LIMIT, DB_LIMIT, out=x), DB_STEP, out=x), out=x).astype(np.int16)
    counts[hole] = DB_NODATA
    return counts


def decode_db(counts: npt.NDArray[np.int16]) -> F32:
    """The inverse of `encode_db`: float32 dB, NaN where nodata."""
    db = counts.astype(np.float32) / np.float32(1 / DB_STEP)
    np.copyto(db, np.float32(np.nan), where=counts == DB_NODATA)
    return db


def validity(db: F32) -> Mask:
    """(2, H, W) dB -> (H, W): finite in both channels, and not 0 in both.

    The borders of geocoded S1 scenes hold zeros that are not data; no target gives exactly 0 dB in VV and in VH.
    Readers turn what is invalid here into NaN; all later steps go by NaN alone.
    """
    _check_db(db)
    mask: Mask = np.isfinite(db).all(axis=0) & (db != 0).any(axis=0)
    return mask


def median_blur(db: F32, k: int) -> F32:
    """Median of the k x k neighbourhood of each pixel: (2, H, W) dB -> same, float32. k = 0 (off), 3 or 5.

    The image's edge is replicated, as cv2.medianBlur does. NaN stays NaN, and NaN neighbours are left out (an even
    number of values left gives the mean of the middle two), so a pixel's value depends on its neighbourhood alone.
    """
    _check_db(db)
    if k not in (0, 3, 5):
        raise ConfigError(f"scaling.median must be 0, 3 or 5 pixels, not {k}")
    out = np.array(db, dtype=np.float32, order="C")
    for band in out if k else ():
        hole = np.isnan(band)
        if not hole.any():
            band[:] = cv2.medianBlur(band, k)
        elif not hole.all():
            band[:] = _median_with_holes(band, hole, k)
    return out


def _median_with_holes(band: F32, hole: Mask, k: int) -> F32:
    blurred: F32 = cv2.medianBlur(np.where(hole, np.float32(0), band), k)
    near = cv2.dilate(hole.astype(np.uint8), np.ones((k, k), np.uint8)).astype(bool) & ~hole
    rows, cols = np.nonzero(near)
    padded = np.pad(band, k // 2, mode="edge")
    around = np.stack([padded[rows + i, cols + j] for i in range(k) for j in range(k)], axis=1)
    around.sort(axis=1)  # NaN goes to the end
    count = (~np.isnan(around)).sum(axis=1)
    pick = np.arange(len(rows))
    low, high = around[pick, (count - 1) // 2], around[pick, count // 2]
    blurred[rows, cols] = low + (high - low) * np.float32(0.5)
    blurred[hole] = np.nan
    return blurred


def channels(db: F32, third: str) -> F32:
    """The 3-channel SAR image: (2, H, W) dB, VV then VH -> (3, H, W) float32; NaN in all three where either is NaN.

    difference_db     VV, VH, VV - VH: dB
    mean_db           VV, VH, (VV + VH) / 2: dB
    ratio_stretched   as the authors' script, without its JPEG: VV' and VH' are VV and VH stretched from their minimum
                      and maximum to 0..255, the third is VV' / VH' (0 where VH' = 0) stretched likewise; all three
                      truncated to whole numbers. A constant channel gives 0 (the script divides by zero there).
    """
    _check_db(db)
    x = np.empty((3, *db.shape[1:]), np.float32)
    x[:2] = db
    np.copyto(x[:2], np.float32(np.nan), where=~np.isfinite(x[:2]).all(axis=0))
    return _with_third(x, third)


def _with_third(x: F32, third: str) -> F32:
    vv, vh = x[0], x[1]  # NaN in one of them makes the third NaN, but not the other
    if third == "difference_db":
        np.subtract(vv, vh, out=x[2])
    elif third == "mean_db":
        x[2] = (vv + vh) * np.float32(0.5)
    elif third == "ratio_stretched":
        x[0], x[1] = _stretch(vv), _stretch(vh)
        x[2] = _stretch(_ratio(x[0], x[1]))
        np.trunc(x, out=x)
    else:
        raise ConfigError(f"unknown third SAR channel {third!r}: difference_db, mean_db or ratio_stretched")
    return x


def _stretch(band: F32) -> F32:
    low, high = _ends(band)
    return (band - low) / (high - low) * np.float32(255) if high > low else band * np.float32(0)


def _ratio(vv: F32, vh: F32) -> F32:
    return np.divide(vv, vh, out=np.where(np.isnan(vh), vh, np.float32(0)), where=vh != 0)


def _ends(x: F32) -> tuple[F32, F32]:
    """Minimum and maximum of what is not NaN in each band, (..., 1, 1); (0, 0) where nothing is."""
    low, high = x.min(axis=(-2, -1), keepdims=True), x.max(axis=(-2, -1), keepdims=True)
    if np.isnan(low).any():
        low, high = (f.reduce(x, axis=(-2, -1), keepdims=True) for f in (np.fmin, np.fmax))
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=0.0)


def scale_sar(db: F32, scaling: ScalingLike) -> F32:
    """(2, H, W) dB -> the network's input (3, H, W) float32 in [-1, 1]; 0.0 where VV or VH is not finite.

    In this order: median blur (`scaling.median`), channels (`scaling.third`), then per channel (`scaling.sar`):
    minmax       minimum and maximum of the image to -1 and 1; a constant channel is -1 (dataset1)
    tanh         tanh((x - median) / (1.4826 MAD)) of the image, then minmax (dataset2; of what it takes the tanh is not
                 published). MAD = 0, more than half of the pixels equal: standard deviation in its place
    fixed        RANGES to [-1, 1], clipped
    tanh_fixed   tanh with constants: the centre of RANGES, and their quarter as scale (both ends as +-2 sigma, +-0.96)
    For `fixed` and `tanh_fixed` the ratio is that of VV and VH stretched by their fixed ranges, not by the image's.
    """
    db = median_blur(np.where(np.isfinite(db), db, np.float32(np.nan)).astype(np.float32, copy=False), scaling.median)
    x = np.empty((3, *db.shape[1:]), np.float32)
    x[:2] = db
    _scale(x, scaling)
    np.copyto(x, np.float32(0), where=np.isnan(x).any(axis=0))
    return x


def scale_counts(counts: npt.NDArray[np.int16], scaling: ScalingLike, out: F32 | None = None) -> F32:
    """`scale_sar(decode_db(counts), scaling)` to the bit, of the (2, H, W) int16 that are stored; into `out`, if given.

    Decoding keeps order: where nothing is nodata the counts themselves are blurred, and no pass looks for holes.
    """
    x = np.empty((3, *counts.shape[1:]), np.float32) if out is None else out
    whole = counts.dtype == np.int16 and counts.ndim == 3 and len(counts) == 2 and counts.min(initial=0) > DB_NODATA
    if whole and counts.size and scaling.median in (0, 3, 5):
        for band, db in zip(counts, x, strict=False):
            db[:] = cv2.medianBlur(band, scaling.median) if scaling.median else band
        x[:2] /= np.float32(1 / DB_STEP)
        _scale(x, scaling)
    else:
        x[:] = scale_sar(decode_db(counts), scaling)
    return x


def _scale(x: F32, scaling: ScalingLike) -> None:
    """The dB in x[:2] to scaled channels, in place; where one is NaN, not all three need be."""
    if scaling.sar in ("fixed", "tanh_fixed"):
        _scale_by_constants(x, scaling.third, tanh=scaling.sar == "tanh_fixed")
    elif scaling.sar in ("minmax", "tanh"):
        x[:] = channels(x[:2], scaling.third)
        for band in x if scaling.sar == "tanh" else ():
            band[:] = _robust_tanh(band)
        _to_unit(x, *_factors(*_ends(x)))
    else:
        raise ConfigError(f"unknown scaling.sar {scaling.sar!r}: minmax, tanh, tanh_fixed or fixed")


def _scale_by_constants(x: F32, third: str, tanh: bool) -> None:
    if third == "ratio_stretched":
        unit = _to_unit(x[:2].copy(), *_between(RANGES["VV"], RANGES["VH"]))
        x[2] = _ratio(*(unit + np.float32(1)))  # the factor to 0..255 cancels
    else:
        _with_third(x, third)
    ends = RANGES["VV"], RANGES["VH"], RANGES[third]
    if tanh:
        x -= np.array([(low + high) / 2 for low, high in ends], np.float32)[:, None, None]
        x /= np.array([(high - low) / 4 for low, high in ends], np.float32)[:, None, None]
        np.tanh(x, out=x)
    else:
        _to_unit(x, *_between(*ends))


@functools.cache
def _between(*ends: tuple[float, float]) -> tuple[F32, F32]:
    return _factors(*np.array(ends).T[..., None, None])


def _factors(low: npt.NDArray[np.floating], high: npt.NDArray[np.floating]) -> tuple[F32, F32]:
    span = (high - low).astype(np.float32)
    return low.astype(np.float32), np.divide(np.float32(2), span, out=np.zeros_like(span), where=span > 0)


def _robust_tanh(band: F32) -> F32:
    values = band[~np.isnan(band)]
    if not values.size:
        return band
    centre = np.median(values)
    spread = 1.4826 * float(np.median(np.abs(values - centre))) or float(values.std())
    return np.tanh((band - centre) / np.float32(spread)) if spread > 0 else band


def _to_unit(x: F32, low: F32, factor: F32) -> F32:
    """Each band from its range to [-1, 1] in place, clipped, NaN kept; low == high: all -1."""
    # all bands in one call: threads that scale side by side stand in line for the interpreter after each call
    if low.any():
        x -= low
    x *= factor
    x -= np.float32(1)
    return np.clip(x, -1, 1, out=x)


def scale_eo(dn: npt.NDArray[np.uint16], valid: Mask, scaling: ScalingLike, out: F32 | None = None) -> F32:
    """(3, H, W) uint16 DN and its (H, W) valid mask -> (3, H, W) float32 in [-1, 1]; 0.0 where not valid.

    minmax: minimum and maximum of the valid pixels of each band (dataset1; a constant band is -1).
    fixed: DN 0..3000, clipped; `unscale_eo` inverts it.
    """
    if dn.ndim != 3 or valid.shape != dn.shape[1:]:
        raise BadInput("wrong_shape", "(array)", f"EO {dn.shape} with valid mask {valid.shape}, not (C, H, W), (H, W)")
    if scaling.eo not in ("minmax", "fixed"):
        raise ConfigError(f"unknown scaling.eo {scaling.eo!r}: minmax or fixed")
    x = np.empty(dn.shape, np.float32) if out is None else out
    x[:] = dn
    if scaling.eo == "minmax":
        np.copyto(x, np.float32(np.nan), where=~valid)
    _to_unit(x, *(_between(DN_RANGE) if scaling.eo == "fixed" else _factors(*_ends(x))))
    if not valid.all():
        np.copyto(x, np.float32(0), where=~valid)
    return x


def unscale_eo(x: npt.NDArray[np.floating], scaling: ScalingLike) -> F32:
    """The inverse of `scale_eo` with `fixed`: [-1, 1] -> float32 DN 0..3000, clipped, not rounded; NaN kept.

    Raises ConfigError for `minmax`: each image was scaled by its own extremes, which nothing records.
    """
    if scaling.eo != "fixed":
        raise ConfigError(f"scaling.eo={scaling.eo!r} has no inverse: DN can be had back from 'fixed' only")
    low, high = DN_RANGE
    dn: F32 = (np.asarray(x, np.float32) + np.float32(1)) * np.float32((high - low) / 2) + np.float32(low)
    return np.clip(dn, low, high, out=dn)


def turned(image: npt.NDArray[Any], symmetry: int) -> npt.NDArray[Any]:
    """A symmetry of the square, 0..7, of (C, H, W): bit 0 exchanges rows and columns, then 1 reverses rows, 2 columns."""
    turned = image.view(np.uint8 if image.dtype == bool else image.dtype)
    if symmetry & 1:  # by cv2: several times as fast as a numpy view and its copy
        turned = np.stack([cv2.transpose(band) for band in turned])
    if symmetry & 4:  # with bit 1 the rows of a band are joined: both are reversed at once
        rows = len(turned) if symmetry & 2 else turned[..., 0].size
        turned = cv2.flip(turned.reshape(rows, -1), 1).reshape(turned.shape)
    elif symmetry & 2:
        turned = turned[:, ::-1].copy()
    return turned.view(image.dtype)


def to_uint8(x: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """[-1, 1] -> 0..255, rounded and clipped; NaN (no data) becomes 0."""
    scaled: F32 = np.rint((np.asarray(x, np.float32) + np.float32(1)) * np.float32(127.5))
    return np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).astype(np.uint8)


def display(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 -> uint8 for the eye: gamma 1.8, since forest lies in the darkest tenth of DN 0..3000. Pictures only."""
    return _DISPLAY[rgb]


def _check_db(db: npt.NDArray[np.floating]) -> None:
    if db.ndim != 3 or db.shape[0] != 2 or 0 in db.shape:
        raise BadInput("wrong_shape", "(array)", f"SAR {db.shape}, not (2, H, W): VV, VH")
    if not np.issubdtype(db.dtype, np.floating):
        raise BadInput("wrong_dtype", "(array)", f"SAR {db.dtype}, not dB as float32")
