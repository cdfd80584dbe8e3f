"""Two runs on the pairs that both have measured: what differs, pair by pair, with an interval over places.

Runs are compared on the very same pairs alone: a mean over other pairs is another question. What is left out of a
comparison is counted in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.evaluation.bootstrap import interval

F64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Key = tuple[str, str]  # SAR key, EO key


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of two lists. keys: in both, ascending; this, other: (n,) int64, where each stands in its list."""

    keys: tuple[Key, ...]
    this: Rows
    other: Rows
    only_this: int
    only_other: int


@dataclass(frozen=True, slots=True)
class Paired:
    """One metric of two runs on the same pairs.

    at: (n,) int64, the pairs with a finite figure in both; a, b: (n,) their figures in this run and the other one.
    missing_this, missing_other: pairs without a finite figure in that run (some of them in neither). difference: mean of
    a - b; low, high: its 95 % interval by bootstrap over places (NaN with fewer than two); better, worse, equal: pairs
    on which this run is so. Means of no pair are NaN.
    """

    lower: bool
    at: Rows
    a: F64
    b: F64
    missing_this: int
    missing_other: int
    difference: float
    low: float
    high: float
    better: int
    worse: int
    equal: int

    @property
    def n(self) -> int:
        return len(self.at)

    @property
    def means(self) -> tuple[float, float]:
        """Of this run and the other one."""
        return _mean(self.a), _mean(self.b)

    @property
    def better_run(self) -> str:
        """ "this" or "other" where the interval leaves out 0; "" where no difference can be told."""
        if not (self.low > 0 or self.high < 0):
            return ""
        return "this" if (self.difference < 0) == self.lower else "other"

    @property
    def gain(self) -> F64:
        """(n,) How much better this run is on each pair; negative where it is worse."""
        return self.b - self.a if self.lower else self.a - self.b

    def extremes(self, most: int) -> tuple[Rows, Rows]:
        """Positions in `at`: the most improved pairs, best first, and the most worsened, worst first; at most so many."""
        order = np.argsort(-self.gain, kind="stable")
        return order[: min(most, self.better)], order[::-1][: min(most, self.worse)]


def match(this: Sequence[Key], other: Sequence[Key]) -> Match:
    """Pairs by (SAR key, EO key), each at most once in a list. A repeated one counts as its last."""
    a, b = {k: i for i, k in enumerate(this)}, {k: i for i, k in enumerate(other)}
    keys = sorted(a.keys() & b.keys())
    return Match(
        tuple(keys), np.array([a[k] for k in keys], np.int64), np.array([b[k] for k in keys], np.int64),
        len(a) - len(keys), len(b) - len(keys),
    )  # fmt: skip


def paired(this: F64, other: F64, places: Sequence[str], lower: bool = True, seed: int = 0) -> Paired:
    """Figures of the same (n,) pairs in two runs; places: (n,) the place of each pair, which the bootstrap resamples
    (pairs of one place are not independent); lower: smaller figures are better. Not finite: not measured."""
    here, there = np.isfinite(this), np.isfinite(other)
    at = np.flatnonzero(here & there)
    a, b = this[at], other[at]
    change = a - b
    low, high = interval(change, np.asarray(places)[at], seed) if at.size else (float("nan"), float("nan"))
    gain = -change if lower else change
    return Paired(
        lower, at, a, b, int((~here).sum()), int((~there).sum()), _mean(change), low, high,
        int((gain > 0).sum()), int((gain < 0).sum()), int((gain == 0).sum()),
    )  # fmt: skip


def tree_diff(this: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value here, value there) of every value that differs, in the order of this tree, then of the other.

    A value that one of them has not is `UNSET`. Lists are values; a key that holds a dot is not told from two keys.
    """
    a, b = _leaves(this, ""), _leaves(other, "")
    pairs = [(k, a.get(k, UNSET), b.get(k, UNSET)) for k in dict.fromkeys([*a, *b])]
    return [(k, x, y) for k, x, y in pairs if not _same(x, y)]


class _Unset:
    def __repr__(self) -> str:
        return "not set"


UNSET = _Unset()


def _same(x: Any, y: Any) -> bool:
    """Equal, and both or neither a truth value (True == 1 in Python); NaN is NaN."""
    return (x == y or (x != x and y != y)) and isinstance(x, bool) == isinstance(y, bool)


def _leaves(tree: Any, name: str) -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {name: tree} if name else {}
    return {k: v for key, value in tree.items() for k, v in _leaves(value, f"{name}.{key}".lstrip(".")).items()}


def _mean(values: F64) -> float:
    return float(values.mean()) if values.size else float("nan")
