"""The synthetic world: pure functions of position, plausible numbers, and the truth that goes with them."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca import profile
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.sections import CCA, Synthetic
from sar2eo_dist.sources import synthetic as syn
from sar2eo_dist.sources import synthetic_noise as sn
from sar2eo_dist.sources import synthetic_sky as sky
from sar2eo_dist.sources.synthetic import Cover, World
from sar2eo_dist.sources.synthetic_write import places

WORLD = World(7)
SAR_DATE, EO_DATE = syn.sar_dates(1)[0], syn.eo_dates(7, 1)[0]
sizes = st.integers(1, 40)
margins = st.integers(0, 21)


# a window is the crop of a larger one ---------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    row=st.integers(-2_000_000, 2_000_000), col=st.integers(-2_000_000, 2_000_000), h=sizes, w=sizes,
    top=margins, left=margins, more=margins, day=st.integers(0, 600),
)  # fmt: skip
def test_any_window_is_the_crop_of_a_larger_one(
    row: int, col: int, h: int, w: int, top: int, left: int, more: int, day: int
) -> None:
    date = syn.FIRST_SAR + dt.timedelta(days=day)
    small, large = (row, col, h, w), (row - top, col - left, top + h + more, left + w + more)

    def crop(a: np.ndarray) -> np.ndarray:
        return a[..., top : top + h, left : left + w]

    bands = ("B4", "B3", "B2", "B1", "B8")
    ground, whole = WORLD.ground(*small), WORLD.ground(*large)
    for field in ground.__slots__:
        np.testing.assert_array_equal(getattr(ground, field), crop(getattr(whole, field)))
    np.testing.assert_array_equal(WORLD.sar(date, *small), crop(WORLD.sar(date, *large)))
    np.testing.assert_array_equal(WORLD.clear(date, *small, bands), crop(WORLD.clear(date, *large, bands)))
    view, full = WORLD.eo(date, *small, bands), WORLD.eo(date, *large, bands)
    for field in ("bands", "qa60", "cloud", "valid"):
        np.testing.assert_array_equal(getattr(view, field), crop(getattr(full, field)))
    clouds = [sky.view(7, date, *window) for window in (small, large)]
    for field in clouds[0].__slots__:
        np.testing.assert_array_equal(getattr(clouds[0], field), crop(getattr(clouds[1], field)))


def test_the_tiles_of_a_window_make_the_window() -> None:
    """Across vector widths and strides: a large window against tiles of awkward sizes, where the weather is mixed."""
    row, col, n = 30, 380, 200
    full, sar = WORLD.eo(EO_DATE, row, col, n, n), WORLD.sar(SAR_DATE, row, col, n, n)
    for r in range(0, n, 67):
        for c in range(0, n, 71):
            h, w = min(67, n - r), min(71, n - c)
            tile = WORLD.eo(EO_DATE, row + r, col + c, h, w)
            np.testing.assert_array_equal(tile.bands, full.bands[:, r : r + h, c : c + w])
            np.testing.assert_array_equal(WORLD.sar(SAR_DATE, row + r, col + c, h, w), sar[:, r : r + h, c : c + w])


def test_the_same_seed_is_the_same_world_and_another_is_another() -> None:
    syn._ground.cache_clear()
    first = WORLD.sar(SAR_DATE, 5, 5, 32, 32)
    syn._ground.cache_clear()
    np.testing.assert_array_equal(first, World(7).sar(SAR_DATE, 5, 5, 32, 32))
    assert not np.array_equal(first, World(8).sar(SAR_DATE, 5, 5, 32, 32))
    assert not np.array_equal(first, WORLD.sar(syn.sar_dates(2)[1], 5, 5, 32, 32))  # speckle is of its date


def test_hashes_do_not_depend_on_platform_or_version() -> None:
    assert sn.key("world", 7) == 4234981762
    golden = [[2089321934, 3914095327], [1492470133, 3664091541]]
    assert sn.lattice(1, np.array([-1, 0]), np.array([0, 1 << 20])).tolist() == golden


# noise ----------------------------------------------------------------------------------------------------------------


def test_speckle_is_gamma_of_its_looks() -> None:
    axis = np.arange(600)
    vv, vh = (10 ** (s.astype(np.float64) / 10) for s in sn.speckle(3, axis, axis))
    for s in (vv, vh):
        assert s.mean() == pytest.approx(1, abs=0.01)
        assert s.mean() ** 2 / s.var() == pytest.approx(sn.LOOKS, rel=0.03)
        skew = ((s - s.mean()) ** 3).mean() / s.std() ** 3
        assert skew == pytest.approx(2 / math.sqrt(sn.LOOKS), rel=0.08)
        z = (s - s.mean()) / s.std()
        assert (z[:, 1:] * z[:, :-1]).mean() == pytest.approx(2 / 3, abs=0.03)
        assert (z[2:] * z[:-2]).mean() == pytest.approx(1 / 3, abs=0.03)
        assert abs((z[:, 4:] * z[:, :-4]).mean()) < 0.03
    assert abs(np.corrcoef(vv.ravel(), vh.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("scale", [2, 13, (5, 40)])
def test_noise_is_about_standard_normal(scale: int | tuple[int, int]) -> None:
    x = sn.noise(9, np.arange(-2000, 2000, 7), np.arange(0, 4000, 9), scale)
    assert abs(x.mean()) < 0.05
    assert x.std() == pytest.approx(1, abs=0.05)
    share = sn.rank(x)
    assert [float(np.mean(share < q)) for q in (0.1, 0.5, 0.9)] == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


# frame and calendar ---------------------------------------------------------------------------------------------------


def test_pixels_lie_where_their_transform_says() -> None:
    from rasterio.transform import Affine
    from rasterio.warp import transform

    for lon, lat in ((-55.2, -4.4), (-54.96, -4.58)):
        row, col, h, w = syn.patch_window(lon, lat)
        x, y = Affine(*syn.transform(row, col)) @ (w / 2, h / 2)
        xs, ys = transform("EPSG:4326", syn.CRS, [lon], [lat])
        assert abs(x - xs[0]) <= syn.GSD
        assert abs(y - ys[0]) <= syn.GSD
    north, south = syn.to_pixel(-55.2, -4.40), syn.to_pixel(-55.2, -4.42)
    assert south[0] - north[0] in (221, 222)  # 0.02 degrees: patches of 256 overlap


def test_calendar() -> None:
    sar, eo = syn.sar_dates(49), syn.eo_dates(7, 49)
    assert {(b - a).days for a, b in itertools.pairwise(sar)} == {12}
    assert eo == sorted(set(eo))
    assert max(abs((a - b).days) for a, b in zip(sar, eo, strict=True)) <= 4
    assert {sar[0].year, sar[-1].year} == {2019, 2020}
    assert [syn.orbit(d) for d in sar[:3]] == ["descending", "ascending", "descending"]
    assert sky.wetness(dt.date(2020, 3, 15)) > 0.95
    assert sky.wetness(dt.date(2020, 9, 15)) < 0.05


# radiometry -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def region() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cover, mean SAR in dB of intensity, clear EO) of 768 x 768 pixels of river, forest, savanna and farmland."""
    window = (-128, 2954, 768, 768)
    cover = WORLD.ground(*window).cover
    sar = np.stack([WORLD.sar(d, *window) for d in syn.sar_dates(2)])
    sar[sar == 0] = np.nan
    return cover, sar, WORLD.clear(EO_DATE, *window)


