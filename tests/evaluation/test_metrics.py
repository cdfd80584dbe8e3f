"""Image metrics against torchmetrics, against a plain definition, and with masks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.errors import ModelError
from sar2eo_dist.evaluation.metrics import LOWER_IS_BETTER, NAMES, image_metrics
from sar2eo_dist.models import _torchvision


@pytest.fixture(scope="module")
def torchmetrics_image() -> Iterator[Any]:
    _torchvision.ensure()  # torchmetrics imports torchvision where it is installed
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # spinning threads cost more than these small images
    yield importlib.import_module("torchmetrics.functional.image")
    torch.set_num_threads(before)


def images(seed: int, n: int = 3, size: int = 40, top: float = 3000.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated pred and true in DN, and a mask of ones."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, top, (n, 3, size, size)).astype(np.float32)
    pred = np.clip(true + rng.normal(0, top / 5, true.shape), 0, top).astype(np.float32)
    return pred, true, np.ones((n, size, size), bool)


@pytest.mark.parametrize("top", [1.0, 3000.0])
def test_equal_to_torchmetrics_on_fully_valid_images(torchmetrics_image: Any, top: float) -> None:
    pred, true, valid = images(1, top=top)
    ours = image_metrics(pred, true, valid, top)
    p, t = (torch.from_numpy(a.astype(np.float64)) for a in (pred, true))
    per_image = {"reduction": "none", "dim": (1, 2, 3), "data_range": (0.0, top)}
    ssim = torchmetrics_image.structural_similarity_index_measure(p, t, data_range=top, reduction="none")
    psnr = torchmetrics_image.peak_signal_noise_ratio(p, t, **per_image)
    np.testing.assert_allclose(ours["ssim"], ssim.numpy(), rtol=1e-9)
    np.testing.assert_allclose(ours["psnr"], psnr.numpy(), rtol=1e-7)  # it holds data_range in float32
    np.testing.assert_allclose(ours["rmse"], ((p - t) ** 2).mean((1, 2, 3)).sqrt().numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours["mae"], (p - t).abs().mean((1, 2, 3)).numpy(), rtol=1e-12)
    assert tuple(ours) == NAMES == tuple(LOWER_IS_BETTER)


def test_ssim_of_a_mask_is_the_weighted_definition_at_valid_pixels() -> None:
    """Against the definition written out: at each pixel, moments over the valid pixels of its 11 x 11 window."""
    pred, true, valid = images(2, n=1, size=12)
    valid[0, :7, :6] = False
    valid[0, 9, 9] = False
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(g, g)
    c1, c2 = 30.0**2, 90.0**2
    mask = np.pad(valid[0], 5, mode="reflect")
    values = []
    for band in range(3):
        a, b = (np.pad(image[0, band].astype(float), 5, mode="reflect") for image in (pred, true))
        for y, x in np.argwhere(valid[0]):
            at = np.s_[y : y + 11, x : x + 11]
            w = window * mask[at]
            w /= w.sum()
            ma, mb = (w * a[at]).sum(), (w * b[at]).sum()
            va, vb = (w * (a[at] - ma) ** 2).sum(), (w * (b[at] - mb) ** 2).sum()
            cov = (w * (a[at] - ma) * (b[at] - mb)).sum()
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert image_metrics(pred, true, valid, 3000.0)["ssim"][0] == pytest.approx(np.mean(values), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95), fill=st.sampled_from([np.nan, np.inf, -1e30, 0.0]))
def test_what_invalid_pixels_hold_never_counts(seed: int, share: float, fill: float) -> None:
    pred, true, _ = images(seed, n=2, size=16)
    valid = np.random.default_rng(seed + 1).random((2, 16, 16)) < share
    valid[:, 8, 8] = True
    reference = image_metrics(pred, true, valid, 3000.0)
    for a in (pred, true):
        a[np.broadcast_to(~valid[:, None], a.shape)] = fill
    for name, values in image_metrics(pred, true, valid, 3000.0).items():
        np.testing.assert_array_equal(values, reference[name], err_msg=name)
    assert np.isfinite(reference["ssim"]).all()
    assert (np.abs(reference["ssim"]) <= 1 + 1e-12).all()
    assert (reference["mae"] <= reference["rmse"] + 1e-9).all()


def test_a_batch_gives_the_figures_of_its_images_one_by_one() -> None:
    pred, true, valid = images(3, n=4, size=24)
    valid[1, :10] = False
    together = image_metrics(pred, true, valid, 3000.0)
    for i in range(4):
        alone = image_metrics(pred[i : i + 1], true[i : i + 1], valid[i : i + 1], 3000.0)
        assert all(alone[m][0] == together[m][i] for m in NAMES)


def test_equal_images() -> None:
    _, true, valid = images(4)
    out = image_metrics(true, true, valid, 3000.0)
    assert (out["mae"] == 0).all()
    assert (out["rmse"] == 0).all()
    assert np.isinf(out["psnr"]).all()
    np.testing.assert_allclose(out["ssim"], 1.0, rtol=1e-9)


def test_flat_images_and_integer_images() -> None:
    true = np.full((1, 3, 16, 16), 400, np.uint16)
    pred = np.full((1, 3, 16, 16), 100, np.uint16)  # the difference must not wrap around
    out = image_metrics(pred, true, np.ones((1, 16, 16), bool), 3000.0)
    assert out["mae"][0] == 300
    assert out["rmse"][0] == pytest.approx(300)
    assert out["psnr"][0] == pytest.approx(20.0)
    assert out["ssim"][0] == pytest.approx((2 * 4e4 + 900) / (1e4 + 16e4 + 900))


def test_nothing_to_measure_is_nan() -> None:
    pred, true, valid = images(5, n=3, size=16)
    valid[0] = False
    valid[1] = False
    valid[1, 0, 0] = True  # one pixel is enough
    out = image_metrics(pred, true, valid, 3000.0)
    assert all(np.isnan(out[m][0]) for m in NAMES)
    assert all(np.isfinite(out[m][i]) for m in NAMES for i in (1, 2))
    small = image_metrics(pred[:, :, :5, :8], true[:, :, :5, :8], np.ones((3, 5, 8), bool), 3000.0)
    assert np.isnan(small["ssim"]).all()
    assert np.isfinite(small["psnr"]).all()


def test_no_images() -> None:
    none = np.zeros((0, 3, 8, 8), np.float32)
    out = image_metrics(none, none, np.zeros((0, 8, 8), bool), 1.0)
    assert all(out[m].shape == (0,) for m in NAMES)


def test_bad_input_is_named() -> None:
    pred, true, valid = images(6, n=2, size=16)
    with pytest.raises(ModelError, match=r"\(2, 3, 16, 16\), \(2, 3, 16, 15\)"):
        image_metrics(pred, true[..., :15], valid, 1.0)
    with pytest.raises(ModelError, match=r"\(2, 16, 9\)"):
        image_metrics(pred, true, valid[..., :9], 1.0)
    with pytest.raises(ModelError, match="bool mask, not uint8"):
        image_metrics(pred, true, valid.astype(np.uint8), 1.0)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ModelError, match="data_range"):
            image_metrics(pred, true, valid, bad)
    with pytest.raises(ModelError, match="true is complex"):
        image_metrics(pred, true.astype(np.complex64), valid, 1.0)
    pred[1, 2, 3, 4] = np.nan
    with pytest.raises(ModelError, match=r"pred\[1\] is not finite at valid pixel \(3, 4\).*1 in all"):
        image_metrics(pred, true, valid, 1.0)
