"""A seeded Amazon-like world of any size: ground, Sentinel-1, Sentinel-2, and the truth beside them.

Every pixel is a pure function of (seed, date, absolute row and column): a window equals the crop of any larger one, bit
for bit, so size never costs memory. Made from scratch: no real pixel is in it, and no number of it says anything about
the real Amazon. Class means follow what Sentinel patches of Para show.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rasterio.warp import transform as warp

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import PATCH, S2_BANDS
from sar2eo_dist.sources import synthetic_noise as sn
from sar2eo_dist.sources import synthetic_sky
from sar2eo_dist.sources.synthetic_ground import Cover, Ground, survey
from sar2eo_dist.sources.synthetic_noise import F32

U16 = npt.NDArray[np.uint16]
Bool = npt.NDArray[np.bool_]

CRS = "EPSG:32721"
GSD = 10.0  # metres
ORIGIN = (699740.0, 9513420.0)  # easting, northing of the outer corner of pixel (0, 0), which holds 55.20 W 4.40 S
FIRST_SAR = dt.date(2019, 5, 27)
CYCLE = 12  # days between S1 acquisitions
LABELS = ("clear", "small_cloud", "cloudy", "overcast", "thin", "haze", "night", "swath_edge")

#: band -> DN of each cover (dry season, wet season), clear air; order of `Cover`
_DN: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "B1": ((190, 200, 220, 330, 330, 480, 260, 560, 700, 300, 5600, 2300, 170, 480, 900),
           (185, 195, 215, 300, 300, 440, 250, 540, 700, 290, 5600, 2300, 180, 520, 900)),
    "B2": ((225, 235, 265, 430, 410, 640, 300, 760, 850, 400, 6100, 2500, 190, 560, 1250),
           (220, 230, 260, 380, 360, 560, 290, 720, 850, 370, 6100, 2500, 200, 620, 1250)),
    "B3": ((415, 405, 540, 690, 740, 900, 420, 1080, 1020, 660, 6300, 2600, 230, 830, 1600),
           (425, 415, 560, 680, 720, 820, 430, 1020, 1020, 680, 6300, 2600, 250, 880, 1600)),
    "B4": ((225, 230, 320, 730, 720, 1330, 520, 1520, 1180, 560, 6400, 2700, 150, 860, 1900),
           (215, 220, 300, 540, 500, 1150, 480, 1400, 1180, 480, 6400, 2700, 170, 980, 1900)),
    "B8": ((3000, 2700, 3300, 2300, 2600, 2100, 1000, 2300, 2000, 2500, 6500, 2900, 120, 420, 2400),
           (3150, 2800, 3500, 2700, 3200, 1900, 1100, 2100, 2000, 2900, 6500, 2900, 130, 520, 2400)),
}  # fmt: skip
#: how much texture, crown, tone, hue and shade move the reflectance of each cover (share for one unit)
_MOVES: tuple[tuple[float, ...], ...] = (
    (.055, .07, .10, .03, .02, .03, .08, .02, .03, .05, .02, .02, .02, .01, .02),
    (.150, .15, .12, .08, .05, .04, .10, .03, .10, .10, .10, .10, .02, .01, .05),
    (.000, .00, .15, .08, .20, .22, .25, .06, .30, .20, .13, .25, .10, .12, .10),
    (.000, .00, .12, .22, .30, .12, .15, .00, .00, .10, .00, .00, .00, .08, .00),
    (.055, .03, .05, .03, .03, .03, .03, .00, .00, .00, .00, .00, .00, .00, .00),
)  # fmt: skip
#: hue acts on bands with these signs: greener is less red and more infrared
_HUE = {"B1": -0.4, "B2": -0.4, "B3": 0.25, "B4": -1.0, "B8": 0.5}
#: (VV, VH) dB of each cover; order of `Cover`
_DB = (
    (-7.5, -6.3, -8.4, -10.5, -10.9, -12.0, -10.4, -13.2, -2.6, -7.6, -0.5, -3.0, -20.0, -19.2, -15.0),
    (-13.0, -12.3, -14.0, -16.6, -17.8, -20.0, -17.0, -21.0, -9.5, -14.5, -8.0, -11.0, -27.0, -26.2, -23.0),
)
#: how much texture, tone and hue move the dB of each cover (VH moves as VV), and the slope towards the radar
_SAR_MOVES: tuple[tuple[float, ...], ...] = (
    (.45, .45, .50, .60, .40, .40, .50, .20, .50, .50, .30, .30, .00, .00, .20),
    (.00, .00, .50, .40, -.6, -.7, -.6, -.3, 1.8, .80, 1.0, 1.0, .60, .60, .40),
    (.00, .00, .50, .70, .80, .60, .60, .00, .00, .40, .00, .00, .00, .00, .00),
    (.75, .60, .75, .60, .60, .60, .60, .40, .30, .40, .00, .00, .00, .00, .30),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EOView:
    """What Sentinel-2 saw. bands: uint16 DN (B, h, w), offset 0, 0 = no data; qa60: uint16 (h, w), bits 10 and 11.

    Truth: cloud: bool (h, w), thick or thin cloud (haze and shadow are not); valid: bool (h, w); cloud_fraction of the
    valid pixels, 0..1; label: one of LABELS, what best names the whole window.
    """

    bands: U16
    qa60: U16
    cloud: Bool
    valid: Bool
    cloud_fraction: float
    label: str


def orbit(date: dt.date) -> str:
    """Direction of the S1 orbit: repeat cycles alternate."""
    return "ascending" if (date - FIRST_SAR).days // CYCLE % 2 else "descending"


def sar_dates(count: int) -> list[dt.date]:
    """The first S1 acquisition dates: every 12 days from 2019-05-27."""
    return [FIRST_SAR + dt.timedelta(days=CYCLE * i) for i in range(count)]


def eo_dates(seed: int, count: int) -> list[dt.date]:
    """S2 dates, ascending and distinct: each within 4 days of an S1 date."""
    return [d + dt.timedelta(days=sn.key(seed, "s2", i) % 9 - 4) for i, d in enumerate(sar_dates(count))]


def to_pixel(lon: float, lat: float) -> tuple[int, int]:
    """(row, column) of the pixel that holds a place in degrees WGS 84."""
    xs, ys = warp("EPSG:4326", CRS, [lon], [lat])
    return int((ORIGIN[1] - ys[0]) // GSD), int((xs[0] - ORIGIN[0]) // GSD)


def patch_window(lon: float, lat: float) -> tuple[int, int, int, int]:
    """(row, col, h, w) of the 256 x 256 patch around a place."""
    row, col = to_pixel(lon, lat)
    return row - PATCH // 2, col - PATCH // 2, PATCH, PATCH


def transform(row: int, col: int) -> tuple[float, float, float, float, float, float]:
    """GDAL-order affine (rasterio's Affine arguments) of a window whose first pixel is (row, col), in metres of CRS."""
    return GSD, 0.0, ORIGIN[0] + GSD * col, 0.0, -GSD, ORIGIN[1] - GSD * row


def sar_gap(seed: int, date: dt.date, r: sn.I64, c: sn.I64) -> Bool:
    """True (len(r), len(c)) where S1 of a date holds border zeros; r, c: absolute rows and columns."""
    return synthetic_sky.gap(sn.key(seed, "s1"), date, r, c, 90)


@functools.lru_cache(maxsize=2)
def _ground(seed: int, row: int, col: int, h: int, w: int) -> Ground:
    """Ground with a margin of one pixel; kept for the other dates and sensors of the same window."""
    return survey(seed, row - 1, col - 1, h + 2, w + 2)


@dataclass(frozen=True, slots=True)
class World:
    """The world of a seed. Windows are (row, col, h, w) in absolute pixels of 10 m, rows downwards, of any sign."""

    seed: int

    def ground(self, row: int, col: int, h: int, w: int) -> Ground:
        """Land cover and its textures, (h, w)."""
        return _ground(self.seed, row, col, h, w).crop(1)

    def clear(self, date: dt.date, row: int, col: int, h: int, w: int, bands: Sequence[str] = S2_BANDS) -> U16:
        """The cloud-free truth: uint16 DN (B, h, w) of a date, without gaps. Raises ConfigError on an unknown band."""
        return np.stack([np.rint(x).astype(np.uint16) for x in self._surface(date, row, col, h, w, bands)])

    def _surface(self, date: dt.date, row: int, col: int, h: int, w: int, bands: Sequence[str]) -> list[F32]:
        f = np.float32
        if unknown := [b for b in bands if b not in _DN]:
            raise ConfigError(f"band {unknown[0]!r} is not in the synthetic world, which has {', '.join(_DN)}")
        g = _ground(self.seed, row, col, h, w)
        k = sn.key(self.seed, "air", date.isoformat())
        wet = synthetic_sky.wetness(date)
        by_texture, by_crown, by_tone, by_hue, by_shade = (np.array(m, np.float32)[g.cover] for m in _MOVES)
        common = f(1) + by_texture * g.texture + by_crown * g.crown + by_tone * g.tone + by_shade * g.shade
        hue = by_hue * g.hue
        grain = sn.lattice(sn.key(k, "grain"), np.arange(row, row + h), np.arange(col, col + w))
        out = []
        for band in bands:
            dry, rainy = (np.array(t, np.float32) for t in _DN[band])
            factor = np.maximum(common + f(_HUE[band]) * hue, f(0.3))
            dn = sn.soften((dry + f(wet) * (rainy - dry))[g.cover] * factor)
            gain = 1 + 0.04 * (sn.key(k, "gain", band) / 2**31 - 1)
            shift = sn.key(k, "path") / 2**32 * {"B1": 40, "B2": 30, "B3": 18, "B4": 10}.get(band, 4)
            seen = sn.again(grain, sn.key(band)) * f(12) - f(6)
            out.append(np.clip(dn * f(gain) + f(shift) + seen, f(1), f(16000)))
        return out

    def eo(self, date: dt.date, row: int, col: int, h: int, w: int, bands: Sequence[str] = S2_BANDS) -> EOView:
        """What Sentinel-2 saw of the window on a date."""
        f = np.float32
        sky = synthetic_sky.view(self.seed, date, row, col, h, w)
        shade = f(1) - f(0.58) * sky.shadow * (f(1) - sky.thick)
        lamps = np.where(sky.lamp, f(420), f(0))
        out = np.zeros((len(bands), h, w), np.uint16)
        for n, (band, dn) in enumerate(zip(bands, self._surface(date, row, col, h, w, bands), strict=True)):
            # Rayleigh and aerosol light is blue; cloud is white with a trace of blue, cirrus weaker than cumulus.
            blue = {"B1": 1.35, "B2": 1.0, "B3": 0.72, "B4": 0.55}.get(band, 0.3)
            dn = dn * shade + f(60 * blue) * (f(1) - shade)
            dn += sky.haze * (f(620 * blue) - f(0.25) * dn)
            dn += sky.thin * (f(1450 + 450 * blue) + f(0.16) * sky.top - dn)
            dn += sky.thick * (sky.top * f(0.97 + 0.03 * blue) - dn)
            dn = np.clip(dn * sky.light + lamps, f(1), f(16000))
            out[n] = np.rint(dn).astype(np.uint16) * sky.valid
        covered = float(np.count_nonzero(sky.cloud)) / max(1, int(np.count_nonzero(sky.valid)))
        return EOView(out, sky.qa60 * sky.valid, sky.cloud, sky.valid, covered, _label(sky, covered))

    def sar(self, date: dt.date, row: int, col: int, h: int, w: int) -> F32:
        """Sentinel-1 sigma-nought in dB, float32 (2, h, w): VV, VH. Exactly 0.0 in both where the swath has no data."""
        f = np.float32
        g = _ground(self.seed, row, col, h, w)
        k = sn.key(self.seed, "sar", date.isoformat())
        r, c = np.arange(row, row + h), np.arange(col, col + w)
        facing = f(1 if orbit(date) == "ascending" else -1)  # ascending looks east, onto slopes that face west
        by_texture, by_tone, by_hue, by_slope = (np.array(m, np.float32)[g.cover] for m in _SAR_MOVES)
        common = by_texture * g.texture + by_tone * g.tone + by_hue * g.hue
        common += by_slope * np.clip(g.slope, f(-3), f(3)) * facing
        wind, moist = sn.key(k, "wind") / 2**31 - 1, 0.35 * (sn.key(k, "moist") / 2**31 - 1)
        out = np.empty((2, h, w), np.float32)
        grainy = sn.speckle(sn.key(k, "speckle"), r, c)
        for n, table in enumerate(_DB):
            mean = np.array(table, np.float32) + f(moist + 0.25 * synthetic_sky.wetness(date))
            mean[[Cover.CLEARWATER, Cover.SEDIMENT]] += f(wind * (1.4, 0.7)[n])
            out[n] = sn.soften(mean[g.cover] + common) + grainy[n]
        out[out == 0] = f(1e-3)
        out[:, sar_gap(self.seed, date, r, c)] = 0
        return out


def _label(sky: synthetic_sky.Sky, covered: float) -> str:
    if np.mean(sky.valid) < 0.995:
        return "swath_edge"
    if np.mean(sky.light < np.float32(0.5)) > 0.1:
        return "night"
    if covered >= 0.08:
        thick = float(np.mean(sky.thick > synthetic_sky.THICK))
        return "thin" if thick < 0.3 * covered else "overcast" if covered > 0.95 else "cloudy"
    if np.mean(sky.haze) > 0.25:
        return "haze"
    return "small_cloud" if covered > 0.002 else "clear"
