"""MultiEarth NetCDF files: epochs, listing, one chunk a patch, target lists, and every way of being bad."""

from __future__ import annotations

import datetime as dt
import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist import sources, storage
from sar2eo_dist.errors import BadInput, NotFound, SourceChanged, StorageError, Unavailable
from sar2eo_dist.records import TileRef, by_key, digest, from_table
from sar2eo_dist.sources import multiearth, netcdf_index
from sar2eo_dist.sources import multiearth_netcdf as netcdf
from sar2eo_dist.sources.ranged import BLOCK

KIND = "multiearth_netcdf"
RNG = np.random.default_rng(6)
DB = RNG.normal(-12, 3, (3, 2, 1, 256, 256)).astype(np.float32)  # data_band is alphabetical: VH, VV
DN = RNG.integers(1, 3000, (3, 5, 1, 256, 256)).astype(np.uint16)
PLACES = [(-4.39, -55.2), (-4.39, -55.2), (-4.37, -55.2)]  # (lat, lon)
S1_DAYS, S1_UNITS = [1488, 1500, 1500], "days since 2015-04-30"
EO_BANDS = ("B1", "B2", "B3", "B4", "QA60")


def put(root: str, name: str = "sent1.nc", **change: object) -> str:
    """Write a file as the challenge stores it, with some of it changed; None leaves a part out."""
    eo = name.startswith("sent2")
    parts: dict[str, object] = {
        "images": DN if eo else DB,
        "bands": EO_BANDS if eo else ("VH", "VV"),
        "dates": S1_DAYS,
        "units": S1_UNITS,
        "calendar": "proleptic_gregorian",
        "centres": PLACES,
        "order": ("lat", "lon"),
        "source": "Sentinel-2" if eo else "Sentinel-1",
        "fill": 65535 if eo else np.nan,
        "chunk": None,
        "centre_chunk": None,
    } | change
    out = io.BytesIO()
    with h5py.File(out, "w") as h5:
        images, text = parts["images"], h5py.string_dtype()
        if images is not None:
            chunk = parts["chunk"] or (1, *images.shape[1:])
            packing = {} if chunk is True else {"chunks": chunk, "shuffle": True, "compression": "lzf"}
            h5.create_dataset("images", data=images, fillvalue=parts["fill"], **packing)
        for key, value in (("data_band", parts["bands"]), ("geo_coord", parts["order"])):
            if value is not None:
                h5.create_dataset(key, data=[v.encode() for v in value], dtype=text)
        if parts["dates"] is not None:
            dates = h5.create_dataset("collection_dates", data=np.asarray(parts["dates"]))
            for key in ("units", "calendar"):
                if parts[key] is not None:
                    dates.attrs[key] = np.bytes_(parts[key])
        if parts["centres"] is not None:
            h5.create_dataset("center_lat_lons", data=np.asarray(parts["centres"], float), chunks=parts["centre_chunk"])
        if parts["source"] is not None:
            h5.attrs["data_source"] = np.bytes_(parts["source"])
    uri = storage.join(root, name)
    storage.put(uri, out.getvalue())
    return uri


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


# epochs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "epoch", "seconds"),
    [
        ("days since 2015-04-30", "2015-04-30T00:00", 86400),
        ("days since 2015-04-30 00:00:00", "2015-04-30T00:00", 86400),
        (" Hours since 1970-1-1 06:30 ", "1970-01-01T06:30", 3600),
        ("minutes since 2000-01-01T12:00:30.5Z", "2000-01-01T12:00:30.500000", 60),
        ("seconds since 2000-01-01 00:00:00 +03:00", "1999-12-31T21:00", 1),
        ("day since 2000-01-01 00:00 -0330", "2000-01-01T03:30", 86400),
    ],
)
def test_an_epoch_is_read(units: str, epoch: str, seconds: int) -> None:
    assert netcdf_index.parse_epoch(units, "standard") == (dt.datetime.fromisoformat(epoch), seconds)


