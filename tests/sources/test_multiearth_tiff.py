"""MultiEarth TIFF folders: names, listing, pixels, and every way in which a file can be bad."""

from __future__ import annotations

import datetime as dt
import struct
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile

from sar2eo_dist import sources, storage
from sar2eo_dist.errors import AccessDenied, BadInput, ConfigError, NotFound, SourceChanged, StorageError, Unavailable
from sar2eo_dist.records import TileRef, digest, from_table, place_key
from sar2eo_dist.sources import multiearth, multiearth_tiff
from sar2eo_dist.sources.multiearth_tiff import parse_name

KIND = "multiearth_tiff"
RNG = np.random.default_rng(5)
DB = RNG.normal(-12, 3, (2, 256, 256)).astype(np.float32)
DN = RNG.integers(1, 3000, (4, 256, 256)).astype(np.uint16)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore")
        with memory.open(
            driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype.name, **options
        ) as dataset:
            dataset.write(pixels)
        return bytes(memory.read())


def put(root: str, name: str, data: bytes | np.ndarray = b"") -> str:
    uri = storage.join(root, name)
    storage.put(uri, tiff(data) if isinstance(data, np.ndarray) else data)
    return uri


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


def s1(
    root: str, vv: bytes | np.ndarray = DB[0], vh: bytes | np.ndarray = DB[1], where: str = "-55.20_-4.39_2019_06_08"
):
    put(root, f"Sentinel1_VV_{where}.tiff", vv)
    put(root, f"Sentinel1_VH_{where}.tiff", vh)
    return sources.list_tiles(KIND, root, "s1")[0][-1]


def s2(root: str, where: str = "-55.20_-4.39_2019_06_06", **bands: bytes | np.ndarray):
    for band, data in ({"B2": DN[2], "B3": DN[1], "B4": DN[0]} | bands).items():
        put(root, f"Sentinel2_{band}_{where}.tiff", data)
    return sources.list_tiles(KIND, root, "s2")[0][-1]


# names ----------------------------------------------------------------------------------------------------------------

words = st.text("ABCDEFGHXYZ0123456789", min_size=1, max_size=6)


@settings(max_examples=50)
@given(
    sensor=words,
    band=st.lists(words, max_size=3).map("_".join),
    lon=st.integers(-18000, 18000),
    lat=st.integers(-9000, 9000),
    date=st.dates(),
)
def test_a_name_is_read_back_as_it_was_written(sensor: str, band: str, lon: int, lat: int, date: dt.date) -> None:
    name = parse_name(f"s3://bucket/x_y/{multiearth.stem(sensor, lon / 100, lat / 100, date, band)}.tiff")
    assert (name.sensor, name.band, name.date) == (sensor, band, date)
    assert (round(100 * name.lon), round(100 * name.lat)) == (lon, lat)


@settings(max_examples=60)
@given(st.text(max_size=40) | st.from_regex(r"Sentinel[12]_[A-Z0-9_]*_-?\d+\.\d\d_-?\d+_\d{4}_\d\d_\d\d\.tiff?"))
@example("Sentinel1_VV_nan_inf_2019_06_08.tiff")
@example("Sentinel1_VV_-55.20_-4.39_2019_06_08.tiff\n")
def test_any_text_is_a_name_or_a_named_fault(text: str) -> None:
    try:
        name = parse_name(text)
        fault = "" if abs(name.lon) <= 180 and abs(name.lat) <= 90 else "no such place"
    except BadInput as e:
        fault = e.reason if e.uri == text else "another URI"
    assert fault in {"", "bad_name", "bad_date"}


def test_longitude_comes_first_and_a_band_may_hold_underscores() -> None:
    name = parse_name("/data/Landsat8_SR_B3_-55.20_-4.39_2020_07_20.TIF")
    assert (name.sensor, name.band, name.lon, name.lat) == ("Landsat8", "SR_B3", -55.2, -4.39)
    assert name.date == dt.date(2020, 7, 20)


