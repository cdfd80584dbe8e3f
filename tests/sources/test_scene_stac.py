"""STAC as a list of scenes: items, collections, catalogues and GeoParquet; what they say is not looked up."""

from __future__ import annotations

import copy
import datetime as dt
import json
import posixpath
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scene_files import CRS, DB, S1_TAGS, H, W, cog, place, put

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, NotFound, StorageError
from sar2eo_dist.records import SceneRef
from sar2eo_dist.sources import scene_index
from sar2eo_dist.sources.scene_index import index
from sar2eo_dist.sources.scenes import read_window
from sar2eo_dist.sources.stac_item import resolved

RING = [[-55.0, -5.0], [-53.0, -5.0], [-54.0, -3.0], [-55.0, -5.0]]
TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
ITEM: dict[str, Any] = {
    "type": "Feature",
    "stac_version": "1.0.0",
    "id": "S1A_1",
    "geometry": {"type": "Polygon", "coordinates": [RING]},
    "properties": {
        "datetime": "2020-03-04T23:30:00-02:00",
        "platform": "SENTINEL-1A",
        "sat:orbit_state": "descending",
        "proj:epsg": 32721,
        "proj:transform": [*place()[:6], 0, 0, 1],
        "proj:shape": [H, W],
        "sar2eo:units": "db",
        "sar2eo:quantity": "sigma0",
    },
    "links": [],
    "assets": {
        "vh": {"href": "./x/vh.tif", "type": TIFF},
        "vv": {"href": "./x/vv.tif", "type": TIFF},
        "thumbnail": {"href": "t.png", "type": "image/png", "title": "VV and VH", "roles": ["thumbnail"]},
        "schema-calibration-vv": {"href": "c.xml", "type": "application/xml", "title": "VV calibration"},
    },
}


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


def item(**properties: Any) -> dict[str, Any]:
    """ITEM with other properties; None removes one."""
    made = copy.deepcopy(ITEM)
    made["properties"] = {k: v for k, v in (made["properties"] | properties).items() if v is not None}
    return made


def save(root: str, name: str, document: Any) -> str:
    return put(root, name, json.dumps(document).encode())


def rasters(root: str, folder: str = "x") -> None:
    for name, plane in zip(("vv", "vh"), DB, strict=True):
        put(root, f"{folder}/{name}.tif", cog(plane, tags=S1_TAGS))


def one(uri: str, *given: str) -> SceneRef:
    scenes, rejected = index(uri, *given)
    assert rejected == []
    (scene,) = scenes
    return scene


def refused(root: str, made: dict[str, Any], *given: str) -> tuple[str, str]:
    scenes, (rejected,) = index(save(root, "i.json", made), *given)
    assert scenes == []
    return rejected.reason, rejected.detail


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> SceneRef:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(scene_index, "open_scene", opened)


@pytest.mark.usefixtures("unopened")
def test_an_item_that_says_all_is_not_opened(root: str) -> None:
    scene = one(save(root, "sub/i.json", ITEM))
    assert scene.uris == (f"{root}/sub/x/vv.tif", f"{root}/sub/x/vh.tif")
    assert (scene.crs, scene.transform, scene.height, scene.width) == (CRS, tuple(place()[:6]), H, W)
    assert (scene.date, scene.orbit, scene.platform) == (dt.date(2020, 3, 5), "descending", "S1A")
    assert (scene.units, scene.quantity, scene.listed) == ("db", "sigma0", False)
    assert scene.footprint == tuple(np.ravel(RING))


def test_its_pixels_are_read_and_must_be_on_its_grid(root: str) -> None:
    rasters(root)
    scene = one(save(root, "i.json", ITEM))
    np.testing.assert_array_equal(read_window(scene, 3, 4, 50, 60), DB[:, 3:53, 4:64])
    wrong = one(save(root, "i.json", item(**{"proj:shape": [H + 1, W]})))
    with pytest.raises(BadInput, match="where its STAC item says"):
        read_window(wrong, 3, 4, 50, 60)
    other = one(save(root, "i.json", item(**{"proj:epsg": 32720})))
    with pytest.raises(BadInput, match="of EPSG:32721 .* of EPSG:32720"):
        read_window(other, 3, 4, 50, 60)


