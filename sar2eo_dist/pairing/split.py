"""Splits without spatial leakage: folds by coarse cells of the ground, with a guard band between them.

Neighbouring MultiEarth patches overlap, so patches cannot decide; and what a cell's fold is must not depend on which
data happen to be there, so that adding some moves nothing.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import PATCH, Pair, digest, schema

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SPLITS = TRAIN, VAL, TEST, GUARD = "train", "val", "test", "guard"
METRES_PER_DEGREE = 111_320.0  # of latitude
PATCH_DEGREES = PATCH * 10 / METRES_PER_DEGREE


class Folds(Protocol):
    """What `assign` reads of `config.Split`."""

    @property
    def cell_degrees(self) -> float: ...
    @property
    def guard_degrees(self) -> float: ...
    @property
    def val(self) -> float: ...
    @property
    def test(self) -> float: ...
    @property
    def seed(self) -> int: ...


def assign(pairs: pa.Table, cfg: Folds, patch_degrees: float = PATCH_DEGREES) -> pa.Table:
    """The same pairs (`schema(Pair)`), in the same order, with their split: "train", "val", "test" or "guard".

    patch_degrees: side of a patch, degrees of latitude. A pair belongs to the cell of its centre. Where its footprint,
    grown by `guard_degrees` on every side, reaches a cell of another fold it becomes "guard" and is used by none: so
    two splits share no ground, and lie at least twice the guard apart. Footprints are taken in degrees of longitude
    at their own latitude; not for patches across the antimeridian. Raises ConfigError: a cell, patch or guard without
    sense, val + test above 1, pairs of unknown position (NaN).
    """
    if cfg.cell_degrees <= 0 or cfg.guard_degrees < 0 or patch_degrees <= 0:
        raise ConfigError(
            f"split.cell_degrees {cfg.cell_degrees}, guard_degrees {cfg.guard_degrees}, patch {patch_degrees}: "
            f"cell and patch must be above 0, the guard not below"
        )
    if min(cfg.val, cfg.test) < 0 or cfg.val + cfg.test > 1:
        raise ConfigError(f"split.val {cfg.val} and split.test {cfg.test} are not shares of one whole")
    lon, lat = (np.asarray(pairs[c].to_numpy(), np.float64) for c in ("lon", "lat"))
    lost = int((~(np.isfinite(lon) & np.isfinite(lat))).sum())
    if lost:
        raise ConfigError(
            f"{lost} of {len(pairs)} pairs have no position (longitude or latitude is not a number): folds are made of "
            f"places, so these need a split of their own"
        )
    places, of = np.unique(lon + 1j * lat, return_inverse=True)
    codes = _splits(places.real, places.imag, cfg, patch_degrees)[of].astype(np.int8)
    column = pa.DictionaryArray.from_arrays(codes, list(SPLITS)).cast(pa.string())
    return pairs.set_column(pairs.schema.get_field_index("split"), schema(Pair).field("split"), column)


def _splits(lon: Floats, lat: Floats, cfg: Folds, patch_degrees: float) -> Ints:
    """Index into SPLITS of each place."""
    reach = patch_degrees / 2 + cfg.guard_degrees
    # math's cosine, not numpy's: its last bit is the same on every machine
    shrink = np.array([max(math.cos(math.radians(x)), 1e-6) for x in lat.tolist()])
    west, east = _cell(lon - reach / shrink, cfg), _cell(lon + reach / shrink, cfg)
    south, north = _cell(lat - reach, cfg), _cell(lat + reach, cfg)
    own = _folds(_cell(lon, cfg), _cell(lat, cfg), cfg)
    alone = np.ones(len(lon), bool)
    for i in range(int((east - west).max(initial=-1)) + 1):
        for j in range(int((north - south).max(initial=-1)) + 1):
            alone &= _folds(np.minimum(west + i, east), np.minimum(south + j, north), cfg) == own
    return np.where(alone, own, SPLITS.index(GUARD))


def _folds(column: Ints, row: Ints, cfg: Folds) -> Ints:
    """`fold` as an index into SPLITS; each cell is hashed once."""
    _, at, of = np.unique(column * 2**32 + row, return_index=True, return_inverse=True)
    cells = zip(column[at].tolist(), row[at].tolist(), strict=True)
    return np.array([SPLITS.index(fold(i, j, cfg)) for i, j in cells], np.int64)[of]


def fold(column: int, row: int, cfg: Folds) -> str:
    """The fold of a cell: a hash of seed, cell size and index against the shares; data have no part in it.

    Test comes first, so another share of val moves cells between val and train only.
    """
    return _drawn(cfg, float(cfg.cell_degrees), column, row)


def assign_by_name(pairs: pa.Table, cfg: Folds) -> pa.Table:
    """The same pairs with a split by a hash of their `place`: for pairs of unknown position, whose place is a name.

    Whether two of them show the same ground nobody can tell, so nothing is promised about leakage.
    """
    splits = [_drawn(cfg, place) for place in pairs["place"].to_pylist()]
    column = pa.array(splits, pa.string())
    return pairs.set_column(pairs.schema.get_field_index("split"), schema(Pair).field("split"), column)


def _drawn(cfg: Folds, *what: object) -> str:
    share = int(digest("split", cfg.seed, *what)[:13], 16) / 16**13
    return TEST if share < cfg.test else VAL if share < cfg.test + cfg.val else TRAIN


def _cell(degrees: Floats, cfg: Folds) -> Ints:
    return np.floor(degrees / cfg.cell_degrees).astype(np.int64)
