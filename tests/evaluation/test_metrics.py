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
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sar2eo_dist.errors import ModelError
from sar2eo_dist.evaluation.metrics import BASIC, LOWER_IS_BETTER, NAMES, image_metrics
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
    pred, true, valid = images(1, n=2, size=180, top=top)
    ours = image_metrics(pred, true, valid, top, NAMES)
    single = [torch.from_numpy(a).to(memory_format=torch.channels_last) for a in (pred, true)]
    p, t = (torch.from_numpy(a.astype(np.float64)) for a in (pred, true))
    per_image = {"reduction": "none", "dim": (1, 2, 3), "data_range": (0.0, top)}
    for name, function in (
        ("ssim", torchmetrics_image.structural_similarity_index_measure),
        ("ms_ssim", torchmetrics_image.multiscale_structural_similarity_index_measure),
    ):
        # the same in float32, but for the order of one sum; and what float32 costs
        np.testing.assert_allclose(ours[name], function(*single, data_range=top, reduction="none"), rtol=3e-7)
        np.testing.assert_allclose(ours[name], function(p, t, data_range=top, reduction="none"), rtol=1e-5)
    psnr = torchmetrics_image.peak_signal_noise_ratio(p, t, **per_image)
    np.testing.assert_allclose(ours["psnr"], psnr.numpy(), rtol=1e-7)  # it holds data_range in float32
    np.testing.assert_allclose(ours["rmse"], ((p - t) ** 2).mean((1, 2, 3)).sqrt().numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours["mae"], (p - t).abs().mean((1, 2, 3)).numpy(), rtol=1e-12)
    sure = (p.sum(1) > 0) & (t.sum(1) > 0)  # clipping leaves a few black pixels, which have no angle
    angle = torchmetrics_image.spectral_angle_mapper(p, t, reduction="none")
    np.testing.assert_allclose(ours["sam"], [a[m].mean() for a, m in zip(angle, sure, strict=True)], rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_image(seed: int) -> None:
    """Its map leaves the outer 5 pixels out of the mean: a mask whose windows are those does the same here."""
    pred, true, valid = images(seed, n=1, size=64)
    ours = image_metrics(pred, true, valid, 3000.0)
    p, t = (a[0].astype(np.float64) for a in (pred, true))
    assert ours["psnr"][0] == pytest.approx(peak_signal_noise_ratio(t, p, data_range=3000.0), rel=1e-9)
    gaussian: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    inner, whole = structural_similarity(t, p, data_range=3000.0, channel_axis=0, full=True, **gaussian)
    assert ours["ssim"][0] == pytest.approx(whole.mean(), rel=2e-3)  # borders are reflected another way
    wider = [np.pad(a, [(0, 0), (0, 0), (8, 8), (8, 8)]) for a in (pred, true)]
    ours = image_metrics(*wider, np.pad(valid, [(0, 0), (8, 8), (8, 8)]), 3000.0)
    assert ours["ssim"][0] == pytest.approx(inner, rel=1e-5)


def test_names_are_those_asked_for() -> None:
    pred, true, valid = images(7, n=1)
    assert tuple(image_metrics(pred, true, valid, 1.0)) == BASIC
    assert tuple(image_metrics(pred, true, valid, 1.0, ("sam", "mae"))) == ("sam", "mae")
    assert tuple(image_metrics(pred, true, valid, 1.0, NAMES)) == NAMES
    assert set(NAMES) < set(LOWER_IS_BETTER)
    with pytest.raises(ModelError, match="no image metric 'lpips', only mae"):
        image_metrics(pred, true, valid, 1.0, ("mae", "lpips"))


def gaussian() -> np.ndarray:
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    return np.outer(g, g) / np.outer(g, g).sum()


def test_ssim_of_a_mask_is_the_definition_where_all_of_the_window_is_valid() -> None:
    """Against the definition written out: moments under the window at each pixel whose window is valid, and no other."""
    pred, true, valid = images(2, n=1, size=26)
    valid[0, 12:, :7] = False
    valid[0, 25, 20] = False
    w = gaussian()
    c1, c2 = 30.0**2, 90.0**2
    padded = [np.pad(image[0].astype(float), ((0, 0), (5, 5), (5, 5)), mode="reflect") for image in (pred, true)]
    mask = np.pad(valid[0], 5, constant_values=True)
    values = []
    for y, x in np.ndindex(26, 26):
        at = np.s_[y : y + 11, x : x + 11]
        if not mask[at].all():
            continue
        for a, b in zip(*padded, strict=True):
            ma, mb = (w * a[at]).sum(), (w * b[at]).sum()
            va, vb = (w * (a[at] - ma) ** 2).sum(), (w * (b[at] - mb) ** 2).sum()
            cov = (w * (a[at] - ma) * (b[at] - mb)).sum()
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert 3 * 100 < len(values) < 3 * valid.sum()
    assert image_metrics(pred, true, valid, 3000.0)["ssim"][0] == pytest.approx(np.mean(values), abs=1e-5)


def test_the_angle_is_between_the_bands_of_valid_pixels_that_have_one() -> None:
    true = np.zeros((1, 2, 1, 5), np.float32)
    pred = true.copy()
    true[0, :, 0] = [[1, 1, 1, 0, 9], [0, 0, 1, 0, 9]]
    pred[0, :, 0] = [[0, 2, 3, 1, 0], [1, 0, 0, 1, 9]]  # 90, 0, 45 degrees; truth black; not valid
    valid = np.array([[[True, True, True, True, False]]])
    found = image_metrics(pred, true, valid, 1.0, ("sam",))["sam"][0]
    assert found == pytest.approx((np.pi / 2 + 0 + np.pi / 4) / 3, rel=1e-12)
    assert image_metrics(5 * true, true, valid, 1.0, ("sam",))["sam"][0] == pytest.approx(0, abs=1e-7)
    for nothing in (pred * 0, pred):
        only = valid & (np.arange(5) == 3)
        assert np.isnan(image_metrics(nothing, true, only, 1.0, ("sam",))["sam"][0])
    assert np.isnan(image_metrics(pred[:, :1], true[:, :1], valid, 1.0, ("sam",))["sam"][0])


def test_ms_ssim_wants_all_of_a_large_image(torchmetrics_image: Any) -> None:
    pred, true, valid = images(8, n=2, size=176)
    valid[1, 0, 0] = False
    found = image_metrics(pred, true, valid, 3000.0, ("ms_ssim",))["ms_ssim"]
    assert 0 < found[0] < 1
    assert np.isnan(found[1])
    small = image_metrics(pred[..., :175], true[..., :175], valid[..., :175], 3000.0, ("ms_ssim",))["ms_ssim"]
    assert np.isnan(small).all()
    with pytest.raises(ValueError, match="width must be larger than 160"):  # the library's own limit
        torchmetrics_image.multiscale_structural_similarity_index_measure(
            torch.from_numpy(pred[..., :175]), torch.from_numpy(true[..., :175]), data_range=3000.0
        )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95), fill=st.sampled_from([np.nan, np.inf, -1e30, 0.0]))