@pytest.mark.parametrize("gone", ["proj:epsg", "proj:transform", "proj:shape"])
def test_what_it_does_not_say_is_read_once(root: str, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rasters(root)
    uri = save(root, "i.json", item(**{gone: None, "sar2eo:units": None, "updated": "2020-04-01T00:00:00Z"}))
    scene = one(uri)
    assert (scene.crs, scene.transform, scene.height, scene.width) == (CRS, tuple(place()[:6]), H, W)
    assert (scene.date, scene.units, scene.listed) == (dt.date(2020, 3, 5), "db", False)  # the tags say db, and 2019
    with monkeypatch.context() as m:
        m.setattr(scene_index, "open_scene", None)
        assert index(uri, known=[scene]) == ([scene], [])
    storage.put(uri, storage.read_bytes(uri).replace(b"04-01", b"04-02"))
    assert one(uri).digest != scene.digest


@pytest.mark.usefixtures("unopened")
def test_signatures_do_not_change_an_item(root: str) -> None:
    made = item()
    digests = []
    for signature in ("?sig=1", "?sig=2", "2.tif"):
        made["assets"]["vv"]["href"] = f"https://x/vv.tif{signature}"
        digests.append(one(save(root, "i.json", made)).digest)
    assert digests[0] == digests[1] != digests[2]


ASSETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "upper case": ({"VV": {}, "VH": {}}, ("VV", "VH")),
    "among others": ({"vv": {}, "vh": {}, "vv_low": {}}, ("vv", "vh")),
    "words in keys": ({"data-vh": {}, "data-vv": {}}, ("data-vv", "data-vh")),
    "titles": ({"a": {"title": "Gamma VH"}, "b": {"title": "Gamma VV"}}, ("b", "a")),
    "polarisations": ({"a": {"sar:polarizations": ["VH"]}, "b": {"sar:polarizations": ["VV"]}}, ("b", "a")),
    "both by polarisations": ({"data": {"sar:polarizations": ["VV", "VH"]}}, ("data",)),
    "both by bands": ({"data": {"bands": [{"name": "VV"}, {"name": "VH"}]}}, ("data",)),
    "both by eo:bands": ({"data": {"eo:bands": [{"description": "VH"}, {"name": "vv"}]}}, ("data",)),
    "one": ({"vv": {}}, ()),
    "HH, HV": ({"hh": {}, "hv": {}}, ()),
    "two VV": ({"vv_a": {}, "vv_b": {}, "vh": {}}, ()),
    "no raster": ({"vv_": {"type": "application/xml"}, "vh_": {"type": "application/xml"}}, ()),
    "none": ({}, ()),
}


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("case", ASSETS)
def test_which_assets_are_vv_and_vh(root: str, case: str) -> None:
    assets, expected = ASSETS[case]
    made = item() | {"assets": {k: {"href": f"https://x/{k}", "type": TIFF} | v for k, v in assets.items()}}
    if not expected:
        assert refused(root, made)[0] == "missing_band"
    else:
        assert one(save(root, "i.json", made)).uris == tuple(f"https://x/{k}" for k in expected)


@pytest.mark.usefixtures("unopened")
def test_projection_of_assets_and_by_wkt(root: str) -> None:
    made = item(**{"proj:epsg": None, "proj:shape": None})
    for name in ("vv", "vh"):
        made["assets"][name] |= {"proj:code": "EPSG:32722", "proj:shape": [7, 8]}
    scene = one(save(root, "i.json", made))
    assert (scene.crs, scene.height, scene.width) == ("EPSG:32722", 7, 8)
    made["assets"]["vh"]["proj:shape"] = [7, 9]
    assert refused(root, made)[0] == "wrong_shape"


