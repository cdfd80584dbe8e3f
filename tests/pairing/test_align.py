from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist.pairing.align import offset, shift
from sar2eo_dist.pairing.split import METRES_PER_DEGREE


@given(st.integers(-40, 40), st.integers(-40, 40), st.floats(-60, 60))
def test_a_scene_point_lands_on_the_pixel_of_the_eo_image(rows, columns, lat):
    """A world of numbered pixels, cut twice: after the shift, equal numbers lie on each other."""
    world = np.arange(200 * 200, dtype=np.float32).reshape(1, 200, 200)
    eo = world[:, 60:92, 60:92]
    sar = world[:, 60 + rows : 92 + rows, 60 + columns : 92 + columns]  # centre: so many pixels down and right
    metre = 1 / METRES_PER_DEGREE
    place = (7.0 + 10 * columns * metre / math.cos(math.radians(lat)), lat - 10 * rows * metre)
    assert offset(place, (7.0, lat)) == (rows, columns)
    moved = shift(sar, rows, columns)
    there = np.isfinite(moved)
    np.testing.assert_array_equal(moved[there], eo[there])
    assert there.sum() == max(0, 32 - abs(rows)) * max(0, 32 - abs(columns))


def test_unknown_positions_are_taken_as_equal():
    assert offset((math.nan, math.nan), (math.nan, math.nan)) == (0, 0)


def test_no_shift_is_the_same_array():
    image = np.zeros((2, 4, 4), np.float32)
    assert shift(image, 0, 0) is image
