from __future__ import annotations

import dataclasses
import datetime as dt
import math

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pairing.split import METRES_PER_DEGREE, PATCH_DEGREES, SPLITS, assign, assign_by_name, fold
from sar2eo_dist.records import Pair, from_table, schema, to_table
from sar2eo_dist.sections import Split

DAY = dt.date(2019, 6, 1)


def pair(lon: float, lat: float) -> Pair:
    return Pair("p", lon, lat, "s", "e", DAY, DAY, 0, "unknown", "unknown", "", "", "")


def grid(lon: float, lat: float, rows: int, columns: int) -> list[Pair]:
    return [pair(lon + 0.02 * j, lat + 0.02 * i) for i in range(rows) for j in range(columns)]


def split(pairs: list[Pair], cfg: Split) -> list[Pair]:
    return from_table(assign(to_table(pairs, Pair), cfg), Pair)


def overlap(a: Pair, b: Pair) -> bool:
    """Whether two 2560 m patches share ground."""
    if abs(a.lat - b.lat) >= PATCH_DEGREES:
        return False
    east = PATCH_DEGREES / 2 * (1 / math.cos(math.radians(a.lat)) + 1 / math.cos(math.radians(b.lat)))
    return abs(a.lon - b.lon) < east


def by_hand(p: Pair, cfg: Split) -> str:
    """The split of one pair, cell by cell."""
    north = PATCH_DEGREES / 2 + cfg.guard_degrees
    east = north / max(math.cos(math.radians(p.lat)), 1e-6)
    columns, rows = (
        range(math.floor((x - r) / cfg.cell_degrees), math.floor((x + r) / cfg.cell_degrees) + 1)
        for x, r in ((p.lon, east), (p.lat, north))
    )
    folds = {fold(i, j, cfg) for i in columns for j in rows}
    return folds.pop() if len(folds) == 1 else "guard"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from((0.011, 0.03, 0.07, 0.1, 0.5)),
    st.sampled_from((0.0, 0.001, 0.013)),
    st.floats(-75, 75),
    st.floats(-60, 60),
)
def test_no_ground_is_in_two_splits(seed, cell, guard, lon, lat):
    cfg = Split(seed=seed, cell_degrees=cell, guard_degrees=guard, val=0.3, test=0.3)
    pairs = grid(lon, lat, 9, 9)
    found = split(pairs, cfg)
    assert [p.split for p in found] == [by_hand(p, cfg) for p in pairs]
    used = [p for p in found if p.split != "guard"]
    assert not [(a, b) for a in used for b in used if a.split != b.split and overlap(a, b)]


ORIGIN, SIZE = (-55.52, -4.62), 14  # a dense 0.02 degree grid of places; neighbours overlap by 300 m and more


def rasters(pairs: list[Pair]) -> dict[str, np.ndarray]:
    """split -> (H, W) bool raster of 10 m of the ground that its patches cover, every touched pixel set."""
    scale = METRES_PER_DEGREE / 10
    shrink = math.cos(math.radians(ORIGIN[1] + 0.01 * SIZE))  # one projection for all: east by the grid's mean latitude
    height = int(0.02 * SIZE * scale) + 300
    out = {name: np.zeros((height, height), bool) for name in SPLITS}
    for p in pairs:
        half = PATCH_DEGREES / 2 * scale
        wide = half / math.cos(math.radians(p.lat)) * shrink
        x, y = (p.lon - ORIGIN[0]) * scale * shrink + 150, (p.lat - ORIGIN[1]) * scale + 150
        rows, columns = ((math.floor(v - h), math.ceil(v + h)) for v, h in ((y, half), (x, wide)))
        assert min(rows[0], columns[0]) >= 0
        assert max(rows[1], columns[1]) < height
        out[p.split][rows[0] : rows[1], columns[0] : columns[1]] = True
    return out


