"""LPIPS against its definition written out, with random AlexNet weights under torchvision's names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as f

from sar2eo_dist.errors import ConfigError, ModelError, NotFound
from sar2eo_dist.evaluation.lpips import Lpips

#: index in torchvision's `features`, (out, in, kernel), stride, padding, pooled before
LAYERS = (
    (0, (64, 3, 11), 4, 2, False), (3, (192, 64, 5), 1, 2, True), (6, (384, 192, 3), 1, 1, True),
    (8, (256, 384, 3), 1, 1, False), (10, (256, 256, 3), 1, 1, False),
)  # fmt: skip
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    random = torch.Generator().manual_seed(0)
    found: State = {}
    for index, (o, i, k), *_ in LAYERS:
        found[f"features.{index}.weight"] = torch.randn(o, i, k, k, generator=random) * (2 / (i * k * k)) ** 0.5
        found[f"features.{index}.bias"] = 0.1 * torch.randn(o, generator=random)
    return found


@pytest.fixture(scope="module")
def weights(state: State, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(3, 4)}, path)  # the whole file has the classifier too
    return str(path)


@pytest.fixture(scope="module")
def lpips(weights: str) -> Lpips:
    return Lpips(weights)


def by_hand(state: State, pred: np.ndarray, true: np.ndarray) -> float:
    """One image, (3, H, W) in [0, 1], in float64."""
    spec = importlib.util.find_spec("torchmetrics")  # found, not imported
    assert spec is not None
    assert spec.origin is not None
    heads = torch.load(Path(spec.origin).parent / "functional/image/lpips_models/alex.pth", "cpu", weights_only=True)
    shift, scale = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    maps = [((torch.from_numpy(x).double() * 2 - 1 - shift) / scale)[None] for x in (pred, true)]
    total = 0.0
    for level, (index, _, stride, padding, pooled) in enumerate(LAYERS):
        w, bias = (state[f"features.{index}.{k}"].double() for k in ("weight", "bias"))
        maps = [f.max_pool2d(x, 3, 2) if pooled else x for x in maps]
        maps = [f.conv2d(x, w, bias, stride, padding).clamp(min=0) for x in maps]
        a, b = (x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in maps)
        total += float(((a - b) ** 2 * heads[f"lin{level}.model.1.weight"].double()).sum(1).mean())
    return total


def images(seed: int, n: int = 2, size: int = 70) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((n, 3, size, size + 5)).astype(np.float32)
    pred = np.clip(true + 0.2 * rng.normal(size=true.shape), 0, 1).astype(np.float32)
    return pred, true, np.ones((n, size, size + 5), bool)


def test_lpips_is_its_definition(lpips: Lpips, state: State) -> None:
    pred, true, valid = images(1)
    found = lpips(pred, true, valid)
    np.testing.assert_allclose(found, [by_hand(state, p, t) for p, t in zip(pred, true, strict=True)], rtol=1e-5)
    assert found.dtype == np.float64
    assert (found > 1e-3).all()
    assert (lpips(true, true, valid) == 0).all()
    assert lpips(pred[1:], true[1:], valid[1:])[0] == found[1]  # no batch matters


def test_what_invalid_pixels_hold_adds_nothing(lpips: Lpips, state: State) -> None:
    pred, true, valid = images(2, n=1)
    valid[0, 20:50, 30:] = False
    cut = [np.where(valid, x[0], 0) for x in (pred, true)]
    expected = by_hand(state, cut[0], cut[1])
    pred[0, :, ~valid[0]] = np.nan
    true[0, :, ~valid[0]] = 7
    assert lpips(pred, true, valid)[0] == pytest.approx(expected, rel=1e-5)


def test_nothing_to_measure_is_nan(lpips: Lpips) -> None:
    pred, true, valid = images(3)
    valid[0] = False
    found = lpips(pred, true, valid)
    assert np.isnan(found[0])
    assert np.isfinite(found[1])
    assert np.isnan(lpips(pred[..., :63], true[..., :63], valid[..., :63])).all()
    assert lpips(pred[:0], true[:0], valid[:0]).shape == (0,)


def test_the_global_generator_and_thread_count_stay(weights: str) -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    pred, true, valid = images(4, n=1, size=64)
    Lpips(weights)(pred, true, valid)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_bad_images_are_named(lpips: Lpips) -> None:
    pred, true, valid = images(5)
    with pytest.raises(ModelError, match="three bands"):
        lpips(pred[:, :2], true[:, :2], valid)
    with pytest.raises(ModelError, match="bool mask, not float32"):
        lpips(pred, true, valid.astype(np.float32))
    pred[1, 0, 2, 3] = np.inf
    with pytest.raises(ModelError, match=r"pred\[1\] is not finite at valid pixel \(2, 3\)"):
        lpips(pred, true, valid)


def test_a_file_that_does_not_fit_is_named(state: State, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    with pytest.raises(NotFound, match=r"other\.pth"):
        Lpips(str(path))
    for content, why in (
        ({k: v for k, v in state.items() if k != "features.8.bias"}, r"1 missing: features\.8\.bias"),
        (state | {"features.0.weight": torch.zeros(64, 4, 11, 11)}, r"features\.0\.weight"),
        (state | {"features.3.bias": torch.full((192,), torch.nan)}, "NaN"),
        ({"model": torch.nn.ReLU()}, "more than tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(ConfigError, match=rf"evaluate\.lpips wants.*alexnet-owt-7be5be79.*{why}.*other\.pth"):
            Lpips(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"alexnet-owt.*other\.pth"):
        Lpips(str(path))
