"""The synthetic world as MultiEarth NetCDF-4: one file a sensor and a target file without images, written with h5py.

Dimensions, attributes, dtypes, chunks, compression and fill values are those of the challenge's sample files
(MIT-AI-Accelerator/multiearth-challenge, sample_dataset): bands stored alphabetically, (lat, lon), days since an epoch
of each file's own.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from sar2eo_dist import storage
from sar2eo_dist.records import PATCH, S1, S2, Artifact
from sar2eo_dist.sources.synthetic import World, patch_window

FILL_INT = -9223372036854775806  # NC_FILL_INT64
_CATALOG = "https://developers.google.com/earth-engine/datasets/catalog/COPERNICUS_"
_BAND_DOC = "The {} collection band.  See " + _CATALOG + "{} for additional details."
_GSD_DOC = "The ground sample distance of the {} in meters."
_PLACE_DOC = "The latitude and longitude in decimal degrees corresponding to the center of the collected image."
_DATE_DOC = "The dates the images were collected."
_SENSORS = {
    S1: ("Sentinel-1", "S1_GRD", ("VH", "VV"), np.float32, np.nan, dt.date(2015, 4, 30)),
    S2: ("Sentinel-2", "S2_SR_HARMONIZED", ("B1", "B2", "B3", "B4", "QA60"), np.uint16, 65535, dt.date(2018, 12, 13)),
}
_TARGET_EPOCH = dt.date(2021, 5, 1)
Rows = list[tuple[float, float, dt.date]]  # (lon, lat, date)


def write_multiearth_netcdf(
    world: World,
    uri_s1: str,
    uri_s2: str,
    places: Sequence[tuple[float, float]],
    sar_dates: Sequence[dt.date],
    eo_dates: Sequence[dt.date],
) -> None:
    """Both sensors' acquisitions of (lon, lat) places as MultiEarth NetCDF files, one patch in memory at a time."""
    write_sensor(world, S1, uri_s1, places, sar_dates)
    write_sensor(world, S2, uri_s2, places, eo_dates)


def write_sensor(
    world: World, sensor: str, uri: str, places: Sequence[tuple[float, float]], dates: Sequence[dt.date]
) -> Artifact:
    """One sensor's file, places in order, dates within: `images` (index, data_band, channel = 1, row, col)."""
    name, catalog, bands, dtype, fill, epoch = _SENSORS[sensor]
    rows = [(lon, lat, date) for lon, lat in places for date in dates]

    def build(h5: h5py.File) -> None:
        _describe(h5, np.array([10]), "imagery", name, "The satellite used to collect the imagery")
        _index(h5, len(rows))
        doc = _BAND_DOC.format(name, catalog)
        _scale(h5, "data_band", 1, np.array(bands, object), doc)
        for dim, (axis, length) in enumerate((("channel", 1), ("row", PATCH), ("col", PATCH)), 2):
            _scale(h5, axis, dim, np.arange(length), "")
        shape = (len(bands), 1, PATCH, PATCH)
        images = h5.create_dataset(
            "images", (len(rows), *shape), dtype, maxshape=(None, *shape), chunks=(1, *shape), compression="gzip",
            compression_opts=6, shuffle=True, fillvalue=fill,
        )  # fmt: skip
        _attach(h5, images, ("index", "data_band", "channel", "row", "col"), (0, 1, 2, 3, 4))
        if sensor == S1:
            images.attrs["_FillValue"] = np.array([np.nan], np.float32)
        _dates(h5, rows, epoch, _DATE_DOC)
        _places(h5, rows, 5)
        for n, (lon, lat, date) in enumerate(rows):
            images[n, :, 0] = _patch(world, sensor, bands, lon, lat, date)

    return _publish(uri, build)


def write_targets(uri: str, places: Sequence[tuple[float, float]], dates: Sequence[dt.date]) -> Artifact:
    """A target file: the Sentinel-2 images that are asked for, by place and date, without `images`."""
    rows = [(lon, lat, date) for lon, lat in places for date in dates]

    def build(h5: h5py.File) -> None:
        _describe(h5, np.array([10.0]), "data", "Sentinel-2", "The satellite whose imagery is to be predicted")
        _index(h5, len(rows))
        _dates(h5, rows, _TARGET_EPOCH, "The collection date of the imagery to be predicted.")
        _places(h5, rows, 1)

    return _publish(uri, build)


