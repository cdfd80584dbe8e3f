"""What every trainer owes: accumulation, uneven parts, a step that is not finite, and the first half of a local enhancer."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from state_trees import same
from torch import nn

from sar2eo_dist import models
from sar2eo_dist.errors import ConfigError, NonFinite
from sar2eo_dist.models import pix2pixhd
from sar2eo_dist.models.discriminator import collapsed

PIX = {"ngf": 4, "n_downsampling": 1, "n_blocks": 1, "ndf": 4, "lambda_l1": 5.0}
TINY = {
    "pix2pixhd": PIX,
    "restormer": {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0, "heads": [1, 1, 2, 2]},
}
NAMES = sorted(TINY)
LOCAL = {**PIX, "netG": "local", "ngf": 2, "n_blocks_local": 1, "niter_fix_global": 0.5, "lambda_feat": 0.0}


def trainer(name, steps=100, seed=0, double=False, micro=0, options=None):
    """On a fresh network; in float64 rounding cannot hide an error, nor Adam blow it up where a gradient is nearly 0."""
    torch.manual_seed(seed)
    t, options = models.translator(name), options or TINY[name]
    made = t.Trainer(t.build(options, 3, 3), options, 1e-3, steps)
    if double:
        for net in made.networks.values():
            net.double()
    made.accelerate(micro=micro)
    return made


def batch(n, seed=0, double=False):
    g = torch.Generator().manual_seed(seed)
    source, target = (torch.rand(n, 3, 16, 16, generator=g, dtype=torch.double) * 2 - 1 for _ in range(2))
    valid = torch.rand(n, 1, 16, 16, generator=g) > 0.1
    return (source, target, valid) if double else (source.float(), target.float(), valid)


def weights(made):
    return {f"{name}.{k}": v for name, net in made.networks.items() for k, v in net.state_dict().items()}


def close(a, b, atol):
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=atol) for k in a)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [4, 5])
def test_accumulated_pieces_are_the_whole_batch(name, n):
    """Losses (told in float32) to 1e-6; weights, of order 0.1 and moved by 1e-3 a step, to 1e-8."""
    whole = trainer(name, double=True)
    wanted = [whole.step(i, *batch(n, i, True)) for i in range(2)]
    for micro in (1, 2, 3):
        made = trainer(name, double=True, micro=micro)
        for i in range(2):
            assert made.step(i, *batch(n, i, True)) == pytest.approx(wanted[i], rel=1e-6)
        assert close(weights(made), weights(whole), 1e-8)
    assert not close(weights(trainer(name, double=True)), weights(whole), 1e-4)
    single = trainer(name, micro=2).step(0, *batch(n))
    assert single == pytest.approx(trainer(name).step(0, *batch(n)), rel=1e-4)  # float32, as it is run


@pytest.mark.parametrize("name", NAMES)
def test_a_piece_as_large_as_the_batch_is_the_batch_to_the_bit(name):
    whole = trainer(name)
    wanted = [whole.step(i, *batch(5, i), 5 * 3 / 7) for i in range(2)]
    for micro in (5, 9):
        made = trainer(name, micro=micro)
        assert [made.step(i, *batch(5, i), 5 * 3 / 7) for i in range(2)] == wanted
        assert same(made.state_dict(), whole.state_dict())


def test_the_forward_pass_holds_no_more_than_a_piece():
    made, seen = trainer("restormer", micro=2), []
    made.networks["G"].register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    made.step(0, *batch(5))
    assert seen == [2, 2, 1]


RANKS = """
    import os, sys
    import torch
    sys.path[:0] = [{tests!r}, os.path.dirname({tests!r})]
    from test_trainer import LOCAL, batch, trainer, weights
    from sar2eo_dist.errors import NonFinite
    import torch._dynamo  # DDP wants it: once, before the ways part
    import torch.distributed as dist
    torch.set_num_threads(1)
    rank = 0 if os.fork() else 1
    dist.init_process_group("gloo", init_method="file://{meet}", rank=rank, world_size=2)

    def mean(x):
        dist.all_reduce(x)
        return x.div_(2)

    own, found = (slice(0, 3), slice(3, 5))[rank], {{}}
    for name, micro, options in (
        ("pix2pixhd", 0, None), ("restormer", 2, None), ("pix2pixhd", 1, LOCAL)
    ):
        made = trainer(name, 4, double=True, micro=micro, options=options)
        made.wrap(torch.nn.parallel.DistributedDataParallel, mean)
        told = []
        for i in range(3):
            source, target, valid = (part[own] for part in batch(5, i, True))
            if i == 1 and rank == 1:
                target[-1, 0, 5, 5] = float("nan")
                valid[-1, 0, 5, 5] = True
            try:
                told.append(made.step(i, source, target, valid, len(source) * 2 / 5))
            except NonFinite as e:
                told.append(str(e))
        found[name, micro, options is None] = told, weights(made)
    torch.save(found, f"{out}/{{rank}}.pt")
    dist.destroy_process_group()
    os._exit(0 if rank else os.waitstatus_to_exitcode(os.wait()[1]))  # not through a second of tidying
