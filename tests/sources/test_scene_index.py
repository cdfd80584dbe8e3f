"""The index of scenes: files, folders, lists, stores; what is known is not opened; where scenes lie."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import zarr
from rasterio.control import GroundControlPoint
from rasterio.warp import transform
from scene_files import CRS, DB, DN, PLAIN, RGB, S1_TAGS, S2_NAME, SCL, H, W, cog, place, put

from sar2eo_dist import storage
from sar2eo_dist.errors import AccessDenied, BadInput, NotFound
from sar2eo_dist.records import SceneRef, from_table, to_table
from sar2eo_dist.sources import scene_index
from sar2eo_dist.sources.scene_index import footprints, index
from sar2eo_dist.sources.scenes import open_scene, read_window

BARE = {k: v for k, v in S1_TAGS.items() if k != "DATE"}


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


def s1(root: str, name: str, tags: dict[str, str] = S1_TAGS, pixels: np.ndarray = DB, **options: object) -> str:
    return put(root, name, cog(pixels, ("VV", "VH")[: len(pixels)], tags, **options))


def folder(root: str) -> str:
    """Three scenes, one of them as two files, beside what is none."""
    s1(root, "b/late.tif", S1_TAGS | {"DATE": "2020-02-01"})
    s1(root, "c/undated.tif", BARE)
    for band, plane in zip(("VV", "VH"), DB, strict=True):
        put(root, f"a/S1A_IW_GRDH_1SDV_20190608T091543/x_{band}.tif", cog(plane, tags=BARE))
    put(root, "s2/other.tif", cog(DN, RGB))
    put(root, f"s2/{S2_NAME}.tif", cog(DN))
    put(root, f"s2/{S2_NAME}_SCL.tif", cog(SCL))
    put(root, "readme.md", b"x")
    return root


def test_a_folder(root: str) -> None:
    scenes, rejected = index(folder(root))
    assert rejected == []
    assert [storage.name(s.uri) for s in scenes] == ["undated.tif", "x_VV.tif", "late.tif"]
    assert [s.date for s in scenes] == [None, dt.date(2019, 6, 8), dt.date(2020, 2, 1)]
    two = scenes[1]
    assert [storage.name(u) for u in two.uris] == ["x_VV.tif", "x_VH.tif"]
    assert (two.platform, two.orbit, two.height, two.width) == ("S1A", "descending", H, W)
    for scene in scenes:
        assert scene.digest == open_scene(scene.uris).digest
        np.testing.assert_array_equal(read_window(scene, 5, 6, 70, 80), DB[:, 5:75, 6:86])
    assert index(two.uri)[1][0].reason == "missing_band"  # VV alone


def test_the_order_is_that_of_date_and_uri_not_of_threads(root: str) -> None:
    uris = sorted(s1(root, f"{i}.tif", S1_TAGS | {"DATE": f"2020-01-{1 + i % 2:02d}"}) for i in range(7))
    scenes, _ = index(root, threads=3)
    assert [(s.date, s.uri) for s in scenes] == sorted((s.date, s.uri) for s in scenes)
    assert {storage.name(s.uri) for s in scenes} == {storage.name(u) for u in uris}
    assert index(root, threads=1)[0] == scenes


@pytest.mark.parametrize("store", ["local", "s3"])
def test_what_is_known_is_not_opened(
    store: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path) if store == "local" else request.getfixturevalue("s3")
    known, _ = index(folder(root))
    changed = storage.join(root, "b/late.tif")
    storage.put(changed, cog(DB[:, :200], ("VV", "VH"), S1_TAGS))
    opened: list[str] = []

    def counted(uris: tuple[str, ...], *given: str) -> SceneRef:
        opened.append(storage.name(uris[0]))
        return open_scene(uris, *given)

    monkeypatch.setattr(scene_index, "open_scene", counted)
    table = to_table(known, SceneRef)
    assert from_table(table, SceneRef) == known
    scenes, _ = index(root, known=from_table(table, SceneRef))
    assert sorted(opened) == ["late.tif", "other.tif"]
    assert scenes[0] == known[0]
    assert scenes[1].height == 300
    assert {s.height for s in scenes} == {200, 300}
    storage.put(storage.join(root, "list.txt"), b"c/undated.tif\n")
    opened.clear()
    assert index(storage.join(root, "list.txt"), known=known) == ([known[0]], [])
    assert opened == []


def test_progress_is_told(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_index, "EVERY", 2)
    for i in range(5):
        s1(root, f"{i}.tif")
    told: list[tuple[int, int]] = []
    index(root, tell=lambda *said: told.append(said))
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_a_list(root: str) -> None:
    folder(root)
    vv = "a/S1A_IW_GRDH_1SDV_20190608T091543/x_VV.tif"
    absolute = storage.join(root, "b/late.tif")
    text = f"# scenes\n\n../c/undated.tif\n ../{vv}  ../{vv.replace('VV', 'VH')} # two\n{absolute}\n../none.tif\n{absolute}\n"
    if "://" in root:  # an object store knows no ..
        text = text.replace("../", "")
    uri = put(root, "lists/l.txt" if "://" not in root else "l.txt", text.encode())
    scenes, rejected = index(uri)
    assert [storage.name(s.uri) for s in scenes] == ["undated.tif", "x_VV.tif", "late.tif"]
    assert sorted((r.reason, storage.name(r.uri)) for r in rejected) == [
        ("duplicate", "late.tif"), ("unreadable", "none.tif")
    ]  # fmt: skip
    with pytest.raises(BadInput, match="line 2 holds 3 URIs"):
        index(put(root, "bad.txt", b"a b\nc d e\n"))


def test_one_file_and_one_store(root: str, tmp_path: Path) -> None:
    uri = s1(root, "one.tif")
    assert index(uri)[0] == [open_scene(uri)]
    attributes = {"crs": CRS, "transform": list(place()[:6]), "units": "db", "quantity": "sigma0"}
    zarr.open_group(f"{tmp_path}/m.zarr", mode="w", attributes=attributes).create_array("sar", data=DB)
    scenes, rejected = index(f"{tmp_path}/m.zarr")
    assert (len(scenes), rejected) == (1, [])
    np.testing.assert_array_equal(read_window(scenes[0], 0, 0, 9, 9), DB[:, :9, :9])
    with pytest.raises(NotFound):
        index(storage.join(root, "nowhere"))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_is_unusable_is_rejected_by_name(root: str) -> None:
    gcps = [GroundControlPoint(r, c, -55 + c / 1e4, -4 - r / 1e4) for r in (0, H) for c in (0, W)]
    grd = PLAIN | {"transform": None, "crs": "EPSG:4326", "gcps": gcps}
    put(root, "s1a-iw-grd-vv-20190608t091543-001.tiff", cog(DB[0], **grd))
    s1(root, "undeclared.tif", {})
    s1(root, "placeless.tif", crs=None, driver="GTiff", blocksize=None, overviews=None)
    put(root, "torn.tif", cog(DB, ("VV", "VH"), S1_TAGS)[:90])
    put(root, "half_VV.tif", cog(DB[0]))
    s1(root, "early.tif", S1_TAGS | {"DATE": "1999-01-01"})
    for band, shift in (("VV", 0), ("VH", 3)):
        put(root, f"moved/{band}.tif", cog(DB[0], tags=S1_TAGS, transform=place(shift, 0)))
    scenes, rejected = index(root)
    assert scenes == []
    assert [(storage.name(r.uri), r.sensor, r.reason) for r in rejected] == [
        ("early.tif", "s1", "bad_date"), ("half_VV.tif", "s1", "missing_band"), ("VH.tif", "s1", "wrong_shape"),
        ("placeless.tif", "s1", "unreadable"), ("s1a-iw-grd-vv-20190608t091543-001.tiff", "s1", "unreadable"),
        ("torn.tif", "s1", "unreadable"), ("undeclared.tif", "s1", "unreadable"),
    ]  # fmt: skip
    details = {storage.name(r.uri): r.detail for r in rejected}
    assert "raw GRD (4 ground control points" in details["s1a-iw-grd-vv-20190608t091543-001.tiff"]
    assert "undeclared units" in details["undeclared.tif"]
    assert "no CRS" in details["placeless.tif"]
    assert [storage.name(s.uri) for s in index(root, "linear", "gamma0")[0]] == ["undeclared.tif"]


def test_an_outage_is_not_a_rejection(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s1(root, "a.tif")

    def denied(*_: object) -> SceneRef:
        raise AccessDenied("a.tif", "no")

    monkeypatch.setattr(scene_index, "open_scene", denied)
    with pytest.raises(AccessDenied):
        index(root)


# where they are -------------------------------------------------------------------------------------------------------


def ref(crs: str, affine: tuple[float, ...], footprint: tuple[float, ...] = ()) -> SceneRef:
    a, b, c, d, e, f = affine
    return SceneRef(("a.tif",), crs, (a, b, c, d, e, f), 100, 50, None, "unknown", "S1A", "db", "sigma0", "", footprint)


def test_footprints_are_rings_or_rectangles_in_any_crs() -> None:
    rectangle = (10.0, 0.0, 7e5, 0.0, -10.0, 9.5e6)
    triangle = (-55.0, -5.0, -53.0, -5.0, -54.0, -3.0)  # not closed
    refs = [ref(CRS, rectangle), ref(CRS, rectangle, triangle), ref("EPSG:4326", (0.1, 0, -60, 0, -0.1, 0))]
    same = footprints(refs[:1], CRS)
    assert same[0].equals(shapely.box(7e5, 9.5e6 - 500, 7e5 + 1000, 9.5e6))
    lonlat = footprints(refs, "EPSG:4326")
    assert [p.geom_type for p in lonlat] == ["Polygon"] * 3
    assert lonlat[1].equals(shapely.Polygon(np.reshape(triangle, (-1, 2))))
    assert lonlat[2].bounds == pytest.approx((-60, -5, -50, 0))
    (x,), (y,) = transform(CRS, "EPSG:4326", [7e5 + 500], [9.5e6 - 250])
    assert lonlat[0].contains(shapely.Point(x, y))
    # an edge of two degrees bends: its middle lies where the projection puts it
    bent = footprints([refs[1]], CRS)[0]
    (x,), (y,) = transform("EPSG:4326", CRS, [-54.0], [-5.0])
    assert bent.boundary.distance(shapely.Point(x, y)) < 1e-6
    assert footprints([], CRS).tolist() == []


def test_a_scene_that_lies_nowhere_has_an_empty_footprint() -> None:
    lost = ref("EPSG:32721", (10.0, 0.0, 1e30, 0.0, -10.0, 1e30))
    here = ref("EPSG:32721", (10.0, 0.0, 7e5, 0.0, -10.0, 9.5e6))
    polygons = footprints([lost, here, lost, replace(here, footprint=())], "EPSG:4326")
    assert [p.is_empty for p in polygons] == [True, False, True, False]
    assert polygons[1].equals(polygons[3])


def test_the_schema_of_scenes_survives_parquet(tmp_path: Path) -> None:
    refs = [ref(CRS, (10.0, 0.0, 7e5, 0.0, -10.0, 9.5e6)), ref("EPSG:4326", (1, 0, 0, 0, -1, 0), (1.0, 2.0, 3.0, 4.0))]
    refs[1] = replace(refs[1], date=dt.date(2020, 1, 2), uris=("a", "b"))
    pq.write_table(to_table(refs, SceneRef), tmp_path / "x.parquet")
    assert from_table(pq.read_table(tmp_path / "x.parquet"), SceneRef) == refs
