"""The nouns that flow: frozen values and their Arrow schemas, in one place.

SceneRef -> TileRef -> (pixels) -> Verdict -> Pair -> ShardRef -> Bundle -> Block. Pointers flow through Ray; pixels
exist only between read and score, or read and encode.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

S1, S2 = "s1", "s2"
S1_BANDS = ("VV", "VH")
S2_BANDS = ("B4", "B3", "B2")
PATCH = 256  # side of a MultiEarth patch, pixels of 10 m
KEPT = ""  # the `reason` of a tile that nothing rejects
CITED = "stac-"  # how the digest of a SceneRef begins whose files were not listed

#: reason -> what it means, in the order in which tiles meet them
REASONS: dict[str, str] = {
    "bad_name": "the file name does not follow the layout",
    "bad_date": "impossible acquisition date",
    "duplicate": "the same sensor, place and date appears twice",
    "missing_band": "a band of the acquisition is missing",
    "unreadable": "torn, empty or undecodable file",
    "wrong_shape": "not a 256 x 256 patch",
    "wrong_dtype": "pixel type is not the sensor's",
    "all_nodata": "no valid pixel",
    "qa60": "the product's own mask (QA60, SCL) flags cloud",
    "constant": "a band has one single value",
    "alpha": "pixels surpass alpha (bright cloud)",
    "brightness": "mean brightness too low (night)",
    "dark": "too many dark pixels (no data, shadow)",
    "partial": "too few pixels with data",
    "night": "too little light",
    "white": "bright and white pixels (cloud)",
    "haze": "haze",
    "not_scored": "the feature extractor gave a non-finite score",
    "frechet": "too close to the cloud set",
}


def digest(*parts: object) -> str:
    """sha256 (first 16 bytes, hex) of the JSON of `parts`; equal values give equal digests on any machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def place_key(lon: float, lat: float) -> str:
    """The 0.02 degree place of a patch centre, as MultiEarth matches places: rint(100 * degrees)."""
    return f"{round(100 * lon):+06d}{round(100 * lat):+05d}"


@dataclass(frozen=True, slots=True)
class TileRef:
    """Pointer to one acquisition of one sensor at one place: no pixels.

    sensor      "s1" or "s2"
    lon, lat    centre, degrees
    date        acquisition day (UTC)
    kind        the source that can read it: "multiearth_tiff", "multiearth_netcdf", "scenes" or "folder_pair"
    bands       band names present, S1_BANDS or S2_BANDS first, then QA60 or SCL where there is one
    uris        one per band, or a single file that holds them all
    rows        where in the files: row of a NetCDF file; (row, column) of a scene's pixels; empty for TIFF patches
    digest      of the listed inputs: URI, size, ETag or mtime of each file
    orbit       "ascending", "descending" or "unknown"; platform e.g. "S1A" or "unknown"
    """

    sensor: str
    lon: float
    lat: float
    date: dt.date
    kind: str
    bands: tuple[str, ...]
    uris: tuple[str, ...]
    digest: str
    rows: tuple[int, ...] = ()
    orbit: str = "unknown"
    platform: str = "unknown"

    @property
    def place(self) -> str:
        return place_key(self.lon, self.lat)

    @property
    def key(self) -> str:
        """Sensor, place and date: the same for TIFF and NetCDF."""
        return f"{self.sensor}/{self.place}/{self.date.isoformat()}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that could not even become a TileRef (bad name, impossible date, duplicate), so that nothing is lost."""

    sensor: str
    uri: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was MEASURED on one tile, kept or not, with the first failing reason of stages 1 and 2 ("" = none).

    qa60_state       "cloudy" (QA60 flags a pixel), "clear" (none), "unknown" (no QA60 band) or "" (S1)
    qa60_fraction    share of pixels with QA60 bit 10 or 11, 0..1
    max_dn           largest DN of B4, B3, B2
    alpha_fraction   share of pixels with any of B4, B3, B2 >= alpha, 0..1
    brightness       mean V of HSV of the stretched 8-bit image, 0..255
    dark_fraction    share of dark pixels as the paper counts them, 0..1
    dark_released    the same as the authors' script counts them, on DN as the product has them
    brightness_released    brightness of DN as the product has them: the script knows no offsets
    qa60_any         share of pixels with any QA60 value > 0: the script's rule
    contrast         smallest (max - min) of a band, DN; 0 = a constant band
    light            DN that the brightest band of nine tenths of the pixels reaches (cca/cloud.py)
    white_fraction   share of bright and white pixels (cloud) among those with data, 0..1
    haze             blue light too much over the pixels that are not white, DN (cca/cloud.py)
    offset           DN that the product adds to reflectance x 10000 (its metadata: 0 or 1000), removed from all DN here
    valid_fraction   share of pixels with data in every band, 0..1
    score            Frechet distance to the cloud set, named by `score_name` (`fid`, or `fd_<extractor>`); NaN = none
    scored_by        digest of what made the score: cloud set, extractor, distance, pack, threads
    unit             id of the unit of work that measured the tile
    Unmeasured numbers are NaN. Which thresholds apply is not part of a verdict but for `reason`: they are a filter.
    """

    key: str
    sensor: str
    place: str
    lon: float
    lat: float
    date: dt.date
    orbit: str
    platform: str
    kind: str
    uris: tuple[str, ...]
    bands: tuple[str, ...]
    rows: tuple[int, ...]
    digest: str
    reason: str
    detail: str = ""
    valid_fraction: float = float("nan")
    qa60_state: str = ""
    qa60_fraction: float = float("nan")
    max_dn: float = float("nan")
    alpha_fraction: float = float("nan")
    brightness: float = float("nan")
    dark_fraction: float = float("nan")
    dark_released: float = float("nan")
    brightness_released: float = float("nan")
    qa60_any: float = float("nan")
    contrast: float = float("nan")
    light: float = float("nan")
    white_fraction: float = float("nan")
    haze: float = float("nan")
    offset: float = float("nan")
    score: float = float("nan")
    score_name: str = ""
    scored_by: str = ""
    unit: str = ""

    @property
    def ref(self) -> TileRef:
        return TileRef(self.sensor, self.lon, self.lat, self.date, self.kind, tuple(self.bands), tuple(self.uris),
                       self.digest, tuple(self.rows), self.orbit, self.platform)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Calibration:
    """Stage 3's threshold: a reduction over the whole corpus, frozen and versioned.

    score_name, rule ("range", "literal", "quantile", "otsu" or "none"), beta; low and high: the ends of the range of
    scores that the rule used; threshold: scores strictly below it are dropped; count: scores that entered;
    reference: `scored_by` of these scores; version: 1, 2, ... within a run folder, 0 = not frozen; kept: share of the
    scores that it kept; quantiles: 101 of the scores, 0 to 100 %, which later scores are compared with; survivors: digest
    of the stages 1 and 2 whose survivors' scores entered.
    """

    score_name: str
    rule: str
    beta: float
    low: float
    high: float
    threshold: float
    count: int
    reference: str
    version: int = 0
    kept: float = float("nan")
    quantiles: tuple[float, ...] = ()
    survivors: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One SAR and one EO acquisition of one place. days = EO date - SAR date; split: "train", "val", "test", "guard"."""

    place: str
    lon: float
    lat: float
    sar_key: str
    eo_key: str
    sar_date: dt.date
    eo_date: dt.date
    days: int
    orbit: str
    platform: str
    sar_digest: str
    eo_digest: str
    split: str


