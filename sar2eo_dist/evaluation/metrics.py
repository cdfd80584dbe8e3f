"""Image metrics of predicted against true optical images, where both have data.

MAE, RMSE and PSNR are over the valid pixels of all bands. SSIM follows Wang et al. 2004 (IEEE TIP 13(4) 600) with the
usual 11 x 11 Gaussian window (sigma 1.5, K1 0.01, K2 0.03, biased moments), images reflected at their border: the mean
over bands and valid pixels. On fully valid images that is torchmetrics' figure; scikit-image leaves the outer
5 pixels of the same map out of the mean. Every image is reduced by itself in float64, so that a figure does not depend
on the batch, the thread count or the worker that computed it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ModelError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

NAMES = ("mae", "rmse", "psnr", "ssim")
#: which way is better: the report's bold and its sentence read it
LOWER_IS_BETTER = {"mae": True, "rmse": True, "psnr": False, "ssim": False}

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def _gaussian() -> Floats:
    x = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=np.float64)
    g = np.exp(-0.5 * (x / SSIM_SIGMA) ** 2)
    return np.asarray(g / g.sum())


_WINDOW = _gaussian()


def image_metrics(pred: Array, true: Array, valid: Array, data_range: float) -> dict[str, Floats]:
    """MAE, RMSE, PSNR and SSIM of each image.

    pred, true  (N, C, H, W) float32 or integers, both in the same units: DN (`fixed` scaling) or [0, 1]
    valid       (N, H, W) bool: pixels that count. What the others hold, NaN included, has no influence
    data_range  span of the possible values in those units (for PSNR and SSIM), > 0
    Returns {"mae", "rmse" (units of the input), "psnr" (dB; inf where equal), "ssim" (-1..1)}, each (N,) float64. NaN
    stands for "nothing to measure": all four where an image has no valid pixel, SSIM where a side is under 6 pixels.
    Raises ModelError: shapes or dtypes that do not fit, data_range <= 0, a valid pixel that is not finite.
    """
    _check(pred, true, valid, data_range)
    rows = [_one(p, t, v, float(data_range)) for p, t, v in zip(pred, true, valid, strict=True)]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(NAMES))
    return {name: table[:, i].copy() for i, name in enumerate(NAMES)}


def _check(pred: Array, true: Array, valid: Array, data_range: float) -> None:
    if pred.ndim != 4 or pred.shape != true.shape or valid.shape != (pred.shape[0], *pred.shape[2:]):
        raise ModelError(
            "metrics want pred and true (N, C, H, W) and valid (N, H, W), "
            f"not {pred.shape}, {true.shape}, {valid.shape}"
        )
    if valid.dtype != np.bool_:
        raise ModelError(f"metrics want a bool mask, not {valid.dtype}")
    if not (np.isfinite(data_range) and data_range > 0):
        raise ModelError(f"metrics want data_range > 0, not {data_range!r}")
    for name, images in (("pred", pred), ("true", true)):
        if np.issubdtype(images.dtype, np.floating):
            bad = ~np.isfinite(images).all(axis=1) & valid
            if bad.any():
                n, y, x = (int(i) for i in np.argwhere(bad)[0])
                found = f"{images[n, :, y, x].tolist()}; {int(bad.sum())} in all"
                raise ModelError(f"{name}[{n}] is not finite at valid pixel ({y}, {x}): {found}")
        elif not np.issubdtype(images.dtype, np.integer):
            raise ModelError(f"metrics want numbers, {name} is {images.dtype}")


def _one(pred: Array, true: Array, valid: Array, data_range: float) -> tuple[float, float, float, float]:
    """The four figures of one image, (C, H, W) and (H, W)."""
    if not valid.any():
        return np.nan, np.nan, np.nan, np.nan
    p = np.where(valid, pred, 0).astype(np.float64)
    t = np.where(valid, true, 0).astype(np.float64)
    difference = (p - t)[:, valid]
    mse = float(np.mean(difference * difference))
    psnr = float(10 * np.log10(data_range**2 / mse)) if mse > 0 else np.inf
    return float(np.mean(np.abs(difference))), float(np.sqrt(mse)), psnr, _ssim(p, t, valid, data_range)


def _ssim(p: Floats, t: Floats, valid: Array, data_range: float) -> float:
    """Mean SSIM over valid pixels; p and t hold 0 where they are not.

    Each local moment is taken over the valid pixels of its window, weights renormalised to 1, so that the data's edge
    is not mistaken for structure; on a fully valid image the weights are the plain Gaussian's.
    """
    if min(valid.shape) <= SSIM_RADIUS:  # nothing to reflect
        return np.nan
    weight: Floats | float = 1.0 if valid.all() else np.where(valid, _smooth(valid.astype(np.float64)), 1.0)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    means = []
    for a, b in zip(p, t, strict=True):
        ma, mb = _smooth(a) / weight, _smooth(b) / weight
        # rounding can leave a flat window's variance a hair below zero
        va = np.maximum(_smooth(a * a) / weight - ma * ma, 0)
        vb = np.maximum(_smooth(b * b) / weight - mb * mb, 0)
        cov = _smooth(a * b) / weight - ma * mb
        ssim = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
        means.append(float(np.mean(ssim[valid])))
    return float(np.mean(means))


def _smooth(image: Floats) -> Floats:
    """Gaussian window over (H, W), reflected at the border. Shifted adds: the same bits on any machine."""
    for axis in (0, 1):
        padded = np.pad(image, [(SSIM_RADIUS, SSIM_RADIUS) if i == axis else (0, 0) for i in (0, 1)], mode="reflect")
        size = image.shape[axis]
        out = np.zeros(image.shape)
        for k, w in enumerate(_WINDOW):
            out += w * (padded[k : k + size] if axis == 0 else padded[:, k : k + size])
        image = out
    return image
