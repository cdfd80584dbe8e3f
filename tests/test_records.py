from __future__ import annotations

import dataclasses
import datetime as dt

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist.records import Pair, TileRef, Unit, Verdict, digest, from_table, place_key, schema, to_table

REF = TileRef("s2", -55.2, -4.39, dt.date(2019, 6, 6), "multiearth_tiff", ("B4", "B3", "B2"), ("a", "b", "c"), "d")


def verdict(**change: object) -> Verdict:
    pointer = {f.name: getattr(REF, f.name) for f in dataclasses.fields(TileRef)}
    return Verdict(**pointer | {"key": REF.key, "place": REF.place, "reason": ""} | change)  # type: ignore[arg-type]


def test_tables_round_trip_every_field() -> None:
    rows = [verdict(score=1.5), verdict(reason="alpha", max_dn=9000.0, rows=(1, 2))]
    back = from_table(to_table(rows, Verdict), Verdict)
    assert [str(b) for b in back] == [str(r) for r in rows]  # NaN != NaN, so compare in words
    assert back[0].ref == REF
    assert to_table([], Pair).schema == schema(Pair)


def test_a_table_of_another_type_is_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, KeyError)):
        from_table(to_table([REF], TileRef), Verdict)


@given(st.floats(-180, 180), st.floats(-90, 90))
def test_place_is_the_hundredth_of_a_degree(lon: float, lat: float) -> None:
    key = place_key(lon, lat)
    assert len(key) == 11
    assert abs(int(key[:6]) - 100 * lon) <= 0.5 + 1e-9
    assert abs(int(key[6:]) - 100 * lat) <= 0.5 + 1e-9


def test_place_matches_across_float_noise() -> None:
    assert place_key(-55.2, -4.39) == place_key(-55.20000001, -4.389999) == "-05520-0439"


def test_unit_id_depends_on_all_that_makes_it() -> None:
    ids = {
        Unit(*p).id
        for p in (
            ("s", "k", "f", "i"),
            ("t", "k", "f", "i"),
            ("s", "l", "f", "i"),
            ("s", "k", "g", "i"),
            ("s", "k", "f", "j"),
        )
    }
    assert len(ids) == 5
    assert Unit("s", "k", "f", "i").id == Unit("s", "k", "f", "i").id
    assert digest("a", 1) != digest("a1")
