"""The pre-flight check: OK, WARN or FAIL line by line, each with its remedy, before a job meets it in the night."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.pipeline import installed
from sar2eo_dist.pipeline.installed import Line


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing fails, 1 something does, 2 the command or config is wrong."""
    p = argparse.ArgumentParser(
        prog="jobs/check.py", description="Does it run the first time? Looks at this machine and, where a config is given, "
        "at its store, inputs and cluster. Exit 0, or 1 where something fails.",
    )  # fmt: skip
    p.add_argument("--config", default="", help="the job's YAML config; without one, this machine alone is looked at")
    p.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one value; repeatable")
    p.add_argument("--data", default="", help="MultiEarth folder or URI, as for a job")
    args = p.parse_args(argv)
    begin = time.monotonic()
    found = told(installed.check())
    if args.config or args.set or args.data:
        if found["FAIL"]:
            return ended(found, begin)  # what is missing here would only fail once more below
        # what this needs has just been seen to import
        from sar2eo_dist.config import load
        from sar2eo_dist.pipeline import job, preflight

        try:
            cfg = load(args.config or None, [*job.multiearth(args.data), *args.set])
        except ConfigError as e:
            print(f"config error: {e}", file=sys.stderr)
            return 2
        except Sar2EoError as e:
            found += told([Line("FAIL", "--data", str(e))])
        else:
            found += told(preflight.check(cfg))
    return ended(found, begin)


def told(lines: Iterable[Line]) -> Counter[str]:
    """Print each line as it comes; how many of each mark."""
    found: Counter[str] = Counter()
    for line in lines:
        print(line, flush=True)
        found[line.mark] += 1
    return found


def ended(found: Counter[str], begin: float) -> int:
    seconds = time.monotonic() - begin
    print(f"check: {found['OK']} OK, {found['WARN']} WARN, {found['FAIL']} FAIL in {seconds:.1f} s", flush=True)
    return 1 if found["FAIL"] else 0
