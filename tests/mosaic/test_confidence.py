"""The confidence band: what it says comes true on unseen ground, and each pixel goes by its surroundings alone."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from sar2eo_dist import radiometry
from sar2eo_dist.errors import ModelError
from sar2eo_dist.mosaic import confidence
from sar2eo_dist.mosaic.confidence import AXES, NODATA, RADIUS, SHAPE, Fit, Model, features
from sar2eo_dist.sections import Scaling
from sar2eo_dist.sources import synthetic as syn

FIXED = Scaling(sar="fixed", eo="fixed")
WORLD, DATE = syn.World(7), syn.sar_dates(1)[0]


def scene(seed: int, h: int, w: int, holes: float = 0.02) -> tuple[np.ndarray, list[np.ndarray]]:
    """SAR with holes, and an image, of no meaning."""
    rng = np.random.default_rng(seed)
    db = rng.normal([[[-9]], [[-15]]], 4, (2, h, w)).astype(np.float32)
    db[:, rng.random((h, w)) < holes] = np.nan
    return db, [rng.uniform(-1, 1, (3, h, w)).astype(np.float32)]


def any_model(seed: int = 0) -> Model:
    return Model(np.round(np.random.default_rng(seed).uniform(0, 900, SHAPE), 1), 5)


# what it says comes true -----------------------------------------------------------------------------------------------


def ground(row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
    """(dB, truth in [-1, 1]) of 192 x 192 pixels of the synthetic world."""
    window = (row, col, 192, 192)
    db, dn = WORLD.sar(DATE, *window), WORLD.clear(DATE, *window, ("B4", "B3", "B2"))
    valid = radiometry.validity(db)
    db[:, ~valid] = np.nan
    return db, radiometry.scale_eo(dn, valid, FIXED)


def regressors(db: np.ndarray) -> np.ndarray:
    blurred = [cv2.blur(np.nan_to_num(band, nan=-30.0), (5, 5)) for band in db]
    return np.stack([np.ones_like(blurred[0]), *blurred, blurred[1] ** 2])


@pytest.fixture(scope="module")
def drawn() -> tuple[list, list]:
    """(db, [image], truth, valid) of places to fit on and of others far away; the translator is linear in blurred SAR."""
    rng = np.random.default_rng(3)
    places = [ground(*rng.integers(-40_000, 40_000, 2).tolist()) for _ in range(20)]
    x = np.concatenate([regressors(db).reshape(4, -1) for db, _ in places[:12]], axis=1)
    y = np.concatenate([eo.reshape(3, -1) for _, eo in places[:12]], axis=1)
    weights = np.linalg.lstsq(x.T, y.T, rcond=None)[0]
    made = [
        (db, [np.clip(np.tensordot(weights.T, regressors(db), 1), -1, 1).astype(np.float32)], eo, np.isfinite(db[0]))
        for db, eo in places
    ]
    return made[:12], made[12:]


def judged(model: Model, unseen: list) -> tuple[float, float]:
    """(rank correlation with the true error, share of pixels whose error is at most what the band says)."""
    said = np.concatenate([model.predict(db, images)[valid] for db, images, _, valid in unseen])
    true = np.concatenate([np.abs(i[-1] - eo).mean(axis=0)[valid] * 1500 for _, i, eo, valid in unseen])
    return float(spearmanr(said[::3], true[::3])[0]), float((true <= said).mean())


def test_ranks_the_true_error_of_unseen_ground_and_half_of_it_lies_below(drawn):
    seen, unseen = drawn
    fit = Fit()
    for pair in seen:
        fit.add(*pair)
    rank, below = judged(fit.solve(), unseen)
    assert rank >= 0.5
    assert 0.4 <= below <= 0.6
    assert abs(judged(any_model(), unseen)[0]) < 0.2  # the negative control: a table of no meaning


def test_clouds_left_in_the_truth_hardly_move_it(drawn):
    seen, unseen = drawn
    fit = Fit()
    for n, (db, images, eo, valid) in enumerate(seen):
        cloudy = eo.copy()
        if n % 4 == 0:
            cloudy[:, :, :64] = 1.0  # a twelfth of all pixels
        fit.add(db, images, cloudy, valid)
    rank, below = judged(fit.solve(), unseen)
    assert rank >= 0.5
    assert 0.45 <= below <= 0.68


# the table -------------------------------------------------------------------------------------------------------------


def test_a_cell_with_many_pixels_holds_the_median_of_their_errors():
    rng = np.random.default_rng(0)
    db = np.empty((2, 128, 128), np.float32)
    db[0], db[1] = -7.5, -13.5  # dB: the middle of a cell, VV - VH likewise 6
    image = np.full((3, 128, 128), 25.0**2 / 1500 - 1, np.float32)
    wrong = rng.gamma(3, 30, (128, 128)).astype(np.float32)  # DN
    truth = image + np.array([1, -0.5, 1.5], np.float32)[:, None, None] * wrong / 1500
    said = Fit().add(db, [image], truth, np.ones((128, 128), bool)).solve().predict(db, [image])
    assert len(np.unique(said)) == 1
    assert said[64, 64] == pytest.approx(np.median(np.abs(image - truth).mean(axis=0) * 1500), rel=0.04)


def test_one_learned_cell_is_the_best_guess_for_all_others():
    db, images = np.full((2, 64, 64), -12.0, np.float32), [np.zeros((3, 64, 64), np.float32)]
    model = Fit().add(db, images, images[0] + np.float32(0.1), np.ones((64, 64), bool)).solve()
    assert np.ptp(model.table) == 0
    assert model.table[0, 0, 0] == pytest.approx(150, rel=0.1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(4)), st.integers(0, 4))
def test_neither_order_nor_sharing_of_pairs_changes_a_bit(seed, turn, first):
    rng = np.random.default_rng(seed)
    pairs = [(*scene(seed + n, 24, 20), rng.uniform(-1, 1, (3, 24, 20)).astype(np.float32)) for n in range(4)]
    valid = rng.random((4, 24, 20)) < 0.8
    one, left, right = Fit(), Fit(), Fit()
    for n in range(4):
        one.add(*pairs[n], valid[n])
        (left if n < first else right).add(*pairs[turn[n]], valid[turn[n]])
    np.testing.assert_array_equal(right.merge(left).counts, one.counts)  # which is all that `solve` sees
    assert one.counts.sum() == sum((valid[n] & np.isfinite(pairs[n][0][0])).sum() for n in range(4))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_json_and_back_is_the_same_to_the_bit(seed):
    model, (db, images) = any_model(seed), scene(seed, 40, 30)
    again = Model.from_json(model.to_json())
    assert again.table.tobytes() == model.table.tobytes()
    assert again.pixels == model.pixels
    assert again.to_json() == model.to_json()
    np.testing.assert_array_equal(again.predict(db, images), model.predict(db, images))


def test_between_cells_the_table_is_interpolated():
    table = np.broadcast_to(np.arange(100, 100 + 20 * 28, 20.0)[:, None, None], SHAPE)
    root = np.linspace(2, 54, 200, dtype=np.float32)
    image = np.broadcast_to((root**2 / 1500 - 1)[None, None], (3, 1, 200)).astype(np.float32)
    said = Model(table.copy(), 1).predict(np.full((2, 1, 200), -12, np.float32), [image])[0]
    np.testing.assert_allclose(said, np.interp(root, np.arange(28) * 2 + 1, table[:, 0, 0]), atol=20 / 8 + 1)


# a pixel and its surroundings ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 60), st.sampled_from((0.0, 0.1, 0.9)))
def test_windows_with_a_halo_agree_to_the_bit(seed, h, w, holes):
    rng = np.random.default_rng(seed)
    db, (image,) = scene(seed, 290, 80, holes)
    model = any_model(seed)
    whole = model.predict(db, [image])
    top, left = int(rng.integers(0, 290 - h + 1)), int(rng.integers(0, 80 - w + 1))
    rows, cols = slice(max(top - RADIUS, 0), top + h + RADIUS), slice(max(left - RADIUS, 0), left + w + RADIUS)
    part = db[:, rows, cols], [image[:, rows, cols]]
    core = (..., slice(top - rows.start, top - rows.start + h), slice(left - cols.start, left - cols.start + w))
    inside = (..., slice(top, top + h), slice(left, left + w))
    np.testing.assert_array_equal(model.predict(*part)[core], whole[inside])
    np.testing.assert_array_equal(features(*part)[core], features(db, [image])[inside])


def test_what_lies_beyond_the_radius_does_not_count_and_what_lies_within_does():
    db, images = scene(1, 64, 64, 0.0)
    before = features(db, images)
    db[:, 32, 32] = (3.0, -31.0)
    moved = (features(db, images) != before).any(axis=0)
    rows, cols = np.nonzero(moved)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (32 - RADIUS, 32 + RADIUS, 32 - RADIUS, 32 + RADIUS)


def slow(db: np.ndarray, image: np.ndarray, row: int, col: int) -> list[float]:
    """The features of one pixel, as their definition says."""

    def mean(x: np.ndarray, r: int) -> float:
        return float(np.nanmean(x[max(row - r, 0) : row + r + 1, max(col - r, 0) : col + r + 1].astype(np.float64)))

    dn = radiometry.unscale_eo(image[:, row, col], FIXED)
    return [float(np.sqrt(dn.mean())), mean(db[1], 4), mean(db[0] - db[1], 15)]


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_features_are_what_their_names_say(holes):
    db, (image,) = scene(2, 48, 40, holes)
    found = features(db, [image * np.float32(0), image])
    assert found.dtype == np.float32
    assert found.shape == (len(AXES), 48, 40)
    for row, col in [(0, 0), (47, 39), (0, 20), (24, 20), (13, 7)]:
        if np.isfinite(db[0, row, col]):
            np.testing.assert_allclose(found[:, row, col], slow(db, image, row, col), rtol=1e-4, atol=0.006)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_without_data_has_no_error_and_takes_none_of_its_neighbours(value):
    db, images = scene(4, 48, 48, 0.0)
    model = any_model()
    db[1, 20, 20] = value  # one of both channels
    images[0][2, 30, 30] = np.nan
    said, found = model.predict(db, images), features(db, images)
    assert {tuple(p) for p in np.argwhere(said == NODATA).tolist()} == {(20, 20), (30, 30)}
    np.testing.assert_array_equal(np.isnan(found).any(axis=0), said == NODATA)
    db[:, 20, 20] = np.nan
    np.testing.assert_allclose(found[:, 21, 20], slow(db, images[0], 21, 20), atol=0.006)


def test_no_data_at_all_is_no_data():
    db, images = np.full((2, 20, 20), np.nan, np.float32), [np.zeros((3, 20, 20), np.float32)]
    assert (any_model().predict(db, images) == NODATA).all()


def test_what_lies_outside_the_axes_belongs_to_the_outermost_cells():
    table = np.zeros(SHAPE)
    table[0], table[-1] = 100, 200
    model, image = Model(table, 1), np.full((3, 4, 4), 1.0, np.float32)
    for db in (np.float32(-900), np.float32(900)):
        assert (model.predict(np.full((2, 4, 4), db), [image]) > 150).all()
        assert (model.predict(np.full((2, 4, 4), db), [-image]) == 100).all()
    assert model.predict(np.zeros((2, 4, 4), np.float32), [image * 0]).min() == 1  # 0 says no data


# what it refuses -------------------------------------------------------------------------------------------------------


def test_the_scale_is_that_of_radiometry():
    assert (0.0, confidence.DN_FULL) == radiometry.DN_RANGE
    vh = AXES[1]
    assert (vh.first, vh.first + vh.step * vh.cells) == radiometry.RANGES["VH"]
    assert AXES[0].first + AXES[0].step * AXES[0].cells >= np.sqrt(confidence.DN_FULL)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_torn_or_foreign_text_is_refused(data):
    text = any_model().to_json()
    torn = text[: data.draw(st.integers(0, len(text) - 3))]
    with pytest.raises(ModelError, match=r"s3://a/b\.json"):
        Model.from_json(torn, "s3://a/b.json")
    tree = json.loads(text)
    change = data.draw(st.sampled_from(("format", "axes", "table", "pixels", "negative")))
    if change == "axes":
        tree["axes"][0]["step"] = 3.0
    elif change == "negative":
        tree["table"][3][2][1] = -1.0
    else:
        tree[change] = {"format": 2, "table": [[1.0]], "pixels": None}[change]
    with pytest.raises(ModelError):
        Model.from_json(json.dumps(tree))


def test_refuses_what_does_not_fit_together():
    db, images = scene(0, 16, 16, 0.0)
    truth, valid = np.zeros((3, 16, 16), np.float32), np.ones((16, 16), bool)
    with pytest.raises(ModelError, match="images"):
        features(db, [])
    with pytest.raises(ModelError, match=r"\(3, 15, 16\)"):
        features(db, [images[0][:, 1:]])
    with pytest.raises(ModelError, match=r"\(3, 15, 16\)"):
        any_model().predict(db, [images[0][:, 1:]])
    with pytest.raises(ModelError, match="uint8"):
        Fit().add(db, images, truth, valid.astype(np.uint8))
    truth[0, 3, 3] = np.nan
    with pytest.raises(ModelError, match="finite"):
        Fit().add(db, images, truth, valid)
    valid[3, 3] = False
    assert Fit().add(db, images, truth, valid).solve().pixels == 255
    with pytest.raises(ModelError, match="count 0"):
        Fit().add(db, images, truth, valid & False).solve()
