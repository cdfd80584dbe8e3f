"""SAR-EO pairs of one place within a number of days, over whole tables: no Python loop over rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pairing.split import PATCH_DEGREES
from sar2eo_dist.records import KEPT, Pair, schema

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MODES, PLACES = ("nearest", "all", "released", "none"), ("cell", "footprint")
RELEASED_DAYS = 6  # the authors' script accepts a difference below 7
COLUMNS = ("key", "place", "lon", "lat", "date", "orbit", "platform", "digest")
SLAB, BLOCK = 1 << 17, 1 << 21  # EO images looked up, candidate pairs held, at once
CHUNK = 1 << 20  # rows of one chunk of the result: an Arrow string array ends at 2 GB
NOWHERE = -1


class Rule(Protocol):
    """What pairing reads of `config.Pairing`."""

    @property
    def max_days(self) -> int: ...
    @property
    def mode(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def min_overlap(self) -> float: ...


def match(sar: pa.Table, eo: pa.Table, cfg: Rule) -> pa.Table:
    """Pairs of kept images (reason "") of the same place with |EO date - SAR date| <= `max_days`.

    sar, eo: tables with the columns `COLUMNS` and `reason` of `records.Verdict`. Returns `schema(Pair)`: position and
    place are the EO image's, orbit and platform the SAR image's, days = EO date - SAR date; split is left "" (see
    `split.assign`).

    mode nearest    the nearest SAR image of each EO image; one SAR image may serve several EO images
    mode all        every combination
    mode none       no pair: an archive of clear tiles alone, to grade mosaics with
    mode released   as the authors' scripts match: nearest, accepted only below 7 days whatever `max_days` is, and kept in
                    a dict by SAR image, where a later EO image overwrites an earlier one: the last EO date stays
    place cell      the same 0.02 degree place
    place footprint patches of 256 pixels of 10 m that overlap by `min_overlap` of a patch's area or more (see `overlap`);
                    not across the antimeridian

    Of SAR images equally near in time the one that overlaps most is taken (footprint), then the earlier one, then by
    key, digest and the other columns; in `released`, of EO images of one date the last by place, key and so on. A row is
    an image: equal keys are not merged. The result is in the order of place, EO date, eo_key, SAR date, sar_key, then of
    the rest, and depends neither on the order nor on the chunks of the input. Raises ConfigError: unknown mode or place,
    negative max_days, min_overlap outside 0..1, or a footprint without a position.
    """
    check(cfg)
    sar, eo = kept(sar, eo)
    if cfg.mode == "none":
        none = np.zeros(0, np.int64)
        return _pairs(sar, eo, none, none)
    if cfg.mode == "all":
        found = [(e, s) for e, s, _, _ in candidates(sar, eo, cfg, cfg.max_days)]
    else:
        limit = RELEASED_DAYS if cfg.mode == "released" else cfg.max_days
        found = [_nearest(*block) for block in candidates(sar, eo, cfg, limit)]
    e, s = (np.concatenate([f[i] for f in found]) if found else np.zeros(0, np.int64) for i in (0, 1))
    if cfg.mode == "released":
        order = np.lexsort((e, days_of(eo)[e], s))
        last = order[np.diff(s[order], append=-1) != 0]
        e, s = e[last], s[last]
    order = np.lexsort((s, e, _ranks(sar, "date", "key")[s], _ranks(eo, "place", "date", "key")[e]))
    return _pairs(sar, eo, s[order], e[order])


def kept(sar: pa.Table, eo: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The kept rows of both in canonical order: SAR by date, key, digest ...; EO by place, date, key, digest ..."""
    sar = _sorted(sar, "date", "key", "digest", "place", "lon", "lat", "orbit", "platform")
    return sar, _sorted(eo, "place", "date", "key", "digest", "lon", "lat")


