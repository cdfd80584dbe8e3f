"""One verb of the pipeline as units of work: plan minus ledger, attempts, quarantine, summary, exit code."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
import platform
import random
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray.exceptions

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, Sar2EoError, TooManyFailures, Unavailable
from sar2eo_dist.ledger import Entry, Fault, Ledger, outputs_digest, require
from sar2eo_dist.pipeline import commit, log, told
from sar2eo_dist.pipeline.progress import Meter
from sar2eo_dist.records import Unit
from sar2eo_dist.report.text import human_bytes, human_seconds

FATAL = re.compile(r"sar2eo_dist\.errors\.(?:ConfigError|ReferenceSetError): (.+)")  # in what Ray says of a dead actor
SHOWN = 20  # faults named on the terminal
OUTAGE_S = 180.0  # where for so long every unit fails for want of the store, the run stops, to be resumed


@dataclass(frozen=True, slots=True)
class Options:
    """How a verb is run this time; none of it changes a result.

    limit: at most so many units (0 = all); audit: share of the finished units whose outputs are hashed again (0 = none);
    of collect alone: reselect: choose again from the stored archive, recalibrate: make a new calibration;
    of reference alone: candidates: show so many tiles of the archive instead of building the set;
    of evaluate alone: against: another run folder to compare with; submission: a challenge zip to score;
    of basin alone: date: the day it is run for ("" = today, UTC);
    of lineage alone: at ("lon,lat") or pixel ("row,col"), mosaic (folder), remake: make the block again and compare.
    """

    dry_run: bool = False
    fresh: bool = False
    strict: bool = False
    limit: int = 0
    audit: float = 0.0
    reselect: bool = False
    recalibrate: bool = False
    candidates: int = 0
    against: str = ""
    submission: str = ""
    at: str = ""
    pixel: str = ""
    mosaic: str = ""
    remake: bool = False
    date: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt of a unit that ended in an error, in words."""

    unit_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a verb did; written as `<stage>/summary.json`, the page that schedulers judge by."""

    stage: str
    status: str  # complete | partial | failed | stopped | planned
    planned: int = 0
    done: int = 0
    resumed: int = 0
    quarantined: list[dict[str, str]] = field(default_factory=list)
    faults: list[dict[str, str]] = field(default_factory=list)  # outputs found missing or changed, and made again
    seconds: float = 0.0  # of this invocation
    unit_seconds: float = 0.0  # summed over the units, whenever they ran
    steps: dict[str, float] = field(default_factory=dict)  # of these, what ran as steps apart, and stages beside it
    bytes_in: int = 0
    bytes_out: int = 0
    puts: int = 0  # objects written: outputs and the units' ledger entries
    start_seconds: float = 0.0  # until the first result came, without its unit's own seconds: Ray, workers, models
    commit_seconds: float = 0.0  # the driver's, for the ledger entry of one unit: several are on their way at a time
    started: str = ""
    ended: str = ""
    digest: str = ""  # of all outputs: equal for equal results
    counts: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    submission: str = ""  # of the Ray job that wrote it

    def beside(self, *parts: Summary) -> Summary:
        """With what other stages of the same verb have spent: seconds (without steps of their own, under their name), bytes
        and objects. What is judged stays this stage's."""
        all_of = (self, *parts)
        steps = [self.steps, *(p.steps or {p.stage: p.unit_seconds} for p in parts if p.unit_seconds)]
        return dataclasses.replace(
            self, unit_seconds=sum(p.unit_seconds for p in all_of), steps=added(steps),
            bytes_in=sum(p.bytes_in for p in all_of), bytes_out=sum(p.bytes_out for p in all_of),
            puts=sum(p.puts for p in all_of),
        )  # fmt: skip

    def line(self) -> str:
        """One line for a person."""
        if self.status == "planned":
            return f"{self.stage}: would run {self.planned - self.resumed} of {self.planned} units"
        what = f"{self.done}/{self.planned} units"
        if self.resumed:
            what += f" ({'all' if self.resumed == self.planned else self.resumed} found done)"
        bad = f", {len(self.quarantined)} quarantined" if self.quarantined else ""
        counts = ", ".join(f"{v:,} {k}" for k, v in self.counts.items() if v)
        return (
            f"{self.stage}: {self.status}, {what}{bad} in {human_seconds(self.seconds)}, "
            f"{human_bytes(self.bytes_out)} written" + (f" | {counts}" if counts else "")
        )


