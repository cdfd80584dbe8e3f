"""Radiometry against scipy, a literal re-statement of the published script, and its own bounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from sar2eo_dist import radiometry as rm
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.sections import Scaling

SARS, THIRDS = ("minmax", "tanh", "tanh_fixed", "fixed"), ("ratio_stretched", "difference_db", "mean_db")
db_values = st.floats(-60, 30, width=32)


def speckled(seed: int = 0, side: int = 24) -> np.ndarray:
    rng = np.random.default_rng(seed)
    gamma = 10 * np.log10(rng.gamma(4, 0.25, (2, side, side)))
    return (gamma + np.array([-8, -14])[:, None, None]).astype(np.float32)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-327, 327, width=32)))
def test_db_round_trip_within_half_a_count(db):
    assert np.abs(rm.decode_db(rm.encode_db(db)).astype(np.float64) - db).max() <= 0.005 + 2e-5


def test_db_nodata_clipping_and_types():
    db = np.array([np.nan, np.inf, -np.inf, 500, -500, 0.0, -12.346], np.float32)
    counts = rm.encode_db(db)
    assert counts.dtype == np.int16
    assert counts.tolist() == [-32768, -32768, -32768, 32767, -32767, 0, -1235]
    back = rm.decode_db(counts)
    assert back.dtype == np.float32
    assert np.isnan(back[:3]).all()
    # every count survives: encoding is the exact inverse of decoding
    every = np.arange(-32768, 32768).astype(np.int16)
    assert (rm.encode_db(rm.decode_db(every)) == every).all()


def test_validity_leaves_out_nan_and_border_zeros():
    db = speckled()
    db[0, 0, 0], db[1, 0, 1], db[0, 0, 2], db[:, 0, 3] = np.nan, -np.inf, 0.0, 0.0
    invalid = ~rm.validity(db)
    assert {tuple(p) for p in np.argwhere(invalid).tolist()} == {(0, 0), (0, 1), (0, 3)}


@pytest.mark.parametrize("k", [3, 5])
def test_median_equals_scipy(k):
    db = speckled(1)
    want = np.stack([ndimage.median_filter(b, size=k, mode="nearest") for b in db])
    np.testing.assert_array_equal(rm.median_blur(db, k), want)


@pytest.mark.parametrize("k", [3, 5])
def test_median_leaves_holes_out(k):
    db = speckled(2)
    rng = np.random.default_rng(3)
    db[0, rng.random(db.shape[1:]) < 0.1] = np.nan
    db[0, :, :7] = np.nan
    got = rm.median_blur(db, k)
    padded = np.pad(db, ((0, 0), (k // 2,) * 2, (k // 2,) * 2), mode="edge")
    for c, i, j in itertools.product(range(2), *map(range, db.shape[1:])):
        want = np.nanmedian(padded[c, i : i + k, j : j + k]) if np.isfinite(db[c, i, j]) else np.nan
        np.testing.assert_allclose(got[c, i, j], want, rtol=1e-6)


def test_median_of_nothing_off_and_impossible():
    nothing = np.full((2, 5, 5), np.nan, np.float32)
    assert np.isnan(rm.median_blur(nothing, 3)).all()
    db = speckled()
    off = rm.median_blur(db, 0)
    assert off is not db
    np.testing.assert_array_equal(off, db)
    with pytest.raises(ConfigError, match="not 7"):
        rm.median_blur(db, 7)


def test_ratio_stretched_is_the_published_script():
    db = speckled(4)
    vv, vh = ((b - b.min()) / (b.max() - b.min()) * 255 for b in db)
    ratio = np.zeros_like(vv)
    np.divide(vv, vh, out=ratio, where=vh != 0)
    ratio = (ratio - ratio.min()) / (ratio.max() - ratio.min()) * 255
    want = np.uint8(np.stack([vv, vh, ratio]))
    np.testing.assert_array_equal(rm.channels(db, "ratio_stretched"), want)


def test_channels_in_db():
    db = speckled(5)
    np.testing.assert_array_equal(rm.channels(db, "difference_db"), np.stack([*db, db[0] - db[1]]))
    np.testing.assert_allclose(rm.channels(db, "mean_db")[2], db.mean(axis=0), rtol=1e-6)
    db[1, 3, 4] = np.nan
    for third in THIRDS:
        holes = np.isnan(rm.channels(db, third))
        assert holes[:, 3, 4].all()
        assert holes.sum() == 3
    with pytest.raises(ConfigError, match="'sum'"):
        rm.channels(db, "sum")


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 6, 5), elements=st.one_of(db_values, st.just(np.nan), st.just(np.inf), st.just(-10.0))),
    st.sampled_from(SARS),
    st.sampled_from(THIRDS),
    st.sampled_from((0, 3, 5)),
)
def test_scaled_sar_is_finite_and_in_range(db, sar, third, k):
    x = rm.scale_sar(db, Scaling(sar=sar, third=third, median=k))
    assert x.shape == (3, 6, 5)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= 1
    assert (x[:, ~np.isfinite(db).all(axis=0)] == 0).all()


@pytest.mark.parametrize("sar", SARS)
@pytest.mark.parametrize("third", THIRDS)
def test_constant_and_empty_sar(sar, third):
    scaling = Scaling(sar=sar, third=third, median=3)
    flat = rm.scale_sar(np.full((2, 8, 8), -10, np.float32), scaling)
    assert np.isfinite(flat).all()
    assert (flat == flat[:, :1, :1]).all()
    if sar in ("minmax", "tanh"):
        assert (flat == -1).all()
    assert (rm.scale_sar(np.full((2, 8, 8), np.nan, np.float32), scaling) == 0).all()


@pytest.mark.parametrize("third", THIRDS)
@pytest.mark.parametrize("sar", ["fixed", "tanh_fixed"])
def test_fixed_does_not_look_at_the_image(sar, third):
    db = speckled(6)
    scaling = Scaling(sar=sar, third=third, median=0)
    np.testing.assert_array_equal(rm.scale_sar(db, scaling)[:, 5:9, 2:9], rm.scale_sar(db[:, 5:9, 2:9], scaling))


def test_fixed_ranges():
    db = np.array([[[-25.0, 0.0, -12.5, -40.0]], [[-32.0, -5.0, -18.5, -60.0]]], np.float32)
    x = rm.scale_sar(db, Scaling(sar="fixed", third="difference_db", median=0))[:, 0]
    np.testing.assert_allclose(x, [[-1, 1, 0, -1], [-1, 1, 0, -1], [-0.3, -0.5, -0.4, 1]], atol=1e-6)
    x = rm.scale_sar(db, Scaling(sar="fixed", third="mean_db", median=0))[:, 0]
    np.testing.assert_allclose(x[2], [-1, 1, 0, -1], atol=1e-6)
    x = rm.scale_sar(db, Scaling(sar="fixed", third="ratio_stretched", median=0))[:, 0]
    np.testing.assert_allclose(x[2], [-1, 0, 0, -1], atol=1e-5)
    x = rm.scale_sar(db, Scaling(sar="tanh_fixed", third="difference_db", median=0))[:, 0]
    np.testing.assert_allclose(x[0, :3], np.tanh([-2, 2, 0]), atol=1e-6)


def test_datasets_1_and_2_by_hand():
    db = speckled(7)
    x = rm.channels(db, "mean_db").astype(np.float64)
    low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
    want = 2 * (x - low) / (high - low) - 1
    np.testing.assert_allclose(rm.scale_sar(db, Scaling(sar="minmax", third="mean_db", median=0)), want, atol=2e-6)
    centre = np.median(x, axis=(1, 2), keepdims=True)
    t = np.tanh((x - centre) / (1.4826 * np.median(np.abs(x - centre), axis=(1, 2), keepdims=True)))
    low, high = t.min(axis=(1, 2), keepdims=True), t.max(axis=(1, 2), keepdims=True)
    want = 2 * (t - low) / (high - low) - 1
    np.testing.assert_allclose(rm.scale_sar(db, Scaling(sar="tanh", third="mean_db", median=0)), want, atol=2e-5)


def test_blur_comes_before_scaling():
    db = speckled(8)
    once = rm.scale_sar(rm.median_blur(db, 3), Scaling(median=0))
    np.testing.assert_array_equal(rm.scale_sar(db, Scaling(median=3)), once)


def test_eo_fixed_is_inverted_within_its_range():
    dn = np.arange(3 * 64 * 64, dtype=np.uint16).reshape(3, 64, 64)
    valid = np.ones((64, 64), bool)
    valid[0, :5] = False
    x = rm.scale_eo(dn, valid, Scaling(eo="fixed"))
    assert (x[:, ~valid] == 0).all()
    assert np.abs(x).max() <= 1
    back = rm.unscale_eo(x, Scaling(eo="fixed"))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back[:, valid], np.minimum(dn, 3000)[:, valid], atol=5e-4)


def test_eo_minmax_ignores_invalid_pixels_and_has_no_inverse():
    dn = np.random.default_rng(0).integers(200, 900, (3, 8, 8)).astype(np.uint16)
    valid = np.ones((8, 8), bool)
    valid[2] = False
    dn[:, 2] = 65535
    dn[1] = 400
    x = rm.scale_eo(dn, valid, Scaling(eo="minmax"))
    assert x[0, valid].min() == -1
    assert x[0, valid].max() == 1
    assert (x[1, valid] == -1).all()
    assert (x[:, ~valid] == 0).all()
    with pytest.raises(ConfigError, match="'minmax' has no inverse"):
        rm.unscale_eo(x, Scaling(eo="minmax"))


def test_uint8_rounds_and_clips():
    x = np.array([-1.5, -1, -0.999, 0, 0.5, 1, 2, np.nan])
    assert rm.to_uint8(x).tolist() == [0, 0, 0, 128, 191, 255, 255, 0]
    levels = np.arange(256) / 127.5 - 1
    assert rm.to_uint8(levels).tolist() == list(range(256))


def test_wrong_arrays_are_named():
    with pytest.raises(BadInput, match=r"\(3, 4, 4\)"):
        rm.validity(np.zeros((3, 4, 4), np.float32))
    with pytest.raises(BadInput, match="int16"):
        rm.channels(np.zeros((2, 4, 4), np.int16), "mean_db")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="valid mask"):
        rm.scale_eo(np.zeros((3, 4, 4), np.uint16), np.ones((4, 5), bool), Scaling())


def test_display_brightens_by_gamma_and_keeps_black_white_and_order() -> None:
    shown = rm.display(np.arange(256, dtype=np.uint8))
    assert (shown[0], shown[255]) == (0, 255)
    assert (np.diff(shown.astype(int)) >= 0).all()
    np.testing.assert_allclose(shown, 255 * (np.arange(256) / 255) ** (1 / 1.8), atol=0.5)


count_values = st.one_of(st.integers(-3500, 500), st.sampled_from([-1200, -1200, 0, 32767, -32767]))


@settings(max_examples=120, deadline=None)
@given(
    st.one_of(
        hnp.arrays(np.int16, (2, 6, 5), elements=count_values),
        hnp.arrays(np.int16, (2, 6, 5), elements=count_values, fill=st.just(-1013)),
        hnp.arrays(np.int16, (2, 6, 5), elements=st.one_of(count_values, st.just(rm.DB_NODATA))),
    ),
    st.sampled_from(SARS),
    st.sampled_from(THIRDS),
    st.sampled_from((0, 3, 5)),
)
def test_scaled_counts_equal_scaled_db_to_the_bit(counts, sar, third, k):
    scaling = Scaling(sar=sar, third=third, median=k)
    kept, out = counts.copy(), np.full((3, 6, 5), np.nan, np.float32)
    want = rm.scale_sar(rm.decode_db(counts), scaling)
    assert rm.scale_counts(counts, scaling).tobytes() == want.tobytes()
    assert rm.scale_counts(counts, scaling, out) is out
    assert out.tobytes() == want.tobytes()
    np.testing.assert_array_equal(counts, kept)


def test_scaled_counts_of_wrong_arrays_are_refused():
    counts = np.zeros((2, 4, 4), np.int16)
    for wrong in (counts[:1], np.zeros((3, 4, 4), np.int16), counts[0], counts[:, :0]):
        with pytest.raises(BadInput, match="wrong_shape"):
            rm.scale_counts(wrong, Scaling(median=3))
    with pytest.raises(ConfigError, match="not 7"):
        rm.scale_counts(counts, Scaling.model_construct(sar="fixed", third="mean_db", median=7))


def test_scaled_eo_goes_into_what_is_given():
    dn, valid = np.arange(48, dtype=np.uint16).reshape(3, 4, 4), np.arange(16).reshape(4, 4) > 3
    for eo in ("fixed", "minmax"):
        out = np.full((3, 4, 4), np.nan, np.float32)
        assert rm.scale_eo(dn, valid, Scaling(eo=eo), out) is out
        np.testing.assert_array_equal(out, rm.scale_eo(dn, valid, Scaling(eo=eo)))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.float32])
def test_turned_gives_the_eight_symmetries_of_the_square(dtype):
    rng = np.random.default_rng(0)
    for image in (
        rng.integers(0, 2, (3, 6, 6)).astype(dtype),
        rng.integers(0, 200, (2, 9, 9)).astype(dtype)[:, 1:8, 2:6],
    ):
        kept = image.copy()
        for symmetry in range(8):
            want = image.swapaxes(1, 2) if symmetry & 1 else image
            want = np.flip(want, [axis for axis, bit in ((1, 2), (2, 4)) if symmetry & bit])
            got = rm.turned(image, symmetry)
            assert got.dtype == image.dtype
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(image, kept)
