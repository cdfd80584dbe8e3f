"""What collect kept near a place and a date, found in the table of all verdicts without ever holding it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist.records import KEPT, S2, Pair, TileRef, from_table
from sar2eo_dist.sources.ranged import ranged

ROWS = 1 << 16  # of verdicts that are decoded at a time
POINTER = [f.name for f in dataclasses.fields(TileRef)]
Pick = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
Wanted = tuple[str, dt.date]  # place, date


def other_dates(verdicts: str, pairs: Sequence[Pair]) -> list[TileRef | None]:
    """For each pair the clear optical image of its place on the nearest other day (of two, the earlier); None: there is none.

    verdicts: URI of a parquet file of Verdicts, see `usable`.
    """

    def pick(days: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        other = np.flatnonzero(days)
        return other[np.argsort(np.abs(days[other]), kind="stable")[:1]]

    found = usable(verdicts, S2, [(p.place, p.eo_date) for p in pairs], pick)
    return [refs[0] if refs else None for refs in found]


def usable(verdicts: str, sensor: str, wanted: Sequence[Wanted], pick: Pick) -> list[tuple[TileRef, ...]]:
    """For each place and date those acquisitions of a sensor there, kept by the Clean Collector, that `pick` chooses.

    verdicts: URI of a parquet file of Verdicts. It is read by columns and ROWS rows at a time, twice: for places and dates
    of the usable ones, then for the pointers that were chosen; nothing else of it is ever held.
    pick: of the usable ones' days after that date, ascending (n,) int64, the indices that are wanted, in any order
    """
    places = sorted({place for place, _ in wanted})
    with ranged(verdicts) as f:
        file = pq.ParquetFile(f)
        place, day, row = _usable(file, sensor, places)
        order = np.lexsort((row, day, place))
        place, day, row = place[order], day[order], row[order]
        picked: list[list[int]] = []
        for at, date in wanted:
            first, last = np.searchsorted(place, np.searchsorted(places, at) + np.array([0, 1]))
            picked.append(row[first:last][pick(day[first:last] - date.toordinal())].tolist())
        refs = pointers(file, sorted({r for rows in picked for r in rows}))
    return [tuple(refs[r] for r in rows) for rows in picked]


def _usable(file: pq.ParquetFile, sensor: str, places: list[str]) -> tuple[npt.NDArray[np.int64], ...]:
    """(index of the place, day as ordinal, row of the file), each (n,) int64, of what is usable at some places."""
    epoch, start, found = np.datetime64(0, "D").item().toordinal(), 0, []
    for batch in file.iter_batches(ROWS, columns=["sensor", "reason", "place", "date"]):
        at = pc.index_in(batch["place"], pa.array(places, pa.string()))
        keep = pc.and_(pc.and_(pc.equal(batch["sensor"], sensor), pc.equal(batch["reason"], KEPT)), pc.is_valid(at))
        rows = np.flatnonzero(keep.to_numpy(zero_copy_only=False))
        days = batch["date"].cast(pa.int32()).to_numpy(zero_copy_only=False)[rows].astype(np.int64) + epoch
        found.append((at.take(pa.array(rows)).to_numpy(zero_copy_only=False).astype(np.int64), days, rows + start))
        start += batch.num_rows
    return tuple(np.concatenate([part[i] for part in found] or [np.empty(0, np.int64)]) for i in range(3))


def pointers(file: pq.ParquetFile, rows: Sequence[int]) -> dict[int, TileRef]:
    """row -> pointer, of ascending rows of a file of Verdicts; row groups without any are not read."""
    refs: dict[int, TileRef] = {}
    wanted, start = np.array(rows, np.int64), 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if np.searchsorted(wanted, end) > np.searchsorted(wanted, start):
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=POINTER):
                here = wanted[slice(*np.searchsorted(wanted, [start, start + batch.num_rows]))]
                some = pa.Table.from_batches([batch]).take(pa.array(here - start))
                refs |= zip(here.tolist(), from_table(some, TileRef), strict=True)
                start += batch.num_rows
        start = end
    return refs
