"""What a run has cost: hours of processors, storage, requests, and energy and money where the config names power and prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sar2eo_dist.report.facts import expected
from sar2eo_dist.report.load import Run, Stage, as_number
from sar2eo_dist.report.text import UNKNOWN, human_seconds, number

#: verb -> the setting that says how many CPU cores its unit of work holds
_THREADS = {"collect": "cca.threads", "translate": "translate.threads", "evaluate": "evaluate.threads"}


@dataclass(frozen=True, slots=True)
class Row:
    """One verb, or one network of `train`. hours: of cores or GPUs, None = not known; written: bytes; money: of the hours,
    the objects written and the energy, None where there is no price or no hours; month: price of storing what was written
    for a month; puts: objects written, None = not counted; kwh: hours by power, None where no power is set; beside: hours of
    cores beside those of GPUs."""

    name: str
    device: str
    hours: float | None
    written: float | None
    money: float | None
    month: float | None
    puts: float | None = None
    kwh: float | None = None
    beside: float = 0.0
    part: bool = False  # of the row above, whose hours hold it


@dataclass(frozen=True, slots=True)
class Cost:
    """total: of the verbs; priced: whether any price is set; co2: g of a kWh, 0 = not counted; power: watts of a GPU and of a
    core as set; gets: whether reads have a price, which nobody counts; per_1000_km2: `translate` for 1,000 km2 of valid
    mosaic, None where the area is not known."""

    rows: tuple[Row, ...]
    total: Row
    currency: str
    priced: bool
    co2: float
    power: tuple[float, float]
    gets: bool
    per_1000_km2: Row | None

    @property
    def energy(self) -> bool:
        return any(r.kwh is not None for r in self.rows)

    def kg(self, row: Row) -> float | None:
        """CO2."""
        return row.kwh * self.co2 / 1000 if row.kwh is not None and self.co2 else None


def cost(run: Run, km2: float | None) -> Cost | None:
    """km2: valid area of the run's mosaics, None where there is none. None before any verb has finished."""
    verbs = [run.stages[n] for n in expected(run) if n in run.stages]
    if not verbs:
        return None
    rows: list[Row] = []
    for stage in verbs:
        parts = [_training(run, role, tree) for role, tree in run.records.items()] if stage.name == "train" else []
        rows += [verb(run, stage, parts), *parts]
    whole = [r for r in rows if not r.part]
    hours = {d: sum(r.hours or 0.0 for r in whole if r.device == d) for d in ("CPU", "GPU")}
    cores, gpu = hours["CPU"] + sum(r.beside for r in whole), hours["GPU"]
    total = Row(
        "all", "GPU" if gpu else "CPU", (gpu or cores) or None,
        sum(r.written or 0.0 for r in whole), _sum([r.money for r in whole]), _sum([r.month for r in whole]),
        _sum([r.puts for r in whole]), _sum([r.kwh for r in whole]), cores if gpu else 0.0,
    )  # fmt: skip
    priced = any(_price(run, k) for k in ("gpu_hour", "cpu_hour", "put_1000", "gb_month", "kwh"))
    currency = str(run.setting("cost.currency") or "")[:12]
    power = _price(run, "gpu_watts"), _price(run, "cpu_watts")
    return Cost(
        tuple(rows),
        total,
        currency,
        priced,
        _price(run, "kwh_co2"),
        power,
        _price(run, "get_1000") > 0,
        _area(whole, km2),
    )


def verb(run: Run, stage: Stage, parts: Sequence[Row] = ()) -> Row:
    """What a verb's units have cost; parts: of `train`, the rows of its networks."""
    month = _price(run, "gb_month")
    stored = None if not month or stage.bytes_out is None else stage.bytes_out / 1e9 * month
    if parts and len({p.device for p in parts}) == 1:  # the trainings' own count: their workers and threads are known
        hours, kwh = _sum([p.hours for p in parts]), _sum([p.kwh for p in parts])
        spent = _sum([p.money for p in parts])
        if spent is not None:
            spent += (stage.puts or 0.0) / 1000 * _price(run, "put_1000")
        return Row(stage.name, parts[0].device, hours, stage.bytes_out, spent, stored, stage.puts, kwh)
    gpu = any("gpu" in k.lower() and v not in ("", "0") for k, v in stage.machine.items())
    gpu = gpu or bool(stage.counts.get("blocks on a GPU"))
    threads = 1.0 if gpu else max(1.0, as_number(run.setting(_THREADS.get(stage.name, ""))) or 1.0)
    if stage.work is None:
        return Row(stage.name, "GPU" if gpu else "CPU", None, stage.bytes_out, None, stored, stage.puts)
    tasks = min(stage.work, sum(s for name, s in stage.steps.items() if name != "compute"))  # of one core each
    held = (stage.work - tasks) / 3600 * threads
    hours, beside = (held, tasks / 3600) if gpu else (held + tasks / 3600, 0.0)
    return Row(
        stage.name, "GPU" if gpu else "CPU", hours, stage.bytes_out, _money(run, gpu, hours, beside, stage.puts), stored,
        stage.puts, _kwh(run, gpu, hours, beside), beside,
    )  # fmt: skip


def _money(run: Run, gpu: bool, hours: float, beside: float, puts: float | None) -> float | None:
    amounts = [
        (hours, _price(run, "gpu_hour" if gpu else "cpu_hour")), (beside, _price(run, "cpu_hour")),
        ((puts or 0.0) / 1000, _price(run, "put_1000")), (_kwh(run, gpu, hours, beside), _price(run, "kwh")),
    ]  # fmt: skip
    return _sum([amount * price for amount, price in amounts if amount and price])


def kwh_of(gpu_hours: float, cpu_hours: float, gpu_watts: float, cpu_watts: float) -> float:
    """Energy of hours at a power each: an estimate, as nothing is measured."""
    return (gpu_hours * gpu_watts + cpu_hours * cpu_watts) / 1000


def _kwh(run: Run, gpu: bool, hours: float, beside: float) -> float | None:
    watts = _price(run, "gpu_watts"), _price(run, "cpu_watts")
    if not watts[0 if gpu else 1]:
        return None
    return kwh_of(hours if gpu else 0.0, beside if gpu else hours, *watts)


def _training(run: Run, role: str, tree: dict[str, float]) -> Row:
    """A network's own cost, as its record has it; a price that was not set then is taken from the config."""
    gpu, cpu, amount = (tree.get(k, 0.0) for k in ("gpu_hours", "cpu_hours", "amount"))
    money = amount or _money(run, bool(gpu), gpu or cpu, 0.0, None)
    kwh = tree.get("kwh") or _kwh(run, bool(gpu), gpu or cpu, 0.0)
    return Row(f"train: {role}", "GPU" if gpu else "CPU", gpu or cpu, None, money, None, kwh=kwh, part=True)


def _area(rows: list[Row], km2: float | None) -> Row | None:
    made = next((r for r in rows if r.name == "translate"), None)
    if made is None or not km2 or made.hours is None or made.written is None:
        return None
    each = 1000 / km2
    known = (made.money, made.month, made.puts, made.kwh)
    money, month, puts, kwh = (None if v is None else v * each for v in known)
    return Row(
        made.name, made.device, made.hours * each, made.written * each, money, month, puts, kwh, made.beside * each
    )


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
