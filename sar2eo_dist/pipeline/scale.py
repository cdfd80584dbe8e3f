"""How long a mosaic takes on a cluster and what holds it up: arithmetic on rates, no clock and no cluster.

A run is a chain of lines: the statistics windows of all its mosaics, then their blocks. In a line units are read, computed,
written and committed side by side, so it takes as long as its slowest resource; before that its workers start, and the
first unit has to come in and the last one to go out. Overviews and what the driver publishes come at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """Units of one kind. Seconds of one unit: compute_s of a translator (mean; longest_s: of the longest unit),
    read_s and write_s of a task; moved: bytes read and written, of all units."""

    units: int
    compute_s: float
    longest_s: float
    read_s: float
    write_s: float
    moved: float


@dataclass(frozen=True, slots=True)
class Work:
    """What is to do. levels: units of each overview level of each zone; planning_s: until the plan was there; overview_s: of
    one overview unit; level_s: until the first of a level runs; finish_s: of all that the driver publishes."""

    lines: tuple[Line, ...]
    levels: tuple[int, ...]
    planning_s: float
    overview_s: float
    level_s: float
    finish_s: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """translators: actors; threads: CPU cores that one computes with, 0 on a GPU; cores: of all nodes; readers: tasks that
    read, and as many that write; cluster_s: until Ray and its nodes are there; start_s: until the translators of a line are;
    commit_s: of the driver, a unit; mb_s: between nodes and store in all, 0 = no limit."""

    translators: int
    threads: int
    cores: float
    readers: int
    cluster_s: float
    start_s: float
    commit_s: float
    mb_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """wall_s is the sum of parts: seconds by what the run waits for."""

    translators: int
    parts: dict[str, float]

    @property
    def wall_s(self) -> float:
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """What most of the time goes into."""
        return max(self.parts, key=lambda name: self.parts[name])


#: names of the parts: what more translators shorten, and what they do not
COMPUTE, TAIL, TASKS, STORE = "compute", "tail", "reading and writing", "the store's bandwidth"
CORES = "cores"  # where CPUs compute as well as read: no part of its own, but shared out between the two
START, DRIVER, PLAN, OVERVIEWS, FINISH = "start", "driver's commits", "planning", "overviews", "publishing"


def joined(lines: Sequence[Line]) -> Line:
    """One line of the units of several."""
    n = sum(line.units for line in lines)

    def mean(name: str) -> float:
        return sum(line.units * float(getattr(line, name)) for line in lines) / max(n, 1)

    longest = max((line.longest_s for line in lines if line.units), default=0.0)
    return Line(n, mean("compute_s"), longest, mean("read_s"), mean("write_s"), sum(line.moved for line in lines))


def makespan(units: int, mean: float, longest: float, workers: int) -> float:
    """Seconds until workers that each take the next unit have done them all: exact where units are alike, else within
    `longest`. Never below the longest unit nor below the work over the workers; never longer with more workers."""
    return max(longest, math.ceil(units / workers) * mean) if units else 0.0


def scale(work: Work, cluster: Cluster) -> Estimate:
    """Wall time on a cluster."""
    parts = dict.fromkeys((PLAN, START, COMPUTE, TAIL, TASKS, STORE, DRIVER, OVERVIEWS, FINISH), 0.0)
    parts[PLAN], parts[FINISH] = work.planning_s, work.finish_s
    lines = [line for line in work.lines if line.units]
    parts[START] = (cluster.cluster_s if lines else 0.0) + len(lines) * cluster.start_s
    for line in lines:
        n = line.units
        ideal = n * line.compute_s / min(n, cluster.translators)
        span = makespan(n, line.compute_s, line.longest_s, cluster.translators)
        tasks, computing = line.read_s + line.write_s, line.compute_s * cluster.threads
        limits = {
            COMPUTE: span,
            CORES: n * (tasks + computing) / cluster.cores,
            TASKS: n * max(line.read_s, line.write_s) / cluster.readers,
            STORE: line.moved / (cluster.mb_s * 1e6) if cluster.mb_s else 0.0,
            DRIVER: n * cluster.commit_s,
        }
        slowest = max(limits, key=lambda name: limits[name])
        if slowest == COMPUTE:
            parts[COMPUTE] += ideal
            parts[TAIL] += span - ideal
        elif slowest == CORES:
            parts[COMPUTE] += n * computing / cluster.cores
            parts[TASKS] += n * tasks / cluster.cores
        else:
            parts[slowest] += limits[slowest]
        parts[TAIL] += line.read_s + line.write_s + cluster.commit_s
    for n in work.levels:
        parts[OVERVIEWS] += (
            work.level_s + makespan(n, work.overview_s, work.overview_s, cluster.readers) + n * cluster.commit_s
        )
    return Estimate(cluster.translators, parts)