def test_what_invalid_pixels_hold_never_counts(seed: int, share: float, fill: float) -> None:
    pred, true, _ = images(seed, n=2, size=24)
    valid = np.random.default_rng(seed + 1).random((2, 24, 24)) < share
    valid[:, 6:18, 6:18] = True
    reference = image_metrics(pred, true, valid, 3000.0, NAMES)
    for a in (pred, true):
        a[np.broadcast_to(~valid[:, None], a.shape)] = fill
    for name, values in image_metrics(pred, true, valid, 3000.0, NAMES).items():
        np.testing.assert_array_equal(values, reference[name], err_msg=name)
    assert np.isfinite(reference["ssim"]).all()
    assert (np.abs(reference["ssim"]) <= 1 + 1e-6).all()
    assert (reference["mae"] <= reference["rmse"] + 1e-9).all()


def test_neither_batch_nor_threads_matter() -> None:
    pred, true, valid = images(3, n=3, size=192)
    valid[1, :100] = False
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(image_metrics(pred, true, valid, 3000.0, NAMES))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for m in NAMES:
        np.testing.assert_array_equal(found[0][m], found[1][m], err_msg=m)
    for i in range(3):
        alone = image_metrics(pred[i : i + 1], true[i : i + 1], valid[i : i + 1], 3000.0, NAMES)
        for m in NAMES:
            np.testing.assert_array_equal(alone[m][0], found[0][m][i], err_msg=m)


def test_equal_images() -> None:
    _, true, valid = images(4, size=176)
    out = image_metrics(true, true, valid, 3000.0, NAMES)
    assert (out["mae"] == 0).all()
    assert (out["rmse"] == 0).all()
    assert np.isinf(out["psnr"]).all()
    np.testing.assert_allclose(out["ssim"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(out["ms_ssim"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(out["sam"], 0.0, atol=1e-7)


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
    valid[1, 0, 0] = True  # one pixel is enough, but not for a window
    out = image_metrics(pred, true, valid, 3000.0, NAMES)
    assert all(np.isnan(out[m][0]) for m in NAMES)
    assert all(np.isfinite(out[m][1]) for m in ("mae", "rmse", "psnr", "sam"))
    assert np.isnan(out["ssim"][1])
    assert all(np.isfinite(out[m][2]) for m in BASIC)
    for side, known in ((5, False), (6, True)):  # what torchmetrics' reflection needs
        cut = image_metrics(pred[:, :, :side, :8], true[:, :, :side, :8], np.ones((3, side, 8), bool), 3000.0)
        assert (np.isfinite(cut["ssim"]) == known).all()
        assert np.isfinite(cut["psnr"]).all()


def test_no_images() -> None:
    none = np.zeros((0, 3, 8, 8), np.float32)
    out = image_metrics(none, none, np.zeros((0, 8, 8), bool), 1.0, NAMES)
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
