"""The warp: GDAL's values in the interior, the same bits in any window, and no more of the source than is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject, transform

from sar2eo_dist.sources import warp
from sar2eo_dist.sources.warp import Grid

H, W = 520, 640
RNG = np.random.default_rng(5)
#: smooth enough that a shift of a thousandth of a pixel is a thousandth of the value
POWER = np.stack([10 ** (-1 + 0.3 * np.sin(np.arange(H)[:, None] / 9 + k) * np.cos(np.arange(W) / 7)) for k in (0, 1)])
DB = (10 * np.log10(POWER)).astype(np.float32)
UTM21 = Grid("EPSG:32721", (10.0, 0.0, 200_000.0, 0.0, -10.0, 9_500_000.0))
SOURCES = {
    "utm": UTM21,
    "degrees": Grid("EPSG:4326", (9e-5, 0.0, -59.7, 0.0, -9e-5, -4.5)),
    "20 m": Grid("EPSG:32720", (20.0, 0.0, 859_994.0, 0.0, -20.0, 9_500_006.0)),
    "south up": Grid("EPSG:32721", (10.0, 0.0, 200_000.0, 0.0, 10.0, 9_494_800.0)),
}


def windows(db: np.ndarray) -> Callable[[int, int, int, int], np.ndarray]:
    def read(row: int, col: int, height: int, width: int) -> np.ndarray:
        assert 0 <= row < row + height <= db.shape[1]
        assert 0 <= col < col + width <= db.shape[2]
        return db[:, row : row + height, col : col + width]

    return read


def target_of(source: Grid) -> tuple[Grid, int, int]:
    """A 10 m grid of zone 20 from far outside, and the pixel of it that is the middle of the source."""
    grid = Grid("EPSG:32720", (10.0, 0.0, 3.3, 0.0, -10.0, 10_000_004.7))
    a, _, c, _, e, f = source.transform
    (x,), (y,) = transform(source.crs, grid.crs, [c + a * W / 2], [f + e * H / 2])
    return grid, round((y - 10_000_004.7) / -10), round((x - 3.3) / 10)


def warped(source: Grid, target: Grid, row: int, col: int, height: int, width: int, db: np.ndarray = DB) -> np.ndarray:
    return warp.read(source, *db.shape[1:], target, row, col, height, width, windows(db))


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_gdals_bilinear_of_linear_power(name: str) -> None:
    source = SOURCES[name]
    target, row, col = target_of(source)
    row, col, n = row - 180, col - 180, 360
    place = Affine(10, 0, 3.3 + 10 * col, 0, -10, 10_000_004.7 - 10 * row)
    expected = np.full((2, n, n), np.nan)
    for k in (0, 1):
        reproject(
            10 ** (DB[k].astype(np.float64) / 10), expected[k], src_transform=Affine(*source.transform),
            src_crs=source.crs, dst_transform=place, dst_crs=target.crs, resampling=Resampling.bilinear, tolerance=0,
            dst_nodata=np.nan,
        )  # fmt: skip
    out = warped(source, target, row, col, n, n)
    inner = np.s_[:, 8:-8, 8:-8]
    assert np.isfinite(out[inner]).mean() > 0.9
    both = np.isfinite(out) & np.isfinite(expected)
    assert both[inner].mean() > 0.9
    np.testing.assert_allclose(10 ** (out[both] / 10), expected[both], rtol=1e-3)


@pytest.fixture(scope="module", params=SOURCES)
def big(request: pytest.FixtureRequest) -> tuple[Grid, Grid, np.ndarray, int, int, np.ndarray]:
    """A source with holes and one large read around all of it."""
    source = SOURCES[request.param]
    db = DB + RNG.normal(0, 3, DB.shape).astype(np.float32)
    db[:, RNG.random((H, W)) < 0.1] = np.nan
    db[0, 40:60, 100:300] = np.nan
    target, row, col = target_of(source)
    row, col = row - 700, col - 800
    return source, target, db, row, col, warped(source, target, row, col, 1400, 1600, db)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_pixel_has_the_same_bits_in_any_window(
    big: tuple[Grid, Grid, np.ndarray, int, int, np.ndarray], data: st.DataObject
) -> None:
    source, target, db, row, col, whole = big
    assert 0.1 < np.isfinite(whole).mean() < 0.9  # all of the source lies within
    y, x = data.draw(st.integers(0, 1399)), data.draw(st.integers(0, 1599))
    h, w = data.draw(st.integers(1, min(1400 - y, 400))), data.draw(st.integers(1, min(1600 - x, 400)))
    part = warped(source, target, row + y, col + x, h, w, db)
    assert part.tobytes() == np.ascontiguousarray(whole[:, y : y + h, x : x + w]).tobytes()


def test_half_of_the_weight_must_be_data() -> None:
    db = np.full((2, 4, 4), -10, np.float32)
    db[:, :, 2:] = np.nan
    source = Grid("EPSG:32721", (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
    for shift, valid in ((0.0, 2), (4.0, 2), (6.0, 1)):  # of the neighbour in the third column: 0, 0.4, 0.6
        target = Grid("EPSG:32721", (10.0, 0.0, shift, 0.0, -10.0, 0.0))
        out = warped(source, target, 0, 0, 4, 4, db)
        assert np.isfinite(out[:, 1]).sum(axis=-1).tolist() == [valid, valid]
        np.testing.assert_allclose(out[np.isfinite(out)], -10, atol=1e-5)
    for band in (0, 1):
        alone = DB[:, :1, :1].copy()
        alone[band] = np.nan
        assert np.isnan(warped(source, source, 0, 0, 1, 1, alone)).all()


def test_power_is_averaged_not_decibels() -> None:
    db = np.zeros((2, 2, 2), np.float32)
    db[:, :, 1] = -20
    out = warped(
        Grid("EPSG:32721", (10.0, 0.0, 0.0, 0.0, -10.0, 0.0)), Grid("EPSG:32721", (10.0, 0.0, 5.0, 0.0, -10.0, 0.0)),
        0, 0, 1, 1, db,
    )  # fmt: skip
    np.testing.assert_allclose(out, 10 * np.log10((1 + 0.01) / 2), rtol=1e-6)


def test_only_what_is_needed_is_asked_for() -> None:
    target, row, col = target_of(UTM21)
    _, _, height, width = warp.needed(UTM21, H, W, target, row, col, 32, 32) or (0, 0, 0, 0)
    assert 32 <= height < 50
    assert 32 <= width < 50
    assert warp.needed(UTM21, H, W, target, row + 2000, col, 32, 32) is None
    assert warp.needed(UTM21, H, W, target, row, col - 100_000, 32, 32) is None
    assert np.isnan(warped(UTM21, target, row + 2000, col, 3, 4)).all()


@given(row=st.integers(-500, 10**6), col=st.integers(-500, 10**6), off=st.floats(-0.4, 0.4))
def test_one_grid_is_a_whole_pixel_offset(row: int, col: int, off: float) -> None:
    target = Grid("EPSG:32721", (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
    source = Grid("EPSG:32721", (10.0, 0.0, 10.0 * (col + off), 0.0, -10.0, -10.0 * row))
    assert warp.offset(source, H, W, target) == ((row, col) if abs(off) < 0.009 else None) or 0.009 <= abs(off) <= 0.011


def test_other_sizes_zones_and_rotations_are_other_grids() -> None:
    a = Grid("EPSG:32721", (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
    assert warp.offset(a, H, W, a) == (0, 0)
    assert warp.offset(a, H, W, Grid("EPSG:32720", a.transform)) is None
    for other in ((20.0, 0.0, 0.0, 0.0, -20.0, 0.0), (10.001, 0.0, 0.0, 0.0, -10.0, 0.0),
                  (10.0, 0.001, 0.0, 0.0, -10.0, 0.0), (10.0, 0.0, 0.0, 0.0, 10.0, 0.0)):  # fmt: skip
        assert warp.offset(Grid(a.crs, other), H, W, a) is None
