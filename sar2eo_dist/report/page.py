"""The page itself: everything read and reckoned elsewhere, laid out by templates; one small script makes it move."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sar2eo_dist import storage
from sar2eo_dist.records import Artifact
from sar2eo_dist.report import examples, facts, field, measures, plots, text
from sar2eo_dist.report.cost import cost, human_hours, money
from sar2eo_dist.report.exports import csvs, figure_names
from sar2eo_dist.report.histogram import histogram
from sar2eo_dist.report.images import Album
from sar2eo_dist.report.load import ROLES, STAGES, Run, load
from sar2eo_dist.report.mosaic import Mosaic, mosaic, patches
from sar2eo_dist.report.slider import BINS, STEP, slider

FILE = "report.html"
MANY = 60  # rows of a list of troubles; the rest is counted
_NOT_LOSSES = frozenset({"step", "seconds", "samples_per_s", "replaced", "skipped", "wait", "busy", "lr"})


@dataclass(frozen=True, slots=True)
class StageRow:
    """One verb in the run's table; share: of the time of all verbs, 0..1."""

    name: str
    status: str
    units: str
    wall: str
    work: str
    read: str
    written: str
    counts: str
    share: float
    hue: int


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    first: float
    last: float
    svg: Markup
    broken: int  # values that are not finite


@dataclass(frozen=True, slots=True)
class Training:
    """One network's loss curves. rate: samples a second, median over the log; replaced: samples that did not read."""

    role: str
    network: str
    steps: float
    seconds: float | None
    rate: float | None
    curves: tuple[Curve, ...]
    replaced: int


