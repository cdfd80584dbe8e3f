"""Hours, bytes and money of a run."""

from __future__ import annotations

import json
from typing import Any

import fake_run
import pytest
from dom import Node

from sar2eo_dist.report.cost import cost, money
from sar2eo_dist.report.load import Run, _stage
from sar2eo_dist.report.text import UNKNOWN


def run_of(config: dict[str, Any], **stages: dict[str, Any]) -> Run:
    run = Run("x", config=config)
    for name, tree in stages.items():
        run.stages[name] = _stage(name, json.dumps(fake_run.summary(name, 9) | tree).encode())
    return run


def test_core_hours_are_unit_time_by_threads() -> None:
    config = {"cca": {"threads": 4}, "cost": {"cpu_hour": 0.5, "gb_month": 0.1, "currency": "EUR"}}
    run = run_of(
        config, collect={"unit_seconds": 1800, "bytes_out": 3e9}, shard={"unit_seconds": 3600, "bytes_out": 1e9}
    )
    found = cost(run, None)
    assert found is not None
    assert [(r.name, r.device, r.hours, r.money) for r in found.rows] == [
        ("collect", "CPU", 2.0, 1.0), ("shard", "CPU", 1.0, 0.5),
    ]  # fmt: skip
    assert [r.month for r in found.rows] == pytest.approx([0.3, 0.1])
    assert (found.total.hours, found.total.money, found.total.written) == (3.0, 1.5, 4e9)
    assert found.per_1000_km2 is None


def test_gpu_hours_where_blocks_ran_on_one() -> None:
    config = {"translate": {"threads": 4}, "cost": {"gpu_hour": 2.0, "cpu_hour": 9.0}}
    run = run_of(config, translate={"unit_seconds": 7200, "bytes_out": 5e8, "counts": {"blocks on a GPU": 3}})
    found = cost(run, 500.0)
    assert found is not None
    assert (found.rows[0].device, found.rows[0].hours, found.rows[0].money) == ("GPU", 2.0, 4.0)
    area = found.per_1000_km2
    assert area is not None
    assert (area.hours, area.device, area.written, area.money) == (4.0, "GPU", 1e9, 8.0)


def test_what_reads_and_writes_for_gpus_is_cpu_time() -> None:
    """Steps run apart: the GPU is held by one, the others take a core each; stages beside have the verb's own names."""
    steps = {"compute": 3600.0, "read": 1800.0, "write": 900.0, "overviews": 900.0}
    tree = {"unit_seconds": 7200.0, "steps": steps, "puts": 2000}
    config = {"translate": {"threads": 4}, "cost": {"gpu_hour": 2.0, "cpu_hour": 0.5, "put_1000": 0.1}}
    found = cost(run_of(config, translate=tree | {"counts": {"blocks on a GPU": 3}}), None)
    assert found is not None
    assert (found.rows[0].hours, found.rows[0].beside) == (1.0, 1.0)
    assert found.rows[0].money == pytest.approx(2.0 + 0.5 + 0.2)
    found = cost(run_of(config, translate=tree), None)
    assert found is not None
    assert (found.rows[0].device, found.rows[0].hours, found.rows[0].beside) == ("CPU", 4 + 1.0, 0.0)
    assert found.rows[0].money == pytest.approx(5 * 0.5 + 0.2)
    assert (found.total.puts, found.energy) == (2000, False)
    gpu = run_of(config, translate=tree | {"counts": {"blocks on a GPU": 3}}, shard={"unit_seconds": 5400.0})
    both = cost(gpu, None)
    assert both is not None
    assert (both.total.device, both.total.hours, both.total.beside) == ("GPU", 1.0, 1.0 + 1.5)


