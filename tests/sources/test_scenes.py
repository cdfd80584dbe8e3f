"""Scenes: what is read from the header, what is refused, and windows of any place, local or by ranges."""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from sar2eo_dist import storage
from sar2eo_dist.errors import AccessDenied, BadInput, NotFound, StorageError, Unavailable
from sar2eo_dist.records import SceneRef
from sar2eo_dist.sources.ranged import BLOCK
from sar2eo_dist.sources.scenes import open_scene, read_window

H, W = 300, 420
RNG = np.random.default_rng(7)
DB = np.stack([RNG.normal(-9, 2, (H, W)), RNG.normal(-15, 2, (H, W))]).astype(np.float32)
TAGS = {
    "SAR2EO_UNITS": "db",
    "SAR2EO_QUANTITY": "sigma0",
    "ORBIT": "DESCENDING",
    "PLATFORM": "S1A",
    "DATE": "2019-06-08",
}


def cog(
    pixels: np.ndarray = DB,
    names: tuple[str | None, ...] = ("VV", "VH"),
    tags: dict[str, str] | None = None,
    dtype: str | None = None,
    mask: np.ndarray | None = None,
    scale: tuple[float, float] | None = None,
    **options: object,
) -> bytes:
    place = {"crs": "EPSG:32721", "transform": rasterio.Affine(10, 0, 7e5, 0, -10, 9.5e6)}
    profile = {k: v for k, v in ({"driver": "COG", "blocksize": 128} | place | options).items() if v is not None}
    count, height, width = pixels.shape
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(
            count=count, height=height, width=width, dtype=dtype or pixels.dtype.name, **profile
        ) as dataset:
            dataset.write(pixels)
            dataset.update_tags(**(TAGS if tags is None else tags))
            for i, name in enumerate(names[:count], 1):
                if name:
                    dataset.set_band_description(i, name)
            if mask is not None:
                dataset.write_mask(mask)
            if scale:
                dataset.scales, dataset.offsets = [scale[0]] * count, [scale[1]] * count
        return bytes(memory.read())


def put(root: str, data: bytes, name: str = "scene.tif") -> str:
    uri = storage.join(root, name)
    storage.put(uri, data)
    return uri


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


@pytest.fixture(scope="module", params=["local", "memory"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SceneRef:
    """The same scene as a local file and behind an object store."""
    folder = str(tmp_path_factory.mktemp("scene"))
    return open_scene(put(folder if request.param == "local" else f"memory://{folder}", cog()))


def padded(reference: np.ndarray, row: int, col: int, height: int, width: int) -> np.ndarray:
    """The window by brute force."""
    out = np.full((2, height, width), np.nan, np.float32)
    for i in range(max(0, -row), min(height, reference.shape[1] - row)):
        for j0, j1 in [(max(0, -col), min(width, reference.shape[2] - col))]:
            if j0 < j1:
                out[:, i, j0:j1] = reference[:, row + i, col + j0 : col + j1]
    return out


# header ---------------------------------------------------------------------------------------------------------------


def test_the_header_says_what_a_scene_is(scene: SceneRef) -> None:
    assert (scene.width, scene.height, scene.crs) == (W, H, "EPSG:32721")
    assert scene.transform == (10, 0, 7e5, 0, -10, 9.5e6)
    assert (scene.units, scene.quantity, scene.orbit, scene.platform) == ("db", "sigma0", "descending", "S1A")
    assert (scene.date, scene.uris, scene.footprint) == (dt.date(2019, 6, 8), (scene.uri,), ())
    assert scene.listed
    assert scene.digest == storage.info(scene.uri).digest


def test_arguments_stand_in_for_tags_and_go_before_them(root: str) -> None:
    bare = open_scene(put(root, cog(tags={})), "dB", "Gamma0")
    assert (bare.units, bare.quantity, bare.date) == ("db", "gamma0", None)
    assert (bare.orbit, bare.platform) == ("unknown", "unknown")
    assert open_scene(put(root, cog()), units="linear").units == "linear"


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("VV", "VH"), [0, 1]),
        (("VH", "VV"), [1, 0]),
        (("Sigma0_VH_db", "sigma0_vv_db"), [1, 0]),
        ((None, None), [0, 1]),
    ],
)
def test_descriptions_decide_the_order(root: str, names: tuple[str | None, ...], order: list[int]) -> None:
    scene = open_scene(put(root, cog(names=names)))
    np.testing.assert_array_equal(read_window(scene, 0, 0, 9, 9), DB[order, :9, :9])


