"""The outline of the Amazon basin that ships: its area, and which towns lie in it."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import shapely
from shapely.geometry import shape

RADIUS = 6371.0072  # km, of the sphere of equal area


@pytest.fixture(scope="module")
def outline() -> dict[str, object]:
    tree: dict[str, object] = json.loads(files("sar2eo_dist.mosaic").joinpath("amazon.geojson").read_text("utf-8"))
    return tree


def test_it_is_one_simple_ring_that_says_where_it_is_from(outline: dict[str, object]) -> None:
    area = shape(outline["geometry"])
    assert area.is_valid
    assert area.geom_type == "Polygon"
    assert not area.interiors
    assert 60 <= len(area.exterior.coords) <= 300
    assert area.exterior.is_ccw  # RFC 7946
    assert set(outline["properties"]) == {"name", "source", "licence", "note"}  # type: ignore[call-overload]


def test_its_area_is_that_of_the_basin(outline: dict[str, object]) -> None:
    def equal_area(lonlat: np.ndarray) -> np.ndarray:
        lon, lat = np.radians(lonlat).T
        return np.stack([RADIUS * lon, RADIUS * np.sin(lat)], axis=1)  # Lambert's cylinder

    fine = shapely.segmentize(shape(outline["geometry"]), 0.1)
    assert shapely.transform(fine, equal_area).area == pytest.approx(6.92e6, rel=0.005)


@pytest.mark.parametrize(
    ("place", "lon", "lat", "inside"),
    [
        ("Manaus", -60.02, -3.10, True), ("Iquitos", -73.25, -3.75, True), ("Santarem", -54.71, -2.44, True),
        ("Belem", -48.50, -1.45, True), ("Cusco", -71.97, -13.53, True), ("Santa Cruz", -63.18, -17.78, True),
        ("Boa Vista", -60.67, 2.82, True), ("Palmas, on the Tocantins", -48.33, -10.18, True),
        ("Rio Branco", -67.81, -9.97, True), ("Quito", -78.52, -0.22, False), ("Lima", -77.03, -12.05, False),
        ("Macapa's offing", -48.0, 1.5, False), ("Cuiaba, on the Paraguay", -56.10, -15.60, False),
        ("Puerto Ayacucho, on the Orinoco", -67.62, 5.66, False), ("Georgetown", -58.16, 6.80, False),
        ("Goiania, on the Parana", -49.25, -16.68, False), ("Sao Luis", -44.30, -2.53, False),
    ],
)  # fmt: skip
def test_towns_lie_on_the_right_side(
    outline: dict[str, object], place: str, lon: float, lat: float, inside: bool
) -> None:
    assert shape(outline["geometry"]).contains(shapely.Point(lon, lat)) == inside, place
