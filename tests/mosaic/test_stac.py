"""The STAC catalogue of a mosaic: its own schema, pystac and rio-tiler read what is written."""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
from hypothesis import given, settings
from hypothesis import strategies as st
from pystac.validation import RegisteredValidator
from shapely.geometry import Point, Polygon, shape

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic import stac
from sar2eo_dist.mosaic.publish import cog_bytes
from sar2eo_dist.mosaic.stac import Asset

UTM, PLACE = "EPSG:32721", (10.0, 0.0, 700_000.0, 0.0, -10.0, 9_500_000.0)
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
ASSETS = {
    "image": Asset("../cog/r0.tif", COG, ("data", "visual"), "Translated image", ("red", "green", "blue")),
    "look": Asset("../looks/r0.png", "image/png", ("thumbnail",)),
}
FIRST, LAST = dt.date(2021, 7, 3), dt.date(2021, 8, 14)
PROPERTIES = {
    "sar2eo:unit": "u1", "sar2eo:bundles": ["b1", "b2"], "sar2eo:config": "c1", "sar2eo:code": "d1",
    "processing:software": {"sar2eo_dist": "0.1.0"},
}  # fmt: skip


def made(**more: Any) -> bytes:
    known = {"key": "r0", "crs": UTM, "transform": PLACE, "height": 300, "width": 500, "assets": ASSETS, "start": FIRST,
             "end": LAST, "properties": PROPERTIES, "derived_from": ["s3://bucket/b.tif", "s3://bucket/a.tif"],
             "collection": ("amazon", "../collection.json")}  # fmt: skip
    return stac.item(**(known | more))


def valid(data: bytes, kind: pystac.STACObjectType) -> dict[str, Any]:
    """The document, once the core schema (which pystac carries) accepts it."""
    pytest.importorskip("jsonschema")
    tree: dict[str, Any] = json.loads(data)
    RegisteredValidator.get_validator().validate_core(tree, kind, "1.1.0")
    return tree


# items ----------------------------------------------------------------------------------------------------------------


def test_an_item_says_where_when_and_of_what_it_is() -> None:
    tree = valid(made(), pystac.STACObjectType.ITEM)
    about = tree["properties"]
    assert PROPERTIES.items() <= about.items()
    assert about["datetime"] is None
    assert (about["start_datetime"], about["end_datetime"]) == ("2021-07-03T00:00:00Z", "2021-08-14T23:59:59Z")
    assert (about["proj:code"], about["proj:shape"], about["gsd"]) == (UTM, [300, 500], 10.0)
    assert about["proj:transform"] == list(PLACE)
    assert "sar2eo:undated" not in about
    assert "proj:wkt2" not in about
    assert tree["stac_extensions"] == [stac.PROJECTION, stac.PROCESSING]
    found = pystac.Item.from_dict(tree)
    assert found.collection_id == "amazon"
    assert found.assets["image"].href == "../cog/r0.tif"
    assert found.assets["image"].media_type == pystac.MediaType.COG
    assert found.assets["look"].roles == ["thumbnail"]
    assert [b["name"] for b in tree["assets"]["image"]["bands"]] == ["red", "green", "blue"]
    assert [link.target for link in found.get_links("derived_from")] == ["s3://bucket/b.tif", "s3://bucket/a.tif"]
    for rel in ("root", "parent", "collection"):
        assert [link["href"] for link in tree["links"] if link["rel"] == rel] == ["../collection.json"]


def test_the_projection_extension_reads_it() -> None:
    projection = pytest.importorskip("pystac.extensions.projection").ProjectionExtension
    found = projection.ext(pystac.Item.from_dict(json.loads(made())))
    assert (found.code, found.shape, found.transform) == (UTM, [300, 500], list(PLACE))


def test_equal_arguments_give_equal_bytes_on_any_day(monkeypatch: pytest.MonkeyPatch) -> None:
    first = made()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert made() == first
    assert made(transform=(10, 0, 700_000, 0, -10, 9_500_000)) == first
    days = set(re.findall(rb"\d{4}-\d\d-\d\d", first))
    assert days == {b"2021-07-03", b"2021-08-14"}


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (None, None, ("2014-04-03T00:00:00Z", "2100-12-31T23:59:59Z")),
        (FIRST, None, ("2021-07-03T00:00:00Z", "2100-12-31T23:59:59Z")),
        (None, LAST, ("2014-04-03T00:00:00Z", "2021-08-14T23:59:59Z")),
    ],
)
def test_the_undated_has_bounds_and_says_so(start: dt.date | None, end: dt.date | None, said: tuple[str, str]) -> None:
    about = valid(made(start=start, end=end), pystac.STACObjectType.ITEM)["properties"]
    assert (about["start_datetime"], about["end_datetime"]) == said
    assert about["sar2eo:undated"] is True


def test_without_a_collection_a_code_or_processing() -> None:
    wkt = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=-5 +lon_0=-60 +ellps=GRS80 +units=m").to_wkt()
    tree = valid(
        made(crs=wkt, transform=(30.0, 0.0, 0.0, 0.0, -30.0, 0.0), collection=None, properties={}, derived_from=()),
        pystac.STACObjectType.ITEM,
    )
    assert "collection" not in tree
    assert tree["links"] == []
    assert tree["stac_extensions"] == [stac.PROJECTION]
    assert tree["properties"]["proj:wkt2"].startswith("PROJCRS")
    assert tree["properties"]["gsd"] == 30.0
    degrees = json.loads(made(crs="EPSG:4326", transform=(1e-4, 0.0, -60.0, 0.0, -1e-4, -3.0)))
    assert "gsd" not in degrees["properties"]
    with pytest.raises(ConfigError, match="EPSG:1"):
        made(crs="EPSG:1")


