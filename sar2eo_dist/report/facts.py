"""The numbers of the page: counts by reason, scores, day differences, the yield. Values in, values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sar2eo_dist.records import KEPT, REASONS, S2
from sar2eo_dist.report.load import STAGES, Run, as_number
from sar2eo_dist.report.text import count, percent, span

SENSORS = {"s2": "Sentinel-2 (optical)", "s1": "Sentinel-1 (radar)"}
RELEASED_DAYS = 6  # pairing.mode=released takes differences below 7 days
TOLERANCES = (0, 1, 3, 7, 14, 30, 60, 90)  # days of which the page gives the numbers
SPLITS = ("train", "val", "test", "guard")
METRICS = ("mae", "rmse", "psnr", "ssim")  # of a validation during training
DN_SPAN = 3000  # of the fixed scaling: DN 0..3000 is 0..1
HIGHER = frozenset({"psnr", "ssim"})
METHODS = {
    "translated": "Translated",
    "enhanced": "Enhanced",
    "baseline_linear": "Baseline: linear fit to VV, VH",
    "baseline_mean": "Baseline: mean image",
    "baseline_zero": "Baseline: all zero",
    "nearest_date": "Nearest other clear date",
}


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reason:
    """How many tiles of a sensor met one end. share: of all that were listed."""

    name: str
    meaning: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Intake:
    """What was listed of one sensor and what became of it: `dropped` in the order in which tiles meet the reasons."""

    sensor: str
    label: str
    listed: int
    kept: int
    dropped: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Within:
    """Optical images with radar of their place within `days`, and pairs if every combination counts."""

    days: int
    images: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Yield against tolerance, by days.

    shown: some of the rows; total: optical images that were kept, None where that is not known; limit: the days that
    this run allows, None where the config does not tell or the curve ends before; reading: what it says, in a sentence.
    """

    rows: tuple[Within, ...]
    shown: tuple[Within, ...]
    total: int | None
    limit: int | None
    reading: str


def overall(run: Run) -> str:
    """Status of the whole: failed, partial, complete, or unfinished where a verb of the chain has not run."""
    statuses = {s.status for s in run.stages.values()}
    for status in ("failed", "partial"):
        if status in statuses:
            return status
    wanted = set(expected(run))
    return "complete" if wanted <= set(run.stages) and statuses <= {"complete"} else "unfinished"


def expected(run: Run) -> list[str]:
    """The verbs of this run in order; the synthetic world is made only where the config asks for it, and grading is a
    study of its own that not every run has."""
    asked = {"synthesise": run.setting("synthetic.enabled") is True, "grade": False}
    return [s for s in STAGES if asked.get(s, True) or s in run.stages]


def intake(run: Run) -> list[Intake]:
    """Counts by sensor and reason, the inputs that never became a tile included."""
    counts: Counter[tuple[str, str]] = Counter()
    for table in (run.verdicts, run.rejected):
        if table is not None and len(table):
            groups = table.group_by(["sensor", "reason"]).aggregate([([], "count_all")]).to_pylist()
            counts.update({(str(g["sensor"]), str(g["reason"])): int(g["count_all"]) for g in groups})
    order = list(REASONS)
    out = []
    for sensor in sorted({s for s, _ in counts}, reverse=True):
        here = {r: n for (s, r), n in counts.items() if s == sensor}
        listed = sum(here.values())
        names = sorted((r for r in here if r != KEPT), key=lambda r: (order.index(r) if r in order else len(order), r))
        dropped = tuple(Reason(r, REASONS.get(r, ""), here[r], here[r] / listed) for r in names)
        out.append(Intake(sensor, SENSORS.get(sensor, sensor), listed, here.get(KEPT, 0), dropped))
    return out


def keys_by_reason(run: Run, each: int) -> dict[str, list[str]]:
    """Optical tiles to show: up to `each` keys a reason, evenly spaced in key order; the kept ones ("") first."""
    if run.verdicts is None:
        return {}
    table = run.verdicts.filter(pc.equal(run.verdicts["sensor"], S2)).sort_by("key")
    found = set(table["reason"].unique().to_pylist())
    out = {}
    for reason in [KEPT, *REASONS, *sorted(found - set(REASONS) - {KEPT})]:
        if reason in found:
            keys = table.filter(pc.equal(table["reason"], reason))["key"]
            out[reason] = [keys[i].as_py() for i in spaced(range(len(keys)), each)]
    return out


