"""Zarr mosaics as S1 rasters: written by xarray and zarr-python, read by windows, by their own chunks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, NotFound, Unavailable
from sar2eo_dist.sources import zarr_scene
from sar2eo_dist.sources.scenes import open_scene, read_window

H, W = 90, 130
RNG = np.random.default_rng(11)
DB = np.stack([RNG.normal(-9, 2, (H, W)), RNG.normal(-15, 2, (H, W))]).astype(np.float32)
DB[:, 3:9, 20:40] = np.nan
SAID = {"units": "dB", "quantity": "sigma0"}
WKT = rasterio.CRS.from_epsg(32721).to_wkt()
AFFINE = (10.0, 0.0, 7e5, 0.0, -10.0, 9.5e6)
PLACE = {"crs": "EPSG:32721", "transform": list(AFFINE)}


def cube(uri: str, attributes: dict[str, Any], zarr_format: int = 3, data: np.ndarray = DB, **more: Any) -> str:
    group = zarr.open_group(uri, mode="w", zarr_format=zarr_format, attributes=attributes)
    group.create_array("sar", data=data, chunks=(1, 32, 32), **more)
    return uri


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "mosaic.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("how", ["grid mapping", "coordinates"])
def test_what_xarray_writes(root: str, zarr_format: int, how: str) -> None:
    xr = pytest.importorskip("xarray")
    attributes = {"crs_wkt": WKT}
    if how == "grid mapping":
        attributes["GeoTransform"] = "700000 10 0 9500000 0 -10"
    x, y = 7e5 + 10 * (np.arange(W) + 0.5), 9.5e6 - 10 * (np.arange(H) + 0.5)
    planes = {n: (("y", "x"), p, SAID) for n, p in zip(("VV", "vh"), DB, strict=True)}
    data = xr.Dataset(planes, {"y": y, "x": x, "spatial_ref": ((), 0, attributes)})
    packed = {"dtype": "int16", "scale_factor": 0.01, "add_offset": -20.0, "_FillValue": -32768, "chunks": (32, 48)}
    encoding = {"VV": packed, "vh": {"chunks": (50, 50)}}
    data.to_zarr(root, mode="w", zarr_format=zarr_format, encoding=encoding, consolidated=False)
    scene = open_scene(root)
    assert (scene.uris, scene.crs, scene.height, scene.width) == ((root,), "EPSG:32721", H, W)
    assert scene.transform == pytest.approx(AFFINE)
    assert (scene.units, scene.quantity, scene.date, scene.orbit) == ("db", "sigma0", None, "unknown")
    window = read_window(scene, -5, 10, H, 60)
    np.testing.assert_allclose(window[0, 5:], DB[0, : H - 5, 10:70], atol=0.00501)
    np.testing.assert_array_equal(window[1, 5:], DB[1, : H - 5, 10:70])
    assert np.isnan(window[:, :5]).all()


@pytest.fixture(scope="module", params=["local", "memory"])
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("zarr")
    cube(f"{folder}/m.zarr", PLACE | SAID)
    if request.param == "local":
        return f"{folder}/m.zarr/"
    for info in storage.list_files(f"{folder}/m.zarr"):
        storage.put(f"memory://{info.uri}", storage.read_bytes(info.uri))
    return f"memory://{folder}/m.zarr"


@settings(max_examples=30, deadline=None)
@given(row=st.integers(-20, H + 5), col=st.integers(-20, W + 5), h=st.integers(0, 60), w=st.integers(0, 60))
def test_a_window_is_the_array_padded(big: str, row: int, col: int, h: int, w: int) -> None:
    padded = np.full((2, H + 200, W + 200), np.nan, np.float32)
    padded[:, 100 : 100 + H, 100 : 100 + W] = DB
    window = read_window(open_scene(big), row, col, h, w)
    np.testing.assert_array_equal(window, padded[:, 100 + row : 100 + row + h, 100 + col : 100 + col + w])


def test_a_window_costs_its_own_chunks_and_threads_share_the_store(big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = open_scene(big)
    read_window(scene, 0, 0, 1, 1)
    asked: list[str] = []
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: asked.append(uri) or real(uri))
    monkeypatch.setattr(storage, "walk", None)  # listed once in this process
    np.testing.assert_array_equal(read_window(scene, 33, 33, 20, 20), DB[:, 33:53, 33:53])
    assert len(asked) == 2
    with ThreadPoolExecutor(4) as pool:
        for row, window in zip(range(60), pool.map(lambda r: read_window(scene, r, 5, 30, 99), range(60)), strict=True):
            np.testing.assert_array_equal(window, DB[:, row : row + 30, 5:104])


def test_a_bare_array_other_orders_and_linear_power(root: str) -> None:
    power = 10 ** (DB[::-1] / 10)
    attributes = PLACE | {"units": "linear", "bands": ["VH", "VV"], "orbit": "Ascending", "date": "2020-01-05"}
    zarr.create_array(root, data=power, chunks=(2, 40, 40), attributes=attributes)
    scene = open_scene(root, quantity="gamma0")
    assert (scene.units, scene.quantity, scene.orbit, str(scene.date)) == (
        "linear",
        "gamma0",
        "ascending",
        "2020-01-05",
    )
    np.testing.assert_allclose(read_window(scene, 0, 0, H, W), DB, atol=1e-5)


def test_chunks_that_were_never_written_are_no_data(root: str) -> None:
    group = zarr.open_group(root, mode="w", attributes=PLACE | SAID)
    sar = group.create_array("sar", shape=(2, H, W), chunks=(2, 40, 40), dtype="i2", fill_value=-1,
                             attributes={"scale_factor": 0.01})  # fmt: skip
    sar[:, 40:80, :40] = -1234
    window = read_window(open_scene(root), 30, 0, 60, 50)
    assert np.isfinite(window).sum() == 2 * 40 * 40
    np.testing.assert_allclose(window[:, 10:50, :40], -12.34, rtol=1e-6)


def coordinates(x: np.ndarray) -> Callable[[str], object]:
    def make(uri: str) -> None:
        cube(uri, SAID | {"crs": "EPSG:32721"})
        group = zarr.open_group(uri)
        group.create_array("x", data=x)
        group.create_array("y", data=np.arange(H) * -10.0)

    return make


UNEVEN = np.arange(W) * 10.0
UNEVEN[50] += 1
REFUSED: dict[str, tuple[Callable[[str], object], str, str]] = {
    "no band": (lambda u: cube(u, PLACE | SAID, data=DB[:1]), "missing_band", "(1, 90, 130)"),
    "no CRS": (lambda u: cube(u, SAID), "unreadable", "no CRS"),
    "no transform": (lambda u: cube(u, SAID | {"crs": "EPSG:32721"}), "unreadable", "no geotransform"),
    "odd CRS": (lambda u: cube(u, SAID | PLACE | {"crs": "EPSG:1"}), "unreadable", "georeference"),
    "integers": (lambda u: cube(u, SAID | PLACE, data=DB.astype("i2")), "wrong_dtype", "int16"),
    "no units": (lambda u: cube(u, PLACE), "unreadable", "undeclared units"),
    "uneven": (coordinates(UNEVEN), "wrong_shape", "not evenly spaced"),
    "short": (coordinates(UNEVEN[1:]), "wrong_shape", "(129,) for 130"),
    "no zarr": (lambda u: storage.put(f"{u}/a.txt", b""), "unreadable", "no zarr metadata"),
    "torn": (lambda u: storage.put(f"{u}/zarr.json", b"{"), "unreadable", "does not open as zarr"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_mosaic_is_refused_by_name(root: str, case: str) -> None:
    make, reason, value = REFUSED[case]
    make(root)
    with pytest.raises(BadInput) as e:
        open_scene(root)
    assert (e.value.reason, e.value.uri) == (reason, root)
    assert value in e.value.detail


def test_errors_have_names(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="mosaic.zarr"):
        open_scene(root)
    scene = open_scene(cube(root, PLACE | SAID))
    real = storage.read_bytes

    def down(uri: str) -> bytes:
        if "/c/" in uri:
            raise Unavailable(uri, "down")
        return real(uri)

    with monkeypatch.context() as m:
        m.setattr(storage, "read_bytes", down)
        with pytest.raises(Unavailable, match="down"):
            read_window(scene, 0, 0, 9, 9)
    np.testing.assert_array_equal(read_window(scene, 0, 0, 9, 9), DB[:, :9, :9])
    storage.put(f"{root}/sar/c/0/0/0", b"flipped")
    with pytest.raises(BadInput, match="do not decode"):
        read_window(scene, 0, 0, 9, 9)
    monkeypatch.setattr(zarr_scene, "_opened", type(zarr_scene._opened)())
    with pytest.raises(BadInput, match="changed since it was opened"):
        read_window(scene, 40, 40, 9, 9)
