from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pairing.match import match
from sar2eo_dist.records import TileRef, Verdict

DAY0 = dt.date(2019, 6, 1)


def tile(sensor: str, day: int, place: int = 0, reason: str = "") -> Verdict:
    lon, lat = -55.20 + 0.02 * place, -4.39
    date = DAY0 + dt.timedelta(day)
    ref = TileRef(sensor, lon, lat, date, "multiearth_tiff", (), (), f"{sensor}{day}/{place}")
    orbit = "ascending" if sensor == "s1" else "unknown"
    return Verdict(
        ref.key, sensor, ref.place, lon, lat, date, orbit, f"{sensor}A", ref.kind, (), (), (), ref.digest, reason
    )


def days(pairs) -> list[tuple[int, int]]:
    return [((p.eo_date - DAY0).days, (p.sar_date - DAY0).days) for p in pairs]


def test_the_real_site():
    """S1 05-27, 06-08, 06-20, 07-02; S2 06-06, 06-11, 07-01, 07-11, 07-26, 2020-07-20; within 7 days three pairs."""
    sar = [tile("s1", d) for d in (-5, 7, 19, 31)]
    eo = [tile("s2", d) for d in (5, 10, 30, 40, 55, 415)]
    for mode in ("nearest", "all"):
        assert days(match(sar, eo, 7, mode)) == [(5, 7), (10, 7), (30, 31)]
    assert [p.days for p in match(sar, eo, 7, "nearest")] == [-2, 3, -1]


def test_a_pair_carries_both_sides():
    (p,) = match([tile("s1", 3)], [tile("s2", 1)], 2, "nearest")
    assert (p.place, p.sar_key, p.eo_key) == ("-05520-0439", "s1/-05520-0439/2019-06-04", "s2/-05520-0439/2019-06-02")
    assert (p.days, p.orbit, p.platform, p.sar_digest, p.eo_digest, p.split) == (
        -2, "ascending", "s1A", "s13/0", "s21/0", "",
    )  # fmt: skip


def test_ties_limits_places_and_rejected_tiles():
    assert days(match([tile("s1", 4), tile("s1", 0)], [tile("s2", 2)], 5, "nearest")) == [(2, 0)]
    assert match([tile("s1", 0)], [tile("s2", 3)], 2, "all") == []
    assert len(match([tile("s1", 0)], [tile("s2", 3)], 3, "all")) == 1
    assert match([tile("s1", 0, place=1)], [tile("s2", 0)], 30, "all") == []
    assert match([tile("s1", 0, reason="all_nodata")], [tile("s2", 0)], 30, "all") == []
    assert match([tile("s1", 0)], [tile("s2", 0, reason="frechet")], 30, "all") == []
    assert match([], [], 30, "nearest") == []


tiles = st.sets(st.tuples(st.integers(0, 40), st.integers(0, 2)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(tiles, tiles, st.integers(0, 12), st.randoms())
def test_nearest_is_the_best_of_all_in_any_order(s, e, max_days, random):
    sar, eo = [tile("s1", *t) for t in s], [tile("s2", *t) for t in e]
    every = match(sar, eo, max_days, "all")
    assert len(every) == sum(a[1] == b[1] and abs(a[0] - b[0]) <= max_days for a in s for b in e)
    best = {}
    for p in every:
        best.setdefault(p.eo_key, []).append(p)
    nearest = [min(v, key=lambda p: (abs(p.days), p.sar_date)) for v in best.values()]
    random.shuffle(sar)
    random.shuffle(eo)
    assert match(sar, eo, max_days, "nearest") == nearest
    assert match(sar, eo, max_days, "all") == every
    assert every == sorted(every, key=lambda p: (p.place, p.eo_date, p.sar_date))


def test_what_is_refused():
    with pytest.raises(ConfigError, match="'last'"):
        match([], [], 7, "last")
    with pytest.raises(ConfigError, match="-1"):
        match([], [], -1, "all")
