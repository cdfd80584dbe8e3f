"""Skill in the field: a mosaic's pixels against clear optical pixels of other days, as sums that are exact.

All pixels are whole DN (reflectance x 10000, B4, B3, B2), so every sum is an integer: neither the order of tiles nor how
they are shared out among workers can change a figure. e = mosaic - truth, in DN.

The trivial predictor answers, for every pixel of one S2 date, with one colour: the mean of that date's clear pixels over
the whole graded area, as whole DN (halves up). It is a generous rival: it is told the truth's own mean, with the season,
the light and the haze of that very day, which no radar shows.

    skill = 1 - sum e^2 / sum (t - mean of its date)^2        over bands, pixels and dates together

1 is perfect, 0 no better than that one colour, below 0 worse. It is NaN where the truth is of that one colour throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sar2eo_dist.radiometry import DN_RANGE
from sar2eo_dist.records import S2_BANDS

Ints = npt.NDArray[np.int64]
WHATS = ("abs", "err", "sq", "truth", "truth_sq")  # sums of |e|, e, e^2, t, t^2
#: what is summed: the number of pixels, then each of WHATS for each band
COLUMNS = ("n", *(f"{what}_{band}" for what in WHATS for band in S2_BANDS))
LEVELS = 1 << 16  # DN that a histogram tells apart
MAP_BANDS = ("mae", "bias", "skill", "n")
_LOW, _HIGH = DN_RANGE
_COLOURS = np.rint(np.arange(256) * (_HIGH - _LOW) / 255 + _LOW).astype(np.int64)


def as_dn(rgb: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Ints:
    """Mosaic pixels as DN, any shape: uint16 as they are; uint8, DN 0..3000 as 0..255, to the nearest whole DN."""
    return _COLOURS[rgb] if rgb.dtype == np.uint8 else rgb.astype(np.int64)


def tally(mosaic: Ints, truth: Ints, cell: Ints) -> tuple[Ints, Ints]:
    """(cells (k,) ascending, sums (k, len(COLUMNS))) of some pixels.

    mosaic, truth: (3, n) int64 DN below 65536; cell: (n,) number of each pixel's cell; n up to 2^21, so that the float64 that
    numpy counts in holds every sum exactly.
    """
    cells, where = np.unique(cell, return_inverse=True)
    e = mosaic - truth
    values = [np.ones_like(cell), *np.abs(e), *e, *e**2, *truth, *truth**2]
    sums = [np.bincount(where, v, len(cells)) for v in values]
    return cells, np.stack(sums, axis=1).astype(np.int64)


def merge(parts: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Several tallies as one."""
    cells, where = np.unique(np.concatenate([c for c, _ in parts]), return_inverse=True)
    sums = np.zeros((len(cells), len(COLUMNS)), np.int64)
    np.add.at(sums, where, np.concatenate([s for _, s in parts]))
    return cells, sums


def histogram(truth: Ints) -> Ints:
    """(3, n) DN -> (3, LEVELS): how often each DN occurs in each band."""
    return np.stack([np.bincount(band, minlength=LEVELS) for band in truth]).astype(np.int64)


def by_band(sums: Ints, what: str) -> Ints:
    """(..., 3) of one of WHATS out of sums (..., len(COLUMNS))."""
    first = 1 + len(S2_BANDS) * WHATS.index(what)
    return sums[..., first : first + len(S2_BANDS)]


def mean_colour(sums: Ints) -> Ints:
    """(len(COLUMNS),) of all clear pixels of a date -> (3,) mean truth, whole DN: the trivial predictor. n must not be 0."""
    n: Ints = np.asarray((2 * by_band(sums, "truth") + sums[0]) // (2 * sums[0]))
    return n


def trivial_squares(sums: Ints, colour: Ints) -> Ints:
    """(..., 3): sum of (t - colour)^2 of each band, exactly, out of sums (..., len(COLUMNS))."""
    out: Ints = by_band(sums, "truth_sq") - 2 * colour * by_band(sums, "truth") + colour**2 * sums[..., :1]
    return out


def trivial_absolute(dn: Ints, count: Ints, colour: int) -> int:
    """Sum of |t - colour| of one band, out of its histogram: the DN that occur and how often, (k,) each."""
    return int((count * np.abs(dn - colour)).sum())


def figures(sums: Ints, apart: int) -> dict[str, float]:
    """What is said of one date: sums (len(COLUMNS),) of all its clear pixels, n > 0; apart: `trivial_absolute` over bands.

    DN: mae, rmse and bias (mean of e) over all bands, and as mae_B4 ... of each; trivial_mae and trivial_rmse of the trivial
    predictor over all bands. skill as above.
    """
    n = int(sums[0])
    bands = {what: by_band(sums, what) for what in WHATS}
    squares, trivial = int(bands["sq"].sum()), int(trivial_squares(sums, mean_colour(sums)).sum())
    count = len(S2_BANDS) * n
    out = {
        "mae": int(bands["abs"].sum()) / count,
        "rmse": (squares / count) ** 0.5,
        "bias": int(bands["err"].sum()) / count,
        "skill": 1 - squares / trivial if trivial else float("nan"),
        "trivial_mae": apart / count,
        "trivial_rmse": (trivial / count) ** 0.5,
    }
    for i, band in enumerate(S2_BANDS):
        out[f"mae_{band}"] = int(bands["abs"][i]) / n
        out[f"rmse_{band}"] = (int(bands["sq"][i]) / n) ** 0.5
        out[f"bias_{band}"] = int(bands["err"][i]) / n
    return out


@dataclass(frozen=True, slots=True)
class SkillMap:
    """Sums of every cell of a rectangle of cells, over bands and dates: memory is 40 bytes a cell.

    row, col: of its first cell, in cells of the mosaic; sums: (5, h, w) int64 of n (pixels), |e|, e, e^2 and the trivial
    predictor's squared error.
    """

    row: int
    col: int
    sums: Ints

    @classmethod
    def around(cls, rows: tuple[int, int], cols: tuple[int, int]) -> SkillMap:
        """Empty, from the first to the last row and column of cells."""
        return cls(rows[0], cols[0], np.zeros((5, rows[1] - rows[0] + 1, cols[1] - cols[0] + 1), np.int64))

    def add(self, rows: Ints, cols: Ints, sums: Ints, colour: Ints) -> None:
        """One tally of one date: cells (k,), none twice, and sums (k, len(COLUMNS)); colour: `mean_colour` of the date."""
        added = [by_band(sums, what).sum(axis=1) for what in ("abs", "err", "sq")]
        added = [sums[:, 0], *added, trivial_squares(sums, colour).sum(axis=1)]
        self.sums[:, rows - self.row, cols - self.col] += np.stack(added)

    def coarser(self, factor: int) -> SkillMap:
        """Cells `factor` times as large, counted from the map's own corner; the last ones may hold fewer."""
        steps = [np.arange(0, n, factor) for n in self.sums.shape[1:]]
        return SkillMap(0, 0, np.add.reduceat(np.add.reduceat(self.sums, steps[0], axis=1), steps[1], axis=2))

    def planes(self) -> npt.NDArray[np.float32]:
        """(4, h, w) float32 of MAP_BANDS: mae and bias in DN (means over bands), skill, n in pixels; NaN where n is 0."""
        n, absolute, error, squares, trivial = self.sums
        count = np.where(n > 0, len(S2_BANDS) * n, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            skill = 1 - squares / np.where(trivial > 0, trivial, np.nan)
        return np.stack([absolute / count, error / count, skill, np.where(n > 0, n, np.nan)]).astype(np.float32)