@pytest.mark.parametrize(
    ("name", "reason", "value"),
    [
        ("Sentinel1_VV_-55.20_-4.39_2019_13_45.tiff", "bad_date", "2019-13-45"),
        ("Sentinel1_VV_-55.20_-4.39_2019_02_29.tiff", "bad_date", "2019-02-29"),
        ("Sentinel1_VV_-55.20_-4.39_2014_04_02.tiff", "bad_date", "2014-04-02"),
        ("Sentinel1_VV_-55.20_-4.39_2999_01_01.tiff", "bad_date", "2999-01-01"),
        ("Sentinel1_VV_-55.20_-4.39_20190608.tiff", "bad_name", "20190608"),
        ("Sentinel1_VV_-555.20_-4.39_2019_06_08.tiff", "bad_name", "-555.2"),
        ("Sentinel1_-55.20_-4.39_2019_06_08.tiff", "bad_name", "no band"),
        ("S1A_IW_GRDH_1SDV_20190608T091543.tiff", "bad_name", "S1A_IW_GRDH"),
    ],
)
def test_a_bad_name_is_rejected_with_its_value(root: str, name: str, reason: str, value: str) -> None:
    uri = put(root, name)
    s1(root)
    tiles, rejected = sources.list_tiles(KIND, root, "s1")
    assert [t.key for t in tiles] == ["s1/-05520-0439/2019-06-08"]
    assert [(r.sensor, r.uri, r.reason) for r in rejected] == [("s1", uri, reason)]
    assert value in rejected[0].detail


def test_dates_from_the_launch_to_tomorrow_are_possible() -> None:
    today = dt.datetime.now(dt.UTC).date()
    assert not multiearth.date_fault(dt.date(2014, 4, 3))
    assert not multiearth.date_fault(today + dt.timedelta(days=1))
    assert str(today + dt.timedelta(days=2)) in multiearth.date_fault(today + dt.timedelta(days=2))


# listing --------------------------------------------------------------------------------------------------------------


def test_one_folder_may_hold_every_sensor(root: str) -> None:
    for where in ("-55.20_-4.39_2019_06_20", "-55.22_-4.39_2019_06_08", "-55.20_-4.39_2019_06_08"):
        s1(storage.join(root, "a", where), where=where)
    s2(storage.join(root, "b"), QA60=DN[3], B1=b"not read", B8=b"not read")
    for other in (
        "Landsat5_SR_B1_-55.20_-4.39_2001_13_01.tiff",
        "Deforestation_-55.20_-4.39_2021_05_01.tiff",
        "notes.txt",
    ):
        put(root, other)
    put(root, "Sentinel2_B2_-55.20_-4.39_2019_99_99.tiff")
    tiles, rejected = sources.list_tiles(KIND, root, "s1")
    assert [t.key for t in tiles] == sorted(t.key for t in tiles)
    assert len(tiles) == 3
    assert not rejected
    assert tiles[0].bands == ("VV", "VH")
    assert [storage.name(u)[:12] for u in tiles[0].uris] == ["Sentinel1_VV", "Sentinel1_VH"]
    tiles, rejected = sources.list_tiles(KIND, root, "s2")
    assert [(t.key, t.bands, t.rows) for t in tiles] == [("s2/-05520-0439/2019-06-06", ("B4", "B3", "B2", "QA60"), ())]
    assert [r.reason for r in rejected] == ["bad_date"]


def test_qa60_is_optional(root: str) -> None:
    tile = s2(root)
    assert tile.bands == ("B4", "B3", "B2")
    assert sources.read_eo(tile).qa60 is None


def test_a_missing_band_rejects_its_acquisition_once(root: str) -> None:
    s2(root)
    put(root, "Sentinel2_B4_-55.22_-4.39_2019_06_06.tiff")
    tiles, rejected = sources.list_tiles(KIND, root, "s2")
    assert len(tiles) == 1
    assert [r.reason for r in rejected] == ["missing_band"]
    assert rejected[0].detail == "s2/-05522-0439/2019-06-06 has B4, not B3 B2"


def test_a_second_file_of_one_band_is_a_duplicate(root: str) -> None:
    s1(root)
    first, second = sorted(
        [put(root, "Sentinel1_VV_-55.20_-4.39_2019_06_08.tiff"), put(root, "x/Sentinel1_VV_-55.2_-4.39_2019_06_08.tif")]
    )
    tiles, rejected = sources.list_tiles(KIND, root, "s1")
    assert tiles[0].uris[0] == first
    assert [(r.reason, r.uri) for r in rejected] == [("duplicate", second)]
    assert first in rejected[0].detail


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    root = str(tmp_path)
    before = s1(root)
    assert before == sources.list_tiles(KIND, root, "s1")[0][0]
    put(root, "Sentinel1_VH_-55.20_-4.39_2019_06_08.tiff", b"another size")
    after = sources.list_tiles(KIND, root, "s1")[0][0]
    assert (after.key, after.uris) == (before.key, before.uris)
    assert after.digest != before.digest


