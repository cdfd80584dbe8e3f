from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.warp import transform

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic.grid import Block, Grid, Window, utm_grid, utm_zone

UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 9_500_000.0)


def grids():
    return st.builds(
        lambda w, h, window, part, block: Grid("EPSG:32721", UTM, w, h, window, int(window * part), block),
        st.integers(1, 60),
        st.integers(1, 60),
        st.integers(4, 40),
        st.floats(0, 0.8),
        st.integers(6, 70),
    )


def every_window(grid: Grid) -> list[Window]:
    return grid.windows_of(Block(0, 0, 0, 0, grid.height, grid.width))


@settings(max_examples=80, deadline=None)
@given(grids())
def test_lattice_covers_every_pixel_and_is_never_snapped(grid):
    seen = np.zeros((grid.height, grid.width), int)
    for w in every_window(grid):
        assert w.row % grid.stride == 0
        assert w.col % grid.stride == 0
        assert w.height == min(grid.window, grid.height - w.row)
        assert w.width == min(grid.window, grid.width - w.col)
        assert w.col == 0 or w.width > grid.overlap
        assert w.row == 0 or w.height > grid.overlap
        seen[w.row : w.row + w.height, w.col : w.col + w.width] += 1
    assert seen.min() >= 1
    last = grid.window_cols[-1]
    assert last == 0 or last < grid.width - grid.overlap
    assert last + grid.stride >= grid.width - grid.overlap


@settings(max_examples=80, deadline=None)
@given(grids())
def test_blocks_partition_the_grid_and_find_their_windows(grid):
    owner = np.zeros((grid.height, grid.width), int)
    windows = every_window(grid)
    assert windows == sorted(windows, key=lambda w: (w.row, w.col))
    blocks = grid.blocks()
    assert len({b.key for b in blocks}) == len(blocks)
    assert [b.key for b in blocks] == sorted(b.key for b in blocks)
    for b in blocks:
        assert (b.y, b.x) == (b.row * grid.block, b.col * grid.block)
        owner[b.y : b.y + b.height, b.x : b.x + b.width] += 1
        assert grid.windows_of(b) == [
            w
            for w in windows
            if w.row < b.y + b.height and w.row + w.height > b.y and w.col < b.x + b.width and w.col + w.width > b.x
        ]
    assert (owner == 1).all()


def test_by_hand():
    grid = Grid("EPSG:32721", UTM, 1000, 700, 512, 256, 512, multiple=16)
    assert list(grid.window_cols) == [0, 256, 512]
    assert list(grid.window_rows) == [0, 256]
    blocks = grid.blocks()
    assert [b.key for b in blocks] == ["r00000c00000", "r00000c00001", "r00001c00000", "r00001c00001"]
    assert blocks[3] == Block(1, 1, 512, 512, 188, 488)
    assert grid.windows_of(blocks[3]) == [Window(256, 256, 444, 512), Window(256, 512, 444, 488)]
    assert Block(3, 12, 0, 0, 1, 1).key == "r00003c00012"


def test_window_larger_than_the_grid():
    grid = Grid("EPSG:32721", UTM, 100, 60, 512, 256, 2048)
    (block,) = grid.blocks()
    assert block == Block(0, 0, 0, 0, 60, 100)
    assert grid.windows_of(block) == [Window(0, 0, 60, 100)]


@pytest.mark.parametrize("transform", [UTM, (8.0, 3.0, 100.0, 2.0, -9.0, 200.0)])
def test_block_transform_is_that_of_its_pixels(transform):
    grid = Grid("EPSG:32721", transform, 1000, 700, 512, 256, 300)
    for b in grid.blocks():
        got = Affine(*grid.block_transform(b)) @ (4, 5)
        assert got == pytest.approx(Affine(*transform) @ (b.x + 4, b.y + 5))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 9, 8, 4, 8), "0 x 9"),
        ((9, 9, 8, 8, 8), "overlap 8 must be at least 0 and less than window 8"),
        ((9, 9, 8, -1, 8), "overlap -1"),
        ((9, 9, 8, 4, 0), "blocks of 0"),
        ((9, 9, 520, 256, 8, 16), "window 520 - overlap 256 = stride 264: .* multiples of 16"),
        ((9, 9, 512, 250, 8, 16), "stride 262"),
    ],
)
def test_what_is_refused(numbers, text):
    with pytest.raises(ConfigError, match=text):
        Grid("EPSG:32721", UTM, *numbers)


