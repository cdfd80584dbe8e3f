"""Batches are a pure function of (seed, step), whatever the workers, the cache and the order of asking."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sar2eo_dist import radiometry
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.training.enhance import Translated
from sar2eo_dist.training.loader import PREFETCH, Loader, order

FIXED = SimpleNamespace(sar="fixed", eo="fixed", third="difference_db", median=0)
MINMAX = SimpleNamespace(sar="minmax", eo="minmax", third="difference_db", median=3)
SIDE = 24


def read(i):
    """Every pixel of every band tells its place: EO = 100 i + row-column code, valid except one corner."""
    rng = np.random.default_rng(i)
    code = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    eo = np.stack([code, code + 700, code + 1400]) + np.uint16(i)
    valid = np.ones((SIDE, SIDE), bool)
    valid[:3, :5] = False
    return rng.integers(-2500, -500, (2, SIDE, SIDE)).astype(np.int16), eo, valid


def loader(n=7, batch=4, crop=8, scaling=FIXED, seed=3, **more):
    return Loader(read, n, batch, crop, scaling, seed, **more)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_order_is_a_permutation_and_pure(seed, epoch, n):
    a = order(seed, epoch, n)
    assert sorted(a.tolist()) == list(range(n))
    order.cache_clear()
    assert np.array_equal(a, order(seed, epoch, n))


def test_orders_differ_by_seed_and_epoch():
    assert len({tuple(order(s, e, 20).tolist()) for s in range(3) for e in range(3)}) == 9


def test_shapes_dtypes_ranges():
    source, target, valid = loader().at(5)
    assert source.shape == target.shape == (4, 3, 8, 8)
    assert valid.shape == (4, 1, 8, 8)
    assert (source.dtype, target.dtype, valid.dtype) == (torch.float32, torch.float32, torch.bool)
    assert float(source.abs().max()) <= 1
    assert float(target.abs().max()) <= 1
    assert source.is_contiguous()
    assert target.is_contiguous()


@given(st.integers(0, 40), st.sampled_from([1, 2, 3, 6]))
@settings(max_examples=20, deadline=None)
def test_ranks_together_hold_the_global_batch(step, world):
    whole = loader(batch=6).at(step)
    parts = [loader(batch=6).at(step, rank, world) for rank in range(world)]
    assert equal(whole, [torch.cat(p) for p in zip(*parts, strict=True)])


def test_every_sample_is_met_once_an_epoch_and_no_rest_is_dropped():
    made = loader(n=7, batch=2)
    names = []
    for step in range(7):  # 14 positions are two epochs
        _, target, _ = made.at(step)
        names += [round(float(radiometry.unscale_eo(t.numpy(), FIXED)[0].max())) for t in target]
    positions = [int(order(3, p // 7, 7)[p % 7]) for p in range(14)]
    assert sorted(positions[:7]) == sorted(positions[7:]) == list(range(7))
    assert len(names) == 14


def test_asking_again_later_or_without_a_cache_gives_the_same():
    made = loader()
    first = [made.at(s) for s in range(6)]
    assert equal(first[4], made.at(4))
    assert equal(first[5], loader(cache_mb=0).at(5))
    assert not equal(first[5], loader(seed=4).at(5))
    assert not equal(made.at(0), made.at(7))  # the same samples two epochs on, cut elsewhere


@pytest.mark.parametrize("scaling", [FIXED, MINMAX])
def test_both_sides_are_cut_and_turned_alike_after_scaling_the_whole_patch(scaling):
    made = loader(n=3, batch=4, scaling=scaling)
    source, target, valid = made.at(0)
    for j in range(4):
        i = int(order(3, j // 3, 3)[j % 3])
        sar, eo, mask = read(i)
        whole = [radiometry.scale_sar(radiometry.decode_db(sar), scaling), radiometry.scale_eo(eo, mask, scaling)]
        whole = [torch.from_numpy(w) for w in (*whole, mask[None])]
        found = None
        for turns in range(4):
            for mirror in (False, True):
                turned = [torch.rot90(w, turns, (1, 2)) for w in whole]
                turned = [w.flip(2) if mirror else w for w in turned]
                for top in range(SIDE - 7):
                    for left in range(SIDE - 7):
                        cut = [w[:, top : top + 8, left : left + 8] for w in turned]
                        if equal(cut, (source[j], target[j], valid[j])):
                            found = turns, mirror, top, left
        assert found is not None


def test_all_crops_and_symmetries_occur():
    """EO codes tell where a crop was cut and how it was turned."""
    made = loader(n=1, batch=64)
    corners, turns = set(), set()
    for step in range(4):
        _, target, valid = made.at(step)
        for image in radiometry.unscale_eo(target[valid.all(dim=(1, 2, 3))][:, 2].numpy(), FIXED):
            codes = np.rint(image - 1400).astype(int)
            corners |= {divmod(int(codes.max()), SIDE)}
            turns |= {(int(codes[0, 7] - codes[0, 0]), int(codes[7, 0] - codes[0, 0]))}
    assert {r for r, _ in corners} == {c for _, c in corners} == set(range(7, SIDE))
    assert len(turns) == 8


def test_background_batches_equal_direct_ones_and_are_bounded():
    made = loader()
    assert all(equal(b, made.at(s, 1, 2)) for s, b in zip(range(3, 9), made.batches(3, 9, 1, 2), strict=True))
    assert list(made.batches(5, 5)) == []
    reads = []
    slow = Loader(lambda i: (reads.append(i), read(i))[1], 50, 1, 8, FIXED, 0)
    steps = slow.batches(0, 50)
    next(steps)
    steps.close()  # stops the thread
    assert len(reads) <= 1 + PREFETCH
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_errors_of_the_reader_reach_the_loop():
    def torn(i):
        raise OSError("torn shard")

    with pytest.raises(OSError, match="torn shard"):
        list(Loader(torn, 3, 1, 8, FIXED, 0).batches(0, 3))


def test_memory_of_the_cache_is_bounded():
    side = 256
    arrays = np.zeros((2, side, side), np.int16), np.zeros((3, side, side), np.uint16), np.ones((side, side), bool)
    made = Loader(lambda i: arrays, 9, 9, 8, FIXED, 0, cache_mb=4)
    made.at(0)
    assert sum(t.nbytes for patch in made._cache.values() for t in patch) <= 4 << 20
    assert len(made._cache) == 2


def test_impossible_settings():
    with pytest.raises(ConfigError, match="the training split holds 0 pairs"):
        loader(n=0)
    with pytest.raises(ConfigError, match="crop 25 is larger than the patches of 24 x 24"):
        loader(crop=25).at(0)
    with pytest.raises(ConfigError, match="batch of 4 cannot be shared evenly by 3 workers"):
        loader().at(0, 0, 3)
    with pytest.raises(ConfigError, match="batch 0"):
        loader(batch=0)


class MeanOfWindow(nn.Module):
    """A network whose every output pixel is the mean of the whole window."""

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return x.mean((2, 3), keepdim=True).expand_as(x)


def test_enhancement_sources_are_whole_patches_translated_then_cropped():
    source, target, _ = loader(n=2, batch=2, transform=Translated(MeanOfWindow())).at(0)
    plain = loader(n=2, batch=2).at(0)
    assert torch.equal(target, plain[1])
    for j in range(2):
        sar, _, _ = read(int(order(3, 0, 2)[j]))
        whole = radiometry.scale_sar(radiometry.decode_db(sar), FIXED)
        assert torch.allclose(source[j], torch.from_numpy(whole).mean((1, 2))[:, None, None].expand(3, 8, 8), atol=1e-6)
