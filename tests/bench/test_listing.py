"""Listing archives: rows a second and memory a tile, beside a list of TileRef objects; and fetching many tiles at once."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from sar2eo_dist import sources, storage
from sar2eo_dist.records import TileRef, digest, place_key
from sar2eo_dist.sources import multiearth_netcdf, multiearth_tiff

ROWS, NAMES = 1_000_000, 100_000
DATES = 500  # of each place
SECONDS = 0.02  # of the store's latency


def where(n: int) -> tuple[float, float, int]:
    """(longitude, latitude, day since 2015-12-13) of the n-th acquisition."""
    place, date = divmod(n, DATES)
    return -55.2 + 0.02 * (place // 100), -4.39 + 0.02 * (place % 100), 5 * date


@pytest.fixture(scope="module")
def netcdf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An S2 index laid out as MultiEarth's, a chunk a row, without pixels."""
    path = tmp_path_factory.mktemp("netcdf") / "sent2.nc"
    lon, lat, days = (np.array(c) for c in zip(*map(where, range(ROWS)), strict=True))
    with h5py.File(path, "w", libver=("earliest", "v110")) as h5:
        h5.attrs["data_source"] = np.bytes_("Sentinel-2")
        h5["data_band"] = np.array([b"B1", b"B2", b"B3", b"B4", b"QA60"], object)
        h5["geo_coord"] = np.array([b"lat", b"lon"], object)
        shape = (5, 1, 256, 256)
        h5.create_dataset("images", (ROWS, *shape), np.uint16, chunks=(1, *shape), compression="gzip")
        h5.create_dataset("collection_dates", data=days, maxshape=(None,), chunks=(ROWS,))
        h5["collection_dates"].attrs["units"] = np.bytes_("days since 2015-12-13")
        h5.create_dataset("center_lat_lons", data=np.stack([lat, lon], 1), maxshape=(None, 2), chunks=(1, 2))
    return str(path)