def test_further_bands_do_no_harm(root: str) -> None:
    three = np.concatenate([DB[:1] * 0 + 38, DB])
    scene = open_scene(put(root, cog(three, ("angle", "VV", "VH"))))
    np.testing.assert_array_equal(read_window(scene, 5, 5, 9, 9), DB[:, 5:14, 5:14])


GCPS = [GroundControlPoint(r, c, -55 + c / 1e4, -4 - r / 1e4) for r in (0, H) for c in (0, W)]
PLAIN: dict[str, object] = {"driver": "GTiff", "blocksize": None}  # what the COG driver does not write
GRD = PLAIN | {"transform": None, "crs": "EPSG:4326", "gcps": GCPS}
REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "raw GRD": (lambda: cog(**GRD), "unreadable", "raw GRD (4 ground control points"),
    "no CRS": (lambda: cog(crs=None), "unreadable", "no CRS"),
    "no geotransform": (lambda: cog(transform=None, **PLAIN), "unreadable", "no geotransform"),
    "one band": (lambda: cog(DB[:1]), "missing_band", "1 band"),
    "HH, HV": (lambda: cog(names=("HH", "HV")), "missing_band", "HH"),
    "VV twice": (lambda: cog(names=("VV", "VV_2")), "missing_band", "VV_2"),
    "complex": (lambda: cog(DB.astype(np.complex64), **PLAIN), "wrong_dtype", "complex64"),
    "complex integers": (lambda: cog(DB.astype(np.complex64), dtype="complex_int16", **PLAIN), "wrong_dtype", "(SLC)"),
    "integers": (lambda: cog(np.abs(DB).astype(np.uint16)), "wrong_dtype", "uint16"),
    "no units": (lambda: cog(tags={**TAGS, "SAR2EO_UNITS": ""}), "unreadable", "undeclared units"),
    "odd units": (lambda: cog(tags={**TAGS, "SAR2EO_UNITS": "amplitude"}), "unreadable", "unknown units 'amplitude'"),
    "no quantity": (lambda: cog(tags={"SAR2EO_UNITS": "db"}), "unreadable", "undeclared quantity"),
    "beta nought": (lambda: cog(tags={**TAGS, "SAR2EO_QUANTITY": "beta0"}), "unreadable", "'beta0'"),
    "bad date": (lambda: cog(tags={**TAGS, "DATE": "2019-13-45"}), "bad_date", "2019-13-45"),
    "early date": (lambda: cog(tags={**TAGS, "DATE": "1999-01-01"}), "bad_date", "1999-01-01"),
    "empty": (lambda: b"", "unreadable", "does not open"),
    "text": (lambda: b"<html>", "unreadable", "does not open"),
    "torn header": (lambda: cog()[:100], "unreadable", "does not open"),
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("store", ["local", "memory"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_geocoded_scene_is_refused_by_name(tmp_path: Path, case: str, store: str) -> None:
    make, reason, value = REFUSED[case]
    uri = put(str(tmp_path) if store == "local" else f"memory://{tmp_path}", make())
    with pytest.raises(BadInput) as e:
        open_scene(uri)
    assert (e.value.reason, e.value.uri) == (reason, uri)
    assert value in e.value.detail


def test_a_wrong_uri_has_a_name(root: str, tmp_path: Path) -> None:
    for uri in (storage.join(root, "none.tif"), str(tmp_path / "none.tif")):
        with pytest.raises(NotFound, match="none"):
            open_scene(uri)
    with pytest.raises(StorageError, match="nosuchscheme"):
        open_scene("nosuchscheme://x")


# windows --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    row=st.integers(-150, H + 50), col=st.integers(-150, W + 50), height=st.integers(0, 200), width=st.integers(0, 200)
)
def test_a_window_is_the_raster_padded_with_nan(scene: SceneRef, row: int, col: int, height: int, width: int) -> None:
    out = read_window(scene, row, col, height, width)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, padded(DB, row, col, height, width))


