"""basin: the scheduled run. New scenes since the last one, the blocks that they touch, grades, a dated report.

    scenes listed -> blocks they touch translated -> S2 of later days collected, mosaics graded -> basin/<date>/report.html

Everything that it does are the other verbs' units of work, so it is safe to run twice, to be killed and to be late: what is
done is found done, and the mosaic depends on the scenes alone. Its own memory is what the last finished run left in
`basin/last.json` and the tables beside it, written last of all: a killed run is told as part of the next one.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, NotFound, NothingYet
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline import job, mosaics, scene_list
from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.grade import grade
from sar2eo_dist.pipeline.stage import Options, Summary, machine, now, submission, write_summary
from sar2eo_dist.pipeline.translate import translate
from sar2eo_dist.records import Unit, digest
from sar2eo_dist.report import basin as report
from sar2eo_dist.report.basin import Changes, Mosaic, Night
from sar2eo_dist.sources.ranged import ranged

STAGE = "basin"
LAST, HISTORY = f"{STAGE}/last.json", f"{STAGE}/history.jsonl"
MONTHS = {"month": 1, "quarter": 3, "year": 12}
#: a row a block of all mosaics: what the run before knows of it; made: digest of all that the block's unit wrote
BLOCKS = pa.schema([
    ("mosaic", pa.string()), ("row", pa.int64()), ("col", pa.int64()), ("unit", pa.string()), ("made", pa.string()),
    ("valid", pa.int64()), ("seconds", pa.float64()), ("compute", pa.float64()), ("bytes", pa.int64()), ("puts", pa.int64()),
    ("gpu", pa.bool_()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """What the last finished run left. folder: of its report, "" where there was none."""

    folder: str
    scenes: dict[str, str]
    blocks: pa.Table


def basin(cfg: Config, opts: Options) -> Summary:
    """Run the verb. Counts: scenes new, changed, withdrawn; blocks of all mosaics, `blocks made` new or with other bytes since
    the last finished run. Raises what the verbs in it raise; ConfigError: no data.scenes, an impossible --date."""
    clock, started, root = time.monotonic(), now(), storage.absolute(cfg.run.out)
    if not cfg.data.scenes:
        raise ConfigError("the scheduled run wants data.scenes: where the S1 scenes of the basin are listed")
    day = _day(opts.date)
    made: list[tuple[Config, Summary]] = []
    for period in periods(cfg, day):
        try:
            made.append((period, _verb(translate, period, opts)))
        except NothingYet as e:
            print(f"{STAGE}: {e}; nothing to do for it yet", flush=True)
    if opts.dry_run:
        of = sum(s.planned for _, s in made)
        return Summary(STAGE, "planned", of, 0, sum(s.resumed for _, s in made), started=started)
    before = _known(root)
    known = {*before.blocks["mosaic"].to_pylist(), *(f for _, s in made for f in _folders(s))}
    graded = _graded(cfg, opts, [storage.join(root, folder) for folder in sorted(known)])
    scenes = _scenes(root) if made else before.scenes
    tables = [_blocks(root, s, before.blocks) for _, s in made]
    blocks = pa.concat_tables([_others(before.blocks, tables), *tables])
    changes = compare(before, scenes, blocks)
    summaries = [s for _, s in made] + ([graded] if graded else [])
    bad = [q for s in summaries for q in s.quarantined]
    counts = {
        "scenes": len(scenes), "scenes unusable": _unusable(root) if made else 0, "scenes new": len(changes.new),
        "scenes changed": len(changes.changed), "scenes withdrawn": len(changes.withdrawn), "blocks": len(blocks),
        "blocks made": len(changes.blocks), "tiles graded": graded.counts.get("tiles graded", 0) if graded else 0,
    }  # fmt: skip
    folder = _folder(before.folder, day, changes)
    outputs = {k: v for _, s in made for k, v in s.outputs.items() if k.partition(" ")[0] in ("mosaic", "quicklook")}
    summary = Summary(
        stage=STAGE,
        status="partial" if bad else "complete",
        planned=sum(s.planned for _, s in made),
        done=sum(s.done for _, s in made),
        resumed=sum(s.resumed for _, s in made),
        quarantined=bad,
        faults=[f for s in summaries for f in s.faults],
        seconds=time.monotonic() - clock,
        unit_seconds=sum(b["seconds"] for b in changes.blocks),
        bytes_out=sum(b["bytes"] for b in changes.blocks),
        started=started,
        ended=now(),
        digest=digest([s.digest for _, s in made]),
        counts=counts,
        outputs=outputs | {"report": f"{folder}/{report.FILE}", "changes": f"{folder}/changes.csv"},
        machine=machine(),
    )
    if folder != before.folder:
        _leave(cfg, root, folder, day, summary, changes, [s for _, s in made])
        _remember(root, folder, scenes, blocks)
    return write_summary(cfg, summary)


# what is to do --------------------------------------------------------------------------------------------------------


def _day(date: str) -> dt.date:
    try:
        return dt.date.fromisoformat(date) if date else dt.datetime.now(dt.UTC).date()
    except ValueError as e:
        raise ConfigError(f"--date {date}: {e}; it is written YYYY-MM-DD") from e


def periods(cfg: Config, day: dt.date) -> list[Config]:
    """The configs of the mosaics to bring up to date, oldest first: of the period of the day and of those that ended at most
    `grace_days` before it; the given config where periods are none."""
    if cfg.basin.period == "none":
        return [cfg]
    size = MONTHS[cfg.basin.period]
    out: list[Config] = []
    first = day.replace(month=(day.month - 1) // size * size + 1, day=1)
    while True:
        end = _months_after(first, size) - dt.timedelta(1)
        if end < day - dt.timedelta(cfg.basin.grace_days):
            return out[::-1]
        out.append(cfg.model_copy(update={"mosaic": cfg.mosaic.model_copy(update={"start": first, "end": end})}))
        first = _months_after(first, -size)


def _months_after(day: dt.date, months: int) -> dt.date:
    years, month = divmod(day.month - 1 + months, 12)
    return day.replace(year=day.year + years, month=month + 1)


def _verb(verb: Callable[[Config, Options], Summary], cfg: Config, opts: Options) -> Summary:
    """Another verb within this one, told and judged as if it ran by itself."""
    try:
        summary = verb(cfg, opts)
    except NothingYet:
        raise
    except BaseException as e:
        if not opts.dry_run:
            job.failed(cfg, verb.__name__, e)
        raise
    print(summary.line(), flush=True)
    return summary


def _graded(cfg: Config, opts: Options, folders: Sequence[str]) -> Summary | None:
    """Clear S2 tiles of later days, and what the mosaics are worth beside them, also those of periods that are over; None where
    there are none (yet)."""
    if not cfg.data.s2 or not folders:
        return None
    if not cfg.grade.mosaics:
        cfg = cfg.model_copy(update={"grade": cfg.grade.model_copy(update={"mosaics": tuple(folders)})})
    try:
        _verb(collect, cfg, opts)
        return _verb(grade, cfg, opts)
    except NothingYet as e:
        print(f"{STAGE}: {e}", flush=True)
        return None


# what has changed -----------------------------------------------------------------------------------------------------


def _known(root: str) -> Known:
    try:
        last = json.loads(storage.read_bytes(storage.join(root, LAST)))
    except NotFound:
        return Known("", {}, BLOCKS.empty_table())
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, last[k])))) for k in ("scenes", "blocks")]
    return Known(last["folder"], dict(zip(*tables[0].to_pydict().values(), strict=True)), tables[1])


def _scenes(root: str) -> dict[str, str]:
    """URI -> digest of the scenes as `translate` has just listed them."""
    with ranged(storage.join(root, scene_list.FOLDER, "scenes.parquet")) as f:
        table = pq.read_table(f, columns=["uris", "digest"])
    return {uris[0]: mark for uris, mark in zip(table["uris"].to_pylist(), table["digest"].to_pylist(), strict=True)}


def _unusable(root: str) -> int:
    with ranged(storage.join(root, scene_list.FOLDER, "rejected.parquet")) as f:
        return int(pq.ParquetFile(f).metadata.num_rows)


def _blocks(root: str, summary: Summary, before: pa.Table) -> pa.Table:
    """BLOCKS of the mosaics that translate brought up to date; only the entries of units that are new are read."""
    ledger, rows = Ledger(root), []
    known = {r["unit"]: r for r in before.to_pylist()}
    done = ledger.done(mosaics.STAGE)
    for folder in _folders(summary):
        with ranged(storage.join(root, folder, mosaics.TABLE)) as f:
            table = pq.read_table(f, filters=[("what", "=", "block")])
        plan = [(r, Unit(*(r[k] for k in ("stage", "key", "fingerprint", "inputs")))) for r in table.to_pylist()]
        plan = [(r, u) for r, u in plan if u.id in done]
        fresh = [u for _, u in plan if u.id not in known]
        entries = dict(zip((u.id for u in fresh), ledger.entries(fresh), strict=True))
        for r, u in plan:
            e = entries.get(u.id)
            rows.append(known[u.id] if e is None else {
                "mosaic": folder, "row": r["row"], "col": r["col"], "unit": u.id,
                "made": digest([a.sha256 for a in e.outputs]), "valid": e.counts.get("valid pixels", 0),
                "seconds": e.seconds, "compute": e.steps.get("compute", e.seconds), "bytes": e.bytes_out,
                "puts": len(e.outputs) + 1, "gpu": bool(e.counts.get("blocks on a GPU")),
            })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=BLOCKS)


def _folders(summary: Summary) -> list[str]:
    found = (v.rpartition("/")[0] for k, v in summary.outputs.items() if k.partition(" ")[0] == "mosaic")
    return sorted(set(found))


def _others(before: pa.Table, now_made: Sequence[pa.Table]) -> pa.Table:
    """Blocks of mosaics that this run did not look at: of earlier periods."""
    seen = pa.array(sorted({m for t in now_made for m in t["mosaic"].to_pylist()}), pa.string())
    return before.filter(pc.invert(pc.is_in(before["mosaic"], seen)))


def compare(before: Known, scenes: dict[str, str], blocks: pa.Table) -> Changes:
    """What differs from the last finished run."""
    old = {(r["mosaic"], r["row"], r["col"]): r["made"] for r in before.blocks.to_pylist()}
    made = [r for r in blocks.to_pylist() if old.get((r["mosaic"], r["row"], r["col"])) != r["made"]]
    return Changes(
        tuple(sorted(scenes.keys() - before.scenes.keys())),
        tuple(sorted(u for u, mark in scenes.items() if before.scenes.get(u, mark) != mark)),
        tuple(sorted(before.scenes.keys() - scenes.keys())),
        tuple(made),
    )


# what is left ---------------------------------------------------------------------------------------------------------


def _folder(last: str, day: dt.date, changes: Changes) -> str:
    """Where this run's report goes: a folder a day; the finished one of a day stays as it is unless there is news."""
    today = f"{STAGE}/{day.isoformat()}"
    again, _, number = last.partition(".")
    if again != today:
        return today
    return f"{today}.{int(number or 1) + 1}" if changes.any else last


