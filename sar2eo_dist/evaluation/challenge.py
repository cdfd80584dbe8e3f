"""The score of the MultiEarth challenge's SAR-to-EO track, for any number of images and truths a query.

Every band of every image is stretched from its own minimum and maximum to [0, 1], n(z); a constant band becomes 0. Of each
submitted image x counts the truth t nearest to it, min over t of mean(|n(t) - n(x)|^p); a query's images are summed (or
averaged), queries are averaged, lower is better. The organisers' server takes p = 2 and the sum; the paper (arXiv
2306.12626) calls its figure MAE, which is p = 1. The newest public scoring script swaps the roles: for each truth the
minimum over the submitted images, summed over truths. Here it is the server's order: each image looks for its truth.

The score knows no absolute radiometry and rewards blur, so that trivial images do well: always show some beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ModelError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
POWERS, REDUCES = (1, 2), ("sum", "mean")
#: share of its pixels that an image must have to be compared: two images of a pixel each would be equal
ENOUGH = 0.5


def multiearth_mse_sum(queries: Iterable[Any]) -> float:
    """The server's figure: `score` with squares, summed over a query's images. 0..K of K images a query."""
    return score(queries, 2, "sum")


def mae_min(queries: Iterable[Any]) -> float:
    """`score` with absolute differences, averaged over a query's images: 0..1."""
    return score(queries, 1, "mean")


def score(queries: Iterable[Any], p: int = 2, reduce: str = "sum") -> float:
    """Mean over queries; one of them is held at a time, and neither their order nor that of a query's images matters.

    queries  of (outputs (K, C, H, W), truths (T, C, H, W)), or the two and valid (T, H, W) bool, each as `distances` takes
             them; K, T, C, H and W may differ from query to query
    p        1: absolute differences; 2: squares
    reduce   "sum" or "mean" over a query's images
    Raises ModelError: p or reduce is another one, there is no query, or what `distances` and `nearest` refuse, with the
    number of the query (from 0).
    """
    _check_options(p, reduce)
    try:
        each = iter(queries)
    except TypeError as e:
        raise ModelError(f"queries must be an iterable of (outputs, truths), not {type(queries).__name__}") from e

    scores: list[float] = []
    for query in each:
        try:
            scores.append(nearest(_distances(query, p), reduce))
        except ModelError as e:
            raise ModelError(f"query {len(scores)}: {e}") from e
        del query  # before the next one is made
    return mean(scores)


def mean(scores: Sequence[float]) -> float:
    """Mean of the queries' own scores, of their exact sum: the same in any order. Raises ModelError where there is none."""
    if not scores:
        raise ModelError("no query to score (0 given)")
    return math.fsum(scores) / len(scores)


def nearest(found: Floats, reduce: str = "sum") -> float:
    """Score of one query from its distances (K, T): of each image the nearest truth that has data, summed or averaged.

    Raises ModelError where no truth has data.
    """
    _check_options(2, reduce)
    if np.isnan(found).all():
        raise ModelError(f"none of the {found.shape[1]} truths has a valid pixel")
    total = math.fsum(np.nanmin(found, axis=1).tolist())
    return total if reduce == "sum" else total / len(found)


def distances(outputs: Array, truths: Array, p: int = 2, valid: Array | None = None) -> Floats:
    """mean(|n(truth) - n(output)|^p) of each output and truth, (K, T) float64 of 0..1.

    outputs  (K, C, H, W), any integer or floating dtype, any values: only the shape of a band counts
    truths   (T, C, H, W), likewise
    valid    (T, H, W) bool, where a truth has data (None: everywhere). Of the other pixels neither its range nor the
             output's nor the mean knows, whatever they hold; NaN where a truth has no valid pixel
    All is computed in float64. Raises ModelError, naming image, band and pixel: shapes or dtypes that do not fit, K, T or
    a side of 0, another p, a pixel that counts and is not finite.
    """
    _check_options(p, "sum")
    ours, true = _images(outputs, "outputs"), _images(truths, "truths")
    if ours.shape[1:] != true.shape[1:]:
        raise ModelError(f"outputs {ours.shape} and truths {true.shape} are not of the same bands and pixels")
    seen = _seen(valid, true)
    found = np.full((len(ours), len(true)), np.nan)
    whole: list[Floats] = []  # the outputs as truths with data everywhere see them: made once
    for j, (truth, at) in enumerate(zip(true, seen, strict=True)):
        if at is not None and not len(at):
            continue
        wanted = _stretched(truth, at, f"truth {j}")
        if at is None:
            whole = whole or [_stretched(image, None, f"output {i}") for i, image in enumerate(ours)]
        for i, image in enumerate(ours):
            apart = wanted - (whole[i] if at is None else _stretched(image, at, f"output {i}"))
            found[i, j] = np.mean(np.multiply(apart, apart, out=apart) if p == 2 else np.abs(apart, out=apart))
    return found


