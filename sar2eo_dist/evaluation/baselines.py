"""Trivial predictors that every table shows beside the models: a model that does not beat them has learned nothing.

    zero      the lowest value that the scaling of EO has, everywhere (`fixed`: DN 0)
    mean      each band's mean over some training pairs (a mean per pixel means nothing across different places)
    linear    per-pixel least squares of B4, B3, B2 on VV and VH in dB, on the same pairs

The last two are sums in float64, pair after pair in a given order: the same bits wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ModelError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

Sample = tuple[Array, Array, Array]  # dB (2, H, W), EO (3, H, W) in [0, 1], valid (H, W)
#: about the middle of VV, VH in dB: sums of offsets from here lose no digits to a mean larger than the spread
_CENTRE = np.array([-12.0, -18.0])


def constant(bands: Array, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The image (N, 3, H, W) float32 whose bands hold `bands` (3,) everywhere; zeros (3,): the zero baseline."""
    levels = np.asarray(bands, dtype=np.float32)
    if levels.ndim != 1 or len(shape) != 4 or levels.shape[0] != shape[1]:
        raise ModelError(f"a constant baseline wants one value a band, not {levels.shape} for images {shape}")
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None], shape))


@dataclass(slots=True)
class MeanImage:
    """Band means over valid pixels."""

    count: int = 0
    sums: Floats = field(default_factory=lambda: np.zeros(3))

    def add(self, eo: Array, valid: Array) -> MeanImage:
        """Take in eo (N, 3, H, W) DN (or [0, 1]) where valid (N, H, W) bool. Returns itself."""
        _check_eo(eo, valid)
        pixels = np.moveaxis(eo, 1, -1)[valid].astype(np.float64)
        self.count += len(pixels)
        self.sums = self.sums + pixels.sum(axis=0)
        return self

    def solve(self) -> Floats:
        """Mean of each band, (3,) in the units that went in. Raises ModelError where no valid pixel did."""
        if not self.count:
            raise ModelError("the mean image baseline saw no valid pixel (count 0)")
        return np.asarray(self.sums / self.count)


@dataclass(frozen=True, slots=True)
class LinearModel:
    """EO = VV * coef[0] + VH * coef[1] + coef[2]: coef (3, 3) float64, rows VV, VH (per dB), 1; columns B4, B3, B2."""

    coef: Floats

    def predict(self, sar: Array) -> npt.NDArray[np.float32]:
        """EO (N, 3, H, W) float32, not clipped, of SAR (N, 2, H, W) dB; NaN where the SAR is NaN."""
        _check_sar(sar)
        x = sar.astype(np.float64)
        # three adds, not a matrix product: BLAS may sum in another order on another machine
        bands = [x[:, 0] * c[0] + x[:, 1] * c[1] + c[2] for c in self.coef.T]
        return np.stack(bands, axis=1).astype(np.float32)


@dataclass(slots=True)
class LinearFit:
    """Moments of (VV, VH, 1) and (B4, B3, B2) over valid pixels: count, X^T X (3, 3) and X^T Y (3, 3), float64."""

    count: int = 0
    xx: Floats = field(default_factory=lambda: np.zeros((3, 3)))
    xy: Floats = field(default_factory=lambda: np.zeros((3, 3)))

    def add(self, sar: Array, eo: Array, valid: Array) -> LinearFit:
        """Take in sar (N, 2, H, W) dB with NaN, eo (N, 3, H, W), where valid (N, H, W) bool and the SAR is finite."""
        _check_sar(sar)
        _check_eo(eo, valid)
        if sar.shape[0] != eo.shape[0] or sar.shape[2:] != eo.shape[2:]:
            raise ModelError(f"SAR {sar.shape} and EO {eo.shape} are not of the same pixels")
        keep = valid & np.isfinite(sar).all(axis=1)
        x = np.moveaxis(sar, 1, -1)[keep].astype(np.float64) - _CENTRE
        y = np.moveaxis(eo, 1, -1)[keep].astype(np.float64)
        columns = [*x.T, np.ones(len(x))]
        self.count += len(x)
        self.xx = self.xx + np.array([[np.sum(a * b) for b in columns] for a in columns])
        self.xy = self.xy + np.array([[np.sum(a * b) for b in y.T] for a in columns])
        return self

    def solve(self) -> LinearModel:
        """The least squares fit; the one of least norm where VV or VH do not vary or vary together.

        Raises ModelError where no valid pixel went in.
        """
        if not self.count:
            raise ModelError("the linear baseline saw no valid pixel (count 0)")
        # the offset is eliminated first, so that a constant channel gets weight 0 instead of a share of the mean
        mean_x, mean_y = self.xx[2, :2] / self.count, self.xy[2] / self.count
        cov_xx = self.xx[:2, :2] / self.count - np.outer(mean_x, mean_x)
        cov_xy = self.xy[:2] / self.count - np.outer(mean_x, mean_y)
        slope = np.linalg.pinv(cov_xx, rcond=1e-10, hermitian=True) @ cov_xy
        if np.trace(cov_xx) < 1e-9:  # dB^2: nothing but rounding, on which a slope would blow up
            slope = np.zeros_like(slope)
        offset = mean_y - (mean_x + _CENTRE) @ slope
        return LinearModel(np.vstack([slope, offset]))


@dataclass(frozen=True, slots=True)
class Trivial:
    """The three of them: band means (3,) in [0, 1], and the linear fit."""

    levels: Floats
    linear: LinearModel

    def images(self, db: Array) -> dict[str, npt.NDArray[np.float32]]:
        """Their images (3, H, W) float32 in [0, 1] of a place, dB (2, H, W), by the names that tables use."""
        shape = (1, len(self.levels), *db.shape[1:])
        return {
            "baseline_mean": constant(self.levels, shape)[0],
            "baseline_zero": np.zeros(shape[1:], np.float32),
            "baseline_linear": np.clip(self.linear.predict(db[None])[0], 0, 1),
        }


def fit(samples: Iterable[Sample]) -> Trivial:
    """Fitted on training pairs, one at a time. Raises ModelError where none has a valid pixel."""
    levels, linear = MeanImage(), LinearFit()
    for db, truth, valid in samples:
        levels.add(truth[None], valid[None])
        linear.add(db[None], truth[None], valid[None])
    return Trivial(levels.solve(), linear.solve())


def _check_sar(sar: Array) -> None:
    if sar.ndim != 4 or sar.shape[1] != 2:
        raise ModelError(f"SAR must be (N, 2, H, W) of VV, VH in dB, not {sar.shape}")


def _check_eo(eo: Array, valid: Array) -> None:
    if eo.ndim != 4 or eo.shape[1] != 3 or valid.shape != (eo.shape[0], *eo.shape[2:]) or valid.dtype != np.bool_:
        found = f"{eo.shape}, {valid.dtype} {valid.shape}"
        raise ModelError(f"EO must be (N, 3, H, W) with a bool mask (N, H, W), not {found}")
    bad = ~np.isfinite(eo).all(axis=1) & valid
    if bad.any():
        n, row, col = (int(i) for i in np.argwhere(bad)[0])
        raise ModelError(f"EO[{n}] is not finite at valid pixel ({row}, {col}): {eo[n, :, row, col].tolist()}")
