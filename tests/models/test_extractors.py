"""Feature extractors: names, sizes, independence of batching, and that the preprocessing is the weights' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.models import extractors
from sar2eo_dist.models.extractors import Extractor, Network, extractor


@pytest.fixture(scope="module")
def lite():
    return extractor("efficientnet_lite0")


class Sized(Network):
    """Has memory for `room` images in one forward; its feature is an image's first pixel. It writes down what it is asked."""

    score_name, dims, preprocessing = "fd_mine", 3, "none"

    def __init__(self, room):
        super().__init__()
        self.room, self.asked = room, []

    def forward(self, x):
        self.asked.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"GPU out of memory. Tried to allocate {len(x)} GiB.\nAnd much more")
        return x[:, :, 0, 0].float()


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


def test_a_row_depends_neither_on_its_place_nor_on_its_neighbours(lite):
    x, rng = images(6), np.random.default_rng()
    whole, positions = lite.features(x), lite.positions(x)
    order = rng.permutation(6)
    assert np.array_equal(lite.features(x[order]), whole[order])
    assert np.array_equal(lite.positions(x[order]), positions[order])
    among = rng.integers(0, 256, x.shape, dtype=np.uint8)
    among[3] = x[0]
    assert np.array_equal(lite.features(among)[3], whole[0])
    assert np.array_equal(lite.features(x[:1])[0], whole[0])


def test_positions_are_those_of_the_last_map(lite):
    x = images(2)
    (maps,), positions = lite.maps(x), lite.positions(x)
    assert maps.shape == (2, 1280, 7, 7)
    assert positions.shape == (2, 49, 1280)
    assert lite.map_dims == (1280,)
    assert positions.dtype == np.float32
    assert positions.flags.c_contiguous
    assert np.array_equal(positions[1, 9], maps[1, :, 1, 2])
    np.testing.assert_allclose(positions.mean(1), lite.features(x), rtol=1e-5, atol=1e-7)
    assert np.array_equal(lite.pooled(x)[0], lite.features(x))


def test_null_is_mean_and_deviation():
    null, x = extractor("means"), images(5, 256)
    x[0], x[1] = 255, 0  # no spread at all
    assert (null.name, null.score_name, null.dims, null.map_dims) == ("means", "fd_means", 6, (6,))
    found, exact = null.features(x), x.astype(np.float64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([exact.mean((2, 3)), exact.std((2, 3))], 1), rtol=1e-6)
    cells = exact.reshape(5, 3, 8, 32, 8, 32)
    wanted = np.concatenate([cells.mean((3, 5)), cells.std((3, 5))], 1)
    np.testing.assert_allclose(null.maps(x)[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(null.positions(x), wanted.reshape(5, 6, 64).transpose(0, 2, 1), rtol=1e-6)
    assert np.array_equal(null.features(x[::-1]), found[::-1])
    assert np.array_equal(null.features(x[:, :, :77, :90]), null.features(x[:, :, :72, :88]))
    with pytest.raises(ModelError, match="means wants images of 8 x 8 or more, got 8 x 7"):
        null.features(x[:, :, :8, :7])


@pytest.mark.parametrize(
    ("room", "fits", "asked"), [(5, 4, [20, 16, 8, 4]), (19, 16, [20, 16]), (1, 1, [20, 16, 8, 4, 2, 1])]
)
def test_out_of_memory_names_the_batch_that_fits(monkeypatch, room, fits, asked):
    monkeypatch.setattr(extractors, "CPU_CHUNK", 20)
    net = Sized(room)
    with pytest.raises(ConfigError) as e:
        Extractor("mine", net).features(images(20, 16))
    message = str(e.value)
    assert f"mine: cpu has no memory for a batch of 20 images of 16 x 16; {fits} fit: set cca.pack to {fits}" in message
    assert "Tried to allocate 20 GiB" in message
    assert "much more" not in message
    assert e.value.__context__ is None  # it would keep the tensors of what failed
    assert net.asked == asked


def test_out_of_memory_of_a_single_image(monkeypatch):
    monkeypatch.setattr(extractors, "CPU_CHUNK", 1)
    with pytest.raises(ConfigError, match="batch of 1 images .*; not even 1 fits"):
        Extractor("mine", Sized(0)).features(images(1, 16))
    monkeypatch.setattr(extractors, "CPU_CHUNK", 4)
    with pytest.raises(ConfigError, match="batch of 4 images .*; not even 1 fits"):
        Extractor("mine", Sized(0)).features(images(1, 16))


def test_images_reach_a_gpu_from_pinned_memory(monkeypatch):
    calls = []

    def pinned(self):
        calls.append("pin")
        return self

    def moved(self, device, non_blocking=False):
        calls.append((str(device), non_blocking))
        return self

    mine = Extractor("mine", Sized(99))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    wanted = mine.features(images(3, 16))
    assert not calls
    mine.device = torch.device("cuda")
    assert np.array_equal(mine.features(images(3, 16)), wanted)
    assert calls == ["pin", ("cuda", True)]
    assert mine._network.asked == [4, 3]  # a GPU's forward is the caller's pack as it is


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
    bare = Extractor("mine", Sized(99))
    for maps in (bare.maps, bare.pooled, bare.positions):
        with pytest.raises(ModelError, match="mine has no maps of its blocks: use one of .*inception"):
            maps(images(1))
    with pytest.raises(
        ConfigError, match="no feature extractor 'resnet'; there are: efficientnet_lite0, inception, means"
    ):
        extractor("resnet")
    with pytest.raises(ConfigError, match=r"leave cca.weights empty"):
        extractor("efficientnet_lite0", weights="x.pth")
    with pytest.raises(ConfigError, match=r"means has no network: leave cca.weights empty, not 'x.pth'"):
        extractor("means", weights="x.pth")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            extractor("efficientnet_lite0", device="cuda")
