"""From measured verdicts to pairs: the corpus-wide threshold, the selection, the pair table, the yield. Seconds, no imagery."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.cca.threshold import calibrate, decide
from sar2eo_dist.config import Config
from sar2eo_dist.errors import Sar2EoError
from sar2eo_dist.pairing.match import match
from sar2eo_dist.pairing.split import assign
from sar2eo_dist.pairing.yields import curve
from sar2eo_dist.records import KEPT, S1, S2, Calibration, Rejected, Verdict, schema, to_table


def publish(
    cfg: Config, slices: Sequence[str], rejected: Sequence[Rejected], reference: str
) -> tuple[dict[str, str], dict[str, int]]:
    """Write verdicts, rejected, calibration, pairs and yield of the slices' verdicts; return their paths and the counts.

    Raises Sar2EoError where the kept share of the scored tiles is below `cca.min_kept`, after everything is written,
    so that the report can show why.
    """
    root = cfg.run.out
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, p)))) for p in slices]
    measured = pa.concat_tables(tables) if tables else schema(Verdict).empty_table()
    measured = measured.sort_by([("key", "ascending")])  # canonical; slices never share a tile
    final, calibration = _select(cfg, measured, reference)
    outputs = {
        "verdicts": "collect/verdicts.parquet",
        "rejected": "collect/rejected.parquet",
        "pairs": "collect/pairs.parquet",
        "yield": "collect/yield.parquet",
    }
    _put(root, outputs["verdicts"], final)
    _put(root, outputs["rejected"], to_table(rejected, Rejected))
    if calibration:
        outputs["calibration"] = "collect/calibration.json"
        text = json.dumps(dataclasses.asdict(calibration), indent=1, sort_keys=True)
        storage.put(storage.join(root, outputs["calibration"]), text.encode())
    else:
        storage.delete(storage.join(root, "collect/calibration.json"))
    sar, eo = (final.filter(pc.equal(final["sensor"], s)) for s in (S1, S2))
    pairs = assign(match(sar, eo, cfg.pairing), cfg.split)
    _put(root, outputs["pairs"], pairs)
    _put(root, outputs["yield"], curve(sar, eo, cfg.pairing))
    counts = _counts(final, rejected, pairs)
    scored = int(pc.sum(pc.is_finite(final["score"])).as_py() or 0)
    if calibration and scored and counts["S2 kept"] < cfg.cca.min_kept * scored:
        raise Sar2EoError(
            f"only {counts['S2 kept']} of {scored} scored tiles are above the threshold {calibration.threshold:.4g} "
            f"(rule {calibration.rule}, beta {calibration.beta:g}, scores {calibration.low:.4g}..{calibration.high:.4g}): "
            f"less than cca.min_kept {cfg.cca.min_kept:g}. One outlier can do this: look at collect/verdicts.parquet, "
            f"then try --set cca.rule=quantile or another cca.beta; nothing is computed again."
        )
    return outputs, counts


def _select(cfg: Config, table: pa.Table, reference: str) -> tuple[pa.Table, Calibration | None]:
    """Stage 3: the threshold over the survivors of stages 1 and 2, and the final reason of every tile."""
    if cfg.cca.profile != "paper":  # no stage 3
        return table, None
    scores = np.asarray(table["score"].to_numpy(zero_copy_only=False), np.float64)
    entered = np.isfinite(scores) & np.asarray(pc.equal(table["reason"], KEPT).to_numpy(zero_copy_only=False))
    if not entered.any():
        return table, None
    names = set(table["score_name"].filter(pa.array(entered)).unique().to_pylist())
    if len(names) > 1:
        raise Sar2EoError(f"scores of different extractors in one run folder: {sorted(names)}; use --fresh")
    calibration = calibrate(scores[entered], names.pop(), cfg.cca.rule, cfg.cca.beta, reference)
    dropped = entered.copy()
    dropped[entered] = ~decide(scores[entered], calibration)
    reason = pc.if_else(pa.array(dropped), "frechet", table["reason"])
    return table.set_column(
        table.schema.get_field_index("reason"), schema(Verdict).field("reason"), reason
    ), calibration


def _counts(final: pa.Table, rejected: Sequence[Rejected], pairs: pa.Table) -> dict[str, int]:
    kinds = {(g["sensor"], g["reason"]): g["count_all"] for g in _groups(final, "sensor", "reason")}
    counts = {
        "S1 tiles": sum(n for (s, _), n in kinds.items() if s == S1),
        "S2 tiles": sum(n for (s, _), n in kinds.items() if s == S2),
        "S1 usable": kinds.get((S1, KEPT), 0),
        "S2 kept": kinds.get((S2, KEPT), 0),
        "unusable files": len(rejected),
        "pairs": len(pairs),
    }
    splits = {g["split"]: g["count_all"] for g in _groups(pairs, "split")}
    return counts | {f"pairs {k}": n for k, n in sorted(splits.items())}


def _groups(table: pa.Table, *columns: str) -> list[dict[str, Any]]:
    return list(table.group_by(list(columns)).aggregate([([], "count_all")]).to_pylist())


def _put(root: str, path: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.put(storage.join(root, path), sink.getvalue())
