"""Statistics that vary over a mosaic, against float64 bilinear interpolation; lock-step against the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import field, pix2pixhd, restormer, speed, statistics
from sar2eo_dist.models._norm import InstanceNorm2d
from sar2eo_dist.models.field import Field

C = 3


def knots(rng: np.random.Generator, rows: int, cols: int, layers=("a",)):
    """mean and variance of each layer at rows x cols knots, float32."""
    return {
        n: (
            torch.from_numpy(rng.normal(3, 2, (rows, cols, C)).astype(np.float32)),
            torch.from_numpy(rng.uniform(0.1, 4, (rows, cols, C)).astype(np.float32)),
        )
        for n in layers
    }


def linear(places: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """np.interp along the first axis: (knots, ...) at (n,) places -> (n, ...); the outermost values hold beyond."""
    flat = values.reshape(len(places), -1)
    return np.stack([np.interp(at, places, column) for column in flat.T], 1).reshape(len(at), *values.shape[1:])


def bilinear(rows, cols, weights, values, ys, xs) -> np.ndarray:
    """(C, h, w) float64: weighted values over weights, each interpolated, down and then across."""

    def plane(v: np.ndarray) -> np.ndarray:
        return linear(cols, linear(rows, v, ys).swapaxes(0, 1), xs).transpose(2, 1, 0)

    w = weights.astype(np.float64)[..., None]
    return plane(w * values.double().numpy()) / plane(np.broadcast_to(w, values.shape))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from((1, 2, 4, 8)),
    st.integers(-200, 900),
    st.integers(-200, 900),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
)
def test_maps_are_bilinear_between_the_knots(seed, rows, cols, scale, row, col, h, w, uneven):
    rng = np.random.default_rng(seed)
    ys, xs = 200.0 * np.arange(rows) + rng.uniform(0, 99), 200.0 * np.arange(cols) + rng.uniform(0, 99)
    weights = rng.uniform(0.05, 1, (rows, cols)) if uneven else np.full((rows, cols), 0.7)
    values = knots(rng, rows, cols)
    found = Field(ys, xs, weights, values).maps("a", row, col, (h * scale, w * scale), (h, w))
    down = row + (np.arange(h) + 0.5) * scale - 0.5  # a feature's place is the middle of the pixels that it stands for
    across = col + (np.arange(w) + 0.5) * scale - 0.5
    for got, at_knots in zip(found, values["a"], strict=True):
        wanted = bilinear(ys, xs, weights.astype(np.float32), at_knots, down, across)
        assert got.shape == (1, C, h, w)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got[0].numpy(), wanted, rtol=2e-5, atol=2e-5)


def test_at_a_knot_and_beyond_the_outermost_its_value_holds():
    values = knots(np.random.default_rng(0), 2, 3)
    made = Field([100, 300], [50, 250, 450], np.ones((2, 3)), values)
    for row, col, i, j in (
        (100, 250, 0, 1),
        (300, 450, 1, 2),
        (-9000, -9000, 0, 0),
        (9000, 9000, 1, 2),
        (0, 250, 0, 1),
    ):
        for got, at_knots in zip(made.maps("a", row, col, (1, 1), (1, 1)), values["a"], strict=True):
            assert torch.equal(got.flatten(), at_knots[i, j])


def test_a_map_is_channels_last_in_memory():
    mean, var = Field([0, 9], [0, 9], np.ones((2, 2)), knots(np.random.default_rng(0), 2, 2)).maps(
        "a", 0, 0, (8, 8), (4, 4)
    )
    assert mean.is_contiguous(memory_format=torch.channels_last)
    assert var.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 400), st.integers(0, 400))
def test_knots_without_data_take_no_part(seed, row, col):
    """Whatever they hold: their neighbours' values hold where nothing else is near."""
    rng = np.random.default_rng(seed)
    places, weights, values = [100.0, 300.0], np.array([[1.0, 0.0], [0.5, 0.25]]), knots(rng, 2, 2)
    other = {"a": tuple(v.clone() for v in values["a"])}
    for v in other["a"]:
        v[0, 1] = 1e6
    sizes = (row, col, (64, 64), (8, 8))
    made = Field(places, places, weights, values).maps("a", *sizes)
    for got, same in zip(made, Field(places, places, weights, other).maps("a", *sizes), strict=True):
        assert torch.equal(got, same)
    alone = Field(places, places, np.array([[0.0, 0.0], [1e-4, 0.0]]), values)
    for got, at_knots in zip(alone.maps("a", 301, 90, (64, 8), (8, 1)), values["a"], strict=True):
        np.testing.assert_allclose(got[0, :, :, 0].numpy(), at_knots[1, 0][:, None].expand(C, 8), rtol=1e-5)