@pytest.mark.parametrize(
    ("units", "calendar"),
    [
        ("", ""),
        ("days", ""),
        ("months since 2015-04-30", ""),
        ("days since the flood", ""),
        ("days since 2015-02-30", ""),
        ("days since 2015-04-30", "360_day"),
        ("days since 2015-04-30 25", ""),
    ],
)
def test_a_foreign_epoch_is_refused(root: str, units: str, calendar: str) -> None:
    uri = put(root, units=units, calendar=calendar)
    for read in (lambda: sources.list_tiles(KIND, uri, "s1"), lambda: netcdf.list_targets(uri)):
        with pytest.raises(BadInput) as e:
            read()
        assert (e.value.reason, e.value.uri) == ("bad_date", uri)


def test_a_missing_epoch_is_refused(root: str) -> None:
    with pytest.raises(BadInput, match="bad_date: collection_dates"):
        sources.list_tiles(KIND, put(root, units=None, calendar=None), "s1")


@settings(max_examples=50)
@given(epoch=st.dates(dt.date(1950, 1, 1)), day=st.dates(dt.date(1950, 1, 1)), hours=st.booleans())
def test_any_epoch_gives_the_same_day(epoch: dt.date, day: dt.date, hours: bool) -> None:
    unit, step = ("hours", 24) if hours else ("days", 1)
    start, seconds = netcdf_index.parse_epoch(f"{unit} since {epoch.isoformat()}")
    assert netcdf_index.day(start, seconds, (day - epoch).days * step) == (day, "")


# listing --------------------------------------------------------------------------------------------------------------


def test_every_row_is_an_acquisition(root: str) -> None:
    uri = put(root)
    tiles, rejected = sources.list_tiles(KIND, uri, "s1")
    assert not rejected
    assert [(t.key, t.rows) for t in tiles] == [
        ("s1/-05520-0437/2019-06-08", (2,)),
        ("s1/-05520-0439/2019-05-27", (0,)),
        ("s1/-05520-0439/2019-06-08", (1,)),
    ]
    assert tiles[0].bands == ("VV", "VH")
    assert tiles[0].uris == (uri,)
    assert len({t.digest for t in tiles}) == 3
    assert sources.list_tiles(KIND, uri, "s2") == ([], [])


def test_hours_since_another_epoch_and_swapped_coordinates_list_the_same(root: str) -> None:
    plain = sources.list_tiles(KIND, put(root), "s1")[0]
    days = (dt.date(2015, 4, 30) - dt.date(1999, 12, 31)).days
    uri = put(
        root,
        "sent1_hours.nc",
        units="hours since 1999-12-31 03:00:00",
        dates=[24.0 * (d + days) for d in S1_DAYS],
        centres=[(lon, lat) for lat, lon in PLACES],
        order=("lon", "lat"),
        source=None,
    )
    assert [t.key for t in sources.list_tiles(KIND, uri, "s1")[0]] == [t.key for t in plain]


@pytest.mark.parametrize(
    ("change", "reason", "value"),
    [
        ({"dates": [1488, -(2**63) + 2, 1500]}, "bad_date", "row 1: -9223372036854775806"),
        ({"dates": [1488, -1000, 1500]}, "bad_date", "row 1: 2012-08-03"),
        ({"dates": [1488.0, np.nan, 1500]}, "bad_date", "row 1: nan"),
        ({"dates": [1488, 99999, 1500]}, "bad_date", "row 1: 2289"),
        ({"centres": [PLACES[0], (np.nan, np.nan), PLACES[2]]}, "unreadable", "row 1: no place at longitude nan"),
        ({"centres": [PLACES[0], (-4.39, 555), PLACES[2]]}, "unreadable", "row 1: no place at longitude 555"),
        ({"dates": [1488, 1488, 1500]}, "duplicate", "row 1: s1/-05520-0439/2019-05-27 is row 0"),
    ],
)
def test_a_bad_row_is_rejected_with_its_value(root: str, change: dict, reason: str, value: str) -> None:
    uri = put(root, **change)
    tiles, rejected = sources.list_tiles(KIND, uri, "s1")
    assert [t.rows[0] for t in tiles] == [2, 0]
    assert [(r.uri, r.reason) for r in rejected] == [(uri, reason)]
    assert rejected[0].detail.startswith(value)


