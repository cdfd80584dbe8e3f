"""The command line that every job shares: options, config, verbs in turn, one line a verb, exit code.

Exit codes: 0 done (`summary.json` says whether complete or partial); 1 failed; 2 the command or config is wrong;
3 partial, with --strict.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ray.exceptions
import yaml

from sar2eo_dist import __version__, lease, storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, KeptOutOfBounds, NotFound, Sar2EoError, TooManyFailures
from sar2eo_dist.pipeline import cluster, log
from sar2eo_dist.pipeline.stage import Options, Summary, cause, machine, now, submission, write_summary
from sar2eo_dist.pipeline.synthesise import with_world

READERS = ("lineage",)  # jobs that write into no run folder
WRITTEN_BY = "written_by.json"  # in a run folder: the version that wrote there last
STAGES = (
    "synthesise",
    "reference",
    "collect",
    "shard",
    "train",
    "translate",
    "evaluate",
    "grade",
    "study",
    "export",
    "basin",
)
Verb = Callable[[Config, Options], Summary | str]  # what was done, or what was asked for
#: options of one job alone: job -> option -> how argparse takes it; each is a field of Options
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "collect": {
        "reselect": {
            "action": "store_true",
            "help": "choose again from the archive that was collected: no listing, and no image read but of tiles that "
            "have no score yet; with --dry-run, only tell what would enter and leave the training set",
        },
        "recalibrate": {
            "action": "store_true",
            "help": "make a new calibration from all scores (the default is to keep the one that is frozen)",
        },
    },
    "evaluate": {
        "against": {
            "default": "", "metavar": "RUN",
            "help": "another run folder that was evaluated: both side by side in evaluate/against.html",
        },
        "submission": {
            "default": "", "metavar": "ZIP",
            "help": "score this challenge submission against the clear S2 images of data.target's places; nothing else runs",
        },
    },
    "basin": {
        "date": {
            "default": "", "metavar": "YYYY-MM-DD",
            "help": "the day that this run is for, where it comes late or early (default: today, UTC); it names the report "
            "and, with basin.period, decides which mosaics are brought up to date",
        },
    },
    "lineage": {
        "at": {"default": "", "metavar": "LON,LAT", "help": "the pixel at a place, degrees (a western one: --at=-55.2,-4.4)"},
        "pixel": {"default": "", "metavar": "ROW,COL", "help": "the pixel of the mosaic's grid, counted from 0"},
        "mosaic": {"default": "", "metavar": "FOLDER", "help": "below the run folder; default: those of the last translate"},
        "remake": {
            "action": "store_true",
            "help": "make the block and its statistics again, alone, elsewhere; exit 1 where the bytes differ",
        },
    },
    "reference": {
        "candidates": {
            "type": int, "default": 0, "metavar": "N",
            "help": "list and show the N cloudiest tiles of the archive that was collected, for a person to choose from",
        },
    },
}  # fmt: skip


def parser(name: str, about: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog=f"jobs/{name}.py", description=about)
    p.add_argument("--config", default="", help="YAML config (jobs/configs/); defaults without one")
    p.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one value; repeatable")
    p.add_argument("--data", default="", help="MultiEarth folder or URI: sets data.s1, data.s2 and data.target from it")
    p.add_argument("--dry-run", action="store_true", help="plan only: say what would run")
    p.add_argument("--limit", type=int, default=0, metavar="N", help="at most N units of work of each verb")
    p.add_argument("--fresh", action="store_true", help="do finished units again (the default is to resume)")
    p.add_argument("--audit", type=float, nargs="?", const=1.0, default=0.0, metavar="SHARE",
                   help="hash the outputs of finished units again (all, or a random share 0..1), name what is missing or "
                   "changed and make only that again; with --dry-run, name it and exit 1")  # fmt: skip
    p.add_argument("--strict", action="store_true", help="exit 3 where some units were quarantined")
    for option, how in OWN.get(name, {}).items():
        p.add_argument(f"--{option}", **how)
    return p


def main(name: str, verbs: Sequence[Verb], about: str, argv: Sequence[str] | None = None) -> int:
    """Run verbs in turn under one config; print what each did; return the exit code."""
    args = parser(name, about).parse_args(argv)
    own = {option: getattr(args, option) for option in OWN.get(name, {})}
    opts = Options(args.dry_run, args.fresh, args.strict, args.limit, args.audit, **own)
    partial = False
    cluster.interruptible()
    try:
        if args.limit < 0:
            raise ConfigError(f"--limit {args.limit} is negative")
        if not 0 <= args.audit <= 1:
            raise ConfigError(f"--audit {args.audit:g} is no share: from 0 to 1")
        if args.audit and args.fresh:
            raise ConfigError("--audit looks at what --fresh would do again: give one of them")
        cfg = load(args.config or None, [*multiearth(args.data), *args.set])
        cfg = with_world(cfg)
        log.configure(cfg.run.log, submission())
        with contextlib.ExitStack() as stack:
            if not opts.dry_run and name not in READERS and not opts.submission:
                stack.enter_context(
                    lease.held(storage.absolute(cfg.run.out), f"jobs/{name}.py", cfg.run.lease_s, submission())
                )
                not_older(cfg)
                keep(cfg)
            partial = run(cfg, opts, verbs)
    except ConfigError as e:
        log.tell(log.ERROR, "refused", f"config error: {e}", job=name)
        return 2
    except Sar2EoError as e:
        log.tell(log.ERROR, "failed", f"{name} failed: {type(e).__name__}: {e}", job=name)
        return 1
    except ray.exceptions.RayError as e:
        log.tell(log.ERROR, "failed", f"{name} failed in Ray: {cause(e)}", job=name)
        return 1
    except (KeyboardInterrupt, SystemExit):  # the second: Ray's own answer to a SIGTERM while it starts
        log.tell(log.WARNING, "stopped", f"{name} stopped; the same command resumes it", job=name)
        return 130
    return 3 if partial and opts.strict else 0


def run(cfg: Config, opts: Options, verbs: Sequence[Verb]) -> bool:
    """Verbs in turn, a line each; whether any of them is partial."""
    partial = False
    for verb in verbs:
        if verb.__name__ == "synthesise" and not cfg.synthetic.enabled:
            continue
        if verb.__name__ == "collect" and cfg.data.kind == "folder_pair" and len(verbs) > 1:
            continue  # ready pairs need none
        try:
            summary = verb(cfg, opts)
        except BaseException as e:
            # a reselect that fails before it publishes leaves what was selected before (archive.unfinished); a
            # submission, or another run, is none of this one
            stands = opts.submission or opts.against or (opts.reselect and not isinstance(e, KeptOutOfBounds))
            if not opts.dry_run and verb.__name__ in STAGES and not stands:
                failed(cfg, verb.__name__, e)
            raise
        if isinstance(summary, str):
            print(summary, flush=True)
            continue
        partial |= summary.status == "partial"
        print(summary.line(), flush=True)
        if opts.dry_run and len(verbs) > 1 and summary.planned > summary.resumed:
            print("what follows is planned from its results: run it first")
            break
        for what, path in summary.outputs.items():
            where = path if what == "world" else storage.join(cfg.run.out, path)
            print(f"  {what:16s} {where}", flush=True)
    return partial


def failed(cfg: Config, stage: str, e: BaseException) -> None:
    """Leave a summary that says `failed` (or `stopped`), so that no later verb, and no scheduler, trusts an earlier run's."""
    stopped = isinstance(e, KeyboardInterrupt | SystemExit)
    reason = {
        "unit": "",
        "key": stage,
        "reason": "stopped; the same command resumes" if stopped else f"{type(e).__name__}: {e}",
    }
    try:
        if lease.taken(cfg.run.out):  # by a job that has its own summaries to write
            return
        uri = storage.join(cfg.run.out, stage, "summary.json")
        there = storage.exists(uri)
        told = there and json.loads(storage.read_bytes(uri)).get("status") == "failed"  # with more to tell
        if (isinstance(e, TooManyFailures) and told) or (isinstance(e, ConfigError) and not there):
            return
        write_summary(
            cfg,
            Summary(
                stage,
                "stopped" if stopped else "failed",
                quarantined=[reason],
                started=now(),
                ended=now(),
                machine=machine(),
            ),
        )
    except Sar2EoError as other:
        print(f"could not write {stage}/summary.json: {other}", file=sys.stderr)


