"""evaluate: measure every pair of the held-out fold beside trivial predictors; the figures, the pictures, the report.

Two rounds of units: slices of pairs to tables of figures, then, when it is known which are worst and best, a few pairs to
pictures. The driver reduces the tables; a figure depends on its pair alone (the baselines' on the pairs that they were
fitted on too), so the workers' number and order are moot.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.evaluation import scores
from sar2eo_dist.evaluation.metrics import LOWER_IS_BETTER
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline.against import against
from sar2eo_dist.pipeline.held_out import STAGE, Planned, make_pictures, pairs_of, prepare, runner
from sar2eo_dist.pipeline.measure import TRUE, Measure, Sample, Setup
from sar2eo_dist.pipeline.shard import spread
from sar2eo_dist.pipeline.stage import Options, Summary, run_stage, write_summary
from sar2eo_dist.pipeline.submission import submission
from sar2eo_dist.radiometry import DN_RANGE
from sar2eo_dist.records import Unit, digest
from sar2eo_dist.report.page import write as write_report

NETWORKS = ("translated", "enhanced")
UNKNOWN_DATE = np.datetime64("1970-01-01")  # of a folder of pairs that tells none


def evaluate(cfg: Config, opts: Options) -> Summary | str:
    """Run the verb and write `report.html`. Raises ConfigError where the chosen split is empty."""
    if opts.submission:
        return submission(cfg, opts)
    root = storage.absolute(cfg.run.out)
    if opts.against and not storage.exists(storage.join(storage.absolute(opts.against), STAGE, "metrics.parquet")):
        raise ConfigError(f"--against: run jobs/evaluate.py there first: {opts.against}")
    setup, chosen = prepare(cfg, root)
    samples = pairs_of(cfg, root, setup, chosen)
    fingerprint = digest(cfg.fingerprint(STAGE), _beside(cfg))
    plan: Planned = {}
    for at in range(0, len(samples), cfg.evaluate.slice):
        part = samples[at : at + cfg.evaluate.slice]
        inputs = digest(setup.whole, setup.fit, [s.mark() for s in part])
        unit = Unit(STAGE, f"{cfg.evaluate.split}{at:08d}", fingerprint, inputs)
        plan[unit.id] = unit, part
    summary = run_stage(cfg, opts, STAGE, [u for u, _ in plan.values()], runner(cfg, setup, plan, Measure), "slices")
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"pairs": len(chosen)})
    entries = _finished(root, list(plan.values())[: summary.planned], summary)
    if not entries:
        raise Sar2EoError(f"no pair could be measured; the first reason: {summary.quarantined[0]['reason']}")
    table = _joined(root, entries)
    found = _scores(cfg, root, table, entries, samples)
    summary, shown = pictures(cfg, opts, setup, {s.rank: s for s in samples}, table, summary)
    outputs = {"metrics": f"{STAGE}/metrics.parquet", "scores": f"{STAGE}/scores.json"}
    outputs["samples"] = _publish(root, table, found, shown)
    print(scores.words(found["methods"]), flush=True)
    write_summary(cfg, dataclasses.replace(summary, outputs=outputs))  # the report reads it
    write_report(root)
    outputs["report"] = "report.html"
    summary = write_summary(cfg, dataclasses.replace(summary, outputs=outputs))
    if opts.against:
        page, said = against(cfg, opts, root, setup, {s.rank: s for s in samples})
        print(said, flush=True)
        write_report(root)  # which now names the other page
        summary = write_summary(cfg, dataclasses.replace(summary, outputs=outputs | {"against": page}))
    return summary


def _beside(cfg: Config) -> list[object]:
    """What figures depend on beside the section: how white pixels are told, and the files that the section names."""
    files = [storage.absolute(u) for u in (cfg.evaluate.lpips, cfg.evaluate.land_cover) if u]
    white = cfg.cca.level, cfg.cca.white_dn, cfg.cca.white_blue, cfg.cca.white_spread
    return [white, cfg.cca.weights, [storage.info(u).digest for u in files]]


def _finished(root: str, planned: Sequence[tuple[Unit, Any]], summary: Summary) -> list[Entry]:
    lost = {q["unit"] for q in summary.quarantined}
    return Ledger(root).entries([u for u, _ in planned if u.id not in lost])


def _joined(root: str, entries: Sequence[Entry]) -> pa.Table:
    """The rows of all slices, in order of EO key, SAR key, method."""
    parts = [o for e in entries for o in e.outputs if o.path.startswith(f"{STAGE}/slices/")]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, o.path)))) for o in parts]
    return pa.concat_tables(tables).sort_by([(k, "ascending") for k in ("eo_key", "sar_key", "method", "rank")])


def _scores(
    cfg: Config, root: str, table: pa.Table, entries: Sequence[Entry], samples: Sequence[Sample]
) -> dict[str, Any]:
    """scores.json as a tree."""
    columns = columns_of(table)
    columns["days"] = np.where(columns["eo_date"] == UNKNOWN_DATE, np.nan, columns["days"])
    made = np.isin(columns["method"], NETWORKS) & np.isfinite(columns["mae"])
    names = [n for n in scores.METRICS if n != "lpips" or cfg.evaluate.lpips]
    found = scores.methods(columns, names, Counter(s.pair.sar_key for s in samples))
    features, name = _features(root, entries)
    if features:
        places = dict(zip(columns["rank"].tolist(), columns["place"].tolist(), strict=True))
        distances = scores.frechet(features, places, name)
        for entry in found:
            entry["frechet"] = distances.get(entry["method"])
    fixed = cfg.scaling.eo == "fixed"
    return {
        "split": cfg.evaluate.split,
        "pairs": len(samples),
        "measured": len(set(columns["rank"][made].tolist())),
        "dn": DN_RANGE[1] - DN_RANGE[0] if fixed else None,
        "metrics": names,
        "lower": {n: LOWER_IS_BETTER[n] for n in names},
        "methods": [{"frechet": None} | e for e in found],
        "groups": scores.groups(columns, names),
    }


def columns_of(table: pa.Table) -> dict[str, Any]:
    """Columns as numpy arrays: numbers as they are, text as str."""
    out = {}
    for field in table.schema:
        values = table[field.name].to_numpy(zero_copy_only=False)
        out[field.name] = values.astype(str) if pa.types.is_string(field.type) else values
    return out


def _features(root: str, entries: Sequence[Entry]) -> tuple[dict[str, tuple[Any, Any]], str]:
    """(method -> (ranks, features), in order of rank; name of the score)."""
    parts = [o for e in entries for o in e.outputs if o.path.startswith(f"{STAGE}/features/")]
    if not parts:
        return {}, ""
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, o.path)))) for o in parts]
    table = pa.concat_tables(tables).sort_by([("method", "ascending"), ("rank", "ascending")])
    out = {}
    for method in (TRUE, *scores.METHODS):
        mine = table.filter(pc.equal(table["method"], method)).combine_chunks()
        if mine.num_rows:
            flat = pc.list_flatten(mine["features"]).to_numpy(zero_copy_only=False)
            out[method] = mine["rank"].to_numpy(), flat.reshape(mine.num_rows, -1).astype(np.float32)
    return out, str(table["name"][0].as_py())


def pictures(
    cfg: Config, opts: Options, setup: Setup, samples: dict[int, Sample], table: pa.Table, before: Summary
) -> tuple[Summary, list[tuple[Sample, str, str]]]:
    """Make the pictures of the pairs to show: (both rounds' summary, [(pair, why it is shown, how the names of its pictures
    begin)] of those that were made)."""
    measured = sorted(set(table["rank"].to_pylist()))
    worst, best = scores.extremes(columns_of(table), cfg.evaluate.extremes)
    why = dict.fromkeys(worst, "worst") | dict.fromkeys(best, "best")
    why |= dict.fromkeys(spread([r for r in measured if r not in why], cfg.evaluate.samples), "spread")
    summary, made = make_pictures(cfg, opts, setup, [samples[i] for i in why], "samples")
    both = dataclasses.replace(
        before, status="partial" if summary.quarantined else before.status, done=before.done + summary.done,
        planned=before.planned + summary.planned, resumed=before.resumed + summary.resumed,
        quarantined=before.quarantined + summary.quarantined, faults=before.faults + summary.faults,
        seconds=before.seconds + summary.seconds, unit_seconds=before.unit_seconds + summary.unit_seconds,
        bytes_out=before.bytes_out + summary.bytes_out, ended=summary.ended or before.ended,
        digest=digest(before.digest, summary.digest),
    )  # fmt: skip
    return both, [(samples[i], w, made[i]) for i, w in why.items() if i in made]


def _publish(root: str, table: pa.Table, found: dict[str, Any], shown: Sequence[tuple[Sample, str, str]]) -> str:
    """metrics.parquet, scores.json, and samples.json that says which pictures belong together; the last one's path."""
    first = {s.rank: stem for s, _, stem in shown}
    stems = pa.array([first.get(r, "") for r in table["rank"].to_pylist()], pa.string())
    sink = io.BytesIO()
    pq.write_table(table.append_column("sample", stems), sink, compression="zstd")
    storage.put(storage.join(root, STAGE, "metrics.parquet"), sink.getvalue())
    storage.put(storage.join(root, STAGE, "scores.json"), json.dumps(found, indent=1).encode())
    some = table.filter(pc.is_in(table["rank"], pa.array(list(first), pa.int64())))
    mae: dict[int, dict[str, float | None]] = {}
    for r in some.select(["rank", "method", "mae"]).to_pylist():
        mae.setdefault(r["rank"], {})[r["method"]] = r["mae"] if np.isfinite(r["mae"]) else None
    samples = []
    for s, why, stem in shown:
        names = ["sar", *(m for m in mae[s.rank] if not m.startswith("baseline_")), TRUE]
        images = {name: f"{stem}_{name}.png" for name in names}
        pair = {"sar_key": s.pair.sar_key, "eo_key": s.pair.eo_key, "days": s.pair.days}
        samples.append(pair | {"why": why, "images": images, "mae": mae[s.rank]})
    path = f"{STAGE}/samples.json"
    storage.put(storage.join(root, path), json.dumps(samples, indent=1).encode())
    return path