@pytest.mark.usefixtures("unopened")
def test_units_of_the_config_go_first(root: str) -> None:
    assert one(save(root, "i.json", ITEM), "linear", "gamma0").units == "linear"
    bare = item(**{"sar2eo:units": None})
    reason, detail = refused(root, bare)
    assert (reason, "undeclared units" in detail, "sar2eo:units" in detail) == ("unreadable", True, True)
    assert one(save(root, "i.json", bare), "db").units == "db"


@pytest.mark.usefixtures("unopened")
def test_dates_are_days_of_utc_and_possible(root: str) -> None:
    span = item(datetime=None, start_datetime="2020-05-06T00:00:00Z")
    assert one(save(root, "i.json", span)).date == dt.date(2020, 5, 6)
    assert one(save(root, "i.json", item(datetime=None))).date is None
    for bad in ("2020-13-01T00:00:00Z", "soon", "1999-01-01T00:00:00Z"):
        assert refused(root, item(datetime=bad))[0] == "bad_date"


@pytest.mark.usefixtures("unopened")
def test_nonsense_is_rejected_not_fatal(root: str) -> None:
    for made in (
        item() | {"assets": 5}, item() | {"properties": "x"}, item() | {"geometry": {"type": "Polygon"}},
        item() | {"assets": {"vv": "x", "vh": "y"}},
    ):  # fmt: skip
        assert refused(root, made)[0] == "unreadable"
    scenes, rejected = index(save(root, "c.json", {"type": "FeatureCollection", "features": [5, ITEM]}))
    assert (len(scenes), [r.reason for r in rejected]) == (1, ["unreadable"])
    for data in (b"{", b"[]", b'{"type": "Point"}', b'{"type": "FeatureCollection"}', b"\xff\xfe"):
        with pytest.raises(BadInput, match=r"bad\.json"):
            index(put(root, "bad.json", data))
    with pytest.raises(NotFound):
        index(storage.join(root, "none.json"))


@pytest.mark.usefixtures("unopened")
def test_a_catalogue_is_followed(root: str) -> None:
    def links(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"rel": rel, "href": href} for rel, href in pairs]

    for i in range(3):
        save(root, f"cat/col/{i}/i.json", item() | {"id": str(i)})
    save(root, "cat/bad/i.json", {"type": "Point"})
    children = [("item", f"./{i}/i.json") for i in range(3)] + [("item", "../bad/i.json"), ("root", "../catalog.json")]
    save(
        root, "cat/col/collection.json", {"type": "Collection", "links": links(*children, ("child", "../catalog.json"))}
    )
    uri = save(root, "cat/catalog.json", {
        "type": "Catalog", "links": links(("child", "col/collection.json"), ("child", f"{root}/none.json"), ("self", "x")),
    })  # fmt: skip
    scenes, rejected = index(uri)
    assert [s.uri for s in scenes] == [f"{root}/cat/col/{i}/x/vv.tif" for i in range(3)]
    assert [(r.uri, r.reason) for r in rejected] == [
        (f"{root}/cat/bad/i.json", "unreadable"), (f"{root}/none.json", "unreadable")
    ]  # fmt: skip


@pytest.mark.usefixtures("unopened")
def test_items_of_a_collection_are_relative_to_themselves(root: str) -> None:
    elsewhere = item() | {"links": [{"rel": "self", "href": "s3://bucket/a/i.json"}]}
    scenes, _ = index(save(root, "c/all.json", {"type": "FeatureCollection", "features": [ITEM, elsewhere]}))
    assert sorted(s.uri for s in scenes) == [f"{root}/c/x/vv.tif", "s3://bucket/a/x/vv.tif"]
    scenes, rejected = index(save(root, "c/all.json", {"type": "FeatureCollection", "features": [ITEM, ITEM]}))
    assert (len(scenes), [r.reason for r in rejected]) == (1, ["duplicate"])


@given(st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=5))
def test_hrefs_are_resolved_as_paths(parts: list[str]) -> None:
    href = "/".join(parts)
    path = posixpath.normpath(posixpath.join("/one/two/three/four/five", href))
    assert resolved("/one/two/three/four/five/i.json", href) == path
    assert resolved("s3://bucket/one/two/three/four/five/i.json", href) == f"s3://bucket{path}"
    assert resolved("memory:///one/two/three/four/five/i.json", href) == f"memory://{path}"
    assert resolved("s3://bucket/x.json", f"https://y/{href}") == f"https://y/{href}"