#: runs the units handed to it (in any order) and yields an Entry (a completion) or a Failure for each
Execute = Callable[[Sequence[Unit], int], Iterator[Entry | Failure]]


def added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Sums by name."""
    names = sorted({k for p in parts for k in p})
    return {k: sum(p.get(k, 0.0) for p in parts) for k in names}


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def run_stage(
    cfg: Config, opts: Options, stage: str, units: Sequence[Unit], execute: Execute, noun: str, of: int = 0
) -> Summary:
    """Run what the ledger does not have, retry what fails, quarantine what keeps failing.

    of: units of the whole work that these are what is left of, for the tolerance; 0: these are all. Raises TooManyFailures
    where more than `run.tolerance` of the plan is quarantined, Unavailable where the store is down.
    """
    ledger, started, clock = Ledger(cfg.run.out), now(), time.monotonic()
    log.configure(cfg.run.log, submission())
    planned = list(units)[: opts.limit] if opts.limit else list(units)
    if opts.fresh and not opts.dry_run:
        ledger.forget(planned)
    finished = set() if opts.fresh else ledger.done(stage)
    faults: list[Fault] = []
    if not opts.dry_run or opts.audit:
        faults = _damaged(ledger, [u for u in planned if u.id in finished], opts)
        finished -= {f.unit.id for f in faults}
    todo = [u for u in planned if u.id not in finished]
    resumed = len(planned) - len(todo)
    if opts.dry_run:
        return Summary(stage, "planned", len(planned), 0, resumed, started=started)
    if todo:
        storage.sweep(cfg.run.out)
    tell = told.Told(cfg, stage, planned, resumed)
    attempts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    crashed = False
    waited, commits = 0.0, list[float]()
    down: float | None = None  # since when every result says that the store does not answer
    with Meter(stage, len(todo), noun) as meter:
        while todo:
            for unit in todo:
                attempts[unit.id] += 1
                tell.begun(unit, attempts[unit.id])
            for group in [[u] for u in todo] if crashed else [todo]:  # after a crash, no unit shares another's fate
                try:
                    begin = time.monotonic()
                    results = execute(group, max(attempts[u.id] for u in group))
                    for result, took in commit.committed(ledger, results):
                        if not isinstance(result, Failure) or not result.reason.startswith(Unavailable.__name__):
                            down = None
                        elif down is None:
                            down = time.monotonic()
                            tell.outage(result.reason)
                        if isinstance(result, Failure):
                            reasons[result.unit_id] = result.reason
                            tell.failed(result.unit_id, result.reason)
                            if down is not None and time.monotonic() - down > OUTAGE_S:
                                text = f"no unit was answered for {human_seconds(OUTAGE_S)}; when the store is back, resume"
                                raise Unavailable(cfg.run.out, f"{text} with the same command. {result.reason}")
                        else:
                            waited = waited or max(1e-9, time.monotonic() - begin - took - result.seconds)
                            commits.append(took / commit.AT_A_TIME)
                            tell.committed(result)
                            reasons.pop(result.unit.id, None)
                            finished.add(result.unit.id)
                            meter.advance()
                except ray.exceptions.RayError as e:
                    if fatal := FATAL.search(str(e)):  # every worker would meet it
                        raise ConfigError(fatal[1]) from e
                    crashed = True
                    died = f"its worker died: {cause(e)}"
                    for unit in group:
                        reasons.setdefault(unit.id, died)
                    tell.died([u for u in group if u.id not in finished], died)
            todo = [u for u in todo if u.id not in finished and attempts[u.id] < cfg.run.max_attempts]
    quarantined = [
        {"unit": u.id, "key": u.key, "reason": reasons.get(u.id, "no result: its worker died")}
        for u in planned if u.id not in finished
    ]  # fmt: skip
    tell.gave_up(quarantined)
    entries = ledger.entries([u for u in planned if u.id in finished])
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.counts)
    summary = Summary(
        stage, "partial" if quarantined else "complete", len(planned), len(entries), resumed, quarantined,
        [{"unit": f.unit.key, "path": f.path, "problem": f.problem} for f in faults],
        time.monotonic() - clock, sum(e.seconds for e in entries), added([e.steps for e in entries]),
        sum(e.bytes_in for e in entries), sum(e.bytes_out for e in entries), sum(len(e.outputs) + 1 for e in entries), waited,
        sum(commits) / max(len(commits), 1), started, now(), outputs_digest(entries), dict(sorted(counts.items())), {},
        machine(),
    )  # fmt: skip
    tell.ended(summary.status, summary.seconds)
    if len(quarantined) > cfg.run.tolerance * max(of, len(planned)):
        write_summary(cfg, dataclasses.replace(summary, status="failed"))
        first = quarantined[0]
        raise TooManyFailures(
            f"{stage}: {len(quarantined)} of {len(planned)} units failed {cfg.run.max_attempts} times, more than "
            f"run.tolerance {cfg.run.tolerance:g} allows. The first, {first['key']}: {first['reason']}"
        )
    return summary


def _damaged(ledger: Ledger, units: Sequence[Unit], opts: Options) -> list[Fault]:
    """Outputs of completed units that are missing or of another size; with `audit`, of another sha256 too.

    Their units' entries are taken back, so that they run again. A dry run takes nothing back and raises AuditError.
    """
    faults = ledger.audit(units, rehash=False)
    if opts.audit and units:
        some = units if opts.audit >= 1 else random.sample(units, math.ceil(opts.audit * len(units)))
        known = {f.path for f in faults}
        faults += [f for f in ledger.audit(some, rehash=True) if f.path not in known]
        print(f"{units[0].stage}: outputs of {len(some)} of {len(units)} units hashed again, {len(faults)} faults")
    if opts.dry_run:
        require(faults)
    for fault in faults[:SHOWN]:
        text = f"{fault.unit.stage}: {fault.path} {fault.problem}; made again"
        log.tell(log.WARNING, "damaged", text, stage=fault.unit.stage, unit=fault.unit.id, key=fault.unit.key)
    if len(faults) > SHOWN:
        log.tell(log.WARNING, "damaged", f"... and {len(faults) - SHOWN} more, all in summary.json")
    ledger.forget({f.unit for f in faults})
    return faults


def cause(e: BaseException) -> str:
    """The innermost error of what Ray wrapped, in one line."""
    inner = getattr(e, "cause", None) or e.__cause__ or e
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[-1] if lines else ''}"


def attempt(unit: Unit, work: Callable[[], Entry]) -> Entry | Failure:
    """Run one unit's work in a worker; any error becomes a Failure, so that one bad unit never takes others along."""
    try:
        return work()
    except Sar2EoError as e:
        return Failure(unit.id, f"{type(e).__name__}: {e}")
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        return Failure(unit.id, f"{type(e).__name__}: {e} ({os.path.basename(where.filename)}:{where.lineno})")


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "system": platform.platform(), "python": sys.version.split()[0]}


def submission() -> str:
    """The submission id that this driver was started with by `ray job submit` (or KubeRay); "" of any other process."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return str((job.get("metadata") or {}).get("job_submission_id", ""))


def write_summary(cfg: Config, summary: Summary) -> Summary:
    """Publish `<stage>/summary.json`."""
    summary = dataclasses.replace(summary, submission=submission())
    data = json.dumps(dataclasses.asdict(summary), indent=1, sort_keys=True).encode()
    storage.put(storage.join(cfg.run.out, summary.stage, "summary.json"), data)
    told.summary(cfg, summary.stage, summary.status, summary.counts)
    return summary


def read_summary(cfg: Config, stage: str) -> dict[str, Any]:
    """The summary of an earlier stage. Raises Sar2EoError that says which job to run first."""
    uri = storage.join(cfg.run.out, stage, "summary.json")
    if not storage.exists(uri):
        raise Sar2EoError(f"{uri} is not there: run jobs/{stage}.py with the same config first")
    tree: dict[str, Any] = json.loads(storage.read_bytes(uri))
    if tree["status"] not in ("complete", "partial"):
        raise Sar2EoError(f"{uri} says {tree['status']!r}: run jobs/{stage}.py again")
    return tree
