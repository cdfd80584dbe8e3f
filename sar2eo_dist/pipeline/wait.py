"""Wait for a job that `ray job submit --no-wait` (or KubeRay) started, and judge it by what it left.

Ray reports whatever failed as 1 and a stopped job as 0, and knows nothing of partial results: `summary.json` does, and names
the submission that wrote it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from sar2eo_dist import storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, NotFound, Sar2EoError
from sar2eo_dist.pipeline.job import STAGES, multiearth, parser
from sar2eo_dist.report.text import human_seconds

EVERY_S = 2.0
TOLD_S = 60.0  # between two lines of "still running"
GONE_S = 120.0  # without an answer of the cluster, after which what lies in the store is all there is
TAIL = 15  # lines of a failed job's log that are shown
#: exit codes: of done (and partial without --strict), failed, partial with --strict, out of time, stopped
DONE, FAILED, PARTIAL, LATE, STOPPED = 0, 1, 3, 124, 130


@dataclass(frozen=True, slots=True)
class Job:
    """What was submitted: name of the file in jobs/, and its arguments."""

    name: str
    args: tuple[str, ...]


def entry(command: str) -> Job | None:
    """The last job in an entrypoint such as `python jobs/check.py && python jobs/translate.py --config a.yaml`; None: none."""
    words = shlex.shlex(command, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found = None
    for word in words:
        folder, _, name = word.rpartition("/")
        if name.endswith(".py") and folder.rpartition("/")[2] == "jobs":
            found, own = Job(name[:-3], ()), True
        elif set(word) <= set("();<>|&"):
            own = False
        elif found and own:
            found = Job(found.name, (*found.args, word))
    return found


def judge(cfg: Config, name: str, submission: str, ray_says: str, strict: bool) -> tuple[int, list[str]]:
    """(exit code, lines for a person) of an ended job. ray_says: its Ray status, "" where Ray could not be asked."""
    found: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        try:
            tree = json.loads(storage.read_bytes(storage.join(cfg.run.out, stage, "summary.json")))
        except NotFound:
            continue
        if tree.get("submission") == submission:
            found[stage] = tree
    lines = []
    for stage, tree in found.items():
        bad = tree["quarantined"]
        lines.append(f"{stage}: {tree['status']}, {tree['done']} of {tree['planned']} units, {len(bad)} quarantined")
        lines += [f"  {q['key']}: {q['reason']}" for q in bad[:3]]
    statuses = {tree["status"] for tree in found.values()}
    last = {"demo": "evaluate"}.get(name, name)
    if "failed" in statuses or ray_says == JobStatus.FAILED:
        return FAILED, [*lines, f"{name}: failed"]
    if "stopped" in statuses or ray_says == JobStatus.STOPPED:
        return STOPPED, [*lines, f"{name}: stopped; the same command resumes it"]
    if not ray_says and last not in found:
        return FAILED, [
            *lines,
            f"{name}: the cluster is gone, and the job left no {last}/summary.json: submit it again",
        ]
    if "partial" in statuses:
        return (PARTIAL if strict else DONE), [*lines, f"{name}: partial"]
    return DONE, [*lines, f"{name}: complete"]


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="jobs/wait.py", description="Wait for a submitted job and judge it by its summary.json: exit 0 done, 1 failed, "
        "3 partial (with --strict), 124 out of time, 130 stopped.",
    )  # fmt: skip
    p.add_argument("submission", help="the submission id")
    p.add_argument(
        "--address",
        default=None,
        help="of the Ray dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine",
    )
    p.add_argument("--config", default="", help="the job's config where it lies elsewhere than for the job")
    p.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one value, after the job's own"
    )
    p.add_argument(
        "--timeout", type=float, default=0.0, metavar="S", help="give up after so many seconds; the job goes on"
    )
    p.add_argument("--strict", action="store_true", help="exit 3 where some units were quarantined")
    args = p.parse_args(argv)
    try:
        return wait(args)
    except ConfigError as e:
        print(f"config error: {e}", file=sys.stderr)
        return 2
    except Sar2EoError as e:
        print(f"wait failed: {type(e).__name__}: {e}", file=sys.stderr)
        return FAILED


def wait(args: argparse.Namespace) -> int:
    client = connect(args.address)
    begin = told = heard = time.monotonic()
    job, status, tail = None, "", ""
    while True:
        try:
            info = client.get_job_info(args.submission)
            job, status, heard = entry(info.entrypoint), str(info.status), time.monotonic()
        except (RuntimeError, OSError) as e:
            if "404" in str(e):
                raise ConfigError(f"no job {args.submission} on this cluster: `ray job list` names them") from e
            if job is None:
                raise Sar2EoError(f"{type(e).__name__}: {e}") from e
            if time.monotonic() - heard > GONE_S:
                status = ""
                break
        if JobStatus(status).is_terminal():
            if status == JobStatus.FAILED:
                tail = client.get_job_logs(args.submission)
            break
        if args.timeout and time.monotonic() - begin > args.timeout:
            print(f"{args.submission} still {status} after {human_seconds(args.timeout)}: it goes on", file=sys.stderr)
            return LATE
        if time.monotonic() - told > TOLD_S:
            told = time.monotonic()
            print(f"{args.submission}: {status} for {human_seconds(told - begin)}", file=sys.stderr, flush=True)
        time.sleep(EVERY_S)
    if job is None:
        raise ConfigError(f"{args.submission} is no job of this project: its entrypoint names no jobs/*.py")
    code, lines = judge(config(job, args), job.name, args.submission, status, args.strict)
    for line in [*tail.splitlines()[-TAIL:], *lines]:
        print(line)
    return code


def connect(address: str | None) -> JobSubmissionClient:
    """Raises Sar2EoError that names the remedy: nobody there, or a token that is missing or wrong."""
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, OSError, AuthenticationError) as e:
        where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
        remedy = "is the head up, and the address that of its dashboard (http://HOST:8265)?"
        if any(word in str(e).lower() for word in ("401", "403", "unauthorized", "token")):
            remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        raise Sar2EoError(f"no Ray jobs server answers at {where} ({e}): {remedy}") from e


def config(job: Job, args: argparse.Namespace) -> Config:
    """The job's own config, by its own command line."""
    own = parser(job.name, "").parse_args(list(job.args))
    return load(args.config or own.config or None, [*multiearth(own.data), *own.set, *args.set])
