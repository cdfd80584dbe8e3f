from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiles import days, patch_at, run, table, tile

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pairing import match as module
from sar2eo_dist.pairing.match import match
from sar2eo_dist.pairing.split import PATCH_DEGREES
from sar2eo_dist.pairing.yields import curve
from sar2eo_dist.records import Pair, Verdict, from_table, schema
from sar2eo_dist.sections import Pairing


def test_the_real_site():
    """S1 05-27, 06-08, 06-20, 07-02; S2 06-06, 06-11, 07-01, 07-11, 07-26, 2020-07-20; within 7 days three pairs."""
    sar = [tile("s1", d) for d in (-5, 7, 19, 31)]
    eo = [tile("s2", d) for d in (5, 10, 30, 40, 55, 415)]
    for mode in ("nearest", "all"):
        assert days(run(sar, eo, 7, mode)) == [(5, 7), (10, 7), (30, 31)]
    assert [p.days for p in run(sar, eo, 7)] == [-2, 3, -1]
    assert days(run(sar, eo, 7, "released")) == [(10, 7), (30, 31)]  # 06-11 overwrites 06-06
    assert days(run(sar, eo, 30)) == [(5, 7), (10, 7), (30, 31), (40, 31), (55, 31)]


def test_a_pair_carries_both_sides():
    found = match(table([tile("s1", 3)]), table([tile("s2", 1)]), Pairing(max_days=2))
    assert found.schema == schema(Pair)
    (p,) = from_table(found, Pair)
    assert (p.place, p.sar_key, p.eo_key) == ("-05520-0439", "s1/-05520-0439/2019-06-04", "s2/-05520-0439/2019-06-02")
    assert (p.lon, p.lat, p.sar_date, p.eo_date) == (-55.20, -4.39, dt.date(2019, 6, 4), dt.date(2019, 6, 2))
    assert (p.days, p.orbit, p.platform, p.sar_digest, p.eo_digest, p.split) == (
        -2, "ascending", "s1A", "s13/0", "s21/0", "",
    )  # fmt: skip


def test_position_is_the_eo_images_and_a_footprint_decides_across_cells():
    sar, eo = patch_at("s1", 0, -55.199, -4.3949), patch_at("s2", 1, -55.2001, -4.3951)
    assert sar.place != eo.place
    assert run([sar], [eo], 9) == []
    (p,) = run([sar], [eo], 9, place="footprint")
    assert (p.lon, p.lat, p.place, p.sar_key) == (eo.lon, eo.lat, eo.place, sar.key)
    assert run([sar], [eo], 9, place="footprint", min_overlap=0.95) == []
    far = patch_at("s1", 0, -55.1, -4.39)
    assert run([far], [eo], 9, place="footprint", min_overlap=1e-9) == []


def test_ties_limits_places_and_rejected_tiles():
    assert days(run([tile("s1", 4), tile("s1", 0)], [tile("s2", 2)], 5)) == [(2, 0)]
    assert run([tile("s1", 0)], [tile("s2", 3)], 2, "all") == []
    assert len(run([tile("s1", 0)], [tile("s2", 3)], 3, "all")) == 1
    assert run([tile("s1", 0, place=1)], [tile("s2", 0)], 30, "all") == []
    assert run([tile("s1", 0, reason="all_nodata")], [tile("s2", 0)], 30, "all") == []
    assert run([tile("s1", 0)], [tile("s2", 0, reason="frechet")], 30, "all") == []
    for mode in module.MODES:
        assert run([], [], 30, mode) == run([tile("s1", 0)], [], 30, mode) == run([], [tile("s2", 0)], 30, mode) == []


def test_of_footprints_equally_near_in_time_the_largest_overlap_counts():
    eo = patch_at("s2", 2, -55.2, -4.4)
    sar = [patch_at("s1", 0, -55.2, -4.401), patch_at("s1", 4, -55.2, -4.4), patch_at("s1", 1, -55.2, -4.402)]
    assert days(run(sar, [eo], 5, place="footprint")) == [(2, 1)]  # nearest in time comes first
    assert days(run(sar[:2], [eo], 5, place="footprint")) == [(2, 4)]  # then overlap, then the earlier


