"""The contract that every translator keeps, whichever file it is."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sar2eo_dist import models
from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.models._image import masked, pad

TINY = {
    "pix2pixhd": {"ngf": 4, "n_downsampling": 2, "n_blocks": 1, "ndf": 4},
    "restormer": {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]},
}
NAMES = sorted(TINY)


def make(name, in_channels=3, out_channels=3, **more):
    torch.manual_seed(0)
    return models.translator(name).build({**TINY[name], **more}, in_channels, out_channels)


def batch(n=2, side=32, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    source, target = (torch.rand(n, c, side, side, generator=g) * 2 - 1 for c in (channels, 3))
    return source, target, torch.ones(n, 1, side, side, dtype=torch.bool)


def test_registry_finds_the_translators_and_only_them():
    assert models.translators() == NAMES
    with pytest.raises(ConfigError, match=r"no translator 'inception'; there are: pix2pixhd, restormer"):
        models.translator("inception")
    for bad in ("nope", "../pix2pixhd", "", "_options"):
        with pytest.raises(ConfigError, match="no translator"):
            models.translator(bad)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_and_impossible_options_are_refused(name):
    t = models.translator(name)
    word = {"pix2pixhd": ("n_block", "n_blocks"), "restormer": ("num_block", "num_blocks")}[name]
    with pytest.raises(ConfigError, match=f"'{word[0]}'; did you mean '{word[1]}'"):
        t.build({word[0]: 3}, 3, 3)
    with pytest.raises(ConfigError, match="unknown preset 'tinny'; did you mean 'tiny'"):
        t.build({"preset": "tinny"}, 3, 3)
    with pytest.raises(ConfigError, match="must be"):
        t.build({word[1]: "many"}, 3, 3)
    with pytest.raises(ConfigError, match="must"):
        t.build({word[1]: [-1, 1, 1, 1] if name == "restormer" else -1}, 3, 3)


@pytest.mark.parametrize("name", NAMES)
def test_complete_options_build_the_same_network(name):
    t = models.translator(name)
    full = t.complete({"preset": "tiny"})
    assert t.complete(full) == full
    shapes = [{k: v.shape for k, v in t.build(o, 3, 3).state_dict().items()} for o in (full, {"preset": "tiny"})]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bands_in", "bands_out"), [(1, 1), (2, 3), (3, 3), (4, 4), (13, 3), (3, 1), (13, 4)])
def test_any_band_count(name, bands_in, bands_out):
    net = make(name, bands_in, bands_out).eval()
    with torch.no_grad():
        y = net(torch.rand(1, bands_in, 16, 24) * 2 - 1)
    assert y.shape == (1, bands_out, 16, 24)
    assert y.dtype == torch.float32
    assert float(y.abs().max()) <= 1
    assert (net.in_channels, net.out_channels) == (bands_in, bands_out)


@pytest.mark.parametrize("name", NAMES)
def test_any_size_is_kept_and_equals_padding_by_hand(name):
    net = make(name).eval()
    for height, width in [(net.minimum, net.minimum), (net.minimum, 37), (33, net.multiple * 3), (21, 30)]:
        x = torch.rand(1, 3, height, width) * 2 - 1
        with torch.no_grad():
            y, whole = net(x), net(pad(x, net.multiple))
        assert y.shape == x.shape
        assert torch.equal(y, whole[:, :, :height, :width])


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]))
@settings(max_examples=40, deadline=None)
def test_pad_reflects_right_and_bottom_to_the_next_multiple(height, width, multiple):
    x = torch.arange(float(height * width)).view(1, 1, height, width)
    if (-height % multiple) >= height or (-width % multiple) >= width:
        return  # a reflection cannot be longer than the image: `minimum` keeps networks away from this
    y = pad(x, multiple)
    assert y.shape[2] % multiple == 0
    assert y.shape[3] % multiple == 0
    assert 0 <= y.shape[2] - height < multiple
    assert 0 <= y.shape[3] - width < multiple
    assert torch.equal(y[:, :, :height, :width], x)
    if y.shape[3] > width:
        assert torch.equal(y[:, :, :height, width], x[:, :, :, width - 2])


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_says_what_to_do(name):
    net = make(name)
    good = torch.zeros(1, 3, 32, 32)
    for bad, words in [
        (good[:, :2], r"wants \(N, 3, H, W\), got \(1, 2, 32, 32\).*in_channels = 2"),
        (good[0], "wants"),
        (good[:, :, : net.minimum - 1], rf"at least {net.minimum} x {net.minimum} pixels, got {net.minimum - 1} x 32"),
        (good.to(torch.uint8), "got torch.uint8: scale it"),
        (good.index_fill(3, torch.tensor([4]), float("nan")), "96 of 3072 input values are NaN or infinite"),
        (good + float("inf"), "NaN or infinite: fill nodata"),
    ]:
        with pytest.raises(ModelError, match=words):
            net(bad)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_preset_is_at_most_20_kmac_a_pixel(name):
    net = models.translator(name).build({"preset": "tiny"}, 3, 3)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 64, 64))
    assert 3_000 < counter.get_total_flops() / 2 / 64**2 <= 20_000


@pytest.mark.parametrize("name", NAMES)
def test_invalid_pixels_change_no_loss(name):
    t = models.translator(name)
    source, target, valid = batch()
    valid[:, :, 5:9, 11:20] = False
    spoilt = torch.where(valid, target, torch.full_like(target, float("nan")))
    spoilt[0] = torch.where(valid[0], target[0], torch.ones(()))
    results = []
    for truth in (target, spoilt):
        trainer = t.Trainer(make(name), TINY[name], 1e-3, 10)
        results.append([trainer.step(i, source, truth, valid) for i in range(2)])
    assert results[0] == results[1]
    nothing = t.Trainer(make(name), TINY[name], 1e-3, 10).step(0, source, target, torch.zeros_like(valid))
    assert all(v == v for v in nothing.values())


def test_masked_takes_the_place_of_nan():
    x, valid = torch.tensor([[[[1.0, float("nan")]]]]).expand(1, 2, 1, 2), torch.tensor([[[[True, False]]]])
    assert masked(x, valid).flatten().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("name", NAMES)
def test_step_learns(name):
    valid = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    source = torch.nn.functional.interpolate(batch(side=4)[0], scale_factor=8)
    target = source.roll(1, 1) * 0.5  # colours are a function of the input's bands
    options = {**TINY[name], **({"lambda_l1": 100.0} if name == "pix2pixhd" else {})}
    trainer = models.translator(name).Trainer(make(name, **options), options, 4e-3, 60)
    losses = [trainer.step(i, source, target, valid) for i in range(25)]
    key = {"pix2pixhd": "G_L1", "restormer": "l1"}[name]
    assert losses[-1][key] < 0.7 * losses[0][key]


@pytest.mark.parametrize("name", NAMES)
def test_divergence_is_named_and_leaves_the_weights(name):
    trainer = models.translator(name).Trainer(make(name), TINY[name], 1e-3, 10)
    source, target, valid = batch()
    before = {k: v.clone() for k, v in trainer.networks["G"].state_dict().items()}
    with pytest.raises(ModelError, match=r"step 7: .*(G_|l1).* = (nan|inf)"):
        trainer.step(7, source, target + float("inf"), valid)
    assert all(torch.equal(v, before[k]) for k, v in trainer.networks["G"].state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_state_of_another_trainer_is_refused_by_name(name):
    t = models.translator(name)
    trainer = t.Trainer(make(name), TINY[name], 1e-3, 10)
    with pytest.raises(ModelError, match="another trainer"):
        trainer.load_state_dict({"networks": {"X": {}}, "optimisers": {}})
    wider = {"pix2pixhd": {"ngf": 6}, "restormer": {"dim": 6}}[name]
    other = t.Trainer(make(name, **wider), {**TINY[name], **wider}, 1e-3, 10)
    with pytest.raises(ModelError, match="misshapen: "):
        trainer.load_state_dict(other.state_dict())
    state = trainer.state_dict()
    del state["networks"]["G"][next(iter(state["networks"]["G"]))]
    with pytest.raises(ModelError, match="1 missing: "):
        trainer.load_state_dict(state)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_under_ddp_equals_one_without(name, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    trainer: object = None
    try:
        ends = []
        for wrapped in (False, True):
            trainer = models.translator(name).Trainer(make(name), TINY[name], 1e-3, 10)
            if wrapped:
                trainer.wrap(torch.nn.parallel.DistributedDataParallel, lambda x: x)
            losses = [trainer.step(i, *batch(seed=i)) for i in range(3)]
            ends.append((losses, trainer.state_dict()["networks"]))
        assert ends[0][0] == ends[1][0]
        for net, weights in ends[0][1].items():
            assert all(torch.equal(v, ends[1][1][net][k]) for k, v in weights.items())
    finally:
        # first: where DDP holds the group last, its end waits, with the GIL, for threads of gloo that may want the GIL
        del trainer
        gc.collect()
        torch.distributed.destroy_process_group()


def test_models_and_training_need_neither_ray_nor_zarr_nor_pydantic():
    code = (
        "import sys; import sar2eo_dist.models.pix2pixhd, sar2eo_dist.models.restormer, sar2eo_dist.models.extractors;"
        "import sar2eo_dist.models.inception, sar2eo_dist.models.efficientnet, sar2eo_dist.models.bundle;"
        "import sar2eo_dist.training.fit, sar2eo_dist.training.checkpoint, sar2eo_dist.training.watchdog;"
        "print(sorted({'ray', 'zarr', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
