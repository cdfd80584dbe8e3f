"""SAR-EO pairs of one place within a number of days."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.records import KEPT, Pair, Verdict


def match(sar: Sequence[Verdict], eo: Sequence[Verdict], max_days: int, mode: str) -> list[Pair]:
    """Pairs of kept tiles (reason "") of the same 0.02 degree place with |EO date - SAR date| <= max_days.

    nearest   the nearest SAR image of each EO image; of two equally near ones the earlier. One SAR image may serve
              several EO images.
    all       every combination
    Position is the EO tile's, orbit and platform the SAR tile's; `split` is left "" (see `split.assign`). Canonical
    order: place, EO date, SAR date; the order of the input does not matter. Raises ConfigError: unknown mode.
    """
    if mode not in ("nearest", "all"):
        raise ConfigError(f"unknown pairing.mode {mode!r}: nearest or all")
    if max_days < 0:
        raise ConfigError(f"pairing.max_days must be 0 or more, not {max_days}")
    by_place: dict[str, list[Verdict]] = defaultdict(list)
    for s in _kept(sar):
        by_place[s.place].append(s)
    pairs: list[Pair] = []
    for e in _kept(eo):
        near = [s for s in by_place.get(e.place, ()) if abs((e.date - s.date).days) <= max_days]
        if mode == "nearest" and near:
            near = [min(near, key=lambda s: abs((e.date - s.date).days))]  # the first, so the earliest, of equals
        pairs.extend(_pair(s, e) for s in near)
    return pairs


def _kept(tiles: Iterable[Verdict]) -> list[Verdict]:
    return sorted((t for t in tiles if t.reason == KEPT), key=lambda t: (t.place, t.date, t.key, t.digest))


def _pair(sar: Verdict, eo: Verdict) -> Pair:
    return Pair(
        place=eo.place,
        lon=eo.lon,
        lat=eo.lat,
        sar_key=sar.key,
        eo_key=eo.key,
        sar_date=sar.date,
        eo_date=eo.date,
        days=(eo.date - sar.date).days,
        orbit=sar.orbit,
        platform=sar.platform,
        sar_digest=sar.digest,
        eo_digest=eo.digest,
        split="",
    )
