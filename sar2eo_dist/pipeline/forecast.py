"""What a mosaic will take and cost, and how long on which cluster, before it is spent; afterwards, how far off that was."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline import cluster, rates
from sar2eo_dist.pipeline.blocks import Task
from sar2eo_dist.pipeline.mosaics import STAGE, Plan
from sar2eo_dist.pipeline.rates import MEGA, Rates, reached
from sar2eo_dist.pipeline.scale import Cluster, Estimate, Line, Work, joined, scale
from sar2eo_dist.pipeline.stage import Summary
from sar2eo_dist.report.cost import kwh_of, money
from sar2eo_dist.report.text import human_bytes, human_seconds, number, percent
from sar2eo_dist.sections import Cost

PUTS = 6  # objects that a block writes: rgb, valid, COG, look, STAC item, ledger entry; with confidence two more
OVERVIEW_PUTS = 3  # an overview block: rgb, valid, ledger entry; with confidence one more
GETS = 64  # requests that reading a block takes, about: a few hundred COG tiles of 512 px, many of them fetched as one
PIXEL_IN = 8  # bytes of a pixel of a scene: VV and VH in float32, if nothing were compressed


@dataclass(frozen=True, slots=True)
class Todo:
    """Of one mosaic: blocks and statistics windows that are to do."""

    plan: Plan
    blocks: list[Task]
    statistics: list[Task]

    @property
    def windows(self) -> list[int]:
        """Lattice windows of each block, about."""
        grid = self.plan.frame.grid
        places = [grid.at(t.row, t.col) for t in self.blocks]
        return [-(-b.height // grid.stride) * -(-b.width // grid.stride) for b in places]

    @property
    def pixels(self) -> int:
        """Of the mosaic."""
        places = [self.plan.frame.grid.at(t.row, t.col) for t in self.blocks]
        return sum(b.height * b.width for b in places)

    @property
    def levels(self) -> tuple[int, ...]:
        """Units of each overview level above the blocks."""
        places, made = {(t.row, t.col) for t in self.blocks}, []
        for _ in range(self.plan.frame.layout.levels if places else 0):
            places = {(r // 2, c // 2) for r, c in places}
            made.append(len(places))
        return tuple(made)

    def lines(self, r: Rates) -> tuple[Line, Line]:
        """Of the statistics windows and of the blocks."""
        n, block = len(self.statistics), len(self.blocks)
        seen, read = (sum(reached(self.plan, t) for t in some) for some in (self.statistics, self.blocks))
        each = max(block, 1)
        mean = sum(self.windows) / each * r.window_s
        size = self.pixels / MEGA
        return (
            Line(n, r.statistics_s, r.statistics_s, seen / MEGA * r.read_s / max(n, 1), 0.0, seen * PIXEL_IN),
            Line(block, mean, max([mean * r.spread, *(w * r.window_s for w in self.windows)]),
                 read / MEGA * r.read_s / each, size * r.write_s / each, read * PIXEL_IN + size * r.out),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Forecast:
    """lines: the plan in words; the rest: totals of what is to do. seconds: of translators; io_seconds: of tasks; cost and
    kwh: of the hours of work; clusters: wall times, by number of translators."""

    lines: tuple[str, ...]
    blocks: int
    windows: int
    objects: int
    bytes_in: int
    bytes_out: int
    seconds: float
    io_seconds: float
    cost: dict[str, float]
    kwh: float
    prices: Cost
    threads: int
    rates: Rates
    work: Work
    clusters: tuple[Estimate, ...]
    parts: tuple[Todo, ...] = field(repr=False)
    units: frozenset[str] = field(repr=False)

    def text(self) -> str:
        if not self.blocks:
            return "\n".join((*self.lines, "nothing to do: every block is there"))
        unit = "GPU-hours" if self.rates.gpu else "translator-hours (CPU)"
        each = ", ".join(f"{k} {money(v)}" for k, v in self.cost.items() if v)
        total = sum(v for k, v in self.cost.items() if "month" not in k)
        said = f"about {money(total)} {self.prices.currency} ({each})" if each else "no prices: see cost.gpu_hour"
        if self.kwh:
            said += f"; {number(self.kwh)} kWh"
            said += f", {number(self.kwh * self.prices.kwh_co2 / 1000)} kg CO2" if self.prices.kwh_co2 else ""
        return "\n".join((
            *self.lines,
            f"forecast: {self.blocks:,} blocks, {self.windows:,} windows; {human_bytes(self.bytes_in)} of pixels read, "
            f"{human_bytes(self.bytes_out)} written in {self.objects:,} objects",
            f"forecast: {self.seconds / 3600:,.2f} {unit} ({human_seconds(self.seconds)}), {human_seconds(self.io_seconds)} of "
            f"reading and writing beside; rates {self.rates.source}",
            f"forecast, by hours of work: {said}",
            *_table(self.clusters, self.prices, self.rates.gpu, self.threads, self.cost["requests"]),
        ))  # fmt: skip


def _table(made: Sequence[Estimate], c: Cost, gpu: bool, threads: int, requests: float) -> list[str]:
    """Clusters side by side. What is held is paid: money and energy are of whole clusters from start to end."""
    cores = "1 CPU core" if threads == 1 else f"{threads} CPU cores"
    per = f"a GPU and {c.node_cores} CPU cores" if gpu else cores
    price, watts = (c.gpu_hour, c.gpu_watts) if gpu else (c.cpu_hour * threads, c.cpu_watts * threads)
    rows = [("translators", "wall time", c.currency, "kWh", "waits mostly for")]
    for e in made:
        hours = e.wall_s / 3600 * e.translators
        kwh = hours * watts / 1000
        amount = money(hours * price + requests + kwh * c.kwh)
        most = f"{e.bottleneck} ({percent(e.parts[e.bottleneck] / e.wall_s)})"
        rows.append((f"{e.translators}", human_seconds(e.wall_s), amount, number(kwh), most))
    shown = [i for i, there in enumerate((True, True, price, watts, True)) if there]
    wide = [max(len(r[i]) for r in rows) for i in range(4)]
    text = ["   ".join(r[i].rjust(wide[i]) if i < 4 else r[i] for i in shown) for r in rows]
    return [f"forecast, each translator with {per}, held from start to end:", *(f"  {line}" for line in text)]


def guess(
    cfg: Config, root: str, plans: Sequence[Plan], chosen: set[str], weights: str, fresh: bool, begun: float
) -> Forecast:
    """The forecast for those of the chosen units that are not in the ledger; begun: time.monotonic() before the planning."""
    planning, ledger = time.monotonic() - begun, Ledger(root)
    made, gathered = (set() if fresh else ledger.done(s) for s in (STAGE, "statistics"))
    parts, lines = [], []
    ids: set[str] = set()
    for p in plans:
        todo = [t for u, t in p.blocks if u.id in chosen and u.id not in made]
        waiting = [t for u, t in p.statistics if u.id not in gathered]
        days = sorted(r.date for r in p.refs if r.date)
        span = f", {days[0]} to {days[-1]}" if days else ""
        bare = f", {p.bare:,} more of the area have no scene" if p.bare else ""
        lines.append(
            f"{p.frame.folder}: {len(todo):,} of {len(p.blocks):,} blocks of {p.frame.grid.block} px to do{bare}; "
            f"{len(waiting):,} statistics windows; {len(p.refs):,} scenes{span}"
        )
        ids |= {u.id for u, _ in p.blocks if u.id in chosen} | {u.id for u, _ in p.statistics}
        parts.append(Todo(p, todo, waiting if todo else []))
    blocks = sum(len(t.blocks) for t in parts)
    side = cfg.translate.window + 2 * (0 if cfg.translate.statistics == "window" else cfg.translate.halo)
    r = rates.of(cfg, root, weights, side, blocks > 0)
    work = work_of(parts, r, planning)
    levels, block = work.levels, cfg.translate.block**2 / MEGA
    seconds = sum(n.units * n.compute_s for n in work.lines)
    tasks = sum(n.units * (n.read_s + n.write_s) for n in work.lines) + sum(levels) * work.overview_s
    pixels, more = sum(t.pixels for t in parts), int(cfg.translate.confidence)
    out = int(pixels / MEGA * r.out + sum(levels) * block * r.overview_out)
    objects = blocks * (PUTS + 2 * more) + sum(levels) * (OVERVIEW_PUTS + more)
    objects += 2 * sum(len(t.statistics) for t in parts)
    gpu_hours = seconds / 3600 if r.gpu else 0.0
    cpu_hours = (tasks + (0 if r.gpu else seconds * cfg.translate.threads)) / 3600
    kwh = kwh_of(gpu_hours, cpu_hours, cfg.cost.gpu_watts, cfg.cost.cpu_watts)
    return Forecast(
        tuple(lines), blocks, sum(sum(t.windows) for t in parts), objects,
        sum(reached(t.plan, task) for t in parts for task in t.blocks) * PIXEL_IN, out, seconds, tasks,
        {"GPU": gpu_hours * cfg.cost.gpu_hour, "CPU": cpu_hours * cfg.cost.cpu_hour, "energy": kwh * cfg.cost.kwh,
         "requests": objects / 1000 * cfg.cost.put_1000 + blocks * GETS / 1000 * cfg.cost.get_1000,
         "storage a month": out / 1e9 * cfg.cost.gb_month},
        kwh, cfg.cost, cfg.translate.threads, r, work,
        tuple(scale(work, supposed(cfg.cost, r, n, cfg.translate.threads)) for n in cfg.cost.clusters),
        tuple(parts), frozenset(ids - made - gathered),
    )  # fmt: skip


def work_of(parts: Sequence[Todo], r: Rates, planning: float) -> Work:
    """What is to do, in seconds: the statistics windows of all zones, then their blocks; planning: seconds."""
    lines = tuple(joined(some) for some in zip(*(t.lines(r) for t in parts), strict=True))
    block = max((t.plan.frame.grid.block for t in parts), default=0) ** 2 / MEGA
    return Work(
        lines, tuple(n for t in parts for n in t.levels), planning,
        block * r.overview_s, r.level_s, sum(r.finish_s + len(t.plan.blocks) * r.look_s for t in parts),
    )  # fmt: skip


def supposed(c: Cost, r: Rates, translators: int, threads: int) -> Cluster:
    """A cluster of nodes of one translator each, as `cost` describes them."""
    cores = translators * (c.node_cores if r.gpu else threads)
    limits = [v for v in (translators * c.node_mb_s, c.store_mb_s) if v]
    readers = cores if r.gpu else -(-cores // 8)  # as cluster.feed has it
    return Cluster(
        translators, 0 if r.gpu else threads, cores, readers, r.cluster_s + c.node_start_s, r.start_s, r.commit_s,
        min(limits, default=0.0),
    )  # fmt: skip


def actual(cfg: Config, r: Rates, units: int) -> Cluster:
    """The running cluster."""
    feed, nodes = cluster.translators(cfg, units), cluster.nodes()
    threads = 0 if feed.actor_gpus else cfg.translate.threads
    return Cluster(feed.actors, threads, sum(c for c, _ in nodes), feed.readers, r.cluster_s, r.start_s, r.commit_s)


def compare(
    cfg: Config,
    root: str,
    guess: Forecast,
    plans: Sequence[Plan],
    stages: Sequence[Summary],
    weights: str,
    begun: float,
) -> str:
    """Print predicted against actual, keep both in `translate/forecast.json`, and the rates for the next forecast.

    stages: translate, overviews, and statistics where there are any; begun: as in `guess`. Returns the path.
    """
    path = f"{STAGE}/forecast.json"
    if not guess.blocks:
        return path
    ledger, wall = Ledger(root), time.monotonic() - begun
    found = rates.measured(root, plans, stages, wall - guess.work.planning_s - sum(s.seconds for s in stages))
    own: Estimate | None = None
    if found:
        rates.keep(cfg, root, weights, found)
        own = scale(work_of(guess.parts, found, guess.work.planning_s), actual(cfg, found, guess.blocks))
    there = {s: ledger.done(s) & guess.units for s in (STAGE, "statistics")}
    done = ledger.entries([u for p in plans for u, _ in p.blocks if u.id in there[STAGE]])
    also = ledger.entries([u for p in plans for u, _ in p.statistics if u.id in there["statistics"]])
    spent = sum(e.steps.get("compute", 0.0) for e in (*done, *also))
    time_of = scale(guess.work, actual(cfg, guess.rates, guess.blocks))
    above = stages[1]
    written = sum(e.bytes_out for e in done) + int(above.bytes_out * (1 - above.resumed / max(above.done, 1)))
    tree = {
        "predicted": {
            "blocks": guess.blocks, "bytes_out": guess.bytes_out, "translator_seconds": guess.seconds,
            "wall_seconds": time_of.wall_s, "wall_parts": time_of.parts,
            "wall_seconds_by_own_rates": own and own.wall_s,  # the model's own error, without that of the rates
        },
        "actual": {
            "blocks": len(done), "bytes_out": written, "translator_seconds": spent, "wall_seconds": wall,
            "translators": time_of.translators, "stages": {s.stage: s.seconds for s in stages},
        },
        "rates": asdict(guess.rates), "cost": guess.cost, "kwh": guess.kwh,
    }  # fmt: skip
    storage.put(storage.join(root, path), json.dumps(tree, indent=1, sort_keys=True).encode())
    print(
        f"forecast against what was spent: {human_seconds(time_of.wall_s)} and {human_seconds(wall)} with "
        f"{time_of.translators} translator(s), {human_seconds(guess.seconds)} and {human_seconds(spent)} of theirs, "
        f"{human_bytes(guess.bytes_out)} and {human_bytes(written)} written",
        flush=True,
    )
    return path
