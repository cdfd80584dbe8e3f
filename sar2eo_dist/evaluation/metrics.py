"""Image metrics of predicted against true optical images, where both have data.

MAE, RMSE and PSNR are over the valid pixels of all bands. SSIM (Wang et al. 2004, IEEE TIP 13(4) 600: 11 x 11 Gaussian
window, sigma 1.5), MS-SSIM (Wang et al. 2003, five scales) and the spectral angle are torchmetrics'. Every image is
measured by itself and on one thread, so that a figure does not depend on the batch, the threads or the worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import _torchvision

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: what costs little and is defined for every image that is not all gaps: measured while a network trains
BASIC = ("mae", "rmse", "psnr", "ssim")
#: all that this file measures, in the order of a page
NAMES = (*BASIC, "ms_ssim", "sam")
#: which way is better, of every score of an image: the report's bold and its sentence read it
LOWER_IS_BETTER = {
    "mae": True, "rmse": True, "psnr": False, "ssim": False, "ms_ssim": False, "sam": True,
    "lpips": True, "challenge_mse": True, "challenge_mae": True,
}  # fmt: skip

RADIUS = 5  # of the Gaussian window: 11 x 11, and reflection at the border needs one pixel more than it
#: least side for MS-SSIM, torchmetrics' own limit: (11 - 1) * (scales - 1)^2 < side, in steps of 16
MULTISCALE = 11 * 16


def image_metrics(
    pred: Array, true: Array, valid: Array, data_range: float, names: Sequence[str] = BASIC
) -> dict[str, Floats]:
    """Metrics of each image, `names` of NAMES and in their order.

    pred, true  (N, C, H, W) float32 or integers, both in the same units: DN (`fixed` scaling) or [0, 1]
    valid       (N, H, W) bool: pixels that count. What the others hold, NaN included, has no influence
    data_range  span of the possible values in those units (for PSNR, SSIM and MS-SSIM), > 0

    Returns, each (N,) float64, NaN where there is nothing to measure:
    mae, rmse   units of the input; psnr: dB, inf where equal. NaN: no valid pixel
    ssim        -1..1, mean over bands and the pixels whose whole window, cut off at the image's border, is valid.
                NaN: there is none, or a side is under 6 pixels
    ms_ssim     0..1. It cannot leave pixels out, so NaN: not all are valid, or a side is under 176 pixels
    sam         radians 0..pi, mean over valid pixels of the angle between both vectors of bands; a pixel that is zero
                in all bands has no angle and is left out. NaN: no pixel has one, or there is one band
    Raises ModelError: shapes or dtypes that do not fit, data_range <= 0, a valid pixel that is not finite, another name.
    """
    check(pred, true, valid)
    if not (np.isfinite(data_range) and data_range > 0):
        raise ModelError(f"metrics want data_range > 0, not {data_range!r}")
    if odd := [name for name in names if name not in NAMES]:
        raise ModelError(f"no image metric {odd[0]!r}, only {', '.join(NAMES)}")
    out = {name: np.full(len(pred), np.nan) for name in names}
    with one_thread():
        for i, mask in enumerate(valid):
            if mask.any():
                for name, value in _one(pred[i], true[i], mask, float(data_range), names).items():
                    out[name][i] = value
    return out


def check(pred: Array, true: Array, valid: Array) -> None:
    """Raises ModelError unless pred and true are numbers (N, C, H, W), finite where valid, (N, H, W) bool, says so."""
    if pred.ndim != 4 or pred.shape != true.shape or valid.shape != (pred.shape[0], *pred.shape[2:]):
        raise ModelError(
            "metrics want pred and true (N, C, H, W) and valid (N, H, W), "
            f"not {pred.shape}, {true.shape}, {valid.shape}"
        )
    if valid.dtype != np.bool_:
        raise ModelError(f"metrics want a bool mask, not {valid.dtype}")
    for name, images in (("pred", pred), ("true", true)):
        if np.issubdtype(images.dtype, np.floating):
            bad = ~np.isfinite(images).all(axis=1) & valid
            if bad.any():
                n, y, x = (int(i) for i in np.argwhere(bad)[0])
                found = f"{images[n, :, y, x].tolist()}; {int(bad.sum())} in all"
                raise ModelError(f"{name}[{n}] is not finite at valid pixel ({y}, {x}): {found}")
        elif not np.issubdtype(images.dtype, np.integer):
            raise ModelError(f"metrics want numbers, {name} is {images.dtype}")


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread for a while: its sums are over another order of parts where there are more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one(pred: Array, true: Array, valid: Array, data_range: float, names: Sequence[str]) -> dict[str, float]:
    """The figures of one image, (C, H, W) and (H, W), that has a valid pixel."""
    p = np.where(valid, pred, 0).astype(np.float64)
    t = np.where(valid, true, 0).astype(np.float64)
    difference = (p - t)[:, valid]
    mse = float(np.mean(difference * difference))
    found = {
        "mae": float(np.mean(np.abs(difference))),
        "rmse": float(np.sqrt(mse)),
        "psnr": float(10 * np.log10(data_range**2 / mse)) if mse > 0 else np.inf,
    }
    if "ssim" in names:
        found["ssim"] = _ssim(p, t, valid, data_range)
    if "ms_ssim" in names:
        found["ms_ssim"] = _ms_ssim(p, t, valid, data_range)
    if "sam" in names:
        found["sam"] = _sam(p, t)
    return {name: found[name] for name in names}


def _ssim(p: Floats, t: Floats, valid: Array, data_range: float) -> float:
    if min(valid.shape) <= RADIUS:  # too little to reflect
        return np.nan
    # outside the image counts as valid: what the window reflects there lies within its other half
    whole = cv2.erode(valid.astype(np.uint8), np.ones((2 * RADIUS + 1, 2 * RADIUS + 1), np.uint8)) > 0
    if not whole.any():
        return np.nan
    _, each = _library().structural_similarity_index_measure(
        _tensor(p), _tensor(t), data_range=data_range, return_full_image=True
    )
    return float(np.mean(each[0].numpy()[:, whole], dtype=np.float64))


def _ms_ssim(p: Floats, t: Floats, valid: Array, data_range: float) -> float:
    if min(valid.shape) < MULTISCALE or not valid.all():
        return np.nan
    return float(
        _library().multiscale_structural_similarity_index_measure(_tensor(p), _tensor(t), data_range=data_range)
    )


def _sam(p: Floats, t: Floats) -> float:
    """Of images that hold 0 where they are not valid. float64: the arc cosine makes 5e-4 rad of float32's rounding."""
    has = p.any(axis=0) & t.any(axis=0)
    if len(p) < 2 or not has.any():
        return np.nan
    a, b = (torch.from_numpy(image[:, has])[None, :, None] for image in (p, t))  # (1, C, 1, pixels)
    return float(_library().spectral_angle_mapper(a, b, reduction="none").mean())


def _tensor(image: Floats) -> torch.Tensor:
    """(1, C, H, W) float32, bands innermost: the windows are twice as quick so, and float64's 20 times slower."""
    return torch.from_numpy(image.astype(np.float32))[None].to(memory_format=torch.channels_last)


def _library() -> Any:
    """torchmetrics, which imports torchvision: late, since that takes seconds and few processes measure."""
    _torchvision.ensure()
    import torchmetrics.functional.image as library

    return library