@settings(max_examples=40, deadline=None)
@given(
    zone=st.integers(18, 23), x=st.floats(2e5, 8e5), y=st.floats(8.2e6, 9.98e6), side=st.integers(1, 4096),
    angle=st.floats(0, 6.3), flip=st.booleans(),
)  # fmt: skip
def test_a_footprint_is_the_blocks_outline(zone: int, x: float, y: float, side: int, angle: float, flip: bool) -> None:
    sin, cos = 10 * np.sin(angle), 10 * np.cos(angle)
    transform = (cos, sin, x, sin if flip else -sin, -cos if flip else cos, y)
    crs = f"EPSG:{32700 + zone}"
    ring = stac.footprint(crs, transform, side, 2 * side)
    outline = Polygon(ring)
    assert outline.is_valid
    assert ring[0] == ring[-1]
    assert outline.exterior.is_ccw  # RFC 7946
    west, south, east, north = stac.bbox(ring)
    assert outline.bounds == (west, south, east, north)
    affine = rasterio.Affine(*transform)
    for u, v, inside in [
        (0.5, 0.5, True),
        (0.002, 0.99, True),
        (0.99, 0.003, True),
        (-0.01, 0.5, False),
        (0.5, 1.01, False),
    ]:
        px, py = affine @ (u * 2 * side, v * side)
        (lon,), (lat,) = rasterio.warp.transform(crs, "EPSG:4326", [px], [py])
        near = Point(lon, lat).distance(outline.exterior) < 3e-7  # a pixel's block: rounding to 1 cm shows
        assert near or outline.contains(Point(lon, lat)) == inside


# collections ----------------------------------------------------------------------------------------------------------


def listed(count: int, undated: int = -1) -> list[tuple[str, str, stac.BBox, stac.Interval]]:
    days = [(FIRST + dt.timedelta(i), None if i == undated else LAST + dt.timedelta(i)) for i in range(count)]
    return [(f"r{i}", f"./stac/r{i}.json", (-60.0 + i, -3.0, -59.0 + i, -2.0 + i), d) for i, d in enumerate(days)]


def test_a_collection_covers_its_items() -> None:
    data = stac.collection(
        "amazon", "Amazon", "Translated.", iter(listed(3)), "CC-BY-4.0", item_assets=ASSETS,
        assets={"zarr": Asset("./mosaic.zarr", "application/vnd+zarr")}, summaries={"gsd": [10.0]},
        derived_from=["s3://bucket/scenes.json"],
    )  # fmt: skip
    tree = valid(data, pystac.STACObjectType.COLLECTION)
    assert tree["extent"]["spatial"]["bbox"] == [[-60.0, -3.0, -57.0, 0.0]]
    assert tree["extent"]["temporal"]["interval"] == [["2021-07-03T00:00:00Z", "2021-08-16T23:59:59Z"]]
    assert (tree["license"], tree["title"], tree["summaries"]) == ("CC-BY-4.0", "Amazon", {"gsd": [10.0]})
    assert tree["item_assets"]["image"]["type"] == COG
    assert "href" not in tree["item_assets"]["image"]
    assert tree["assets"]["zarr"]["href"] == "./mosaic.zarr"
    items = [link for link in tree["links"] if link["rel"] == "item"]
    assert [(link["href"], link["title"]) for link in items] == [(f"./stac/r{i}.json", f"r{i}") for i in range(3)]
    assert {link["rel"] for link in tree["links"]} == {"root", "item", "derived_from"}
    assert pystac.Collection.from_dict(tree).item_assets["image"].title == "Translated image"


def test_the_undated_open_the_interval_and_nothing_is_the_world() -> None:
    tree = valid(stac.collection("a", "", "d", listed(3, undated=1), "other"), pystac.STACObjectType.COLLECTION)
    assert tree["extent"]["temporal"]["interval"] == [["2021-07-03T00:00:00Z", None]]
    tree = valid(stac.collection("a", "", "d", [], "other"), pystac.STACObjectType.COLLECTION)
    assert tree["extent"] == {
        "spatial": {"bbox": [[-180.0, -90.0, 180.0, 90.0]]}, "temporal": {"interval": [[None, None]]}
    }  # fmt: skip


def test_the_basin_takes_seconds() -> None:
    begin = time.monotonic()
    data = stac.collection("a", "A", "d", listed(16_700), "other")
    assert time.monotonic() - begin < 10
    assert data.count(b'"rel": "item"') == 16_700


def test_a_written_catalogue_is_walked_and_its_pixels_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 3000, (3, 300, 500), np.uint16)
    valid_pixels = np.ones((300, 500), bool)
    valid_pixels[:, :100] = False
    for folder, name, data in (
        ("cog", "r0.tif", cog_bytes(rgb, valid_pixels, UTM, PLACE, 1e-4)),
        ("stac", "r0.json", made()),
        (".", "collection.json", stac.collection("amazon", "A", "d", listed(1), "other")),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(data)
    found = pystac.Collection.from_file(str(tmp_path / "collection.json"))
    (item,) = found.get_items()
    assert item.get_collection() is not None
    assert item.assets["image"].get_absolute_href() == str(tmp_path / "cog/r0.tif")
    with rasterio.open(tmp_path / "cog/r0.tif") as cog:
        lon, lat = rasterio.warp.transform(cog.crs, "EPSG:4326", *([v] for v in cog.xy(150, 250)))
    assert shape(item.geometry).contains(Point(lon[0], lat[0]))
    reader = pytest.importorskip("rio_tiler.io").STACReader
    with reader(str(tmp_path / "stac/r0.json")) as tiles:
        assert tiles.assets == ["image"]
        point = tiles.point(lon[0], lat[0], assets=["image"])
        np.testing.assert_array_equal(np.asarray(point.data).ravel(), rgb[:, 150, 250])
