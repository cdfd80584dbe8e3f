"""The driver's side of a collect: packs in any order become verdicts in order, and errors find their way."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sar2eo_dist.config import load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline.collect import gather
from sar2eo_dist.pipeline.judge import bare, to_ipc
from sar2eo_dist.pipeline.stage import Failure
from sar2eo_dist.records import TileRef, Unit, Verdict, from_table, to_table


def pack(unit: Unit, number: int, last: bool = False, error: str = "") -> dict[str, Any]:
    refs = [
        TileRef("s2", -55.0, -4.0, dt.date(2019, 6, 1) + dt.timedelta(10 * number + i), "k", (), (), "d")
        for i in range(2)
    ]
    rows = to_ipc(to_table([bare(r, "") for r in refs], Verdict))
    return {
        "unit": unit.id,
        "pack": number,
        "last": last,
        "error": error,
        "started": 1.0,
        "bytes_in": 10 * number,
        "verdicts": rows,
    }


def test_packs_arrive_in_any_order(tmp_path: Path) -> None:
    cfg = load(overrides=[f"run.out={tmp_path}"])
    units = {u.id: u for u in (Unit("collect", k, "f", k) for k in "abc")}
    rows = [pack(u, n, last=n == 4) for u in units.values() for n in range(5)]
    random.Random(5).shuffle(rows)
    found = list(gather(cfg, rows, units, "slices", 1))
    assert {e.unit.id for e in found if isinstance(e, Entry)} == set(units)
    for entry in found:
        assert isinstance(entry, Entry)
        assert (entry.counts, entry.bytes_in) == ({"s2 pass": 10}, 40)
        keys = [v.key for v in from_table(pq.read_table(tmp_path / entry.outputs[0].path), Verdict)]
        assert len(keys) == 10
        assert keys == sorted(keys)


def test_a_failed_unit_harms_no_other_and_is_never_published(tmp_path: Path) -> None:
    cfg = load(overrides=[f"run.out={tmp_path}"])
    good, bad = (Unit("collect", k, "f", k) for k in "ab")
    rows = [pack(bad, 0), pack(good, 0), pack(bad, 1, last=True, error="Unavailable: gone"), pack(good, 1, last=True)]
    first, second = gather(cfg, rows, {u.id: u for u in (good, bad)}, "slices", 1)
    assert first == Failure(bad.id, "Unavailable: gone")
    assert isinstance(second, Entry)
    assert [p.stem for p in (tmp_path / "slices").iterdir()] == [good.id]


def test_what_every_unit_would_meet_stops_the_run(tmp_path: Path) -> None:
    unit = Unit("collect", "a", "f", "a")
    rows = [pack(unit, 0, error="ConfigError: cca.pack=512 does not fit the GPU, 128 does")]
    with pytest.raises(ConfigError, match="^cca.pack=512 does not fit the GPU, 128 does"):
        list(gather(load(overrides=[f"run.out={tmp_path}"]), rows, {unit.id: unit}, "slices", 1))
