"""The metrics as the page shows them: from `evaluate`'s scores where they are, else means of its table of pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.report.facts import HIGHER, METHODS, scale
from sar2eo_dist.report.load import Run, as_number
from sar2eo_dist.report.text import known, number, percent

#: metric -> its name on the page, in the page's order
NAMES = {
    "mae": "MAE", "rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "sam": "SAM", "lpips": "LPIPS",
    "challenge_mse": "Challenge MSE", "challenge_mae": "Challenge MAE",
}  # fmt: skip
LARGER = HIGHER | {"ms_ssim"}  # is better
REFERENCE = "nearest_date"
GROUPS = {"cover": "Land cover", "days": "Date gap", "orbit": "Orbit", "cloud": "Cloud share of the truth"}
#: metrics that some pairs cannot have: no window without a hole, no angle of a black pixel, too small an image
PARTIAL = frozenset({"ssim", "ms_ssim", "sam", "lpips"})


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    label: str
    lower: bool  # is better


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one method over `n` pairs; low, high: 95 % interval of the mean; NaN = not known; best of its table
    by the mean, references apart."""

    mean: float
    median: float
    low: float
    high: float
    n: int
    best: bool = False


@dataclass(frozen=True, slots=True)
class Distance:
    """Frechet distance of a set of images to the truths, 95 % interval, over n pairs; kid over kid_n. NaN = not known."""

    name: str
    value: float
    low: float
    high: float
    n: float
    kid: float
    kid_n: float


@dataclass(frozen=True, slots=True)
class Row:
    """challenge: figure -> value (NaN = not known), empty where there is none."""

    method: str
    label: str
    kind: str  # network, baseline or reference
    n: int
    cells: dict[str, Cell]
    challenge: dict[str, float]
    distance: Distance | None


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Means by what the pairs are: methods in order, then (group, method -> Row)."""

    name: str
    label: str
    methods: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, dict[str, Row]], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The metrics of one split.

    pairs: asked for; measured: of them; missing: metrics of no pair; rows: what competes; references: rows apart from
    that; verdict: what they say, in a sentence; uneven: methods cover different pairs.
    """

    split: str
    pairs: int
    measured: int
    metrics: tuple[Metric, ...]
    missing: tuple[str, ...]
    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    verdict: str
    uneven: bool
    breakdowns: tuple[Breakdown, ...] = ()

    @property
    def all_rows(self) -> tuple[Row, ...]:
        return (*self.rows, *self.references)


def tables(run: Run) -> list[Table]:
    """One table of evaluate/scores.json; without it one a split of evaluate/metrics.parquet; models first."""
    if run.scores:
        return [_from_scores(run, run.scores)]
    if run.metrics is None:
        return []
    columns = [run.metrics[name].to_pylist() for name in ("split", "method", "sar_key", "eo_key")]
    present = [m for m in NAMES if m in run.metrics.column_names]
    values = {m: np.asarray(run.metrics[m].to_numpy(zero_copy_only=False), np.float64) for m in present}
    rows = list(zip(*columns, strict=True))
    order = {s: i for i, s in enumerate(("val", "test", "train"))}
    splits = sorted({r[0] for r in rows}, key=lambda s: (order.get(s, len(order)), s))
    return [_from_pairs(run, split, rows, values) for split in splits]


def _from_pairs(run: Run, split: str, rows: list[tuple[Any, ...]], values: dict[str, npt.NDArray[np.float64]]) -> Table:
    index: dict[str, list[int]] = {}
    pairs: dict[str, set[tuple[str, str]]] = {}
    for i, (s, method, sar, eo) in enumerate(rows):
        if s == split:
            index.setdefault(method, []).append(i)
            pairs.setdefault(method, set()).add((sar, eo))
    made = [
        Row(m, label(run, m), _kind(m), len(index[m]), {k: _mean(v[index[m]]) for k, v in values.items()}, {}, None)
        for m in _ordered(index)
    ]
    everything = set(itertools.chain.from_iterable(pairs.values()))
    metrics = tuple(Metric(k, NAMES[k], k not in LARGER) for k in values)
    return _table(run, split, len(everything), len(everything), metrics, made)


def _from_scores(run: Run, tree: Mapping[str, Any]) -> Table:
    names = [str(m) for m in tree["metrics"]]
    lower = tree.get("lower")
    told = lower if isinstance(lower, dict) else {}
    metrics = tuple(Metric(m, NAMES.get(m, m), bool(told.get(m, m not in LARGER))) for m in names)
    by_method = {str(m["method"]): _row(run, m, names) for m in tree["methods"]}
    rows = [by_method[m] for m in _ordered(by_method)]
    counted = max((r.n for r in rows), default=0)
    pairs, measured = (_count(tree, k) or counted for k in ("pairs", "measured"))
    return _table(run, str(tree.get("split", "")), pairs, measured, metrics, rows, _breakdowns(run, tree, names))


