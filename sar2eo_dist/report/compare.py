"""The page of two runs side by side: which is better on the pairs that both measured, by how much, and what differs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sar2eo_dist import storage
from sar2eo_dist.errors import Sar2EoError
from sar2eo_dist.evaluation.compare import Match, Paired, match, paired, tree_diff
from sar2eo_dist.report import images, text
from sar2eo_dist.report.against import METRICS, POINTS, Side, costs, difference_bars, doubts, read, scatter
from sar2eo_dist.report.download import link
from sar2eo_dist.report.facts import METHODS
from sar2eo_dist.report.images import Album, Picture
from sar2eo_dist.report.text import UNKNOWN, count, known, minus, number, percent, redact

FILE = "evaluate/against.html"
PICTURES = 3_200_000  # bytes of data URIs: the page stays below 5 MB
SHOWN = 8  # most improved and most worsened pairs, so many of each
SETTINGS = 120  # differing settings on the page; all of them are in the CSV
ROWS = 5000  # pairs in the CSV
LONG = 1000  # characters of a setting
NEUTRAL = ("run.", "resources.", "cost.")  # sections that change no result
FINAL = ("enhanced", "translated")
Setting = tuple[str, str, str]  # dotted key, value here, value there
OTHERS = 4  # further pairs with pictures
PANELS = {"sar": "SAR", "other": "Other run", "this": "This run", "true": "True"}


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of a method: key is the column's name, p its figures on the shared pairs; change, span: the difference
    and its interval in words."""

    key: str
    label: str
    p: Paired
    change: str
    span: str


@dataclass(frozen=True, slots=True)
class Block:
    """A method in both runs. methods: its name in this run and in the other one, which differ for a final network."""

    label: str
    methods: tuple[str, str]
    match: Match
    lines: tuple[Line, ...]
    csv: Markup


@dataclass(frozen=True, slots=True)
class Change:
    """A pair with its figures in both runs, and its pictures (label, picture), if any."""

    keys: tuple[str, str]
    place: str
    this: float
    other: float
    pictures: tuple[tuple[str, Picture], ...]


