"""The scale model: bounds that hold for any cluster, and an event simulation of the same lines, which knows no formula."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.pipeline.scale import Cluster, Line, Work, joined, makespan, scale

SECONDS = st.floats(0.01, 20)
IDLE = Work((), (), 0.0, 0.0, 0.0, 0.0)
BARE = Cluster(4, 0, 1000.0, 1000, 0.0, 0.0, 0.0)


def simulated(
    units: Sequence[tuple[float, float, float, float]], slots: tuple[int, int, int, int], cores: float, on_core: bool
) -> float:
    """Seconds until all units are through: read, compute, write, commit, each by the first of its slots that is free.

    cores: that reading and writing (and computing, where on_core) share, as an operating system divides its time; few
    units wait for a translator, as Ray holds reading back.
    """
    waiting: list[list[int]] = [list(range(len(units)))[::-1], [], [], []]
    going: list[tuple[float, int, int]] = []  # what is left of a step, the step, the unit
    now, on_cores = 0.0, (True, on_core, True, False)
    while True:
        for step in (3, 2, 1, 0):
            busy = sum(s == step for _, s, _ in going)
            room = slots[step] - busy
            if step == 0:
                room = min(room, slots[0] + slots[1] - busy - len(waiting[1]))
            for _ in range(min(room, len(waiting[step]))):
                unit = waiting[step].pop()
                going.append((units[unit][step], step, unit))
        if not going:
            return now
        speed = min(1.0, cores / max(1, sum(on_cores[s] for _, s, _ in going)))
        pace = [speed if on_cores[s] else 1.0 for _, s, _ in going]
        passed = min(left / p for (left, _, _), p in zip(going, pace, strict=True))
        now += passed
        there = [(left - passed * p, s, u) for (left, s, u), p in zip(going, pace, strict=True)]
        going = [g for g in there if g[0] > 1e-9]
        for _, step, unit in (g for g in there if g[0] <= 1e-9):
            if step < 3:
                waiting[step + 1].insert(0, unit)


@given(st.lists(SECONDS, min_size=1, max_size=60), st.integers(1, 70))
def test_units_that_differ_take_as_long_as_a_simulation_within_the_longest(units: list[float], workers: int) -> None:
    said = makespan(len(units), sum(units) / len(units), max(units), workers)
    was = simulated([(0.0, s, 0.0, 0.0) for s in units], (1000, workers, 1000, 1000), 1e9, False)
    assert said == pytest.approx(was, abs=max(units) * (1 + 1e-9))
    assert said >= max(max(units), sum(units) / workers) * (1 - 1e-9)


@given(SECONDS, st.integers(1, 500), st.integers(1, 70))
def test_units_that_are_alike_take_as_long_as_a_simulation(each: float, units: int, workers: int) -> None:
    was = simulated([(0.0, each, 0.0, 0.0)] * units, (1000, workers, 1000, 1000), 1e9, False)
    assert makespan(units, each, each, workers) == pytest.approx(was)


@settings(max_examples=60)
@given(
    st.tuples(SECONDS, SECONDS, SECONDS, st.floats(0.001, 0.5)), st.integers(1, 8), st.integers(1, 8),
    st.integers(1, 100), st.integers(1, 24), st.booleans(),
)  # fmt: skip
def test_a_line_takes_as_long_as_its_simulation(
    unit: tuple[float, float, float, float], workers: int, readers: int, units: int, spare: int, on_core: bool
) -> None:
    """Translators on GPUs, or one core each of the same that read and write; at least one core is left to those."""
    read, compute, write, commit = unit
    cores = workers * on_core + spare
    cluster = Cluster(workers, int(on_core), cores, readers, 0.0, 0.0, commit)
    said = scale(dataclasses.replace(IDLE, lines=(Line(units, compute, compute, read, write, 0.0),)), cluster).wall_s
    was = simulated([unit] * units, (readers, workers, readers, 1), cores, on_core)
    path = sum(unit)
    assert said <= was + path
    assert was <= said * 1.1 + 4 * path
    long = [unit] * (40 * max(workers, readers))
    line = Line(len(long), compute, compute, read, write, 0.0)
    said = scale(dataclasses.replace(IDLE, lines=(line,)), cluster).wall_s
    assert said == pytest.approx(simulated(long, (readers, workers, readers, 1), cores, on_core), rel=0.15)


LINES = st.builds(
    lambda n, mean, more, read, write, moved: Line(n, mean, mean * more, read, write, moved * bool(n)),
    st.integers(0, 3000), SECONDS, st.floats(1, 4), SECONDS, SECONDS, st.floats(0, 1e12),
)  # fmt: skip
WORKS = st.builds(
    Work, st.lists(LINES, max_size=4).map(tuple), st.lists(st.integers(1, 900), max_size=5).map(tuple), SECONDS, SECONDS,
    SECONDS, SECONDS,
)  # fmt: skip


@given(st.lists(LINES, max_size=14), st.integers(1, 64))
def test_zones_that_share_a_line_take_what_they_take_alone_but_start_once(lines: list[Line], workers: int) -> None:
    one = joined(lines)
    assert one.units == sum(line.units for line in lines)
    for name in ("compute_s", "read_s", "write_s"):
        alone = sum(line.units * getattr(line, name) for line in lines)
        assert one.units * getattr(one, name) == pytest.approx(alone)
    assert one.moved == pytest.approx(sum(line.moved for line in lines))
    cluster = Cluster(workers, 0, 1e6, 10**6, 60.0, 20.0, 0.0)
    apart, together = (scale(dataclasses.replace(IDLE, lines=tuple(some)), cluster) for some in (lines, [one]))
    busy = [line for line in lines if line.units]
    assert apart.parts["start"] - together.parts["start"] == pytest.approx(20.0 * max(len(busy) - 1, 0))
    longest = max((line.longest_s + line.read_s + line.write_s for line in busy), default=0.0)
    assert together.wall_s <= apart.wall_s + longest


@given(WORKS, st.integers(1, 64), st.integers(1, 64), st.floats(0, 1000))
def test_more_nodes_never_take_longer_and_no_cluster_beats_its_bounds(
    work: Work, few: int, more: int, mb_s: float
) -> None:
    def on(nodes: int) -> float:
        made = scale(work, Cluster(nodes, 0, 8.0 * nodes, 8 * nodes, 60.0, 20.0, 0.01, mb_s * nodes))
        assert made.wall_s == pytest.approx(sum(made.parts.values()))
        assert min(made.parts.values()) >= 0
        assert made.bottleneck in made.parts
        computing = sum(line.units * line.compute_s for line in work.lines) / nodes
        longest = sum(line.longest_s + line.read_s + line.write_s for line in work.lines if line.units)
        driver = sum(line.units for line in work.lines) * 0.01
        assert made.wall_s >= max(computing, longest, driver, work.planning_s) * (1 - 1e-9)
        if mb_s:
            assert made.wall_s >= sum(line.moved for line in work.lines) / (mb_s * nodes * 1e6) * (1 - 1e-9)
        return made.wall_s

    assert on(few + more) <= on(few) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("cluster", "line", "bottleneck"),
    [
        (BARE, Line(1000, 1.0, 1.0, 0.1, 0.1, 0.0), "compute"),
        (BARE, Line(5, 1.0, 4.0, 0.1, 0.1, 0.0), "tail"),
        (dataclasses.replace(BARE, readers=2), Line(1000, 1.0, 1.0, 2.0, 0.1, 0.0), "reading and writing"),
        (dataclasses.replace(BARE, cores=2.0), Line(1000, 1.0, 1.0, 1.0, 1.0, 0.0), "reading and writing"),
        (dataclasses.replace(BARE, mb_s=100.0), Line(1000, 1.0, 1.0, 0.1, 0.1, 1e11), "the store's bandwidth"),
        (dataclasses.replace(BARE, commit_s=0.5), Line(1000, 1.0, 1.0, 0.1, 0.1, 0.0), "driver's commits"),
        (dataclasses.replace(BARE, cluster_s=900.0), Line(1000, 1.0, 1.0, 0.1, 0.1, 0.0), "start"),
    ],
)  # fmt: skip
def test_what_a_run_waits_for(cluster: Cluster, line: Line, bottleneck: str) -> None:
    assert scale(dataclasses.replace(IDLE, lines=(line,)), cluster).bottleneck == bottleneck


def test_what_more_workers_do_not_shorten() -> None:
    """Each line starts its own translators; each overview level waits for the one before."""
    work = Work(
        (Line(10, 1.0, 1.0, 0.0, 0.0, 0.0),) * 3 + (Line(0, 0.0, 0.0, 0.0, 0.0, 0.0),), (4, 1), 5.0, 2.0, 1.5, 7.0
    )
    made = scale(work, Cluster(100, 0, 100.0, 2, 60.0, 20.0, 0.0))
    assert {k: v for k, v in made.parts.items() if v} == pytest.approx(
        {"planning": 5.0, "start": 60 + 3 * 20, "compute": 3.0, "overviews": 2 * 1.5 + (2 + 1) * 2.0, "publishing": 7.0}
    )
    assert math.isclose(scale(IDLE, BARE).wall_s, 0.0)
