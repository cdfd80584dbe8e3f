"""Map units of work over the cluster with Ray Data: one row a unit, by tasks or by actors that hold a model."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import cluster
from sar2eo_dist.pipeline.stage import Failure, attempt
from sar2eo_dist.records import Unit

#: a unit's work: (unit, its small payload of pointers, number of the attempt) -> completion. Runs in a worker.
Work = Callable[[Unit, Any, int], Entry]


class _Rows:
    """Adapts a Work to Ray Data's batches of one row; `make` builds it once a worker (and loads models there)."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self.work = make()

    def __call__(self, batch: pa.Table) -> dict[str, list[bytes]]:
        out = []
        for cell in batch["row"].to_pylist():
            unit, payload, number = pickle.loads(cell)  # noqa: S301 -- written by this run's own driver
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
        tasks = _Rows(lambda: work)
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
            fn_constructor_args=(make,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=part.actors, max_size=part.actors),
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            **cluster.ACTORS,
        )
    for row in done.iter_rows():
        yield pickle.loads(row["result"])  # noqa: S301 -- made by this run's own workers