def test_where_no_knot_nearby_has_data_statistics_are_still_those_of_data():
    """A window reaches over ground without data, whose knots hold nothing: a variance of 0 there would blow up what is
    computed from it, up to infinity, and channel attention would spread that over the whole window."""
    values = knots(np.random.default_rng(3), 1, 4)
    for v in values["a"]:
        v[0, 1:] = 0
    made = Field([50.0], [50.0, 150.0, 250.0, 350.0], np.array([[1.0, 0.0, 0.0, 0.0]]), values)
    _, var = made.maps("a", 0, 0, (16, 400), (2, 50))
    assert float(var.min()) >= 0.5 * float(values["a"][1][0, 0].min())


@pytest.mark.parametrize(
    ("weights", "shape", "text"),
    [
        ((2, 2), (2, 3), r"\(2, 3\) knots with weights \(2, 2\)"),
        ((2, 3), (3, 2), r"other values in \['a'\]"),
        ((6,), (2, 3), r"weights \(6,\)"),
    ],
)
def test_bad_shapes(weights, shape, text):
    with pytest.raises(ModelError, match=text):
        Field([0, 1], [0, 1, 2], np.ones(weights), knots(np.random.default_rng(0), *shape))
    mean, var = knots(np.random.default_rng(0), 2, 3)["a"]
    with pytest.raises(ModelError, match=r"\['b'\]"):
        Field([0, 1], [0, 1, 2], np.ones((2, 3)), {"a": (mean, var), "b": (mean, var[:1])})


def test_source_is_each_windows_own_maps():
    rng = np.random.default_rng(1)
    places = [
        (Field([0, 90], [0, 90], rng.uniform(0.1, 1, (2, 2)), knots(rng, 2, 2)), r, c)
        for r, c in ((0, 0), (30, 70), (8, 5))
    ]
    given_ = field.source(places, (32, 64))("a", (4, 8))
    assert list(given_) == ["mean", "var"]
    for n, (made, row, col) in enumerate(places):
        for key, wanted in zip(("mean", "var"), made.maps("a", row, col, (32, 64), (4, 8)), strict=True):
            assert torch.equal(given_[key][n : n + 1], wanted)
    assert torch.equal(field.source(places[1:2], (32, 64))("a", (4, 8))["var"], given_["var"][1:2])


def tiny(model):
    torch.manual_seed(1)
    return speed.apply(model.build({"preset": "tiny"}, 3, 3).eval())


def scene(side: int) -> torch.Tensor:
    """(1, 3, side, side): a dark and a bright half with speckle, so that windows differ in their statistics."""
    torch.manual_seed(2)
    half = (torch.arange(side) > 0.55 * side).float() - 0.5
    return (half + 0.3 * torch.randn(1, 3, side, side)).clamp(-1, 1)


@torch.no_grad()
def test_a_field_of_equal_knots_is_the_statistics_themselves():
    net, x = tiny(pix2pixhd), scene(96)
    with statistics.gather(net) as found:
        net(x)
    wanted = {n: found[n] for n in field.moments(net)}
    even = {n: tuple(v[k].expand(2, 3, -1).contiguous() for k in ("mean", "var")) for n, v in wanted.items()}
    for weights in (np.ones((2, 3)), np.array([[0.3, 1.0, 0.7], [0.0, 0.5, 0.9]])):
        made = Field([10, 60], [-20, 30, 80], weights, even)
        with statistics.use(net, field.source([(made, 5, 7)], (96, 96))):
            got = net(x)
        with statistics.use(net, wanted):
            assert float((got - net(x)).abs().max()) < 2e-5


