"""Feature extractors: names, sizes, independence of batching, and that the preprocessing is the weights' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.models.extractors import extractor


@pytest.fixture(scope="module")
def lite():
    return extractor("efficientnet_lite0")


def images(n, side=64):
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def test_features_do_not_depend_on_how_images_are_batched(lite):
    x = images(6)
    whole = lite.features(x)
    assert whole.shape == (6, lite.dims) == (6, 1280)
    assert whole.dtype == np.float32
    assert np.array_equal(whole, np.concatenate([lite.features(x[:5]), lite.features(x[5:])]))
    assert np.array_equal(whole, lite.features(x))
    assert (lite.name, lite.score_name) == ("efficientnet_lite0", "fd_efficientnet_lite0")
    assert "224x224" in lite.preprocessing


def settings():
    """What a caller may have set, by torch's older names (their readers fail where the newer ones disagree)."""
    cudnn = [getattr(torch.backends.cudnn, name) for name in ("allow_tf32", "deterministic", "benchmark")]
    return [*cudnn, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()]


def in_force():
    """What convolutions and matrix products go by at this moment."""
    back = torch.backends
    if not hasattr(back.cudnn, "conv"):
        return {back.cudnn.allow_tf32, back.cuda.matmul.allow_tf32}
    return {s.fp32_precision for s in (back.cudnn.conv, back.cuda.matmul, back.mkldnn.conv, back.mkldnn.matmul)}


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_settings_of_the_process_are_left_as_they_were(lite, precision, asked):
    precision(asked)
    before = settings()
    lite.features(images(1))
    assert settings() == before
    assert asked in before


def test_a_forward_is_float32_whatever_the_process_has_set(lite, precision, monkeypatch):
    precision("medium")  # TF32 on a GPU, bfloat16 in matrix products of a CPU
    wanted = lite.features(images(1))
    seen = []
    forward = type(lite._network).forward

    def listening(self, x):
        seen.append((in_force(), torch.is_autocast_enabled("cpu"), torch.backends.cudnn.deterministic))
        return forward(self, x)

    monkeypatch.setattr(type(lite._network), "forward", listening)
    with torch.autocast("cpu", torch.bfloat16):
        found = lite.features(images(1))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [({"ieee"} if hasattr(torch.backends.cudnn, "conv") else {False}, False, True)]
    assert np.array_equal(found, wanted)
    with pytest.raises(ModelError):
        lite.features(images(1)[:0])
    monkeypatch.setattr(type(lite._network), "forward", lambda self, x: 1 / 0)
    before = settings()
    with pytest.raises(ZeroDivisionError):
        lite.features(images(1))
    assert settings() == before


def test_preprocessing_suits_the_weights(lite):
    """A photograph of an admiral is class 652 (military uniform); the input has the variance the first norm expects."""
    import matplotlib

    photo = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    square = np.asarray(Image.open(photo).convert("RGB").crop((0, 0, 512, 512)))
    pixels = np.ascontiguousarray(square.transpose(2, 0, 1))[None]
    seen = []
    net = lite._network.net
    hook = net._conv_stem.register_forward_hook(lambda m, i, o: seen.append(o[:1]))
    features = torch.from_numpy(lite.features(pixels))
    hook.remove()
    with torch.no_grad():
        assert int(net._fc(features).argmax()) == 652
    ratio = (seen[0].var((0, 2, 3)) / net._bn0.running_var).median().item()
    assert 0.5 < ratio < 2


def test_bad_input_and_names(lite):
    for bad in (images(1)[0], images(1)[:, :2], images(1).astype(np.float32), images(1)[:0]):
        with pytest.raises(ModelError, match=r"efficientnet_lite0 wants \(N, 3, H, W\) uint8 RGB, got"):
            lite.features(bad)
    for maps in (lite.maps, lite.pooled):
        with pytest.raises(ModelError, match="efficientnet_lite0 has no maps of its blocks: use .*'inception'"):
            maps(images(1))
    with pytest.raises(ConfigError, match="no feature extractor 'resnet'; there are: efficientnet_lite0, inception"):
        extractor("resnet")
    with pytest.raises(ConfigError, match=r"leave cca.weights empty"):
        extractor("efficientnet_lite0", weights="x.pth")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            extractor("efficientnet_lite0", device="cuda")