def candidates(sar: pa.Table, eo: pa.Table, cfg: Rule, max_days: int) -> Iterator[tuple[Ints, Ints, Ints, Floats]]:
    """Blocks of (e, s, |days|, overlap) of all pairs of one place within `max_days`; e and s: rows of the `kept` tables.

    e ascends, and all candidates of an EO image are in one block. overlap: 0..1, 1 throughout where places are cells.
    """
    if not len(sar) or not len(eo):
        return
    eo_day, sar_day = days_of(eo), days_of(sar)
    first = min(int(eo_day.min()), int(sar_day.min()))
    span = max(int(eo_day.max()), int(sar_day.max())) - first + 1
    near = min(max_days, span)
    by_footprint = cfg.place == "footprint"
    codes, find = _footprints(sar, eo) if by_footprint else _cells(sar)
    eo_at, sar_at = ([_numbers(t, c) for c in ("lon", "lat")] for t in (eo, sar))
    order = np.lexsort((sar_day, codes))
    keys = (codes * span + sar_day - first)[order]
    for at in range(0, len(eo), SLAB):
        part, day = eo.slice(at, SLAB), eo_day[at : at + SLAB, None] - first
        code = find(part)  # (images, bins of the ground to look into)
        low = np.searchsorted(keys, code * span + np.maximum(day - near, 0))
        high = np.searchsorted(keys, code * span + np.minimum(day + near, span - 1), "right")
        counts = np.where(code == NOWHERE, 0, high - low)
        ends = np.cumsum(counts.sum(axis=1))
        cuts = np.searchsorted(ends, np.arange(BLOCK, ends[-1] + 1, BLOCK)).tolist()
        for a, b in itertools.pairwise([0, *cuts, len(part)]):
            n = counts[a:b].ravel()
            e = at + np.repeat(np.arange(a, b), counts[a:b].sum(axis=1))
            s = order[np.repeat(low[a:b].ravel() - np.cumsum(n) + n, n) + np.arange(n.sum())]
            share = np.ones(len(e))
            if by_footprint:
                share = overlap(*(x[e] for x in eo_at), *(x[s] for x in sar_at))
                good = share >= cfg.min_overlap
                e, s, share = e[good], s[good], share[good]
            yield e, s, np.abs(eo_day[e] - sar_day[s]), share


def overlap(lon: Floats, lat: Floats, other_lon: Floats, other_lat: Floats) -> Floats:
    """Share of a patch's area that two north-up patches of 2560 m around these centres (degrees) have in common, 0..1.

    Longitudes shrink by the cosine of the mean latitude. To 9 decimals, so that no rounding error decides between two.
    """
    east = np.abs(lon - other_lon) * np.cos(np.radians((lat + other_lat) / 2)) / PATCH_DEGREES
    north = np.abs(lat - other_lat) / PATCH_DEGREES
    return np.round(np.maximum(1 - east, 0) * np.maximum(1 - north, 0), 9)


def days_of(table: pa.Table) -> Ints:
    """The dates as days since 1970."""
    return np.asarray(table["date"].cast(pa.int32()).to_numpy(), np.int64)


