"""Statistics from outside: a window then computes what the whole image does, to 1e-4."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import pix2pixhd, restormer, speed, statistics
from sar2eo_dist.models.pix2pixhd import GlobalGenerator, LocalEnhancer

HALO = 96  # the halo covers the receptive radius of both `tiny` networks


def scene(side, bands=3, seed=0):
    """Smooth and uneven: dark in one corner, bright in the other, so that windows differ in their statistics."""
    torch.manual_seed(seed)
    coarse = torch.rand(1, bands, side // 32, side // 32)
    ramp = torch.linspace(-0.8, 0.8, side)
    return (torch.nn.functional.interpolate(coarse, side, mode="bicubic") - 0.5) * 0.4 + (ramp + ramp[:, None]) / 2


def tiny(model):
    torch.manual_seed(1)
    return speed.apply(model.build({"preset": "tiny"}, 3, 3).eval())


def windows(side, core, halo=HALO):
    """(window, core within it, core within the image): halos are clipped at the image's edge, never padded."""
    for top in range(0, side, core):
        for left in range(0, side, core):
            y0, x0 = max(0, top - halo), max(0, left - halo)
            y1, x1 = min(side, top + core + halo), min(side, left + core + halo)
            yield (
                (slice(None), slice(None), slice(y0, y1), slice(x0, x1)),
                (top - y0, top - y0 + core, left - x0, left - x0 + core),
                (slice(None), slice(None), slice(top, top + core), slice(left, left + core)),
            )


@pytest.mark.parametrize(("model", "side"), [(pix2pixhd, 1024), (restormer, 512)], ids=["pix2pixhd", "restormer"])
@torch.no_grad()
def test_windows_with_exact_statistics_equal_the_whole_image(model, side):
    net, image = tiny(model), scene(side)
    with statistics.gather(net) as whole:
        wanted = net(image)
    tiled, own, parts = torch.zeros_like(wanted), torch.zeros_like(wanted), []
    for window, inner, place in windows(side, side // 2):
        x = image[window]
        crop = (slice(None), slice(None), slice(inner[0], inner[1]), slice(inner[2], inner[3]))
        with statistics.use(net, whole), statistics.gather(net, tuple(x.shape[2:]), inner) as part:
            tiled[place] = net(x)[crop]
        parts.append({name: dict(values) for name, values in part.items()})
        own[place] = net(x)[crop]
    assert float((tiled - wanted).abs().max()) <= 1e-4
    assert float((own - wanted).abs().max()) > 1e-2  # the control: a window's own statistics are not the scene's

    merged = statistics.merge(parts)  # and the cores' statistics pool to the scene's
    assert list(merged) == statistics.layers(net)
    for name, values in whole.items():
        for key, value in values.items():
            scale = float(value.abs().max())
            assert float((merged[name][key] - value).abs().max()) <= 1e-4 * scale, (name, key)


@pytest.mark.parametrize(
    "net",
    [
        GlobalGenerator(2, 3, ngf=4, n_downsampling=2, n_blocks=1),
        LocalEnhancer(2, 3, ngf=2, n_downsample_global=1, n_blocks_global=1, n_blocks_local=1),
        restormer.build({"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}, 2, 3),
    ],
    ids=["global", "local", "restormer"],
)
@torch.no_grad()
def test_its_own_statistics_given_back_change_nothing(net):
    x = torch.rand(2, 2, 24, 40) * 2 - 1
    before = net.eval()(x)
    with statistics.gather(net) as found:
        assert torch.equal(net(x), before) or torch.allclose(net(x), before, atol=1e-5)
    with statistics.use(net, found):
        assert torch.allclose(net(x), before, atol=1e-5)
    asked = []

    def source(name, size):
        asked.append((name, size))
        maps = {k: v[..., None, None].expand(*v.shape, *size) for k, v in found[name].items() if k in ("mean", "var")}
        return maps or found[name]

    with statistics.use(net, source):
        assert torch.allclose(net(x), before, atol=1e-5)
    assert [name for name, _ in asked] == statistics.layers(net)  # named in the order in which they run
    assert torch.equal(net(x), before)  # nothing is left behind


def test_bad_statistics():
    net = GlobalGenerator(3, 3, ngf=2, n_downsampling=2, n_blocks=1)
    x = torch.rand(1, 3, 16, 16)
    with statistics.gather(net) as found:
        net(x)
    part = {k: v for k, v in found.items() if k != "model.2"}
    with (
        pytest.raises(ModelError, match="statistics of 1 layers are missing, first model.2"),
        statistics.use(net, part),
    ):
        pass
    with pytest.raises(ModelError, match=r"lack \['var'\]"), statistics.use(net, lambda name, size: {"mean": x}):
        net(x)
    with pytest.raises(ModelError, match="falls between pixels"), statistics.gather(net, (16, 16), (2, 16, 0, 16)):
        net(x)
    for parts in ([], [found, part]):
        with pytest.raises(ModelError, match="parts to merge"):
            statistics.merge(parts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 2**31), st.floats(-1e3, 1e3))
def test_merged_moments_are_those_of_the_union(rows, seed, offset):
    x = torch.randn(1, 3, sum(rows), 4, generator=torch.Generator().manual_seed(seed)) + offset
    parts = []
    for piece in x.double().split(rows, dim=2):
        var, mean = torch.var_mean(piece, dim=(2, 3), correction=0)
        parts.append({"n": {"mean": mean, "var": var, "count": torch.tensor(float(piece[0, 0].numel()))}})
    merged = statistics.merge(parts)["n"]
    var, mean = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    assert torch.allclose(merged["mean"], mean.float(), rtol=1e-6, atol=1e-6)
    assert torch.allclose(merged["var"], var.float(), rtol=1e-5, atol=1e-6)
    assert float(merged["count"]) == x[0, 0].numel()


@pytest.mark.parametrize("model", [pix2pixhd, restormer], ids=["pix2pixhd", "restormer"])
@torch.no_grad()
def test_gather_of_one_layer_ends_the_pass_there(model):
    net, x = tiny(model), scene(64)
    names = statistics.layers(net)
    ran: list[str] = []
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: ran.append(name)) for name in names
    ]
    with statistics.gather(net) as wanted:
        before = net(x)
    assert ran == names
    for k, name in enumerate(names):
        ran.clear()
        after = []
        with statistics.gather(net, last=name) as found:
            net(x)
            after.append("the rest of the context")
        assert ran == names[: k + 1]
        assert not after
        assert list(found) == [name]
        assert found[name].keys() == wanted[name].keys()
        for key, value in found[name].items():
            assert torch.allclose(value, wanted[name][key], rtol=1e-4, atol=1e-5)
    ran.clear()
    assert torch.equal(net(x), before) or torch.allclose(net(x), before, atol=1e-5)  # and no later pass ends early
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_gather_of_one_layer_of_a_core_in_each_window():
    net, image = tiny(pix2pixhd), scene(256)
    name = statistics.layers(net)[3]
    for window, inner, _ in windows(256, 128, 64):
        x = image[window]
        with statistics.gather(net, tuple(x.shape[2:]), inner) as wanted:
            net(x)
        with statistics.gather(net, tuple(x.shape[2:]), inner, last=name) as found:
            net(x)
        assert all(torch.allclose(found[name][k], wanted[name][k], rtol=1e-4, atol=1e-5) for k in wanted[name])