@pytest.mark.parametrize("guard", [0.0, 0.002, 0.012])
def test_no_pixel_of_the_ground_is_in_two_splits(guard):
    cfg = Split(cell_degrees=0.083, guard_degrees=guard, val=0.34, test=0.33, seed=3)
    pairs = grid(*ORIGIN, SIZE, SIZE)
    found = split(pairs, cfg)
    cover = rasters(found)
    used = [cover[name] for name in ("train", "val", "test")]
    assert all(c.any() for c in used), "a grid without one of the splits shows nothing"
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not (used[a] & used[b]).any()
        away = cv2.distanceTransform((~used[a]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        gap = 2 * guard * METRES_PER_DEGREE / 10
        assert away[used[b]].min() > gap - 2  # rasterising gives a pixel to either side
    # and it is the guard that does it: by their cells alone, patches do share pixels
    alone = rasters(by_cell(pairs, cfg))
    assert (alone["train"] & alone["val"]).any()


def by_cell(pairs: list[Pair], cfg: Split) -> list[Pair]:
    folds = [fold(math.floor(p.lon / cfg.cell_degrees), math.floor(p.lat / cfg.cell_degrees), cfg) for p in pairs]
    table = to_table(pairs, Pair)
    at = table.schema.get_field_index("split")
    return from_table(table.set_column(at, table.schema.field("split"), [folds]), Pair)


@given(st.randoms(), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_stable_under_added_data_order_and_chunks(random, seed):
    cfg = Split(seed=seed, cell_degrees=0.1, val=0.3)
    whole = grid(-55.5, -4.6, 8, 8)
    splits = {(p.lon, p.lat): p.split for p in split(whole, cfg)}
    part = random.sample(whole, 20)
    table = to_table(part, Pair)
    table = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    found = assign(table, cfg)
    assert found.schema == schema(Pair)
    assert found.drop_columns("split") == table.drop_columns("split")
    for p in from_table(found, Pair):
        assert p.split == splits[p.lon, p.lat]


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


def test_the_fold_of_a_cell_never_changes():
    """Pinned: another hash would move published training places into validation."""
    cfg = Split(val=0.34, test=0.33, seed=3, cell_degrees=0.5)
    assert "".join(fold(i, j, cfg)[1] for i in range(-112, -104) for j in range(-10, -6)) == (
        "aaareraaereaaaararraearaaaeraare"
    )


def test_pairs_without_a_position_are_split_by_the_name_of_their_place():
    cfg = Split(val=0.3, test=0.2)
    names = [f"scene_{i % 400}" for i in range(800)]
    pairs = to_table([dataclasses.replace(pair(math.nan, math.nan), place=n) for n in names], Pair)
    found = assign_by_name(pairs, cfg)["split"].to_pylist()
    assert found[:400] == found[400:]
    assert found.count("val") / 800 == pytest.approx(0.3, abs=0.07)
    assert found.count("test") / 800 == pytest.approx(0.2, abs=0.07)
    assert "guard" not in found


def test_one_fold_has_no_guard():
    assert {p.split for p in split(grid(-55, -4, 12, 12), Split(val=0, test=0, cell_degrees=0.05))} == {"train"}


def test_default_guard_reaches_the_border_and_no_further():
    cfg = Split(val=0.5, guard_degrees=0.013, cell_degrees=0.5)
    i, j = next((i, j) for i in range(50) for j in range(9) if fold(i, j, cfg) != fold(i + 1, j, cfg))
    lat = j * 0.5 + 0.25
    border, reach = (i + 1) * 0.5, (PATCH_DEGREES / 2 + 0.013) / math.cos(math.radians(lat))
    near, far = split([pair(border - reach + 1e-6, lat), pair(border - reach - 1e-6, lat)], cfg)
    assert (near.split, far.split) == ("guard", fold(i, j, cfg))


def test_what_is_refused():
    class Bad:
        cell_degrees, guard_degrees, val, test, seed = 0.0, 0.0, 0.1, 0.0, 0

    empty = schema(Pair).empty_table()
    with pytest.raises(ConfigError, match=r"cell_degrees 0\.0"):
        assign(empty, Bad())
    Bad.cell_degrees, Bad.val, Bad.test = 0.5, 0.7, 0.7
    with pytest.raises(ConfigError, match=r"0\.7 and split\.test 0\.7"):
        assign(empty, Bad())
    assert assign(empty, Split()) == empty
    lost = [pair(-55, -4), pair(math.nan, -4), pair(-55, math.nan), pair(math.nan, math.nan)]
    with pytest.raises(ConfigError, match="3 of 4 pairs have no position"):
        split(lost, Split())