def test_a_band_that_the_file_lacks_rejects_each_acquisition(root: str) -> None:
    uri = put(root, "sent2.nc", images=DN[:, :4], bands=("B1", "B2", "B3", "QA60"))
    tiles, rejected = sources.list_tiles(KIND, uri, "s2")
    assert not tiles
    assert [r.reason for r in rejected] == ["missing_band"] * 3
    assert rejected[0].detail.endswith("has B1 B2 B3 QA60, not B4")


def many(root: str, count: int = 60, **change: object) -> str:
    """Rows of one place after the other, in reverse order of date, without images."""
    at = np.arange(count)
    none = {"images": np.zeros((0, 2, 1, 256, 256), np.float32), "chunk": True}
    centres = np.stack([np.full(count, -4.39), -55.2 + 0.02 * (at // 7)], 1)
    return put(root, dates=1500 - at % 7, centres=centres, **(change if "images" in change else none | change))


@pytest.mark.parametrize("chunk", [(1, 2), (7, 2), (1, 1), (64, 2), (2000, 2)])
def test_an_index_of_any_chunks_lists_the_same(root: str, chunk: tuple[int, int]) -> None:
    plain = sources.list_tiles(KIND, many(root, 2000), "s1")[0]
    chunked = sources.list_tiles(KIND, many(root, 2000, centre_chunk=chunk), "s1")[0]
    assert [(t.key, t.lon, t.lat, t.rows) for t in chunked] == [(t.key, t.lon, t.lat, t.rows) for t in plain]
    assert len(plain) == 2000


def test_an_index_of_a_chunk_a_row_costs_few_reads(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = many(root, 20_000, centre_chunk=(1, 2))
    fetched: list[int] = []
    real = storage.read_range

    def counted(uri: str, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return real(uri, start, end)

    monkeypatch.setattr(storage, "read_range", counted)
    assert len(sources.list_tiles(KIND, uri, "s1")[0]) == 20_000
    assert len(fetched) < 30
    assert sum(fetched) < 2 * storage.info(uri).size


def test_rows_that_were_never_written_are_fill_values(root: str) -> None:
    data = storage.read_bytes(many(root, 10, centre_chunk=(1, 2)))
    for fill in (0.0, np.nan):
        out = io.BytesIO(data)
        with h5py.File(out, "r+") as h5:
            places = h5["center_lat_lons"][()]
            del h5["center_lat_lons"]
            h5.create_dataset("center_lat_lons", (10, 2), float, chunks=(3, 2), fillvalue=fill)[:4] = places[:4]
        uri = storage.join(root, "unwritten.nc")
        storage.put(uri, out.getvalue())
        tiles, rejected = sources.list_tiles(KIND, uri, "s1")
        lines = {t.rows[0]: t.lon for t in tiles}
        assert {row: lon for row, lon in lines.items() if row < 4} == dict(enumerate(places[:4, 1].tolist()))
        if fill == 0:  # a chunk that holds a written row is zero where nothing was written, as others are by `fill`
            assert [lines[row] for row in range(4, 7)] == [0, 0, 0]
        else:
            assert [r.reason for r in rejected] == ["unreadable"] * 6


def test_a_scan_goes_by_date_and_key_and_tells_its_progress(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcdf, "BATCH", 16)
    uri = many(root, centre_chunk=(1, 2))
    seen: list[int] = []
    tables, rejected = sources.scan(KIND, uri, "s1", seen.append)
    assert seen[-1] == 60
    whole = list(tables)
    assert [t.num_rows for t in whole] == [16, 16, 16, 12]
    assert all(t.schema.equals(multiearth.SCHEMA) for t in whole)
    table = pa.concat_tables(whole)
    keys = table["key"].to_pylist()
    refs = from_table(table, TileRef)
    assert [(r.date, r.key) for r in refs] == sorted({(r.date, r.key) for r in refs})
    assert [r.key for r in refs] == keys
    mark = storage.info(uri).digest
    assert [(r.uris, r.digest) for r in refs] == [((uri,), digest(mark, r.rows[0])) for r in refs]
    assert (by_key(refs), rejected) == sources.list_tiles(KIND, uri, "s1")
    sources.unchanged(refs[5])
    storage.put(uri, storage.read_bytes(uri) + b"x")
    with pytest.raises(SourceChanged, match=r"sent1\.nc"):
        sources.unchanged(refs[5])


degrees = st.one_of(st.floats(-90, 90), st.integers(-18000, 18000).map(lambda x: x / 200))


@settings(max_examples=60)
@given(st.lists(st.tuples(degrees, degrees.filter(lambda x: abs(x) <= 90), st.dates()), min_size=1, max_size=40))
def test_numbers_sort_as_dates_and_keys_do(rows: list[tuple[float, float, dt.date]]) -> None:
    keys = [(date, TileRef("s1", lon, lat, date, KIND, (), (), "").key) for lon, lat, date in rows]
    ranks = multiearth.order(*zip(*((lon, lat, date.toordinal()) for lon, lat, date in rows), strict=True)).tolist()
    assert max(ranks) < 2**54
    for a in range(len(rows)):
        assert (ranks[0] < ranks[a], ranks[0] == ranks[a]) == (keys[0] < keys[a], keys[0] == keys[a])


# pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [True, (1, 1, 1, 256, 256), (3, 2, 1, 256, 256), (1, 2, 1, 128, 256)])
def test_pixels_of_any_chunks_are_read(root: str, chunk: object) -> None:
    noise = RNG.normal(size=DB.shape).astype(np.float32)
    tiles = sources.list_tiles(KIND, put(root, images=noise, chunk=chunk), "s1")[0]
    for tile, pixels in sources.read_many(tiles * 2):
        np.testing.assert_array_equal(pixels, noise[tile.rows[0], ::-1, 0])


def test_many_tiles_are_fetched_side_by_side_and_bad_ones_come_at_their_place(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = RNG.normal(size=(40, 2, 1, 256, 256)).astype(np.float32)
    noise[7] = np.nan
    tiles = sources.list_tiles(KIND, many(root, 40, images=noise), "s1")[0]
    sources.read_sar(tiles[0])
    flying, most, started = 0, 0, 0
    lock, real = threading.Lock(), storage.read_range
    down = next(t for t in tiles if t.rows == (11,))
    with h5py.File(io.BytesIO(storage.read_bytes(down.uris[0]))) as h5:
        lost = h5["images"].id.get_chunk_info(11).byte_offset

    def slow(uri: str, start: int, end: int) -> bytes:
        nonlocal flying, most, started
        with lock:
            flying, started = flying + 1, started + 1
            most = max(most, flying)
        time.sleep(0.005)
        with lock:
            flying -= 1
        if start == lost:
            raise Unavailable(uri, "down")
        return real(uri, start, end)

    monkeypatch.setattr(storage, "read_range", slow)
    found = sources.read_many(iter(tiles), ahead=20)
    for taken, (ref, pixels) in enumerate(found):
        assert ref == tiles[taken]
        assert started <= taken + 20 + 3  # and the blocks of an index
        match ref.rows[0]:
            case 7:
                assert isinstance(pixels, BadInput)
                assert pixels.reason == "all_nodata"
            case 11:
                assert isinstance(pixels, Unavailable)
            case row:
                np.testing.assert_array_equal(pixels, noise[row, ::-1, 0])
    assert taken == 39
    assert 4 < most <= sources.THREADS
    assert list(sources.read_many([])) == []


def test_an_object_store_gives_what_a_disk_gives(s3: str, tmp_path: Path) -> None:
    noise = RNG.normal(size=(12, 2, 1, 256, 256)).astype(np.float32)
    found = [
        list(sources.read_many(sources.list_tiles(KIND, many(root, 12, images=noise, centre_chunk=(1, 2)), "s1")[0]))
        for root in (s3, str(tmp_path))
    ]
    assert len(found[0]) == 12
    for (ours, pixels), (local, expected) in zip(*found, strict=True):
        assert (ours.key, ours.rows) == (local.key, local.rows)
        np.testing.assert_array_equal(pixels, expected)


def test_a_reader_that_is_left_alone_stops(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = sources.list_tiles(KIND, many(root, 40, images=np.zeros((40, 2, 1, 256, 256), np.float32)), "s1")[0]
    read: list[int] = []
    monkeypatch.setattr(netcdf, "read_sar", lambda ref: read.append(ref.rows[0]))
    found = sources.read_many(tiles, ahead=3)
    next(found)
    found.close()
    assert len(read) <= 4
    monkeypatch.setattr(netcdf, "read_sar", lambda ref: 1 / 0)  # our own error is no property of a tile
    with pytest.raises(ZeroDivisionError):
        next(sources.read_many(tiles))


def test_a_process_may_end_with_files_open(tmp_path: Path) -> None:
    """HDF5 would close them after Python, through which it reads, is gone: a crash."""
    code = (
        "import ctypes, sys; from sar2eo_dist.sources import multiearth_netcdf as m; "
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(m._cache)); "  # as whatever outlives the interpreter does
        "next(m.scan(sys.argv[1], 's1', print)[0]); m._cached(sys.argv[1]).images[0]"
    )
    done = subprocess.run([sys.executable, "-c", code, put(str(tmp_path))], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_bands_come_in_our_order(root: str) -> None:
    for tile in sources.list_tiles(KIND, put(root), "s1")[0]:
        np.testing.assert_array_equal(sources.read_sar(tile), DB[tile.rows[0], ::-1, 0])
    for tile in sources.list_tiles(KIND, put(root, "sent2.nc"), "s2")[0]:
        assert tile.bands == ("B4", "B3", "B2", "QA60")
        eo = sources.read_eo(tile)
        np.testing.assert_array_equal(eo.bands, DN[tile.rows[0], [3, 2, 1], 0])
        np.testing.assert_array_equal(eo.qa60, DN[tile.rows[0], 4, 0])


def test_the_fill_value_stands_for_an_absent_band(root: str) -> None:
    images = DN.copy()
    images[0, 4] = images[1, 3] = images[2, 1:4] = 65535
    images[0, 1, 0, 0, 0] = 65535  # one saturated pixel is a pixel
    tiles = {t.rows[0]: t for t in sources.list_tiles(KIND, put(root, "sent2.nc", images=images), "s2")[0]}
    assert sources.read_eo(tiles[0]).qa60 is None
    assert sources.read_eo(tiles[0]).bands[2, 0, 0] == 65535
    with pytest.raises(BadInput, match="missing_band: row 1: B4 holds only the fill value 65535"):
        sources.read_eo(tiles[1])
    with pytest.raises(BadInput, match="all_nodata: row 2: B4 B3 B2"):
        sources.read_eo(tiles[2])


def test_0_db_is_a_value_and_the_default_fill_of_hdf5_is_not(root: str) -> None:
    images = DB.copy()
    images[0, 0, 0, 5, 5] = 0
    tile = sources.list_tiles(KIND, put(root, images=images, fill=0), "s1")[0][1]
    assert tile.rows == (0,)
    assert sources.read_sar(tile)[1, 5, 5] == 0
    images[0, 0, 0, 5, 5] = 9.96921e36
    tile = sources.list_tiles(KIND, put(root, images=images, fill=np.float32(9.96921e36)), "s1")[0][1]
    assert np.isnan(sources.read_sar(tile)[1, 5, 5])


@pytest.mark.parametrize(
    ("name", "images", "reason", "value"),
    [
        ("sent1.nc", DB[..., :85, :85], "wrong_shape", "85 x 85"),
        ("sent1.nc", DB[:, :, 0], "wrong_shape", "(3, 2, 256, 256)"),
        ("sent1.nc", np.round(DB).astype(np.int16), "wrong_dtype", "int16"),
        ("sent1.nc", np.full_like(DB, np.nan), "all_nodata", "VV 0"),
        ("sent2.nc", DN.astype(np.float32), "wrong_dtype", "float32"),
        ("sent2.nc", np.zeros_like(DN), "all_nodata", "0"),
    ],
)
def test_bad_pixels_are_refused_by_name(root: str, name: str, images: np.ndarray, reason: str, value: str) -> None:
    uri = put(root, name, images=images, fill=None)
    sensor = "s1" if name == "sent1.nc" else "s2"
    tile = sources.list_tiles(KIND, uri, sensor)[0][0]
    with pytest.raises(BadInput) as e:
        (sources.read_sar if sensor == "s1" else sources.read_eo)(tile)
    assert (e.value.reason, e.value.uri) == (reason, uri)
    assert value in e.value.detail


def test_a_patch_costs_its_own_chunk(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = RNG.normal(size=(8, 2, 1, 256, 256)).astype(np.float32)
    uri = put(root, images=noise, dates=range(1500, 1508), centres=[PLACES[0]] * 8)
    tiles = sources.list_tiles(KIND, uri, "s1")[0]
    sources.read_sar(tiles[0])
    fetched: list[int] = []
    real = storage.read_range

    def counted(uri: str, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return real(uri, start, end)

    monkeypatch.setattr(storage, "read_range", counted)
    np.testing.assert_array_equal(sources.read_sar(tiles[5]), noise[5, ::-1, 0])
    assert sum(fetched) < noise[0].nbytes + 2 * BLOCK
    assert len(fetched) <= 3


# bad files ------------------------------------------------------------------------------------------------------------


def test_a_target_file_is_no_source(root: str) -> None:
    with pytest.raises(BadInput, match="unreadable: no `images`: a target file"):
        sources.list_tiles(KIND, put(root, images=None), "s1")


@pytest.mark.parametrize("part", ["dates", "centres"])
def test_a_file_without_an_index_is_refused(root: str, part: str) -> None:
    uri = put(root, **{part: None})
    with pytest.raises(BadInput, match="unreadable: no numbers in"):
        sources.list_tiles(KIND, uri, "s1")
    with pytest.raises(BadInput, match="unreadable: no numbers in"):
        netcdf.list_targets(uri)


@pytest.mark.parametrize("data", [b"", b"CDF\x01 classic", b"<html>"], ids=["empty", "classic", "html"])
def test_what_is_no_netcdf4_is_refused(root: str, data: bytes) -> None:
    uri = storage.join(root, "x.nc")
    storage.put(uri, data)
    with pytest.raises(BadInput, match=f"unreadable: {len(data)} bytes that are no NetCDF-4"):
        sources.list_tiles(KIND, uri, "s1")


def test_a_torn_file_is_refused(root: str) -> None:
    whole = storage.read_bytes(put(root))
    torn = storage.join(root, "torn.nc")
    storage.put(torn, whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"unreadable: \d+ bytes"):
        sources.list_tiles(KIND, torn, "s1")


def test_a_damaged_chunk_rejects_its_patch_alone(root: str) -> None:
    uri = put(root)
    tiles = sources.list_tiles(KIND, uri, "s1")[0]
    whole = bytearray(storage.read_bytes(uri))
    with h5py.File(io.BytesIO(whole)) as h5:
        chunk = h5["images"].id.get_chunk_info(0)
    whole[chunk.byte_offset : chunk.byte_offset + 5000] = bytes(range(250, 255)) * 1000
    storage.put(uri, bytes(whole))
    good, bad, also_good = tiles
    with pytest.raises(BadInput, match="unreadable: row 0 does not decode"):
        sources.read_sar(bad)
    assert np.isfinite(sources.read_sar(good)).all()
    assert np.isfinite(sources.read_sar(also_good)).all()


def test_a_row_that_became_another_acquisition_is_refused(root: str) -> None:
    tile = sources.list_tiles(KIND, put(root), "s1")[0][0]
    assert tile.rows == (2,)
    sources.read_sar(tile)
    uri = put(root, images=DB + 1)  # a new version, the same acquisitions
    for ref in (sources.list_tiles(KIND, uri, "s1")[0][0], tile):
        np.testing.assert_array_equal(sources.read_sar(ref), DB[2, ::-1, 0] + 1)
    put(root, dates=S1_DAYS[::-1])
    with pytest.raises(BadInput, match="row 2 is not s1/-05520-0437/2019-06-08"):
        sources.read_sar(tile)
    put(root, images=DB[:1], dates=S1_DAYS[:1], centres=PLACES[:1])
    with pytest.raises(BadInput, match="row 2"):
        sources.read_sar(tile)


def test_an_outage_is_not_the_tiles_fault(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = sources.list_tiles(KIND, put(root), "s1")[0]
    sources.read_sar(tiles[0])

    def fail(uri: str, start: int, end: int) -> bytes:
        raise Unavailable(uri, "down")

    with monkeypatch.context() as m:
        m.setattr(storage, "read_range", fail)
        with pytest.raises(Unavailable, match="down"):
            sources.read_sar(tiles[1])
    assert np.isfinite(sources.read_sar(tiles[1])).all()


def test_a_wrong_uri_has_a_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.nc"):
        sources.list_tiles(KIND, str(tmp_path / "none.nc"), "s1")
    with pytest.raises(StorageError, match="Is a directory"):
        sources.list_tiles(KIND, str(tmp_path), "s1")


def test_many_files_may_be_read_in_turn(root: str) -> None:
    tiles = [
        sources.list_tiles(KIND, put(storage.join(root, str(i))), "s1")[0][0] for i in range(netcdf.OPEN_FILES + 2)
    ]
    for tile in tiles + tiles:
        sources.read_sar(tile)
    assert len(netcdf._cache) <= netcdf.OPEN_FILES


# targets --------------------------------------------------------------------------------------------------------------


def test_a_target_is_named_after_its_place_and_day(root: str) -> None:
    uri = put(
        root, "sent2_targets.nc", images=None, dates=[1500, 1488, 1500], centres=[PLACES[0], PLACES[0], PLACES[0]]
    )
    targets = netcdf.list_targets(uri)
    assert [(t.name, t.index) for t in targets] == [
        ("Sentinel2_-55.20_-4.39_2019_05_27", 1),
        ("Sentinel2_-55.20_-4.39_2019_06_08", 0),
    ]
    assert targets[0].sensor == "Sentinel-2"
    assert targets[0].bands == EO_BANDS
    assert (targets[0].lon, targets[0].lat, targets[0].place) == (-55.2, -4.39, "-05520-0439")
    assert targets[0].date == dt.date(2019, 5, 27)


def test_targets_of_other_sensors_may_be_older_than_sentinel(root: str) -> None:
    uri = put(root, images=None, bands=None, source="Landsat-5", units="days since 1984-05-20", dates=[0, 1, 2])
    assert netcdf.list_targets(uri)[0].name.startswith("Landsat5_-55.20_-4.37_1984_05_22")
    with pytest.raises(BadInput, match="bad_date: row 1: -92233"):
        netcdf.list_targets(put(root, images=None, dates=[1488, -(2**63) + 2, 1500]))


# real -----------------------------------------------------------------------------------------------------------------


def test_real_netcdf_and_tiff_are_the_same_patches(samples: Path) -> None:
    root = samples / "tier_a" / "multiearth2023"
    for sensor, file, count in (("s1", "sent1_sample.nc", 4), ("s2", "sent2_sample.nc", 8)):
        tiffs, _ = sources.list_tiles("multiearth_tiff", str(root), sensor)
        rows, rejected = sources.list_tiles(KIND, str(root / file), sensor)
        assert not rejected
        assert len(rows) == count
        assert [(t.key, t.lon, t.lat, t.bands) for t in rows] == [(t.key, t.lon, t.lat, t.bands) for t in tiffs]
        for a, b in zip(tiffs, rows, strict=True):
            if sensor == "s1":
                np.testing.assert_array_equal(sources.read_sar(a), sources.read_sar(b))
                continue
            x, y = sources.read_eo(a), sources.read_eo(b)
            np.testing.assert_array_equal(x.bands, y.bands)
            np.testing.assert_array_equal(x.qa60, y.qa60)


def test_real_target_file(samples: Path) -> None:
    uri = str(samples / "tier_a" / "multiearth2023" / "test.nc")
    targets = netcdf.list_targets(uri)
    assert [t.name for t in targets] == [  # as the challenge names the TIFFs of the same masks
        "Deforestation_-54.68_-4.17_2021_05_01",
        "Deforestation_-54.78_-3.51_2021_05_01",
        "Deforestation_-54.92_-3.61_2021_05_01",
        "Deforestation_-55.06_-4.09_2021_05_01",
    ]
    with pytest.raises(BadInput, match="target file"):
        sources.list_tiles(KIND, uri, "s2")
    with_images = netcdf.list_targets(str(samples / "tier_a" / "multiearth2023" / "sent2_sample.nc"))
    assert len(with_images) == 8
    assert with_images[-1].name == "Sentinel2_-55.20_-4.39_2020_07_20"
