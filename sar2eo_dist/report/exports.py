"""The page's tables as CSV links: the figures behind what is shown, in full."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sar2eo_dist.report.cost import Cost
from sar2eo_dist.report.download import MOST, link, parquet
from sar2eo_dist.report.facts import Intake, Tolerance, expected
from sar2eo_dist.report.load import Quarantined, Run
from sar2eo_dist.report.measures import Breakdown, Row, Table

_STAGE = ("status", "planned", "done", "resumed", "work", "seconds", "bytes_in", "bytes_out", "started", "ended")
_CELL = ("mean", "median", "low", "high", "n")


def csvs(
    run: Run, intake: Sequence[Intake], tolerance: Tolerance | None, tables: Sequence[Table], cost: Cost | None,
    quarantined: Sequence[Quarantined],
) -> dict[str, Any]:  # fmt: skip
    """Name of a table on the page -> its link (lists: one a split; groups: by name); None where there is nothing."""
    verbs = [(n, run.stages[n]) for n in expected(run) if n in run.stages]
    return {
        "run": link("run.csv", ("verb", *_STAGE), [(n, *(getattr(s, k) for k in _STAGE)) for n, s in verbs]),
        "kept": link(
            "kept.csv", ("sensor", "reason", "tiles", "share"),
            [(p.sensor, name or "kept", n, n / p.listed) for p in intake
             for name, n in [("", p.kept), *((r.name, r.count) for r in p.dropped)]],
        ),
        "rejected": _rejected(run),
        "yields": link(
            "yield.csv", ("days", "eo_images", "combinations"),
            [(r.days, r.images, r.pairs) for r in (tolerance.rows if tolerance else ())],
        ),
        "metrics": [link(f"metrics-{i}.csv" if i else "metrics.csv", *_metrics(t)) for i, t in enumerate(tables)],
        "sets": [link("challenge.csv", *_sets(t)) for t in tables],
        "groups": {b.name: link("metrics-by-group.csv", *_group(t, b)) for t in tables for b in t.breakdowns},
        "pairs": parquet(run, "evaluate/metrics.parquet", "metrics-of-pairs.csv") if tables else None,
        "cost": link("cost.csv", *_cost(cost)) if cost else None,
        "quarantined": link(
            "quarantined.csv", ("verb", "unit", "key", "reason"), [dataclasses.astuple(q) for q in quarantined[:MOST]]
        ),
    }  # fmt: skip


def _rejected(run: Run) -> Any:
    if run.rejected is None or len(run.rejected) > MOST:
        return ""
    rows = run.rejected.sort_by("uri").to_pylist()
    return link("unusable.csv", ("sensor", "uri", "reason", "detail"), [tuple(r.values()) for r in rows])


def _metrics(t: Table) -> tuple[list[str], list[list[Any]]]:
    """A row a method; of each metric its mean, median, interval and count."""
    names = [m.name for m in t.metrics]
    header = ["split", "method", "pairs", *(f"{m}_{k}" for m in names for k in _CELL)]
    return header, [[t.split, r.method, r.n, *_cells(r, names)] for r in t.all_rows]


def _sets(t: Table) -> tuple[list[str], list[list[Any]]]:
    figures = figure_names(t)
    distance = ("name", "value", "low", "high", "n", "kid", "kid_n")
    header = ["split", "method", *figures, *(f"distance_{k}" for k in distance)]
    return header, [
        [t.split, r.method, *(r.challenge.get(k) for k in figures), *(getattr(r.distance, k, None) for k in distance)]
        for r in t.all_rows
    ]


def figure_names(t: Table) -> list[str]:
    """The challenge's figures that any row has, the known ones in their order; a count of nothing is left out."""
    there = {k for r in t.all_rows for k in r.challenge if k not in ("unanswered", "incomplete") or r.challenge[k]}
    order = ("multiearth_mse_sum", "mae_min", "queries", "images", "unanswered", "incomplete")
    return [k for k in order if k in there] + sorted(there - set(order))


def _group(t: Table, b: Breakdown) -> tuple[list[str], list[list[Any]]]:
    names = [m.name for m in t.metrics]
    header = [b.name, "method", "pairs", *(f"{m}_{k}" for m in names for k in _CELL)]
    return header, [[group, m, r.n, *_cells(r, names)] for group, by in b.groups for m, r in by.items()]


def _cells(row: Row, names: list[str]) -> list[Any]:
    return [getattr(row.cells.get(m), k, None) for m in names for k in _CELL]


def _cost(c: Cost) -> tuple[list[str], list[list[Any]]]:
    header = [
        "verb", "device", "hours", "cpu_hours_beside", "bytes_written", "objects_written", "money", "money_a_month", "currency",
        "kwh", "kg_co2",
    ]  # fmt: skip
    return header, [
        [r.name, r.device, r.hours, r.beside, r.written, r.puts, r.money, r.month, c.currency, r.kwh, c.kg(r)]
        for r in (*c.rows, c.total)
    ]
