"""What stands between the synthetic ground and Sentinel-2: clouds, shadows, haze, twilight, swath gaps, QA60.

Every field is a pure function of (seed, date, absolute position). A weather field of several kilometres decides how
much cloud there is, so one date holds everything from clear to overcast.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sar2eo_dist.sources import synthetic_noise as sn
from sar2eo_dist.sources.synthetic_noise import F32, I64

Bool = npt.NDArray[np.bool_]

OPAQUE, CIRRUS = 1 << 10, 1 << 11  # QA60 bits
QA60_BLOCK = 6  # the mask is made at 60 m
THICK, THIN = np.float32(0.2), np.float32(0.15)  # opacity from which on a person would mark cloud
_TOP_DN = np.float32(7600)


@dataclass(frozen=True, slots=True)
class Sky:
    """All (h, w). thick, thin, shadow, haze: float32 opacity 0..1; top: float32 DN of the cloud's top; light: float32,
    1 = day; lamp: bool, a light source at night; valid: bool, inside the swath; qa60: uint16."""

    thick: F32
    thin: F32
    shadow: F32
    haze: F32
    top: F32
    light: F32
    lamp: Bool
    valid: Bool
    qa60: npt.NDArray[np.uint16]

    @property
    def cloud(self) -> Bool:
        """Truth: thick or thin cloud that a person would mark, where there is data."""
        out: Bool = _marked(self.thick, self.thin) & self.valid
        return out


def wetness(date: dt.date) -> float:
    """Season, 1 at the height of the rains (March), 0 at the end of the dry season (September)."""
    day = date.timetuple().tm_yday
    phase = ((day - 74) % 365) / 365
    return abs(phase - 0.5) * 2


def gap(k: int, date: dt.date, r: I64, c: I64, width: int) -> Bool:
    """True in the slanted, lens-shaped gaps without data that neighbouring swaths leave, (len(r), len(c)): at most
    `width` pixels wide and 1200 long, one in 5200 columns by 3400 rows."""
    k = sn.key(k, "swath", date.isoformat())
    along = np.mod(r - k % 3400, 3400) - 600
    half = np.where(np.abs(along) < 600, width * (360_000 - along * along) // 720_000, 0)
    across = np.mod(c[None, :] + r[:, None] // 4 - k // 3400 % 5200, 5200) - 400  # 14 degrees off north
    out: Bool = np.abs(across) < half[:, None]
    return out


def _opacity(k: int, r: I64, c: I64, wet: float) -> tuple[F32, F32, F32]:
    """Thick cloud opacity, its relief (about N(0, 1)), and thin cloud opacity."""
    f = np.float32
    weather = sn.rank(sn.fbm(sn.key(k, "weather"), r, c, (520, 170), (1.0, 0.35))) + f(0.10 * (wet - 0.3))
    # Threshold of the cumulus field along the rank of the weather: none, specks at 2.6, half at 0, closed below -3.
    level = np.full_like(weather, 4.5)
    for start, end, fall in ((0.64, 0.69, 38), (0.69, 0.83, 9), (0.83, 0.92, 15), (0.92, 2.0, 30)):
        level -= f(fall) * np.clip(weather - f(start), f(0), f(end - start))
    puff = sn.fbm(sn.key(k, "puff"), r, c, (74, 34, 15, 7, 3), (1.0, 0.62, 0.4, 0.25, 0.13))
    thick = sn.step(puff - level, -0.12, 0.34)
    veil = sn.rank(sn.fbm(sn.key(k, "veil"), r, c, (610, 210), (1.0, 0.4)))
    streak = sn.fbm(sn.key(k, "streak"), r, c, (140, 52, 19, 8), (1.0, 0.8, 0.45, 0.2))
    streak += f(0.5) * sn.noise(sn.key(k, "band"), r, c, (30, 170))
    thin = sn.step(veil + f(0.03) * streak, 0.89, 0.995) * (f(0.40) + f(0.17) * streak)
    return thick, puff, np.clip(thin, f(0), f(0.85))


def _marked(thick: F32, thin: F32) -> Bool:
    out: Bool = (thick > THICK) | (thin > THIN)
    return out


def coverage(seed: int, date: dt.date, row: int, col: int, h: int, w: int, every: int = 16) -> tuple[float, float]:
    """(cloud fraction, share of it that is thick) of a window, judged by one pixel in `every` of both directions."""
    k = sn.key(seed, "sky", date.isoformat())
    thick, _, thin = _opacity(k, np.arange(row, row + h, every), np.arange(col, col + w, every), wetness(date))
    cloud, solid = float(np.mean(_marked(thick, thin))), float(np.mean(thick > THICK))
    return cloud, solid / cloud if cloud else 0.0


def view(seed: int, date: dt.date, row: int, col: int, h: int, w: int) -> Sky:
    """The sky over window (row, col, h, w), absolute pixels."""
    f = np.float32
    k = sn.key(seed, "sky", date.isoformat())
    # Shadow: the cloud's, displaced away from the sun by height times the tangent of the sun's zenith angle.
    height = 14 + sn.key(k, "height") % 12
    down, left = height * 3 // 4, height
    pad = QA60_BLOCK
    r, c = np.arange(row - down - pad, row + h + pad), np.arange(col - pad, col + w + left + pad)
    thick, puff, thin = _opacity(k, r, c, wetness(date))
    own = slice(down + pad, down + pad + h), slice(pad, pad + w)
    cast = slice(pad, pad + h), slice(pad + left, pad + left + w)
    rows, cols = r[own[0]], c[own[1]]

    haze = sn.step(sn.rank(sn.noise(sn.key(k, "haze"), rows, cols, 520)), 0.90, 1.0)
    dusk = sn.step(sn.noise(sn.key(k, "dusk"), rows, cols, 330), 1.95, 2.25)
    light = (f(1) - dusk) ** 2 + f(0.004)
    lamp = (dusk > f(0.6)) & (sn.unit(sn.lattice(sn.key(k, "lamp"), rows, cols)) < f(1 / 3000))
    lit = puff[own] + f(0.6) * (puff[own] - puff[down + pad - 3 : down + pad - 3 + h, pad + 3 : pad + 3 + w])
    bright = np.clip(f(0.62) + f(0.22) * sn.noise(sn.key(k, "bright"), rows, cols, 480), f(0.3), f(1.3))
    top = np.clip(_TOP_DN * bright * (f(0.92) + f(0.13) * lit), f(1200), f(14000))

    # QA60 sees the centre of 60 m blocks, and only where its thresholds happen to fit: a patchy field of its own.
    rc, cc = _centres(rows) - r[0], _centres(cols) - c[0]
    awake = sn.noise(sn.key(k, "qa60"), _centres(rows), _centres(cols), 420) > f(1.15)
    block = np.ix_(rc, cc)
    qa60 = np.where(thick[block] > f(0.55), OPAQUE, np.where(thin[block] > f(0.45), CIRRUS, 0)) * awake
    return Sky(thick[own], thin[own], thick[cast], haze, top, light, lamp,
               ~gap(seed, date, rows, cols, 260), qa60.astype(np.uint16))  # fmt: skip


def _centres(x: I64) -> I64:
    out: I64 = np.floor_divide(x, QA60_BLOCK) * QA60_BLOCK + QA60_BLOCK // 2
    return out
