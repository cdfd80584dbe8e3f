"""The nearest other clear date against a plain search."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sar2eo_dist.pipeline import near
from sar2eo_dist.records import Pair, Verdict, place_key, to_table

FIRST = dt.date(2020, 1, 1)


def verdict(sensor: str, lon: float, day: int, reason: str) -> Verdict:
    date, place = FIRST + dt.timedelta(day), place_key(lon, -4.0)
    key = f"{sensor}/{place}/{date}"
    about = (sensor, place, lon, -4.0, date, "descending", "S2A", "multiearth_tiff", (f"{key}.tif",), ("B4",), ())
    return Verdict(key, *about, f"d{key}", reason)


def pair(lon: float, day: int) -> Pair:
    date, place = FIRST + dt.timedelta(day), place_key(lon, -4.0)
    return Pair(place, lon, -4.0, "s", "e", date, date, 0, "descending", "S1A", "a", "b", "val")


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_other_kept_date_of_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(near, "ROWS", 7)
    rng = np.random.default_rng(seed)
    keys = {
        (str(rng.choice(["s1", "s2"])), round(-55 + 0.02 * int(rng.integers(4)), 2), int(rng.integers(40)))
        for _ in range(90)
    }
    rows = [verdict(*k, str(rng.choice(["", "", "alpha"]))) for k in sorted(keys)]
    rng.shuffle(rows)  # type: ignore[arg-type]
    pq.write_table(to_table(rows, Verdict), tmp_path / "v.parquet", row_group_size=11)
    pairs = [pair(-55 + 0.02 * int(rng.integers(5)), int(rng.integers(40))) for _ in range(30)]
    found = near.other_dates(str(tmp_path / "v.parquet"), pairs)
    for p, ref in zip(pairs, found, strict=True):
        there = [v for v in rows if (v.sensor, v.place, v.reason) == ("s2", p.place, "") and v.date != p.eo_date]
        best = min(there, key=lambda v: (abs((v.date - p.eo_date).days), v.date), default=None)
        assert (ref.key if ref else None) == (best.key if best else None)
        assert ref is None or ref == best.ref  # type: ignore[union-attr]


def test_a_place_without_verdicts_has_none(tmp_path: Path) -> None:
    pq.write_table(to_table([], Verdict), tmp_path / "v.parquet")
    assert near.other_dates(str(tmp_path / "v.parquet"), [pair(-55, 3)]) == [None]
