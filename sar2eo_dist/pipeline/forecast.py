"""What a mosaic will take and cost, from measured rates, before anything is spent; and afterwards, how far off that was.

Rates are measured: of this run folder's finished units of the same networks and lattice, else of one window that is run here
and now, which says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import NotFound
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.mosaics import STAGE, Plan
from sar2eo_dist.pipeline.stage import Summary
from sar2eo_dist.records import digest
from sar2eo_dist.report.text import human_bytes, human_seconds
from sar2eo_dist.sections import Cost

PUTS = 6  # objects that a block writes: rgb, valid, COG, look, STAC item, ledger entry; with confidence two more
GETS = 64  # requests that reading a block takes, about: a few hundred COG tiles of 512 px, many of them fetched as one
PROBE = 256  # pixels of the window that the driver runs where nothing was measured yet: seconds, whatever the networks
SAMPLE = 200  # finished units that rates are taken from


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured. window_s: of a translator, a lattice window with its halo; statistics_s: a statistics window; io_s:
    reading and writing of a block, by one task; out: bytes written a block; source: where it was measured."""

    window_s: float
    statistics_s: float
    io_s: float
    out: float
    source: str
    gpu: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """lines: the plan in words; the rest: totals of what is to do. seconds: of one translator; cost: in `currency`."""

    lines: tuple[str, ...]
    blocks: int
    windows: int
    objects: int
    bytes_in: int
    bytes_out: int
    seconds: float
    io_seconds: float
    cost: dict[str, float]
    currency: str
    rates: Rates
    units: frozenset[str]

    def text(self) -> str:
        if not self.blocks:
            return "\n".join((*self.lines, "nothing to do: every block is there"))
        unit = "GPU-hours" if self.rates.gpu else "translator-hours (CPU)"
        money = ", ".join(f"{k} {v:,.2f}" for k, v in self.cost.items() if v)
        total = sum(v for k, v in self.cost.items() if "month" not in k)
        said = f"about {total:,.2f} {self.currency} ({money})" if money else "no prices: set cost.gpu_hour and others"
        return "\n".join((
            *self.lines,
            f"forecast: {self.blocks:,} blocks, {self.windows:,} windows; {human_bytes(self.bytes_in)} of pixels read, "
            f"{human_bytes(self.bytes_out)} written in {self.objects:,} objects",
            f"forecast: {self.seconds / 3600:,.2f} {unit} ({human_seconds(self.seconds)}), {human_seconds(self.io_seconds)} of "
            f"reading and writing beside; rates {self.rates.source}",
            f"forecast: {said}",
        ))  # fmt: skip


