"""Where a mosaic's arrays lie on the ground, said so that other tools understand it: attributes, no pixels.

CF grid mapping and coordinates (xarray, rioxarray, GDAL) and the zarr conventions `proj:`, `spatial:` and `multiscales`
(github.com/zarr-conventions, version 1; GDAL 3.13, QGIS and viewers of GeoZarr).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rasterio.crs import CRS
from rasterio.errors import CRSError

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic.grid import Transform

GRID_MAPPING = "spatial_ref"  # the name that rioxarray looks for

#: (repository, uuid, name, description) of the conventions, as their schemas want them
_PROJ = ("geo-proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "proj:",
         "Coordinate reference system information for geospatial data")  # fmt: skip
_SPATIAL = ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "spatial", "Spatial coordinate information")
_MULTISCALES = ("multiscales", "d35379db-88df-4056-af3a-620245f8e347", "multiscales",
                "Multiscale layout of zarr datasets")  # fmt: skip
#: CF's names of the parameters of transverse Mercator (UTM), by PROJ's
_MERCATOR = {
    "Latitude of natural origin": "latitude_of_projection_origin",
    "Longitude of natural origin": "longitude_of_central_meridian",
    "Scale factor at natural origin": "scale_factor_at_central_meridian",
    "False easting": "false_easting",
    "False northing": "false_northing",
}


def parse(crs: str) -> CRS:
    """A CRS from "EPSG:n" or WKT. Raises ConfigError with the text."""
    try:
        return CRS.from_user_input(crs)
    except (CRSError, ValueError) as e:
        raise ConfigError(f"not a coordinate reference system ({e}): {crs[:200]!r}") from e


def coarser(transform: Transform, factor: int) -> Transform:
    """The affine of pixels `factor` times as large, from the same corner."""
    a, b, c, d, e, f = transform
    return (a * factor, b * factor, c, d * factor, e * factor, f)


def bounds(transform: Transform, height: int, width: int) -> list[float]:
    """[left, bottom, right, top] in the CRS of a raster of that size, turned or not."""
    a, b, c, d, e, f = transform
    xs, ys = zip(*((a * i + b * j + c, d * i + e * j + f) for i in (0, width) for j in (0, height)), strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def grid_mapping(crs: str, transform: Transform) -> dict[str, Any]:
    """Attributes of the scalar GRID_MAPPING: GDAL's and rioxarray's (WKT, GeoTransform in GDAL's order) and CF's own.

    CF's parameters are given for geographic and transverse Mercator systems; of others the WKT alone speaks.
    """
    system = parse(crs)
    wkt = system.to_wkt()
    a, b, c, d, e, f = transform
    out: dict[str, Any] = {"crs_wkt": wkt, "spatial_ref": wkt,
                           "GeoTransform": " ".join(repr(float(v)) for v in (c, a, b, f, d, e))}  # fmt: skip
    tree = system.to_dict(projjson=True)
    conversion = tree.get("conversion", {})
    if system.is_geographic:
        out["grid_mapping_name"] = "latitude_longitude"
    elif conversion.get("method", {}).get("name") == "Transverse Mercator":
        out["grid_mapping_name"] = "transverse_mercator"
        out |= {
            _MERCATOR[p["name"]]: float(p["value"]) for p in conversion.get("parameters", ()) if p["name"] in _MERCATOR
        }
    base = tree.get("base_crs", tree)
    ellipsoid = (base.get("datum_ensemble") or base.get("datum") or {}).get("ellipsoid", {})
    for ours, theirs in (("semi_major_axis", "semi_major_axis"), ("inverse_flattening", "inverse_flattening")):
        if isinstance(ellipsoid.get(theirs), int | float):
            out[ours] = float(ellipsoid[theirs])
    return out


def axis(crs: str, name: str) -> dict[str, Any]:
    """Attributes of the coordinate array "x" or "y", in CF's words."""
    system = parse(crs)
    if system.is_geographic:
        said, unit = {"x": ("longitude", "degrees_east"), "y": ("latitude", "degrees_north")}[name]
    else:
        said, unit = f"projection_{name}_coordinate", system.linear_units
        unit = {"metre": "m", "meter": "m"}.get(unit, unit)
    return {"standard_name": said, "units": unit, "axis": name.upper(), "long_name": f"{name} of pixel centres"}


def group(crs: str, transform: Transform, height: int, width: int) -> dict[str, Any]:
    """Attributes of a group whose arrays lie on one grid: CRS, affine, size, bounds."""
    return {
        "zarr_conventions": [_convention(c) for c in (_PROJ, _SPATIAL)],
        **_common(crs, transform, height, width),
        "spatial:shape": [height, width],
        "spatial:transform": list(transform),
    }


def pyramid(
    crs: str, transform: Transform, height: int, width: int, sizes: Sequence[tuple[str, int, int, int]]
) -> dict[str, Any]:
    """Attributes of the group that holds an array at several resolutions.

    sizes: (path of the array, factor, height, width) of each level, full resolution first. Affine and shape are said of
    each level and not of the group: the conventions allow one of the two.
    """
    layout: list[dict[str, Any]] = []
    for k, (path, factor, rows, cols) in enumerate(sizes):
        entry: dict[str, Any] = {"asset": path}
        if k:
            entry |= {"derived_from": sizes[k - 1][0]}
        entry |= {
            "transform": {"scale": [2.0, 2.0] if k else [1.0, 1.0], "translation": [0.0, 0.0]},
            "spatial:shape": [rows, cols],
            "spatial:transform": list(coarser(transform, factor)),
        }
        layout.append(entry)
    return {
        "zarr_conventions": [_convention(c) for c in (_MULTISCALES, _PROJ, _SPATIAL)],
        "multiscales": {"layout": layout, "resampling_method": "average"},
        **_common(crs, transform, height, width),
    }


def _common(crs: str, transform: Transform, height: int, width: int) -> dict[str, Any]:
    return {
        **system(crs),
        "spatial:dimensions": ["y", "x"],
        "spatial:bbox": bounds(transform, height, width),
        "spatial:registration": "pixel",
    }


def system(crs: str) -> dict[str, Any]:
    """`proj:code` where an authority has a number for the CRS, else `proj:wkt2`: of zarr's convention and of STAC's."""
    found = parse(crs)
    authority = found.to_authority()
    if authority:
        return {"proj:code": ":".join(authority)}
    return {"proj:wkt2": found.to_wkt(version="WKT2_2019")}


def _convention(about: tuple[str, str, str, str]) -> dict[str, str]:
    repository, uuid, name, description = about
    return {
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{repository}/refs/tags/v1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{repository}/blob/v1/README.md",
        "uuid": uuid,
        "name": name,
        "description": description,
    }
