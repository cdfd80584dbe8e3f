from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiles import days, patch_at, run, table, tile

from sar2eo_dist.pairing import match as module
from sar2eo_dist.pairing.yields import curve, horizon
from sar2eo_dist.sections import Pairing


@pytest.mark.parametrize(("max_days", "last"), [(0, 30), (7, 30), (15, 30), (16, 32), (45, 90), (46, 90), (400, 90)])
def test_how_far_it_looks(max_days, last):
    assert horizon(max_days) == last
    found = curve(table([]), table([]), Pairing(max_days=max_days)).to_pydict()
    assert found == {"days": list(range(last + 1)), "eo_images": [0] * (last + 1), "combinations": [0] * (last + 1)}


images = st.lists(st.tuples(st.integers(0, 70), st.integers(-2, 2), st.sampled_from(["", "", "qa60"])), max_size=12)


@settings(max_examples=40, deadline=None)
@given(images, images, st.integers(0, 40), st.sampled_from(module.PLACES), st.booleans())
def test_every_tolerance_gives_what_matching_with_it_gives(s, e, max_days, place, small):
    sar, eo = ([patch_at(n, d, -55.2 + 0.008 * i, -4.39, r) for d, i, r in rows] for n, rows in (("s1", s), ("s2", e)))
    cfg = Pairing(max_days=max_days, place=place, min_overlap=0.5)
    with patch.multiple(module, **({"SLAB": 3, "BLOCK": 4} if small else {"SLAB": module.SLAB})):
        found = curve(table(sar, 3), table(eo), cfg).to_pylist()
    for row in (found[0], found[3], found[max_days], found[-1]):
        more = {"place": place, "min_overlap": 0.5}
        assert row["eo_images"] == len(run(sar, eo, row["days"], "nearest", **more))
        assert row["combinations"] == len(run(sar, eo, row["days"], "all", **more))


def test_a_site():
    sar, eo = [tile("s1", d) for d in (0, 12)], [tile("s2", d) for d in (3, 6, 40)]
    assert days(run(sar, eo, 6)) == [(3, 0), (6, 0)]
    found = curve(table(sar), table(eo), Pairing(max_days=30)).to_pydict()
    assert found["eo_images"] == [0] * 3 + [1] * 3 + [2] * 22 + [3] * 33
    assert found["combinations"] == [0] * 3 + [1] * 3 + [3] * 3 + [4] * 19 + [5] * 12 + [6] * 21