def one_by_one(infos: list[storage.Info], sensor: str) -> tuple[list[TileRef], set[tuple[str, str, str]]]:
    """What `scan` does in columns, in plain words: good names only."""
    wanted = ("VV", "VH") if sensor == "s1" else ("B4", "B3", "B2", "QA60")
    groups: dict[str, list[tuple[str, storage.Info]]] = {}
    for info in infos:
        name = parse_name(info.uri)
        if name.sensor.lower() == f"sentinel{sensor[1]}":
            key = f"{sensor}/{place_key(name.lon, name.lat)}/{name.date.isoformat()}"
            groups.setdefault(key, []).append((name.band.upper(), info))
    tiles, rejected = [], set()
    for key, files in sorted(groups.items(), key=lambda group: (group[0][-10:], group[0])):  # by date, then by key
        first: dict[str, storage.Info] = {}
        for band, info in files:
            if first.setdefault(band, info) != info and band in wanted:
                rejected.add(("duplicate", info.uri, f"{band} of this place and date is {first[band].uri}"))
        missing = [b for b in wanted[:3] if b not in first]
        if missing:
            rejected.add(("missing_band", files[0][1].uri, f"{key} has {' '.join(first)}, not {' '.join(missing)}"))
            continue
        bands = tuple(b for b in wanted if b in first)
        name, mark = parse_name(first[bands[0]].uri), digest(*(first[b].digest for b in bands))
        uris = tuple(first[b].uri for b in bands)
        tiles.append(TileRef(sensor, name.lon, name.lat, name.date, KIND, bands, uris, mark))
    return tiles, rejected


names = st.builds(
    "{}Sentinel{}_{}_{}_{}_2019_06_{:02}.{}".format,
    st.sampled_from(["", "a/", "a.b/"]), st.sampled_from("12"),
    st.sampled_from(["VV", "VH", "B4", "B3", "B2", "QA60", "SR_B8"]),
    st.sampled_from(["-55.20", "-55.2", "0.00", "-0.004", "-0.01", "0.01"]), st.sampled_from(["-4.39", "4.39"]),
    st.integers(7, 8), st.sampled_from(["tif", "TIFF"]),
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.sets(names, max_size=60), st.integers(1, 5))
def test_a_scan_equals_grouping_one_by_one(found: set[str], batch: int) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    for name in ("x.txt", *found):
        put(root, name, name.encode())
    for sensor in ("s1", "s2"):
        expected = one_by_one([i for i in storage.list_files(root) if not i.uri.endswith("txt")], sensor)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(multiearth_tiff, "BATCH", batch)
            seen: list[int] = []
            tables, rejected = sources.scan(KIND, root, sensor, seen.append)
            whole = list(tables)
        assert seen[-1] == len(found) + 1
        assert all(0 < t.num_rows <= batch and t.schema.equals(multiearth.SCHEMA) for t in whole)
        refs = [ref for t in whole for ref in from_table(t, TileRef)]
        assert [key for t in whole for key in t["key"].to_pylist()] == [ref.key for ref in refs]
        assert (refs, {(r.reason, r.uri, r.detail) for r in rejected}) == expected
    storage.delete(root)


def test_a_tile_that_changed_since_it_was_listed_is_named(tmp_path: Path) -> None:
    tile = s2(str(tmp_path), QA60=DN[3])
    sources.unchanged(tile)
    put(str(tmp_path), storage.name(tile.uris[3]), b"another size")
    with pytest.raises(SourceChanged, match="2019-06-06"):
        sources.unchanged(tile)


@pytest.mark.parametrize("uri", ["/no/such/folder", "memory://no-such-bucket/x"])
def test_a_wrong_root_has_a_name(uri: str) -> None:
    with pytest.raises(NotFound, match=r"no-such|no/such"):
        sources.list_tiles(KIND, uri, "s1")


def test_wrong_arguments_have_a_name(root: str) -> None:
    uri = put(root, "sent1.nc", b"x")
    with pytest.raises(StorageError, match=r"no TIFF.*sent1\.nc"):
        sources.list_tiles(KIND, uri, "s1")
    with pytest.raises(StorageError, match="nosuchscheme"):
        sources.list_tiles(KIND, "nosuchscheme://x", "s1")
    with pytest.raises(ConfigError, match="'sentinel'"):
        sources.list_tiles(KIND, root, "sentinel")
    with pytest.raises(ConfigError, match="'zip'"):
        sources.list_tiles("zip", root, "s1")


