"""The confidence band: how far off a pixel's colour typically is, in DN, learned from held-out pairs.

Its value is the median absolute error to expect: half of the pixels that look like this one were off by less (mean over
B4, B3, B2 of |made - true|). "Look like this one" is a cell of a table over three features: how bright the made image is,
VH around it, and VV - VH in a wider surrounding, which tells kinds of land cover apart. So a mixture of covers that the
radar cannot separate, and the networks therefore confuse, gets the large error that it had on held-out ground.

A median, since the truth of held-out pairs has clouds left in places, which move a mean and hardly a median.
Fitting counts pixels: sums of integers, so no order of pairs and no number of workers changes the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ModelError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]

RADIUS = 15  # pixels around a pixel that its value depends on; windows with such a halo agree to the bit
NODATA = 0  # of `predict`; no pixel with data has it
FORMAT = 1  # of the JSON
DN_FULL = 3000.0  # DN that +1 stands for, and -1 is 0: scaling.eo = fixed


class Axis(NamedTuple):
    """`cells` of a width of `step` from `first` on; what lies outside belongs to the outermost."""

    name: str
    first: float
    step: float
    cells: int


AXES = (
    Axis("square root of the mean DN of B4, B3, B2 of the last image", 0.0, 2.0, 28),
    Axis("mean VH of 9 x 9 pixels, dB", -32.0, 1.0, 27),
    Axis("mean VV - VH of 31 x 31 pixels, dB", 2.0, 1.0, 10),
)
SHAPE = tuple(axis.cells for axis in AXES)
NEAR, WIDE = 9, 2 * RADIUS + 1  # sides of the squares that the radar is averaged over
BINS = 64  # of the square root of the error, which gives small errors the finer bins
ROOT = np.sqrt(DN_FULL) / BINS  # width of such a bin
#: A cell with few pixels takes the rest from its surroundings: kernels of these widths (share of an axis), one after the
#: other, and PRIOR pixels of each to the next
WIDTHS = (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125)
PRIOR = 30.0
STRIP = 128  # rows that `predict` takes at once: what it makes on the way then stays in the processor's cache
FINE = 4  # steps to a cell at which the table is interpolated, once, for `predict`
MEANING = "DN; half of the pixels like this are off by less: mean over B4, B3, B2 of |made - true|"


def features(db: F32, images: Sequence[F32]) -> F32:
    """(3, h, w) float32, the quantities of AXES; NaN where VV, VH or the image is not finite.

    db: (2, h, w) dB, NaN = no data; images: (3, h, w) float32 in [-1, 1] after each network, of which the last counts.
    Pixels without data take no part in the means around them. Raises ModelError where the shapes differ.
    """
    _check(db, images)
    made, seen = _features(db, images)
    out = np.stack(made)
    out[:, ~seen] = np.nan
    return out


def _check(db: F32, images: Sequence[F32]) -> None:
    if not len(images) or db.ndim != 3 or db.shape[0] != 2 or images[-1].shape != (3, *db.shape[1:]):
        raise ModelError(f"SAR {db.shape} and images {[i.shape for i in images]}: not (2, h, w) and (3, h, w) each")


def _features(db: F32, images: Sequence[F32]) -> tuple[tuple[F32, F32, F32], Mask]:
    """The features, any finite value where not seen, and where they are seen."""
    red, green, blue = images[-1]
    level = (red + green + blue) * np.float32(DN_FULL / 6) + np.float32(DN_FULL / 2)
    seen = np.isfinite(db[0]) & np.isfinite(db[1])
    data = np.where(seen, db, np.float32(0))
    # whole hundredths of a dB: their sums are exact, so a mean does not depend on where the window begins
    vv, vh = np.rint(np.clip(data, -100, 100) * np.float32(100)).astype(np.int16)
    here = seen.astype(np.uint8)
    near, wide = _mean(vh, here, NEAR), _mean(vv - vh, here, WIDE)
    lit = np.isfinite(level)
    if not lit.all():
        level[~lit] = 0
    return (np.sqrt(np.clip(level, 0, np.float32(DN_FULL))), near, wide), seen & lit


def _mean(counts: npt.NDArray[np.int16], seen: npt.NDArray[np.uint8], side: int) -> F32:
    """Mean over side x side pixels, of those that are seen (others are 0 in both); 0 where none is."""
    total, pixels = (
        cv2.boxFilter(x, cv2.CV_32F, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
        for x in (counts, seen)
    )
    mean: F32 = total / (np.maximum(pixels, 1) * np.float32(100))
    return mean


def _cells(made: Sequence[F32], fine: int = 1) -> npt.NDArray[np.int32]:
    """Flat places of the features in a table with `fine` steps to a cell."""
    flat = np.zeros(made[0].shape, np.int32)
    for axis, x in zip(AXES, made, strict=True):
        last = axis.cells * fine - 1
        place = (x - np.float32(axis.first)) * np.float32(fine / axis.step)
        flat *= last + 1
        flat += np.clip(place, 0, last, out=place).astype(np.int32)
    return flat


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """table: SHAPE float64, DN: the median absolute error of a cell; pixels: how many it was learned from.

    Raises ModelError where the table has another shape, or numbers that are no errors.
    """

    table: F64
    pixels: int
    _fine: U16 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.table.shape != SHAPE:
            raise ModelError(f"a confidence table of {self.table.shape}, not {SHAPE}")
        if not ((self.table >= 0) & (self.table <= DN_FULL)).all():
            raise ModelError(f"a confidence table holds errors that are not within 0..{DN_FULL:g} DN")
        fine = self.table
        for at, count in enumerate(SHAPE):
            place = np.clip((np.arange(count * FINE) + 0.5) / FINE - 0.5, 0, count - 1)
            weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count)))
            fine = _along(weights, fine, at)
        object.__setattr__(self, "_fine", np.maximum(np.rint(fine), NODATA + 1).astype(np.uint16).ravel())

    def predict(self, db: F32, images: Sequence[F32]) -> U16:
        """(h, w) uint16 DN: the median absolute error to expect, 1 at least; NODATA where `features` is NaN.

        db, images: as of `features`. A pixel's value depends on db within RADIUS of it and on the image at it.
        """
        _check(db, images)
        out: U16 = np.empty(db.shape[1:], np.uint16)
        for top in range(0, len(out), STRIP):
            rows, start = slice(top, top + STRIP), max(top - RADIUS, 0)
            with_halo = slice(start, top + STRIP + RADIUS)
            made, seen = _features(db[:, with_halo], [images[-1][:, with_halo]])
            core = slice(top - start, top - start + STRIP)
            out[rows] = np.where(seen, np.take(self._fine, _cells(made, FINE)), np.uint16(NODATA))[core]
        return out

    def to_json(self) -> str:
        """The model as text: equal models give equal text, and `from_json` gives them back to the bit."""
        tree = {
            "format": FORMAT,
            "meaning": MEANING,
            "radius": RADIUS,
            "pixels": self.pixels,
            "axes": [axis._asdict() for axis in AXES],
            "table": self.table.tolist(),
        }
        return json.dumps(tree, separators=(",", ":"), allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, uri: str = "(text)") -> Model:
        """The inverse of `to_json`. Raises ModelError where the text is torn, or of another format or other axes."""
        try:
            tree: dict[str, Any] = json.loads(text)
            if tree["format"] != FORMAT or [Axis(**axis) for axis in tree["axes"]] != list(AXES):
                raise ValueError(f"format {tree['format']} with axes {tree['axes']}, not {FORMAT} with {AXES}")
            return cls(np.array(tree["table"], np.float64), int(tree["pixels"]))
        except (ValueError, TypeError, KeyError, ModelError) as e:
            raise ModelError(f"not a confidence model ({type(e).__name__}: {e}): {uri}") from e


@dataclass(slots=True)
class Fit:
    """Counts of pixels by cell and error, (*SHAPE, BINS) int64 (4 MB): exact, whatever the order of adding and merging."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((*SHAPE, BINS), np.int64))

    def add(self, db: F32, images: Sequence[F32], true_eo: F32, valid: Mask) -> Fit:
        """Take in a held-out pair. Returns itself.

        db, images: as of `features`; true_eo: (3, h, w) float32 in [-1, 1], scaling.eo = fixed, used where valid (h, w)
        bool and the features are not NaN. Raises ModelError: shapes differ, or the truth is not finite where valid.
        """
        _check(db, images)
        made, seen = _features(db, images)
        if true_eo.shape != (3, *db.shape[1:]) or valid.shape != db.shape[1:] or valid.dtype != np.bool_:
            found = f"{true_eo.shape}, {valid.dtype} {valid.shape}"
            raise ModelError(f"EO must be (3, h, w) with a bool mask (h, w) for SAR {db.shape}, not {found}")
        keep = seen & valid
        if not np.isfinite(true_eo[:, keep]).all():
            raise ModelError("EO is not finite at valid pixels")
        apart = np.abs(np.clip(images[-1][:, keep], -1, 1) - np.clip(true_eo[:, keep], -1, 1))
        error = (apart[0] + apart[1] + apart[2]) * np.float32(DN_FULL / 6)
        bins = np.minimum(np.sqrt(error) * np.float32(1 / ROOT), BINS - 1).astype(np.int32)
        flat = _cells(made)[keep] * np.int32(BINS) + bins
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)
        return self

    def merge(self, other: Fit) -> Fit:
        """Take in another's counts. Returns itself."""
        self.counts += other.counts
        return self

    def solve(self) -> Model:
        """The median of every cell, to 0.1 DN. Raises ModelError where no pixel went in."""
        pixels = int(self.counts.sum())
        if not pixels:
            raise ModelError("no valid pixel of a held-out pair to learn the confidence band from (count 0)")
        share = np.broadcast_to(self.counts.sum(axis=(0, 1, 2)) / pixels, self.counts.shape)
        for width in WIDTHS:
            around = self.counts.astype(np.float64)
            for at, count in enumerate(SHAPE):
                apart = np.subtract.outer(np.arange(count), np.arange(count)) / (width * count)
                around = _along(np.exp(-(apart**2) / 2), around, at)
            share = (around + PRIOR * share) / (around.sum(axis=-1, keepdims=True) + PRIOR)
        return Model(_median(share), pixels)


def _along(weights: F64, x: F64, axis: int) -> F64:
    """weights (m, n) times x along one of its axes, of n."""
    return np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)


def _median(share: F64) -> F64:
    """Median error, DN, of distributions over the bins (last axis), interpolated within a bin, to 0.1 DN."""
    reached = np.cumsum(share, axis=-1)
    at = np.minimum((reached < 0.5).sum(axis=-1, keepdims=True), BINS - 1)
    within = np.take_along_axis(share, at, -1)
    before = np.take_along_axis(reached, at, -1) - within
    root = (at + np.clip((0.5 - before) / within, 0, 1))[..., 0] * ROOT
    median: F64 = np.round(np.minimum(root**2, DN_FULL), 1)
    return median