def smallest(group: Ints, value: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Whether a row's value is the smallest of its group; `group` ascends from 0 or more."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if not len(starts):
        return np.zeros(0, bool)
    best = np.minimum.reduceat(value, starts)
    return np.asarray(value == np.repeat(best, np.diff(starts, append=len(group))))


def _nearest(e: Ints, s: Ints, gap: Ints, share: Floats) -> tuple[Ints, Ints]:
    """One candidate of each e: of the nearest in time, of those that overlap most, the first."""
    best = np.flatnonzero(smallest(e, gap))
    best = best[smallest(e[best], -share[best])]
    best = best[smallest(e[best], s[best])]
    return e[best], s[best]


def _cells(sar: pa.Table) -> tuple[Ints, Callable[[pa.Table], Ints]]:
    """(code of each SAR image's place, the places to look into for EO images)."""
    known = pc.unique(sar["place"])

    def codes(part: pa.Table) -> Ints:
        found = pc.fill_null(pc.index_in(part["place"], value_set=known), NOWHERE)
        return np.asarray(found.to_numpy(), np.int64)

    return codes(sar), lambda part: codes(part)[:, None]


def _footprints(sar: pa.Table, eo: pa.Table) -> tuple[Ints, Callable[[pa.Table], Ints]]:
    """As `_cells`, with bins of at least a patch's size, so that whatever overlaps lies in a bin's 3 x 3 neighbours."""
    lost = sum(int((~np.isfinite(_numbers(t, c))).sum()) for t in (sar, eo) for c in ("lon", "lat"))
    if lost:
        raise ConfigError(
            f"pairing.place=footprint needs positions, and {lost} longitudes or latitudes are missing: use pairing.place=cell"
        )

    def packed(lon: Floats, row: Floats) -> Ints:
        # as wide as a patch is anywhere in this row of bins or the two beside it
        pole = np.minimum((np.abs(row + 0.5) + 1.5) * PATCH_DEGREES, 90.0)
        width = PATCH_DEGREES / np.maximum(np.cos(np.radians(pole)), 1e-6)
        return row.astype(np.int64) * 2**32 + np.floor(lon / width).astype(np.int64)

    def row_of(table: pa.Table) -> Floats:
        return np.floor(_numbers(table, "lat") / PATCH_DEGREES)

    bins, codes = np.unique(packed(_numbers(sar, "lon"), row_of(sar)), return_inverse=True)

    def find(part: pa.Table) -> Ints:
        lon, row = _numbers(part, "lon"), row_of(part)
        wanted = np.stack([packed(lon, row + i) + j for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=1)
        at = np.minimum(np.searchsorted(bins, wanted), len(bins) - 1)
        return np.where(bins[at] == wanted, at, NOWHERE)

    return codes, find


def check(cfg: Rule) -> None:
    """Raises ConfigError for a rule without sense."""
    if cfg.mode not in MODES:
        raise ConfigError(f"unknown pairing.mode {cfg.mode!r}: one of {', '.join(MODES)}")
    if cfg.place not in PLACES:
        raise ConfigError(f"unknown pairing.place {cfg.place!r}: one of {', '.join(PLACES)}")
    if cfg.max_days < 0:
        raise ConfigError(f"pairing.max_days must be 0 or more, not {cfg.max_days}")
    if not 0 < cfg.min_overlap <= 1:
        raise ConfigError(f"pairing.min_overlap must be above 0 and at most 1, not {cfg.min_overlap}")


def _numbers(table: pa.Table, column: str) -> Floats:
    return np.asarray(table[column].to_numpy(), np.float64)


def _sorted(table: pa.Table, *columns: str) -> pa.Table:
    table = table.filter(pc.equal(table["reason"], KEPT)).select(COLUMNS)
    return table.take(pc.sort_indices(table, [(c, "ascending") for c in columns])).combine_chunks()


def _ranks(table: pa.Table, *columns: str) -> Ints:
    """A number for each row of a sorted table, equal for neighbours with the same values in these columns."""
    step = np.zeros(len(table), bool)
    for c in columns:
        step[1:] |= pc.not_equal(table[c].slice(1), table[c].slice(0, max(len(table) - 1, 0))).to_numpy()
    return np.cumsum(step, dtype=np.int64)


def _pairs(sar: pa.Table, eo: pa.Table, s: Ints, e: Ints) -> pa.Table:
    chunks = [_chunk(sar.take(s[at : at + CHUNK]), eo.take(e[at : at + CHUNK])) for at in range(0, len(s), CHUNK)]
    return pa.concat_tables(chunks) if chunks else schema(Pair).empty_table()


def _chunk(sar: pa.Table, eo: pa.Table) -> pa.Table:
    columns = {
        "place": eo["place"], "lon": eo["lon"], "lat": eo["lat"], "sar_key": sar["key"], "eo_key": eo["key"],
        "sar_date": sar["date"], "eo_date": eo["date"], "days": pa.array(days_of(eo) - days_of(sar)),
        "orbit": sar["orbit"], "platform": sar["platform"], "sar_digest": sar["digest"], "eo_digest": eo["digest"],
        "split": pa.repeat("", len(eo)),
    }  # fmt: skip
    return pa.table(columns, schema=schema(Pair))
