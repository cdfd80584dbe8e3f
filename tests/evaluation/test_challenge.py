"""The challenge's score against its definition in plain loops, what leaves it as it is, and what it refuses."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sar2eo_dist.errors import ModelError
from sar2eo_dist.evaluation import challenge

Query = tuple[np.ndarray, np.ndarray]


def stretched(image: np.ndarray, keep: list[tuple[int, int]]) -> list[list[float]]:
    bands = []
    for band in image:
        values = [float(band[y, x]) for y, x in keep]
        low, high = min(values), max(values)
        bands.append([(v - low) / (high - low) if high > low else 0.0 for v in values])
    return bands


def distance(x: np.ndarray, t: np.ndarray, p: int, mask: np.ndarray | None = None) -> float:
    keep = [(y, c) for y in range(x.shape[1]) for c in range(x.shape[2]) if mask is None or mask[y, c]]
    a, b = stretched(x, keep), stretched(t, keep)
    total = [abs(v - w) ** p for one, other in zip(a, b, strict=True) for v, w in zip(one, other, strict=True)]
    return math.fsum(total) / len(total)


def plain(queries: list[Query], p: int, reduce: str) -> float:
    scores = []
    for outputs, truths in queries:
        each = [min(distance(x, t, p) for t in truths) for x in outputs]
        scores.append(sum(each) / (len(each) if reduce == "mean" else 1))
    return sum(scores) / len(scores)


DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64", ">u2", ">f4")


@st.composite
def queries(draw: st.DrawFn, most: int = 4) -> list[Query]:
    found = []
    for _ in range(draw(st.integers(1, most))):
        bands, height, width = (draw(st.integers(1, 4)) for _ in range(3))
        pair = []
        for _ in range(2):
            dtype = np.dtype(draw(st.sampled_from(DTYPES)))
            size = (draw(st.integers(1, 3)), bands, height, width)
            if dtype.kind == "f":
                offset, spread = draw(st.sampled_from([(0, 1), (-3, 9), (1e4, 1e-1), (0, 0), (-2e4, 1e4)]))
                values = draw(hnp.arrays(np.float64, size, elements=st.floats(0, 1)))
                pair.append((offset + spread * values).astype(dtype))
            else:
                pair.append(draw(hnp.arrays(dtype, size)))
        found.append((pair[0], pair[1]))
    return found


@settings(max_examples=150, deadline=None)
@given(queries(), st.sampled_from([1, 2]), st.sampled_from(["sum", "mean"]))
def test_it_is_the_definition_written_out(asked: list[Query], p: int, reduce: str) -> None:
    assert challenge.score(asked, p, reduce) == pytest.approx(plain(asked, p, reduce), rel=1e-12, abs=1e-12)
    assert challenge.score(iter(asked), p, reduce) == challenge.score(asked, p, reduce)


def test_the_two_figures_by_name_and_a_case_by_hand() -> None:
    x = np.array([[[[0, 1], [2, 4]]], [[[5, 5], [5, 5]]]], np.uint8)  # 0 1/4 1/2 1; constant: 0
    t = np.array([[[[9, 9], [9, 109]]], [[[0, 0], [0, 0]]]], np.int16)  # 0 0 0 1; constant: 0
    mean = [[(1 / 4 + 1 / 2) / 4, (1 / 4 + 1 / 2 + 1) / 4], [1 / 4, 0]]
    squares = [[(1 / 16 + 1 / 4) / 4, (1 / 16 + 1 / 4 + 1) / 4], [1 / 4, 0]]
    np.testing.assert_allclose(challenge.distances(x, t, 1), mean, rtol=1e-15)
    np.testing.assert_allclose(challenge.distances(x, t, 2), squares, rtol=1e-15)
    assert challenge.multiearth_mse_sum([(x, t)]) == pytest.approx(5 / 64, rel=1e-15)
    assert challenge.mae_min([(x, t)]) == pytest.approx(3 / 32, rel=1e-15)
    assert challenge.score([(x, t), (x[1:], t[:1])]) == pytest.approx((5 / 64 + 1 / 4) / 2, rel=1e-15)


def test_each_image_looks_for_its_truth_and_no_truth_for_its_image() -> None:
    """Two truths, and images that all are the first of them: by the other order the second truth would cost."""
    rng = np.random.default_rng(0)
    truths = rng.random((2, 3, 8, 8))
    assert challenge.score([(np.repeat(truths[:1], 3, axis=0), truths)]) == 0


@settings(max_examples=50, deadline=None)
@given(queries(), st.randoms(use_true_random=False))
def test_no_order_matters_at_all(asked: list[Query], random: Any) -> None:
    mixed = [(x[random.sample(range(len(x)), len(x))], t[random.sample(range(len(t)), len(t))]) for x, t in asked]
    random.shuffle(mixed)
    for p, reduce in ((1, "mean"), (2, "sum")):
        assert challenge.score(mixed, p, reduce) == challenge.score(asked, p, reduce)


@settings(max_examples=50, deadline=None)
@given(queries(most=1), st.integers(-9, 9), st.integers(0, 8), st.integers(0, 99))
def test_a_bands_own_scale_and_offset_do_not_matter(asked: list[Query], shift: int, double: int, seed: int) -> None:
    ((x, t),) = asked
    x, t = (np.trunc(a.astype(np.float64)) for a in (x, t))  # integers, so that all stays exact
    rng = np.random.default_rng(seed)
    scaled = x * 2.0 ** rng.integers(0, double + 1, x.shape[:2])[..., None, None]
    moved = scaled + np.float64(shift) * rng.integers(0, 9, x.shape[:2])[..., None, None]
    assert challenge.score([(moved, t)]) == pytest.approx(challenge.score([(x, t)]), rel=1e-12, abs=1e-15)


@settings(max_examples=50, deadline=None)
@given(queries(most=1), st.integers(0, 99), st.sampled_from([1, 2]))
def test_one_more_truth_never_raises_the_score(asked: list[Query], seed: int, p: int) -> None:
    ((x, t),) = asked
    more = np.random.default_rng(seed).random((1, *t.shape[1:]))
    assert challenge.score([(x, np.concatenate([t, more]))], p) <= challenge.score([(x, t)], p)
    assert challenge.score([(x, np.concatenate([t, x[:1].astype(np.float64)]))], p) <= len(x) - 1


def test_what_a_mask_hides_never_counts() -> None:
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(2, 3, 6, 5)), rng.integers(0, 9000, (4, 3, 6, 5)).astype(np.float64)
    valid = rng.random((4, 6, 5)) < 0.6
    valid[1], valid[2] = False, True
    for p in (1, 2):
        expected = [[distance(a, b, p, m) if m.any() else np.nan for b, m in zip(t, valid, strict=True)] for a in x]
        np.testing.assert_allclose(challenge.distances(x, t, p, valid), expected, rtol=1e-12)
    dirty = np.where(valid[:, None], t, np.nan)
    np.testing.assert_array_equal(challenge.distances(x, dirty, 2, valid), challenge.distances(x, t, 2, valid))
    hidden = np.where(valid[0], x, np.inf)
    assert np.isfinite(challenge.distances(hidden, t[:1], 2, valid[:1])).all()
    both = challenge.distances(x, t, 2, valid)
    assert challenge.score([(x, t, valid)]) == pytest.approx(np.nanmin(both, axis=1).sum(), rel=1e-15)
    with pytest.raises(ModelError, match="query 1: none of the 1 truths"):
        challenge.score([(x, t, valid), (x, t[1:2], valid[1:2])])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 5e-324), (-1.7e308, 1.7e308), (1e16, 1e16 + 2), (-5e-324, 5e-324), (-1.7e308, 0.0)]
)
@pytest.mark.filterwarnings("error")
def test_ranges_at_the_ends_of_float64(low: float, high: float) -> None:
    middle = low / 2 + high / 2
    band = np.array([[low, high, middle, low]])
    x, t = band[None, None], np.array([[[[0, 2, 0, 0]]]], np.uint8)
    at = 0.5 if low < middle < high else 1.0 if middle == high else 0.0
    assert challenge.score([(x, t)], 1) == pytest.approx(at / 4, rel=1e-15)


def test_whole_numbers_do_not_wrap_around() -> None:
    x, t = np.array([[[[255, 0, 128]]]], np.uint8), np.array([[[[-32768, 32767, 0]]]], np.int16)
    assert challenge.score([(x, t)]) == pytest.approx(plain([(x, t)], 2, "sum"), rel=1e-12)
    big = np.array([[[[0, 2**64 - 1, 2**63]]]], np.uint64)
    assert challenge.score([(big, t)]) == pytest.approx(plain([(big, t)], 2, "sum"), rel=1e-12)


def test_one_query_is_held_at_a_time() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[Query]:
        for n in range(5):
            assert not [r for r in alive if r() is not None], n
            x = np.full((1, 1, 2, 2), n)
            alive.append(weakref.ref(x))
            yield x, np.zeros((1, 1, 2, 2))
            del x

    assert challenge.score(stream()) == 0
    assert len(alive) == 5


OK = np.zeros((1, 3, 4, 4))


def spoilt(value: float, dtype: Any = np.float64) -> np.ndarray:
    image = np.zeros((2, 3, 4, 4), dtype)
    image[1, 2, 3, 0] = value
    return image


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ((spoilt(np.nan), OK), r"query 1: output 1 is not finite in band 2 at pixel \(3, 0\): nan"),
        ((OK, spoilt(-np.inf, np.float32)), r"query 1: truth 1 .* band 2 at pixel \(3, 0\): -inf"),
        ((spoilt(np.inf, np.float16), OK), r"query 1: output 1 .* inf"),
        ((spoilt(np.nan), OK, np.tri(4, dtype=bool)[None]), r"output 1 is not finite in band 2 at pixel \(3, 0\)"),
        ((OK[:0], OK), r"query 1: outputs .* not \(0, 3, 4, 4\)"),
        ((OK, OK[:0]), r"query 1: truths .* not \(0, 3, 4, 4\)"),
        ((OK, OK[:, :2]), r"query 1: outputs \(1, 3, 4, 4\) and truths \(1, 2, 4, 4\)"),
        ((OK, OK[:, :, :3]), "not of the same bands and pixels"),
        ((OK[..., :0], OK[..., :0]), r"\(1, 3, 4, 0\)"),
        ((OK[0], OK), r"not \(3, 4, 4\)"),
        (([OK[0], OK[0, :, :2]], OK), "query 1: outputs are no array"),
        (("pixels", OK), "query 1: outputs must be integers or floating numbers"),
        ((None, OK), "object of NoneType"),
        ((OK > 0, OK), "bool"),
        ((OK + 1j, OK), "complex128"),
        ((np.ma.masked_less(OK, 1), OK), "masked array"),
        ((OK, OK, np.ones((1, 4, 4))), "valid must be bool"),
        ((OK, OK, np.ones((2, 4, 4), bool)), r"valid must be bool \(1, 4, 4\), not bool \(2, 4, 4\)"),
        (OK, "query 1: a query is"),
        (7, "query 1: a query is .* not a int"),
        ((OK, OK, None, None), "not 4 values"),
    ],
)
def test_what_does_not_fit_is_named_with_its_query(query: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        challenge.score([(OK, OK), query, (OK, OK)])


def test_wrong_options_and_no_queries_are_refused() -> None:
    for p in (0, 3, 1.5, "2", None):
        with pytest.raises(ModelError, match="p is 1"):
            challenge.score([], p)  # type: ignore[arg-type]
    for reduce in ("min", "", None, ["sum"]):
        with pytest.raises(ModelError, match="reduce is one of sum, mean"):
            challenge.score([(OK, OK)], 2, reduce)  # type: ignore[arg-type]
    for empty in ([], iter(())):
        with pytest.raises(ModelError, match="no query"):
            challenge.multiearth_mse_sum(empty)
    with pytest.raises(ModelError, match="iterable"):
        challenge.mae_min(3)  # type: ignore[arg-type]


def test_an_error_of_the_stream_itself_is_left_as_it_is() -> None:
    def stream() -> Iterator[Query]:
        yield OK, OK
        raise OSError("torn")

    with pytest.raises(OSError, match="^torn$"):
        challenge.score(stream())
