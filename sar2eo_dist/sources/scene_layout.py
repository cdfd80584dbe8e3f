"""Which files below a folder are one acquisition, and what product names say: no file is opened here.

    <scene>.tif                                   every band in one GeoTIFF; its header says which
    <scene>/B04.tif, <scene>/<any>_B04.tif        one band a file, one folder a scene
    <scene>_B04.tif                               one band a file, a common prefix
    <product>.SAFE/.../IMG_DATA/R10m/<any>_B04_10m.tif, R20m/<any>_SCL_20m.tif

Band names: B04, B03, B02 (or B4, B3, B2, or red, green, blue), SCL, QA60, VV, VH, in any case.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput
from sar2eo_dist.records import S1, S1_BANDS, S2, S2_BANDS, Rejected
from sar2eo_dist.sources.multiearth import date_fault

#: sensor -> bands that may come besides those it must have, the one to use first: QA60 is empty in whole years
MASKS: dict[str, tuple[str, ...]] = {S1: (), S2: ("SCL", "QA60")}
BANDS: dict[str, tuple[str, ...]] = {S1: S1_BANDS, S2: S2_BANDS}
_COLOURS = {"RED": "B4", "GREEN": "B3", "BLUE": "B2", "B04": "B4", "B03": "B3", "B02": "B2"}
PRODUCTS = "S2A_MSIL2A_20190606T..., S2B_21MXT_20190606_0_L2A, S1A_IW_GRDH_1SDV_20190527T..., T21MXT_20190606T140059"

_ENDING = re.compile(r"(?P<name>.+)\.(?P<ending>tiff?|jp2)", re.IGNORECASE | re.DOTALL)
_FILE = re.compile(
    r"(?P<stem>|.*[_.-])(?P<band>B0?[234]|red|green|blue|SCL|QA60|VV|VH)(?:_(?P<gsd>[126]0)m)?(?:\.rtc)?",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
#: other assets of the same products, which are nobody's loss
_OTHER = re.compile(
    r"(?:.*[_.-])?(?:B0?[15-9]|B1[0-2]|B8A|AOT|WVP|TCI|PVI|CLD|SNW|coastal|rededge[123]|nir(?:0[89])?|swir(?:16|22)|visual|"
    r"overview|thumbnail|preview|inc_map|ls_map)(?:_[126]0m)?",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_RESOLUTION = re.compile(r"R[126]0m", re.ASCII)
_PRODUCT = re.compile(
    r"(?<![A-Z0-9])(?P<platform>S[12][A-D])[_-](?:[A-Z0-9]+[_-])*?(?P<day>\d{8})(?!\d)", re.ASCII | re.IGNORECASE
)
_STAMP = re.compile(r"(?<!\d)(?P<day>\d{8})T\d{4,6}(?!\d)", re.ASCII)
_MGRS = re.compile(r"(?<![A-Z0-9])T\d{2}[A-Z]{3}(?![A-Z0-9])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Files:
    """What may be one acquisition: (band, URI) of each file, or ("", URI) of one that holds all bands."""

    files: tuple[tuple[str, str], ...]

    @property
    def uri(self) -> str:
        return self.files[0][1]


@dataclass(frozen=True, slots=True)
class Product:
    """What a product name says. sensor: "s1", "s2" or "" (it does not say); platform e.g. "S1A"; day: its digits."""

    sensor: str = ""
    platform: str = "unknown"
    day: str = ""

    def date(self, uri: str) -> dt.date | None:
        """The day, None where there is none. Raises BadInput bad_date for one that cannot be."""
        if not self.day:
            return None
        try:
            date = dt.date(int(self.day[:4]), int(self.day[4:6]), int(self.day[6:]))
        except ValueError as e:
            raise BadInput("bad_date", uri, f"{self.day} in the product name: {e}") from e
        if fault := date_fault(date):
            raise BadInput("bad_date", uri, f"{self.day} in the product name: {fault}")
        return date


def band_of(word: str) -> str:
    """B4, B3, B2, SCL, QA60, VV, VH of one of their names in upper case; "" for any other word."""
    band = _COLOURS.get(word, word)
    return band if any(band in BANDS[s] + MASKS[s] for s in BANDS) else ""


def acquisitions(infos: Iterable[storage.Info], sensor: str) -> Iterator[Files | Rejected]:
    """Files of one sensor grouped by acquisition, and those of no sensor yet (to be opened), as the listing goes.

    infos: in order of URI, so that URIs of one prefix are neighbours: what is held is one scene and its parents.
    Rejected are JPEG 2000 (bad_name), a second file of a band (duplicate) and scenes without a band (missing_band).
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}  # (what its URIs begin with, name before the band)
    for info in infos:
        for key in [k for k in groups if not info.uri.startswith(k[0])]:
            yield _complete(groups.pop(key), sensor)
        ending = _ENDING.fullmatch(storage.name(info.uri))
        if not ending:
            continue
        match = _FILE.fullmatch(ending["name"])
        band = band_of(match["band"].upper()) if match else ""
        if _OTHER.fullmatch(ending["name"]) or (band and band not in BANDS[sensor] + MASKS[sensor]):
            continue
        if ending["ending"].lower() == "jp2":
            if sensor == S2:
                detail = "JPEG 2000 has no blocks that can be fetched alone: convert it (gdal_translate -of COG)"
                yield Rejected(sensor, info.uri, "bad_name", detail)
        elif match is None:
            yield Files((("", info.uri),))
        elif match["gsd"] != "60" and not (match["gsd"] == "20" and band in S2_BANDS):
            folder = info.uri.rpartition("/")[0]
            above = folder.rpartition("/")[0] if _RESOLUTION.fullmatch(storage.name(folder)) else ""
            prefix = f"{above}/" if above else f"{folder}/{match['stem']}"
            bands = groups.setdefault((prefix, match["stem"]), {})
            if band in bands:
                yield Rejected(sensor, info.uri, "duplicate", f"{band} of this scene is {bands[band]}")
            else:
                bands[band] = info.uri
    for bands in groups.values():
        yield _complete(bands, sensor)


def _complete(bands: dict[str, str], sensor: str) -> Files | Rejected:
    missing = [b for b in BANDS[sensor] if b not in bands]
    if missing:
        detail = f"the scene has {' '.join(sorted(bands))} beside each other, not {' '.join(missing)}"
        return Rejected(sensor, min(bands.values()), "missing_band", detail)
    mask = [b for b in MASKS[sensor] if b in bands][:1]
    return Files(tuple((b, bands[b]) for b in (*BANDS[sensor], *mask)))


def product(uri: str) -> Product:
    """What the innermost product name in a URI says: file name first, then its folders."""
    parts = [p for p in uri.split("/")[::-1] if "_OPER_" not in p]  # names of before 2016: of the processing first
    if match := next((m for part in parts if (m := _PRODUCT.search(part))), None):
        platform = match["platform"].upper()
        return Product(platform[:2].lower(), platform, match["day"])
    if match := next((m for part in parts if (m := _STAMP.search(part))), None):
        return Product(S2 if any(_MGRS.search(part) for part in parts) else "", day=match["day"])
    return Product()
