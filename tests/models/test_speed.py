"""Speed settings change how fast a network runs, not what it computes: each is compared with every option off."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from sar2eo_dist.errors import ConfigError, ModelError
from sar2eo_dist.models import _transformer, perceptual, pix2pixhd, restormer, speed
from sar2eo_dist.models._transformer import Attention
from sar2eo_dist.models.discriminator import MultiscaleDiscriminator

MODELS = pytest.mark.parametrize("model", [pix2pixhd, restormer], ids=["pix2pixhd", "restormer"])
TINY = {"preset": "tiny"}


def pair(model, **settings):
    """The same network plain and with settings."""
    torch.manual_seed(0)
    plain = model.build(TINY, 3, 3)
    return plain, speed.apply(copy.deepcopy(plain), **settings)


def batch(side=48, n=2):
    torch.manual_seed(1)
    source, target = torch.rand(2, n, 3, side, side) * 2 - 1
    return source, target, torch.ones(n, 1, side, side, dtype=torch.bool)


def error(found, wanted):
    """Largest and root-mean-square difference as shares of the standard deviation of what is wanted."""
    d, std = found - wanted, float(wanted.std())
    return float(d.abs().max()) / std, float(d.square().mean().sqrt()) / std


@MODELS
@pytest.mark.parametrize("size", [(48, 48), (37, 50)])
def test_channels_last_gives_the_same(model, size):
    plain, fast = pair(model)
    x = torch.rand(2, 3, *size) * 2 - 1
    for train in (True, False):
        plain.train(train), fast.train(train)
        assert error(fast(x), plain(x))[0] <= 1e-4
    y, z = plain(x), fast(x)
    y.square().mean().backward(), z.square().mean().backward()
    grads = zip(plain.parameters(), fast.parameters(), strict=True)
    scale = max(float(p.grad.abs().max()) for p in plain.parameters())
    assert max(float((p.grad - q.grad).abs().max()) for p, q in grads) <= 1e-4 * scale
    assert next(p for p in fast.parameters() if p.ndim == 4 and p.shape[1] > 1).is_contiguous(
        memory_format=torch.channels_last
    )


@MODELS
def test_bfloat16_stays_close_and_float32_outside(model):
    plain, fast = pair(model, precision="bfloat16")
    x = batch()[0]
    with torch.no_grad():
        wanted, found = plain.eval()(x), fast.eval()(x)
    assert found.dtype == torch.float32
    largest, rms = error(found, wanted)
    assert 1e-5 < rms < 0.03, rms
    assert largest < 0.2
    assert all(p.dtype == torch.float32 for p in fast.parameters())


@MODELS
def test_steps_in_bfloat16_follow_those_in_float32(model):
    plain, fast = pair(model)
    trainers = [model.Trainer(net, TINY, 1e-3, 100) for net in (plain, fast)]
    trainers[1].load_state_dict(trainers[0].state_dict())
    trainers[1].accelerate("bfloat16")
    for step in range(3):
        losses = [t.step(step, *batch()) for t in trainers]
        for name in losses[0]:
            if not name.startswith("grad_norm"):
                assert losses[1][name] == pytest.approx(losses[0][name], rel=0.05, abs=0.02), (step, name)
    moments = next(iter(trainers[1].optimisers.values())).state.values()
    assert all(s["exp_avg"].dtype == torch.float32 for s in moments)


@MODELS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_keeps_less_and_computes_the_same(model, precision):
    plain, fast = pair(model, checkpointing=True, precision=precision)
    speed.apply(plain, precision)
    x, found = batch()[0], []
    for net in (plain, fast):
        kept: dict[int, int] = {}

        def pack(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = net(x)
        size = sum(kept.values())
        y.square().mean().backward()
        found.append((size, y.detach(), [p.grad for p in net.parameters()]))
    assert found[1][0] < 0.6 * found[0][0]
    assert torch.equal(found[0][1], found[1][1])
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


@MODELS
def test_a_compiled_step_equals_an_eager_one(model, monkeypatch):
    """The captured graph, run by torch's own kernels: no compiler is needed for it."""
    eager, real = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda fn, **kw: eager.append(kw) or real(fn, backend="aot_eager", fullgraph=True, **kw)
    )
    torch._dynamo.reset()
    plain, fast = pair(model)
    speed.apply(plain)
    trainers = [model.Trainer(net, TINY, 1e-3, 100) for net in (plain, fast)]
    trainers[1].load_state_dict(trainers[0].state_dict())
    trainers[1].accelerate(compile=True)
    assert len(eager) == len(trainers[1].networks)
    for step in range(2):
        losses = [t.step(step, *batch(32, 1)) for t in trainers]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert set(fast.state_dict()) == set(plain.state_dict())
    torch._dynamo.reset()


def test_the_critic_and_the_backbone_are_set_too():
    options = {**TINY, "perceptual": "probe", "lambda_vgg": 1.0}

    class Probe(speed.Accelerated):
        def forward(self, x):
            return self.run(x)

        def core(self, x):
            return [x] * 5

    perceptual.BACKBONES["probe"] = lambda channels, weights, bands: Probe()
    try:
        trainer = pix2pixhd.Trainer(pix2pixhd.build(options, 3, 3), options, 1e-3, 10)
    finally:
        del perceptual.BACKBONES["probe"]
    trainer.accelerate("bfloat16", checkpointing=True)
    critic = trainer.networks["D"]
    assert isinstance(critic, MultiscaleDiscriminator)
    for net in (trainer.networks["G"], critic, trainer.backbone):
        assert (net.precision, net.checkpointing) == (torch.bfloat16, True)
    assert "G_VGG" in trainer.step(0, *batch(32, 1))


def test_half_precision_that_overflows_is_named():
    net = speed.apply(restormer.build(TINY, 3, 3).eval(), "float16")
    with torch.no_grad():
        net.patch_embed.proj.weight.mul_(1e6)
        with pytest.raises(ModelError, match="Restormer overflowed in float16: run it with precision bfloat16"):
            net(batch()[0])
        assert torch.isfinite(speed.apply(net, "bfloat16")(batch()[0])).all()


def test_bad_settings():
    trainer = pix2pixhd.Trainer(pix2pixhd.build(TINY, 3, 3), TINY, 1e-3, 10)
    with pytest.raises(ConfigError, match="float16 is for inference alone"):
        trainer.accelerate("float16")
    with pytest.raises(ConfigError, match="precision must be one of float32, bfloat16, float16, not 'int8'"):
        speed.apply(trainer.networks["G"], "int8")


def test_attention_sums_are_float32_over_many_pixels(monkeypatch):
    """Pieces of pixels are summed one by one: against float64, and against one piece."""
    torch.manual_seed(0)
    net = Attention(4, 2, bias=False)
    qkv = torch.rand(1, 12, 40, 40) + 1
    wanted = net.double().sums(qkv.double())
    monkeypatch.setattr(_transformer, "_PIECE", 300)
    for found, exact in zip(net.sums(qkv), wanted, strict=True):
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), exact, rtol=1e-5)
    assert all(t.dtype == torch.float32 for t in net.sums(qkv.bfloat16()))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_heap_spares_page_faults():
    program = """
import resource, sys, torch
from sar2eo_dist.models import speed
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert speed.keep_heap()
for turn in range(28):  # the heap grows for some turns before it has a gap that fits
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 << 20)  # 40 MB: above what glibc adapts to by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", program, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "stock")
    }
    assert faults["keep"] < 0.2 * faults["stock"], faults
