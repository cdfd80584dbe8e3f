"""The ground of the synthetic world: where forest, water, clearings, savanna and towns lie, and how they look.

Lines (rivers, streams, roads) are level lines of warped coordinates: they run through the whole world, meander, and
need no neighbourhood. Plots are cells of the road's own coordinates, which gives the fishbone of Rondonia and Para.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sar2eo_dist.sources import synthetic_noise as sn
from sar2eo_dist.sources.synthetic_noise import F32, F64, I64

Bool = npt.NDArray[np.bool_]

RIVERS = 1500  # spacing of main rivers, pixels of 10 m
STREAMS = 540
HIGHWAYS = 1180
BRANCHES = 176  # spacing of the side roads
TOWNS = 1400


class Cover(IntEnum):
    """Land cover classes, values of `Ground.cover`."""

    FOREST = 0
    FLOODED = 1  # forest standing in water beside rivers
    REGROWTH = 2
    SAVANNA = 3
    PASTURE = 4
    SOIL = 5
    BURN = 6
    ROAD = 7
    TOWN = 8
    YARD = 9
    ROOF = 10  # white roof: far brighter than anything else on the ground
    SHED = 11  # metal roof of a farm
    CLEARWATER = 12
    SEDIMENT = 13  # brown water
    SAND = 14


@dataclass(frozen=True, slots=True)
class Ground:
    """What lies on the ground, all (h, w).

    cover       uint8, `Cover`
    texture     float32, about N(0, 1): canopy height, biomass (tens to hundreds of metres)
    crown       float32, about N(0, 1): single crowns (20 to 30 m)
    tone, hue   float32, -1..1: brightness, and greenness against redness, of a plot or of a stretch of water
    slope       float32, east-west slope, about N(0, 1): positive faces west
    shade       float32, about N(0, 1): slope towards the sun (north-east)
    """

    cover: npt.NDArray[np.uint8]
    texture: F32
    crown: F32
    tone: F32
    hue: F32
    slope: F32
    shade: F32

    def crop(self, n: int) -> Ground:
        """Without a margin of n pixels."""
        return Ground(*(getattr(self, f)[n:-n, n:-n] for f in self.__slots__))


def _line(k: int, along: F64, spacing: int, jitter: float) -> tuple[I64, F64]:
    """Index of the line that owns each position, and the signed distance to it, in coordinate units."""
    index = np.floor(along / spacing).astype(np.int64)
    shift = sn.by_index(sn.key(k, "shift"), index) - np.float32(0.5)
    return index, along - (index + 0.5 + jitter * shift) * spacing


def _rotated(angle: float, r: I64, c: I64) -> tuple[F64, F64]:
    """Absolute coordinates turned by an angle: across and along."""
    sin, cos = math.sin(angle), math.cos(angle)
    y, x = r.astype(np.float64)[:, None], c.astype(np.float64)[None, :]
    return y * cos + x * sin, x * cos - y * sin


def _stretch(f: F64) -> F32:
    """|gradient| of a coordinate on the inner pixels (h + 2, w + 2) -> (h, w): units per pixel, at least 0.3."""
    gy, gx = f[2:, 1:-1] - f[:-2, 1:-1], f[1:-1, 2:] - f[1:-1, :-2]
    g: F32 = np.maximum(np.sqrt(gy * gy + gx * gx) * 0.5, 0.3).astype(np.float32)
    return g


def _inner(f: npt.NDArray[np.float64]) -> F64:
    return f[1:-1, 1:-1]


@dataclass(frozen=True, slots=True)
class _Water:
    depth: F32  # half width minus distance to the axis, pixels: water where positive
    brown: Bool
    wide: Bool
    stream: F32  # the same for streams


def _water(seed: int, r: I64, c: I64) -> _Water:
    k = sn.key(seed, "rivers")
    angle = (sn.key(k, "angle") / 2**32 - 0.5) * 1.2
    rough = (np.float32(16) * sn.noise(sn.key(k, "rough"), r, c, 55)).astype(np.float64)
    v, u = _rotated(angle, r, c)
    v += 235.0 * sn.noise(sn.key(k, 0), r, c, 620) + 70.0 * sn.noise(sn.key(k, 1), r, c, 210) + rough
    u += 130.0 * sn.noise(sn.key(k, 2), r, c, 420) + 48.0 * sn.noise(sn.key(k, 3), r, c, 140) + 1.2 * rough
    band, across = _line(k, _inner(v), RIVERS, 0.3)
    distance = (np.abs(across) / _stretch(v)).astype(np.float32)
    size = sn.by_index(sn.key(k, "size"), band)
    wide = size < np.float32(0.4)
    half = np.where(wide, np.float32(16) + np.float32(50) * size, np.float32(2.2) + np.float32(4) * size)
    inner = r[1:-1], c[1:-1]
    half *= np.float32(1) + np.float32(0.22) * sn.noise(sn.key(k, "width"), *inner, 330)
    # A stream joins its river: it lives on one side and thins out towards its source.
    number, side = _line(sn.key(k, "streams"), _inner(u), STREAMS, 0.5)
    ident = sn.hashed(sn.key(k, "stream"), number, band * 2 + (across > 0))
    reach = (sn.unit(ident) * np.float32(0.45) + np.float32(0.1)) * RIVERS
    left = np.float32(1) - np.abs(across).astype(np.float32) / reach
    off = (np.abs(side) / _stretch(u)).astype(np.float32)
    stream = np.where(left > 0, np.float32(0.45) + np.float32(1.7) * left, np.float32(-99)) - off
    brown = sn.by_index(sn.key(k, "brown"), band) < np.float32(0.6)
    return _Water(half - distance, brown, wide, stream)


@dataclass(frozen=True, slots=True)
class _Plots:
    road: Bool
    cleared: Bool
    plot: npt.NDArray[np.uint32]  # hash of the plot
    town: F32  # positive inside
    street: Bool
    activity: F32


def _settlement(seed: int, r: I64, c: I64) -> _Plots:
    """Highways, side roads at right angles to them, cleared plots along both, towns on the highways."""
    k = sn.key(seed, "highways")
    angle = (sn.key(k, "angle") / 2**32 - 0.5) * 2.4
    v, u = _rotated(angle, r, c)
    v += 105.0 * sn.noise(sn.key(k, 0), r, c, 760) + 6.0 * sn.noise(sn.key(k, 1), r, c, 75)
    u += 60.0 * sn.noise(sn.key(k, 2), r, c, 820) + 5.0 * sn.noise(sn.key(k, 3), r, c, 65)
    edge = np.float32(2.2) * sn.noise(sn.key(k, "edge"), r, c, 11)
    activity = sn.fbm(sn.key(k, "activity"), r, c, (980, 300), (1.0, 0.45)) + np.float32(0.15)
    way, dv = _line(k, v, HIGHWAYS, 0.25)
    off = np.abs(dv).astype(np.float32)
    settled = activity > np.float32(-0.35)
    branch, du = _line(sn.key(k, "branches"), u, BRANCHES, 0.35)
    near = np.abs(du).astype(np.float32)
    limb = sn.hashed(sn.key(k, "limb"), way * 2 + (dv > 0), branch)
    share = sn.unit(limb)
    length = (np.float32(0.05) + np.float32(0.42) * share) * HIGHWAYS * sn.step(activity, -0.6, 0.7)
    road = settled & (off < np.float32(1.3)) | (near < np.float32(0.8)) & (off < length)
    # Plots: lots along a side road on both its sides, and along the highway itself.
    lot = np.floor((off + edge) / np.float32(31)).astype(np.int64)
    side_plot = sn.hashed(sn.key(k, "lot"), lot * 2 + (du > 0), limb)
    front = np.floor((u + edge) / 44).astype(np.int64)
    front_plot = sn.hashed(sn.key(k, "front"), front, way * 2 + (dv > 0))
    wish = np.float32(0.24) + np.float32(0.46) * activity
    a, b = sn.unit(side_plot), sn.again(side_plot, 1)
    on_side = (off < length) & (near + edge < np.float32(12) + np.float32(70) * b * b)
    on_side &= a < wish * (np.float32(1.2) - np.float32(0.7) * off / np.maximum(length, np.float32(1)))
    a, b = sn.unit(front_plot), sn.again(front_plot, 1)
    on_front = settled & (off + edge < np.float32(14) + np.float32(90) * b * b) & (a < wish + np.float32(0.2))
    site, ds = _line(sn.key(k, "towns"), u, TOWNS, 0.4)
    ident = sn.hashed(sn.key(k, "town"), site, way)
    size = np.float32(12) + np.float32(24) * sn.again(ident, 1)
    radius = np.where((sn.unit(ident) < np.float32(0.42)) & (activity > np.float32(-0.7)), size, np.float32(-99))
    dx = ds.astype(np.float32) * np.float32(0.75)
    town = radius - np.sqrt(dx * dx + off * off) + np.float32(3.5) * sn.noise(sn.key(k, "rim"), r, c, 16)
    street = (np.mod(u, 9) < 1.2) | (np.mod(v, 8) < 1.2)
    return _Plots(road, on_side | on_front, np.where(on_side, side_plot, front_plot), town, street, activity)


def survey(seed: int, row: int, col: int, h: int, w: int) -> Ground:
    """The ground of window (row, col, h, w), absolute pixels: a pure function of seed and position."""
    r2, c2 = np.arange(row - 1, row + h + 1), np.arange(col - 1, col + w + 1)
    r, c = r2[1:-1], c2[1:-1]
    f = np.float32
    texture = sn.fbm(sn.key(seed, "texture"), r, c, (120, 42, 14), (1.0, 0.8, 0.7))
    crown = sn.fbm(sn.key(seed, "crown"), r, c, (3, 2), (0.75, 0.65))
    relief = np.abs(sn.noise(sn.key(seed, "relief", 0), r2, c2, 190)) * f(60)  # |noise| is dissected by valleys
    relief += np.abs(sn.noise(sn.key(seed, "relief", 1), r2, c2, 70)) * f(16)
    slope = (relief[1:-1, 2:] - relief[1:-1, :-2]) * f(1.1)
    shade = (relief[2:, 1:-1] - relief[:-2, 1:-1]) * f(0.8) - slope * f(0.7)
    water, plots = _water(seed, r2, c2), _settlement(seed, r, c)

    cover = np.zeros((h, w), np.uint8)
    tone, hue = f(0.5) * texture, np.zeros((h, w), np.float32)
    dry = sn.fbm(sn.key(seed, "savanna"), r, c, (900, 260, 80), (1.0, 0.45, 0.3))
    open_land = dry + f(0.3) * texture + f(0.12) * crown > f(1.12)
    cover[open_land] = Cover.SAVANNA
    gallery = (water.stream > f(-6)) | (water.depth > f(-9))
    cover[open_land & gallery] = Cover.FOREST
    cover[(water.depth > f(-4) - f(14) * np.maximum(texture, f(0))) & water.wide] = Cover.FLOODED
    hue[open_land] = f(0.5) * texture[open_land]

    kind, shine, green = (sn.again(plots.plot, n) for n in (2, 3, 4))
    trees = (crown + f(0.5) * texture > f(2.1)) | gallery
    cleared = plots.cleared & ~(trees & (kind < f(0.9)))
    uses = [Cover.PASTURE, Cover.REGROWTH, Cover.SOIL]
    use = np.select([kind < f(0.66), kind < f(0.84), kind < f(0.93)], uses, Cover.BURN)
    cover[cleared] = use[cleared]
    tone[cleared] = (shine * f(2) - f(1))[cleared] * f(0.7) + f(0.25) * texture[cleared]
    hue[cleared] = (green * f(2) - f(1))[cleared] * f(0.8) + f(0.2) * texture[cleared]
    # A shed of 3 x 3 pixels in a few 24-pixel cells of farmland: as in reality, it darkens the stretch of its patch.
    spot = sn.hashed(sn.key(seed, "shed"), r[:, None] // 24, c[None, :] // 24)
    inside = (np.mod(r, 24) // 3 == 3)[:, None] & (np.mod(c, 24) // 3 == 5)[None, :]
    cover[inside & cleared & (sn.unit(spot) < f(0.03))] = Cover.SHED

    built = plots.town > 0
    house = sn.hashed(sn.key(seed, "house"), r[:, None] // 3, c[None, :] // 3)
    roof, colour = sn.unit(house), sn.again(house, 1)
    homes = np.select([plots.street, roof < f(0.012), roof < f(0.55)], [Cover.ROAD, Cover.ROOF, Cover.TOWN], Cover.YARD)
    cover[built] = homes[built]
    tone[built], hue[built] = (colour * f(2) - f(1))[built], f(0)

    stream = (water.stream > 0) & ~built
    cover[stream] = Cover.CLEARWATER
    cover[plots.road] = Cover.ROAD
    river = water.depth + f(1.5) * sn.noise(sn.key(seed, "bank"), r, c, 9)
    shoal = sn.noise(sn.key(seed, "shoal"), r, c, (34, 60)) + f(0.3) * texture
    wet = river > 0
    cover[wet] = np.where(water.brown, Cover.SEDIMENT, Cover.CLEARWATER)[wet]
    bar = wet & water.wide & (river > f(7))
    cover[bar & (shoal > f(1.55))] = Cover.SAND
    cover[bar & (shoal > f(1.72))] = Cover.FLOODED
    tone[wet | stream] = f(0.35) * shoal[wet | stream]
    return Ground(cover, texture, crown, tone, hue, slope, shade)
