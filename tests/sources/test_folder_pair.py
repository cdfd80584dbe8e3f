"""Folder pairs: names, layouts, pixels in both formats, and every way in which a file can be bad."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import itertools
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.io import MemoryFile

from sar2eo_dist import sources, storage
from sar2eo_dist.errors import BadInput, ConfigError, NotFound, SourceChanged
from sar2eo_dist.radiometry import decode_db, encode_db, scale_eo, scale_sar, to_uint8
from sar2eo_dist.records import Pair
from sar2eo_dist.sections import Scaling
from sar2eo_dist.sources.folder_pair import UNKNOWN, FolderPair, encode_png, encode_tiff, list_pairs, stem

RNG = np.random.default_rng(3)
DB = RNG.normal(-12, 3, (2, 256, 256)).astype(np.float32)
DN = RNG.integers(1, 3000, (3, 256, 256)).astype(np.uint16)
RGB = RNG.integers(1, 256, (3, 256, 256)).astype(np.uint8)
PLACED = "00000007_S1A_descending_20190608_-55.20_-4.39_2019_06_06"
numbers = itertools.count()


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore")
        count, height, width = pixels.shape
        with memory.open(
            driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype.name, **options
        ) as out:
            out.write(pixels)
        return bytes(memory.read())


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels).save(sink, "PNG")
    return sink.getvalue()


def pair(root: str, a: bytes = b"", b: bytes = b"", ending: str = "png") -> FolderPair:
    storage.put(f"{root}/train_A/{PLACED}.{ending}", a)
    storage.put(f"{root}/train_B/{PLACED}.{ending}", b)
    ((found,), rejected) = list_pairs(root)
    assert not rejected
    return found


def made(place: str, lon: float, lat: float, sar: dt.date, eo: dt.date, orbit: str, platform: str) -> Pair:
    return Pair(place, lon, lat, "", "", sar, eo, (eo - sar).days, orbit, platform, "", "", "train")


# names ----------------------------------------------------------------------------------------------------------------

days = st.dates(dt.date(2014, 4, 3), dt.date(2025, 12, 31))
orbits = st.sampled_from(["ascending", "descending", "unknown"])
alnum = st.from_regex(r"[A-Za-z0-9]{1,8}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    lon=st.integers(-18000, 18000).map(lambda n: n / 100) | st.floats(-180, 180),
    lat=st.integers(-9000, 9000).map(lambda n: n / 100) | st.floats(-90, 90),
    sar=days, eo=days, orbit=orbits, platform=alnum, rank=st.integers(0, 10**9),
)  # fmt: skip
def test_an_exported_name_says_all_that_the_pair_was(
    lon: float, lat: float, sar: dt.date, eo: dt.date, orbit: str, platform: str, rank: int
) -> None:
    name = stem(rank, made("", lon, lat, sar, eo, orbit, platform))
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,240}", name)
    root = f"memory://stems/{next(numbers)}"
    for side in "AB":
        storage.put(f"{root}/val_{side}/{name}.png", b"")
    ((p,), rejected) = list_pairs(root)
    assert not rejected
    assert (p.split, p.sar.date, p.eo.date) == ("val", sar, eo)
    assert (p.sar.lon, p.sar.lat) == pytest.approx((lon, lat), rel=0, abs=1e-17)
    assert (p.sar.orbit, p.sar.platform, p.place) == (orbit, platform, p.eo.place)
    assert p.pair == dataclasses.replace(
        made(p.place, p.eo.lon, p.eo.lat, sar, eo, orbit, platform), split="val", sar_key=p.sar.key, eo_key=p.eo.key,
        sar_digest=p.sar.digest, eo_digest=p.eo.digest,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(place=st.text(min_size=1, max_size=200), platform=st.text(max_size=5))
def test_any_place_and_platform_give_a_safe_name_that_is_read_back(place: str, platform: str) -> None:
    name = stem(12, made(place, math.nan, math.nan, UNKNOWN, UNKNOWN, "unknown", platform))
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,240}", name)
    root = f"memory://places/{next(numbers)}"
    for side in "AB":
        storage.put(f"{root}/{side}/{name}.png", b"")
    ((p,), _) = list_pairs(root)
    assert stem(12, p.pair) == name


def test_an_exported_name_is_multiearths_and_sorts_by_rank() -> None:
    day = dt.date(2019, 6, 8)
    assert stem(7, made("", -55.2, -4.39, day, dt.date(2019, 6, 6), "descending", "S1A")) == PLACED
    assert stem(7, made("", -55.2, -4.39, day, day, "unknown", "SENTINEL-1A")).split("_")[1] == "SENTINEL1A"
    names = [stem(n, made("x", -5.0, 3.0, day, day, "ascending", "S1B")) for n in (0, 9, 10, 99_999, 12_345_678)]
    assert names == sorted(names)


def test_foreign_names_give_what_they_have(root: str) -> None:
    for side in "AB":
        for name in ("Sentinel1_-55.20_-4.39_2019_06_08", "facade 0001.v2", "9_8"):
            storage.put(f"{root}/{side}/{name}.png", b"")
    pairs, rejected = list_pairs(root)
    assert not rejected
    dated, plain, other = sorted(pairs, key=lambda p: p.place)
    assert (dated.place, dated.sar.date, dated.eo.date) == ("-05520-0439", dt.date(2019, 6, 8), dt.date(2019, 6, 8))
    assert (plain.place, other.place, plain.split) == ("9_8", "facade 0001.v2", "")
    assert math.isnan(other.sar.lon)
    assert math.isnan(other.eo.lat)
    assert other.sar.date == other.eo.date == UNKNOWN
    assert (other.pair.place, other.pair.sar_key) == ("facade 0001.v2", "s1/facade 0001.v2/1970-01-01")
    assert other.sar.orbit == other.sar.platform == "unknown"


# listing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "split"),
    [("train_A", "train_B", "train"), ("test_A", "test_B", "test"), ("A/val", "B/val", "val"), ("A", "B", "")],
)
def test_layouts(root: str, a: str, b: str, split: str) -> None:
    storage.put(f"{root}/{a}/x.PNG", b"1")
    storage.put(f"{root}/{b}/x.tiff", b"22")
    storage.put(f"{root}/dataset.json", b"")
    storage.put(f"{root}/ledger/export/x.json", b"")
    ((p,), rejected) = list_pairs(root + "/")
    assert not rejected
    assert (p.split, p.sar.sensor, p.eo.sensor, p.sar.kind) == (split, "s1", "s2", "folder_pair")
    assert (storage.read_bytes(p.sar.uris[0]), storage.read_bytes(p.eo.uris[0])) == (b"1", b"22")
    assert p.sar.digest != p.eo.digest


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        (["train_A/x.jpg", "train_B/x.png"], {"train_A/x.jpg": "bad_name", "train_B/x.png": "missing_band"}),
        (["train_A/x.png", "val_B/x.png"], {"train_A/x.png": "missing_band", "val_B/x.png": "missing_band"}),
        (["A/x.png", "A/x.tif", "B/x.png"], {"A/x.tif": "duplicate"}),
        (["A/val/x.png", "val_A/x.png", "val_B/x.png"], {"val_A/x.png": "duplicate"}),
        (["dev_A/x.png", "A/dev/x.png", "B/train/y/x.png", "val_A/y/x.png"],
         dict.fromkeys(["dev_A/x.png", "A/dev/x.png", "B/train/y/x.png", "val_A/y/x.png"], "bad_name")),
        (["A/x.npy", "A/Thumbs.db", "B/.png", "B/x"],
         dict.fromkeys(["A/x.npy", "A/Thumbs.db", "B/.png", "B/x"], "bad_name")),
        ([f"{s}/x_-55.20_-4.39_2019_13_45.png" for s in "AB"],
         {f"{s}/x_-55.20_-4.39_2019_13_45.png": "bad_date" for s in "AB"}),
        ([f"{s}/x_-55.20_-4.39_2999_01_01.png" for s in "AB"],
         {f"{s}/x_-55.20_-4.39_2999_01_01.png": "bad_date" for s in "AB"}),
        ([f"{s}/00000007_S1A_ascending_20190631_a.png" for s in "AB"],
         {f"{s}/00000007_S1A_ascending_20190631_a.png": "bad_date" for s in "AB"}),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_rejected_with_its_reason(root: str, files: list[str], reasons: dict[str, str]) -> None:
    for file in files:
        storage.put(f"{root}/{file}", b"")
    pairs, rejected = list_pairs(root)
    assert {r.uri.partition(root.removeprefix("memory://"))[2][1:]: r.reason for r in rejected} == reasons
    assert all(r.sensor == {"A": "s1", "B": "s2"}[r.uri.removeprefix("memory://" + root[9:])[1:].split("/")[0][-1]]
               for r in rejected)  # fmt: skip
    assert len(pairs) * 2 + len(rejected) == len(files)


def test_a_jpeg_is_refused_by_name(root: str) -> None:
    storage.put(f"{root}/A/x.JPEG", b"")
    (_, (rejected,)) = list_pairs(root)
    assert "lossy" in rejected.detail


def test_no_pairs_and_no_folder_are_said(root: str) -> None:
    storage.put(f"{root}/images/x.png", b"")
    with pytest.raises(ConfigError, match=r"train_A and train_B.*A/train"):
        list_pairs(root)
    with pytest.raises(NotFound):
        list_pairs(f"{root}/nowhere")


def test_one_listing_and_no_file_opened(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(4):
        for side in "AB":
            storage.put(f"{s3}/set/train_{side}/{n:03d}.png", b"x")
    calls = []
    whole = storage.list_files
    monkeypatch.setattr(storage, "list_files", lambda uri: calls.append(uri) or whole(uri))
    for name in ("read_bytes", "open_read", "info", "read_range"):
        monkeypatch.setattr(storage, name, None)
    pairs, rejected = list_pairs(f"{s3}/set")
    assert [p.place for p in pairs] == ["000", "001", "002", "003"]
    assert pairs[0].eo.uris == (f"{s3}/set/train_B/000.png",)
    assert (calls, rejected) == ([f"{s3}/set"], [])


def test_a_local_folder(tmp_path: Path) -> None:
    found = pair(str(tmp_path / "a b"), encode_tiff(DB, ("VV", "VH"), math.nan), encode_tiff(DN, "RGB", 0), "tiff")
    assert found.sar.uris == (str(tmp_path / "a b" / "train_A" / f"{PLACED}.tiff"),)
    np.testing.assert_array_equal(sources.read_sar(found.sar), DB)
    sources.unchanged(found.sar)
    sources.unchanged(found.eo)
    storage.put(found.eo.uris[0], b"another")
    with pytest.raises(SourceChanged, match="train_B"):
        sources.unchanged(found.eo)


def test_collect_is_told_that_there_is_nothing_to_collect(root: str) -> None:
    with pytest.raises(ConfigError, match=r"jobs/shard\.py"):
        sources.list_tiles("folder_pair", root, "s1")


# pixels ---------------------------------------------------------------------------------------------------------------


def test_tiff_keeps_every_count_and_every_dn(root: str) -> None:
    counts = np.arange(-32768, 32768).astype(np.int16)
    counts = np.stack([counts, np.roll(counts, 5)]).reshape(2, 256, 256)  # rolled: no pixel is 0 dB in both
    dn = np.stack([np.arange(65536), np.arange(65536)[::-1], np.full(65536, 7)]).astype(np.uint16).reshape(3, 256, 256)
    found = pair(
        root, encode_tiff(decode_db(counts), ("VV", "VH"), math.nan), encode_tiff(dn, ("B4", "B3", "B2"), 0), "tiff"
    )
    db = sources.read_sar(found.sar)
    np.testing.assert_array_equal(encode_db(db), counts)
    assert np.isnan(db).sum() == 2
    eo = sources.read_eo(found.eo)
    np.testing.assert_array_equal(eo.bands, dn)
    assert eo.qa60 is None
    with warnings.catch_warnings(), MemoryFile(storage.read_bytes(found.eo.uris[0])) as memory:
        warnings.simplefilter("ignore")
        with memory.open() as dataset:
            assert dataset.descriptions == ("B4", "B3", "B2")
            assert dataset.nodata == 0


def test_png_is_rgb_for_other_readers() -> None:
    image = Image.open(io.BytesIO(encode_png(RGB)))
    assert (image.mode, image.size, image.format) == ("RGB", (256, 256), "PNG")
    np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), RGB)


@pytest.mark.parametrize("encode", [png, tiff])
def test_eight_bits_are_within_the_stated_error(root: str, encode) -> None:  # type: ignore[no-untyped-def]
    """All DN 1..3000 and dB over the whole fixed ranges: 0.05 dB (VV), 0.053 dB (VH), 6 DN."""
    scaling = Scaling(median=0)
    db = np.stack([np.linspace(-25, 0, 65536), np.linspace(-32, -5, 65536)]).astype(np.float32).reshape(2, 256, 256)
    dn = np.resize(np.arange(1, 3001), (3, 256, 256)).astype(np.uint16)
    dn[0] = np.maximum(dn[0], 6)  # else DN below 6 in every band would be no data
    valid = np.ones((256, 256), bool)
    a, b = to_uint8(scale_sar(db, scaling)), to_uint8(scale_eo(dn, valid, scaling))
    found = pair(root, encode(a), encode(b)) if encode is png else pair(root, encode(a), encode(b), "tif")
    error = np.abs(sources.read_sar(found.sar) - db).max(axis=(1, 2))
    assert (error <= (0.05, 0.0531)).all()
    assert (error > 0.045).all()
    read = sources.read_eo(found.eo).bands
    assert np.abs(read.astype(int) - dn).max() == 6
    assert (read > 0).all()


def test_black_in_all_three_channels_is_no_data(root: str) -> None:
    a, b = RGB.copy(), RGB.copy()
    a[:, :9] = b[:, :9] = 0
    a[:2, 9] = b[:2, 9] = 0  # third channel is not 0
    found = pair(root, png(a), png(b))
    db, dn = sources.read_sar(found.sar), sources.read_eo(found.eo).bands
    assert np.isnan(db[:, :9]).all()
    assert np.isfinite(db[:, 9:]).all()
    assert db[:, 9].min(axis=1).tolist() == [-25, -32]
    assert (dn[:, :9] == 0).all()
    assert (dn[:, 9:] > 0).all()
    assert (dn[:2, 9] == 3).all()


def test_nodata_tags_are_honoured(root: str) -> None:
    db, dn, rgb = DB.copy(), DN.copy(), RGB.copy()
    db[0, 0], dn[:, 0], rgb[:, 0] = -9999, 65535, 255
    found = pair(root, tiff(db, nodata=-9999), tiff(dn, nodata=65535), "tiff")
    assert np.isnan(sources.read_sar(found.sar)[0, 0]).all()
    assert (sources.read_eo(found.eo).bands[:, 0] == 0).all()
    found = pair(root, tiff(rgb, nodata=255), tiff(rgb, nodata=255), "tiff")
    assert np.isnan(sources.read_sar(found.sar)[:, 0]).all()
    assert (sources.read_eo(found.eo).bands[:, 0] == 0).all()


WHOLE = png(RGB)
RAW = tiff(DB, compress="deflate")
EIGHT = tiff(RGB, compress="deflate")
BAD = [
    ("png", b"", "unreadable", "empty"),
    ("png", WHOLE[: len(WHOLE) // 2], "unreadable", "PNG"),
    ("png", WHOLE[:-20], "unreadable", "PNG"),
    ("png", WHOLE[:30], "unreadable", "PNG"),
    ("png", RAW, "unreadable", "PNG"),
    ("tiff", EIGHT[: len(EIGHT) // 2], "unreadable", "GTiff"),
    ("tiff", EIGHT[:100], "unreadable", "GTiff"),
    ("tiff", WHOLE, "unreadable", "GTiff"),
    ("tif", b"", "unreadable", "empty"),
    ("png", png(RGB[:, :200]), "wrong_shape", "200 x 256, not 256 x 256"),
    ("tiff", tiff(np.zeros((3, 512, 512), np.uint16)), "wrong_shape", "512 x 512"),
    ("png", png(RGB[0]), "wrong_shape", r"1 band\(s\) of uint8"),
    ("png", png(np.concatenate([RGB, RGB[:1]])), "wrong_shape", r"4 band\(s\) of uint8"),
    ("png", png(np.zeros_like(RGB)), "all_nodata", "no pixel|every DN"),
]  # fmt: skip


@pytest.mark.parametrize(("ending", "data", "reason", "words"), BAD)
def test_bad_files_on_either_side(root: str, ending: str, data: bytes, reason: str, words: str) -> None:
    found = pair(root, data, data, ending)
    for read, ref in ((sources.read_sar, found.sar), (sources.read_eo, found.eo)):
        with pytest.raises(BadInput, match=words) as e:
            read(ref)
        assert (e.value.reason, e.value.uri) == (reason, ref.uris[0])


@pytest.mark.parametrize(
    ("side", "pixels", "reason", "words"),
    [
        ("sar", np.concatenate([DB, DB[:1]]), "wrong_shape", r"3 band\(s\) of float32, not 2"),
        ("sar", DN, "wrong_shape", r"3 band\(s\) of uint16"),
        ("sar", DN[:2], "wrong_dtype", "VV is uint16"),
        ("sar", np.full_like(DB, np.nan), "all_nodata", "VV"),
        ("eo", DB, "wrong_shape", r"2 band\(s\) of float32, not 3"),
        ("eo", np.concatenate([DB, DB[:1]]), "wrong_dtype", "B4 is float32"),
        ("eo", np.zeros_like(DN), "all_nodata", "DN"),
    ],
)
def test_bands_and_types_that_are_not_a_sides_own(
    root: str, side: str, pixels: np.ndarray, reason: str, words: str
) -> None:
    found = pair(root, tiff(pixels), tiff(pixels), "tiff")
    with pytest.raises(BadInput, match=words) as e:
        sources.read_sar(found.sar) if side == "sar" else sources.read_eo(found.eo)
    assert e.value.reason == reason


def test_a_gone_file_is_the_stores_fault(root: str) -> None:
    found = pair(root, WHOLE, WHOLE)
    storage.delete(found.sar.uris[0])
    with pytest.raises(NotFound):
        sources.read_sar(found.sar)


def test_reading_warns_of_nothing(root: str) -> None:
    found = pair(root, RAW, tiff(DN), "tiff")
    with warnings.catch_warnings():
        warnings.simplefilter("error", rasterio.errors.NotGeoreferencedWarning)
        sources.read_sar(found.sar)
        sources.read_eo(found.eo)
        encode_tiff(DB, ("VV", "VH"), math.nan)
