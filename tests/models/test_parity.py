"""The networks against a second, functional implementation that knows only the official key names (float64).

It is written from the published description, layer by layer, with torch.nn.functional: what an official checkpoint means.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sar2eo_dist.models import speed
from sar2eo_dist.models.discriminator import MultiscaleDiscriminator
from sar2eo_dist.models.pix2pixhd import GlobalGenerator
from sar2eo_dist.models.restormer import Restormer


def generator(w, x, down, blocks):
    """pix2pixHD's global generator: w maps official keys to float64 tensors."""

    def conv(x, key, **kw):
        return F.conv2d(x, w[f"model.{key}.weight"], w[f"model.{key}.bias"], **kw)

    def reflect(x, n):
        return F.pad(x, (n, n, n, n), mode="reflect")

    x = F.relu(F.instance_norm(conv(reflect(x, 3), 1)))
    for i in range(down):
        x = F.relu(F.instance_norm(conv(x, 4 + 3 * i, stride=2, padding=1)))
    first = 4 + 3 * down
    for i in range(first, first + blocks):
        y = F.relu(F.instance_norm(conv(reflect(x, 1), f"{i}.conv_block.1")))
        x = x + F.instance_norm(conv(reflect(y, 1), f"{i}.conv_block.5"))
    for i in range(down):
        key = f"model.{first + blocks + 3 * i}"
        x = F.conv_transpose2d(x, w[f"{key}.weight"], w[f"{key}.bias"], stride=2, padding=1, output_padding=1)
        x = F.relu(F.instance_norm(x))
    return torch.tanh(conv(reflect(x, 3), first + blocks + 3 * down + 1))


def discriminator(w, x, scales):
    """Maps per scale, finest first; the finest uses the weights of the last scale."""
    out = []
    for i in reversed(range(scales)):
        maps, y = [], x
        for j in range(5):
            key = f"scale{i}_layer{j}.0"
            y = F.conv2d(y, w[f"{key}.weight"], w[f"{key}.bias"], stride=2 if j < 3 else 1, padding=2)
            if 0 < j < 4:
                y = F.instance_norm(y)
            if j < 4:
                y = F.leaky_relu(y, 0.2)
            maps.append(y)
        out.append(maps)
        x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
    return out


def restormer(w, image, counts, heads):
    def norm(x, key):
        weight, bias = w[f"{key}.body.weight"], w.get(f"{key}.body.bias")
        if bias is not None:
            return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, 1e-5).movedim(-1, 1)
        return x / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt() * weight[:, None, None]

    def conv(x, key, **kw):
        return F.conv2d(x, w[f"{key}.weight"], **kw)

    def block(x, key, heads):
        n, c, h, v_ = x.shape
        qkv = conv(norm(x, f"{key}.norm1"), f"{key}.attn.qkv")
        qkv = conv(qkv, f"{key}.attn.qkv_dwconv", padding=1, groups=3 * c)
        q, k, v = (t.reshape(n, heads, c // heads, h * v_) for t in qkv.chunk(3, 1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        a = torch.softmax(q @ k.transpose(-2, -1) * w[f"{key}.attn.temperature"], -1)
        x = x + conv((a @ v).reshape(n, c, h, v_), f"{key}.attn.project_out")
        y = conv(norm(x, f"{key}.norm2"), f"{key}.ffn.project_in")
        one, two = conv(y, f"{key}.ffn.dwconv", padding=1, groups=y.shape[1]).chunk(2, 1)
        gelu = one * 0.5 * (1 + torch.erf(one / math.sqrt(2)))
        return x + conv(gelu * two, f"{key}.ffn.project_out")

    def level(x, name, count, heads):
        for i in range(count):
            x = block(x, f"{name}.{i}", heads)
        return x

    def down(x, key):
        return F.pixel_unshuffle(conv(x, f"{key}.body.0", padding=1), 2)

    def up(x, key):
        return F.pixel_shuffle(conv(x, f"{key}.body.0", padding=1), 2)

    one = level(conv(image, "patch_embed.proj", padding=1), "encoder_level1", counts[0], heads[0])
    two = level(down(one, "down1_2"), "encoder_level2", counts[1], heads[1])
    three = level(down(two, "down2_3"), "encoder_level3", counts[2], heads[2])
    x = level(down(three, "down3_4"), "latent", counts[3], heads[3])
    x = conv(torch.cat((up(x, "up4_3"), three), 1), "reduce_chan_level3")
    x = conv(torch.cat((up(level(x, "decoder_level3", counts[2], heads[2]), "up3_2"), two), 1), "reduce_chan_level2")
    x = torch.cat((up(level(x, "decoder_level2", counts[1], heads[1]), "up2_1"), one), 1)
    x = level(level(x, "decoder_level1", counts[0], heads[0]), "refinement", 2, heads[0])
    return conv(x, "output", padding=1) + image


def doubled(net):
    return {k: v.detach().double() for k, v in net.state_dict().items()}


def worst(found, wanted):
    return float((found.double() - wanted).abs().max()) / float(wanted.std())


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@torch.no_grad()
def test_global_generator(fast):
    torch.manual_seed(0)
    net = GlobalGenerator(3, 3, ngf=8, n_downsampling=3, n_blocks=2)
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    wanted = generator(doubled(net), x.double(), 3, 2)
    assert worst((speed.apply(net) if fast else net)(x), wanted) <= 1e-4


@pytest.mark.parametrize("scales", [2, 3])
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@torch.no_grad()
def test_every_discriminator_feature(fast, scales):
    torch.manual_seed(0)
    net = MultiscaleDiscriminator(6, ndf=8, num_D=scales)
    x = torch.rand(2, 6, 64, 48) * 2 - 1
    wanted = discriminator(doubled(net), x.double(), scales)
    found = (speed.apply(net) if fast else net)(x)
    assert [len(maps) for maps in found] == [5] * scales
    for one, other in zip(found, wanted, strict=True):
        assert all(worst(f, t) <= 1e-4 for f, t in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["WithBias", "BiasFree"])
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@torch.no_grad()
def test_restormer(fast, kind):
    torch.manual_seed(0)
    counts, heads = (1, 2, 1, 2), (1, 2, 4, 8)
    net = Restormer(
        dim=8, num_blocks=counts, num_refinement_blocks=2, heads=heads, ffn_expansion_factor=2.66, LayerNorm_type=kind
    )
    for p in net.parameters():
        p.add_(torch.randn_like(p) * 0.1)  # temperatures and norms away from 1
    x = torch.rand(2, 3, 64, 48)
    wanted = restormer(doubled(net), x.double(), counts, heads)
    assert worst((speed.apply(net) if fast else net)(x), wanted) <= 1e-4
