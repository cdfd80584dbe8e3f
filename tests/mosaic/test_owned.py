"""Each pixel beside a zone's border belongs to one zone: against rasterio.warp, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform

from sar2eo_dist.mosaic import area
from sar2eo_dist.mosaic.grid import Block, Grid, utm_grid

LATTICE = {"window": 512, "overlap": 0, "block": 2048, "multiple": 16, "halo": 96}


def block_around(grid: Grid, lon: float, lat: float, side: int) -> Block:
    """A block with that place in it. Its key is of no meaning."""
    (x,), (y,) = transform("EPSG:4326", grid.crs, [lon], [lat])
    a, _, c, _, e, f = grid.transform
    left, top = (round(v) - side // 2 for v in ((x - c) / a, (y - f) / e))
    return Block(0, 0, max(0, min(top, grid.height - side)), left, side, side)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 59),
    st.one_of(st.floats(-79.5, 83.5), st.floats(-0.02, 0.02)),
    st.floats(-0.004, 0.004),
    st.sampled_from((24, 57, 200)),
)
def test_each_pixel_beside_a_zones_border_is_owned_by_the_zone_that_it_lies_in(zone, lat, off, side):
    border = 6.0 * zone - 180
    for z in (zone, zone + 1):
        grid = utm_grid(z, lat < 0, 10.0, **LATTICE)
        block = block_around(grid, border + off, lat, side)
        got = area.owned(grid, block)
        assert got.shape == (side, side)
        rows, cols = np.mgrid[:side, :side]
        a, _, c, _, e, f = grid.transform
        x, y = c + a * (block.x + cols.ravel() + 0.5), f + e * (block.y + rows.ravel() + 0.5)
        lon = np.array(transform(grid.crs, "EPSG:4326", x, y)[0]).reshape(side, side)
        sure = np.abs(lon - border) > 3e-8 / np.cos(np.radians(lat))  # 3 mm; the border's chords are 1 mm off at most
        np.testing.assert_array_equal(got[sure], ((lon >= border) == (z == zone + 1))[sure])
        assert sure.mean() > 0.99


@pytest.mark.parametrize("lat", [-60.0, -4.5, -0.01, 0.01, 5.0, 70.0])
@pytest.mark.parametrize("edge", [-60.0, -54.0])
def test_two_zones_share_the_ground_without_gap_or_overlap(lat, edge):
    """Places near a border, to the nearest pixel of either zone: one of the two owns it, but for the pixel on the border."""
    rng = np.random.default_rng(5)
    left, right = (utm_grid(z, lat < 0, 10.0, **LATTICE) for z in (int((edge + 180) // 6), int((edge + 180) // 6) + 1))
    metre = 1 / (111_320 * np.cos(np.radians(lat)))
    flags = []
    for grid in (left, right):
        block = block_around(grid, edge, lat, 400)
        mask = area.owned(grid, block)
        assert 0.2 < mask.mean() < 0.8
        lon = edge + np.concatenate([rng.uniform(-1200, -15, 200), rng.uniform(15, 1200, 200)]) * metre
        x, y = transform("EPSG:4326", grid.crs, lon, np.full(400, lat))
        a, _, c, _, e, f = grid.transform
        row = np.floor((np.array(y) - f) / e).astype(int) - block.y
        col = np.floor((np.array(x) - c) / a).astype(int) - block.x
        flags.append(mask[row, col])
        rng = np.random.default_rng(5)
    assert (flags[0] ^ flags[1]).all()
    assert flags[0][:200].all()


def test_a_grid_without_a_strip_owns_every_pixel():
    grid = utm_grid(21, True, 10.0, owned=False, **LATTICE)
    assert area.owned(grid, Block(0, 0, 10, 20, 3, 5)).tolist() == [[True] * 5] * 3
