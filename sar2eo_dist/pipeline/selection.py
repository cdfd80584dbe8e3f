"""From what was measured to pairs: reasons as a filter, the corpus-wide threshold, the pair table, the yield. No imagery.

One function decides (`reasons`), whether verdicts come fresh from the units or from an archive of long ago.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.cca import profile
from sar2eo_dist.cca.threshold import decide
from sar2eo_dist.config import Config
from sar2eo_dist.pairing.match import match
from sar2eo_dist.pairing.split import assign
from sar2eo_dist.pairing.yields import curve
from sar2eo_dist.pipeline import archive, metrics
from sar2eo_dist.pipeline import calibration as calibrations
from sar2eo_dist.records import KEPT, S1, S2, Calibration, Rejected, to_table
from sar2eo_dist.sections import CCA
from sar2eo_dist.sources.ranged import ranged

Bool = npt.NDArray[np.bool_]
Words = npt.NDArray[np.object_]
NONE: npt.NDArray[np.float64] = np.empty(0)
EXAMPLES = 3  # keys that a change names


def screened(table: pa.Table, cca: CCA) -> Words:
    """(N,) reason of each tile after stages 1 and 2: what could not be measured keeps its reason."""
    eo = np.asarray(pc.and_(pc.equal(table["sensor"], S2), pc.is_finite(table["light"])))
    reason = _words(table["reason"])
    names = [n for n in MEASURED if n in table.column_names]
    rows = table.select(names).filter(pa.array(eo))
    columns = {n: rows[n].to_numpy() if pa.types.is_floating(rows[n].type) else _words(rows[n]) for n in names}
    reason[eo] = profile.decide(columns, cca)
    return reason


#: what `cca.decide` reads
MEASURED = (
    "valid_fraction", "qa60_state", "qa60_fraction", "qa60_any", "max_dn", "alpha_fraction", "contrast", "brightness",
    "dark_fraction", "dark_released", "brightness_released", "light", "white_fraction", "haze", "offset",
)  # fmt: skip


def passing(table: pa.Table, reason: Words) -> Bool:
    """S2 tiles that nothing rejects so far."""
    kept: Bool = (reason == KEPT) & np.asarray(pc.equal(table["sensor"], S2))
    return kept


def gaps(table: pa.Table, cca: CCA, mark: str) -> Bool:
    """Tiles that pass stages 1 and 2 and have no score under this mark; none where nothing is scored."""
    if not mark:
        return np.zeros(len(table), bool)
    missing: Bool = passing(table, screened(table, cca)) & ~np.asarray(pc.equal(table["scored_by"], mark))
    return missing


@dataclass(frozen=True, slots=True)
class Selection:
    """reason: (N,) of every tile; unscored: (N,) those that pass stages 1 and 2 without a score of this cloud set;
    calibration, drift: of stage 3, None without one; scores: (n,) that were judged; tried: how many went to the extractor."""

    reason: Words
    unscored: Bool
    calibration: Calibration | None
    drift: calibrations.Drift | None
    scores: npt.NDArray[np.float64]
    tried: int


def select(
    table: pa.Table, cca: CCA, mark: str, settle: Callable[..., tuple[Calibration, calibrations.Drift | None]]
) -> Selection:
    """All three stages over an archive. settle: (scores, their tiles' digests, score name) -> calibration and drift."""
    reason = screened(table, cca)
    if not mark:
        return Selection(reason, np.zeros(len(table), bool), None, None, NONE, 0)
    rows = passing(table, reason)
    score = table["score"].to_numpy()
    here = np.asarray(pc.equal(table["scored_by"], mark))
    unscored, tried = rows & ~here, int((rows & here).sum())
    judged = rows & here & np.isfinite(score)
    reason[rows & ~judged] = "not_scored"
    if not judged.any():
        return Selection(reason, unscored, None, None, NONE, tried)
    part = pa.array(judged)
    name = table["score_name"].filter(part)[0].as_py()
    found, drift = settle(score[judged], lambda: table["digest"].filter(part).to_pylist(), name)
    dropped = judged.copy()
    dropped[judged] = ~decide(score[judged], found)
    reason[dropped] = "frechet"
    return Selection(reason, unscored, found, drift, score[judged], tried)


def publish(
    cfg: Config,
    table: pa.Table,
    rejected: Sequence[Rejected],
    about: Mapping[str, Any],
    mark: str,
    whole: bool,
    anew: bool = False,
    own: npt.NDArray[np.float64] = NONE,
) -> tuple[dict[str, str], dict[str, int]]:
    """Calibrate, select, pair and write everything; return the paths and the counts.

    about: what `collect` keeps of a run for a later `reselect`; whole: False for a part of the plan, whose calibration is
    not frozen; anew: make a new calibration; own: distances of the cloud set's own images.
    Raises KeptOutOfBounds where the kept share of the tiles that were scored leaves `cca.min_kept`..`max_kept`, after
    everything is written, so that the report can show why. From the first write to the last the run folder says that it
    is unfinished, so that a death between two of them leaves nothing that is trusted.
    """
    root, outputs = cfg.run.out, dict(archive.OUTPUTS)

    def settle(scores: npt.NDArray[np.float64], digests: Callable[[], list[str]], name: str) -> Any:
        made = calibrations.foresee(cfg, scores, name, mark, own, anew)
        archive.unfinished(cfg)
        return calibrations.settle(cfg, made, scores, digests, whole)

    found = select(table, cfg.cca, mark, settle)
    if not found.calibration:
        archive.unfinished(cfg)
    final = _with_reasons(table, found.reason)
    _put(root, outputs["verdicts"], final)
    _put(root, outputs["rejected"], to_table(rejected, Rejected))
    if found.calibration:
        outputs["calibration"] = calibrations.CURRENT
    else:
        storage.delete(storage.join(root, calibrations.CURRENT))
    if found.drift and (line := found.drift.line(cfg.cca.drift_max)):
        metrics.put("sar2eo_calibration_drift", found.drift.distance)
        print(f"collect: {line}", flush=True)
        outputs["drift"] = calibrations.put_drift(cfg, found.drift)
    sar, eo = (final.filter(pc.equal(final["sensor"], s)) for s in (S1, S2))
    pairs = assign(match(sar, eo, cfg.pairing), cfg.split)
    _put(root, outputs["pairs"], pairs)
    _put(root, outputs["yield"], curve(sar, eo, cfg.pairing))
    storage.put(storage.join(root, archive.ABOUT), json.dumps(about, indent=1, sort_keys=True).encode())
    if found.tried:
        calibrations.guard(cfg, found.scores, found.calibration, found.tried)
    return outputs, _counts(final, rejected, pairs)


@dataclass(frozen=True, slots=True)
class Change:
    """What another choice changes. before, after: S2 tiles by reason; enter, leave: how many, and keys of some; gaps: tiles
    that pass stages 1 and 2 and have no score yet, which are among neither."""

    before: dict[str, int]
    after: dict[str, int]
    enter: int
    leave: int
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    gaps: int

    def text(self) -> str:
        kept = self.before.get(KEPT, 0)
        lines = [
            f"training set: {self.enter:,} S2 tiles enter, {self.leave:,} leave: "
            f"{kept:,} -> {kept + self.enter - self.leave:,} of {sum(self.before.values()):,}"
        ]
        for reason in sorted({*self.before, *self.after} - {KEPT}):
            b, a = self.before.get(reason, 0), self.after.get(reason, 0)
            if a != b:
                lines.append(f"  {reason:12s} {b:,} -> {a:,}")
        for what, keys in (("enter", self.entering), ("leave", self.leaving)):
            lines += [f"  {what:5s} {k}" for k in keys]
        if self.gaps:
            lines.append(f"  {self.gaps:,} more are undecided: they pass stages 1 and 2 and have no score yet")
        return "\n".join(lines)


def preview(cfg: Config, mark: str, own: npt.NDArray[np.float64] = NONE, anew: bool = False) -> Change:
    """What the config would change in the published selection: read and decided, nothing written."""
    with ranged(storage.join(cfg.run.out, archive.OUTPUTS["verdicts"])) as f:

        def read(*more: str) -> pa.Table:
            words = ["sensor", "reason", "qa60_state", *(() if more else ("score_name", "scored_by"))]
            return pq.read_table(
                f, columns=[*MEASURED, "sensor", "reason", *archive.SCORES, *more], read_dictionary=words
            )

        def chosen(table: pa.Table) -> Selection:
            return select(
                table, cfg.cca, mark, lambda s, _, n: (calibrations.foresee(cfg, s, n, mark, own, anew), None)
            )

        table = read()
        found = chosen(table)
        if found.unscored.any():  # as `collect` does: they may have one that the archive does not show
            table = archive.with_scores(cfg, read("key", "digest"), mark, inline=True)
            found = chosen(table)
        return compare(table, found.reason, found.unscored, lambda: pq.read_table(f, columns=["key"])["key"])


def compare(before: pa.Table, reason: Words, unscored: Bool, keys: Callable[[], pa.ChunkedArray]) -> Change:
    """From verdicts as they were published to their reasons now; keys: of all of them, asked for where they are shown."""
    old, eo = _words(before["reason"]), np.asarray(pc.equal(before["sensor"], S2))
    now = np.where(unscored, "undecided", reason)
    enter = eo & (now == KEPT) & (old != KEPT)
    leave = eo & (old == KEPT) & (now != KEPT) & ~unscored
    some = [np.flatnonzero(x)[:EXAMPLES].tolist() for x in (enter, leave)]
    every = keys() if any(some) else None
    named = [tuple(every[i].as_py() for i in s) if every is not None else () for s in some]
    was, will = (dict(zip(*_tally(x[eo]), strict=True)) for x in (old, now))
    return Change(was, will, int(enter.sum()), int(leave.sum()), named[0], named[1], int(unscored.sum()))


def _tally(words: Words) -> tuple[list[str], list[int]]:
    groups = pa.array(words, pa.string()).dictionary_encode().value_counts()
    return groups.field("values").to_pylist(), groups.field("counts").to_pylist()


def _with_reasons(table: pa.Table, reason: Words) -> pa.Table:
    """The table with its final reasons; details of those that changed are made anew."""
    changed = np.flatnonzero(reason != _words(table["reason"]))
    if not changed.size:
        return table
    detail = _words(table["detail"])
    detail[changed] = ""
    told = changed[np.isin(reason[changed], profile.EXPLAINED)]
    rows = table.select(MEASURED).take(pa.array(told)).to_pylist()
    for at, row in zip(told.tolist(), rows, strict=True):
        detail[at] = profile.explain(reason[at], row)
    for name, words in (("reason", reason), ("detail", detail)):
        table = archive.put_column(table, name, pa.array(words, pa.string()))
    return table


def _words(column: pa.ChunkedArray) -> Words:
    """A string column as (N,) objects; each distinct string once in memory."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    parts = [
        np.asarray(c.dictionary.to_pylist(), object)[c.indices.to_numpy(zero_copy_only=False)]
        for c in encoded.chunks if len(c)
    ]  # fmt: skip
    return np.concatenate(parts) if parts else np.empty(0, object)


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
