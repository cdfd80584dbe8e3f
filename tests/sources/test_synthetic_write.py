"""The files of the synthetic world: real layouts, the same bytes every time, bounded memory, and the truth."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from sar2eo_dist import sources, storage
from sar2eo_dist.cca import exposure
from sar2eo_dist.records import Artifact
from sar2eo_dist.sections import Synthetic
from sar2eo_dist.sources import multiearth_netcdf, multiearth_tiff, scenes
from sar2eo_dist.sources import synthetic as syn
from sar2eo_dist.sources import synthetic_write as sw
from sar2eo_dist.sources.synthetic import World
from sar2eo_dist.sources.synthetic_netcdf import write_multiearth_netcdf

CFG = Synthetic(seed=7, places=(1, 2), dates=2, scene=(300, 200), reference=2)
WORLD = World(CFG.seed)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, list[Artifact]]]:
    """(root, task key -> artifacts) of a whole small world."""
    root = str(tmp_path_factory.mktemp("world"))
    return root, {task.key: sw.write(task, CFG, root) for task in sw.plan(CFG)}


def test_the_plan_is_canonical() -> None:
    tasks = sw.plan(Synthetic())
    assert tasks == sw.plan(Synthetic())
    assert len({t.key for t in tasks}) == len(tasks)
    kinds = [t.kind for t in tasks]
    assert {k: kinds.count(k) for k in kinds} == {"scene": 2, "netcdf": 3, "reference": 4, "patch": 9 * 12}
    assert tasks[-1].key == "patch/-05498-0456"


def test_artifacts_describe_what_lies_there(world: tuple[str, dict[str, list[Artifact]]]) -> None:
    root, done = world
    artifacts = [a for made in done.values() for a in made]
    assert len({a.path for a in artifacts}) == len(artifacts)
    assert {i.uri for i in storage.list_files(root)} == {storage.join(root, a.path) for a in artifacts}
    for a in artifacts:
        data = storage.read_bytes(storage.join(root, a.path))
        assert (len(data), storage.sha256(data)) == (a.size, a.sha256)


def test_a_task_gives_the_same_bytes_again_anywhere(
    world: tuple[str, dict[str, list[Artifact]]], tmp_path: Path
) -> None:
    for task in sw.plan(CFG):
        if task.key not in ("scene/s1", "netcdf/sent2"):  # slow; their twins are made
            syn._ground.cache_clear()
            assert sw.write(task, CFG, str(tmp_path)) == world[1][task.key]


def test_patches_are_multiearth(world: tuple[str, dict[str, list[Artifact]]]) -> None:
    root, _ = world
    for sensor, folder, bands in (("s1", "sent1", 2), ("s2", "sent2", 4)):
        files = storage.list_files(f"{root}/{folder}")
        assert len(files) == 2 * 2 * bands
        assert all(multiearth_tiff.parse_name(i.uri).sensor == f"Sentinel{sensor[1]}" for i in files)
        tiles, rejected = sources.list_tiles("multiearth_tiff", f"{root}/{folder}", sensor)
        assert (len(tiles), rejected) == (4, [])
    window = syn.patch_window(-55.18, -4.4)
    east = [t for t in tiles if t.lon == -55.18]
    assert [t.date for t in east] == syn.eo_dates(7, 2)
    assert [t.place for t in east] == ["-05518-0440"] * 2
    for tile in east:
        eo, view = sources.read_eo(tile), WORLD.eo(tile.date, *window)
        np.testing.assert_array_equal(eo.bands, view.bands)
        np.testing.assert_array_equal(eo.qa60, view.qa60)
    for tile in (t for t in sources.list_tiles("multiearth_tiff", f"{root}/sent1", "s1")[0] if t.lon == -55.18):
        expected = WORLD.sar(tile.date, *window)
        np.testing.assert_array_equal(np.nan_to_num(sources.read_sar(tile), nan=0), expected)


def test_netcdf_holds_the_same_patches(world: tuple[str, dict[str, list[Artifact]]]) -> None:
    root, _ = world
    for sensor, read in (("s1", sources.read_sar), ("s2", lambda ref: sources.read_eo(ref).bands)):
        name = f"sent{sensor[1]}"
        (tiff, _), (netcdf, lost) = (
            sources.list_tiles(f"multiearth_{kind}", uri, sensor)
            for kind, uri in (("tiff", f"{root}/{name}"), ("netcdf", f"{root}/netcdf/{name}.nc"))
        )
        assert [t.key for t in tiff] == [t.key for t in netcdf]
        assert lost == []
        for a, b in zip(tiff, netcdf, strict=True):
            np.testing.assert_array_equal(read(a), read(b))


def test_targets_ask_for_every_image_of_the_first_places(world: tuple[str, dict[str, list[Artifact]]]) -> None:
    targets = multiearth_netcdf.list_targets(f"{world[0]}/netcdf/target.nc")
    assert {t.date for t in targets} == set(syn.eo_dates(7, 2))
    assert sorted({t.lon for t in targets}) == [-55.2, -55.18]
    assert targets[0].name.startswith("Sentinel2_-55.18_-4.40_2019_")
    with h5py.File(f"{world[0]}/netcdf/target.nc") as h5:
        assert "images" not in h5


@pytest.mark.parametrize(
    ("real", "made"), [("sent1_sample.nc", "sent1.nc"), ("sent2_sample.nc", "sent2.nc"), ("test.nc", "target.nc")]
)
def test_netcdf_is_laid_out_as_the_real_sample(
    samples: Path, world: tuple[str, dict[str, list[Artifact]]], real: str, made: str
) -> None:
    def layout(path: Path) -> dict[str, Any]:
        """What netCDF and h5py see of a file, lengths and texts aside."""
        with h5py.File(path) as h5:
            out: dict[str, Any] = {"": sorted(h5.attrs), "gsd": h5.attrs["image_gsd"].dtype}
            for name, v in h5.items():
                scales = [d[0].name if len(d) else "" for d in v.dims]
                out[name] = [v.dtype, v.ndim, v.compression, v.compression_opts, v.shuffle, scales, sorted(v.attrs)]
                out[name] += [repr(v.fillvalue), v.is_scale]
            out["bands"] = h5["data_band"][:].tolist() if "data_band" in h5 else []
            out["chunk"] = h5["images"].chunks if "images" in h5 else None
            return out

    expected, found = (layout(p) for p in (samples / "tier_a/multiearth2023" / real, Path(world[0], "netcdf", made)))
    assert found == expected


def test_both_sensors_in_one_call(tmp_path: Path) -> None:
    uris = [str(tmp_path / f"{n}.nc") for n in (1, 2)]
    write_multiearth_netcdf(WORLD, *uris, [(-55.2, -4.4)], syn.sar_dates(1), syn.eo_dates(7, 1))
    assert [len(sources.list_tiles("multiearth_netcdf", u, s)[0]) for u, s in zip(uris, ("s1", "s2"), strict=True)] == [
        1,
        1,
    ]


def test_truth_names_every_acquisition(world: tuple[str, dict[str, list[Artifact]]]) -> None:
    root, _ = world
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"{root}/truth/-05518-0440.parquet")))
    assert table.schema.equals(sw.TRUTH)
    rows = {r["key"]: r for r in table.to_pylist()}
    keys = {t.key for s in ("s1", "s2") for t in sources.list_tiles("multiearth_tiff", root, s)[0] if t.lon == -55.18}
    assert set(rows) == keys
    window = syn.patch_window(-55.18, -4.4)
    for date in syn.eo_dates(7, 2):
        row, view = rows[f"s2/-05518-0440/{date}"], WORLD.eo(date, *window)
        assert (row["cloud_fraction"], row["label"]) == (view.cloud_fraction, view.label)
        with rasterio.open(f"{root}/{row['clear']}") as src:
            season = WORLD.clear(type(date).fromisoformat(src.tags()["DATE"]), *window)
            np.testing.assert_array_equal(src.read(), season)
            assert src.transform[:6] == syn.transform(*window[:2])
    assert {rows[k]["orbit"] for k in rows if k[:2] == "s1"} == {"ascending", "descending"}


def test_reference_images_are_stretched_cloud_from_elsewhere(world: tuple[str, dict[str, list[Artifact]]]) -> None:
    for number in range(2):
        view = sw._reference_view(WORLD, number)
        assert view.cloud_fraction > 0.4
        with rasterio.open(f"{world[0]}/reference/cloud_{number:04d}.png") as src:
            assert (src.driver, src.count, src.dtypes[0]) == ("PNG", 3, "uint8")
            np.testing.assert_array_equal(src.read(), exposure.stretch(view.bands))


def test_the_scene_is_a_georeferenced_cog_beyond_the_patches(world: tuple[str, dict[str, list[Artifact]]]) -> None:
    root, _ = world
    date, row, col = sw.scene_frame(CFG)
    scene = scenes.open_scene(f"{root}/scene/s1.tif")
    assert (scene.crs, scene.units, scene.quantity, scene.date) == (syn.CRS, "db", "sigma0", date)
    assert (scene.height, scene.width, scene.orbit) == (300, 200, syn.orbit(date))
    assert scene.transform == syn.transform(row, col)
    assert col - max(syn.patch_window(*p)[1] + 256 for p in sw.places(CFG)) > 300
    pixels = scenes.read_window(scene, 100, 50, 80, 90)
    np.testing.assert_array_equal(np.nan_to_num(pixels, nan=0), WORLD.sar(date, row + 100, col + 50, 80, 90))
    with rasterio.open(f"{root}/scene/truth.tif") as src:
        assert src.descriptions == ("B4", "B3", "B2")
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(src.read(), WORLD.clear(date, row, col, 300, 200))


def test_the_demo_scene_shows_border_zeros() -> None:
    date, row, col = sw.scene_frame(Synthetic())
    gap = syn.sar_gap(7, date, np.arange(row, row + 1024), np.arange(col, col + 1024))
    assert 0.003 < gap.mean() < 0.06


def test_memory_of_a_scene_is_bounded_by_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(sw, "BLOCK", 128)
    largest: list[int] = []

    def render(r: int, c: int, h: int, w: int) -> np.ndarray:
        largest.append(h * w)
        return np.full((2, h, w), r + c, np.float32)

    peaks = []
    for side in (256, 2048):
        tracemalloc.start()
        profile = {"width": side, "height": side, "dtype": "float32", "crs": syn.CRS}
        profile["transform"] = rasterio.Affine(*syn.transform(0, 0))
        sw._cog(str(tmp_path), f"{side}.tif", ("VV", "VH"), profile, {}, render)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(largest) == 128 * 128
    assert peaks[1] < 2 * peaks[0] < 2 * (4 << 20)  # one scene has 64 times the pixels of the other


def test_object_stores_are_roots_too() -> None:
    root = "memory://synthetic"
    for task in (t for t in sw.plan(CFG) if t.key in ("netcdf/target", "patch/-05520-0440")):
        for a in sw.write(task, CFG, root):
            assert storage.sha256(storage.read_bytes(storage.join(root, a.path))) == a.sha256
    storage.delete(root)
