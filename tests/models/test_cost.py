"""Costs counted on meta tensors: closed forms, real tensors, and what the command prints."""

from __future__ import annotations

import pytest
import torch

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.models import __main__ as command
from sar2eo_dist.models import cost, pix2pixhd, restormer, speed
from sar2eo_dist.models.cost import Case

TINY = {"preset": "tiny"}


def test_multiply_adds_of_the_generator_are_the_closed_form():
    """7x7 head and tail, 3x3 down and up (each counted at its coarse side), two 3x3 convs a block."""
    ngf, down, blocks, side = 8, 2, 3, 32
    wanted = side**2 * 49 * (3 * ngf + ngf * 1)
    for i in range(down):
        wanted += 2 * (side >> (i + 1)) ** 2 * 9 * (ngf << i) * (ngf << (i + 1))
    wanted += blocks * 2 * (side >> down) ** 2 * 9 * (ngf << down) ** 2
    case = Case("pix2pixhd", {"ngf": ngf, "n_downsampling": down, "n_blocks": blocks}, (3, 1))
    assert cost.macs(case, side) == wanted


def test_a_step_of_a_plain_network_costs_three_forwards():
    """Backward costs twice a forward pass, but for the gradient of the image, which nobody wants."""
    case = Case("restormer", TINY)
    assert 2.8 < cost.macs(case, 64, train=True) / cost.macs(case, 64) < 3.0


def test_published_costs():
    """pix2pixHD 54.38 GMAC at 256 px; Restormer 154.88 less the 6.85 of attention that ours multiplies into a weight."""
    assert cost.macs(Case("pix2pixhd", {})) / 1e9 == pytest.approx(54.38, abs=0.01)
    blocks, widths, sides = (4, 6, 6, 8, 6, 6, 8), (48, 96, 192, 384, 192, 96, 96), (256, 128, 64, 32, 64, 128, 256)
    heads = (1, 2, 4, 8, 4, 2, 1)
    spared = sum(n * c * c // h * s * s for n, c, s, h in zip(blocks, widths, sides, heads, strict=True))
    folded = sum(n * c * c * c // h for n, c, h in zip(blocks, widths, heads, strict=True))
    assert (cost.macs(Case("restormer", {})) + spared - folded) / 1e9 == pytest.approx(154.88, abs=0.02)


@pytest.mark.parametrize("model", ["pix2pixhd", "restormer"])
def test_tiny_costs_at_most_20_kmac_a_pixel(model):
    assert cost.macs(Case(model, TINY)) / 256**2 <= 20_000


def test_live_bytes_follow_births_and_deaths():
    with cost._Live() as live:
        a = torch.empty(1000)
        b = a + 1
        assert live.now == 8000
        del a
        view = b.view(10, 100)[2:]
        b.mul_(2)
        assert live.now == 4000
        del b
        assert live.now == 4000  # the view holds it
        del view
        assert live.now == 0
    assert live.peak == 8000


@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("module", [pix2pixhd, restormer], ids=["pix2pixhd", "restormer"])
def test_memory_is_that_of_real_tensors(module, train):
    """The same run on real tensors; a CPU's fused norms keep less for backward, and its Adam no temporaries."""
    name = module.__name__.rpartition(".")[2]
    found = cost.memory(Case(name, TINY), 64, 2, train)
    x = (torch.rand(2, 3, 64, 64) * 2 - 1).contiguous(memory_format=torch.channels_last)
    with cost._Live() as live:
        net = module.build(TINY, 3, 3)
        if train:
            trainer = module.Trainer(net, TINY, 1e-4, 10)
            trainer.accelerate()
            for i in range(2):
                trainer.step(i, x, x, torch.ones(2, 1, 64, 64, dtype=torch.bool))
        else:
            with torch.no_grad():
                speed.apply(net.eval())(x)
    assert 0.65 * found < live.peak < 1.1 * found


def test_half_precision_and_checkpointing_need_less():
    full, half = (cost.memory(Case("restormer", TINY, precision=p), 128, 2, True) for p in ("float32", "bfloat16"))
    kept = cost.memory(Case("restormer", TINY, checkpointing=True), 128, 2, True)
    assert half < 0.75 * full
    assert kept < 0.75 * full


def test_proposals_fit_the_budget_and_use_it(monkeypatch):
    monkeypatch.setattr(cost, "WINDOWS", (64, 128))
    case, budget = Case("pix2pixhd", TINY), 60 << 20
    rows = cost.propose(case, budget, train=True)
    assert [r.window for r in rows] == list(cost.WINDOWS[: len(rows)])
    for r in rows:
        assert cost.memory(case, r.window, r.batch, True) == r.bytes <= cost.SHARE * budget
        assert cost.memory(case, r.window, 2 * r.batch, True) > cost.SHARE * budget
    assert cost.propose(case, budget, train=True) == rows
    with pytest.raises(ConfigError, match="wants .* GiB for one window of 64 px, the budget is 0.00 GiB"):
        cost.propose(case, 1 << 20)


def test_the_command_prints_the_table(capsys, monkeypatch):
    monkeypatch.setattr(cost, "WINDOWS", (128, 256))
    assert command.main(["--model", "pix2pixhd", "--preset", "tiny", "--bands", "2", "4", "--budget", "0.1"]) == 0
    out = capsys.readouterr().out
    assert " 15.2 " in out or " 15." in out
    assert "translate with pix2pixhd tiny, float32, in 0.1 GiB:" in out
    assert "window   128  batch   " in out
    assert command.main(["--model", "pix3pix"]) == 2
    assert "ConfigError: no translator 'pix3pix'" in capsys.readouterr().err


def test_the_command_refuses_an_unknown_preset(capsys):
    assert command.main(["--preset", "huge"]) == 2
    assert "no preset 'huge'" in capsys.readouterr().err