def _table(
    run: Run, split: str, pairs: int, measured: int, metrics: tuple[Metric, ...], rows: list[Row],
    breakdowns: tuple[Breakdown, ...] = (),
) -> Table:  # fmt: skip
    rivals = [r for r in rows if r.kind != "reference"]
    for m in metrics:
        ranked = [r for r in rivals if known(r.cells[m.name].mean)]
        best = (min if m.lower else max)((r.cells[m.name].mean for r in ranked), default=math.nan)
        for r in ranked:
            c = r.cells[m.name]
            r.cells[m.name] = Cell(c.mean, c.median, c.low, c.high, c.n, c.mean == best)
    missing = tuple(m.label for m in metrics if not any(r.cells[m.name].n for r in rows))
    metrics = tuple(m for m in metrics if m.label not in missing)
    asked = [m.name for m in metrics if m.name not in PARTIAL]
    uneven = any(r.cells[k].n < measured for r in rivals for k in asked) or len({r.n for r in rivals}) > 1
    apart = tuple(r for r in rows if r.kind == "reference")
    verdict = _verdict(tuple(rivals), scale(run))
    return Table(split, pairs, measured, metrics, missing, tuple(rivals), apart, verdict, uneven, breakdowns)


def _row(run: Run, tree: Mapping[str, Any], names: list[str]) -> Row:
    method = str(tree["method"])
    f, c = (tree[k] if isinstance(tree.get(k), dict) else {} for k in ("frechet", "challenge"))
    distance = None
    if f:
        distance = Distance(
            str(f.get("name", "")), *(_number(f, k) for k in ("value", "low", "high", "n", "kid", "kid_n"))
        )
    n = _count(tree, "n")
    cells, challenge = {k: _cell(tree.get(k), n) for k in names}, {str(k): _number(c, k) for k in c}
    return Row(method, label(run, method), _kind(method), n, cells, challenge, distance)


def _breakdowns(run: Run, tree: Mapping[str, Any], names: list[str]) -> tuple[Breakdown, ...]:
    out = []
    groups: Mapping[str, Any] = tree.get("groups") or {}
    for name in [*(g for g in GROUPS if g in groups), *sorted(g for g in groups if g not in GROUPS)]:
        by_group: dict[str, dict[str, Row]] = {}
        for item in groups[name]:
            row = _row(run, item, names)
            by_group.setdefault(str(item.get("group", "")), {})[row.method] = row
        methods = _ordered({m: None for rows in by_group.values() for m in rows})
        if by_group:
            named = tuple((m, METHODS.get(m, m)) for m in methods)
            out.append(Breakdown(name, GROUPS.get(name, name), named, tuple(by_group.items())))
    return tuple(out)


def _cell(tree: Any, n: int) -> Cell:
    """Of an object, or of a mean alone, which is over all n pairs."""
    if not isinstance(tree, dict):
        value = as_number(tree)
        return Cell(*4 * (math.nan,), 0) if value is None else Cell(value, *3 * (math.nan,), n)
    mean, median, low, high = (_number(tree, k) for k in ("mean", "median", "low", "high"))
    return Cell(mean, median, low, high, _count(tree, "n"))


def _number(tree: Mapping[str, Any], name: str) -> float:
    value = as_number(tree.get(name))
    return math.nan if value is None else value


def _count(tree: Mapping[str, Any], name: str) -> int:
    value = _number(tree, name)
    return int(value) if math.isfinite(value) else 0


def _mean(values: npt.NDArray[np.float64]) -> Cell:
    """NaN (nothing to measure) is left out and `n` says so; infinity (a perfect PSNR) stays."""
    v = values[~np.isnan(values)]
    if not v.size:
        return Cell(*4 * (math.nan,), 0)
    return Cell(float(np.mean(v)), float(np.median(v)), math.nan, math.nan, int(v.size))


def _ordered(methods: Mapping[str, Any]) -> list[str]:
    return [m for m in METHODS if m in methods] + sorted(m for m in methods if m not in METHODS)


def _kind(method: str) -> str:
    return "reference" if method == REFERENCE else "baseline" if method.startswith("baseline_") else "network"


def label(run: Run, method: str) -> str:
    """A method in words, with its network's name where the config tells it."""
    network = {"translated": run.setting("train.translator"), "enhanced": run.setting("train.enhancer")}.get(method)
    words = METHODS.get(method, method)
    return f"{words} ({network})" if network else words


def _verdict(rows: tuple[Row, ...], dn: float | None) -> str:
    """Does the best model beat the best trivial predictor? Said either way."""
    measured = [r for r in rows if "mae" in r.cells and known(r.cells["mae"].mean)]
    models, trivial = ([r for r in measured if r.kind == k] for k in ("network", "baseline"))
    if not models or not trivial:
        return ""
    model = min(models, key=lambda r: r.cells["mae"].mean)
    base = min(trivial, key=lambda r: r.cells["mae"].mean)
    a, b = model.cells["mae"].mean, base.cells["mae"].mean
    name = base.label.removeprefix("Baseline: ")
    text = f"{model.label}: mean MAE {number(a)}" + (f" ({number(a * dn)} DN)" if dn else "")
    against = f"the best baseline ({name}, {number(b)})"
    if a < b:
        return f"{text}, {percent(1 - a / b)} below {against}."
    if a == b:
        return f"{text}, the same as {against}: nothing is gained over it."
    more = f"{percent(a / b - 1)} above" if b > 0 else "above"
    return f"{text}, {more} {against}: by this measure the model knows no more than a trivial predictor."
