"""Splits without spatial leakage: folds by coarse cells of the ground, with a guard band between them.

Neighbouring MultiEarth patches overlap, so patches cannot decide; and what a cell's fold is must not depend on which
data happen to be there, so that adding some moves nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from typing import Protocol

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import PATCH, Pair, digest

TRAIN, VAL, TEST, GUARD = "train", "val", "test", "guard"
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


def assign(pairs: Sequence[Pair], cfg: Folds, patch_degrees: float = PATCH_DEGREES) -> list[Pair]:
    """The same pairs, in the same order, with their split: "train", "val", "test" or "guard".

    patch_degrees: side of a patch, degrees of latitude. A pair belongs to the cell of its centre. Where its footprint,
    grown by `guard_degrees` on every side, reaches a cell of another fold it becomes "guard" and is used by none: so
    two splits share no ground, and lie at least twice the guard apart. Footprints are taken in degrees of longitude
    at their own latitude; not for patches across the antimeridian. Raises ConfigError: a cell, patch or guard without
    sense, val + test above 1.
    """
    if cfg.cell_degrees <= 0 or cfg.guard_degrees < 0 or patch_degrees <= 0:
        raise ConfigError(
            f"split.cell_degrees {cfg.cell_degrees}, guard_degrees {cfg.guard_degrees}, patch {patch_degrees}: "
            f"cell and patch must be above 0, the guard not below"
        )
    if min(cfg.val, cfg.test) < 0 or cfg.val + cfg.test > 1:
        raise ConfigError(f"split.val {cfg.val} and split.test {cfg.test} are not shares of one whole")

    @cache  # places repeat: one for each date
    def split(lon: float, lat: float) -> str:
        reach = patch_degrees / 2 + cfg.guard_degrees
        east = reach / max(math.cos(math.radians(lat)), 1e-6)
        own = fold(_cell(lon, cfg), _cell(lat, cfg), cfg)
        columns = range(_cell(lon - east, cfg), _cell(lon + east, cfg) + 1)
        rows = range(_cell(lat - reach, cfg), _cell(lat + reach, cfg) + 1)
        return own if all(fold(i, j, cfg) == own for i in columns for j in rows) else GUARD

    return [dataclasses.replace(p, split=split(p.lon, p.lat)) for p in pairs]


def fold(column: int, row: int, cfg: Folds) -> str:
    """The fold of a cell: a hash of seed, cell size and index against the shares; data have no part in it.

    Test comes first, so another share of val moves cells between val and train only.
    """
    share = int(digest("split", cfg.seed, float(cfg.cell_degrees), column, row)[:13], 16) / 16**13
    return TEST if share < cfg.test else VAL if share < cfg.test + cfg.val else TRAIN


def _cell(degrees: float, cfg: Folds) -> int:
    return math.floor(degrees / cfg.cell_degrees)
