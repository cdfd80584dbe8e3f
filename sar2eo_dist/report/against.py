"""What the page of two runs is made of: each run as far as it is there, whether they are comparable, costs, plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound, Sar2EoError
from sar2eo_dist.evaluation.compare import Key, Match, Paired
from sar2eo_dist.report.facts import spaced
from sar2eo_dist.report.load import STAGES, Run, Stage, _config, _mapping, _part, _samples, _stage, as_number
from sar2eo_dist.report.plots import DROPPED, INK, KEPT, LINE, MUTED, _axes, _style, _svg
from sar2eo_dist.report.text import UNKNOWN, count, human_bytes, human_seconds, known, minus, number, redact

F64 = npt.NDArray[np.float64]
ROLES = {"translate": "Translator", "enhance": "Enhancer"}
POINTS = 1500  # of the scatter: more are thinned out evenly

#: column of metrics.parquet -> (its name, smaller is better), in the order of the page
METRICS = {
    "mae": ("MAE", True), "rmse": ("RMSE", True), "psnr": ("PSNR, dB", False), "ssim": ("SSIM", False),
    "ms_ssim": ("MS-SSIM", False), "sam": ("SAM, rad", True), "lpips": ("LPIPS", True),
    "challenge_mse": ("Challenge MSE", True), "challenge_mae": ("Challenge MAE", True),
}  # fmt: skip


@dataclass(slots=True)
class Side:
    """One of the two runs. Lists and arrays are of the rows of its metrics.parquet; rows: method -> its row numbers;
    samples: pair -> picture name -> path; sets: method -> measure of the whole set -> value in words."""

    run: Run
    keys: list[Key] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)
    values: dict[str, F64] = field(default_factory=dict)
    rows: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    samples: dict[Key, dict[str, str]] = field(default_factory=dict)
    sets: dict[str, dict[str, str]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: tuple[float | None, float | None] = (None, None)  # pairs of the split, pairs measured
    digest: str = ""  # of the pair store

    def listed(self, path: str) -> dict[Key, dict[str, str]]:
        """Pictures by pair of a JSON list like samples.json; a problem, and none, where it is missing or broken."""
        found = _part(self.run, path, lambda data: _pictures(_samples(data)))
        if found is None and path not in self.run.problems:
            self.run.problems[path] = "no such file"
        return found or {}


def read(uri: str) -> Side:
    """A run folder's evaluation and what goes with it; parts that are broken are in `run.problems`.

    Raises Sar2EoError where metrics.parquet is missing, does not read or holds a pair twice for one method.
    """
    side = Side(Run(uri))
    _metrics(side, storage.join(uri, "evaluate/metrics.parquet"))
    run = side.run
    run.config = _part(run, "config.yaml", _config) or {}
    for stage in STAGES:
        if found := _part(run, f"{stage}/summary.json", lambda data, s=stage: _stage(s, data)):  # type: ignore[misc]
            run.stages[stage] = found
    side.digest = _part(run, "shard/summary.json", lambda data: str(_mapping(data).get("digest") or "")) or ""
    side.samples = _part(run, "evaluate/samples.json", lambda data: _pictures(_samples(data))) or {}
    for role in ROLES:
        side.records[role] = _part(run, f"train/{role}/record.json", _mapping) or {}
    scores = _part(run, "evaluate/scores.json", _mapping)
    if scores is None:
        run.problems.setdefault("evaluate/scores.json", "not there: measures of whole sets are unknown")
    else:
        side.asked = as_number(scores.get("pairs")), as_number(scores.get("measured"))
        side.sets = _part(run, "evaluate/scores.json", lambda data: _sets(_mapping(data))) or {}
    return side


def _metrics(side: Side, uri: str) -> None:
    try:
        with storage.open_read(uri) as f:
            there = pq.read_schema(f).names
            texts = ["sar_key", "eo_key", "method", *(c for c in ("place", "split") if c in there)]
            wanted = texts + [m for m in METRICS if m in there or m == "mae"]
            f.seek(0)
            kinds = [(c, pa.string() if c in texts else pa.float64()) for c in wanted]
            table = pq.read_table(f, columns=wanted).select(wanted).cast(pa.schema(kinds))
        if nulls := [c for c in texts if table[c].null_count]:
            raise ValueError(f"column {nulls[0]} has {table[nulls[0]].null_count} nulls")
    except NotFound:
        raise Sar2EoError(f"no evaluation there, run jobs/evaluate.py there first: {redact(uri)}") from None
    except (ValueError, KeyError, OSError, pa.ArrowException) as e:
        problem = f"{type(e).__name__}: {e}"
        raise Sar2EoError(f"broken, run jobs/evaluate.py there again: {redact(uri)} ({redact(problem)})") from None
    columns = {c: table[c].to_pylist() for c in texts}
    side.keys = list(zip(columns["sar_key"], columns["eo_key"], strict=True))
    side.places = columns.get("place") or columns["eo_key"]
    side.splits = set(columns.get("split") or ())
    side.values = {m: table[m].to_numpy().astype(np.float64) for m in METRICS if m in there}
    methods = np.array(columns["method"], object)
    side.rows = {str(m): np.flatnonzero(methods == m) for m in sorted(set(columns["method"]))}
    for method, rows in side.rows.items():
        if len({side.keys[i] for i in rows}) < len(rows):
            raise Sar2EoError(f"a pair is there twice for {method}, run jobs/evaluate.py there again: {redact(uri)}")
    if "place" not in there:
        side.run.problems["evaluate/metrics.parquet"] = "no column place: every optical image counts as a place"


def _pictures(samples: Sequence[dict[str, Any]]) -> dict[Key, dict[str, str]]:
    return {
        (str(s.get("sar_key")), str(s.get("eo_key"))): {str(k): v for k, v in s["images"].items() if isinstance(v, str)}
        for s in samples
    }


def _sets(scores: dict[str, Any]) -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    for row in scores.get("methods") or []:
        cells, frechet, challenge = {}, row.get("frechet") or {}, row.get("challenge") or {}
        numbers = {k: as_number(v) for k, v in {**challenge, **frechet}.items()}
        if known(numbers.get("value")):
            name = f"Frechet distance ({str(frechet.get('name', ''))[:60]}) ↓"
            span = f"{number(numbers.get('low'))} to {number(numbers.get('high'))}"
            cells[name] = f"{number(numbers['value'])} (95 % {span}; {count(numbers.get('n'))} pairs)"
        if known(numbers.get("kid")):
            cells["KID ↓"] = f"{number(numbers['kid'])} ({count(numbers.get('kid_n'))} pairs)"
        for key, label in (("multiearth_mse_sum", "Challenge, sum of MSE ↓"), ("mae_min", "Challenge, least MAE ↓")):
            if known(numbers.get(key)):
                asked = f"{count(numbers.get('queries'))} queries, {count(numbers.get('images'))} images"
                cells[label] = f"{number(numbers[key])} ({asked})"
        out[str(row.get("method"))] = cells
    return out


def doubts(a: Side, b: Side, final: Match) -> tuple[list[str], list[str]]:
    """(why the figures cannot be set against each other, what else to keep in mind), in sentences."""
    loud, mild = [], []
    units = [str(side.run.setting("scaling.eo", ""))[:40] for side in (a, b)]
    if "" in units:
        mild.append("Whether both scale the truth alike is unknown: a config does not say what scaling.eo is.")
    elif units[0] != units[1]:
        loud.append(
            f"The units differ: scaling.eo is {units[0]} here and {units[1]} there, so 1.0 of MAE is not the same "
            "brightness, and no error below can be set against the other run's."
        )
    here, there = ({side.keys[i]: side.values["mae"][i] for i in side.rows.get("baseline_zero", ())} for side in (a, b))
    off = sum(abs(here[k] - there[k]) > 1e-6 for k in here.keys() & there.keys())
    if off and not loud:
        loud.append(
            f"The truths differ on {count(off)} shared pairs: the all-zero image, whose error depends on the truth "
            "alone, scores otherwise there."
        )
    for side, name in ((a, "This"), (b, "The other")):
        if "train" in side.splits:
            loud.append(f"{name} run was measured on its training pairs: it has seen the answers.")
    if a.digest and b.digest and a.digest != b.digest:
        mild.append(
            f"The pair stores differ (digest {a.digest[:8]} here, {b.digest[:8]} there): they may hold other pairs, or the "
            "same pairs decoded otherwise. Only pairs of both are compared."
        )
    elif not (a.digest and b.digest):
        mild.append("Whether both used the same pair store is unknown: a run has no digest in shard/summary.json.")
    if final.only_this or final.only_other:
        mild.append(
            f"Not compared, for the other run has not measured them: {count(final.only_this)} pairs of this run and "
            f"{count(final.only_other)} of the other one."
        )
    for side, name in ((a, "This"), (b, "The other")):
        asked, measured = side.asked
        if asked and measured is not None and measured < asked:
            mild.append(f"{name} run measured {count(measured)} of {count(asked)} pairs that it was asked for.")
    return loud, mild


def costs(a: Side, b: Side) -> list[tuple[str, str, str]]:
    """(what, here, there): time and bytes of every verb that ran, then what training recorded of itself."""
    out = []
    for name in STAGES:
        ran = [side.run.stages.get(name) for side in (a, b)]
        if any(ran):
            out.append((name, _stage_words(ran[0]), _stage_words(ran[1])))
    times = [sum(s.work or s.seconds or 0 for s in side.run.stages.values()) for side in (a, b)]
    out.append(("All verbs", human_seconds(times[0] or None), human_seconds(times[1] or None)))
    for role, label in ROLES.items():
        one, two = (_training(side.records[role]) for side in (a, b))
        if one or two:
            out.append((label, one or UNKNOWN, two or UNKNOWN))
    return [*out, ("Machines", _machines(a.run), _machines(b.run))]


def _stage_words(s: Stage | None) -> str:
    if s is None:
        return "not run"
    state = "" if s.status == "complete" else f" ({s.status})"
    return f"{human_seconds(s.work or s.seconds)}, {human_bytes(s.bytes_out)} written{state}"


def _machines(run: Run) -> str:
    words = (", ".join(f"{k} {v}" for k, v in s.machine.items() if v) for s in run.stages.values())
    return "; ".join(dict.fromkeys(w for w in words if w)) or UNKNOWN


def _training(record: dict[str, Any]) -> str:
    found = record.get("cost")
    cost = found if isinstance(found, dict) else {}
    said = [f"{count(s)} steps" for s in [as_number(record.get("steps"))] if s]
    said += [human_seconds(s) for s in [as_number(record.get("seconds"))] if s]
    said += [f"{number(h)} {k} hours" for k in ("GPU", "CPU") if (h := as_number(cost.get(f"{k.lower()}_hours")))]
    said += [f"{number(m)} {cost.get('currency', '')}".strip() for m in [as_number(cost.get("amount"))] if m]
    return redact(", ".join(said))


@_style()
def scatter(p: Paired) -> str:
    """This run's figure over the other one's, a point a pair, with the diagonal on which they are equal."""
    low, high = float(min(p.a.min(), p.b.min())), float(max(p.a.max(), p.b.max()))
    margin = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    low, high = low - margin, high + margin
    fig, ax = _axes(400, 340)
    ax.grid(axis="x", color=LINE, linewidth=0.8)
    for side, colour in ((p.gain > 0, KEPT), (p.gain < 0, DROPPED), (p.gain == 0, MUTED)):
        at = spaced(np.flatnonzero(side).tolist(), max(2, round(POINTS * side.mean())))
        ax.plot(p.b[at], p.a[at], color=colour, marker="o", markersize=4.5, markeredgewidth=0, linestyle="", alpha=0.65)
    ax.plot([low, high], [low, high], color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
    ax.set(xlim=(low, high), ylim=(low, high), xlabel="MAE of the other run", ylabel="MAE of this run")
    _ticks(ax, 5)
    return _svg(fig, "against-scatter", "MAE of each pair in this run over the other run")


@_style()
def difference_bars(change: F64, lower: bool) -> tuple[str, int]:
    """Histogram of (n,) differences this - other, none of them 0, split there: (svg, differences beyond the axis)."""
    low, high = (float(q) for q in np.quantile(change, (0.005, 0.995)))
    low, high = min(low, 0.0), max(high, 0.0)
    width = (high - low) / min(36, 8 + int(np.sqrt(len(change))))
    edges = width * np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 2)  # 0 is one of them
    heights = np.histogram(change, edges)[0]
    left, some = edges[:-1] < -width / 2, heights > 0
    fig, ax = _axes(400, 340)
    for part, good in ((left & some, lower), (~left & some, not lower)):
        ax.bar(edges[:-1][part], heights[part], width * 0.9, align="edge", color=KEPT if good else DROPPED)
    ax.axvline(0, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
    ax.set_ylim(0, max(float(heights.max()), 1.0) * 1.06)
    ax.set(xlabel="difference of MAE, this minus other", ylabel="pairs")
    _ticks(ax, 5)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _svg(fig, "against-bars", "Differences of MAE"), int(len(change) - heights.sum())


def _ticks(ax: Any, most: int) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(most))
        axis.set_major_formatter(FuncFormatter(lambda v, _: minus(f"{v:.10g}")))