"""


def test_two_ranks_with_uneven_parts_are_one_with_all(tmp_path, request):
    """3 + 2 samples under DDP, in unequal numbers of pieces; a NaN that one of them meets stops both at that step."""
    words = {"tests": str(request.path.parent), "meet": tmp_path / "meet", "out": tmp_path}
    code = textwrap.dedent(RANKS).format(**words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert len(ranks[0]) == 3
    for (name, micro, plain), (told, ends) in ranks[0].items():
        assert str(ranks[1][name, micro, plain][0]) == str(told)
        assert same(ranks[1][name, micro, plain][1], ends)
        one = trainer(name, 4, double=True, options=None if plain else LOCAL)
        for i in (0, 2):
            assert told[i] == pytest.approx(one.step(i, *batch(5, i, True)), rel=1e-6)
        assert told[1].startswith("step 1: ")
        assert close(weights(one), ends, 1e-8)


@pytest.mark.parametrize("bad", ["target", "weight", "piece"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_finite_changes_nothing(name, bad):
    made, clean = trainer(name), trainer(name)
    for t in (made, clean):
        t.step(0, *batch(3, 0))
    before = copy.deepcopy(made.state_dict())
    source, target, valid = batch(3, 1)
    if bad != "weight":
        made.micro = int(bad == "piece")
        target[2, 1, 4, 4], valid[2, 0, 4, 4] = math.nan, True
    names = {"pix2pixhd": ("G_L1", "D_real", "grad_norm_D"), "restormer": ("l1",)}[name]
    with pytest.raises(NonFinite, match=r"^step 1: ") as e:
        made.step(1, source, target, valid, math.inf if bad == "weight" else 1.0)
    assert all(f"{n} = " in str(e.value) for n in names)
    assert bad == "weight" or "G_GAN =" not in str(e.value)  # finite: the critic of G's image sees no target
    assert same(made.state_dict(), before)
    made.micro = 0
    assert made.step(2, *batch(3, 2)) == clean.step(2, *batch(3, 2))
    assert same(made.state_dict(), clean.state_dict())


def test_a_gradient_that_is_not_finite_stops_the_step_though_the_loss_is():
    made = trainer("restormer")
    made.networks["G"].output.weight.register_hook(lambda g: g.fill_(math.inf))
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(NonFinite, match="^step 3: grad_norm_G = inf$"):
        made.step(3, *batch(2))
    assert same(made.state_dict(), before)


def test_restormers_norm_is_told_before_it_is_clipped_and_the_clipped_step_is_torchs():
    made = trainer("restormer", double=True)
    net = copy.deepcopy(made.networks["G"])
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4)
    for i in range(3):
        source, target, valid = batch(2, i, True)
        adam.zero_grad()
        (0.5 * (torch.where(valid, net(source) - target, 0.0)).abs().mean()).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        adam.step()
        told = made.step(i, source, target, valid)
        assert told["grad_norm_G"] == pytest.approx(float(norm), rel=1e-5)
        assert told["grad_norm_G"] > 0.01
    assert close(dict(net.state_dict()), dict(made.networks["G"].state_dict()), 1e-8)


class Literal:
    """The official two halves of a local enhancer: Adam over the finest enhancer, then a new Adam over all."""

    def __init__(self, like, own, steps=8, fixed=4):
        self.g, self.d = (copy.deepcopy(like.networks[n]) for n in "GD")
        self.steps, self.fixed = steps, fixed
        first = [p for name, p in self.g.named_parameters() if name.startswith(own)]
        self.adam_g, self.adam_d = self.adam(first), self.adam(self.d.parameters())

    def adam(self, parameters):
        return torch.optim.Adam(parameters, lr=1e-3, betas=(0.5, 0.999), fused=False, foreach=False)

    def step(self, i, source, target, valid):
        if i == self.fixed:
            self.adam_g = self.adam(self.g.parameters())
        half = self.steps // 2
        for adam in (self.adam_g, self.adam_d):
            adam.param_groups[0]["lr"] = 1e-3 * (1 - max(0, i - half) / half)
        g, d, keep = self.g, self.d, valid.to(source.dtype)
        fake, real = g(source) * keep, target * keep
        loss = sum(((s[-1] - 1) ** 2).mean() for s in d(torch.cat((source, fake), 1))) + 5 * (fake - real).abs().mean()
        parts = [(torch.cat((source, real), 1), 1), (torch.cat((source, fake.detach()), 1), 0)]
        loss_d = 0.5 * sum(((s[-1] - goal) ** 2).mean() for x, goal in parts for s in d(x))
        g.zero_grad()
        loss.backward()
        d.zero_grad()
        loss_d.backward()
        self.adam_g.step()
        self.adam_d.step()


@pytest.mark.parametrize("enhancers", [1, 2])
def test_only_the_finest_enhancer_is_trained_at_first_then_all_by_a_new_adam(enhancers):
    made = trainer("pix2pixhd", 8, double=True, options={**LOCAL, "n_local_enhancers": enhancers})
    own = f"model{enhancers}_"
    naive, start = Literal(made, own), copy.deepcopy(made.networks["G"].state_dict())
    for i in range(8):
        made.step(i, *batch(2, i, True))
        naive.step(i, *batch(2, i, True))
        assert close(dict(made.networks["G"].state_dict()), dict(naive.g.state_dict()), 1e-7), i
        assert close(dict(made.networks["D"].state_dict()), dict(naive.d.state_dict()), 1e-7), i
        now = made.networks["G"].state_dict()
        changed = {k for k in now if not torch.equal(now[k], start[k])}
        finest = {k for k in now if k.startswith(own)}
        assert changed == (finest if i < 4 else set(now)), i
        counts = {float(s["step"]) for s in made.optimisers["G"].state.values()}
        assert counts == {i % 4 + 1.0}  # from 1 again after the switch
        assert {float(s["step"]) for s in made.optimisers["D"].state.values()} == {i + 1.0}


def test_a_state_from_either_half_goes_on_to_the_bit():
    whole, saved = trainer("pix2pixhd", 8, options=LOCAL), {}
    for i in range(8):
        sink = io.BytesIO()
        torch.save(whole.state_dict(), sink)
        saved[i] = sink.getvalue()
        whole.step(i, *batch(2, i))
    for start in (2, 4, 5):
        made = trainer("pix2pixhd", 8, seed=9, options=LOCAL)
        made.step(7, *batch(2, 9))  # what it did before it was loaded is gone
        made.load_state_dict(torch.load(io.BytesIO(saved[start]), weights_only=True))
        for i in range(start, 8):
            made.step(i, *batch(2, i))
        assert same(made.state_dict(), whole.state_dict()), start


def test_a_switch_in_a_step_that_is_skipped_is_a_switch():
    made = trainer("pix2pixhd", 8, options=LOCAL)
    for i in range(4):
        made.step(i, *batch(2, i))
    source, target, valid = batch(2, 4)
    with pytest.raises(NonFinite):
        made.step(4, source, target, valid, math.inf)
    made.step(5, *batch(2, 5))
    assert {float(s["step"]) for s in made.optimisers["G"].state.values()} == {1.0}


def test_niter_fix_global_wants_a_local_enhancer_and_a_share():
    with pytest.raises(ConfigError, match="niter_fix_global is of netG local"):
        pix2pixhd.build({**PIX, "niter_fix_global": 0.5}, 3, 3)
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="niter_fix_global must lie in 0..1"):
            pix2pixhd.build({**LOCAL, "niter_fix_global": share}, 3, 3)
    plain = trainer("pix2pixhd", 8, options={**LOCAL, "niter_fix_global": 0.0})
    before = copy.deepcopy(plain.networks["G"].state_dict())
    plain.step(0, *batch(2))
    assert all(not torch.equal(v, before[k]) for k, v in plain.networks["G"].state_dict().items())


def test_the_two_collapses_of_a_discriminator_are_told_and_health_is_not():
    assert "knows every fake" in collapsed(0.004, 0.003, 0.97)
    assert "answers 1/2 to everything" in collapsed(0.2505, 0.2495, 0.25)
    assert "real 0.2505, fake 0.2495, generator's 0.250" in collapsed(0.2505, 0.2495, 0.25)
    for healthy in ((0.2, 0.2, 0.4), (0.1, 0.05, 0.7), (0.004, 0.003, 0.5), (0.25, 0.1, 0.3), (0.3, 0.25, 0.25)):
        assert collapsed(*healthy) == ""


@pytest.mark.parametrize("scales", [1, 3])
def test_symptoms_are_read_from_what_a_step_tells(scales):
    made = trainer("pix2pixhd", options={**PIX, "num_D": scales})
    told = made.step(0, *batch(2))
    assert made.symptoms(told) == {}
    with torch.no_grad():  # each decision map becomes a constant
        for i in range(scales):
            made.networks["D"].get_submodule(f"scale{i}_layer4")[0].weight.zero_()
            made.networks["D"].get_submodule(f"scale{i}_layer4")[0].bias.fill_(0.5)
    (event, text), *more = made.symptoms(made.step(1, *batch(2))).items()
    assert (event, more) == ("discriminator_collapse", [])
    assert "1/2" in text
    won = told | {"D_real": 0.002 * scales, "D_fake": 0.003 * scales, "G_GAN": 0.95 * scales}
    assert "knows every fake" in made.symptoms(won)["discriminator_collapse"]
    assert trainer("restormer").symptoms({"l1": 1e9, "grad_norm_G": 0.0}) == {}