@pytest.fixture(scope="module")
def tiffs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of empty files, four a tile."""
    folder = tmp_path_factory.mktemp("tiffs")
    for n in range(NAMES // 4):
        lon, lat, days = where(n)
        day = dt.date(2015, 12, 13) + dt.timedelta(days=days)
        for band in ("B2", "B3", "B4", "QA60"):
            (folder / f"Sentinel2_{band}_{lon:.2f}_{lat:.2f}_{day:%Y_%m_%d}.tiff").touch()
    return str(folder)


def naive_netcdf(uri: str) -> list[TileRef]:
    """An object a row, by the h5py of the textbook."""
    bands, info = ("B4", "B3", "B2", "QA60"), storage.info(uri)
    found: dict[str, TileRef] = {}
    with h5py.File(uri) as h5:
        days, places = h5["collection_dates"][()].tolist(), h5["center_lat_lons"][()].tolist()
    for row, (day, (lat, lon)) in enumerate(zip(days, places, strict=True)):
        date = dt.date(2015, 12, 13) + dt.timedelta(days=day)
        mark = digest(info.digest, row)
        ref = TileRef("s2", lon, lat, date, multiearth_netcdf.KIND, bands, (info.uri,), mark, (row,))
        found.setdefault(ref.key, ref)
    return sorted(found.values(), key=lambda ref: ref.key)


def naive_tiff(uri: str) -> list[TileRef]:
    """An object a file, then an object a tile."""
    groups: dict[tuple[str, dt.date], dict[str, tuple[multiearth_tiff.Name, storage.Info]]] = {}
    for info in storage.list_files(uri):
        name = multiearth_tiff.parse_name(info.uri)
        groups.setdefault((place_key(name.lon, name.lat), name.date), {})[name.band] = name, info
    tiles, bands = [], ("B4", "B3", "B2", "QA60")
    for files in groups.values():
        name, infos = files["B4"][0], [files[b][1] for b in bands]
        uris, mark = tuple(i.uri for i in infos), digest(*(i.digest for i in infos))
        tiles.append(TileRef("s2", name.lon, name.lat, name.date, multiearth_tiff.KIND, bands, uris, mark))
    return sorted(tiles, key=lambda ref: ref.key)


def peak_bytes() -> int:
    """The most memory that this process has had (getrusage's figure begins with its parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(kind: str, uri: str, naive: str) -> None:
    """In a process of its own: prints tiles, seconds and bytes of memory at the peak above what was there before."""
    before, begin = peak_bytes(), time.perf_counter()
    if naive:
        count = len(naive_netcdf(uri) if kind == multiearth_netcdf.KIND else naive_tiff(uri))
    else:
        count = sum(table.num_rows for table in sources.scan(kind, uri, "s2")[0])
    print(count, time.perf_counter() - begin, peak_bytes() - before)


@pytest.mark.parametrize("kind", [multiearth_netcdf.KIND, multiearth_tiff.KIND])
def test_listing(kind: str, request: pytest.FixtureRequest) -> None:
    uri = request.getfixturevalue(kind.removeprefix("multiearth_") + ("s" if kind == multiearth_tiff.KIND else ""))
    print()
    for what, naive in (("ours", ""), ("a list of objects", "naive")):
        command = [sys.executable, __file__, kind, uri, naive]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        count, seconds, peak = map(float, out.split())
        print(
            f"{kind}, {count:,.0f} tiles, {what}: {count / seconds:,.0f} tiles/s, peak {peak / count:,.0f} bytes a tile"
        )


def repeat_netcdf(source: Path, target: Path) -> str:
    """320 rows with the compressed chunks of the sample's 8."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        raw = [old["images"].id.read_direct_chunk((i, 0, 0, 0, 0)) for i in range(8)]
        shape = (5, 1, 256, 256)
        options = {"chunks": (1, *shape), "compression": "gzip", "shuffle": True, "fillvalue": 65535}
        images = new.create_dataset("images", (320, *shape), np.uint16, **options)
        for i in range(320):
            images.id.write_direct_chunk((i, 0, 0, 0, 0), raw[i % 8][1], raw[i % 8][0])
        new["data_band"] = old["data_band"][()]
        new["collection_dates"] = np.arange(320)
        new["collection_dates"].attrs["units"] = np.bytes_("days since 2018-12-13")
        new["center_lat_lons"] = np.tile([-4.39, -55.2], (320, 1))
    return str(target)


@pytest.mark.parametrize("kind", [multiearth_netcdf.KIND, multiearth_tiff.KIND])
def test_reading_with_latency(kind: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real patches, many times over, in a store that takes 20 ms to answer."""
    folder, root = samples / "tier_a" / "multiearth2023", "memory://bench"
    if kind == multiearth_netcdf.KIND:
        uri = f"{root}/sent2.nc"
        storage.put(uri, Path(repeat_netcdf(folder / "sent2_sample.nc", tmp_path / "x.nc")).read_bytes())
        refs = sources.list_tiles(kind, uri, "s2")[0]
    else:
        for path in folder.rglob("Sentinel2_*.tif*"):
            storage.put(f"{root}/tiffs/{path.name}", path.read_bytes())
        refs = sources.list_tiles(kind, f"{root}/tiffs", "s2")[0] * 40
    for name in ("read_range", "read_bytes"):
        real = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda *a, real=real: (time.sleep(SECONDS), real(*a))[1])
    begin = time.perf_counter()
    for ref in refs[:40]:
        sources.read_eo(ref)
    serial = 40 / (time.perf_counter() - begin)
    begin = time.perf_counter()
    assert [isinstance(pixels, sources.EO) for _, pixels in sources.read_many(refs)] == [True] * 320
    many = len(refs) / (time.perf_counter() - begin)
    print(
        f"\n{kind}, 20 ms: {serial:.0f} tiles/s one by one, {many:.0f} tiles/s by read_many: {many / serial:.1f} times"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