def with_halo():
    """Grids whose halo, and then whose statistics lattice, may reach over several blocks, or over the whole grid."""
    return st.builds(
        lambda w, h, window, overlap, block, halo: Grid(
            "EPSG:32721", UTM, w, h, 2 * window, min(overlap, window - 1) * 2, block, 2, 2 * halo
        ),
        st.integers(1, 60),
        st.integers(1, 60),
        st.integers(2, 20),
        st.integers(0, 12),
        st.integers(6, 70),
        st.integers(0, 16),
    )


def pixels(grid: Grid, places) -> np.ndarray:
    """(height, width) True where a place lies; fails where one leaves the grid."""
    seen = np.zeros((grid.height, grid.width), bool)
    for p in places:
        assert p.row >= 0
        assert p.col >= 0
        part = seen[p.row : p.row + p.height, p.col : p.col + p.width]
        assert part.shape == (p.height, p.width)
        part[:] = True
    return seen


@settings(max_examples=100, deadline=None)
@given(with_halo())
def test_reach_is_all_that_the_windows_of_a_block_are_computed_from(grid):
    for b in grid.blocks():
        wanted = pixels(grid, [grid.around(w) for w in grid.windows_of(b)])
        np.testing.assert_array_equal(pixels(grid, [grid.reach(b)]), wanted)


@settings(max_examples=100, deadline=None)
@given(with_halo())
def test_around_is_the_place_grown_by_the_halo(grid):
    for place in [*grid.blocks(), *every_window(grid)]:
        y, x = (place.row, place.col) if isinstance(place, Window) else (place.y, place.x)
        rows, cols = (np.arange(n) for n in (grid.height, grid.width))
        near = [
            (at >= first - grid.halo) & (at < first + size + grid.halo)
            for at, first, size in ((rows, y, place.height), (cols, x, place.width))
        ]
        np.testing.assert_array_equal(pixels(grid, [grid.around(place)]), np.logical_and.outer(*near))


def bracket(first: int, last: int, side: int, count: int) -> list[int]:
    """Brute force: of each pixel, the cells with the nearest centre on either side of it (or at it), where there are any."""
    wanted: set[int] = set()
    for pixel in range(first, last + 1):
        place = [(cell + 0.5) * side - 0.5 - pixel for cell in range(count)]
        below, above = ([c for c, d in enumerate(place) if s * d >= 0] for s in (-1, 1))
        wanted |= set(below[-1:]) | set(above[:1])
    return sorted(wanted)


@settings(max_examples=150, deadline=None)
@given(with_halo(), st.integers(1, 30), st.data())
def test_knots_bracket_every_pixel(grid, half, data):
    lattice = grid.coarse(2 * half)
    window = data.draw(st.sampled_from(every_window(grid)))
    area = grid.around(window)
    knots = lattice.knots(area)
    rows, cols = sorted({b.row for b in knots}), sorted({b.col for b in knots})
    assert [(b.row, b.col) for b in knots] == [(r, c) for r in rows for c in cols]
    assert knots == [lattice.at(b.row, b.col) for b in knots]
    for found, start, size, count in (
        (rows, area.row, area.height, lattice.shape[0]),
        (cols, area.col, area.width, lattice.shape[1]),
    ):
        wanted = bracket(start, start + size - 1, 2 * half, count)
        assert set(wanted) <= set(found)
        assert len(found) <= len(wanted) + 2  # and hardly more: each is 171 KB of statistics to be read
        assert found == list(range(found[0], found[-1] + 1))


def test_coarse_is_a_lattice_of_its_own_on_the_same_pixels():
    grid = Grid("EPSG:32721", UTM, 1000, 700, 512, 256, 512, multiple=16, halo=96, name="a", strip=(-60.0, -54.0))
    lattice = grid.coarse(320)
    assert (lattice.window, lattice.stride, lattice.block) == (320, 320, 320)
    kept = ("crs", "transform", "width", "height", "multiple", "halo", "name", "strip")
    assert [getattr(lattice, k) for k in kept] == [getattr(grid, k) for k in kept]
    for b in lattice.blocks():  # each block is the one window that touches it
        assert lattice.windows_of(b) == [Window(b.y, b.x, b.height, b.width)]
    with pytest.raises(ConfigError, match="window 328 .* multiples of 16"):
        grid.coarse(328)