def not_older(cfg: Config) -> None:
    """Refuse to write, with an older image, what a newer one began: templates, tables and ledger may mean other things.

    Raises ConfigError.
    """
    if written_by(cfg.run.out) != __version__:
        storage.put(storage.join(cfg.run.out, WRITTEN_BY), json.dumps({"sar2eo_dist": __version__}).encode())


def written_by(root: str) -> str:
    """The version that has written a run folder last, "" for none. Raises ConfigError where it is newer than this one."""
    last = ""
    with contextlib.suppress(NotFound):
        last = str(json.loads(storage.read_bytes(storage.join(root, WRITTEN_BY)))["sar2eo_dist"])
    if last and _order(last) > _order(__version__):
        raise ConfigError(
            f"this is sar2eo_dist {__version__}, and {last} has written this run folder: use its image or a newer one, or "
            f"another run.out: {root}"
        )
    return last


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def keep(cfg: Config) -> None:
    """The resolved config beside its results."""
    text = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)
    storage.put(storage.join(cfg.run.out, "config.yaml"), text.encode())


def multiearth(root: str) -> list[str]:
    """Overrides for a MultiEarth folder: TIFF folders sent1 and sent2 where it has them, else its NetCDF files.

    Raises ConfigError where it holds neither.
    """
    if not root:
        return []
    names = [i.uri for i in storage.list_files(storage.absolute(root))]
    netcdf = {
        s: next((u for u in names if storage.name(u).startswith(f"sent{s}") and u.endswith(".nc")), "") for s in "12"
    }
    target = next((u for u in names if storage.name(u) == "target.nc"), netcdf["2"])
    found = {"kind": "multiearth_tiff", "s1": "", "s2": "", "target": target}
    if all(any(f"/sent{s}/" in u for u in names) for s in "12"):
        found |= {"s1": storage.join(root, "sent1"), "s2": storage.join(root, "sent2")}
    elif all(netcdf.values()):
        found |= {"kind": "multiearth_netcdf", "s1": netcdf["1"], "s2": netcdf["2"]}
    else:
        raise ConfigError(f"no sent1/ and sent2/ folders and no sent1*.nc and sent2*.nc files in {root}")
    return [f"data.{k}={v}" for k, v in found.items()]
