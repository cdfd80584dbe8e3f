"""Verdicts of small made-up archives, as tables."""

from __future__ import annotations

import datetime as dt
import itertools

import pyarrow as pa

from sar2eo_dist.pairing import match as module
from sar2eo_dist.records import Pair, TileRef, Verdict, from_table, to_table
from sar2eo_dist.sections import Pairing

DAY0 = dt.date(2019, 6, 1)


def tile(sensor: str, day: int, place: int = 0, reason: str = "", mark: str = "") -> Verdict:
    return patch_at(sensor, day, -55.20 + 0.02 * place, -4.39, reason, mark or f"{sensor}{day}/{place}")


def patch_at(sensor: str, day: int, lon: float, lat: float, reason: str = "", mark: str = "") -> Verdict:
    date = DAY0 + dt.timedelta(day)
    ref = TileRef(sensor, lon, lat, date, "multiearth_tiff", (), (), mark or f"{sensor}{day}")
    orbit = "ascending" if sensor == "s1" else "unknown"
    return Verdict(
        ref.key, sensor, ref.place, lon, lat, date, orbit, f"{sensor}A", ref.kind, (), (), (), ref.digest, reason
    )


def table(tiles: list[Verdict], chunks: int = 1) -> pa.Table:
    """Only the columns that may be read, in this row order."""
    whole = to_table(tiles, Verdict).select([*module.COLUMNS, "reason"])
    at = [len(tiles) * i // chunks for i in range(chunks + 1)]
    return pa.concat_tables([whole.slice(a, b - a) for a, b in itertools.pairwise(at)])


def run(sar: list[Verdict], eo: list[Verdict], max_days: int, mode: str = "nearest", **more: object) -> list[Pair]:
    cfg = Pairing(max_days=max_days, mode=mode, **more)  # type: ignore[arg-type]
    return from_table(module.match(table(sar), table(eo), cfg), Pair)


def days(pairs: list[Pair]) -> list[tuple[int, int]]:
    return [((p.eo_date - DAY0).days, (p.sar_date - DAY0).days) for p in pairs]
