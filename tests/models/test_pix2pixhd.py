"""pix2pixHD against the published layout, closed forms, and a naive version of the official step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models import losses, perceptual, pix2pixhd
from sar2eo_dist.models._norm import norm as make_norm
from sar2eo_dist.models.pix2pixhd import GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator, Trainer

SMALL = {"ngf": 4, "n_downsampling": 2, "n_blocks": 1, "ndf": 4}


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_are_the_official_ones():
    with torch.device("meta"):
        assert count(GlobalGenerator(3, 3)) == 182_443_267
        assert count(GlobalGenerator(3, 3, n_downsampling=3)) == 45_593_347
        assert count(MultiscaleDiscriminator(6)) == 5_535_618
        assert count(MultiscaleDiscriminator(6, num_D=3)) == 8_303_427
        assert count(pix2pixhd.build({}, 3, 3)) == 182_443_267
        assert count(LocalEnhancer(3, 3)) == count(pix2pixhd.build({"preset": "paper_local"}, 3, 3)) == 182_701_827
        assert round(count(LocalEnhancer(3, 3, n_downsample_global=3)) / 1e6, 1) == 45.9


def test_generator_keys_are_the_official_ones():
    net = GlobalGenerator(3, 3, ngf=4, n_downsampling=2, n_blocks=2)
    # 0 pad, 1 conv, 2 norm, 3 relu | 4..6, 7..9 down | 10, 11 blocks | 12..14, 15..17 up | 18 pad, 19 conv, 20 tanh
    blocks = [f"{i}.conv_block.{j}" for i in (10, 11) for j in (1, 5)]
    convs = ["1", "4", "7", *blocks, "12", "15", "19"]
    assert list(net.state_dict()) == [f"model.{c}.{p}" for c in convs for p in ("weight", "bias")]
    assert net.model[12].weight.shape == (16, 8, 3, 3)  # transposed conv: (in, out, k, k)
    assert isinstance(net.model[20], nn.Tanh)


def test_local_enhancer_keys_are_the_official_ones():
    net = LocalEnhancer(3, 3, ngf=2, n_downsample_global=2, n_blocks_global=1, n_local_enhancers=2, n_blocks_local=1)
    coarse = GlobalGenerator(3, 3, ngf=8, n_downsampling=2, n_blocks=1).state_dict()
    # the global net of width ngf * 2^n without its last conv: that is how pretraining transfers
    assert {k: v.shape for k, v in net.state_dict().items() if k.startswith("model.")} == {
        k: v.shape for k, v in coarse.items() if not k.startswith("model.18.")
    }
    # 0 pad, 1 conv, 2 norm, 3 relu, 4 conv, 5 norm, 6 relu | 0 block, 1 transposed conv, 2 norm, 3 relu, 4 pad, 5 conv
    convs = ["1_1.1", "1_1.4", "1_2.0.conv_block.1", "1_2.0.conv_block.5", "1_2.1"]
    convs += ["2_1.1", "2_1.4", "2_2.0.conv_block.1", "2_2.0.conv_block.5", "2_2.1", "2_2.5"]
    keys = [k for k in net.state_dict() if not k.startswith("model.")]
    assert keys == [f"model{c}.{p}" for c in convs for p in ("weight", "bias")]
    assert net.model1_1[1].weight.shape == (4, 3, 7, 7)
    assert net.model2_2[5].weight.shape == (3, 2, 7, 7)


def test_local_enhancer_adds_the_finer_image_to_coarser_features():
    """Literally: average-pool pyramid without counting padding; coarse net; each enhancer adds its own input."""
    torch.manual_seed(0)
    net = LocalEnhancer(2, 3, ngf=2, n_downsample_global=1, n_blocks_global=1, n_local_enhancers=2, n_blocks_local=1)
    x = torch.rand(1, 2, 24, 40) * 2 - 1
    ones = torch.ones(1, 1, 3, 3)

    def halve(image):
        total = nn.functional.conv2d(image.flatten(0, 1)[:, None], ones, stride=2, padding=1)
        count = nn.functional.conv2d(torch.ones(1, 1, *image.shape[2:]), ones, stride=2, padding=1)
        return (total / count).view(1, 2, *total.shape[2:])

    half = halve(x)
    y = net.model(halve(half))
    y = net.model1_2(net.model1_1(half) + y)
    y = net.model2_2(net.model2_1(x) + y)
    assert torch.allclose(net(x), y, atol=1e-5)
    assert net.multiple == 8
    assert net(torch.rand(1, 2, 19, 33)).shape == (1, 3, 19, 33)


def test_local_enhancer_gradients():
    torch.manual_seed(1)
    net = LocalEnhancer(1, 1, ngf=1, n_downsample_global=1, n_blocks_global=1, n_blocks_local=1).double()
    x = torch.rand(1, 1, 8, 12, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,), fast_mode=True)


def test_instance_norm_equals_torchs_own_in_every_layout():
    torch.manual_seed(0)
    for side in (1, 8, 40):
        x = torch.randn(2, 3, side, side + 1, requires_grad=True)
        wanted = nn.functional.instance_norm(x.double())
        (grad,) = torch.autograd.grad(wanted.pow(3).sum(), x)
        for layout in (torch.contiguous_format, torch.channels_last):
            y = make_norm("instance", 3)(x.contiguous(memory_format=layout))
            assert torch.allclose(y.double(), wanted, atol=1e-5)
            assert torch.allclose(torch.autograd.grad(y.pow(3).sum(), x)[0], grad, atol=1e-3)


def test_batch_norm_adds_its_keys_and_instance_norm_is_the_same_in_train_and_eval():
    keys = set(GlobalGenerator(3, 3, ngf=4, n_downsampling=1, n_blocks=1, norm="batch").state_dict())
    assert {"model.2.weight", "model.2.bias", "model.2.running_mean", "model.2.num_batches_tracked"} <= keys
    net, x = GlobalGenerator(3, 3, ngf=4, n_downsampling=2, n_blocks=1), torch.rand(2, 3, 16, 16)
    assert torch.equal(net.train()(x), net.eval()(x))
    with pytest.raises(ConfigError, match="norm must be one of"):
        GlobalGenerator(3, 3, norm="layer")


def test_discriminator_keys_and_scale_order():
    net = MultiscaleDiscriminator(6, ndf=4)
    stages = ["layer0.0", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert list(net.state_dict()) == [f"scale{i}_{s}.{p}" for i in (0, 1) for s in stages for p in ("weight", "bias")]
    plain = MultiscaleDiscriminator(6, ndf=4, get_interm_feat=False)
    assert list(plain.state_dict())[:4] == ["layer0.0.weight", "layer0.0.bias", "layer0.2.weight", "layer0.2.bias"]
    x = torch.rand(1, 6, 32, 32)
    scales = net(x)
    assert [len(s) for s in scales] == [5, 5]
    assert [len(s) for s in plain(x)] == [1, 1]
    # 4x4 convs with padding 2: 32 -> 17 -> 9 -> 5 -> 6 -> 7, the next scale from 16
    assert [m.shape[-1] for m in scales[0]] == [17, 9, 5, 6, 7]
    assert [m.shape[-1] for m in scales[1]] == [9, 5, 3, 4, 5]
    with torch.no_grad():
        net.get_submodule("scale1_layer4")[0].weight.zero_()
        net.get_submodule("scale1_layer4")[0].bias.fill_(7)
    assert torch.all(net(x)[0][-1] == 7)
    assert not torch.any(net(x)[1][-1] == 7)


def test_both_discriminator_forms_compute_the_same():
    full, plain = MultiscaleDiscriminator(4, ndf=4), MultiscaleDiscriminator(4, ndf=4, get_interm_feat=False)
    plain.load_state_dict(dict(zip(plain.state_dict(), full.state_dict().values(), strict=True)))
    x = torch.rand(1, 4, 24, 24)
    assert all(torch.equal(a[-1], b[-1]) for a, b in zip(full(x), plain(x), strict=True))


def test_width_of_the_discriminator_is_capped():
    with torch.device("meta"):
        net = MultiscaleDiscriminator(6, ndf=64, n_layers=5)
    assert [net.get_submodule(f"scale0_layer{j}")[0].out_channels for j in range(7)] == [64, 128, 256, 512, 512, 512, 1]


def test_official_init():
    torch.manual_seed(0)
    net = GlobalGenerator(3, 3, ngf=16, n_downsampling=2, n_blocks=2, norm="batch")
    weight, norm = net.model[10].conv_block[1].weight, net.model[8]
    assert abs(weight.std().item() - 0.02) < 5e-4
    assert abs(weight.mean().item()) < 5e-4
    assert 0.9 < norm.weight.mean().item() < 1.1
    assert norm.bias.abs().max().item() == 0
    assert net.model[10].conv_block[1].bias.abs().max().item() <= 1 / math.sqrt(9 * 64)  # torch's default


def test_generator_gradients():
    torch.manual_seed(1)
    net = GlobalGenerator(2, 1, ngf=2, n_downsampling=1, n_blocks=1).double()
    x = torch.rand(1, 2, 5, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,), fast_mode=True)


def test_learning_rate_is_the_official_schedule():
    """200 "epochs": 100 constant, then lr / 100 less at the end of every epoch whose number exceeds 100."""
    trainer = Trainer(pix2pixhd.build(SMALL, 3, 3), SMALL, 2e-4, 200)
    rate, official = 2e-4, []
    for epoch in range(1, 201):
        official.append(rate)
        if epoch > 100:
            rate -= 2e-4 / 100
    assert [trainer.learning_rate(i) for i in range(200)] == pytest.approx(official, rel=1e-9, abs=1e-15)


def naive_step(g, d, adam_g, adam_d, source, target, lambda_feat, lambda_l1):
    """The official step, literally: D is not frozen in G's pass, its useless gradients are thrown away."""
    fake = g(source)
    d_fake = d(torch.cat((source, fake.detach()), 1))
    d_real = d(torch.cat((source, target), 1))
    d_pass = d(torch.cat((source, fake), 1))
    mse, l1 = nn.MSELoss(), nn.L1Loss()
    gan = sum(mse(s[-1], torch.ones_like(s[-1])) for s in d_pass)
    feat = 0.0
    for i in range(2):
        for j in range(4):
            feat = feat + 0.5 * (4.0 / (3 + 1)) * l1(d_pass[i][j], d_real[i][j].detach()) * lambda_feat
    pixel = l1(fake, target) * lambda_l1
    real_loss = sum(mse(s[-1], torch.ones_like(s[-1])) for s in d_real)
    fake_loss = sum(mse(s[-1], torch.zeros_like(s[-1])) for s in d_fake)
    adam_g.zero_grad()
    (gan + feat + pixel).backward()
    norms = [torch.cat([p.grad.flatten() for p in g.parameters()]).norm()]
    adam_g.step()
    adam_d.zero_grad()
    ((real_loss + fake_loss) * 0.5).backward()
    norms += [torch.cat([p.grad.flatten() for p in d.parameters()]).norm()]
    adam_d.step()
    names = ("G_GAN", "G_GAN_Feat", "G_L1", "D_real", "D_fake", "grad_norm_G", "grad_norm_D")
    return {n: v.item() for n, v in zip(names, (gan, feat, pixel, real_loss, fake_loss, *norms), strict=True)}