# GeoParquet -----------------------------------------------------------------------------------------------------------


def geoparquet(uri: str, items: list[dict[str, Any]], unit: str = "ms", rows_of: int = 4) -> str:
    """As stac-geoparquet lays items out: properties as columns, geometry as WKB, times as timestamps, assets as a struct."""
    rows = []
    for i in items:
        geometry = shapely.to_wkb(shapely.from_geojson(json.dumps(i["geometry"]))) if i["geometry"] else None
        row = {k: i[k] for k in ("id", "type", "links", "assets")} | i["properties"] | {"geometry": geometry}
        row |= {k: dt.datetime.fromisoformat(row[k]) for k in ("datetime", "start_datetime", "updated") if row.get(k)}
        rows.append(row | {"bbox": {"xmin": 0.0}})
    table = pa.Table.from_pylist(rows)
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(i, field.name, table[field.name].cast(pa.timestamp(unit, "UTC")))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows_of)
    storage.put(uri, sink.getvalue().to_pybytes())
    return uri


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("unit", ["ms", "ns"])
def test_geoparquet_says_what_json_says(root: str, unit: str) -> None:
    items = []
    for i in range(11):
        made = item(**{"updated": f"2020-04-{i + 1:02d}T00:00:00.5Z", "sat:orbit_state": ["ascending", "odd"][i % 2]})
        made["assets"]["vv"]["href"] = f"{i}.tif"
        made["links"] = [{"rel": "self", "href": f"s3://b/{i}/i.json"}] if i % 3 else [{"rel": "root", "href": "r"}]
        items.append(made | {"id": f"S1_{i}"})
    del items[4]["assets"]["vh"]
    items[5]["geometry"] = None
    items[6]["geometry"] = {"type": "MultiPolygon", "coordinates": [[RING], [[[0, 0], [1, 0], [1, 1], [0, 0]]]]}
    scenes, rejected = index(geoparquet(f"{root}/all.parquet", items, unit))
    expected, also = index(save(root, "all.json", {"type": "FeatureCollection", "features": items}))
    assert [r.reason for r in rejected] == [r.reason for r in also] == ["missing_band"]
    assert len(scenes) == 10

    def plain(s: SceneRef) -> tuple[object, ...]:  # times are other text, so digests differ
        return s.uris, s.crs, s.transform, s.height, s.width, s.date, s.orbit, s.platform, s.units, s.footprint

    assert [plain(s) for s in scenes] == [plain(s) for s in expected]
    assert len({s.digest for s in scenes}) == 10
    assert sorted(len(s.footprint) for s in scenes)[0] == 0
    assert index(f"{root}/all.parquet")[0] == scenes


def test_of_geoparquet_only_what_is_asked_for_is_fetched(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items = []
    for i in range(200):
        made = item(ballast=np.random.default_rng(i).bytes(4000).hex())
        made["assets"]["vv"] |= {"href": f"{i}.tif", "description": np.random.default_rng(i).bytes(4000).hex()}
        items.append(made)
    uri = geoparquet(f"{root}/all.parquet", items, rows_of=100)
    fetched: list[int] = []
    real = storage.read_range

    def counted(uri: str, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return real(uri, start, end)

    monkeypatch.setattr(storage, "read_range", counted)
    assert len(index(uri)[0]) == 200
    assert sum(fetched) < storage.info(uri).size / 2


def test_a_bad_parquet_has_its_name(root: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a"]}), sink)
    for data in (b"", b"PAR1 no PAR1", sink.getvalue().to_pybytes()):
        with pytest.raises(BadInput, match=r"bad\.parquet"):
            index(put(root, "bad.parquet", data))
    with pytest.raises(StorageError, match=r"none\.parquet"):
        index(storage.join(root, "none.parquet"))