def guess(cfg: Config, root: str, plans: Sequence[Plan], chosen: set[str], weights: str, fresh: bool) -> Forecast:
    """The forecast for those of the chosen units that are not in the ledger."""
    ledger = Ledger(root)
    finished: dict[str, set[str]] = {s: set() if fresh else ledger.done(s) for s in (STAGE, "statistics")}
    lines, todo_blocks, windows, statistics, size = [], 0, 0, 0, 0
    ids: set[str] = set()
    side = cfg.translate.window + 2 * (0 if cfg.translate.statistics == "window" else cfg.translate.halo)
    for p in plans:
        todo = [t for u, t in p.blocks if u.id in chosen and u.id not in finished[STAGE]]
        waiting = sum(u.id not in finished["statistics"] for u, _ in p.statistics)
        days = sorted(r.date for r in p.refs if r.date)
        span = f", {days[0]} to {days[-1]}" if days else ""
        bare = f", {p.bare:,} more of the area have no scene" if p.bare else ""
        lines.append(
            f"{p.frame.folder}: {len(todo):,} of {len(p.blocks):,} blocks of {p.frame.grid.block} px to do{bare}; "
            f"{waiting:,} statistics windows; {len(p.refs):,} scenes{span}"
        )
        ids |= {u.id for u, _ in p.blocks if u.id in chosen} | {u.id for u, _ in p.statistics}
        todo_blocks += len(todo)
        statistics += waiting if todo else 0
        places = [p.frame.grid.at(t.row, t.col) for t in todo]
        area = sum(b.height * b.width for b in places)
        stride = p.frame.grid.stride
        windows += sum(-(-b.height // stride) * -(-b.width // stride) for b in places)
        dates = np.mean([max(1, len(t.scenes)) for t in todo]) if todo else 0.0
        size += int(area * 8 * (side / cfg.translate.window) ** 2 * dates)
    rates = _rates(cfg, root, weights, side, todo_blocks > 0)
    seconds = windows * rates.window_s + statistics * rates.statistics_s
    io_seconds = todo_blocks * rates.io_s
    out = int(todo_blocks * rates.out)
    objects = todo_blocks * (PUTS + 2 * cfg.translate.confidence)
    cost = _cost(cfg.cost, rates.gpu, seconds, io_seconds, cfg.translate.threads, objects, todo_blocks, out)
    ids -= finished[STAGE] | finished["statistics"]
    return Forecast(
        tuple(lines),
        todo_blocks,
        windows,
        objects,
        size,
        out,
        seconds,
        io_seconds,
        cost,
        cfg.cost.currency,
        rates,
        frozenset(ids),
    )


def _cost(
    c: Cost, gpu: bool, seconds: float, io_seconds: float, threads: int, objects: int, blocks: int, out: int
) -> dict[str, float]:
    cpu = io_seconds + (0 if gpu else seconds * threads)
    return {
        "GPU": seconds / 3600 * c.gpu_hour if gpu else 0.0,
        "CPU": cpu / 3600 * c.cpu_hour,
        "requests": objects / 1000 * c.put_1000 + blocks * GETS / 1000 * c.get_1000,
        "storage a month": out / 1e9 * c.gb_month,
    }


def _key(cfg: Config, weights: str) -> str:
    t = cfg.translate
    return digest(
        weights, cfg.speed.model_dump(), t.statistics, t.window, t.halo, t.overlap, t.batch, t.threads, t.block
    )


def _rates(cfg: Config, root: str, weights: str, side: int, needed: bool) -> Rates:
    try:
        tree = json.loads(storage.read_bytes(storage.join(root, STAGE, "rates.json")))[_key(cfg, weights)]
        return Rates(**tree)
    except (NotFound, KeyError):
        pass
    if not needed:
        return Rates(0.0, 0.0, 0.0, 0.0, "not measured", False)
    return _probe(cfg, root, side)


def _probe(cfg: Config, root: str, side: int) -> Rates:
    """Run a small window in this process and scale by area; reading and writing are not measured: taken as a tenth."""
    from sar2eo_dist.pipeline.translate import bundles_of

    t = cfg.translate
    chain = Chain(bundles_of(cfg, root), t.threads, cfg.speed)
    small = min(side, PROBE)
    db = np.random.default_rng(0).normal(-12, 3, (2, small, small)).astype(np.float32)
    chain(db)
    begin = time.monotonic()
    chain(db)
    window = (time.monotonic() - begin) * (side / small) ** 2
    share = (t.statistics_window + 2 * t.halo) ** 2 / side**2
    each = (t.block / t.window) ** 2 * window
    bytes_out = t.block**2 * (3 if t.dtype == "uint8" else 6) * 2
    device = f"this machine's {chain.device}, {t.threads} thread(s)"
    where = f"measured now on one small window ({device}); reading and writing guessed"
    return Rates(window, 0.6 * window * share, each / 10, bytes_out, where, chain.device != "cpu")


def compare(cfg: Config, root: str, guess: Forecast, plans: Sequence[Plan], summary: Summary, weights: str) -> str:
    """Print predicted against actual, keep both in `translate/forecast.json`, and the rates for the next forecast.

    Returns the path.
    """
    path = f"{STAGE}/forecast.json"
    ledger = Ledger(root)
    there = ledger.done(STAGE), ledger.done("statistics")
    blocks = [u for p in plans for u, _ in p.blocks if u.id in there[0]]
    new = blocks[-SAMPLE:]
    entries = [e for e in ledger.entries(new) if e.counts.get("windows") and e.steps]
    windows = [u for p in plans for u, _ in p.statistics if u.id in there[1]][-SAMPLE:]
    gathered = [e for e in ledger.entries(windows) if e.steps]
    if entries:
        rates = _measured(entries, gathered)
        uri = storage.join(root, STAGE, "rates.json")
        try:
            known = json.loads(storage.read_bytes(uri))
        except NotFound:
            known = {}
        storage.put(uri, json.dumps(known | {_key(cfg, weights): asdict(rates)}, indent=1, sort_keys=True).encode())
    if guess.blocks:
        done = ledger.entries([u for u in blocks if u.id in guess.units])
        also = ledger.entries([u for p in plans for u, _ in p.statistics if u.id in guess.units & there[1]])
        spent = sum(e.steps.get("compute", 0.0) for e in (*done, *also))
        actual = {
            "blocks": summary.done - summary.resumed, "bytes_out": sum(e.bytes_out for e in done),
            "translator_seconds": spent, "wall_seconds": summary.seconds,
        }  # fmt: skip
        predicted = {"blocks": guess.blocks, "bytes_out": guess.bytes_out, "translator_seconds": guess.seconds}
        tree = {"predicted": predicted, "actual": actual, "rates": asdict(guess.rates), "cost": guess.cost}
        storage.put(storage.join(root, path), json.dumps(tree, indent=1, sort_keys=True).encode())
        print(
            f"forecast against what was spent: {human_seconds(guess.seconds)} and {human_seconds(spent)} of translators, "
            f"{human_bytes(guess.bytes_out)} and {human_bytes(actual['bytes_out'])} written",
            flush=True,
        )
    return path


def _measured(entries: Sequence[Entry], gathered: Sequence[Entry]) -> Rates:
    windows = sum(e.counts["windows"] for e in entries)
    return Rates(
        sum(e.steps["compute"] for e in entries) / windows,
        float(np.mean([e.steps["compute"] for e in gathered])) if gathered else 0.0,
        float(np.mean([e.steps["read"] + e.steps["write"] for e in entries])),
        float(np.mean([e.bytes_out for e in entries])),
        f"measured on {len(entries)} finished blocks of this run folder",
        any(e.counts.get("blocks on a GPU") for e in entries),
    )