def _patch(world: World, sensor: str, bands: Sequence[str], lon: float, lat: float, date: dt.date) -> npt.NDArray[Any]:
    """(len(bands), 256, 256) in the file's order."""
    window = patch_window(lon, lat)
    if sensor == S1:
        return world.sar(date, *window)[::-1]  # VH, VV
    view = world.eo(date, *window, bands=bands[:-1])
    return np.concatenate([view.bands, view.qa60[None]])


def _publish(uri: str, build: Callable[[h5py.File], None]) -> Artifact:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.nc"
        with h5py.File(path, "w", libver=("earliest", "v110"), track_order=True) as h5:
            build(h5)
        storage.put_file(uri, str(path))
        with path.open("rb") as f:
            return Artifact(uri, path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())


def _describe(h5: h5py.File, gsd: npt.NDArray[Any], what: str, source: str, source_doc: str) -> None:
    h5.attrs["image_gsd"] = gsd
    h5.attrs["image_gsd_doc"] = np.bytes_(_GSD_DOC.format(what))
    h5.attrs["data_source"] = np.bytes_(source)
    h5.attrs["data_source_doc"] = np.bytes_(source_doc)
    h5.attrs["_NCProperties"] = np.bytes_(f"version=2,hdf5={h5py.version.hdf5_version},sar2eo_dist=synthetic")


def _scale(h5: h5py.File, name: str, dim: int, values: npt.NDArray[Any], doc: str, **options: Any) -> None:
    """A coordinate variable of a dimension of the same name."""
    dtype = h5py.string_dtype() if values.dtype == object else values.dtype
    options = options or ({} if values.dtype == object else {"fillvalue": FILL_INT})
    data = h5.create_dataset(name, data=values, dtype=dtype, **options)
    data.attrs["_Netcdf4Coordinates"] = np.array([dim], np.int32)
    data.make_scale(name)
    data.attrs["_Netcdf4Dimid"] = np.int32(dim)
    if doc:
        data.attrs["doc"] = np.bytes_(doc)


def _index(h5: h5py.File, count: int) -> None:
    _scale(h5, "index", 0, np.arange(count), "", maxshape=(None,), chunks=(512,), fillvalue=FILL_INT)


def _dates(h5: h5py.File, rows: Rows, epoch: dt.date, doc: str) -> None:
    days = np.array([(date - epoch).days for _, _, date in rows], np.int64)
    data = h5.create_dataset("collection_dates", data=days, maxshape=(None,), chunks=(len(rows),), fillvalue=FILL_INT)
    _attach(h5, data, ("index",), (0,))
    data.attrs["doc"] = np.bytes_(doc)
    data.attrs["units"] = np.bytes_(f"days since {epoch.isoformat()}")
    data.attrs["calendar"] = np.bytes_("proleptic_gregorian")


def _places(h5: h5py.File, rows: Rows, dim: int) -> None:
    _scale(h5, "geo_coord", dim, np.array(["lat", "lon"], object), "")
    places = np.array([(lat, lon) for lon, lat, _ in rows], np.float64)
    data = h5.create_dataset("center_lat_lons", data=places, maxshape=(None, 2), chunks=(1, 2), fillvalue=np.nan)
    _attach(h5, data, ("index", "geo_coord"), (0, dim))
    data.attrs["_FillValue"] = np.array([np.nan])
    data.attrs["doc"] = np.bytes_(_PLACE_DOC)


def _attach(h5: h5py.File, data: Any, dims: Sequence[str], ids: Sequence[int]) -> None:
    data.attrs["_Netcdf4Coordinates"] = np.array(ids, np.int32)
    for n, dim in enumerate(dims):
        data.dims[n].attach_scale(h5[dim])
    if dims != ("index", "geo_coord"):
        data.attrs["_Netcdf4Dimid"] = np.int32(0)
