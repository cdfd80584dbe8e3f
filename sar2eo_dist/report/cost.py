"""What a run has cost: hours of processors, storage, and money where the config names prices. Nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass

from sar2eo_dist.report.facts import expected
from sar2eo_dist.report.load import Run, Stage, as_number
from sar2eo_dist.report.text import UNKNOWN, human_seconds, number

#: verb -> the setting that says how many CPU cores its unit of work holds
_THREADS = {"collect": "cca.threads", "translate": "translate.threads", "evaluate": "evaluate.threads"}


@dataclass(frozen=True, slots=True)
class Row:
    """One verb, or one network of `train`. hours: of cores or GPUs, None = not known; written: bytes; money: of the hours,
    None where there is no price or no hours; month: price of storing what was written for a month."""

    name: str
    device: str
    hours: float | None
    written: float | None
    money: float | None
    month: float | None
    part: bool = False  # of the row above, whose hours hold it


@dataclass(frozen=True, slots=True)
class Cost:
    """total: of the verbs; priced: whether any price is set; per_1000_km2: of `translate`, (hours, device, bytes, money or
    None) for 1,000 km2 of valid mosaic, None where the area is not known."""

    rows: tuple[Row, ...]
    total: Row
    currency: str
    priced: bool
    per_1000_km2: tuple[float, str, float, float | None] | None


def cost(run: Run, km2: float | None) -> Cost | None:
    """km2: valid area of the run's mosaics, None where there is none. None before any verb has finished."""
    verbs = [run.stages[n] for n in expected(run) if n in run.stages]
    if not verbs:
        return None
    rows: list[Row] = []
    for stage in verbs:
        parts = [_training(run, role, tree) for role, tree in run.records.items()] if stage.name == "train" else []
        rows += [_verb(run, stage, parts), *parts]
    whole = [r for r in rows if not r.part]
    hours = {d: sum(r.hours or 0.0 for r in whole if r.device == d) for d in ("CPU", "GPU")}
    devices = [d for d, h in hours.items() if h]
    total = Row(
        "all", devices[0] if len(devices) == 1 else "", hours[devices[0]] if len(devices) == 1 else None,
        sum(r.written or 0.0 for r in whole), _sum([r.money for r in whole]), _sum([r.month for r in whole]),
    )  # fmt: skip
    priced = any(_price(run, k) for k in ("gpu_hour", "cpu_hour", "gb_month"))
    currency = str(run.setting("cost.currency") or "")[:12]
    return Cost(tuple(rows), total, currency, priced, _area(whole, km2))


def _verb(run: Run, stage: Stage, parts: list[Row]) -> Row:
    month = _price(run, "gb_month")
    stored = None if not month or stage.bytes_out is None else stage.bytes_out / 1e9 * month
    if parts and len({p.device for p in parts}) == 1:  # the trainings' own count: their workers and threads are known
        hours = _sum([p.hours for p in parts])
        return Row(stage.name, parts[0].device, hours, stage.bytes_out, _sum([p.money for p in parts]), stored)
    gpu = any("gpu" in k.lower() and v not in ("", "0") for k, v in stage.machine.items())
    gpu = gpu or bool(stage.counts.get("blocks on a GPU"))
    threads = 1.0 if gpu else max(1.0, as_number(run.setting(_THREADS.get(stage.name, ""))) or 1.0)
    hours = None if stage.work is None else stage.work / 3600 * threads
    price = _price(run, "gpu_hour" if gpu else "cpu_hour")
    money = None if hours is None or not price else hours * price
    return Row(stage.name, "GPU" if gpu else "CPU", hours, stage.bytes_out, money, stored)


def _training(run: Run, role: str, tree: dict[str, float]) -> Row:
    """A network's own cost, as its record has it; a price that was not set then is taken from the config."""
    gpu, cpu, amount = (tree.get(k, 0.0) for k in ("gpu_hours", "cpu_hours", "amount"))
    price = _price(run, "gpu_hour" if gpu else "cpu_hour")
    money = amount or ((gpu or cpu) * price if price else None)
    return Row(f"train: {role}", "GPU" if gpu else "CPU", gpu or cpu, None, money, None, part=True)


def _area(rows: list[Row], km2: float | None) -> tuple[float, str, float, float | None] | None:
    made = next((r for r in rows if r.name == "translate"), None)
    if made is None or not km2 or made.hours is None or made.written is None:
        return None
    each = 1000 / km2
    return made.hours * each, made.device, made.written * each, None if made.money is None else made.money * each


def _price(run: Run, name: str) -> float:
    return as_number(run.setting(f"cost.{name}")) or 0.0


def _sum(values: list[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) if there else None


def money(amount: float | None) -> str:
    """12.345 -> '12.35'; less than a tenth keeps two digits that tell."""
    if amount is None:
        return UNKNOWN
    if 0 < amount < 0.001:
        return "<\N{NO-BREAK SPACE}0.001"
    return f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else number(amount, 2)


def human_hours(hours: float | None) -> str:
    """1.5 -> '1 h 30 min'."""
    return human_seconds(None if hours is None else 3600 * hours)