# pixels ---------------------------------------------------------------------------------------------------------------


def test_sar_is_vv_then_vh_in_db_with_nan_for_no_data(root: str) -> None:
    vv, vh = DB.copy()
    vv[0, 0] = vh[0, 0] = 0  # S1 border
    vv[0, 1] = 0  # 0 dB in one band is a target
    vv[1, 0], vh[1, 1], vv[1, 2] = -np.inf, np.nan, np.inf
    pixels = sources.read_sar(s1(root, vv, vh))
    assert pixels.shape == (2, 256, 256)
    assert pixels.dtype == np.float32
    expected = np.stack([vv, vh])
    expected[:, 0, 0] = expected[0, 1, 0] = expected[1, 1, 1] = expected[0, 1, 2] = np.nan
    np.testing.assert_array_equal(pixels, expected)


def test_eo_is_b4_b3_b2_whatever_their_integer_type(root: str) -> None:
    qa = (DN[3] % 2 * 1024).astype(np.int32)
    eo = sources.read_eo(s2(root, B3=DN[1].astype(np.int16), QA60=qa))
    np.testing.assert_array_equal(eo.bands, DN[:3])
    assert eo.bands.dtype == np.uint16
    assert eo.qa60 is not None
    np.testing.assert_array_equal(eo.qa60, qa)
    assert eo.qa60.dtype == np.uint16


def test_a_declared_nodata_value_is_no_data(root: str) -> None:
    vv, b4 = DB[0].copy(), DN[0].copy()
    vv[3, 4], b4[3, 4] = -9999, 65535
    assert np.isnan(sources.read_sar(s1(root, tiff(vv, nodata=-9999)))[0, 3, 4])
    assert sources.read_eo(s2(root, B4=tiff(b4, nodata=65535))).bands[0, 3, 4] == 0


def test_float64_is_cast(root: str) -> None:
    vv = DB[0].astype(np.float64)
    vv[0, 0] = 1e300
    pixels = sources.read_sar(s1(root, vv))
    assert np.isnan(pixels[0, 0, 0])
    np.testing.assert_array_equal(pixels[0, 1:], DB[0, 1:])


@pytest.mark.parametrize("where", ["local", "memory"])
def test_many_tiles_are_read_in_order_whatever_fails(root: str, tmp_path: Path, where: str) -> None:
    root = str(tmp_path) if where == "local" else root
    refs = []
    for day in range(1, 10):
        refs.append(s1(root, DB[0] + day, b"torn" if day == 4 else DB[1], f"-55.20_-4.39_2019_06_{day:02}"))
        refs.append(s2(root, f"-55.20_-4.39_2019_06_{day:02}", B2=DN[day % 4]))
    storage.delete(refs[10].uris[1])
    found = list(sources.read_many(iter(refs), ahead=5))
    assert [ref for ref, _ in found] == refs
    for i, (ref, pixels) in enumerate(found):
        if i in (6, 10):
            assert isinstance(pixels, NotFound if i == 10 else BadInput)
            assert pixels.uri == ref.uris[1]
        elif ref.sensor == "s1":
            np.testing.assert_array_equal(pixels, sources.read_sar(ref))
        else:
            assert isinstance(pixels, sources.EO)
            assert pixels.offset == 0
            np.testing.assert_array_equal(pixels.bands, sources.read_eo(ref).bands)


ALL_BAD = [
    ("empty", b"", "unreadable", "0 bytes"),
    ("torn", tiff(DB[0])[:100_000], "unreadable", "100000 bytes"),
    ("text", b"<html>503 slow down</html>", "unreadable", "26 bytes"),
    ("small", DB[0, :100], "wrong_shape", "100 x 256"),
    ("two bands", DB, "wrong_shape", "2 bands"),
    ("integer", DN[0], "wrong_dtype", "uint16"),
    ("complex", DB[0].astype(np.complex64), "wrong_dtype", "complex64"),
    ("all NaN", np.full_like(DB[0], np.nan), "all_nodata", "VV 0"),
    ("all -inf", np.full_like(DB[0], -np.inf), "all_nodata", "VV 0"),
]