def test_a_window_around_everything(scene: SceneRef) -> None:
    out = read_window(scene, -7, -3, H + 11, W + 5)
    np.testing.assert_array_equal(out, padded(DB, -7, -3, H + 11, W + 5))


def test_a_negative_size_is_refused(scene: SceneRef) -> None:
    with pytest.raises(ValueError, match="-1 x 5"):
        read_window(scene, 0, 0, -1, 5)


def test_threads_read_side_by_side(scene: SceneRef) -> None:
    places = [(r, c) for r in range(-40, H, 90) for c in range(-40, W, 90)]
    with ThreadPoolExecutor(4) as pool:
        windows = list(pool.map(lambda p: read_window(scene, *p, 100, 100), places))
    for (r, c), window in zip(places, windows, strict=True):
        np.testing.assert_array_equal(window, padded(DB, r, c, 100, 100))


def test_linear_becomes_db_and_nothing_below_zero_is_data(root: str) -> None:
    linear = (10 ** (DB.astype(np.float64) / 10)).astype(np.float32)
    linear[:, 0, 0] = 0
    linear[0, 0, 1], linear[1, 0, 2], linear[0, 0, 3] = -1e-3, np.nan, np.inf
    linear[:, 0, 4] = 1  # 0 dB in both bands
    window = read_window(open_scene(put(root, cog(linear)), units="linear"), 0, 0, 9, 9)
    expected = DB[:, :9, :9].copy()
    expected[:, 0, 0] = expected[0, 0, 1] = expected[1, 0, 2] = expected[0, 0, 3] = np.nan
    expected[:, 0, 4] = 0
    np.testing.assert_allclose(window, expected, atol=1e-5)


def test_border_zeros_and_infinities_of_db_are_no_data(root: str) -> None:
    db = DB.copy()
    db[:, 0, 0] = 0
    db[0, 0, 1], db[1, 0, 2] = 0, -np.inf
    window = read_window(open_scene(put(root, cog(db))), 0, 0, 1, 3)
    np.testing.assert_array_equal(np.isnan(window[:, 0]), [[True, False, False], [True, False, True]])


@pytest.mark.parametrize("value", [-9999.0, float("nan"), 0.0])
def test_the_nodata_value_is_no_data(root: str, value: float) -> None:
    db = DB.copy()
    db[0, 3, 4] = value
    scene = open_scene(put(root, cog(db, nodata=value)))
    expected = DB.copy()
    expected[0, 3, 4] = np.nan
    np.testing.assert_array_equal(read_window(scene, 0, 0, 9, 9), expected[:, :9, :9])


def test_masked_pixels_are_no_data(root: str) -> None:
    mask = np.ones((H, W), bool)
    mask[2:5, 3] = False
    window = read_window(open_scene(put(root, cog(mask=mask))), 0, 0, 9, 9)
    np.testing.assert_array_equal(window, np.where(mask, DB, np.nan)[:, :9, :9])


def test_integers_with_a_scale_are_read(root: str) -> None:
    stored = np.round(DB * 100).astype(np.int16)
    scene = open_scene(put(root, cog(stored, scale=(0.01, 0.0), **PLAIN)))
    np.testing.assert_allclose(read_window(scene, 0, 0, 9, 9), DB[:, :9, :9], atol=0.0051)


