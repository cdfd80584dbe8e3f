"""collect: stream Sentinel tiles through the Clean Collector Algorithm; verdicts, calibration and pairs to parquet.

    manifest slice -> read + stages 1 and 2 (tasks) -> packs of survivors -> features + Frechet score (actors) -> driver

Two passes: tiles are measured and scored once (units of work: a manifest slice, one verdict parquet); the threshold is a
reduction of all scores, and the selection a filter on what was measured (`selection.py`). So another threshold, rule or
profile touches no imagery but that of tiles which it lets through for the first time (`rescore`).
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from sar2eo_dist import storage
from sar2eo_dist.cca.frechet import Reference
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline import archive, cluster, driver, manifest, selection
from sar2eo_dist.pipeline.actors import ScoreActor
from sar2eo_dist.pipeline.judge import Judge, from_ipc
from sar2eo_dist.pipeline.manifest import Slice
from sar2eo_dist.pipeline.members import Members, members, preprocessing
from sar2eo_dist.pipeline.reference import built, has
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, run_stage, write_summary
from sar2eo_dist.records import Rejected, TileRef, Unit, digest, schema

STAGE = "collect"
WORTH = 256  # tiles that are worth another extractor: loading one takes as long
FATAL = "ConfigError: "  # a failure that every unit would meet


def collect(cfg: Config, opts: Options) -> Summary:
    """Run the verb. Raises ConfigError where nothing is listed, ReferenceSetError for a bad cloud set."""
    if opts.reselect:
        return reselect(cfg, opts)
    found = members(cfg.cca)
    if not found.mark and cfg.cca.profile == "recommended":
        print("collect: no cca.reference, so no Frechet stage: stages 1 and 2 alone decide", flush=True)
    slices, rejected = manifest.list_archive(cfg, keep=not opts.dry_run)
    fingerprint = _measured_as(cfg)
    plan = {u.id: (u, s) for s in slices if (u := Unit(STAGE, s.key, fingerprint, s.inputs))}
    units = [u for u, _ in plan.values()]
    summary = _run(cfg, opts, STAGE, plan, found)
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"tiles": sum(s.tiles for s in slices), "unusable": len(rejected)})
    bad_units = {q["unit"] for q in summary.quarantined}
    finished = [u for u in units[: summary.planned] if u.id not in bad_units]
    paths = [e.outputs[0].path for e in Ledger(cfg.run.out).entries(finished)]
    table, twice = archive.merge(cfg, paths)
    about = {
        "fingerprint": fingerprint, "whole": not opts.limit and not summary.quarantined,
        "summary": dataclasses.asdict(summary),
    }  # fmt: skip
    return _settle(cfg, opts, about, table, [*rejected, *twice], found)


def reselect(cfg: Config, opts: Options) -> Summary:
    """Choose again from the stored archive: no listing, and no image read but of tiles that have no score yet."""
    begin = time.monotonic()
    about = archive.about(cfg)
    if about["fingerprint"] != _measured_as(cfg):
        raise ConfigError(
            "the archive was measured with other settings (cca.alpha, cca.level, cca.white_dn, cca.white_blue, "
            "cca.white_spread, data.units, data.quantity): run jobs/collect.py without --reselect, which measures again"
        )
    found = members(cfg.cca)
    if opts.dry_run and cfg.cca.rule == "reference" and found.mark and not has(cfg, found):
        raise ConfigError("the cloud set is not built yet: run jobs/reference.py with this config first")
    anew = opts.recalibrate or opts.fresh
    change = selection.preview(cfg, scored_by(cfg, found), _own(cfg, found), anew)
    print(change.text(), flush=True)
    if opts.dry_run:
        return Summary(STAGE, "planned", planned=change.gaps, seconds=time.monotonic() - begin)
    table, rejected = archive.stored(cfg)
    summary = _settle(cfg, opts, about, table, rejected, found)
    if change.gaps:
        final, _ = archive.stored(cfg)
        change = selection.compare(table, final["reason"].to_numpy(), np.zeros(len(final), bool), lambda: final["key"])
        print(f"with the new scores, {change.text()}", flush=True)
    return write_summary(cfg, dataclasses.replace(summary, seconds=time.monotonic() - begin))


def _measured_as(cfg: Config) -> str:
    """Digest of the config that decides what is measured; what a scene's numbers are declared to be is part of it."""
    return digest(cfg.fingerprint(STAGE), cfg.data.units, cfg.data.quantity)