@pytest.mark.parametrize(("transform", "wanted"), [(UTM, (505_000.0, 9_491_820.0, 506_880.0, 9_494_880.0))])
def test_corners_by_hand(transform, wanted):
    grid = Grid("EPSG:32721", transform, 1000, 1000, 512, 256, 512)
    assert grid.corners(Window(512, 500, 306, 188)) == wanted
    block = grid.at(1, 0)
    assert grid.corners(block) == grid.corners(Window(block.y, block.x, block.height, block.width))


LATTICE = {"window": 512, "overlap": 0, "block": 2048, "multiple": 16, "halo": 96}


@pytest.mark.parametrize("zone", [1, 18, 21, 60])
@pytest.mark.parametrize("south", [False, True])
def test_utm_grids_are_fixed(zone, south):
    grid = utm_grid(zone, south, 10.0, **LATTICE)
    top = 10_000_000.0 if south else 9_400_000.0
    assert grid.crs == f"EPSG:{327 if south else 326}{zone:02d}"
    assert grid.transform == (10.0, 0.0, 100_000.0, 0.0, -10.0, top)
    bottom = 1_100_000 if south else 0
    assert (grid.width, grid.height) == (80_000, (int(top) - bottom) // 10)
    assert grid.strip == (6 * zone - 186, 6 * zone - 180)
    assert grid.name == f"utm{zone:02d}{'s' if south else 'n'}"
    assert utm_zone(grid.crs) == (zone, south)
    whole = utm_grid(zone, south, 10.0, owned=False, **LATTICE)
    assert whole == dataclasses.replace(grid, strip=None)
    east, north = 612_345.0, 5_001_234.0  # a place is in the same block, whatever is asked for and however it is cut
    x, y = int((east - 100_000) / 10), int((top - north) / 10)
    assert grid.at(y // 2048, x // 2048).key == f"r{y // 2048:05d}c{x // 2048:05d}"
    inner = grid.at(y // 2048, x // 2048)
    left, low, right, high = grid.corners(inner)
    assert left <= east < right
    assert low < north <= high


@pytest.mark.parametrize("zone", [19, 20, 21, 22])
def test_utm_grids_hold_their_zone_to_its_borders(zone):
    for south, lats in ((True, np.linspace(-80, 0, 50)), (False, np.linspace(0, 84, 50))):
        grid = utm_grid(zone, south, 10.0, **LATTICE)
        left, bottom, right, top = grid.corners(Window(0, 0, grid.height, grid.width))
        for lon in grid.strip:
            x, y = transform("EPSG:4326", grid.crs, np.full(50, lon), lats)
            assert left < min(x)
            assert max(x) < right
            assert bottom <= min(y) + 1e-6
            assert max(y) <= top + 1e-6


@pytest.mark.parametrize(
    "crs", ["EPSG:32700", "EPSG:32761", "EPSG:3857", "EPSG:4326", "EPSG:326211", "WGS 84", "", "32x21"]
)
def test_what_is_no_utm_zone(crs):
    assert utm_zone(crs) is None


@pytest.mark.parametrize(
    ("crs", "zone"), [("EPSG:32601", (1, False)), ("epsg:32660", (60, False)), ("32721", (21, True))]
)
def test_utm_zone_of_a_code(crs, zone):
    assert utm_zone(crs) == zone


@pytest.mark.parametrize("zone", [0, 61, -1])
def test_no_such_zone(zone):
    with pytest.raises(ConfigError, match=f"UTM zone {zone} "):
        utm_grid(zone, False, 10.0, **LATTICE)


@pytest.mark.parametrize(
    ("lattice", "text"),
    [
        ({"halo": 90}, "halo 90 must be a multiple of 16"),
        ({"halo": -16}, "halo -16 must be"),
        ({"multiple": 0}, "multiple 0"),
        ({"window": 500}, "window 500 - overlap 0 = stride 500: .* multiples of 16"),
    ],
)
def test_what_a_lattice_of_networks_refuses(lattice, text):
    with pytest.raises(ConfigError, match=text):
        utm_grid(21, True, 10.0, **LATTICE | lattice)