def write(root: str, other: str, pictures: str = "") -> tuple[str, str]:
    """Compare two evaluated run folders (any fsspec URI): (path of the page in `root`, words for the terminal).

    pictures: a JSON file (URI, or path in `root`): list of {"sar_key", "eo_key", "images": {"sar", "true", "this", "other"}},
    paths in `root`. The page is self-contained UTF-8 HTML below 5 MB without a script; parts that are missing or broken are
    named on it, and the same folders give the same bytes. Raises Sar2EoError where a run has no evaluation that reads, or
    no network of the two measured the same pair; AccessDenied, Unavailable or StorageError where a store refuses.
    """
    a, b = read(root), read(other)
    blocks = _blocks(a, b)
    final = blocks[0]
    if not final.match.keys:
        raise Sar2EoError(
            f"no shared pair: {count(final.match.only_this)} pairs were measured in {redact(root)}, "
            f"{count(final.match.only_other)} others in {redact(other)}. Evaluate both on one split of one pair store"
        )
    loud, mild = doubts(a, b, final.match)
    said = verdict(final.lines[0].p, len(final.match.keys), bool(loud))
    settings = config_diff(a.run.config, b.run.config) if a.run.config and b.run.config else None
    changes = _changes(a, b, final, pictures)
    env = Environment(
        loader=PackageLoader("sar2eo_dist.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    for name in ("count", "number", "percent", "shorten", "redact"):
        env.filters[name] = getattr(text, name)
    context = _context(a, b, blocks, settings or []) | changes
    page = (
        env.get_template("compare.html.j2")
        .render(said=said, loud=loud, mild=mild, configs=settings is not None, **context)
        .encode()
    )
    storage.put(storage.join(root, FILE), page)
    return FILE, _words(said, loud, mild, final, settings)


def verdict(p: Paired, shared: int, doubted: bool = False) -> str:
    """What the final network's MAE (or another metric that p is of) says, in a sentence, whichever way it goes."""
    if not p.n:
        return f"Nothing can be said: none of {count(shared)} shared pairs has a finite MAE in both runs."
    of = f"{count(p.n)} shared pairs" if p.n == shared else f"{count(p.n)} of {count(shared)} shared pairs"
    if p.equal == p.n:
        return f"Both runs are the same on all {of}: mean MAE {number(p.means[0])}."
    on = f"on {percent(p.better / p.n)} of {of}"
    means = f"mean MAE {number(p.means[0])} against {number(p.means[1])}, difference {interval_words(p)}"
    head = "As far as they can be compared at all, this run" if doubted else "This run"
    if not p.better_run:
        why = "the interval holds 0" if known(p.low) else "all of them are of one place, so there is no interval"
        return f"No difference can be told, for {why}. {head} is better {on}: {means}."
    way = "better" if p.better_run == "this" else "worse"
    on = on if way == "better" else f"on {percent(p.worse / p.n)} of {of}"
    if (p.better > p.worse) == (way == "better"):
        return f"{head} is {way} {on}: {means}."
    return f"{head} is {way} in the mean, though only {on}: {means}."


def interval_words(p: Paired) -> str:
    """'−0.0080 (95 % −0.0101 to −0.0058)'."""
    change, span = _spans(p)
    if not span:
        return f"{change} (no interval: fewer than two places)"
    return f"{change} (95\N{NO-BREAK SPACE}% {span})"


def _spans(p: Paired, sign: str = "") -> tuple[str, str]:
    """(difference, its interval or "") with the decimals that the interval's width makes sense of. sign: "+" or ""."""
    if not known(p.low):
        return number(p.difference, 2), ""
    width = p.high - p.low
    if not width:
        return number(p.difference, 2), f"{number(p.low, 2)} to {number(p.high, 2)}"
    digits = min(max(0, 1 - math.floor(math.log10(width))), 9)
    change, low, high = (minus(f"{v:{sign},.{digits}f}") for v in (p.difference, p.low, p.high))
    return change, f"{low} to {high}"


def config_diff(this: dict[str, Any], other: dict[str, Any]) -> list[Setting]:
    """Every setting that differs, values as JSON without secrets, "not set" where there
    is none; those that change no result come last."""
    rows = [(_said(k, False), _said(x), _said(y)) for k, x, y in tree_diff(this, other)]
    return sorted(rows, key=lambda row: row[0].startswith(NEUTRAL))


def _said(value: Any, quoted: bool = True) -> str:
    plain = isinstance(value, str | int | float | list | dict | type(None))
    said = json.dumps(value, ensure_ascii=False, default=str) if plain and quoted else str(value)
    return redact(said if len(said) <= LONG else f"{said[:LONG].rpartition(' ')[0] or said[:80]} …")


def _blocks(a: Side, b: Side) -> list[Block]:
    """The final networks first, then every method that both have."""
    ends = [next((m for m in FINAL if m in side.rows), "") for side in (a, b)]
    for side, end in zip((a, b), ends, strict=True):
        if not end:
            uri = redact(side.run.uri)
            raise Sar2EoError(f"no network was measured there, run jobs/evaluate.py there first: {uri}")
    same = [m for m in METHODS if m in a.rows and m in b.rows]
    same += sorted((a.rows.keys() & b.rows.keys()) - set(same))
    pairs = [(ends[0], ends[1]), *((m, m) for m in same if (m, m) != (ends[0], ends[1]))]
    return [_block(a, b, *methods) for methods in pairs]


def _block(a: Side, b: Side, here: str, there: str) -> Block:
    rows = a.rows[here], b.rows[there]
    found = match([a.keys[i] for i in rows[0]], [b.keys[i] for i in rows[1]])
    at, other = rows[0][found.this], rows[1][found.other]
    places = [a.places[i] for i in at]
    lines = []
    for key, (label, lower) in METRICS.items():
        if key in a.values and key in b.values:
            p = paired(a.values[key][at], b.values[key][other], places, lower)
            lines.append(Line(key, f"{label} {'↓' if lower else '↑'}", p, *_spans(p, "+")))
    label = METHODS.get(here, here) + ("" if here == there else f" against {METHODS.get(there, there).lower()}")
    name = f"metrics_{here}.csv" if here in METHODS else "metrics.csv"
    head = ("metric", "this", "other", "difference", "low", "high", "better", "worse", "equal", "pairs")
    table = [
        (x.key, *x.p.means, x.p.difference, x.p.low, x.p.high, x.p.better, x.p.worse, x.p.equal, x.p.n) for x in lines
    ]
    return Block(label, (here, there), found, tuple(lines), link(name, head, table))


def _context(a: Side, b: Side, blocks: Sequence[Block], settings: Sequence[Setting]) -> dict[str, Any]:
    final = blocks[0]
    p, seen = final.lines[0].p, final.match
    order = np.argsort(-p.gain, kind="stable")[:ROWS]
    pairs = [(*seen.keys[p.at[i]], float(p.a[i]), float(p.b[i]), float(p.a[i] - p.b[i])) for i in order]
    moved = (p.a - p.b)[p.gain != 0]
    spent = costs(a, b)
    bars, beyond = difference_bars(moved, p.lower) if moved.size else ("", 0)
    neutral = [row for row in settings if row[0].startswith(NEUTRAL)]
    active = settings[: len(settings) - len(neutral)]
    return {
        "names": (storage.name(redact(a.run.uri)), storage.name(redact(b.run.uri))),
        "uris": (a.run.uri, b.run.uri),
        "blocks": blocks,
        "p": p,
        "match": seen,
        "scatter": Markup(scatter(p)) if p.n else "",  # noqa: S704  our own SVG: no text from outside is in it
        "bars": Markup(bars),  # noqa: S704
        "beyond": beyond,
        "pairs_csv": link("pairs.csv", ("sar_key", "eo_key", "mae_this", "mae_other", "difference"), pairs),
        "pairs_rows": len(pairs),
        "sets": _sets(a, b),
        "active": active[:SETTINGS],
        "neutral": neutral[:SETTINGS],
        "more": max(0, len(active) - SETTINGS) + max(0, len(neutral) - SETTINGS),
        "settings_csv": link("settings.csv", ("setting", "this", "other"), settings),
        "costs": spent,
        "costs_csv": link("cost.csv", ("what", "this", "other"), spent),
        "fixed": all(side.run.setting("scaling.eo") == "fixed" for side in (a, b)),
        "alone": [
            ("this run", sorted(a.rows.keys() - b.rows.keys())),
            ("the other run", sorted(b.rows.keys() - a.rows.keys())),
        ],
        "points": POINTS,
    }


def _sets(a: Side, b: Side) -> list[tuple[str, str, str, str]]:
    """(method, measure, here, there) of what evaluate measured on each run's own pairs as a set."""
    out = []
    for method in dict.fromkeys([*METHODS, *a.sets, *b.sets]):
        one, two = a.sets.get(method, {}), b.sets.get(method, {})
        label = METHODS.get(method, method)
        out += [(label, what, one.get(what, UNKNOWN), two.get(what, UNKNOWN)) for what in {**one, **two}]
    return out


def _changes(a: Side, b: Side, final: Block, listed: str) -> dict[str, Any]:
    """Most improved, most worsened and other pairs of which there are pictures."""
    p, keys = final.lines[0].p, final.match.keys
    albums = [Album(side.run.uri, spent=images.BUDGET - PICTURES // 2) for side in (a, b)]
    given = a.listed(listed) if listed else {}

    def change(i: int) -> Change:
        key = keys[p.at[i]]
        place = a.places[a.rows[final.methods[0]][final.match.this[p.at[i]]]]
        return Change(key, place, float(p.a[i]), float(p.b[i]), _pictures(albums, _paths(a, b, final, given, key)))

    improved, worsened = ([change(i) for i in at.tolist()] for at in p.extremes(SHOWN))
    shown = {c.keys for c in (*improved, *worsened)}
    rest = [i for i, at in enumerate(p.at) if keys[at] not in shown and (keys[at] in given or keys[at] in a.samples)]
    rest = [i for i in rest if keys[p.at[i]] in given or keys[p.at[i]] in b.samples]
    others = [change(i) for i in rest[:OTHERS]]
    problems = [(name, path, redact(why)) for side, name in ((a, "this run"), (b, "the other run"))
                for path, why in side.run.problems.items()]  # fmt: skip
    groups = [("Most improved", improved), ("Most worsened", worsened)]
    groups += [("Other pairs with pictures of both", others)] if others else []
    return {"groups": groups, "skipped": sum(album.skipped for album in albums), "problems": problems}


def _paths(
    a: Side, b: Side, final: Block, given: dict[tuple[str, str], dict[str, str]], key: tuple[str, str]
) -> list[tuple[str, int, str]]:
    """(label, whose run folder, path there or "") of the pictures of a pair; none where no run has its output."""
    if key in given:
        return [(label, 0, given[key].get(name, "")) for name, label in PANELS.items()]
    one, two = a.samples.get(key, {}), b.samples.get(key, {})
    here, there = one.get(final.methods[0], ""), two.get(final.methods[1], "")
    if not (here or there):
        return []
    ends = [(0, one[n]) if n in one else (1, two.get(n, "")) for n in ("sar", "true")]
    found = {"sar": ends[0], "other": (1, there), "this": (0, here), "true": ends[1]}
    return [(label, *found[name]) for name, label in PANELS.items()]


def _pictures(albums: Sequence[Album], paths: Sequence[tuple[str, int, str]]) -> tuple[tuple[str, Picture], ...]:
    none = Picture(missing="no picture of this pair there")
    return tuple((label, albums[of].file(path, 224, 84) if path else none) for label, of, path in paths)


def _words(said: str, loud: list[str], mild: list[str], final: Block, settings: list[Setting] | None) -> str:
    """6 to 10 lines: the sentence, the first warning, four metrics, the first settings that differ."""
    warnings = [*(f"Not comparable: {w}" for w in loud), *(f"Mind: {w}" for w in mild)]
    more = f" (and {len(warnings) - 1} more on the page)" if len(warnings) > 1 else ""
    lines = [said, *(w + more for w in warnings[:1]), f"{final.label:<16}{'this':>9}{'other':>9}  difference"]
    for x in final.lines[:4]:
        one, two = (number(m, 4 if x.key == "psnr" else 3) for m in x.p.means)
        way = "" if loud else {"this": "  better", "other": "  worse", "": ""}[x.p.better_run]
        lines.append(f"{x.label:<16}{one:>9}{two:>9}  {interval_words(x.p)}{way}")
    active = [row for row in settings or () if not row[0].startswith(NEUTRAL)]
    lines += [f"{k}: {text.shorten(one, 40)} here, {text.shorten(two, 40)} there" for k, one, two in active[:2]]
    if len(active) > 2:
        lines.append(f"{count(len(active) - 2)} more setting{'s differ' if len(active) > 3 else ' differs'}")
    elif not active:
        lines.append(
            "no setting that changes results differs" if settings is not None else "settings: a config does not read"
        )
    return "\n".join(lines)