def scored_by(cfg: Config, found: Members) -> str:
    """Digest of all that a score depends on besides the tile; "" where nothing is scored."""
    c = cfg.cca
    made_by = (c.extractor, preprocessing(c.extractor), c.distance, c.pack, c.threads)
    return digest(found.mark, *made_by) if found.mark else ""


def _settle(
    cfg: Config, opts: Options, about: dict[str, Any], table: pa.Table, rejected: Sequence[Rejected], found: Members
) -> Summary:
    """From an archive's verdicts to its selection: score what has no score yet, calibrate, select, pair, publish."""
    mark, summary = scored_by(cfg, found), Summary(**about["summary"])
    table = archive.with_scores(cfg, table, mark)
    gaps = selection.gaps(table, cfg.cca, mark)
    if (
        gaps.any() and opts.reselect
    ):  # the archive shows one score a tile: those of this cloud set may lie in the slices
        table = archive.with_scores(cfg, table, mark, inline=True)
        gaps = selection.gaps(table, cfg.cca, mark)
    if gaps.any():
        scores = _rescore(cfg, opts, table, gaps, found)
        table = archive.with_scores(cfg, table, mark)
        summary = dataclasses.replace(
            summary, quarantined=[*summary.quarantined, *scores.quarantined], bytes_in=summary.bytes_in + scores.bytes_in,
            unit_seconds=summary.unit_seconds + scores.unit_seconds,
            status="partial" if scores.quarantined else summary.status,
        )  # fmt: skip
    anew = opts.recalibrate or opts.fresh
    whole = about["whole"] and not summary.quarantined
    outputs, counts = selection.publish(cfg, table, rejected, about, mark, whole, anew, _own(cfg, found))
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=counts))


def _own(cfg: Config, found: Members) -> npt.NDArray[np.float64]:
    """Distances of the cloud set's own images, where the rule is made of them."""
    if not found.mark or cfg.cca.rule != "reference":
        return selection.NONE
    if not has(cfg, found):
        cluster.start(cfg)
    return Reference.from_bytes(storage.read_bytes(built(cfg, found))).own