def _leave(
    cfg: Config, root: str, folder: str, day: dt.date, summary: Summary, changes: Changes, made: Sequence[Summary]
) -> None:
    """The dated folder: report, summary, the list of changes; and the run's line in the history."""
    told = io.StringIO(newline="")
    table = csv.writer(told, lineterminator="\n")
    table.writerow(("what", "change", "name", "row", "col", "km2"))
    for how in ("new", "changed", "withdrawn"):
        table.writerows(("scene", how, uri, "", "", "") for uri in getattr(changes, how))
    area = cfg.mosaic.pixel**2 / 1e6
    table.writerows(
        ("block", "made", b["mosaic"], b["row"], b["col"], f"{b['valid'] * area:.3f}") for b in changes.blocks
    )
    storage.put(storage.join(root, folder, "changes.csv"), told.getvalue().encode())
    row = {
        "folder": folder, "date": day.isoformat(), "started": summary.started, "ended": summary.ended,
        "status": summary.status, "seconds": round(summary.seconds, 1), "unit_seconds": round(summary.unit_seconds, 1),
        "bytes_out": summary.bytes_out, "km2": round(sum(b["valid"] for b in changes.blocks) * area, 3),
        "submission": submission(), "digest": summary.digest, "counts": summary.counts,
        "spent": report.spent(cfg.model_dump(mode="json"), changes),
    }  # fmt: skip
    try:
        lines = storage.read_bytes(storage.join(root, HISTORY)).decode().splitlines()
    except NotFound:
        lines = []
    history = [r for r in map(json.loads, lines) if r["folder"] != folder] + [row]
    maps = [_map(root, folder_, changes) for s in made for folder_ in _folders(s)]
    page = report.build(root, Night(day, folder, summary.status, history, changes, maps, summary.quarantined))
    storage.put(storage.join(root, folder, report.FILE), page)
    storage.put(storage.join(root, folder, "summary.json"), json.dumps(row, indent=1, sort_keys=True).encode())
    storage.put(storage.join(root, HISTORY), "".join(json.dumps(r, sort_keys=True) + "\n" for r in history).encode())


def _map(root: str, folder: str, changes: Changes) -> Mosaic:
    with ranged(storage.join(root, folder, mosaics.TABLE)) as f:
        table = pq.read_table(f, columns=["row", "col"], filters=[("what", "=", "block")])
    places = tuple(zip(table["row"].to_pylist(), table["col"].to_pylist(), strict=True))
    return Mosaic(folder, places, tuple((b["row"], b["col"]) for b in changes.blocks if b["mosaic"] == folder))


def _remember(root: str, folder: str, scenes: dict[str, str], blocks: pa.Table) -> None:
    """The tables first, under names of their own; then, as the very last thing, which of them count."""
    names = {k: f"{folder}/{k}.parquet" for k in ("scenes", "blocks")}
    rows = pa.table({"uri": pa.array(scenes.keys(), pa.string()), "digest": pa.array(scenes.values(), pa.string())})
    scene_list.put_table(root, names["scenes"], rows)
    scene_list.put_table(root, names["blocks"], blocks)
    storage.put(storage.join(root, LAST), json.dumps(names | {"folder": folder}, indent=1).encode())