def test_released_matching_keeps_the_last_eo_image_of_each_sar_image():
    sar = [tile("s1", 0), tile("s1", 20)]
    eo = [tile("s2", d) for d in (-6, -2, 6, 7, 10, 13, 14)]
    for max_days in (0, 3, 90):  # below 7, whatever is configured
        assert days(run(sar, eo, max_days, "released")) == [(6, 0), (14, 20)]
    # 10 is equally far from both and beyond; 6 days count, 7 do not
    assert days(run(sar[:1], [tile("s2", 6), tile("s2", 7)], 30, "released")) == [(6, 0)]
    # in footprints one SAR patch serves EO patches of several places: the last date stays, whatever its place
    eo = [patch_at("s2", 3, -55.2041, -4.4), patch_at("s2", 1, -55.2061, -4.4)]
    assert eo[0].place < eo[1].place
    found = run([patch_at("s1", 0, -55.205, -4.4)], eo, 30, "released", place="footprint")
    assert days(found) == [(3, 0)]


def test_a_row_is_an_image_equal_keys_are_not_merged():
    sar, eo = [tile("s1", 0, mark=m) for m in "ba"], [tile("s2", 0, mark=m) for m in "yx"]
    found = [(p.eo_digest, p.sar_digest) for p in run(sar, eo, 1, "all")]
    assert found == [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")]
    assert [(p.eo_digest, p.sar_digest) for p in run(sar, eo, 1)] == [("x", "a"), ("y", "a")]
    assert [(p.eo_digest, p.sar_digest) for p in run(sar, eo, 1, "released")] == [("y", "a")]


# what match does, said again for one pair at a time


@dataclass
class Reference:
    sar: list[Verdict]
    eo: list[Verdict]
    max_days: int
    place: str
    min_overlap: float

    def __post_init__(self) -> None:
        rest = ("lon", "lat", "orbit", "platform")
        for name, first in (("sar", ("date", "key", "digest", "place")), ("eo", ("place", "date", "key", "digest"))):
            rows = [v for v in getattr(self, name) if v.reason == ""]
            setattr(self, name, sorted(rows, key=lambda v: tuple(getattr(v, c) for c in first + rest)))

    def same_place(self, s: Verdict, e: Verdict) -> bool:
        return s.place == e.place if self.place == "cell" else self.overlap(s, e) >= self.min_overlap

    def overlap(self, s: Verdict, e: Verdict) -> float:
        """Area of the intersection of two squares of 2560 m, by their edges."""
        if self.place == "cell":
            return 1.0
        lat = math.radians((s.lat + e.lat) / 2)
        boxes = [(v.lon * 111_320 * math.cos(lat), v.lat * 111_320) for v in (s, e)]
        sides = [min(a, b) + 1280 - (max(a, b) - 1280) for a, b in zip(*boxes, strict=True)]
        return round(max(sides[0], 0) * max(sides[1], 0) / 2560**2, 9)

    def near(self, e: Verdict, limit: int) -> list[int]:
        return [i for i, s in enumerate(self.sar) if self.same_place(s, e) and abs((e.date - s.date).days) <= limit]

    def nearest(self, limit: int) -> list[tuple[int, int]]:
        out = []
        for j, e in enumerate(self.eo):
            ranked = [
                (abs((e.date - self.sar[i].date).days), -self.overlap(self.sar[i], e), i) for i in self.near(e, limit)
            ]
            out += [(j, min(ranked)[2])] if ranked else []
        return out

    def pairs(self, mode: str) -> list[tuple[str, ...]]:
        if mode == "all":
            found = [(j, i) for j, e in enumerate(self.eo) for i in self.near(e, self.max_days)]
        elif mode == "nearest":
            found = self.nearest(self.max_days)
        elif mode == "none":
            found = []
        else:
            last = {i: j for j, i in sorted(self.nearest(6), key=lambda p: (self.eo[p[0]].date, p[0]))}
            found = [(j, i) for i, j in last.items()]
        found.sort(key=lambda p: (*self._order(*p), *p))
        return [(*map(str, self._order(j, i)), self.eo[j].digest, self.sar[i].digest) for j, i in found]

    def _order(self, j: int, i: int) -> tuple[object, ...]:
        e, s = self.eo[j], self.sar[i]
        return e.place, e.date, e.key, s.date, s.key


def told(pairs: pa.Table) -> list[tuple[str, ...]]:
    columns = ("place", "eo_date", "eo_key", "sar_date", "sar_key", "eo_digest", "sar_digest")
    return [tuple(str(row[c]) for c in columns) for row in pairs.to_pylist()]


cells = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 2), st.sampled_from("ab"), st.sampled_from(["", "", "qa60"])),
    max_size=14,
)
steps = st.lists(
    st.tuples(st.integers(0, 12), st.integers(-4, 4), st.integers(-4, 4), st.sampled_from("ab")), max_size=14
)


