"""Workers of another image than the driver's are refused at once, by all that sends work to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import cluster, driver, metrics, units
from sar2eo_dist.pipeline.actors import ScoreActor
from sar2eo_dist.pipeline.driver import Driver
from sar2eo_dist.pipeline.judge import Judge
from sar2eo_dist.pipeline.reference import FeatureActor
from sar2eo_dist.pipeline.stage import Options, run_stage
from sar2eo_dist.records import Unit
from sar2eo_dist.sections import CCA

UNITS = [Unit("shard", f"k{i}", "fp", ("in",)) for i in range(2)]
OLD = Driver("a-run", "0.9.0 (0123456789ab)")
REFUSED = r"the worker on \S+ is sar2eo_dist .*, the driver 0\.9\.0 \(0123456789ab\): give all nodes one image"


def by_tasks(todo: list[tuple[Unit, Any]], attempt: int) -> Iterator[Any]:
    return units.run(lambda unit, payload, number: Entry(unit, (), 0.1), todo, attempt)


def by_actors(todo: list[tuple[Unit, Any]], attempt: int) -> Iterator[Any]:
    part = cluster.Share(1, 1, 0)
    return units.run(None, todo, attempt, make=lambda: lambda unit, payload, n: Entry(unit, (), 0.1), part=part)


def by_stream(todo: list[tuple[Unit, Any]], attempt: int) -> Iterator[Any]:
    feed = cluster.feed(Config().resources, 1, 1, cluster.nodes(), True)
    step: units.Step = lambda unit, payload, before: payload  # noqa: E731 -- a function of this file: workers lack it
    return units.stream(todo, attempt, step, lambda: step, lambda unit, payload, before: Entry(unit, (), 0.1), feed)


@pytest.mark.cluster
@pytest.mark.parametrize("by", [by_tasks, by_actors, by_stream])
def test_units_are_refused_before_any_of_them_runs(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    cfg = load(overrides=[f"run.out={tmp_path}"])
    tried: list[int] = []

    def execute(todo: Any, attempt: int) -> Iterator[Any]:
        tried.append(attempt)
        return by([(u, "payload") for u in todo], attempt)

    real = driver.here
    monkeypatch.setattr(driver, "here", lambda: OLD)
    with pytest.raises(ConfigError, match=REFUSED):
        run_stage(cfg, Options(), "shard", UNITS, execute, "")
    assert tried == [1]  # another attempt would only say it again
    assert not list(tmp_path.rglob("ledger/shard/*"))
    monkeypatch.setattr(driver, "here", real)
    assert run_stage(cfg, Options(), "shard", UNITS, execute, "").status == "complete"


def _judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "here", lambda: OLD)
    next(Judge(CCA(), False)(pa.table({"unit": ["u"]})))


@pytest.mark.parametrize(
    "work",
    [_judged, lambda m: ScoreActor(CCA(), "set", "mark", OLD), lambda m: FeatureActor(CCA(), OLD)],
    ids=["judge", "score", "features"],
)
def test_so_is_the_cleaning_before_it_reads_anything(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[pytest.MonkeyPatch], object]
) -> None:
    before = metrics.named_run()
    try:
        with pytest.raises(ConfigError, match=REFUSED):
            work(monkeypatch)
    finally:
        metrics.name_run(before)