@pytest.mark.parametrize(("data", "reason", "value"), [b[1:] for b in ALL_BAD], ids=[b[0] for b in ALL_BAD])
def test_bad_sar_is_refused_by_name(root: str, data: bytes | np.ndarray, reason: str, value: str) -> None:
    tile = s1(root, data)
    with pytest.raises(BadInput) as e:
        sources.read_sar(tile)
    assert (e.value.reason, e.value.uri) == (reason, tile.uris[0])
    assert value in e.value.detail


BAD_EO = [
    ("negative", {"B3": np.where(DN[1] > 2990, np.int16(-7), DN[1].astype(np.int16))}, "wrong_dtype", "-7.."),
    ("32 bit", {"B3": DN[1].astype(np.int32)}, "wrong_dtype", "int32"),
    ("float", {"B3": DB[0]}, "wrong_dtype", "float32"),
    ("wide QA60", {"QA60": np.full((256, 256), 70000, np.int32)}, "wrong_dtype", "70000"),
    ("float QA60", {"QA60": DB[0]}, "wrong_dtype", "float32"),
    ("torn QA60", {"QA60": tiff(DN[3])[:9000]}, "unreadable", "QA60"),
    ("small", {"B2": DN[0, :85, :85]}, "wrong_shape", "85 x 85"),
    ("no data", dict.fromkeys(("B2", "B3", "B4"), np.zeros_like(DN[0])), "all_nodata", "0"),
]


@pytest.mark.parametrize(("bands", "reason", "value"), [b[1:] for b in BAD_EO], ids=[b[0] for b in BAD_EO])
def test_bad_eo_is_refused_by_name(root: str, bands: dict[str, bytes | np.ndarray], reason: str, value: str) -> None:
    with pytest.raises(BadInput) as e:
        sources.read_eo(s2(root, **bands))
    assert e.value.reason == reason
    assert value in e.value.detail


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_damaged_bytes_are_pixels_or_a_named_fault(data: st.DataObject) -> None:
    whole = bytearray(tiff(DB[0], compress="deflate"))
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for at in data.draw(st.lists(st.integers(0, 400) | st.integers(0, max(0, len(whole) - 1)), max_size=8)):
        if at < len(whole):
            whole[at] = data.draw(st.integers(0, 255))
    tile = s1("memory://damaged", bytes(whole))
    try:
        fault = "" if sources.read_sar(tile).shape == (2, 256, 256) else "odd pixels"
    except BadInput as e:
        fault = e.reason
    assert fault in {"", "unreadable", "wrong_shape", "wrong_dtype", "all_nodata"}


def test_a_header_that_claims_a_huge_raster_is_refused_before_decoding(root: str) -> None:
    whole = bytearray(tiff(DB[0]))
    entries = struct.unpack_from("<H", whole, 8)[0]
    for i in range(entries):
        tag = struct.unpack_from("<H", whole, 10 + 12 * i)[0]
        if tag in (256, 257):  # ImageWidth, ImageLength
            struct.pack_into("<HII", whole, 12 + 12 * i, 4, 1, 60_000)
    with pytest.raises(BadInput, match=r"wrong_shape: VV is \d+ x \d+|unreadable"):
        sources.read_sar(s1(root, bytes(whole)))


@pytest.mark.parametrize("error", [Unavailable, AccessDenied, NotFound])
def test_an_outage_is_not_the_tiles_fault(
    root: str, monkeypatch: pytest.MonkeyPatch, error: type[StorageError]
) -> None:
    tile = s1(root)

    def fail(uri: str) -> bytes:
        raise error(uri, "down")

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(error):
        sources.read_sar(tile)


def test_real_patches(samples: Path) -> None:
    root = str(samples / "tier_a" / "multiearth2023")
    sar, bad_sar = sources.list_tiles(KIND, root, "s1")
    eo, bad_eo = sources.list_tiles(KIND, root, "s2")
    assert (bad_sar, bad_eo) == ([], [])
    assert [f"{t.date:%m-%d}" for t in sar] == ["05-27", "06-08", "06-20", "07-02"]
    assert len(eo) == 8
    assert all(t.bands == ("B4", "B3", "B2", "QA60") for t in eo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert -60 < float(np.nanmin(sources.read_sar(sar[0]))) < -20
        pixels = sources.read_eo(eo[-1])
    assert eo[-1].date == dt.date(2020, 7, 20)
    assert pixels.bands.max() == 2684  # cloud_labels_visual.csv
    assert pixels.qa60 is not None
    assert not pixels.qa60.any()
