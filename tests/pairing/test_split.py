from __future__ import annotations

import datetime as dt
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.config import Split
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pairing.split import PATCH_DEGREES, assign, fold
from sar2eo_dist.records import Pair

DAY = dt.date(2019, 6, 1)


def pair(lon: float, lat: float) -> Pair:
    return Pair("p", lon, lat, "s", "e", DAY, DAY, 0, "unknown", "unknown", "", "", "")


def grid(lon: float, lat: float, rows: int, columns: int) -> list[Pair]:
    return [pair(lon + 0.02 * j, lat + 0.02 * i) for i in range(rows) for j in range(columns)]


def overlap(a: Pair, b: Pair) -> bool:
    """Whether two 2560 m patches share ground."""
    if abs(a.lat - b.lat) >= PATCH_DEGREES:
        return False
    east = PATCH_DEGREES / 2 * (1 / math.cos(math.radians(a.lat)) + 1 / math.cos(math.radians(b.lat)))
    return abs(a.lon - b.lon) < east


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from((0.03, 0.07, 0.1, 0.5)),
    st.sampled_from((0.0, 0.001, 0.013)),
    st.floats(-75, 75),
    st.floats(-60, 60),
)
def test_no_ground_is_in_two_splits(seed, cell, guard, lon, lat):
    cfg = Split(seed=seed, cell_degrees=cell, guard_degrees=guard, val=0.3, test=0.3)
    used = [p for p in assign(grid(lon, lat, 9, 9), cfg) if p.split != "guard"]
    assert not [(a, b) for a in used for b in used if a.split != b.split and overlap(a, b)]


@given(st.randoms(), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_stable_under_added_data_and_order(random, seed):
    cfg = Split(seed=seed, cell_degrees=0.1, val=0.3)
    whole = grid(-55.5, -4.6, 8, 8)
    splits = {(p.lon, p.lat): p.split for p in assign(whole, cfg)}
    part = random.sample(whole, 20)
    for p in assign(part, cfg):
        assert p.split == splits[p.lon, p.lat]
    assert [(p.lon, p.lat) for p in assign(part, cfg)] == [(p.lon, p.lat) for p in part]


def test_shares_and_seed():
    cells = [(i, j) for i in range(-60, 60) for j in range(-60, 60)]
    folds = [fold(i, j, Split(val=0.2, test=0.1)) for i, j in cells]
    assert folds.count("val") / len(cells) == pytest.approx(0.2, abs=0.015)
    assert folds.count("test") / len(cells) == pytest.approx(0.1, abs=0.015)
    assert folds != [fold(i, j, Split(val=0.2, test=0.1, seed=1)) for i, j in cells]
    # another share of val leaves the test set alone
    more = [fold(i, j, Split(val=0.4, test=0.1)) for i, j in cells]
    assert [f == "test" for f in folds] == [f == "test" for f in more]
    assert all(m == "val" for f, m in zip(folds, more, strict=True) if f == "val")


def test_one_fold_has_no_guard():
    assert {p.split for p in assign(grid(-55, -4, 12, 12), Split(val=0, test=0, cell_degrees=0.05))} == {"train"}


def test_default_guard_reaches_the_border_and_no_further():
    cfg = Split(val=0.5, guard_degrees=0.013, cell_degrees=0.5)
    i, j = next((i, j) for i in range(50) for j in range(9) if fold(i, j, cfg) != fold(i + 1, j, cfg))
    lat = j * 0.5 + 0.25
    border, reach = (i + 1) * 0.5, (PATCH_DEGREES / 2 + 0.013) / math.cos(math.radians(lat))
    near, far = assign([pair(border - reach + 1e-6, lat), pair(border - reach - 1e-6, lat)], cfg)
    assert (near.split, far.split) == ("guard", fold(i, j, cfg))


def test_what_is_refused():
    class Bad:
        cell_degrees, guard_degrees, val, test, seed = 0.0, 0.0, 0.1, 0.0, 0

    with pytest.raises(ConfigError, match=r"cell_degrees 0\.0"):
        assign([], Bad())
    Bad.cell_degrees, Bad.val, Bad.test = 0.5, 0.7, 0.7
    with pytest.raises(ConfigError, match=r"0\.7 and split\.test 0\.7"):
        assign([], Bad())
