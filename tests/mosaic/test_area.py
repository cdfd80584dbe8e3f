"""Areas, zones and blocks against points that rasterio.warp carries over one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform
from shapely.geometry import mapping

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic import area
from sar2eo_dist.mosaic.grid import Block, Grid, Window, utm_grid

URI = "s3://bucket/where.geojson"
LATTICE = {"window": 512, "overlap": 0, "block": 2048, "multiple": 16, "halo": 96}
SQUARE = shapely.box(-56, -5, -55, -4)
#: concave, with a hole, over the border of zones 21 and 22 and the equator
COVE = shapely.Polygon(
    [(-56.0, -2.0), (-52.0, -2.5), (-52.5, 1.5), (-53.5, -0.5), (-55.5, 1.0)],
    [[(-54.4, -1.5), (-53.2, -1.4), (-53.4, -0.9), (-54.5, -1.0)]],
)
seeds = st.integers(0, 2**31)


def feature(geometry) -> dict:
    return {"type": "Feature", "properties": None, "geometry": mapping(geometry)}


def parse(tree) -> shapely.Geometry:
    return area.parse(json.dumps(tree).encode(), URI)


HALVES = [feature(shapely.box(west, -5, west + 0.6, -4)) for west in (-56, -55.6)]


@pytest.mark.parametrize(
    "tree",
    [
        mapping(SQUARE),
        feature(SQUARE),
        mapping(shapely.MultiPolygon([SQUARE])),
        {"type": "FeatureCollection", "features": [feature(SQUARE)]},
        {"type": "FeatureCollection", "features": [feature(SQUARE), feature(shapely.Point(50, 50)), feature(SQUARE)]},
        {"type": "FeatureCollection", "features": HALVES},
    ],
    ids=["geometry", "feature", "multipolygon", "collection", "with a point, and twice", "halves that overlap"],
)
def test_every_kind_of_geojson(tree):
    found = parse(tree)
    assert shapely.equals(found, SQUARE)


def test_holes_stay_and_a_bow_tie_is_two_triangles():
    assert parse(mapping(COVE)).equals(COVE)
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert parse(mapping(bow)).area == pytest.approx(2)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "no GeoJSON"),
        (b"\xff\xfe", "no GeoJSON"),
        (b"", "no GeoJSON"),
        (b"[1, 2]", "no GeoJSON"),
        (b"null", "no GeoJSON"),
        (b'{"type": "Polygon"}', "no GeoJSON"),
        (b'{"type": "Feature", "geometry": null}', "no GeoJSON"),
        (b'{"type": "FeatureCollection", "features": [7]}', "no GeoJSON"),
        (b'{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "no GeoJSON"),
        (b'{"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 0], ["a", 0]]]}', "no GeoJSON"),
        (b'{"type": "FeatureCollection", "features": []}', "this holds nothing"),
        (b'{"type": "Point", "coordinates": [1, 2]}', "this holds Point"),
        (b'{"type": "LineString", "coordinates": [[1, 2], [3, 4]]}', "this holds LineString"),
        (b'{"type": "Polygon", "coordinates": []}', "this holds Polygon"),
    ],
)
def test_what_is_no_area_is_refused_by_name(data, text):
    with pytest.raises(ConfigError, match=text) as e:
        area.parse(data, URI)
    assert URI in str(e.value)


def test_coordinates_in_metres_are_refused_with_the_numbers():
    for bad in (
        shapely.box(500_000, 9_400_000, 600_000, 9_500_000),
        shapely.box(-181, 0, 0, 1),
        shapely.box(0, 0, 1, 91),
    ):
        west, _, _, north = bad.bounds
        with pytest.raises(ConfigError, match=f"spans {west:g}") as e:
            parse(mapping(bad))
        assert URI in str(e.value)
        assert f"{north:g}" in str(e.value)


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ((-56, -5, -55, -4), [(21, True)]),
        ((-56, 4, -55, 5), [(21, False)]),
        ((-56, -5, -55, 5), [(21, False), (21, True)]),
        ((-60, -5, -54, 0), [(21, True)]),  # to the borders, but not over them
        ((-60.001, -5, -53.999, 0.001), [(20, False), (20, True), (21, False), (21, True), (22, False), (22, True)]),
        ((-180, -1, -174, 0), [(1, True)]),
        ((174, -1, 180, 0), [(60, True)]),
        ((-180, 10, 180, 11), [(zone, False) for zone in range(1, 61)]),
        ((-56, 85, -55, 86), []),  # beyond UTM
    ],
)
def test_zones_by_hand(box, wanted):
    assert area.zones(shapely.box(*box)) == wanted


@settings(max_examples=40, deadline=None)
@given(st.floats(-179, 170), st.floats(-79, 75), st.floats(0.01, 30), seeds)
def test_every_point_of_an_area_is_owned_by_one_of_its_zones(west, south, size, seed):
    place = shapely.box(west, south, min(180, west + size), min(83, south + size))
    found = area.zones(place)
    rng = np.random.default_rng(seed)
    points = rng.uniform(place.bounds[:2], place.bounds[2:], (200, 2))
    assert {(int((lon + 180) // 6) + 1, bool(lat < 0)) for lon, lat in points} <= set(found)
    for zone, is_south in found:  # and no zone is there for nothing
        box = shapely.box(6 * zone - 186, -80 if is_south else 0, 6 * zone - 180, 0 if is_south else 84)
        assert box.intersection(place).area > 0


@pytest.mark.parametrize(("zone", "south"), [(21, True), (22, True), (21, False), (22, False)])
def test_a_block_with_a_point_of_the_area_is_planned_and_hardly_any_other(zone, south):
    grid = utm_grid(zone, south, 10.0, **LATTICE)
    planned = area.blocks_in(grid, area.projected(COVE, grid))
    assert planned.shape == grid.shape
    rng = np.random.default_rng(zone + south)
    lon, lat = rng.uniform(COVE.bounds[:2], COVE.bounds[2:], (60_000, 2)).T
    west, east = grid.strip
    own = shapely.contains_xy(COVE, lon, lat) & (lon >= west) & (lon < east) & ((lat < 0) == south)
    x, y = (np.array(v) for v in transform("EPSG:4326", grid.crs, lon[own], lat[own]))
    a, _, c, _, e, f = grid.transform
    holding = np.zeros_like(planned)
    holding[((y - f) / e / grid.block).astype(int), ((x - c) / a / grid.block).astype(int)] = True
    assert holding.sum() > 20  # the sample is dense: about 60 points a block
    assert not (holding & ~planned).any()
    near = np.pad(holding, 1)  # a planned block holds a point, or lies beside one that does
    near = np.any([np.roll(near, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)[1:-1, 1:-1]
    assert not (planned & ~near).any()
    assert planned.sum() < 1.5 * holding.sum()


def test_a_grid_that_owns_all_takes_the_area_as_it_is_carried_over():
    grid = utm_grid(21, True, 10.0, owned=False, **LATTICE)
    assert area.projected(None, grid) is None
    assert area.blocks_in(grid, None).all()
    found = area.projected(SQUARE, grid)
    x, y = transform("EPSG:4326", grid.crs, [-56, -55, -55, -56], [-5, -5, -4, -4])
    assert shapely.hausdorff_distance(found, shapely.Polygon(zip(x, y, strict=True))) < 120  # a parallel's sagitta
    corners = set(map(tuple, np.round(shapely.get_coordinates(found), 3)))
    assert set(zip(np.round(x, 3), np.round(y, 3), strict=True)) <= corners
    everything = area.projected(None, utm_grid(21, True, 10.0, **LATTICE))  # of a zone: its strip
    left, bottom, right, top = everything.bounds
    assert (left, right) == pytest.approx((166_021, 833_979), abs=2)  # the equator, where the strip is widest
    assert top == pytest.approx(10_000_000, abs=1)
    assert bottom < 1_120_000


def test_an_area_outside_plans_nothing():
    grid = utm_grid(21, True, 10.0, **LATTICE)
    for elsewhere in (shapely.box(-50, -5, -49, -4), shapely.box(-56, 4, -55, 5), shapely.box(120, -5, 121, -4)):
        assert not area.blocks_in(grid, area.projected(elsewhere, grid)).any()
    small = Grid("EPSG:32721", (10.0, 0.0, 600_000.0, 0.0, -10.0, 9_500_000.0), 3000, 3000, 512, 0, 512)
    for box in ((0, 0, 9, 9), (599_000, 9_480_000, 599_999, 9_490_000), (600_001, 9_500_001, 600_009, 9_500_009)):
        assert not area.blocks_in(small, shapely.box(*box)).any()
    assert not area.blocks_in(small, shapely.box(594_000, 9_490_000, 600_000, 9_491_000)).any()  # an edge is no area
    assert area.blocks_in(small, shapely.box(0, 0, 10**6, 10**7)).all()


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(3, 70), st.booleans())
def test_blocks_in_against_each_box(seed, block, hole):
    rng = np.random.default_rng(seed)
    grid = Grid("EPSG:32721", (10.0, 0.0, 1000.0, 0.0, -20.0, 5000.0), 150, 90, 16, 0, block)
    shell = shapely.convex_hull(shapely.MultiPoint(rng.uniform((500, 2500), (3000, 5500), (5, 2))))
    place = shell.difference(shell.centroid.buffer(150)) if hole else shell
    found = area.blocks_in(grid, place)
    for b in grid.blocks():
        assert found[b.row, b.col] == (shapely.box(*grid.corners(b)).intersection(place).area > 0), b


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 12), st.booleans())
def test_touching_against_each_pair(seed, count, blocks):
    rng = np.random.default_rng(seed)
    grid = Grid("EPSG:32721", (10.0, 0.0, 1000.0, 0.0, -10.0, 5000.0), 150, 90, 16, 4, 40, halo=8)
    places: list[Block | Window] = list(grid.blocks())
    if not blocks:
        places = [grid.around(b) for b in grid.blocks()]
    footprints = [
        shapely.convex_hull(shapely.MultiPoint(rng.uniform((900, 4000), (2600, 5100), (3, 2)))) for _ in range(count)
    ]
    footprints += [shapely.box(*grid.corners(grid.at(0, 1)))]  # edges in common
    starts, found = area.touching(grid, places, np.array(footprints, object))
    assert len(starts) == len(places) + 1
    assert (starts[0], starts[-1]) == (0, len(found))
    for k, place in enumerate(places):
        box = shapely.box(*grid.corners(place))
        assert found[starts[k] : starts[k + 1]].tolist() == [n for n, p in enumerate(footprints) if p.intersects(box)]


def test_touching_of_nothing():
    grid = Grid("EPSG:32721", (10.0, 0.0, 1000.0, 0.0, -10.0, 5000.0), 150, 90, 16, 4, 40)
    starts, found = area.touching(grid, grid.blocks(), np.array([], object))
    assert starts.tolist() == [0] * (len(grid.blocks()) + 1)
    assert not len(found)


@pytest.mark.parametrize("box", [(-180, -85, 180, 85), (-150, -30, 20, 20), (33, -5, 34, -4), (30, -40, 40, 0)])
def test_an_area_far_wider_than_the_zone_or_a_quarter_of_the_globe_away(box):
    """Transverse Mercator breaks down 90 degrees from its meridian: only what lies near the grid may be carried over."""
    grid, place = utm_grid(21, True, 10.0, owned=False, **LATTICE), shapely.box(*box)
    planned = area.blocks_in(grid, area.projected(place, grid))
    lon, lat = (v.ravel() for v in np.meshgrid(np.linspace(-60, -54, 40), np.linspace(-79, -0.1, 400)))
    inside = shapely.contains_xy(place, lon, lat)
    x, y = (
        (np.array(v) for v in transform("EPSG:4326", grid.crs, lon[inside], lat[inside])) if inside.any() else ([], [])
    )
    a, _, c, _, e, f = grid.transform
    holding = [(int((n - f) / e / grid.block), int((m - c) / a / grid.block)) for m, n in zip(x, y, strict=True)]
    assert all(planned[at] for at in holding)
    assert planned.any() == bool(holding)


@pytest.mark.parametrize("lat", [-50.0, 60.0])
def test_a_parallel_is_carried_over_as_the_curve_that_it_is(lat):
    """Over a zone's six degrees its middle lies kilometres off the chord between its ends."""
    grid = utm_grid(21, lat < 0, 10.0, **LATTICE | {"block": 128, "window": 128})
    place = shapely.box(-60, lat, -54, lat + 0.02)  # two blocks thick
    planned = area.blocks_in(grid, area.projected(place, grid))
    lon, lats = (
        v.ravel() for v in np.meshgrid(np.linspace(-59.999, -54.001, 900), lat + np.linspace(0.0002, 0.0198, 9))
    )
    x, y = (np.array(v) for v in transform("EPSG:4326", grid.crs, lon, lats))
    a, _, c, _, e, f = grid.transform
    holding = np.zeros_like(planned)
    holding[((y - f) / e / grid.block).astype(int), ((x - c) / a / grid.block).astype(int)] = True
    assert not (holding & ~planned).any()
    assert planned.sum() < 1.2 * holding.sum()


@given(lat=st.floats(-70, 70), lon=st.floats(-179, 178), pixels=st.integers(0, 1_000_000))
@settings(deadline=None)
def test_hectares_of_a_block_in_metres_and_in_degrees(lat: float, lon: float, pixels: int) -> None:
    """In degrees beside the area of the cell on the sphere, by the difference of the sines of its latitudes."""
    assert area.hectares(utm_grid(21, True, 10.0, **LATTICE), Block(0, 0, 0, 0, 2048, 2048), pixels) == round(
        pixels / 100
    )
    step = 1e-4
    grid = Grid("EPSG:4326", (step, 0, lon, 0, -step, lat), 1000, 1000, **LATTICE)
    side = 6371007.2**2 * np.radians(1000 * step)
    cell = side * (np.sin(np.radians(lat)) - np.sin(np.radians(lat - 1000 * step))) / 1e6
    assert (
        abs(area.hectares(grid, Block(0, 0, 0, 0, 1000, 1000), pixels) - pixels * cell / 1e4)
        <= 0.51 + pixels * cell / 1e4 * 1e-5
    )
