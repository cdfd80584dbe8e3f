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


def test_settings_of_the_process_are_left_as_they_were(lite):
    def current():
        return [getattr(torch.backends.cudnn, name) for name in ("allow_tf32", "deterministic", "benchmark")]

    before = current()
    lite.features(images(1))
    assert current() == before


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
    with pytest.raises(ConfigError, match="no feature extractor 'resnet'; there are: efficientnet_lite0, inception"):
        extractor("resnet")
    with pytest.raises(ConfigError, match=r"leave cca.weights empty"):
        extractor("efficientnet_lite0", weights="x.pth")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            extractor("efficientnet_lite0", device="cuda")