@dataclass(frozen=True, slots=True)
class SceneRef:
    """One geocoded S1 raster (VV, VH), without pixels.

    uris        one raster with VV and VH; or two rasters, VV then VH; or one `.zarr` store
    crs         "EPSG:n" or WKT
    transform   affine (a, b, c, d, e, f) as rasterio has it: x = a col + b row + c, y = d col + e row + f
    date        acquisition day (UTC), None where nothing says (a mosaic)
    orbit       "ascending", "descending" or "unknown"; platform e.g. "S1A" or "unknown"
    units       "db" or "linear"; quantity: "sigma0" or "gamma0"
    digest      of what was listed (URI, size, ETag or mtime of each file); of what only a STAC item names, of the item's
                identity: begins with CITED, and nothing says whether the files are still the same
    footprint   ring of longitude and latitude, degrees: x0, y0, x1, y1, ...; empty = the raster's own rectangle
    """

    uris: tuple[str, ...]
    crs: str
    transform: tuple[float, float, float, float, float, float]
    width: int
    height: int
    date: dt.date | None
    orbit: str
    platform: str
    units: str
    quantity: str
    digest: str
    footprint: tuple[float, ...] = ()

    @property
    def uri(self) -> str:
        return self.uris[0]

    @property
    def listed(self) -> bool:
        """The digest is of the files, so that a change shows."""
        return not self.digest.startswith(CITED)


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored object: URI relative to the run folder, size in bytes, sha256 (hex)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work: a pure function of key, config fingerprint and inputs' digest.

    stage: the verb; key: canonical and human-readable; inputs: digest of the listed inputs;
    id = digest(stage, key, fingerprint, inputs).
    """

    stage: str
    key: str
    fingerprint: str
    inputs: str
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", digest(self.stage, self.key, self.fingerprint, self.inputs))


T = TypeVar("T")

_ARROW: dict[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "dt.date": pa.date32(),
    "tuple[str, ...]": pa.list_(pa.string()),
    "tuple[int, ...]": pa.list_(pa.int64()),
    "tuple[float, ...]": pa.list_(pa.float64()),
    "tuple[float, float, float, float, float, float]": pa.list_(pa.float64()),
    "dt.date | None": pa.date32(),
}


def schema(record: type) -> pa.Schema:
    """The Arrow schema of a record type: one column a field, in order, nullable only where the field may be None."""
    types = [(f.name, str(f.type)) for f in dataclasses.fields(record)]
    return pa.schema([pa.field(name, _ARROW[t], nullable=t.endswith("| None")) for name, t in types])


def to_table(rows: Sequence[Any], record: type) -> pa.Table:
    """Records of one type as an Arrow table."""
    columns = {f.name: [getattr(r, f.name) for r in rows] for f in dataclasses.fields(record)}
    return pa.table(columns, schema=schema(record))


def from_table(table: pa.Table, record: type[T]) -> list[T]:
    """The inverse of `to_table`. Raises pa.ArrowInvalid where a column is missing or of another type."""
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    table = table.select([f.name for f in fields]).cast(schema(record))
    lists = {f.name for f in fields if str(f.type).startswith("tuple")}
    return [record(**{k: tuple(v) if k in lists else v for k, v in row.items()}) for row in table.to_pylist()]


def by_key(rows: Iterable[Any]) -> list[Any]:
    """Canonical order."""
    return sorted(rows, key=lambda r: r.key)
