"""Phases cover a training without a gap, and a change of patches and batches repeats and loses no sample."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist import radiometry
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.training.loader import Loader, State, order
from sar2eo_dist.training.phases import Phase, batches, coarser, origin, phases

FIXED = SimpleNamespace(sar="fixed", eo="fixed", third="difference_db", median=0)
SIDE, PER_OBJECT, SEED = 12, 2, 4

lengths = st.lists(st.floats(0.1, 100), min_size=1, max_size=6)
plans = st.lists(st.tuples(st.integers(1, 4), st.integers(1, SIDE), st.integers(3, 7)), min_size=1, max_size=4)


@given(st.integers(1, 100_000), lengths)
@settings(max_examples=200, deadline=None)
def test_phases_are_contiguous_cover_all_steps_and_keep_the_proportion(steps, lengths):
    wanted = [steps * length / sum(lengths) for length in lengths]
    crops, sizes = range(8, 8 + len(lengths)), range(1, 1 + len(lengths))
    try:
        plan = phases(steps, lengths, crops, sizes)
    except ConfigError:
        assert min(wanted) <= 1 + 1e-9  # the rounding of two ends can eat a whole step
        return
    assert [p.start for p in plan] == [0, *(p.stop for p in plan[:-1])]
    assert plan[-1].stop == steps
    assert all(p.stop > p.start and abs(p.stop - p.start - w) <= 1 + 1e-9 for p, w in zip(plan, wanted, strict=True))
    assert [(p.crop, p.batch) for p in plan] == list(zip(crops, sizes, strict=True))


def test_restormers_published_progression():
    """92, 64, 48, 36, 36, 24 of 300 thousand iterations: sums of the published list, no rounding."""
    plan = phases(300_000, [92, 64, 48, 36, 36, 24], [128, 160, 192, 256, 320, 384], [64, 40, 32, 16, 8, 8])
    assert [p.stop for p in plan] == [92_000, 156_000, 204_000, 240_000, 276_000, 300_000]
    assert plan[1] == Phase(92_000, 156_000, 160, 40)


def test_too_few_steps_are_named():
    with pytest.raises(ConfigError, match=r"^2 steps in 3 phases of relative lengths \[1, 1, 1\]: one has no step"):
        phases(2, [1, 1, 1], [8] * 3, [1] * 3)
    with pytest.raises(ConfigError, match=r"10 steps in 2 phases of relative lengths \[100, 1\]"):
        phases(10, [100, 1], [8] * 2, [1] * 2)
    assert phases(3, [1, 1, 1], [8] * 3, [1] * 3)[-1].stop == 3


def test_origin_is_where_the_phases_before_have_come_to():
    plan = phases(6, [1, 1, 1], [8, 8, 8], [5, 3, 1])
    assert origin(plan, 0, 7) == State(0, 0, 0)
    assert origin(plan, 1, 7) == State(0, 5, 1)
    assert origin(plan, 2, 7) == State(1, 3, 2)
    assert origin(plan, 3, 7) == State(1, 6, 3)
    assert origin(plan, 6, 7) == State(2, 4, 6)  # 2 * 5 + 2 * 3 + 2 * 1 = 18


def read(i):
    rng = np.random.default_rng(i)
    sar = rng.integers(-2500, -500, (2, SIDE, SIDE)).astype(np.int16)
    eo = np.stack([rng.integers(0, 3000, (SIDE, SIDE)), np.full((SIDE, SIDE), 2 * i)]).astype(np.uint16)
    return sar, np.concatenate([eo, eo[:1]]), rng.random((SIDE, SIDE)) > 0.02


def make(n, made=None, threads=1):
    def one(phase, state):
        loader = Loader(
            read, range(n), PER_OBJECT, phase.batch, phase.crop, FIXED, SEED, origin=state, window=2, threads=threads
        )
        if made is not None:
            made.append((phase, state))
        return loader

    return one


def names(batch):
    """Samples of a batch: band 1 holds twice the number, where it is valid."""
    return [round(float(radiometry.unscale_eo(t[1].numpy(), FIXED)[v[0].numpy()].mean()) / 2)
            for t, v in zip(batch[1], batch[2], strict=True)]  # fmt: skip


def plan_of(parts):
    plan, at = [], 0
    for steps, crop, batch in parts:
        plan.append(Phase(at, at + steps, max(crop, 4), batch))
        at += steps
    return tuple(plan)


def run(plan, n, start=0, rank=0, world=1):
    return list(batches(plan, make(n), n, start, rank, world))


@given(plans, st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_all_phases_are_one_sequence_of_samples_without_a_gap(parts, n):
    plan = plan_of(parts)
    got = run(plan, n)
    assert [g[0] for g in got] == list(range(plan[-1].stop))
    met = []
    for step, phase, loader, batch in got:
        assert phase.start <= step < phase.stop
        assert batch[0].shape == batch[1].shape == (phase.batch, 3, phase.crop, phase.crop)
        assert batch[2].shape == (phase.batch, 1, phase.crop, phase.crop)
        assert loader.samples(step) == names(batch)
        met += names(batch)
    epochs = [order(SEED, e, np.arange(n), PER_OBJECT, 2) for e in range(-(-len(met) // n))]
    assert met == np.concatenate(epochs)[: len(met)].tolist()
    assert all(sorted(met[i : i + n]) == list(range(n)) for i in range(0, len(met) - n + 1, n))
    assert max(Counter(met).values()) - min(Counter([*met, *range(n)]).values()) <= 1


@given(plans, st.integers(1, 9), st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_started_at_any_step_by_any_number_of_workers_it_goes_on_the_same(parts, n, world, data):
    plan = plan_of(parts)
    start = data.draw(st.integers(0, plan[-1].stop))
    whole = run(plan, n)[start:]
    ranks = [run(plan, n, start, rank, world) for rank in range(world)]
    assert all(len(rank) == len(whole) for rank in ranks)
    for i, (step, phase, _, batch) in enumerate(whole):
        assert all(rank[i][:2] == (step, phase) for rank in ranks)
        together = [torch.cat(part) for part in zip(*(rank[i][3] for rank in ranks), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(together, batch, strict=True))


def test_only_the_loaders_that_are_needed_are_made_each_from_its_phases_own_origin():
    plan, made = plan_of([(3, 8, 4), (2, 12, 3), (2, 12, 5)]), []
    steps = batches(plan, make(5, made), 5, 4, 0, 1)
    assert made == []
    assert [next(steps)[0], len(made), next(steps)[0]] == [4, 1, 5]
    assert made == [(plan[1], State(2, 2, 3)), (plan[2], State(3, 3, 5))]  # 12 and 18 samples of 5
    assert [s[0] for s in steps] == [6]
    assert list(batches(plan, make(5), 5, 7, 0, 1)) == []


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_coarser_is_the_block_mean_and_valid_where_all_was(scale):
    g = torch.Generator().manual_seed(0)
    source, target = (torch.rand(2, 3, 12, 6, generator=g) * 2 - 1 for _ in range(2))
    valid = torch.rand(2, 1, 12, 6, generator=g) > 0.08
    got = coarser((source, target, valid), scale)
    blocks = [
        x.numpy().reshape(2, -1, 12 // scale, scale, 6 // scale, scale).astype(np.float64)
        for x in (source, target, valid)
    ]
    for image, block in zip(got, blocks[:2], strict=False):
        assert image.dtype == torch.float32
        np.testing.assert_allclose(image.numpy(), block.mean((3, 5)), atol=1e-6)
    assert got[2].dtype == torch.bool
    assert np.array_equal(got[2].numpy(), blocks[2].min((3, 5)) == 1)
    assert 0 < int(got[2].sum()) < got[2].numel()


@pytest.mark.parametrize("scale", [3, 5, 7, 10, 24])
def test_a_whole_block_is_valid_at_any_scale(scale):
    image, valid = torch.zeros(1, 3, scale, 2 * scale), torch.ones(1, 1, scale, 2 * scale, dtype=torch.bool)
    valid[0, 0, -1, -1] = False
    assert coarser((image, image, valid), scale)[2].flatten().tolist() == [True, False]