@pytest.mark.parametrize("kind", ["global", "local"])
def test_six_steps_equal_the_naive_official_step(kind):
    options = {**SMALL, "lambda_l1": 5.0, "netG": kind}
    torch.manual_seed(3)
    trainer = Trainer(pix2pixhd.build(options, 3, 3), options, 2e-4, 1000)
    g = GlobalGenerator(3, 3, 4, 2, 1) if kind == "global" else LocalEnhancer(3, 3, 4, 2, 1)
    d = MultiscaleDiscriminator(6, 4)
    g.load_state_dict(trainer.networks["G"].state_dict())
    d.load_state_dict(trainer.networks["D"].state_dict())
    adams = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in (g, d)]
    valid = torch.ones(2, 1, 24, 24, dtype=torch.bool)
    for i in range(6):
        source, target = torch.rand(2, 2, 3, 24, 24) * 2 - 1
        ours = trainer.step(i, source, target, valid)
        theirs = naive_step(g, d, *adams, source, target, 10.0, 5.0)
        assert ours == pytest.approx(theirs, rel=1e-5)
    x = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        a, b = trainer.networks["G"](x), g(x)
    assert float((a - b).abs().max()) < 1e-4 * float(b.std())


def test_perceptual_backbone_is_pluggable(monkeypatch):
    seen = []

    class Same(nn.Module):
        def forward(self, images):
            return [images] * 5

    def factory(channels, weights, bands):
        seen.append((channels, weights, bands))
        return Same()

    monkeypatch.setitem(perceptual.BACKBONES, "same", factory)
    options = {**SMALL, "perceptual": "same", "perceptual_weights": "s3://b/w", "perceptual_bands": [3, 1, 0]}
    options |= {"lambda_vgg": 2.0, "lambda_l1": 1.0}
    trainer = Trainer(pix2pixhd.build(options, 3, 4), options, 2e-4, 10)
    source, target = torch.rand(1, 3, 16, 16), torch.rand(1, 4, 16, 16)
    found = trainer.step(0, source, target, torch.ones(1, 1, 16, 16, dtype=torch.bool))
    assert seen == [(4, "s3://b/w", (3, 1, 0))]
    assert found["G_VGG"] == pytest.approx(2 * sum(losses.VGG_WEIGHTS) * found["G_L1"], rel=1e-5)
    Trainer(pix2pixhd.build(options, 3, 4), {**options, "lambda_vgg": 0.0}, 2e-4, 10)
    assert len(seen) == 1  # switched off: nothing is loaded
    with pytest.raises(ConfigError, match="no perceptual backbone 'vgg99'; did you mean 'vgg19'"):
        pix2pixhd.build({"perceptual": "vgg99"}, 3, 3)
    with pytest.raises(ConfigError, match="vgg19 perceptual backbone needs torchvision's weights"):
        pix2pixhd.complete({**SMALL, "perceptual": "vgg19"})  # before anything starts
