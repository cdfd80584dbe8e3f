"""Completions on their way to the ledger: several at a time, since a store takes tens of milliseconds for each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sar2eo_dist.ledger import Entry, Ledger

AT_A_TIME = 16

F = TypeVar("F")


def committed(ledger: Ledger, results: Iterable[Entry | F]) -> Iterator[tuple[Entry | F, float]]:
    """(result, seconds of its commit) in the order in which results come: an Entry once it is in the ledger, all else as it is.

    What came before an error of `results` is committed and told before that error is raised. Raises what a commit raises.
    """

    def commit(entry: Entry) -> float:
        begin = time.monotonic()
        ledger.commit(entry)
        return time.monotonic() - begin

    flying: deque[tuple[Entry, Future[float]]] = deque()
    error: BaseException | None = None
    source = iter(results)
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="commit") as pool:
        while True:
            try:
                result = next(source)
            except StopIteration:
                break
            except BaseException as e:
                error = e
                break
            if isinstance(result, Entry):
                flying.append((result, pool.submit(commit, result)))
            else:
                yield result, 0.0
            while flying and (flying[0][1].done() or len(flying) >= AT_A_TIME):
                entry, future = flying.popleft()
                yield entry, future.result()
        for entry, future in flying:
            yield entry, future.result()
    if error:
        raise error
