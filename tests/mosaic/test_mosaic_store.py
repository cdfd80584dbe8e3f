"""The mosaic's store: what xarray, rioxarray and zarr see in it, and that no grid is ever mixed with another."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (registers .rio)
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from sar2eo_dist import storage
from sar2eo_dist.errors import AlignmentError, ConfigError, Corrupt, NotFound
from sar2eo_dist.mosaic import geozarr, store
from sar2eo_dist.mosaic.pyramid import Pixels
from sar2eo_dist.mosaic.store import Layout

UTM, PLACE = "EPSG:32721", (10.0, 0.0, 700_000.0, 0.0, -10.0, 9_500_000.0)
LAYOUT = Layout(UTM, PLACE, 100, 230, 64, "uint16", True)


def scene(layout: Layout, seed: int = 0, density: float = 0.7) -> Pixels:
    rng = np.random.default_rng(seed)
    size, top = (layout.height, layout.width), 256 if layout.dtype == "uint8" else 65536
    valid = rng.random(size) < density
    rgb = rng.integers(0, top, (3, *size)).astype(layout.dtype) * valid
    error = rng.integers(0, 65536, size).astype(np.uint16) * valid
    return Pixels(rgb.astype(layout.dtype), valid, error.astype(np.uint16) if layout.error else None)


def cut(pixels: Pixels, layout: Layout, row: int, col: int) -> Pixels:
    at = tuple(slice(i * layout.block, (i + 1) * layout.block) for i in (row, col))
    return Pixels(pixels.rgb[(slice(None), *at)], pixels.valid[at], None if pixels.error is None else pixels.error[at])


def write(root: str, layout: Layout, pixels: Pixels, skip: tuple[tuple[int, int], ...] = ()) -> None:
    """A whole store at root/m with its overviews, each block by itself."""
    store.write_template(root, "m", layout, {})
    for level in range(layout.levels + 1):
        for place in np.ndindex(*layout.shape(level)):
            if level:
                block = store.read_overview(f"{root}/m", layout, level, *place)
            else:
                block = None if place in skip else cut(pixels, layout, *place)
            if block is not None:
                store.write_block(root, "m", layout, level, *place, block)


def halved(pixels: Pixels) -> Pixels:
    """The next level by loops over whole numbers."""
    height, width = pixels.valid.shape
    rows, cols = -(-height // 2), -(-width // 2)
    planes = [*pixels.rgb] + ([] if pixels.error is None else [pixels.error])
    out = [np.zeros((rows, cols), p.dtype) for p in planes]
    valid = np.zeros((rows, cols), bool)
    for i, j in np.ndindex(rows, cols):
        cell = np.s_[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        if (v := pixels.valid[cell]).any():
            valid[i, j] = True
            for plane, small in zip(planes, out, strict=True):
                small[i, j] = math.floor(int(plane[cell][v].sum(dtype=np.int64)) / int(v.sum()) + 0.5)
    return Pixels(np.stack(out[:3]), valid, None if pixels.error is None else out[3])


def same(a: Pixels, b: Pixels) -> None:
    np.testing.assert_array_equal(a.valid, b.valid)
    np.testing.assert_array_equal(a.rgb, b.rgb)
    np.testing.assert_array_equal(a.error, b.error)
    assert a.rgb.dtype == b.rgb.dtype


# sizes ----------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 4096))
def test_the_last_overview_fits_a_block_and_the_one_before_does_not(height: int, width: int, block: int) -> None:
    layout = Layout(UTM, PLACE, height, width, block)
    count = store.levels(height, width, block)
    assert layout.levels == count
    assert max(layout.size(count)) <= block
    assert layout.shape(count) == (1, 1)
    assert count == 0 or max(layout.size(count - 1)) > block


@pytest.mark.parametrize(("block", "count"), [(512, 0), (256, 1), (255, 2), (1, 9)])
def test_levels_of_a_small_one(block: int, count: int) -> None:
    assert store.levels(300, 512, block) == count


@pytest.mark.parametrize("level", [-1, 3])
def test_what_lies_outside_is_refused(tmp_path: Path, level: int) -> None:
    assert LAYOUT.levels == 2
    with pytest.raises(AlignmentError, match=f"level {level}"):
        LAYOUT.size(level)
    with pytest.raises(AlignmentError, match=r"\(2, 0\) of level 0 lies outside of 2 x 4"):
        LAYOUT.extent(0, 2, 0)
    with pytest.raises(AlignmentError, match="outside"):
        store.read_block(str(tmp_path), LAYOUT, 1, 0, 2)
    with pytest.raises(AlignmentError, match="level -1"):
        store.read_overview(str(tmp_path), LAYOUT, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"height": 0}, "0 x 230"), ({"dtype": "float32"}, "'float32'"), ({"crs": "EPSG:nonsense"}, "EPSG:nonsense")],
)
def test_an_impossible_layout_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(LAYOUT, **change)


# pixels ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), block=st.integers(8, 24),
    dtype=st.sampled_from(["uint8", "uint16"]), error=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_come_back_and_overviews_are_those_of_the_whole_mosaic(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, block: int, dtype: str, error: bool, seed: int
) -> None:
    root = f"memory://{tmp_path_factory.mktemp('m')}"  # no disk to wait for
    layout = Layout(UTM, PLACE, height, width, block, dtype, error)
    whole = scene(layout, seed, density=0.3)
    write(root, layout, whole)
    group = zarr.open_group(f"{root}/m", mode="r")
    for level in range(layout.levels + 1):
        found = {n: group[store.folder_of(level) + n][...] for n in ("rgb", "valid", *(["error"] if error else []))}
        same(Pixels(found["rgb"], found["valid"].astype(bool), found.get("error")), whole)
        for place in np.ndindex(*layout.shape(level)):
            block_there, expected = store.read_block(f"{root}/m", layout, level, *place), cut(whole, layout, *place)
            assert (block_there is None) == (not expected.valid.any())
            if block_there is not None:
                same(block_there, expected)
        whole = halved(whole)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_missing_block_is_no_data_and_costs_no_object(tmp_path: Path, where: str) -> None:
    root = str(tmp_path) if where == "local" else f"memory://{tmp_path}"
    whole = scene(LAYOUT)
    write(root, LAYOUT, whole, skip=((0, 0), (0, 1), (1, 0), (1, 1)))
    assert store.read_block(f"{root}/m", LAYOUT, 0, 1, 1) is None
    assert store.read_overview(f"{root}/m", LAYOUT, 1, 0, 0) is None
    half = halved(whole)
    half.valid[:, :64] = False
    there = store.read_overview(f"{root}/m", LAYOUT, 1, 0, 1)
    assert there is not None
    same(there, cut(half, LAYOUT, 0, 1))
    top = store.read_block(f"{root}/m", LAYOUT, 2, 0, 0)
    assert top is not None
    np.testing.assert_array_equal(top.valid[:, :32], False)
    assert not storage.exists(f"{root}/m/overviews/2/rgb/c/0/0/0")
    assert storage.exists(f"{root}/m/overviews/2/rgb/c/0/0/1")


def test_pixels_that_are_not_valid_do_not_matter(tmp_path: Path) -> None:
    whole = scene(LAYOUT)
    garbage = Pixels(np.where(whole.valid, whole.rgb, 777).astype(np.uint16), whole.valid, whole.error)
    made = [
        store.write_block(str(tmp_path), name, LAYOUT, 0, 1, 3, cut(p, LAYOUT, 1, 3))
        for name, p in (("a", whole), ("b", garbage))
    ]
    assert [a.path for a in made[0]] == ["a/rgb/c/0/1/3", "a/error/c/1/3", "a/valid/c/1/3"]
    assert [a.sha256 for a in made[0]] == [b.sha256 for b in made[1]]


def test_pixels_of_another_block_or_dtype_are_refused(tmp_path: Path) -> None:
    good = cut(scene(LAYOUT), LAYOUT, 1, 3)
    assert good.valid.shape == (36, 38)
    bad = [
        cut(scene(LAYOUT), LAYOUT, 0, 0),
        dataclasses.replace(good, rgb=good.rgb[:2]),
        dataclasses.replace(good, rgb=good.rgb[:, :5]),
        dataclasses.replace(good, rgb=good.rgb.astype(np.uint8)),
        dataclasses.replace(good, valid=good.valid.astype(np.uint8)),
        dataclasses.replace(good, error=None),
        dataclasses.replace(good, error=good.rgb[0, :7]),
    ]
    for pixels in bad:
        with pytest.raises(AlignmentError, match="36"):
            store.write_block(str(tmp_path), "m", LAYOUT, 0, 1, 3, pixels)
    with pytest.raises(AlignmentError, match="with error"):
        store.write_block(str(tmp_path), "m", dataclasses.replace(LAYOUT, error=False), 0, 1, 3, good)


def test_a_flipped_bit_is_found_where_it_is_read(tmp_path: Path) -> None:
    write(str(tmp_path), LAYOUT, scene(LAYOUT))
    path = tmp_path / "m/rgb/c/0/0/1"
    data = path.read_bytes()
    for torn in (data[:40] + bytes([data[40] ^ 4]) + data[41:], data[: len(data) // 2], b""):
        path.write_bytes(torn)
        with pytest.raises(Corrupt, match="rgb/c/0/0/1"):
            store.read_block(str(tmp_path / "m"), LAYOUT, 0, 0, 1)
    path.unlink()
    with pytest.raises(Corrupt, match="not all of its other arrays"):
        store.read_block(str(tmp_path / "m"), LAYOUT, 0, 0, 1)


# other readers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_xarray_and_rioxarray_open_any_level_without_help(tmp_path: Path, level: int, where: str) -> None:
    root = str(tmp_path) if where == "local" else f"memory://{tmp_path}"
    whole = scene(LAYOUT)
    write(root, LAYOUT, whole)
    for _ in range(level):
        whole = halved(whole)
    group = store.folder_of(level).rstrip("/") or None
    with xarray.open_zarr(f"{root}/m", group=group, consolidated=False) as found:
        assert set(found.coords) == {"x", "y", "spatial_ref"}
        assert set(found.data_vars) == {"rgb", "valid", "error"}
        for array in (found, found["rgb"], found["valid"], found["error"]):
            assert array.rio.crs == CRS.from_epsg(32721)
            side = 10.0 * 2**level
            assert tuple(array.rio.transform())[:6] == (side, 0, 700_000, 0, -side, 9_500_000)
            assert tuple(array.rio.transform(recalc=True))[:6] == pytest.approx((side, 0, 7e5, 0, -side, 9.5e6))
        assert found["x"].values[:2].tolist() == [7e5 + side / 2, 7e5 + 1.5 * side]
        assert found["y"].values[-1] == 9.5e6 - side * (LAYOUT.size(level)[0] - 0.5)
        np.testing.assert_allclose(found["rgb"].values, whole.rgb * 1e-4, rtol=1e-6)
        np.testing.assert_allclose(found["error"].values, whole.error * 1e-4, rtol=1e-6)
        np.testing.assert_array_equal(found["valid"].values, whole.valid)
        point = found["rgb"].sel(x=7e5 + 1.2 * side, y=9.5e6 - 2.3 * side, method="nearest")
        np.testing.assert_allclose(point.values, whole.rgb[:, 2, 1] * 1e-4, rtol=1e-6)


def test_colours_are_plain_integers(tmp_path: Path) -> None:
    layout = dataclasses.replace(LAYOUT, dtype="uint8", error=False)
    whole = scene(layout)
    write(str(tmp_path), layout, whole)
    with xarray.open_zarr(str(tmp_path / "m"), consolidated=False) as found:
        assert found["rgb"].dtype == np.uint8
        np.testing.assert_array_equal(found["rgb"].values, whole.rgb)
        assert set(found.data_vars) == {"rgb", "valid"}


def test_a_turned_grid_has_no_axes_but_its_transform(tmp_path: Path) -> None:
    turned = (9.0, 2.0, 700_000.5, 2.0, -9.0, 9_500_000.25)
    layout = Layout(CRS.from_epsg(31981).to_wkt(), turned, 30, 40, 64)
    store.write_template(str(tmp_path), "m", layout, {})
    with xarray.open_zarr(str(tmp_path / "m"), consolidated=False) as found:
        assert set(found.coords) == {"spatial_ref"}
        assert found.rio.crs.to_epsg() == 31981
        assert tuple(found.rio.transform())[:6] == turned


def test_a_long_coordinate_is_cut_into_objects(tmp_path: Path) -> None:
    layout = Layout("EPSG:4326", (1e-4, 0.0, -70.0, 0.0, -1e-4, 5.0), 3, 200_000, 4096)
    made = store.write_template(str(tmp_path), "m", layout, {})
    assert sum(a.path.startswith("m/x/c/") for a in made) == 4
    with xarray.open_zarr(str(tmp_path / "m"), consolidated=False) as found:
        assert found.rio.crs.to_epsg() == 4326
        np.testing.assert_array_equal(found["x"].values, -70.0 + 1e-4 * (np.arange(200_000) + 0.5))
        assert found["x"].attrs["units"] == "degrees_east"


def test_attributes_say_the_same_in_every_convention(tmp_path: Path) -> None:
    store.write_template(str(tmp_path), "m", LAYOUT, {"config": "abc"})
    group = zarr.open_group(str(tmp_path / "m"), mode="r")
    about = dict(group.attrs)
    assert (about["crs"], about["transform"], about["created_by"]) == (UTM, list(PLACE), "sar2eo_dist")
    assert about["config"] == "abc"
    assert about["proj:code"] == UTM
    assert {c["name"] for c in about["zarr_conventions"]} == {"multiscales", "proj:", "spatial"}
    assert about["spatial:bbox"] == [700_000.0, 9_499_000.0, 702_300.0, 9_500_000.0]
    assert not {"spatial:transform", "spatial:shape"} & set(about)  # of each level, never of the group as well
    layout = about["multiscales"]["layout"]
    assert [e["asset"] for e in layout] == ["rgb", "overviews/2/rgb", "overviews/4/rgb"]
    for entry, before in zip(layout[1:], layout, strict=False):
        assert entry["derived_from"] == before["asset"]
    for k, entry in enumerate(layout):
        array = group[entry["asset"]]
        assert list(array.shape[-2:]) == entry["spatial:shape"] == list(LAYOUT.size(k))
        parent = group if k == 0 else group[f"overviews/{2**k}"]
        assert parent.attrs.get("spatial:transform", layout[0]["spatial:transform"]) == entry["spatial:transform"]
        assert {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}.items() <= dict(array.attrs).items()
    mapping = dict(group["spatial_ref"].attrs)
    assert CRS.from_wkt(mapping["crs_wkt"]).to_epsg() == 32721
    assert mapping["GeoTransform"] == "700000.0 10.0 0.0 9500000.0 0.0 -10.0"


def test_cf_parameters_are_those_of_pyproj() -> None:
    pyproj = pytest.importorskip("pyproj")
    for code in (32721, 32618, 4326, 31981):
        ours, theirs = geozarr.grid_mapping(f"EPSG:{code}", PLACE), pyproj.CRS.from_epsg(code).to_cf()
        own = set(ours) - {"crs_wkt", "spatial_ref", "GeoTransform"}
        assert {"grid_mapping_name", "semi_major_axis", "inverse_flattening"} <= own
        assert {k: ours[k] for k in own} == {k: theirs[k] for k in own}, code
        for name in "xy":
            known = {a["axis"]: a for a in pyproj.CRS.from_epsg(code).cs_to_cf()}[name.upper()]
            mine = geozarr.axis(f"EPSG:{code}", name)
            assert mine["standard_name"] == known["standard_name"]
            assert mine["units"][:1] == known["units"][:1]


# template -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_template_again_is_the_same_and_leaves_pixels_alone(tmp_path: Path, where: str) -> None:
    root = str(tmp_path) if where == "local" else f"memory://{tmp_path}"
    assert not store.check_template(root, "m", LAYOUT)
    first = store.write_template(root, "m", LAYOUT, {})
    assert first[-1].path == "m/zarr.json"
    store.write_block(root, "m", LAYOUT, 0, 0, 0, cut(scene(LAYOUT), LAYOUT, 0, 0))
    assert store.check_template(root, "m", LAYOUT)
    assert store.write_template(root, "m", LAYOUT, {}) == first
    assert store.read_block(f"{root}/m", LAYOUT, 0, 0, 0) is not None
    assert store.read_layout(f"{root}/m") == LAYOUT


def test_the_same_crs_in_other_words_is_the_same(tmp_path: Path) -> None:
    store.write_template(str(tmp_path), "m", LAYOUT, {})
    assert store.check_template(str(tmp_path), "m", dataclasses.replace(LAYOUT, crs=CRS.from_string(UTM).to_wkt()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 101}, "height 100 there, 101 wanted"),
        ({"width": 231}, "width 230 there, 231 wanted"),
        ({"block": 32}, "block 64 there, 32 wanted"),
        ({"dtype": "uint8"}, "dtype uint16 there, uint8 wanted"),
        ({"error": False}, "error True there, False wanted"),
        ({"crs": "EPSG:32720"}, "crs EPSG:32721 there, EPSG:32720 wanted"),
        (
            {"transform": (10.0, 0.0, 700_010.0, 0.0, -10.0, 9_500_000.0)},
            "transform .*700000.* there, .*700010.* wanted",
        ),
    ],
)
def test_another_grid_is_refused_and_changes_nothing(tmp_path: Path, change: dict[str, object], said: str) -> None:
    store.write_template(str(tmp_path), "m", LAYOUT, {})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=said):
        store.write_template(str(tmp_path), "m", dataclasses.replace(LAYOUT, **change), {})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("zarr.json", b"{"), ("zarr.json", b"[]"), ("zarr.json", b'{"attributes": {}}'), ("rgb/zarr.json", b"\xff"),
        ("zarr.json", json.dumps({"attributes": {"crs": UTM, "transform": [1, 2]}}).encode()),
        ("rgb/zarr.json", b'{"shape": [3, 0, 4], "data_type": "uint8", "chunk_grid": {"configuration": {"chunk_shape": [1]}}}'),
    ],
)  # fmt: skip
def test_metadata_that_are_no_mosaic_are_named(tmp_path: Path, path: str, data: bytes) -> None:
    store.write_template(str(tmp_path), "m", LAYOUT, {})
    (tmp_path / "m" / path).write_bytes(data)
    with pytest.raises(Corrupt, match="not the metadata of a mosaic"):
        store.read_layout(str(tmp_path / "m"))


def test_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing"):
        store.read_layout(str(tmp_path / "nothing"))