def _rescore(cfg: Config, opts: Options, table: pa.Table, gaps: npt.NDArray[np.bool_], found: Members) -> Summary:
    """Score the tiles that pass stages 1 and 2 now and have no score of this reference: units of their own."""
    mark = scored_by(cfg, found)
    refs = manifest.as_listed(table.filter(pa.array(gaps)).select(["key", *schema(TileRef).names]))
    folder = storage.absolute(storage.join(cfg.run.out, f"{STAGE}/scores/{mark[:12]}/manifest"))
    slices = list(manifest.write(manifest.cut([refs], cfg.cca.slice), folder))
    print(
        f"{STAGE}: {len(refs):,} tiles pass stages 1 and 2 without a score of this cloud set: scoring them", flush=True
    )
    plan = {u.id: (u, s) for s in slices if (u := Unit(archive.SCORE, s.key, mark, s.inputs))}
    corpus = selection.passing(table, selection.screened(table, cfg.cca))
    of = -(-int(corpus.sum()) // cfg.cca.slice)
    return _run(cfg, dataclasses.replace(opts, dry_run=False, limit=0), archive.SCORE, plan, found, of)


def _run(
    cfg: Config, opts: Options, stage: str, plan: dict[str, tuple[Unit, Slice]], found: Members, of: int = 0
) -> Summary:
    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        reference = built(cfg, found) if found.mark else ""
        folder = f"{STAGE}/slices" if stage == STAGE else f"{STAGE}/scores/{scored_by(cfg, found)[:12]}"
        yield from _stream(cfg, [plan[u.id] for u in todo], reference, scored_by(cfg, found), folder, attempt)

    return run_stage(cfg, opts, stage, [u for u, _ in plan.values()], execute, "slices", of)


def _stream(
    cfg: Config, todo: Sequence[tuple[Unit, Slice]], reference: str, mark: str, folder: str, attempt: int
) -> Iterator[Entry | Failure]:
    """Units through Ray Data; yields a completion as soon as a unit's last pack has arrived."""
    final = attempt >= cfg.run.max_attempts
    rows = [{"unit": u.id, "group": s.group, "manifest": s.uri, "final": final} for u, s in todo]
    source = ray.data.from_items(rows, override_num_blocks=len(rows))
    options: dict[str, object] = {"batch_size": 1, "batch_format": "pyarrow"}
    if not reference:
        readers = TaskPoolStrategy(cfg.resources.readers) if cfg.resources.readers else None
        packs = source.map_batches(Judge(cfg.cca, False), compute=readers, **options, **cluster.TASKS)
    else:
        network = cfg.cca.extractor != "means"
        most = -(-sum(s.tiles for _, s in todo) // WORTH)
        part = cluster.feed(cfg.resources, cfg.cca.threads, most, cluster.nodes(), network)
        packs = source.map_batches(
            Judge(cfg.cca, True),
            compute=TaskPoolStrategy(part.readers),
            num_cpus=part.reader_cpus,
            **options,
            **cluster.TASKS,
        ).map_batches(
            ScoreActor,
            fn_constructor_args=(cfg.cca, reference, mark, driver.here()),
            compute=ActorPoolStrategy(
                min_size=part.least,
                max_size=part.actors,
                initial_size=part.actors,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            num_cpus=part.actor_cpus,
            num_gpus=part.actor_gpus,
            **options,
            **cluster.ACTORS,
            **cluster.one_blas_thread(cfg.cca.threads),
        )
    yield from gather(cfg, packs.iter_rows(), {u.id: u for u, _ in todo}, folder, attempt)


def gather(
    cfg: Config, rows: Iterable[dict[str, Any]], units: dict[str, Unit], folder: str, attempt: int
) -> Iterator[Entry | Failure]:
    """Packs in any order -> a unit's verdicts in order, published once its last pack is in.

    Raises ConfigError where a worker met one: every unit would.
    """
    started: dict[str, float] = {}
    gathered: dict[str, dict[int, pa.Table]] = defaultdict(dict)
    lengths: dict[str, int] = {}
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        uid = row["unit"]
        if row["error"].startswith(FATAL):
            raise ConfigError(row["error"].removeprefix(FATAL))
        if row["error"]:
            gathered.pop(uid, None)
            yield Failure(uid, row["error"])
            continue
        started.setdefault(uid, row["started"])
        gathered[uid][row["pack"]] = from_ipc(row["verdicts"])
        sizes[uid] = max(sizes[uid], int(row["bytes_in"]))
        if row["last"]:
            lengths[uid] = row["pack"] + 1
        if lengths.get(uid) == len(gathered[uid]):
            tables = gathered.pop(uid)
            table = pa.concat_tables([tables[i] for i in range(len(tables))])
            path = f"{folder}/{uid}.parquet"
            yield _complete(cfg, units[uid], path, table, time.time() - started[uid], sizes[uid], attempt)


def _complete(
    cfg: Config, unit: Unit, path: str, table: pa.Table, seconds: float, bytes_in: int, attempt: int
) -> Entry:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    artifact = storage.publish(cfg.run.out, path, buffer.getvalue())
    groups = table.group_by(["sensor", "reason"]).aggregate([([], "count_all")]).to_pylist()
    counts = Counter({f"{g['sensor']} {g['reason'] or 'pass'}": g["count_all"] for g in groups})
    return Entry(unit, (artifact,), seconds, bytes_in, attempt, dict(counts))
