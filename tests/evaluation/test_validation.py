"""Validation against the metrics and predictors called by hand, whatever the number of workers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from sar2eo_dist import radiometry
from sar2eo_dist.evaluation.baselines import LinearFit, MeanImage
from sar2eo_dist.evaluation.metrics import BASIC, image_metrics
from sar2eo_dist.evaluation.validation import FIT, Held, baselines, coarse, mean, measure, peak
from sar2eo_dist.models import speed
from sar2eo_dist.models._network import Accelerated

FIXED = SimpleNamespace(sar="fixed", eo="fixed", third="difference_db", median=0)
SIDE = 16
CPU = torch.device("cpu")


def pairs(i):
    """EO that follows the SAR, with noise; a corner is invalid, and so is a pixel that the radar did not see."""
    rng = np.random.default_rng(i)
    sar = rng.integers(-2500, -500, (2, SIDE, SIDE)).astype(np.int16)
    eo = np.clip(3000 + sar[[0, 1, 0]] + rng.integers(-300, 300, (3, SIDE, SIDE)), 0, 3000).astype(np.uint16)
    valid = np.ones((SIDE, SIDE), bool)
    valid[:2, : 3 + i] = False
    return sar, eo, valid


def holed(i):
    sar, eo, valid = pairs(i)
    sar[0, 0, 0] = radiometry.DB_NODATA  # not valid: see `pairs`
    return sar, eo, valid


def image(i):
    return np.random.default_rng(100 + i).uniform(-1, 1, (3, SIDE, SIDE)).astype(np.float32)


def held(samples=(2, 3, 5, 7, 8), **more):
    return Held(**{"pairs": pairs, "image": None, "samples": samples, "scaling": FIXED} | more)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.Tanh())


def blocks(x, scale):
    """Block means in float64, one by one."""
    c, h, w = x.shape
    out = np.empty((c, h // scale, w // scale))
    for k, y, z in np.ndindex(out.shape):
        out[k, y, z] = x[k, y * scale : (y + 1) * scale, z * scale : (z + 1) * scale].astype(np.float64).mean()
    return out


def by_hand(i, scale=1):
    """source in [-1, 1], truth in [0, 1], valid, dB."""
    sar, eo, valid = pairs(i)
    db = radiometry.decode_db(sar)
    truth = radiometry.scale_eo(eo, valid, FIXED) * 0.5 + 0.5
    parts = [blocks(x, scale).astype(np.float32) for x in (radiometry.scale_sar(db, FIXED), truth, db)]
    return parts[0], parts[1], blocks(valid[None], scale)[0] == 1, parts[2]


def scores(made, truth, valid):
    return {k: float(v[0]) for k, v in image_metrics(made[None], truth[None], valid[None], 1.0).items()}


@pytest.mark.parametrize("scale", [1, 2])
def test_measure_is_the_metrics_of_each_image_in_zero_to_one(scale):
    net = small().eval()
    got = measure(net, held(scale=scale), CPU)
    assert list(got) == [2, 3, 5, 7, 8]
    for i, row in got.items():
        source, truth, valid, _ = by_hand(i, scale)
        with torch.no_grad():
            made = net(torch.from_numpy(source)[None])[0].numpy() * 0.5 + 0.5
        assert made.shape == (3, SIDE // scale, SIDE // scale)
        assert row == pytest.approx(scores(made, truth, valid), rel=1e-5)
        assert 0 < row["mae"] < row["rmse"] < 1


def test_an_enhancer_is_fed_with_its_images():
    source, truth, valid, db = held(image=image).read(3)
    assert np.array_equal(source, image(3))
    plain = held().read(3)
    assert all(np.array_equal(a, b) for a, b in zip((truth, valid, db), plain[1:], strict=True))
    identity = nn.Identity()
    assert measure(identity, held((3,), image=image), CPU)[3] == pytest.approx(
        scores(image(3) * 0.5 + 0.5, truth, valid), rel=1e-6
    )


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_of_all_workers_are_the_whole(world):
    net, whole = small(), measure(small(), held(), CPU)
    parts = [measure(net, held(), CPU, rank, world) for rank in range(world)]
    assert sum(map(len, parts)) == len(whole)
    united = {i: row for part in parts for i, row in part.items()}
    assert united == whole
    assert mean(united) == mean(whole)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was_also_after_an_error(training):
    net = small().train(training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    measure(net, held(), CPU)
    peak(net, torch.rand(1, 3, 8, 8))
    assert net.training is training
    assert all(m.training is training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # batch norms have learned nothing
    with pytest.raises(RuntimeError):
        peak(net, torch.rand(1, 5, 8, 8))
    assert net.training is training
    assert not any(m._forward_hooks for m in net.modules())


def test_a_network_that_gives_nan_is_not_a_number_and_not_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full_like(x, math.nan)

    assert all(math.isnan(v) for row in measure(Broken(), held(), CPU).values() for v in row.values())
    assert mean(measure(Broken(), held(), CPU)) == dict.fromkeys(BASIC)


def test_mean_leaves_out_what_is_not_finite():
    nan, inf = math.nan, math.inf
    rows = {
        9: {"mae": 0.3, "rmse": nan, "psnr": inf, "ssim": 0.5},
        1: {"mae": 0.1, "rmse": nan, "psnr": 20.0, "ssim": nan},
        4: {"mae": 0.2, "rmse": inf, "psnr": 30.0, "ssim": 0.7},
    }
    assert mean(rows) == {"mae": pytest.approx(0.2), "rmse": None, "psnr": 25.0, "ssim": pytest.approx(0.6)}
    assert mean({}) == dict.fromkeys(BASIC)
    assert list(mean(rows)) == list(BASIC)
    assert mean(dict(sorted(rows.items()))) == mean(rows)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("enhancer", [False, True])
def test_baselines_are_the_evaluations_fitted_on_training_pairs_alone(scale, enhancer):
    training, more = [0, 1, 4, 6], {"image": image} if enhancer else {}
    levels, linear = MeanImage(), LinearFit()
    for i in training:
        _, truth, valid, db = by_hand(i, scale)
        levels.add(truth[None], valid[None])
        linear.add(db[None], truth[None], valid[None])
    bands, model = levels.solve(), linear.solve()
    rows = {}
    for i in (2, 3, 5):
        _, truth, valid, db = by_hand(i, scale)
        made = {
            "baseline_mean": np.broadcast_to(bands.astype(np.float32)[:, None, None], truth.shape),
            "baseline_zero": np.zeros_like(truth),
            "baseline_linear": model.predict(db[None])[0].clip(0, 1),
            "translated": blocks(image(i) * 0.5 + 0.5, scale).astype(np.float32),
        }
        for name, picture in made.items():
            rows.setdefault(name, []).append(scores(picture, truth, valid))
    wanted = {name: {k: np.mean([r[k] for r in every]) for k in BASIC} for name, every in rows.items()}
    if not enhancer:
        del wanted["translated"]
    got = baselines(held((2, 3, 5), scale=scale, **more), training)
    assert got.keys() == wanted.keys()
    for name, row in got.items():
        assert row == pytest.approx(wanted[name], rel=1e-4), name
    assert got["baseline_linear"]["mae"] < got["baseline_mean"]["mae"] < got["baseline_zero"]["mae"]


def test_a_hole_of_the_radar_where_nothing_is_valid_costs_no_baseline_its_measure():
    """As in jobs/evaluate, where what stands in an invalid pixel has no influence."""
    wanted = baselines(held((2, 3)), [0, 1])
    got = baselines(held((2, 3), pairs=holed), [0, 1])
    for name, row in wanted.items():
        assert got[name] == pytest.approx(row, rel=1e-6), name


def test_baselines_are_fitted_on_a_bounded_number_of_pairs_from_all_over():
    asked = []

    def counted(i):
        asked.append(i)
        return pairs(3)

    n = 5 * FIT + 1
    baselines(held((3,), pairs=counted), range(n))
    assert FIT / 2 < len(asked) - 1 <= FIT
    assert asked[0] == 0
    assert n - 7 < asked[-2] < n
    assert max(np.diff(asked[:-1])) == min(np.diff(asked[:-1]))


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_coarse_is_the_block_mean(scale):
    x = np.random.default_rng(0).normal(size=(2, 6, 12)).astype(np.float32)
    got = coarse(x, scale)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, blocks(x, scale), atol=1e-6)


def test_a_coarse_pixel_is_valid_where_all_of_it_was():
    valid = by_hand(2)[2]
    wanted = valid.reshape(8, 2, 8, 2).all((1, 3))
    assert np.array_equal(held(scale=2).read(2)[2], wanted)
    assert not wanted.all()


def flat():
    """Two 1x1 convolutions: what is constant stays constant."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))