def test_other_errors_leave_gather():
    net = tiny(pix2pixhd)
    with pytest.raises(ZeroDivisionError), statistics.gather(net, last=statistics.layers(net)[0]):
        raise ZeroDivisionError
    assert all("last" not in vars(m) and "taken" not in vars(m) for m in net.modules())


@torch.no_grad()
def test_gather_of_some_layers():
    net, x = tiny(pix2pixhd), scene(64)
    with statistics.gather(net) as wanted:
        net(x)
    names = statistics.layers(net)[1:4]
    with statistics.gather(net, only=names) as found:
        net(x)
    assert list(found) == names
    assert all(torch.allclose(found[n]["var"], wanted[n]["var"], rtol=1e-4) for n in names)


@torch.no_grad()
def test_use_of_some_layers_leaves_the_others_as_trained():
    net, x, other = tiny(pix2pixhd), scene(64), scene(64, seed=3) * 0.3
    with statistics.gather(net) as given_:
        net(other)
    names = statistics.layers(net)
    with statistics.use(net, {}, only=[]):  # none: as trained
        own = net(x)
    assert torch.equal(own, net(x))
    chosen = names[:2]
    part = {n: given_[n] for n in chosen}
    with statistics.use(net, part, only=chosen), statistics.gather(net) as seen:
        mixed = net(x)
    with statistics.use(net, given_):
        full = net(x)
    assert float((mixed - own).abs().max()) > 1e-3
    assert float((mixed - full).abs().max()) > 1e-3
    with statistics.use(
        net, {**part, **{n: seen[n] for n in names[2:]}}
    ):  # the others read their own input, as it now is
        assert torch.allclose(net(x), mixed, atol=1e-5)
    with (
        pytest.raises(ModelError, match=f"statistics of 1 layers are missing, first {names[2]}"),
        statistics.use(net, part, only=names[:3]),
    ):
        pass
    asked: list[str] = []

    def source(name: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        asked.append(name)
        return given_[name]

    with statistics.use(net, source, only=chosen):
        assert torch.allclose(net(x), mixed, atol=1e-4)
    assert asked == chosen
