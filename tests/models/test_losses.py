"""Losses: closed forms and gradient checks."""

from __future__ import annotations

import pytest
import torch

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import losses


def full(value, channels=1, side=4):
    return torch.full((1, channels, side, side), float(value))


def test_lsgan_sums_scales_and_reads_the_last_map_alone():
    outputs = [[full(9), full(0.25)], [full(9), full(0.5, side=2)]]
    assert float(losses.lsgan(outputs, True)) == pytest.approx(0.75**2 + 0.5**2)
    assert float(losses.lsgan(outputs, False)) == pytest.approx(0.25**2 + 0.5**2)


def test_feature_matching_weights_are_the_official_ones():
    fake = [[full(1), full(2), full(3), full(4), full(99)]] * 2  # five maps a scale: n_layers 3
    real = [[full(0)] * 4 + [full(-99)]] * 2
    assert float(losses.feature_matching(fake, real)) == pytest.approx((1 + 2 + 3 + 4) * 2 * (1 / 2) * (4 / 4))
    three = [[full(1), full(2), full(5)]] * 3  # n_layers 1, num_D 3
    zero = [[full(0), full(0), full(5)]] * 3
    assert float(losses.feature_matching(three, zero)) == pytest.approx((1 + 2) * 3 * (1 / 3) * (4 / 2))


def test_l1_counts_an_invalid_pixel_as_zero():
    fake, real = full(1, channels=3), full(-1, channels=3)
    valid = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    assert float(losses.l1(fake, real)) == 2
    valid[:, :, :2] = True
    assert float(losses.l1(fake, real, valid)) == 1
    real[:, :, 3] = float("nan")
    assert float(losses.l1(fake, real, valid)) == 1


def test_means_over_ranks_are_the_loss_of_the_global_batch():
    fake, real = torch.rand(2, 4, 3, 8, 8)
    valid = torch.rand(4, 1, 8, 8) > 0.7
    halves = [losses.l1(fake[i : i + 2], real[i : i + 2], valid[i : i + 2]) for i in (0, 2)]
    assert float(sum(halves) / 2) == pytest.approx(float(losses.l1(fake, real, valid)), rel=1e-5)


def test_perceptual_weighs_maps_and_detaches_the_real_image():
    def features(x):
        return [x, 2 * x]

    fake, real = full(1).requires_grad_(), full(0.5).requires_grad_()
    loss = losses.perceptual(fake, real, features, (0.5, 1.0))
    assert loss.item() == pytest.approx(0.5 * 0.5 + 1.0)
    loss.backward()
    assert fake.grad is not None
    assert real.grad is None
    with pytest.raises(ModelError, match="2 maps for 5 weights"):
        losses.perceptual(fake, real, features)


def test_half_precision_is_reduced_in_float32_and_double_stays_double():
    torch.manual_seed(0)
    fake, real = torch.rand(2, 2, 3, 32, 32)
    terms = (
        lambda f, r: losses.l1(f, r),
        lambda f, r: losses.l1(f, r, torch.ones(2, 1, 32, 32, dtype=torch.bool)),
        lambda f, r: losses.lsgan([[f], [r]], True),
        lambda f, r: losses.feature_matching([[f, f, f]], [[r, r, r]]),
        lambda f, r: losses.perceptual(f, r, lambda i: [i, i * 2], (1.0, 0.5)),
    )
    for term in terms:
        for half in (torch.bfloat16, torch.float16):
            found = term(fake.to(half), real.to(half))
            wanted = term(fake.to(half).double(), real.to(half).double())
            assert found.dtype == torch.float32
            assert wanted.dtype == torch.float64
            assert found.item() == pytest.approx(wanted.item(), rel=1e-6)  # 0.4 % if it were reduced in bfloat16


def test_gradients():
    torch.manual_seed(0)
    fake = torch.rand(1, 2, 3, 3, dtype=torch.double, requires_grad=True)
    real = torch.rand(1, 2, 3, 3, dtype=torch.double) + 2  # away from |x|'s kink
    valid = torch.rand(1, 1, 3, 3) > 0.4
    check = torch.autograd.gradcheck
    assert check(lambda x: losses.l1(x, real, valid), (fake,))
    assert check(lambda x: losses.lsgan([[x]], True) + losses.lsgan([[x], [x]], False), (fake,))
    assert check(lambda x: losses.feature_matching([[x, x * x, x]], [[real, real * 9, real]]), (fake,))
    assert check(lambda x: losses.perceptual(x, real, lambda i: [i, i**2], (1.0, 0.5)), (fake,))
    (grad,) = torch.autograd.grad(losses.l1(fake, real, valid), fake)
    assert torch.all(grad[:, :, ~valid[0, 0]] == 0)