def test_peak_of_constant_features_is_one_and_a_blown_up_place_is_found():
    net, source = flat(), torch.full((2, 3, 16, 16), 0.5)
    assert peak(net, source) == pytest.approx(1, abs=1e-5)
    source[1, :, 3, 4] = 1000.0  # in one of the images
    assert 8 < peak(net, source) <= 16 + 1e-3  # one place of 256 can be no more than sqrt(256) times the rms
    assert peak(nn.Identity(), source) == 0.0
    dead = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(dead.weight), nn.init.zeros_(dead.bias)
    assert peak(dead, source) == 0.0


def test_peak_is_the_largest_ratio_over_convolutions_by_hand():
    net, source = flat(), torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    ratios = []
    for features in (net[0](source), net(source)):
        for one in features.detach().double():
            power = (one**2).mean(0)
            ratios.append(math.sqrt(float(power.max() / power.mean())))
    assert peak(net, source) == pytest.approx(max(ratios), rel=1e-5)


class Fast(Accelerated):
    """A network under the contract of `speed.apply`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Tanh())

    def forward(self, x):
        return self.run(x)

    def core(self, x):
        return self.segments(self.layers, x)


def test_a_compiled_network_is_measured_and_looked_into_alike():
    net, source = Fast(), torch.rand(1, 3, 16, 16)
    wanted, place = measure(net, held((2, 3)), CPU), peak(net, source)
    speed.apply(net)
    frames = CompileCounter()
    net.core = torch.compile(net.core, dynamic=False, backend=frames)  # as `apply` does, but for the backend
    for _ in range(2):  # hooks of the first look are gone, and the compiled form is still in use
        rows = measure(net, held((2, 3)), CPU)
        assert all(rows[i] == pytest.approx(wanted[i], rel=1e-4) for i in (2, 3))
        assert peak(net, source) == pytest.approx(place, rel=1e-4)
    assert place > 1
    assert frames.frame_count == 1  # looked into without being compiled anew, measured as compiled
    assert not any(m._forward_hooks for m in net.modules())
