"""Random fields of the synthetic world: pure functions of (key, absolute pixel coordinates).

Only integer hashes, table look-ups and correctly rounded arithmetic (+ - * / sqrt) are used, element by element, so a
value does not depend on the window that it is computed in, bit for bit, nor on the width of the machine's vector unit.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

LOOKS = 4.4  # equivalent number of looks of Sentinel-1 GRD, high resolution
_BOX = 3  # side of the box that one multi-look pixel shares with its neighbours
_UNIT = 1024  # fixed-point unit of the speckle sums
_UNIT_STD = np.float32(1 / math.sqrt((151 / 315) ** 2 / 3))  # of 2-D cubic B-spline noise of uniform nodes


@functools.lru_cache(maxsize=4096)
def key(*names: object) -> int:
    """A stable 32-bit key of any values with a stable `repr`."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4], "little")


def mix(x: U32) -> U32:
    """Bijective 32-bit mixer (xorshift-multiply, two rounds); writes into `x`."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def hashed(k: int, *ints: npt.NDArray[Any]) -> U32:
    """uint32 hash of integer arrays that broadcast together (64-bit values count modulo 2**32)."""
    x: U32 = np.array(k, np.uint32)
    for i in ints:
        x = mix(np.atleast_1d(x ^ i.astype(np.uint32) * np.uint32(0x9E3779B1)))
    return x


def lattice(k: int, r: I64, c: I64) -> U32:
    """uint32 hash (len(r), len(c)) of every absolute position of two axes."""
    return hashed(k, r[:, None], c[None, :])


def unit(h: U32) -> F32:
    """Hash -> float32 in [0, 1), 24 bits."""
    u: F32 = (h >> np.uint32(8)).astype(np.float32)
    u *= np.float32(2**-24)
    return u


def again(h: U32, n: int) -> F32:
    """The n-th further independent uniform of the same hash, float32 in [0, 1)."""
    return unit(mix(h ^ np.uint32(key("again", n))))


def by_index(k: int, index: I64) -> F32:
    """One uniform in [0, 1) for each integer of `index` (any shape): a table over the few distinct values."""
    low, high = int(index.min()), int(index.max())
    table = unit(hashed(k, np.arange(low, high + 1)))
    out: F32 = table[index - low]
    return out


def _weights(x: I64, scale: int) -> tuple[I64, F32]:
    """Node index and the four cubic B-spline weights (4, n) of absolute positions."""
    node = np.floor_divide(x, scale)
    t = ((x - node * scale) / scale).astype(np.float32)
    s, six = np.float32(1) - t, np.float32(6)
    w1 = (np.float32(3) * t * t * (t - np.float32(2)) + np.float32(4)) / six
    w2 = (np.float32(3) * s * s * (s - np.float32(2)) + np.float32(4)) / six
    return node, np.stack([s * s * s / six, w1, w2, t * t * t / six])


def noise(k: int, r: I64, c: I64, scale: int | tuple[int, int]) -> F32:
    """Smooth noise (len(r), len(c)), about N(0, 1): cubic B-spline over hashed nodes `scale` pixels apart.

    r, c: ascending absolute coordinates; scale: one number, or (rows, columns) for streaks. Values lie within +-3.62.
    """
    sr, sc = scale if isinstance(scale, tuple) else (scale, scale)
    (i, wr), (j, wc) = _weights(r, sr), _weights(c, sc)
    i0, j0 = int(i[0]), int(j[0])
    nodes = unit(lattice(k, np.arange(i0 - 1, int(i[-1]) + 3), np.arange(j0 - 1, int(j[-1]) + 3)))
    nodes *= np.float32(2)
    nodes -= np.float32(1)
    nodes *= _UNIT_STD
    across = _blend(nodes, j - j0, wc[:, None, :], 1)
    return _blend(across, i - i0, wr[:, :, None], 0)


def _blend(nodes: F32, first: I64, weights: F32, axis: int) -> F32:
    """Weighted sum of four neighbouring nodes along an axis; buffers are reused: fresh ones cost more than the sums."""
    out: F32 = nodes.take(first, axis)
    out *= weights[0]
    part = np.empty_like(out)
    for n in (1, 2, 3):
        nodes.take(first + n, axis, out=part, mode="clip")
        part *= weights[n]
        out += part
    return out


def fbm(k: int, r: I64, c: I64, scales: tuple[int, ...], gains: tuple[float, ...]) -> F32:
    """Weighted sum of noises, scaled to unit variance; one octave for each of `scales`."""
    norm = 1 / math.sqrt(sum(g * g for g in gains))
    out = np.zeros((len(r), len(c)), np.float32)
    for n, (scale, gain) in enumerate(zip(scales, gains, strict=True)):
        octave = noise(key(k, n), r, c, scale)
        octave *= np.float32(gain * norm)
        out += octave
    return out


def rank(x: F32) -> F32:
    """The normal distribution function, within 0.01, so that thresholds are shares: [0, 1]."""
    f = np.float32
    y: F32 = x * f(0.7979) * (f(1) + f(0.0447) * x * x)
    y *= (f(27) + y * y) / (f(27) + f(9) * y * y)  # tanh, rational
    np.clip(y, f(-1), f(1), out=y)
    y *= f(0.5)
    y += f(0.5)
    return y


def step(x: F32, low: float, high: float) -> F32:
    """0 below `low`, 1 above `high`, smooth between (3 t^2 - 2 t^3)."""
    t = np.clip((x - np.float32(low)) * np.float32(1 / (high - low)), np.float32(0), np.float32(1))
    s: F32 = t * t * (np.float32(3) - np.float32(2) * t)
    return s


def soften(x: F32) -> F32:
    """[1 2 1] / 4 in both directions, valid part: (h + 2, w + 2) -> (h, w). A point spread of about 2 pixels."""
    half, quarter = np.float32(0.5), np.float32(0.25)
    rows: F32 = x[1:-1] * half + (x[:-2] + x[2:]) * quarter
    out: F32 = rows[:, 1:-1] * half + (rows[:, :-2] + rows[:, 2:]) * quarter
    return out


@functools.cache
def _gamma_quantiles() -> U32:
    """(65536,) quantiles of the Gamma distribution of shape LOOKS / 9, in 1 / _UNIT: nine add up to Gamma(LOOKS)."""
    a = LOOKS / _BOX**2
    x = np.concatenate([[0.0], np.geomspace(1e-9, 16.0, 20000)])
    total, term = np.full_like(x, 1 / math.gamma(a + 1)), np.full_like(x, 1 / math.gamma(a + 1))
    for n in range(1, 90):  # the series of the regularised lower incomplete gamma function
        term = term * x / (a + n)
        total += term
    cdf = x**a * np.exp(-x) * total
    table: U32 = np.rint(np.interp((np.arange(65536) + 0.5) / 65536, cdf, x) * _UNIT).astype(np.uint32)
    return table


@functools.cache
def _decibel() -> F32:
    """dB of a fixed-point sum of nine gammas over its mean, by index."""
    total = np.arange(9 * int(_gamma_quantiles()[-1]) + 1, dtype=np.float64)
    table: F32 = (10 * np.log10(np.maximum(total, 1) / (LOOKS * _UNIT))).astype(np.float32)
    return table


def speckle(k: int, r: I64, c: I64) -> tuple[F32, F32]:
    """Two independent multiplicative speckles in dB, (len(r), len(c)) float32 each.

    Intensity is Gamma(LOOKS) of mean 1, to 16 bits, and neighbours share two thirds of their looks: correlations at
    lag 1 and 2 are 0.67 and 0.33, where Sentinel-1 patches of 10 m show 0.77 and 0.40.
    """
    rows, cols = np.arange(r[0] - 1, r[-1] + 2), np.arange(c[0] - 1, c[-1] + 2)
    h = lattice(k, rows, cols)
    out = []
    for bits in (h & np.uint32(0xFFFF), h >> np.uint32(16)):
        g = _gamma_quantiles()[bits]
        g = g[:-2] + g[1:-1] + g[2:]
        out.append(_decibel()[g[:, :-2] + g[:, 1:-1] + g[:, 2:]])
    return out[0], out[1]