def test_energy_is_hours_by_the_power_that_is_set() -> None:
    steps = {"compute": 3600.0, "read": 3600.0}
    tree = {"unit_seconds": 7200.0, "steps": steps, "counts": {"blocks on a GPU": 1}}
    config = {"cost": {"gpu_watts": 1000.0, "cpu_watts": 10.0, "kwh": 0.5, "kwh_co2": 98.0}}
    found = cost(run_of(config, translate=tree, shard={"unit_seconds": 3600.0}), 1000.0)
    assert found is not None
    assert [r.kwh for r in found.rows] == pytest.approx([0.01, 1.01])  # the verbs in their order: shard, translate
    assert found.total.kwh == pytest.approx(1.02)
    assert found.total.money == pytest.approx(0.51)
    assert found.kg(found.total) == pytest.approx(0.09996)
    assert found.per_1000_km2 is not None
    assert found.per_1000_km2.kwh == pytest.approx(1.01)
    only = cost(run_of({"cost": {"cpu_watts": 10.0}}, translate=tree, shard={"unit_seconds": 3600.0}), None)
    assert only is not None
    assert [r.kwh for r in only.rows] == [pytest.approx(0.01), None]  # of a GPU whose power nobody set, nothing is told
    assert only.kg(only.total) is None


def test_without_prices_or_times_nothing_is_made_up() -> None:
    run = run_of({}, collect={"unit_seconds": None}, evaluate={"unit_seconds": 360, "bytes_out": None})
    found = cost(run, None)
    assert found is not None
    assert not found.priced
    assert [(r.hours, r.money, r.month) for r in found.rows] == [(None, None, None), (0.1, None, None)]
    assert found.total.money is None
    assert cost(Run("x"), None) is None


def test_trainings_tell_their_own_cost() -> None:
    run = run_of({"cost": {"gpu_hour": 3.0}}, train={"unit_seconds": 999})
    run.records = {"translate": {"gpu_hours": 8.0, "cpu_hours": 0.0, "amount": 20.0}, "enhance": {"gpu_hours": 1.0}}
    found = cost(run, None)
    assert found is not None
    whole, *parts = found.rows
    assert (whole.device, whole.hours, whole.money) == ("GPU", 9.0, 23.0)
    assert [(p.name, p.hours, p.money, p.part) for p in parts] == [
        ("train: translate", 8.0, 20.0, True), ("train: enhance", 1.0, 3.0, True),
    ]  # fmt: skip
    assert found.total.hours == 9.0  # parts are not counted twice
    run.records["translate"]["kwh"] = 7.5
    run.config["cost"]["gpu_watts"] = 500.0
    told = cost(run, None)
    assert told is not None
    assert [r.kwh for r in told.rows] == [8.0, 7.5, 0.5]


def test_money_in_words() -> None:
    assert [money(m).replace("\N{NO-BREAK SPACE}", " ") for m in (None, 0, 1234.5, 0.0123, 1e-5)] == [
        UNKNOWN, "0.00", "1,234.50", "0.012", "< 0.001",
    ]  # fmt: skip


def test_the_page_tells_it(page: Node) -> None:
    section = page.one("section", id="cost")
    rows = {r.attrs["data-cost"]: r.text for r in section.all("tr") if "data-cost" in r.attrs}
    assert rows["train"].replace("\xa0", " ") == "train 1 h 30 min CPU 1.0 MB \N{EN DASH} 0.015 0.0015 kg 0.075 < 0.001"
    assert rows["train: translate"].replace("\xa0", " ").startswith("train: translate 1 h 30 min CPU")
    assert (
        rows["translate"].replace("\xa0", " ").startswith("translate 4 min 20 s CPU 1.5 MB 24 ")
    )  # 130 s by two threads
    hours = 2 * 130 / 3600 / (249_037 * 100 / 1e6) * 1000
    assert f"1,000 km² of valid mosaic take {hours:.2f} CPU-hours" in section.text
    km2 = 249_037 * 100 / 1e6
    assert f"in {24 / km2 * 1000:.0f} objects, " in section.text
    assert f"{2 * 130 / 3600 / 100 / km2 * 1000:.4f} kWh" in section.text
    assert "EUR" in section.text
    assert (
        "Energy is an estimate, not a measurement: these hours at 10.0 W a core, 98.0 g CO₂ a kWh, as set."
        in section.text
    )
    assert "With prices" not in section.text