@pytest.mark.parametrize(
    ("cover", "vv", "vh"),
    [
        (Cover.FOREST, -7.5, -13), (Cover.SEDIMENT, -19.5, -26.5), (Cover.PASTURE, -10.7, -17.6),
        (Cover.SAVANNA, -10.3, -16.5),
    ],
)  # fmt: skip
def test_classes_have_their_backscatter(
    region: tuple[np.ndarray, np.ndarray, np.ndarray], cover: Cover, vv: float, vh: float
) -> None:
    here = region[0] == cover
    assert here.sum() > 3000
    intensity = 10 ** (region[1][:, :, here].astype(np.float64) / 10)
    assert 10 * np.log10(np.nanmean(intensity, axis=(0, 2))) == pytest.approx([vv, vh], abs=1.3)


def test_clear_reflectances_are_plausible(region: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    cover, _, eo = region
    red, green, blue = (np.median(eo[n][cover == Cover.FOREST]) for n in range(3))
    assert 200 <= red <= 400
    assert 350 <= green <= 550
    assert 200 <= blue <= 350
    pasture = [np.median(b[cover == Cover.PASTURE]) for b in eo]
    soil = [np.median(b[cover == Cover.SOIL]) for b in eo]
    water = [np.median(b[cover == Cover.SEDIMENT]) for b in eo]
    assert pasture[0] > 1.7 * red
    assert soil[0] > soil[1] > soil[2]
    assert 500 < water[2] < water[0] < 1200
    assert eo.min() >= 1
    assert eo.max() < 4096  # no town here


def test_sar_tells_about_the_ground(region: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """A quadratic of 8 x 8 means of VV and VH explains much of the red: a network has something to learn."""
    _, sar, eo = region

    def means(x: np.ndarray) -> np.ndarray:
        return np.nanmean(x.reshape(-1, 96, 8, 96, 8), axis=(2, 4)).reshape(x.shape[0], -1)

    features = means(sar.mean(axis=0))
    good = np.isfinite(features).all(axis=0)
    vv, vh = features[:, good]
    design = np.stack([np.ones_like(vv), vv, vh, vv**2, vh**2, vv * vh])
    red = means(eo[:1].astype(float))[0, good]
    fit = np.linalg.lstsq(design.T, red, rcond=None)[0] @ design
    assert 1 - ((red - fit) ** 2).mean() / red.var() > 0.6


def test_towns_are_bright_in_both_sensors() -> None:
    window = (1300, 1720, 100, 100)
    cover = WORLD.ground(*window).cover
    town = np.isin(cover, (Cover.TOWN, Cover.ROOF))
    assert town.sum() > 300
    assert np.median(WORLD.sar(SAR_DATE, *window)[0][town]) > -5
    assert WORLD.clear(EO_DATE, *window)[:, cover == Cover.ROOF].max() > 4096


def test_orbits_see_slopes_from_opposite_sides() -> None:
    window = (3000, 0, 300, 300)
    down, up = (WORLD.sar(d, *window) for d in syn.sar_dates(2))
    slope = WORLD.ground(*window).slope
    assert np.corrcoef((up - down)[0].ravel(), slope.ravel())[0, 1] > 0.1


def test_bands_on_request() -> None:
    window = (0, 0, 20, 20)
    one, eight = WORLD.eo(EO_DATE, *window, bands=("B1", "B8")).bands
    assert np.median(one) < 400 < np.median(eight)
    np.testing.assert_array_equal(WORLD.clear(EO_DATE, *window, ["B2"])[0], WORLD.clear(EO_DATE, *window)[2])
    with pytest.raises(ConfigError, match="B99"):
        WORLD.eo(EO_DATE, *window, bands=("B99",))


# sky ------------------------------------------------------------------------------------------------------------------


def test_shadows_lie_beside_their_clouds() -> None:
    for n in range(40):  # the first patch with scattered cloud
        window = (n * 300, 0, 200, 200)
        view = sky.view(7, EO_DATE, *window)
        if 0.05 < view.cloud.mean() < 0.5 and view.light.min() > 0.99 and view.haze.max() < 0.1:
            break
    shaded = (view.shadow > 0.8) & (view.thick < 0.01) & (view.thin < 0.01)
    lit = (view.shadow < 0.01) & (view.thick < 0.01) & (view.thin < 0.01)
    ratio = WORLD.eo(EO_DATE, *window).bands / WORLD.clear(EO_DATE, *window).astype(float)
    assert shaded.sum() > 50
    assert np.median(ratio[:, shaded]) < 0.7
    assert np.median(ratio[:, lit]) == pytest.approx(1, abs=0.02)
    assert np.median(WORLD.eo(EO_DATE, *window).bands[:, view.thick > 0.9]) > 1500


def test_swath_gaps_hold_zeros_in_every_band() -> None:
    axis = np.arange(0, 6000)
    for d in syn.sar_dates(12):
        gap = syn.sar_gap(7, d, axis[::8], axis[::8])
        if gap.any():
            break
    row, col = (int(8 * i) for i in np.argwhere(gap)[0])
    sar, missing = WORLD.sar(d, row, col, 64, 64), syn.sar_gap(7, d, axis[row : row + 64], axis[col : col + 64])
    assert 0 < missing.sum() < missing.size
    np.testing.assert_array_equal(sar == 0, np.stack([missing] * 2))


def test_qa60_is_made_of_60_m_blocks() -> None:
    view = sky.view(7, EO_DATE, -6 * 900, 6 * 40, 6 * 90, 6 * 90)
    blocks = view.qa60.reshape(90, 6, 90, 6)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert set(np.unique(view.qa60)) <= {0, sky.OPAQUE, sky.CIRRUS}


def test_coverage_estimates_the_cloud_of_a_window() -> None:
    for n in range(6):
        window = (n * 500, -700, 256, 256)
        cloud, thick = sky.coverage(7, EO_DATE, *window)
        assert cloud == pytest.approx(_covered(sky.view(7, EO_DATE, *window)), abs=0.12)
        assert 0 <= thick <= 1


def _covered(view: sky.Sky) -> float:
    return float(np.mean((view.thick > sky.THICK) | (view.thin > sky.THIN)))


@pytest.fixture(scope="module")
def corpus() -> list[tuple[syn.EOView, profile.Measurements]]:
    """A quarter of the demo's places at all of its dates, as the collector judges them."""
    cfg, cca = Synthetic(), CCA()
    views = [WORLD.eo(d, *syn.patch_window(*p)) for p in places(cfg)[1::4] for d in syn.eo_dates(7, cfg.dates)]
    return [(v, profile.assess(v.bands, v.qa60, cca)) for v in views]


def test_weather_is_mixed_and_the_published_profile_keeps_a_good_share(
    corpus: list[tuple[syn.EOView, profile.Measurements]],
) -> None:
    share = {k: n / len(corpus) for k, n in Counter(v.label for v, _ in corpus).items()}
    assert set(share) <= set(syn.LABELS)
    assert 0.33 < share["clear"] < 0.60
    assert all(share.get(k, 0) > 0 for k in ("small_cloud", "cloudy", "overcast", "thin", "night"))
    kept = [v for v, m in corpus if not m.reason]
    assert 0.35 < len(kept) / len(corpus) < 0.75
    clear = sum(v.label == "clear" for v in kept)
    assert 0.5 < clear / len(kept) < 0.9  # some cloud is left for the third stage
    assert sum(v.cloud_fraction > 0.3 for v in kept) >= 3
    reasons = {m.reason for _, m in corpus}
    assert {"", "alpha", "qa60", "brightness", "dark"} <= reasons


def test_qa60_misses_most_cloud_and_flags_nothing_clear(
    corpus: list[tuple[syn.EOView, profile.Measurements]],
) -> None:
    cloudy = [bool(v.qa60.any()) for v, _ in corpus if v.cloud_fraction > 0.05]
    assert 0.02 < np.mean(cloudy) < 0.4
    assert not any(v.qa60.any() for v, _ in corpus if v.label == "clear")


def test_truth_goes_with_the_image(corpus: list[tuple[syn.EOView, profile.Measurements]]) -> None:
    for view, measured in corpus:
        assert view.cloud_fraction == pytest.approx(view.cloud.sum() / max(1, view.valid.sum()))
        assert (measured.valid_fraction == 1) == bool(view.valid.all())
        assert (view.label == "swath_edge") == (view.valid.mean() < 0.995)
        if view.label == "clear":
            assert view.cloud_fraction <= 0.002
        if view.label == "overcast":
            assert view.cloud_fraction > 0.95
