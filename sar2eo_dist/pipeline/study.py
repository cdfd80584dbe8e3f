"""study: several variants of one config, each trained with several seeds and evaluated, in one table.

All share this run folder's shards; a network that is trained already is found done, so a study grows by its config. What
one variant left under the names of `train` and `evaluate` is taken away at the end: those verbs find it done, or theirs. The
table has the shape of the paper's Table 1: a row a submission with its challenge figure; trivial predictors below.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from sar2eo_dist import storage
from sar2eo_dist.config import Config, explained
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline.evaluate import evaluate
from sar2eo_dist.pipeline.stage import Options, Summary, machine, now, read_summary, write_summary
from sar2eo_dist.pipeline.train import train
from sar2eo_dist.records import digest

STAGE = "study"
#: sections that a variant may not change: they would change the pairs, or how they are measured, which all variants share
SHARED = ("run", "data", "synthetic", "cca", "pairing", "split", "shard", "evaluate", "resources", "study")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # of a variant: part of a file's name
#: what tells of one variant alone, and would mislead when the next verb of the whole config reads it
LEFT = ("train/summary.json", "evaluate/summary.json", "evaluate/metrics.parquet", "evaluate/scores.json",
        "evaluate/samples.json", "report.html")  # fmt: skip
FIGURES = ("multiearth_mse_sum", "mae_min", "mae", "rmse", "psnr", "ssim", "ms_ssim", "sam", "lpips", "frechet", "kid")
REFERENCES = ("baseline_linear", "baseline_mean", "baseline_zero", "nearest_date")
TITLES = {
    "baseline_linear": "linear fit to VV, VH", "baseline_mean": "mean image", "baseline_zero": "all zero",
    "nearest_date": "nearest clear date (optical)", "translated": "translated", "enhanced": "enhanced",
}  # fmt: skip


def variants(cfg: Config) -> list[tuple[str, int, Config]]:
    """(variant, seed, its config), in order. Raises ConfigError: none, or one that changes what all share."""
    if not cfg.study.variants:
        raise ConfigError("study.variants is empty: name at least one (see jobs/configs/table1.yaml)")
    out = []
    if len(set(cfg.study.seeds)) < len(cfg.study.seeds):
        raise ConfigError(f"study.seeds {list(cfg.study.seeds)}: a seed twice is no second opinion")
    for name, variant in cfg.study.variants.items():
        if not NAME.fullmatch(name):
            raise ConfigError(f"study.variants: {name!r} is no name of letters, digits, '_', '-' and '.'")
        if isinstance(variant.set.get("train"), dict) and "seed" in variant.set["train"]:
            raise ConfigError(f"study.variants.{name}.set changes train.seed: study.seeds says which")
        if taken := sorted(set(variant.set) & set(SHARED)):
            raise ConfigError(
                f"study.variants.{name}.set changes {', '.join(taken)}: all variants share the same pairs"
            )
        if unknown := sorted(set(variant.rows) - {"translated", "enhanced"}):
            raise ConfigError(f"study.variants.{name}.rows: {', '.join(unknown)}; rows are of translated and enhanced")
        try:
            made = Config.model_validate(_merged(cfg.model_dump(mode="json"), variant.set))
        except ValidationError as e:
            raise ConfigError(f"study.variants.{name}: {explained(e)}") from None
        out += [
            (name, s, made.model_copy(update={"train": made.train.model_copy(update={"seed": s})}))
            for s in cfg.study.seeds
        ]
    return out


def study(cfg: Config, opts: Options) -> Summary:
    """Run the verb: train and evaluate every variant with every seed, then the table. Raises what they raise."""
    started, clock = now(), time.monotonic()
    plan = variants(cfg)
    read_summary(cfg, "shard")
    if opts.dry_run:
        return Summary(STAGE, "planned", len(plan), counts={"trainings": len(plan)}, started=started)
    root, found = storage.absolute(cfg.run.out), []
    digests, parts = [], []
    for name, seed, variant in plan:
        print(f"study: {name}, seed {seed}", flush=True)
        for verb in (train, evaluate):
            summary = verb(variant, opts)
            if isinstance(summary, Summary):
                digests.append(summary.digest)
                parts.append(summary)
        for kind, path in (("json", "scores.json"), ("parquet", "metrics.parquet"), ("summary.json", "summary.json")):
            data = storage.read_bytes(storage.join(root, "evaluate", path))
            storage.put(storage.join(root, STAGE, f"{name}-{seed}.{kind}"), data)
        found.append((name, seed, json.loads(storage.read_bytes(storage.join(root, "evaluate", "scores.json")))))
    for path in LEFT:
        storage.delete(storage.join(root, path))
    rows = table_rows(cfg, found)
    storage.put(storage.join(root, STAGE, "table.json"), json.dumps(rows, indent=1).encode())
    storage.put(storage.join(root, STAGE, "table.csv"), _csv(rows).encode())
    print(words(rows, found), flush=True)
    status = "partial" if any(p.status == "partial" for p in parts) else "complete"
    outputs = {"table": f"{STAGE}/table.json", "csv": f"{STAGE}/table.csv"}
    return write_summary(cfg, Summary(
        STAGE, status, len(plan), len(plan), seconds=time.monotonic() - clock, started=started, ended=now(),
        unit_seconds=sum(p.unit_seconds for p in parts), bytes_out=sum(p.bytes_out for p in parts),
        digest=digest(digests), counts={"trainings": len(plan), "seeds": len(cfg.study.seeds)}, outputs=outputs,
        machine=machine(),
    ))  # fmt: skip


def table_rows(cfg: Config, found: list[tuple[str, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row a network of a variant, then the trivial predictors, each with every figure of every seed.

    Baselines are those of the first variant that has them with its scaling of EO: two scalings give two sets of rows.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    models: list[tuple[str, str]] = []
    scalings: dict[str, str] = {name: variant.scaling.eo for name, _, variant in variants(cfg)}
    several = len(set(scalings.values())) > 1
    for name, seed, scores in found:
        for entry in scores["methods"]:
            method = entry["method"]
            shared = method in REFERENCES
            key = (scalings[name] if shared else name, method)
            title = cfg.study.variants[name].rows.get(method) or f"{name}, {TITLES.get(method, method)}"
            if shared:
                title = TITLES[method] + (f" (EO {scalings[name]})" if several else "")
            row = rows.setdefault(key, {"title": title, "method": method, "baseline": shared, "variant": key[0],
                                        "pairs": [], "queries": [], "seeds": [], "figures": {}})  # fmt: skip
            if not shared and key not in models:
                models.append(key)
            if shared and row["seeds"]:
                continue  # no network is in it: every seed says the same
            row["seeds"].append(seed)
            row["pairs"].append(entry["mae"]["n"])
            row["queries"].append(entry["challenge"]["queries"])
            for figure in FIGURES:
                row["figures"].setdefault(figure, []).append(_figure(entry, figure))
    ordered = models + [k for m in REFERENCES for k in rows if k[1] == m]
    return [rows[k] for k in ordered]


def _figure(entry: Mapping[str, Any], name: str) -> float | None:
    if name in ("multiearth_mse_sum", "mae_min"):
        value: float | None = entry["challenge"][name]
        return value
    if name in ("frechet", "kid"):
        distance = entry.get("frechet") or {}
        return distance.get("value" if name == "frechet" else "kid")
    return (entry.get(name) or {}).get("mean")


def words(rows: list[dict[str, Any]], found: list[tuple[str, int, dict[str, Any]]]) -> str:
    """The table for a terminal: mean over the seeds, and the spread where there are several."""
    shown = [f for f in FIGURES if any(v is not None for r in rows for v in r["figures"][f])]
    shown = [f for f in shown if f in ("multiearth_mse_sum", "mae_min", "mae", "psnr", "ssim", "lpips", "frechet")]
    wide = max(len(r["title"]) for r in rows) + 2
    many = max(len(r["seeds"]) for r in rows) > 1
    cell = 20 if many else 12
    heads = {"multiearth_mse_sum": "challenge", "mae_min": "mae_min", "frechet": "Frechet"}
    lines = [f"{'':{wide}s}" + "".join(f"{heads.get(f, f.upper()):>{cell}s}" for f in shown)]
    lines += [f"{r['title']:{wide}s}" + "".join(f"{_cell(r['figures'][f]):>{cell}s}" for f in shown) for r in rows]
    first = found[0][2]
    seeds = ", ".join(map(str, sorted({s for _, s, _ in found})))
    for name, seed, scores in found:
        if scores["measured"] < scores["pairs"]:
            lines.append(
                f"! {name}, seed {seed}: only {scores['measured']:,} of {scores['pairs']:,} pairs were measured"
            )
    for r in rows:
        if len({*r["pairs"], first["pairs"]}) > 1:
            lines.append(f"! {r['title'].strip()}: over {', '.join(f'{n:,}' for n in r['pairs'])} pairs")
    lines.append(
        f"{first['pairs']:,} pairs of split {first['split']}, seeds {seeds}"
        + ("; mean over the seeds and their spread (standard deviation)" if many else "")
    )
    lines.append(
        f"challenge: multiearth_mse_sum of {rows[0]['queries'][0]:,} queries with one image each, on this data: not to be "
        "read beside the paper's Table 1, whose test set is another and whose queries had three"
    )
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    known = np.array([v for v in values if v is not None])
    if not len(known):
        return "-"
    mean = f"{known.mean():.4g}" if len(known) == 1 else f"{known.mean():.4g} ± {known.std(ddof=1):.2g}"
    return mean if len(known) == len(values) else f"{mean} ({len(known)} of {len(values)})"


def _csv(rows: list[dict[str, Any]]) -> str:
    sink = io.StringIO()
    out = csv.writer(sink, lineterminator="\n")
    out.writerow(["row", "method", "variant", "baseline", "pairs", "queries", "seed", *FIGURES])
    for r in rows:
        for k, seed in enumerate(r["seeds"]):
            about = [r["title"], r["method"], r["variant"], int(r["baseline"]), r["pairs"][k], r["queries"][k], seed]
            out.writerow([*about, *("" if r["figures"][f][k] is None else r["figures"][f][k] for f in FIGURES)])
    return sink.getvalue()


def _merged(tree: Any, change: Any) -> Any:
    """`tree` with the values of `change` in place of its own; mappings are gone into, all else is replaced."""
    if isinstance(tree, dict) and isinstance(change, dict):
        return tree | {k: _merged(tree.get(k), v) for k, v in change.items()}
    return change
