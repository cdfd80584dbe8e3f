"""Seconds and bytes of a mosaic's units: measured on what a run folder has finished, or on one window run now, or given."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, NotFound
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.blocks import Task
from sar2eo_dist.pipeline.mosaics import STAGE, Plan
from sar2eo_dist.pipeline.stage import Summary
from sar2eo_dist.records import Unit, digest

PROBE = 256  # pixels of the window that the driver runs where nothing was measured yet: seconds, whatever the networks
SAMPLE = 200  # finished units that rates are taken from
MEGA = 1e6
LOOK_S = 0.01  # seconds that the driver takes for a block's part of the quick-look, STAC and VRT; not measured apart


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds. window_s: of a translator, a lattice window with its halo; statistics_s: a statistics window; read_s: of a task,
    a million pixels of one scene; write_s, overview_s: of a task, a million pixels of mosaic; out, overview_out: bytes of
    those; spread: the longest block's time over the mean's; cluster_s: until Ray is there; start_s: until the translators of
    a line are; commit_s: of the driver, the ledger entry of a unit
    (several are on their way at a time); level_s: until an overview level's first task runs;
    finish_s, look_s: of the driver, what it publishes, a zone and on top of that a block, which is no more than supposed;
    source: where all this was measured, or who says so.

    The defaults are of 2 CPU cores and a local disk (tests/bench/test_scale.py).
    """

    window_s: float
    statistics_s: float
    source: str
    gpu: bool = False
    read_s: float = 0.05
    write_s: float = 0.6
    out: float = 9e6
    spread: float = 1.2
    cluster_s: float = 3.0
    start_s: float = 10.0
    commit_s: float = 0.003
    overview_s: float = 0.15
    overview_out: float = 2.8e6
    level_s: float = 2.5
    finish_s: float = 4.0
    look_s: float = LOOK_S


def of(cfg: Config, root: str, weights: str, side: int, needed: bool) -> Rates:
    """Those given, else those of this run folder, else (where needed) of one window of `side` pixels, run now.

    Raises ConfigError for a file that holds no rates.
    """
    if cfg.cost.rates:
        return given(cfg.cost.rates)
    try:
        return Rates(**json.loads(storage.read_bytes(_uri(root)))[_key(cfg, weights)])
    except (NotFound, KeyError, TypeError):  # TypeError: left by an older version
        pass
    return _probe(cfg, root, side) if needed else Rates(0.0, 0.0, "not measured")


def given(uri: str) -> Rates:
    """Rates from a JSON file. Raises ConfigError that says what is wrong with it."""
    wanted = f"an object of window_s, statistics_s, source and any of {', '.join(f.name for f in fields(Rates)[3:])}"
    try:
        tree = json.loads(storage.read_bytes(storage.absolute(uri)))
        made = Rates(**tree)
    except NotFound as e:
        raise ConfigError(f"cost.rates: {uri} is not there") from e
    except (ValueError, TypeError) as e:
        raise ConfigError(f"cost.rates: {uri} is not {wanted}: {e}") from e
    numbers = {k: v for k, v in tree.items() if k not in ("source", "gpu")}
    bad = {k: v for k, v in numbers.items() if type(v) not in (int, float) or not 0 <= v < 1e12}
    if bad or not isinstance(made.source, str) or not made.source or not isinstance(made.gpu, bool):
        raise ConfigError(
            f"cost.rates: {uri} wants numbers of 0 or more, a source in words, a gpu of true or false: {tree}"
        )
    return made


def keep(cfg: Config, root: str, weights: str, rates: Rates) -> None:
    """Leave rates for the next forecast."""
    try:
        known = json.loads(storage.read_bytes(_uri(root)))
    except NotFound:
        known = {}
    tree = known | {_key(cfg, weights): asdict(rates)}
    storage.put(_uri(root), json.dumps(tree, indent=1, sort_keys=True).encode())


def measured(root: str, plans: Sequence[Plan], stages: Sequence[Summary], publishing_s: float) -> Rates | None:
    """Rates of the newest finished units and of the stages that this run went through (translate, overviews, and statistics
    where there are any); publishing_s: of the driver, outside of the stages. None where no block has run."""
    ledger, by = Ledger(root), {s.stage: s for s in stages}
    blocks = _newest(ledger, STAGE, [(p, u, t) for p in plans for u, t in p.blocks])
    blocks = [(e, p, t) for e, p, t in blocks if e.counts.get("windows")]
    if not blocks:
        return None
    gathered = _newest(ledger, "statistics", [(p, u, t) for p in plans for u, t in p.statistics])
    compute = [e.steps["compute"] for e, _, _ in blocks]
    size = sum(e.counts["pixels"] for e, _, _ in blocks) / MEGA
    lines = [s for s in (by.get("statistics"), by[STAGE]) if s and s.start_seconds]
    starts = [s.start_seconds for s in lines] or [0.0]
    above = by["overviews"]
    shrunk = above.done * plans[0].frame.grid.block ** 2 / MEGA
    return Rates(
        sum(compute) / sum(e.counts["windows"] for e, _, _ in blocks),
        float(np.mean([e.steps["compute"] for e, _, _ in gathered])) if gathered else 0.0,
        f"measured on {len(blocks)} finished blocks of this run folder",
        any(e.counts.get("blocks on a GPU") for e, _, _ in blocks),
        sum(e.steps["read"] for e, _, _ in blocks) / (sum(reached(p, t) for _, p, t in blocks) / MEGA),
        sum(e.steps["write"] for e, _, _ in blocks) / size,
        sum(e.bytes_out for e, _, _ in blocks) / size,
        max(compute) / float(np.mean(compute)),
        starts[0] - min(starts), min(starts), by[STAGE].commit_seconds,
        above.unit_seconds / shrunk if shrunk else 0.0, above.bytes_out / shrunk if shrunk else 0.0, above.start_seconds,
        max(0.0, publishing_s - LOOK_S * sum(len(p.blocks) for p in plans)) / len(plans),
    )  # fmt: skip


def reached(plan: Plan, task: Task) -> int:
    """Pixels that a unit reads, of all its scenes."""
    frame = plan.frame
    if task.what == "block" or frame.lattice is None:
        place = frame.grid.reach(frame.grid.at(task.row, task.col))
    else:
        place = frame.lattice.around(frame.lattice.at(task.row, task.col))
    return place.height * place.width * max(1, len(task.scenes))


def _newest(ledger: Ledger, stage: str, units: Sequence[tuple[Plan, Unit, Task]]) -> list[tuple[Entry, Plan, Task]]:
    done = ledger.done(stage)
    last = [x for x in units if x[1].id in done][-SAMPLE:]
    entries = ledger.entries([u for _, u, _ in last])
    return [(e, p, t) for e, (p, _, t) in zip(entries, last, strict=True) if e.steps]


def _uri(root: str) -> str:
    return storage.join(root, STAGE, "rates.json")


def _key(cfg: Config, weights: str) -> str:
    t = cfg.translate
    return digest(
        weights, cfg.speed.model_dump(), t.statistics, t.window, t.halo, t.overlap, t.batch, t.threads, t.block
    )


def _probe(cfg: Config, root: str, side: int) -> Rates:
    """Run a small window in this process and scale by area; all else is as the defaults have it."""
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
    where = f"this machine's {chain.device}, {t.threads} thread(s)"
    gathering = 0.0 if t.statistics == "window" else 0.6 * window * share
    return Rates(
        window, gathering, f"measured now on one small window ({where}); all else guessed", chain.device != "cpu"
    )
