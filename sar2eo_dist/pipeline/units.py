"""Map units of work over the cluster with Ray Data: one row a unit, by tasks or by actors that hold a model."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import cluster, driver, metrics
from sar2eo_dist.pipeline.driver import Driver
from sar2eo_dist.pipeline.stage import Failure, attempt
from sar2eo_dist.records import Unit

#: a unit's work: (unit, its small payload of pointers, number of the attempt) -> completion. Runs in a worker.
Work = Callable[[Unit, Any, int], Entry]


class _Rows:
    """Adapts a Work to Ray Data's batches of one row; `make` builds it once a worker (and loads models there)."""

    def __init__(self, make: Callable[[], Work], sender: Driver, network: bool) -> None:
        self.work, self.sender = make(), sender
        self.device = metrics.Device() if network else None

    def __call__(self, batch: pa.Table) -> dict[str, list[bytes]]:
        self.sender.meet()
        out = []
        for cell in batch["row"].to_pylist():
            unit, payload, number = pickle.loads(cell)  # noqa: S301 -- written by this run's own driver
            with self.device.busy(unit.stage) if self.device else contextlib.nullcontext():
                out.append(pickle.dumps(attempt(unit, partial(self.work, unit, payload, number))))
        return {"result": out}


def run(
    work: Work | None,
    todo: Sequence[tuple[Unit, Any]],
    number: int,
    *,
    make: Callable[[], Work] | None = None,
    part: cluster.Share | None = None,
    parallel: int = 0,
) -> Iterator[Entry | Failure]:
    """Results in the order of completion. Tasks call `work`; with `part`, that many actors are made by `make`."""
    rows = [{"row": pickle.dumps((unit, payload, number))} for unit, payload in todo]
    source = ray.data.from_items(rows, override_num_blocks=len(rows))
    if part is None or make is None:
        if work is None:
            raise TypeError("units.run wants `work`, or `make` and `part`")
        tasks = _Rows(lambda: work, driver.here(), network=False)
        done = source.map_batches(
            tasks,
            batch_size=1,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(parallel) if parallel else None,
            **cluster.TASKS,
        )
    else:
        done = source.map_batches(
            _Rows,
            fn_constructor_args=(make, driver.here(), True),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=part.actors, max_size=part.actors),
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            **cluster.ACTORS,
        )
    for row in done.iter_rows():
        yield pickle.loads(row["result"])  # noqa: S301 -- made by this run's own workers


#: one step of a unit's work: (unit, its payload, what the step before made) -> what this one makes; the last an Entry
Step = Callable[[Unit, Any, Any], Any]


class _Step:
    """Adapts a Step to rows that carry what the steps before made. A failure is carried to the end; nothing else stops."""

    def __init__(self, name: str, make: Callable[[], Step], sender: Driver, network: bool) -> None:
        self.name, self.step, self.sender = name, make(), sender
        self.device = metrics.Device() if network else None

    def __call__(self, batch: pa.Table) -> dict[str, list[bytes]]:
        self.sender.meet()
        out = []
        for head, cell in zip(batch["head"], batch["cell"], strict=True):
            unit, payload, number = pickle.loads(head.as_buffer())  # noqa: S301 -- written by this run's own driver
            value, steps = pickle.loads(cell.as_buffer())  # noqa: S301 -- made by this run's own workers
            if not isinstance(value, Failure):
                begin = time.monotonic()
                with self.device.busy(unit.stage) if self.device else contextlib.nullcontext():
                    value = attempt(unit, partial(self.step, unit, payload, value))  # type: ignore[arg-type]
                steps |= {self.name: time.monotonic() - begin}
                if isinstance(value, Entry):
                    value = dataclasses.replace(value, seconds=sum(steps.values()), attempt=number, steps=steps)
            out.append(pickle.dumps((value, steps), protocol=5))
        return {"head": batch["head"].to_pylist(), "cell": out}


def stream(
    todo: Sequence[tuple[Unit, Any]], number: int, read: Step, make: Callable[[], Step], write: Step, feed: cluster.Feed
) -> Iterator[Entry | Failure]:
    """Results in the order of completion: `read` and `write` in tasks, the step of `make` between them in actors.

    The three overlap: while an actor computes, the next units are read and the last ones written. How many wait is bounded
    by Ray's object store.
    """
    rows = [{"head": pickle.dumps((unit, payload, number)), "cell": pickle.dumps((None, {}))} for unit, payload in todo]
    one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    share, here = round(feed.reader_cpus / 2, 4), driver.here()
    tasks = {"compute": TaskPoolStrategy(feed.readers), "num_cpus": share} | cluster.TASKS
    done = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(_Step("read", lambda: read, here, network=False), **one, **tasks)
        .map_batches(
            _Step, fn_constructor_args=("compute", make, here, True), **one,
            compute=ActorPoolStrategy(min_size=feed.least, max_size=feed.actors),
            num_cpus=feed.actor_cpus, num_gpus=feed.actor_gpus, **cluster.ACTORS,
        )
        .map_batches(_Step("write", lambda: write, here, network=False), **one, **tasks)
    )  # fmt: skip
    for row in done.iter_rows():
        yield pickle.loads(row["cell"])[0]  # noqa: S301 -- made by this run's own workers
