"""Restormer against published counts and keys, a naive attention, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models import restormer
from sar2eo_dist.models._norm import LayerNorm
from sar2eo_dist.models._transformer import Attention, FeedForward, TransformerBlock
from sar2eo_dist.models.restormer import Restormer, Trainer

SMALL = {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]}


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        assert count(Restormer()) == 26_126_644
        assert count(Restormer(LayerNorm_type="BiasFree")) == 26_111_668
        assert count(Restormer(6, 3, dual_pixel_task=True)) == 26_132_548
        assert count(restormer.build({}, 3, 3)) == 26_126_644


def test_keys_are_the_published_ones():
    keys = list(Restormer(6, 3, dual_pixel_task=True, **SMALL).state_dict())
    top = ["patch_embed.proj.weight"]
    top += [f"{k}.body.0.weight" for k in ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1")]
    top += [f"{k}.weight" for k in ("reduce_chan_level3", "reduce_chan_level2", "skip_conv", "output")]
    block = ["norm1.body.weight", "norm1.body.bias", "attn.temperature", "attn.qkv.weight", "attn.qkv_dwconv.weight"]
    block += ["attn.project_out.weight", "norm2.body.weight", "norm2.body.bias", "ffn.project_in.weight"]
    block += ["ffn.dwconv.weight", "ffn.project_out.weight"]
    levels = [f"{side}_level{i}" for side in ("encoder", "decoder") for i in (1, 2, 3)] + ["latent", "refinement"]
    assert sorted(keys) == sorted(top + [f"{level}.0.{k}" for level in levels for k in block])
    free = list(Restormer(LayerNorm_type="BiasFree", **SMALL).state_dict())
    assert not any(k.endswith("bias") for k in free)
    biased = {k for k in Restormer(bias=True, **SMALL).state_dict() if k.endswith(".bias") and "norm" not in k}
    assert not {k for k in biased if k.startswith(("patch_embed", "down", "up"))}
    assert {"output.bias", "reduce_chan_level3.bias", "latent.0.attn.qkv.bias", "latent.0.ffn.dwconv.bias"} <= biased


def test_hidden_widths_and_heads_of_the_paper():
    with torch.device("meta"):
        net = Restormer()
    levels = [net.encoder_level1, net.encoder_level2, net.encoder_level3, net.latent]
    assert [lv[0].ffn.project_out.in_channels for lv in levels] == [127, 255, 510, 1021]
    assert [lv[0].attn.num_heads for lv in levels] == [1, 2, 4, 8]
    assert (net.refinement[0].attn.num_heads, net.refinement[0].ffn.project_out.out_channels) == (1, 96)


def test_layer_norms():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 5, dtype=torch.double) * 3 + 1
    both, free = LayerNorm(6, "WithBias").double(), LayerNorm(6, "BiasFree").double()
    with torch.no_grad():
        both.body["weight"].uniform_(), both.body["bias"].uniform_(), free.body["weight"].uniform_()
    wanted = nn.functional.layer_norm(x.movedim(1, -1), (6,), both.body["weight"], both.body["bias"], 1e-5)
    assert torch.allclose(both(x).movedim(1, -1), wanted, rtol=1e-12)
    centred = ((x - x.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True)
    wanted = x / torch.sqrt(centred + 1e-5) * free.body["weight"].view(1, -1, 1, 1)
    assert torch.allclose(free(x), wanted, rtol=1e-12)


def test_attention_equals_a_naive_one():
    torch.manual_seed(0)
    net = Attention(6, 2, bias=True).double()
    with torch.no_grad():
        net.temperature.uniform_(0.5, 2)
    x = torch.randn(2, 6, 4, 5, dtype=torch.double)
    qkv = net.qkv_dwconv(net.qkv(x))
    mixed = torch.zeros_like(x)
    for n in range(2):
        for head in range(2):
            q, k, v = (qkv[n, part * 6 + head * 3 : part * 6 + head * 3 + 3].flatten(1) for part in range(3))
            scores = torch.zeros(3, 3, dtype=torch.double)
            for i in range(3):
                for j in range(3):
                    scores[i, j] = (q[i] / q[i].norm()) @ (k[j] / k[j].norm()) * net.temperature[head, 0, 0]
            mixed[n, head * 3 : head * 3 + 3] = (scores.softmax(1) @ v).view(3, 4, 5)
    assert torch.allclose(net(x), net.project_out(mixed), rtol=1e-10)


def test_gating_is_exact_gelu_of_the_first_half():
    net = FeedForward(2, 2.0, bias=False).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.double)
    a, b = net.dwconv(net.project_in(x)).split(4, dim=1)
    gelu = 0.5 * a * (1 + torch.erf(a / math.sqrt(2)))
    assert torch.allclose(net(x), net.project_out(gelu * b), rtol=1e-10)


def test_block_gradients():
    torch.manual_seed(0)
    block = TransformerBlock(4, 2, 2.0, False, "BiasFree").double()
    x = torch.randn(1, 4, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), fast_mode=True)


def test_the_image_is_added_in_its_own_units():
    """With a zero last conv the network is the identity, in [0, 1] inside and in [-1, 1] outside."""
    inner, outer = Restormer(**SMALL), restormer.build(SMALL, 3, 3)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        for net in (inner, outer):
            net.output.weight.zero_()
        assert torch.equal(inner(x), x)
        assert torch.allclose(outer.eval()(x * 2 - 1), x * 2 - 1, atol=1e-6)
    outer.load_state_dict(inner.state_dict())  # the same keys


def test_output_is_clamped_in_eval_mode_alone():
    net = restormer.build({**SMALL, "bias": True}, 3, 3)
    with torch.no_grad():
        net.output.bias.fill_(5)
        assert float(net.train()(torch.zeros(1, 3, 8, 8)).max()) > 1
        assert float(net.eval()(torch.zeros(1, 3, 8, 8)).max()) == 1


def test_unequal_bands_want_the_dual_pixel_form():
    with pytest.raises(ConfigError, match="2 input to 3 output bands: set dual_pixel_task"):
        Restormer(2, 3)
    assert restormer.build(SMALL, 2, 3).dual_pixel_task
    assert not restormer.build(SMALL, 3, 3).dual_pixel_task


def test_impossible_options():
    for options, words in [
        ({"heads": [1, 2, 5, 8]}, "heads must be 4 divisors"),
        ({"num_blocks": [1, 1]}, "num_blocks must be 4 counts"),
        ({"LayerNorm_type": "rms"}, "LayerNorm_type must be one of"),
        ({"dim": 5}, "dim must be even"),
        ({"clip": -1.0}, "clip must be >= 0"),
    ]:
        with pytest.raises(ConfigError, match=words):
            restormer.build(options, 3, 3)


def test_learning_rate_is_the_published_schedule():
    trainer = Trainer(restormer.build(SMALL, 3, 3), SMALL, 3e-4, 300_000)
    assert trainer.learning_rate(0) == trainer.learning_rate(92_000) == 3e-4
    for i in (92_001, 150_000, 299_999):
        wanted = 1e-6 + (3e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (i - 92_000) / 208_000))
        assert trainer.learning_rate(i) == pytest.approx(wanted, rel=1e-9)
    assert trainer.learning_rate(300_000) == pytest.approx(1e-6)


def test_step_equals_a_naive_one_on_unit_images():
    torch.manual_seed(0)
    trainer = Trainer(restormer.build(SMALL, 3, 3), SMALL, 3e-4, 1000)
    net = Restormer(**SMALL)
    net.load_state_dict(trainer.networks["G"].state_dict())
    adam = torch.optim.AdamW(net.parameters(), lr=3e-4, betas=(0.9, 0.999), weight_decay=1e-4)
    valid = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    for i in range(6):
        source, target = torch.rand(2, 2, 3, 16, 16)
        ours = trainer.step(i, source * 2 - 1, target * 2 - 1, valid)
        loss = nn.L1Loss()(net(source), target)
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        adam.step()
        assert ours == pytest.approx({"l1": loss.item(), "grad_norm_G": norm.item()}, rel=1e-3)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        a, b = trainer.networks["G"](x * 2 - 1) * 0.5 + 0.5, net(x)
    assert float((a - b).abs().max()) < 1e-4 * float(b.std())