def build(run: str) -> bytes:
    """The report of a run folder (any fsspec URI): one self-contained UTF-8 HTML page, no outside request.

    Its one script is allowed by its hash alone; without scripts the page says the same, but nothing moves.

    What is not there yet is called "not run yet"; what is there but broken is named on the page. The same folder gives
    the same bytes. Raises AccessDenied, Unavailable or StorageError where the store itself refuses.
    """
    env = Environment(
        loader=PackageLoader("sar2eo_dist.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    for name in ("human_bytes", "human_seconds", "count", "number", "percent", "shorten", "known", "redact", "when"):
        env.filters[name] = getattr(text, name)
    env.filters |= {"money": money, "human_hours": human_hours}
    return env.get_template("report.html.j2").render(**_context(load(run))).encode()


def write(run: str) -> Artifact:
    """`build`, published as `report.html` in the run folder."""
    return storage.publish(run, FILE, build(run))


def _context(run: Run) -> dict[str, Any]:
    album = Album(run.uri)
    found_mosaic, found_patches = mosaic(run, album), patches(run, album)
    found_samples = examples.samples(run, album)
    graded = field.section(run, album)
    groups = examples.groups(run, album)
    intake, tables = facts.intake(run), measures.tables(run)
    rows = _stage_rows(run)
    scores, kept, score_name = facts.scores(run)
    threshold = run.calibration.threshold if run.calibration else None
    bars = histogram(scores, kept, threshold) if len(scores) else None
    unusable = len(run.rejected) if run.rejected is not None else 0
    rejected = run.rejected.sort_by("uri").slice(0, examples.EACH).to_pylist() if run.rejected is not None else []
    tolerance, gaps = facts.tolerance(run), facts.days(run)
    spent = cost(run, found_mosaic.km2 if found_mosaic else None)
    script = resources.files("sar2eo_dist.report").joinpath("report.js").read_text("utf-8")
    quarantined = [q for s in facts.expected(run) if s in run.stages for q in run.stages[s].quarantined]
    return {
        "run": run,
        "name": storage.name(run.uri),
        "status": facts.overall(run),
        "synthetic": run.setting("synthetic.enabled") is True,
        "seed": run.setting("synthetic.seed"),
        "period": _period(run),
        "machines": _machines(run),
        "stages": rows,
        "has_work": any(r.work != text.UNKNOWN for r in rows),
        "glance": _glance(run, intake, tables, found_mosaic),
        "intake": intake,
        "groups": groups,
        "rejected": rejected,
        "rejected_more": unusable - len(rejected),
        "histogram": bars,
        "slider": slider(run, scores, kept, bars.edges) if bars else None,
        "step": STEP,
        "bins": BINS,
        "score_name": score_name,
        "scored": len(scores),
        "scored_kept": int(kept.sum()),
        "calibration": run.calibration,
        "haze": facts.haze(run),
        "gaps": gaps,
        "gap_plot": Markup(plots.day_bars(gaps)) if gaps else "",  # noqa: S704
        "gap_stats": _gap_stats(gaps),
        "tolerance": tolerance,
        "yield_plot": Markup(plots.yield_curve(tolerance)) if tolerance else "",  # noqa: S704
        "trainings": [t for role in ROLES if (t := _training(run, role))],
        "mosaic": found_mosaic,
        "patches": found_patches,
        "samples": found_samples,
        "whys": examples.WHY,
        "tables": tables,
        "figures": figure_names(tables[0]) if tables else [],
        "intervals": any(text.known(c.low) for t in tables for r in t.all_rows for c in r.cells.values()),
        "metric_names": {m.name for t in tables for m in t.metrics},
        "dn": facts.scale(run),
        "against": storage.exists(storage.join(run.uri, "evaluate/against.html")),
        "field": graded,
        "cost": spent,
        "csv": csvs(run, intake, tolerance, tables, spent, quarantined),
        "quarantined": quarantined[:MANY],
        "quarantined_total": len(quarantined),
        "skipped": album.skipped,
        "script": Markup(script),  # noqa: S704  our own
        "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    }


def _stage_rows(run: Run) -> list[StageRow]:
    """Every verb in order, also those that have not run. Time is what the units took, whenever they ran, where the
    summary says so: a resumed verb's last invocation may have found everything done."""
    names = facts.expected(run)
    time = {n: (s.work or s.seconds or 0.0) for n, s in run.stages.items()}
    total = sum(time.get(n, 0.0) for n in names)
    rows = []
    for hue, name in enumerate(STAGES, 1):
        if name not in names:
            continue
        s = run.stages.get(name)
        if s is None:
            status = "unfinished" if _has_parts(run, name) else "not run yet"
            rows.append(StageRow(name, status, "", "", text.UNKNOWN, "", "", "", 0.0, hue))
            continue
        units = f"{text.count(s.done)} of {text.count(s.planned)}"
        if s.resumed:
            units += f", {text.count(s.resumed)} found done"
        row = StageRow(
            name=name,
            status=s.status,
            units=units,
            wall=text.human_seconds(s.seconds),
            work=text.human_seconds(s.work),
            read=text.human_bytes(s.bytes_in),
            written=text.human_bytes(s.bytes_out),
            counts=" · ".join(f"{text.count(n)} {k}" for k, n in s.counts.items() if n),
            share=time[name] / total if total else 0.0,
            hue=hue,
        )
        rows.append(row)
    return rows


def _has_parts(run: Run, stage: str) -> bool:
    """Whether a verb without a summary has left something: it is running, or was cut off."""
    return bool(
        {"collect": run.verdicts is not None, "train": run.history, "evaluate": run.metrics is not None}.get(stage)
    )


def _glance(
    run: Run, intake: Sequence[facts.Intake], tables: Sequence[measures.Table], found: Mosaic | None
) -> list[tuple[str, str]]:
    """(figure, what it is): the four or five things to know first."""
    out = []
    for part in intake:
        if part.sensor == "s2":
            share = text.percent(part.kept / part.listed)
            out.append((text.count(part.kept), f"of {text.count(part.listed)} optical tiles kept ({share})"))
    if run.pairs is not None:
        out.append((text.count(len(run.pairs)), "SAR-EO pairs"))
    if tables:
        ranked = [r for r in tables[0].rows if "mae" in r.cells and text.known(r.cells["mae"].mean)]
        models, trivial = ([r for r in ranked if r.kind == k] for k in ("network", "baseline"))
        if models:
            best = min(models, key=lambda r: r.cells["mae"].mean)
            against = min((r.cells["mae"].mean for r in trivial), default=None)
            note = f"mean MAE, {best.label.lower()}" + (f"; best baseline {text.number(against)}" if against else "")
            out.append((text.number(best.cells["mae"].mean), note))
    if found:
        size = dict(found.facts).get("Size", "")
        if size:
            out.append((size.removesuffix(" pixels"), "pixels of mosaic"))
    seconds = sum(s.work or s.seconds or 0.0 for s in run.stages.values())
    if seconds:
        written = sum(s.bytes_out or 0.0 for s in run.stages.values())
        out.append((text.human_seconds(seconds), f"of work, {text.human_bytes(written)} written"))
    return out


def _period(run: Run) -> tuple[str, str]:
    """First start and last end over all verbs, as the summaries give them (ISO 8601)."""
    starts = sorted(s.started for s in run.stages.values() if s.started)
    ends = sorted(s.ended for s in run.stages.values() if s.ended)
    return (starts[0] if starts else "", ends[-1] if ends else "")


def _machines(run: Run) -> list[tuple[str, list[str]]]:
    """(machine in words, verbs that ran on it)."""
    seen: dict[str, list[str]] = {}
    for name in facts.expected(run):
        if name in run.stages and run.stages[name].machine:
            words = ", ".join(f"{k} {v}" for k, v in run.stages[name].machine.items() if v)
            seen.setdefault(words, []).append(name)
    return list(seen.items())


def _gap_stats(gaps: dict[str, Counter[int]]) -> list[tuple[str, int, int, int]]:
    """(split, pairs, pairs of the same day, largest difference in days)."""
    return [(s, sum(c.values()), c[0], max((abs(d) for d in c), default=0)) for s, c in gaps.items()]


def _training(run: Run, role: str) -> Training | None:
    lines = run.history.get(role)
    if not lines:
        return None
    names = sorted(k for k in {k for line in lines for k in line} - _NOT_LOSSES if not k.startswith("grad_norm"))
    curves = []
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        good = [v for _, v in points if math.isfinite(v)]
        if good:
            svg = plots.loss_curve([s for s, _ in points], [v for _, v in points], f"{role}-{name}")
            curves.append(Curve(name, good[0], good[-1], Markup(svg), len(points) - len(good)))  # noqa: S704
    rates = sorted(line["samples_per_s"] for line in lines if text.known(line.get("samples_per_s")))
    network = run.setting("train.enhancer" if role == "enhance" else "train.translator") or ""
    return Training(
        role, str(network), lines[-1]["step"], lines[-1].get("seconds"), rates[len(rates) // 2] if rates else None,
        tuple(curves), int(max((line.get("replaced", 0) for line in lines), default=0)),
    )  # fmt: skip
