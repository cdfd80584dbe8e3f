"""Halving: the numbers of one cell by hand, of whole levels by a reference in floats, and what does not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.errors import AlignmentError
from sar2eo_dist.mosaic.pyramid import Pixels, downsample


def pixels(
    height: int, width: int, seed: int, dtype: str = "uint16", error: bool = False, share: float = 0.6
) -> Pixels:
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    rgb = rng.integers(0, top, (3, height, width), dtype, endpoint=True)
    valid = rng.random((height, width)) < share
    return Pixels(rgb, valid, rng.integers(0, 65535, (height, width), np.uint16, endpoint=True) if error else None)


def cut(whole: Pixels, block: int) -> list[list[Pixels | None]]:
    height, width = whole.valid.shape
    out: list[list[Pixels | None]] = []
    for top in range(0, height, block):
        out.append([])
        for left in range(0, width, block):
            at = np.s_[top : top + block, left : left + block]
            error = None if whole.error is None else whole.error[at]
            out[-1].append(Pixels(whole.rgb[(slice(None), *at)], whole.valid[at], error))
    return out


def reference(plane: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The mean of the valid pixels of each 2 x 2, rounded half up, by float64: exact for these sizes."""
    rows, cols = ((n + 1) // 2 * 2 for n in plane.shape)
    grown = np.full((rows, cols), np.nan)
    grown[: plane.shape[0], : plane.shape[1]] = np.where(valid, plane, np.nan)
    cells = grown.reshape(rows // 2, 2, cols // 2, 2)
    n = (~np.isnan(cells)).sum((1, 3))
    return np.floor(np.nansum(cells, (1, 3)) / np.maximum(n, 1) + 0.5), n > 0


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 32), width=st.integers(1, 32), block=st.integers(16, 32), dtype=st.sampled_from(["uint8", "uint16"]),
    error=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_halve_like_the_whole(height: int, width: int, block: int, dtype: str, error: bool, seed: int) -> None:
    whole = pixels(height, width, seed, dtype, error)
    small = downsample(cut(whole, block), block, height, width)
    assert small is not None
    assert small.rgb.dtype == np.dtype(dtype)
    for band in range(3):
        mean, valid = reference(whole.rgb[band], whole.valid)
        np.testing.assert_array_equal(small.rgb[band], mean)
        np.testing.assert_array_equal(small.valid, valid)
    assert (small.error is None) == (not error)
    if small.error is not None and whole.error is not None:
        np.testing.assert_array_equal(small.error, reference(whole.error, whole.valid)[0])


def test_a_cell_by_hand() -> None:
    rgb = np.array([[[1, 2], [4, 9]], [[65535, 65535], [65535, 65535]], [[1, 2], [2, 7]]], np.uint16)
    valid = np.array([[True, True], [True, False]])
    small = downsample([[Pixels(rgb, valid)]], 2, 2, 2)
    assert small is not None
    assert small.rgb[:, 0, 0].tolist() == [2, 65535, 2]  # 7 / 3, all white, 5 / 3
    half = downsample([[Pixels(rgb, np.array([[True, True], [False, False]]))]], 2, 2, 2)
    assert half is not None
    assert half.rgb[0, 0, 0] == 2  # 1.5, half up


def test_missing_children_are_no_data() -> None:
    whole = pixels(40, 40, 1, share=1.0)
    children = cut(whole, 25)
    children[0][1] = children[1][0] = None
    small = downsample(children, 25, 40, 40)
    assert small is not None
    there = np.zeros((40, 40), bool)
    there[:25, :25] = there[25:, 25:] = True
    mean, valid = reference(whole.rgb[2], there)
    np.testing.assert_array_equal(small.valid, valid)
    np.testing.assert_array_equal(small.rgb[2], mean)
    assert downsample([[None, None], [None, None]], 25, 40, 40) is None
    assert downsample([], 25, 40, 40) is None


def test_pixels_that_are_not_valid_take_no_part_and_inputs_stay() -> None:
    whole = pixels(20, 20, 2, error=True)
    other = dataclasses.replace(whole, rgb=np.where(whole.valid, whole.rgb, 9999).astype(np.uint16))
    before = other.rgb.copy()
    a, b = (downsample(cut(p, 10), 10, 20, 20) for p in (whole, other))
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.rgb, b.rgb)
    np.testing.assert_array_equal(other.rgb, before)


def test_children_that_do_not_fit_are_refused() -> None:
    whole = pixels(20, 20, 3, error=True)
    good = cut(whole, 10)[0][0]
    assert good is not None
    for bad in (
        Pixels(good.rgb[:, :9], good.valid[:9], None),
        Pixels(good.rgb[:2], good.valid, good.error),
        Pixels(good.rgb.astype(np.uint8), good.valid, good.error),
        Pixels(good.rgb, good.valid, None),
        Pixels(good.rgb, good.valid[:9], good.error),
        Pixels(good.rgb, good.valid, good.rgb[0, :9]),
    ):
        children = cut(whole, 10)
        children[1][1] = bad
        with pytest.raises(AlignmentError, match=r"child \(1, 1\)"):
            downsample(children, 10, 20, 20)
    with pytest.raises(AlignmentError, match=r"child \(0, 2\)"):
        downsample([[good, good, good]], 10, 10, 20)
