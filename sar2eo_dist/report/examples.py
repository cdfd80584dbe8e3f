"""Example tiles by reason, and side-by-side samples: what the decisions and the translations look like."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sar2eo_dist.records import KEPT, REASONS, Verdict
from sar2eo_dist.report import facts
from sar2eo_dist.report.images import Album, Picture
from sar2eo_dist.report.load import Run, as_number, verdicts_of
from sar2eo_dist.report.measures import REFERENCE
from sar2eo_dist.report.text import day_gap, known, number, percent, redact

EACH = 6  # tiles shown for a reason
LABELS = {
    "sar": "SAR", "translated": "Translated", "enhanced": "Enhanced", "true": "True", "nearest_date": "Nearest clear date",
}  # fmt: skip
#: why a sample is shown -> what the page calls it
WHY = {
    "spread": "Evenly spaced over the split", "worst": "Worst, by MAE of the last network",
    "best": "Best, by MAE of the last network",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thumb:
    """One tile: picture (or why there is none), its key, its day, what was measured that decided, and, where stage 3
    judged it, its score."""

    key: str
    date: str
    measured: str
    picture: Picture
    score: float | None


@dataclass(frozen=True, slots=True)
class Group:
    """The examples of one reason ("" = kept). limit: what a tile had to pass; count: all tiles of that reason."""

    reason: str
    meaning: str
    limit: str
    count: int
    thumbs: tuple[Thumb, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of a sample; mae None where there is none to give; best among the models' images."""

    name: str
    label: str
    picture: Picture
    mae: float | None
    best: bool


@dataclass(frozen=True, slots=True)
class Sample:
    sar_key: str
    eo_key: str
    gap: str
    images: tuple[Shown, ...]


def groups(run: Run, album: Album) -> list[Group]:
    """Up to EACH optical tiles of every reason, kept ones first: the same ones for the same verdicts."""
    chosen = facts.keys_by_reason(run, EACH)
    totals: dict[str, int] = {}
    for part in facts.intake(run):
        if part.sensor == "s2":
            totals = {KEPT: part.kept} | {r.name: r.count for r in part.dropped}
    found = verdicts_of(run, [k for keys in chosen.values() for k in keys])
    out = []
    for reason, keys in chosen.items():
        meaning = "nothing rejects them" if reason == KEPT else REASONS.get(reason, "")
        thumbs = tuple(_thumb(album, found[k]) for k in keys if k in found)
        out.append(Group(reason, meaning, _limit(run, reason), totals.get(reason, len(keys)), thumbs))
    return out


def _thumb(album: Album, v: Verdict) -> Thumb:
    if v.reason in {"unreadable", "missing_band", "wrong_shape", "wrong_dtype"}:  # known: not read again
        picture = Picture(missing=redact(v.detail or v.reason))
    else:
        picture = album.tile(v.ref)
    score = v.score if v.reason in (KEPT, "frechet") and math.isfinite(v.score) else None
    return Thumb(v.key, str(v.date), _measured(v), picture, score)


def _measured(v: Verdict) -> str:
    """The number that decided."""
    deciding: dict[str, tuple[str, float, Callable[[float], str]]] = {
        "qa60": ("QA60", v.qa60_fraction, percent),
        "dark": ("dark", v.dark_fraction, percent),
        "all_nodata": ("valid", v.valid_fraction, percent),
        "alpha": ("DN", v.max_dn, number),
        "brightness": ("V", v.brightness, number),
        "partial": ("valid", v.valid_fraction, percent),
        "night": ("light DN", v.light, number),
        "white": ("white", v.white_fraction, percent),
        "haze": ("haze DN", v.haze, number),
        "frechet": ("score", v.score, number),
        KEPT: ("score", v.score, number),
    }
    label, value, say = deciding.get(v.reason, ("", math.nan, number))
    if v.reason == KEPT and not known(value):
        label, value = "haze DN", v.haze
    return f"{label} {say(value)}" if known(value) else ""


def _limit(run: Run, reason: str) -> str:
    """What that number had to pass, where config or calibration tell it."""
    if reason == "frechet":
        return f"threshold {number(run.calibration.threshold)}" if run.calibration else ""
    limits = {
        "alpha": ("alpha", "limit DN"), "brightness": ("brightness_min", "limit V"), "night": ("light_min", "limit DN"),
        "white": ("white_max_fraction", "limit share"), "partial": ("valid_min_fraction", "limit share"),
        "haze": ("haze_max", "limit DN"),
    }  # fmt: skip
    name, label = limits.get(reason, ("", ""))
    value = as_number(run.setting(f"cca.{name}"))
    return f"{label} {number(value)}" if value is not None else ""


def samples(run: Run, album: Album) -> list[tuple[str, list[Sample]]]:
    """(why, side-by-side images as `evaluate` chose them), in the order of LABELS and of WHY; best: of the networks' MAE.

    What is of an older run says no reason: those are spread.
    """
    by_why: dict[str, list[Sample]] = {}
    for item in run.samples:
        errors: Any = item.get("mae")
        mae = {k: as_number(v) for k, v in errors.items()} if isinstance(errors, dict) else {}
        names: list[str] = [n for n in LABELS if n in item["images"]] + sorted(set(item["images"]) - set(LABELS))
        rivals = {n: m for n in names if n != REFERENCE and (m := mae.get(n)) is not None and known(m)}
        best = min(rivals.values()) if len(rivals) > 1 else None
        images = tuple(
            Shown(
                name=n,
                label=LABELS.get(n, n),
                picture=album.file(str(item["images"][n]), 256, 84),
                mae=mae.get(n),
                best=n in rivals and rivals[n] == best,
            )
            for n in names
        )
        gap = day_gap(as_number(item.get("days")))
        sample = Sample(str(item.get("sar_key", "")), str(item.get("eo_key", "")), gap, images)
        by_why.setdefault(str(item.get("why") or "spread"), []).append(sample)
    order = [*WHY, *sorted(set(by_why) - set(WHY))]
    return [(w, by_why[w]) for w in order if w in by_why]