def test_a_window_costs_its_own_tiles(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = RNG.random((2, 1024, 1024), dtype=np.float32)
    scene = open_scene(put(root, cog(noise, overviews="NONE")))
    size = storage.info(scene.uri).size
    fetched: list[int] = []
    real = storage.read_range

    def counted(uri: str, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return real(uri, start, end)

    def whole(uri: str) -> bytes:
        raise AssertionError("read as a whole")

    monkeypatch.setattr(storage, "read_range", counted)
    monkeypatch.setattr(storage, "read_bytes", whole)
    np.testing.assert_array_equal(read_window(scene, 512, 512, 128, 128), noise[:, 512:640, 512:640])
    assert sum(fetched) < size / 20 + 2 * BLOCK
    assert len(fetched) <= 6


def test_an_outage_has_its_name_and_passes(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(root, cog())
    scene = open_scene(uri)
    for error in (Unavailable, AccessDenied, NotFound):
        with monkeypatch.context() as m:
            m.setattr(storage, "read_range", _raises(error))
            with pytest.raises(error, match="down"):
                read_window(scene, 0, 0, 200, 200)
            with pytest.raises(error, match="down"):
                open_scene(uri)
        np.testing.assert_array_equal(read_window(scene, 0, 0, 20, 20), DB[:, :20, :20])
        with monkeypatch.context() as m:  # the header is known, the pixels are not
            m.setattr(storage, "read_range", _raises(error))
            with pytest.raises(error, match="down"):
                read_window(scene, 200, 200, 90, 90)
    np.testing.assert_array_equal(read_window(scene, 200, 200, 90, 90), DB[:, 200:290, 200:290])


def _raises(error: type[StorageError]) -> Callable[[str, int, int], bytes]:
    def fail(uri: str, start: int, end: int) -> bytes:
        raise error(uri, "down")

    return fail


@pytest.mark.parametrize("store", ["local", "memory"])
def test_a_torn_scene_is_bad_input_where_it_is_torn(tmp_path: Path, store: str) -> None:
    root = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    scene = open_scene(put(root, cog()[:-40_000]))  # a COG's header comes first
    np.testing.assert_array_equal(read_window(scene, 0, 0, 100, 100), DB[:, :100, :100])
    with pytest.raises(BadInput, match=r"unreadable: (torn: \d+ bytes|.*does not decode)"):
        read_window(scene, 0, 0, H, W)


def test_a_scene_that_changed_is_refused(root: str) -> None:
    scene = open_scene(put(root, cog()))
    put(root, cog(DB[:, :200]))
    with pytest.raises(BadInput, match="changed since it was opened"):
        read_window(scene, 0, 0, 9, 9)


def test_sidecars_are_ignored(tmp_path: Path) -> None:
    uri = put(str(tmp_path), cog())
    (tmp_path / "scene.tif.aux.xml").write_text(
        f"<PAMDataset><PAMRasterBand band='1'><NoDataValue>{DB[0, 0, 0]}</NoDataValue></PAMRasterBand></PAMDataset>"
    )
    np.testing.assert_array_equal(read_window(open_scene(uri), 0, 0, 9, 9), DB[:, :9, :9])


def test_real_scene(samples: Path) -> None:
    found = sorted((samples / "tier_b" / "pairs_sen1floods11").rglob("*S1*.tif"))
    if not found:
        pytest.skip("tier_b/pairs_sen1floods11 is not among the samples")
    scene = open_scene(str(found[0]), "db", "sigma0")
    with rasterio.open(found[0]) as dataset:
        reference = dataset.read([1, 2])
    assert (scene.crs, scene.height, scene.width) == ("EPSG:4326", 512, 512)
    window = read_window(scene, 100, 100, 64, 64)
    np.testing.assert_array_equal(window, reference[:, 100:164, 100:164])