def spaced(items: Sequence[T], n: int) -> list[T]:
    """At most n items, evenly spaced, first and last among them."""
    if len(items) <= n or n < 2:
        return list(items[:n])
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def scores(run: Run) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], str]:
    """(scores that stage 3 decided on, kept or not, their name); empty where nothing was scored."""
    empty = np.zeros(0), np.zeros(0, bool), ""
    if run.verdicts is None:
        return empty
    table = run.verdicts.filter(pc.is_in(run.verdicts["reason"], pa.array([KEPT, "frechet"])))
    table = table.filter(pc.is_finite(table["score"]))
    if not len(table):
        return empty
    kept = np.asarray(pc.equal(table["reason"], KEPT).to_numpy(zero_copy_only=False), bool)
    names = sorted({str(n) for n in table["score_name"].unique().to_pylist()})
    return np.asarray(table["score"].to_numpy(), np.float64), kept, ", ".join(names)


def haze(run: Run) -> tuple[float, float] | None:
    """(median, 90 % quantile) of the haze index of the kept optical tiles, DN; None where there is none."""
    if run.verdicts is None:
        return None
    table = run.verdicts.filter(pc.and_(pc.equal(run.verdicts["reason"], KEPT), pc.is_finite(run.verdicts["haze"])))
    if not len(table):
        return None
    low, high = np.quantile(table["haze"].to_numpy(), (0.5, 0.9))
    return float(low), float(high)


def days(run: Run) -> dict[str, Counter[int]]:
    """split -> day difference -> pairs."""
    out: dict[str, Counter[int]] = {}
    if run.pairs is not None:
        for g in run.pairs.group_by(["split", "days"]).aggregate([([], "count_all")]).to_pylist():
            out.setdefault(str(g["split"]), Counter())[int(g["days"])] = int(g["count_all"])
    order = {s: i for i, s in enumerate(SPLITS)}
    return dict(sorted(out.items(), key=lambda kv: (order.get(kv[0], len(order)), kv[0])))


def tolerance(run: Run) -> Tolerance | None:
    """The yield curve of the run; None where there is none."""
    if run.yields is None or not len(run.yields):
        return None
    table = run.yields.sort_by("days")
    rows = tuple(Within(*r) for r in zip(*(table[f.name].to_pylist() for f in table.schema), strict=True))
    kept = next((part.kept for part in intake(run) if part.sensor == S2), 0)
    total = kept if kept >= max(1, *(r.images for r in rows)) else None
    rule, days = "pairing.max_days", as_number(run.setting("pairing.max_days"))
    if run.setting("pairing.mode") == "released":
        rule, days = "pairing.mode=released", float(RELEASED_DAYS)
    marked = next((r for r in rows if r.days == days), None)
    at = marked or rows[-1]
    share = f" of {count(total)} kept optical images ({percent(at.images / total)})" if total else " optical images"
    reading = (
        f"Within {span(at.days)}{f' ({rule})' if marked else ''}, {count(at.images)}{share} have radar of their place"
    )
    if marked:
        others = [r for r in rows if marked.days and r.days in (marked.days // 2, 2 * marked.days)]
        reading += "".join(f"; {span(r.days)} would reach {count(r.images)}" for r in others)
    shown = tuple(r for r in rows if r.days in TOLERANCES or r == marked)
    return Tolerance(rows, shown, total, marked.days if marked else None, f"{reading}.")


def scale(run: Run) -> float | None:
    """DN that 1.0 of MAE and RMSE stands for, as the scores say, else the config: 3000 with the fixed scaling of EO, None
    with an image's own range."""
    if "dn" in run.scores:
        return as_number(run.scores["dn"])
    return float(DN_SPAN) if run.setting("scaling.eo") == "fixed" else None
