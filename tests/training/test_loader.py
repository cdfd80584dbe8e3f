"""Batches are a pure function of (seed, step), whatever the workers, the threads, the caches and the order of asking."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist import radiometry
from sar2eo_dist.errors import ConfigError, Corrupt, NotFound
from sar2eo_dist.training.loader import Loader, State, order, share

FIXED = SimpleNamespace(sar="fixed", eo="fixed", third="difference_db", median=0)
MINMAX = SimpleNamespace(sar="minmax", eo="minmax", third="difference_db", median=3)
SIDE, PER_OBJECT = 24, 3


def read(i):
    """Every pixel tells its place (EO bands 0 and 1) and its sample (band 2); valid except one corner."""
    rng = np.random.default_rng(i)
    code = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    eo = np.stack([code, code + 700, np.full_like(code, i)])
    valid = np.ones((SIDE, SIDE), bool)
    valid[:3, :5] = False
    return rng.integers(-2500, -500, (2, SIDE, SIDE)).astype(np.int16), eo, valid


def loader(n=7, batch=4, crop=8, scaling=FIXED, seed=3, read=read, samples=None, **more):
    return Loader(read, range(n) if samples is None else samples, PER_OBJECT, batch, crop, scaling, seed, **more)


def names(batch):
    """Which samples a batch of fixed scaling holds."""
    return [round(float(np.median(radiometry.unscale_eo(t.numpy(), FIXED)[2]))) for t in batch[1]]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def running():
    return [t for t in threading.enumerate() if t.name.startswith("loader")]


places = st.sets(st.integers(0, 300), min_size=1, max_size=120).map(lambda s: np.array(sorted(s), np.int64))


@given(st.integers(0, 2**31), st.integers(0, 1000), places, st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_order_is_a_pure_permutation_window_by_window(seed, epoch, samples, per_object, window):
    got = order(seed, epoch, samples, per_object, window)
    assert sorted(got.tolist()) == list(range(len(samples)))
    assert np.array_equal(got, order(seed, epoch, samples.copy(), per_object, window))
    met = (samples[got] // per_object).tolist()
    start, objects = 0, len(set(met))
    for first in range(0, objects, window):  # a window's objects are done before the next one's are opened
        inside = list(dict.fromkeys(met[start:]))[: min(window, objects - first)]
        stop = start + sum(met.count(o) for o in inside)
        assert set(met[start:stop]) == set(inside)
        start = stop
    assert start == len(met)


def test_orders_differ_by_seed_and_epoch_and_mix_a_window():
    samples = np.arange(40)
    assert len({tuple(order(s, e, samples, 4, 3).tolist()) for s in range(3) for e in range(3)}) == 9
    first = [set((order(0, e, samples, 4, 3)[:12] // 4).tolist()) for e in range(20)]
    assert len({frozenset(f) for f in first}) > 10  # other objects come first in other epochs
    assert any(np.diff(order(0, 0, samples, 4, 3)[:12] // 4) != 0)
    many = order(1, 2, np.arange(70_000), 1, 1)  # more windows than 16 bits
    assert np.array_equal(np.sort(many), np.arange(70_000))


def test_every_place_is_equally_likely():
    samples = np.arange(6)
    counts = np.zeros((6, 6), int)
    for epoch in range(3000):
        counts[np.arange(6), order(0, epoch, samples, 2, 2)] += 1
    assert abs(counts - 500).max() < 5 * np.sqrt(500)


def test_shapes_dtypes_ranges():
    source, target, valid = loader().at(5)
    assert source.shape == target.shape == (4, 3, 8, 8)
    assert valid.shape == (4, 1, 8, 8)
    assert (source.dtype, target.dtype, valid.dtype) == (torch.float32, torch.float32, torch.bool)
    assert float(source.abs().max()) <= 1
    assert float(target.abs().max()) <= 1
    assert all(part.is_contiguous() for part in (source, target, valid))


@given(st.integers(0, 40), st.sampled_from([1, 2, 3, 6]))
@settings(max_examples=20, deadline=None)
def test_ranks_together_hold_the_global_batch(step, world):
    whole = loader(batch=6).at(step)
    parts = [loader(batch=6).at(step, rank, world) for rank in range(world)]
    assert equal(whole, [torch.cat(p) for p in zip(*parts, strict=True)])


def test_every_sample_is_met_once_an_epoch_and_no_rest_is_dropped():
    samples = [0, 1, 5, 6, 7, 30, 31]
    made = loader(samples=samples, batch=2)
    met = [name for step in range(7) for name in names(made.at(step))]  # 14 positions are two epochs
    assert sorted(met[:7]) == sorted(met[7:]) == samples
    assert met == [samples[order(3, p // 7, np.array(samples), PER_OBJECT, 8)[p % 7]] for p in range(14)]


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)), min_size=2, max_size=4),
)
@settings(max_examples=15, deadline=None)
def test_other_workers_and_batches_mid_epoch_repeat_and_lose_nothing(n, phases):
    """(steps, share, world) in turn, each going on from the state of the one before."""
    state, met = State(), []
    for steps, each, world in phases:
        made = loader(n=n, batch=each * world, seed=1, origin=state)
        for step in range(state.step, state.step + steps):
            for rank in range(world):
                met += names(made.at(step, rank, world))
        state = made.state(state.step + steps)
    assert met == names(loader(n=n, batch=len(met), seed=1).at(0))
    assert (state.epoch, state.samples_seen, state.step) == (*divmod(len(met), n), sum(p[0] for p in phases))
    for epoch in range(len(met) // n):
        assert sorted(met[epoch * n : epoch * n + n]) == list(range(n))


def test_half_an_epoch_by_two_workers_the_rest_by_three():
    first = loader(n=16, batch=4)
    met = [n for step in range(2) for rank in range(2) for b in [first.at(step, rank, 2)] for n in names(b)]
    then = loader(n=16, batch=6, origin=first.state(2))
    assert first.state(2) == then.state(2) == State(epoch=0, samples_seen=8, step=2)
    rest = [names(b) for rank in range(3) for b in then.batches(2, 4, rank, 3)]
    flat = met + [n for step in range(2) for rank in range(3) for n in rest[2 * rank + step]]
    assert sorted(flat[:16]) == list(range(16))
    assert then.state(4) == State(epoch=1, samples_seen=4, step=4)
    with pytest.raises(ConfigError, match="step 1 lies before step 2"):
        then.at(1)
    with pytest.raises(ConfigError, match=r"samples_seen=8.* is not one of 7"):
        loader(n=7, origin=first.state(2))


def test_asking_again_later_gives_the_same():
    made = loader()
    first = [made.at(s) for s in range(6)]
    assert equal(first[4], made.at(4))
    assert equal(first[5], loader().at(5))
    assert not equal(first[5], loader(seed=4).at(5))
    assert not equal(made.at(0), made.at(7))  # the same samples two epochs on, cut elsewhere


@pytest.mark.parametrize("scaling", [FIXED, MINMAX])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("crop", [8, SIDE])
def test_both_sides_are_cut_and_turned_alike_after_scaling_the_whole_patch(scaling, late, crop):
    made = loader(n=3, batch=4, scaling=scaling, crop=crop)
    made._late = late
    source, target, valid = made.at(0)
    for j in range(4):
        sar, eo, mask = read(int(order(3, j // 3, np.arange(3), PER_OBJECT, 8)[j % 3]))
        whole = [radiometry.scale_sar(radiometry.decode_db(sar), scaling), radiometry.scale_eo(eo, mask, scaling)]
        whole = [torch.from_numpy(w) for w in (*whole, mask[None])]
        found = []
        for turns, mirror in itertools.product(range(4), (False, True)):
            turned = [torch.rot90(w, turns, (1, 2)) for w in whole]
            turned = [w.flip(2) if mirror else w for w in turned]
            for top, left in itertools.product(range(SIDE - crop + 1), repeat=2):
                cut = [w[:, top : top + crop, left : left + crop] for w in turned]
                found += [(turns, mirror, top, left)] if equal(cut, (source[j], target[j], valid[j])) else []
        assert len(found) == 1


def test_all_crops_and_symmetries_occur():
    """EO codes tell where a crop was cut and how it was turned."""
    made = loader(n=1, batch=64)
    corners, turns = set(), set()
    for step in range(4):
        _, target, valid = made.at(step)
        for image in radiometry.unscale_eo(target[valid.all(dim=(1, 2, 3))][:, 1].numpy(), FIXED):
            codes = np.rint(image - 700).astype(int)
            corners |= {divmod(int(codes.max()), SIDE)}
            turns |= {(int(codes[0, 7] - codes[0, 0]), int(codes[7, 0] - codes[0, 0]))}
    assert {r for r, _ in corners} == {c for _, c in corners} == set(range(7, SIDE))
    assert len(turns) == 8


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_background_batches_equal_direct_ones_whatever_the_timing(threads, late):
    def uneven(i):
        time.sleep(i % 3 * 1e-3)
        return read(i)

    made = loader(read=uneven, threads=threads)
    made._late = late
    direct = loader()
    assert all(equal(b, direct.at(s, 1, 2)) for s, b in zip(range(3, 9), made.batches(3, 9, 1, 2), strict=True))
    assert list(made.batches(5, 5)) == []
    assert not running()


@pytest.mark.parametrize(("late", "ahead"), [(False, 2), (True, 4)])
def test_memory_of_batches_made_ahead_is_bounded_by_real_bytes(late, ahead):
    side, reads = 128, []  # a sample: 2 * 3 * side^2 float32 and a mask, or 5 * side^2 of 16 bit and a mask
    raw = np.zeros((2, side, side), np.int16), np.zeros((3, side, side), np.uint16), np.ones((side, side), bool)

    def counted(i):
        reads.append(i)
        return raw

    made = loader(n=50, batch=1, crop=side, read=counted)
    made._late = late
    made._prefetch = 4 * 180_224 if late else 2 * 409_600
    steps = made.batches(0, 50)
    for delivered in (1, 2):
        next(steps)
        deadline = time.monotonic() + 5
        while len(reads) < delivered + ahead and time.monotonic() < deadline:
            time.sleep(1e-3)
        time.sleep(0.01)
        assert len(reads) == delivered + ahead
    steps.close()
    assert not running()
    tight = loader(n=50, batch=2, prefetch_mb=0).batches(0, 3)  # one batch ahead, always
    assert len(list(tight)) == 3


def test_errors_of_the_reader_surface_where_they_happen():
    made = loader(n=9, batch=2)
    bad = names(made.at(3))[1]

    def torn(i):
        if i == bad:
            raise OSError("no route to host")
        return read(i)

    got = []
    with pytest.raises(OSError, match="no route to host"):
        got.extend(loader(n=9, batch=2, read=torn, threads=3).batches(0, 9))
    assert len(got) == 3
    assert all(equal(b, made.at(s)) for s, b in enumerate(got))
    assert not running()


class Broken:
    """A reader to whom some samples are lost."""

    def __init__(self, *bad):
        self.bad, self.asked = bad, []

    def __call__(self, i):
        self.asked.append(i)
        if i in self.bad:
            raise (Corrupt if i % 2 else NotFound)(f"s3://store/sar/c/{i // PER_OBJECT}", f"chunk {i} is torn")
        return read(i)


def test_a_corrupt_sample_is_replaced_by_one_of_another_object_counted_and_reported(capsys):
    broken = Broken(4, 11)
    made = loader(n=20, batch=20, read=broken)
    whole, got = loader(n=20, batch=20).at(0), made.at(0)
    was, now = names(whole), names(got)
    for j, (before, after) in enumerate(zip(was, now, strict=True)):
        assert (before == after) == (before not in (4, 11))
        if before == after:
            assert equal([part[j] for part in whole], [part[j] for part in got])
        else:
            assert before // PER_OBJECT != after // PER_OBJECT
    assert sorted(made.replaced) == [4, 11]
    assert made.replaced[11] == "chunk 11 is torn: s3://store/sar/c/3"
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == sorted(
        f"warning: sample {i} cannot be read ({made.replaced[i]}); sample {now[was.index(i)]} takes its place"
        for i in (4, 11)
    )
    other = made.at(1)  # the next epoch: met again, not said again, and replaced by others
    assert capsys.readouterr().err == ""
    assert equal(got, made.at(0))
    pairs = [(now[was.index(i)], names(other)[names(loader(n=20, batch=20).at(1)).index(i)]) for i in (4, 11)]
    assert any(a != b for a, b in pairs)


@pytest.mark.parametrize("late", [False, True])
def test_replacements_are_the_same_for_any_workers_and_threads(late):
    bad = (0, 3, 4, 5, 13)
    whole = [loader(n=20, batch=6, read=Broken(*bad)).at(s) for s in range(5)]
    assert not set(bad) & {n for b in whole for n in names(b)}
    for world, threads in ((2, 3), (3, 1)):
        ranks = [loader(n=20, batch=6, read=Broken(*bad), threads=threads) for _ in range(world)]
        for r in ranks:
            r._late = late
        parts = zip(*(r.batches(0, 5, i, world) for i, r in enumerate(ranks)), strict=True)
        for step, together in enumerate(parts):
            assert equal(whole[step], [torch.cat(p) for p in zip(*together, strict=True)])
        assert set().union(*(r.replaced for r in ranks)) == set(bad)


def test_too_many_corrupt_samples_stop_the_run_at_the_same_step(capsys):
    bad = tuple(range(0, 20, 4))
    good = loader(n=20, batch=1)
    for threads in (1, 4):
        got = []
        with pytest.raises(
            Corrupt, match=r"^3 training samples cannot be read, train.max_corrupt allows 2; run `jobs/sh"
        ):
            got.extend(loader(n=20, batch=1, read=Broken(*bad), threads=threads, max_corrupt=2).batches(0, 20))
        met = [names(good.at(s))[0] for s in range(len(got) + 1)]
        assert met[-1] in bad
        assert sum(m in bad for m in met) <= 3  # a substitute may be corrupt, too
        assert not running()
    with pytest.raises(Corrupt, match="max_corrupt allows 0") as e:
        list(loader(n=20, batch=4, read=Broken(*bad), max_corrupt=0).batches(0, 9))
    assert e.value.uri.startswith("s3://store/")
    capsys.readouterr()


def test_the_bound_holds_over_a_resume(capsys):
    """What was met before is given back: the resumed loader stops where an undisturbed one does."""
    bad = tuple(range(0, 20, 4))

    def until(made, start):
        got = []
        with pytest.raises(Corrupt, match="3 training samples cannot be read"):
            got.extend(made.batches(start, 20))
        return start + len(got)

    whole = loader(n=20, batch=1, read=Broken(*bad), max_corrupt=2)
    end = until(whole, 0)
    first = loader(n=20, batch=1, read=Broken(*bad), max_corrupt=2)
    list(first.batches(0, end - 1))
    met = dict(first.replaced)
    assert met
    assert until(loader(n=20, batch=1, read=Broken(*bad), max_corrupt=2, replaced=met), end - 1) == end
    capsys.readouterr()


def test_nothing_left_to_read_ends(capsys):
    everything = Broken(*range(1000))
    with pytest.raises(Corrupt, match="17 training samples cannot be read"):
        loader(n=1000, batch=1, read=everything).at(0)
    assert len(everything.asked) == 17  # not the whole store
    with pytest.raises(Corrupt, match="3 training samples cannot be read, train.max_corrupt allows 16"):
        loader(n=3, batch=1, read=Broken(0, 1, 2)).at(0)
    assert "no other can be read" in capsys.readouterr().err
    assert names(loader(n=3, batch=3, read=Broken(0, 2)).at(0)) == [1, 1, 1]  # one object: its own samples must do


def test_impossible_settings():
    with pytest.raises(ConfigError, match="the training split holds 0 pairs"):
        loader(n=0)
    with pytest.raises(ConfigError, match="crop 25 is larger than the patches of 24 x 24"):
        loader(crop=25).at(0)
    with pytest.raises(ConfigError, match="batch of 4 leaves some of 5 workers without a sample"):
        loader().at(0, 0, 5)
    with pytest.raises(ConfigError, match="batch 0"):
        loader(batch=0)
    with pytest.raises(ConfigError, match="threads 0"):
        loader(threads=0)
    for samples in ([3, 2], [1, 1], [-1, 2]):
        with pytest.raises(ConfigError, match="ascending"):
            loader(samples=samples)


def read_image(i):
    """The scaled SAR of `read`, as an image."""
    sar, eo, valid = read(i)
    return radiometry.scale_sar(radiometry.decode_db(sar), FIXED), eo, valid


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("crop", [8, SIDE])
def test_an_image_is_a_source_as_it_is_and_turns_with_its_target(late, crop):
    made, plain = loader(n=5, batch=9, crop=crop, read=read_image), loader(n=5, batch=9, crop=crop)
    made._late = late
    assert equal(made.at(0), plain.at(0))


@given(st.integers(1, 40), st.integers(1, 40))
def test_shares_are_parts_of_the_batch_as_equal_as_can_be(batch, world):
    parts = [share(batch, rank, world) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_any_number_of_workers_shares_a_batch():
    whole = loader().at(5)
    for world in (1, 2, 3, 4):
        parts = [loader().at(5, rank, world) for rank in range(world)]
        assert equal(whole, [torch.cat(part) for part in zip(*parts, strict=True)])
    assert sorted(loader().samples(5)) == sorted(names(whole))


def test_on_a_device_batches_are_scaled_there():
    made = loader(device="meta")
    for part, shape in zip(next(made.batches(0, 1)), ((4, 3, 8, 8), (4, 3, 8, 8), (4, 1, 8, 8)), strict=True):
        assert part.device.type == "meta"
        assert part.shape == shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_batches_equal_the_cpus():
    for scaling in (FIXED, MINMAX):
        here, there = loader(scaling=scaling), loader(scaling=scaling, device="cuda")
        for step, got in enumerate(there.batches(0, 4)):
            assert all(
                part.is_cuda and torch.allclose(part.cpu().float(), want.float(), atol=1e-5)
                for part, want in zip(got, here.at(step), strict=True)
            )