def agree(sar: list[Verdict], eo: list[Verdict], cfg: Pairing, random: object, small: bool) -> None:
    expected = Reference(list(sar), list(eo), cfg.max_days, cfg.place, cfg.min_overlap).pairs(cfg.mode)
    for chunks in (1, 3):
        random.shuffle(sar)  # type: ignore[attr-defined]
        random.shuffle(eo)  # type: ignore[attr-defined]
        sizes = {"SLAB": 3, "BLOCK": 4, "CHUNK": 2} if small else {"SLAB": module.SLAB}
        with patch.multiple(module, **sizes):
            assert told(match(table(sar, chunks), table(eo, chunks), cfg)) == expected


@settings(max_examples=60, deadline=None)
@given(cells, cells, st.integers(0, 12), st.sampled_from(module.MODES), st.randoms(), st.booleans())
def test_cells_against_the_reference(s, e, max_days, mode, random, small):
    sar, eo = ([tile(n, d, p, r, m) for d, p, m, r in rows] for n, rows in (("s1", s), ("s2", e)))
    agree(sar, eo, Pairing(max_days=max_days, mode=mode), random, small)


@settings(max_examples=60, deadline=None)
@given(
    steps,
    steps,
    st.sampled_from(module.MODES),
    st.sampled_from((1e-9, 0.1, 0.45, 0.9, 1.0)),
    st.sampled_from(((-55.2, -4.39), (0.0, 0.0), (10.0, 0.011498), (-3.0, 71.3), (179.0, -88.5))),
    st.randoms(),
    st.booleans(),
)
def test_footprints_against_the_reference(s, e, mode, share, origin, random, small):
    sar, eo = (
        [patch_at(n, d, origin[0] + 0.0061 * i / max(math.cos(math.radians(origin[1])), 0.01), origin[1] + 0.0061 * j,
                  "", m) for d, i, j, m in rows]
        for n, rows in (("s1", s), ("s2", e))
    )  # fmt: skip
    agree(sar, eo, Pairing(max_days=5, mode=mode, place="footprint", min_overlap=share), random, small)


shift = st.sampled_from((-0.999, 0.999)) | st.floats(-0.999, 0.999)


@settings(max_examples=150, deadline=None)
@given(st.integers(-170_000, 170_000), st.sampled_from((-89.4, 89.3, 1e-9)) | st.floats(-89.4, 89.4), shift, shift)
def test_every_footprint_that_overlaps_is_found(millidegrees, lat, east, north):
    """Also where bins of the ground change their width most, and at their corners."""
    lon, other = millidegrees / 1000, lat + north * PATCH_DEGREES
    step = PATCH_DEGREES / math.cos(math.radians((lat + other) / 2))
    sar, eo = patch_at("s1", 0, lon + east * step, other), patch_at("s2", 0, lon, lat)
    assert len(run([sar], [eo], 0, place="footprint", min_overlap=1e-7)) == 1


def test_what_is_refused():
    def refused(message: str, **values: object) -> None:
        rule = SimpleNamespace(**{"max_days": 7, "mode": "all", "place": "cell", "min_overlap": 0.9} | values)
        with pytest.raises(ConfigError, match=message):
            match(table([]), table([]), rule)
        with pytest.raises(ConfigError, match=message):
            curve(table([]), table([]), rule)

    refused("'last'", mode="last")
    refused("'town'", place="town")
    refused("-1", max_days=-1)
    refused("min_overlap.*not 0", place="footprint", min_overlap=0)
    nowhere = patch_at("s2", 0, -55.2, -4.4)
    object.__setattr__(nowhere, "lat", math.nan)
    with pytest.raises(ConfigError, match="1 longitudes or latitudes"):
        run([tile("s1", 0)], [nowhere], 7, place="footprint")
    assert len(run([tile("s1", 0, mark="m")], [tile("s2", 0)], 7)) == 1