def _check_options(p: int, reduce: str) -> None:
    if p not in POWERS:
        raise ModelError(f"p is 1 (absolute differences) or 2 (squares), not {p!r}")
    if reduce not in REDUCES:
        raise ModelError(f"reduce is one of {', '.join(REDUCES)}, not {reduce!r}")


def _distances(query: Any, p: int) -> Floats:
    try:
        outputs, truths, *valid = query
    except (TypeError, ValueError) as e:
        raise ModelError(f"a query is (outputs, truths) or the two and valid, not a {type(query).__name__}") from e
    if len(valid) > 1:
        raise ModelError(f"a query is (outputs, truths) or the two and valid, not {2 + len(valid)} values")
    return distances(outputs, truths, p, *valid)


def _images(images: Any, what: str) -> Array:
    """As an array (N, C, H, W) of numbers, none of its sides 0."""
    if isinstance(images, np.ma.MaskedArray):
        raise ModelError(f"{what} are a masked array, whose mask would not count: give valid")
    try:
        array = np.asarray(images)
    except (TypeError, ValueError) as e:
        raise ModelError(f"{what} are no array (N, C, H, W): {e}") from e
    if array.dtype.kind not in "iuf":
        raise ModelError(f"{what} must be integers or floating numbers, not {array.dtype} of {type(images).__name__}")
    if array.ndim != 4 or not array.size:
        raise ModelError(f"{what} must be (N, C, H, W) with at least one of each, not {array.shape}")
    return array


def _seen(valid: Array | None, truths: Array) -> list[npt.NDArray[np.int64] | None]:
    """Of each truth the places, in its H W pixels in a row, that have data; None where all have."""
    if valid is None:
        return [None] * len(truths)
    masks, shape = np.asarray(valid), (len(truths), *truths.shape[2:])
    if masks.dtype != np.bool_ or masks.shape != shape:
        raise ModelError(f"valid must be bool {shape}, not {masks.dtype} {masks.shape}")
    return [None if mask.all() else np.flatnonzero(mask) for mask in masks]


def _stretched(image: Array, at: npt.NDArray[np.int64] | None, what: str) -> Floats:
    """n(z) of an image (C, H, W): of its pixels, or of those at some places, (C, n) float64."""
    pixels = image.reshape(len(image), -1)
    if at is not None:
        pixels = pixels.take(at, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (f(axis=1, keepdims=True).astype(np.float64) for f in (pixels.min, pixels.max))
        span = high - low
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        _refuse(image, at, what)
    out = pixels.astype(np.float64)
    if not np.isfinite(span).all():  # wider than float64 goes: half of a band has the same shape
        half = np.where(np.isfinite(span), 1.0, 0.5)
        out, low, span = out * half, low * half, high * half - low * half
    out -= low
    out /= np.where(span > 0, span, 1.0)
    return out


def _refuse(image: Array, at: npt.NDArray[np.int64] | None, what: str) -> NoReturn:
    """Raise ModelError that names the first pixel, of those that count, that is not finite."""
    pixels = image.reshape(len(image), -1).astype(np.float64)
    places = np.arange(pixels.shape[1]) if at is None else at
    band, n = (int(i) for i in np.argwhere(~np.isfinite(pixels[:, places]))[0])
    row, col = divmod(int(places[n]), image.shape[2])
    raise ModelError(f"{what} is not finite in band {band} at pixel ({row}, {col}): {image[band, row, col]}")