@torch.no_grad()
def test_moments_are_the_norm_layers_that_have_a_mean():
    assert field.moments(tiny(pix2pixhd)) == statistics.layers(tiny(pix2pixhd))
    assert statistics.layers(tiny(restormer))
    assert field.moments(tiny(restormer)) == []


def cores(side: int, size: int, halo: int):
    """(window as slices, core within it): halos are clipped at the image's edge."""
    for top in range(0, side, size):
        for left in range(0, side, size):
            y, x = max(0, top - halo), max(0, left - halo)
            yield (
                np.s_[:, :, y : top + size + halo, x : left + size + halo],
                (top - y, min(side, top + size) - y, left - x, min(side, left + size) - x),
            )


@pytest.mark.parametrize(("model", "side"), [(pix2pixhd, 256), (restormer, 192)], ids=["pix2pixhd", "restormer"])
@torch.no_grad()
def test_lockstep_is_what_the_whole_image_computes(model, side):
    net, image = tiny(model), scene(side)
    with statistics.gather(net) as wanted:
        net(image)
    passes = []

    def inputs():
        passes.append(0)
        for window, core in cores(side, 64, 96):
            passes[-1] += 1
            yield image[window], tuple(image[window].shape[2:]), core

    found = field.lockstep(net, inputs)
    assert passes == [(side // 64) ** 2] * len(statistics.layers(net))
    assert list(found) == statistics.layers(net)
    for name, values in wanted.items():
        assert found[name].keys() == values.keys()
        for key, value in values.items():
            scale = float(value.abs().max()) if key != "mean" else float(values["var"].max() ** 0.5)
            assert float((found[name][key] - value).abs().max()) <= 1e-5 * scale, (name, key)


def formula(x: torch.Tensor) -> torch.Tensor:
    """Instance norm in float64."""
    wide = x.double()
    var, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
    return (wide - mean) / torch.sqrt(var + 1e-5)


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest error as a share of the output's deviation."""
    return float((got.double() - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize("side", [16, 200, 256, 512, 1024])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@torch.no_grad()
def test_instance_norm_of_large_maps_with_a_mean_far_from_zero(side, layout):
    torch.manual_seed(side)
    x = (torch.randn(1, 4, side, side) * 0.3 + torch.tensor([20.0, -20.0, 0.0, 3.0])[:, None, None]).contiguous(
        memory_format=layout
    )
    wanted = formula(x)
    assert off(InstanceNorm2d()(x), wanted) < 1e-4
    with statistics.gather(torch.nn.Sequential(norm := InstanceNorm2d())) as found:
        assert off(norm(x), wanted) < 1e-4
    var, mean = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    assert float((found["0"]["mean"] - mean).abs().max()) < 1e-4 * 0.3
    assert float((found["0"]["var"] / var - 1).abs().max()) < 1e-4


@torch.no_grad()
def test_why_the_fused_kernel_is_not_used_for_large_maps():
    """PyTorch's channels_last group norm on a CPU sums x and x^2 in float32. A release that does not makes this one fail:
    then `_norm` can be simplified."""
    torch.manual_seed(0)
    x = (torch.randn(1, 4, 1024, 1024) * 0.3 + 20).contiguous(memory_format=torch.channels_last)
    assert off(functional.group_norm(x, 4, eps=1e-5), formula(x)) > 1e-2


@pytest.mark.parametrize("side", [16, 48, 272], ids=["plain", "fused", "own sums"])
def test_instance_norm_gradients(side):
    torch.manual_seed(0)
    x = (torch.randn(2, 3, side, side) * 0.3 + 2).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(2, 3, side, side)
    grads = []
    for made, dtype in ((InstanceNorm2d(), torch.float32), (formula, torch.float64)):
        at = x.detach().to(dtype).requires_grad_()
        (made(at) * weight.to(dtype)).sum().backward()
        grads.append(at.grad)
    assert off(grads[0], grads[1]) < 1e-4
