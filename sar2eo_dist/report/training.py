"""The page of a training: what each network learned, how it went and what it looked like on the way."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.report import images, plots, text
from sar2eo_dist.report.facts import HIGHER, METHODS, METRICS, spaced
from sar2eo_dist.report.images import Album, Picture
from sar2eo_dist.report.load import as_number
from sar2eo_dist.report.text import count, human_seconds, known, number, percent, redact

FILE = "train/train.html"
PICTURES = 1_900_000  # bytes of data URIs: with three networks' curves the page stays below 3 MB
EARLIER = 4  # grids beside the newest
MANY = 16  # curves or kinds of event that are shown; the rest is counted
LONG = 1000  # characters of a text: more are cut before secrets are looked for, which takes time by their square
TITLES = {"coarse": "Coarse translator, half resolution", "translate": "Translator", "enhance": "Enhancer"}
CURVES = ("mae", "psnr", "ssim")  # RMSE tells what PSNR does
NETWORKS = {"pix2pixhd": "pix2pixHD", "restormer": "Restormer"}
_NOT_LOSSES = frozenset({"step", "time", "samples_per_s", "busy", "wait", "lr", "replaced", "skipped"})
_PARTS: dict[str, type] = {
    "history": list, "validations": list, "events": list, "phases": list, "columns": list, "baselines": dict,
    "options": dict, "scaling": dict, "cost": dict, "best": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Curve:
    """One value over the steps, finite or not; beyond: what lies off its axis, in words."""

    name: str
    first: float | None
    last: float | None
    svg: Markup
    broken: int
    beyond: str = ""


def write(root: str, roles: Sequence[str]) -> str:
    """`build`, published in the run folder. Returns its path there."""
    storage.put(storage.join(root, FILE), build(root, roles))
    return FILE


def build(root: str, roles: Sequence[str]) -> bytes:
    """The page of the trainings of a run folder (any fsspec URI): self-contained UTF-8 HTML, no script, below 3 MB.

    roles: folders below train/ in order, each named as its role or <role>-<anything>. A record that is missing or
    broken is named on the page. The same folder gives the same bytes. Raises AccessDenied, Unavailable or StorageError
    where the store itself refuses.
    """
    env = Environment(
        loader=PackageLoader("sar2eo_dist.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    for name in ("count", "number", "shorten", "redact"):
        env.filters[name] = getattr(text, name)
    album = Album(root, spent=images.BUDGET - PICTURES)
    steps = {role: _steps(root, role) for role in roles}
    # the newest grids first: where there is no room, earlier ones are left out
    newest = {role: _grids(album, role, s[-1:], 1024, 82) for role, s in steps.items()}
    earlier = {role: _grids(album, role, spaced(s, EARLIER + 1)[:-1], 420, 78) for role, s in steps.items()}
    shown = [_training(root, role) | {"newest": newest[role], "earlier": earlier[role]} for role in roles]
    context = {"uri": root, "name": storage.name(root), "trainings": shown, "skipped": album.skipped, "many": MANY}
    return env.get_template("training.html.j2").render(context).encode()


def _grids(album: Album, role: str, steps: Sequence[int], side: int, quality: int) -> list[tuple[int, Picture]]:
    return [(n, album.file(f"train/{role}/samples/{n:08d}.png", side, quality)) for n in steps]


def _steps(root: str, role: str) -> list[int]:
    """Steps of which there is a grid, ascending."""
    try:
        found = storage.list_files(storage.join(root, "train", role, "samples"))
    except NotFound:
        return []
    return sorted(int(m[1]) for i in found if (m := re.fullmatch(r"(\d{8,})\.png", storage.name(i.uri))))


def _record(data: bytes) -> dict[str, Any]:
    """A record with every list and object there. Raises ValueError for what is none, naming the part."""
    tree = json.loads(data, parse_int=lambda digits: int(digits) if len(digits) < 16 else float(digits))
    if not isinstance(tree, dict):
        raise ValueError(f"a JSON object is wanted, not {type(tree).__name__}")
    for name, kind in _PARTS.items():
        tree[name] = kind() if tree.get(name) is None else tree[name]
        if not isinstance(tree[name], kind):
            raise ValueError(f"{name} should be a {kind.__name__}, not {type(tree[name]).__name__}")
    for name in ("history", "validations", "events", "phases"):
        for i, line in enumerate(tree[name]):
            if not isinstance(line, dict) or (name in ("history", "validations") and not _finite(line.get("step"))):
                raise ValueError(f"{name}[{i}] is no object with a step: {text.shorten(json.dumps(line), 80)}")
    if wrong := [k for k, v in tree["baselines"].items() if not isinstance(v, dict)]:
        raise ValueError(f"baselines.{wrong[0]} is no object")
    return tree


def _value(holder: Mapping[str, Any], name: str) -> float | None:
    """A number of an object, infinity included; None for null, NaN, anything else or nothing."""
    value = as_number(holder.get(name))
    return value if known(value) else None


def _words(value: Any) -> str:
    """Text from outside without secrets; of a very long one the beginning, up to a whole word."""
    said = str(value or "")
    return redact(said if len(said) <= LONG else f"{said[:LONG].rpartition(' ')[0]} …")


def _finite(value: Any) -> bool:
    return (n := as_number(value)) is not None and math.isfinite(n)


def _training(root: str, role: str) -> dict[str, Any]:
    """What the template shows of one network, or the problem that its record has."""
    shown = {"role": role, "title": TITLES.get(role.partition("-")[0], role), "problem": "", "mae": None}
    try:
        r = _record(storage.read_bytes(storage.join(root, "train", role, "record.json")))
        return shown | _parts(role, str(shown["title"]), r)
    except NotFound:
        return shown | {"problem": "no such record: this network was not trained here, or has just begun"}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        return shown | {"problem": redact(f"{type(e).__name__}: {e}")}


def _parts(role: str, title: str, r: dict[str, Any]) -> dict[str, Any]:
    network, kept = NETWORKS.get(str(r.get("model")), str(r.get("model") or "unknown network")), _kept(r)
    losses = sorted({k for line in r["history"] for k, v in line.items() if v is None or as_number(v) is not None})
    losses = sorted((n for n in losses if n not in _NOT_LOSSES), key=lambda n: n.startswith("grad_norm"))
    levels = [m for m in METHODS if m in r["baselines"] and m in plots.LEVELS]
    return {
        "title": f"{title}: {network}",
        "verdict": _verdict(network, r, kept),
        "mae": _value(kept, "mae") if kept else None,
        "facts": [(k, _words(v)) for k, v in _facts(r) if v],
        "events": _events(r),
        "table": _table(network, r),
        "fixed": r["scaling"].get("eo") == "fixed",
        "curves": [_loss(role, name, r["history"]) for name in losses[:MANY]],
        "curves_more": len(losses) - MANY,
        "norms": any(name.startswith("grad_norm") for name in losses[:MANY]),
        "measured": [c for m in CURVES if (c := _measured(role, m, r, levels, kept))],
        "legend": [(plots.LEVELS[m][0], _label(m)) for m in levels],
        "marked": kept["step"] if kept else None,
        "columns": [str(c) for c in r["columns"]],
    }


def _label(method: str) -> str:
    label = METHODS.get(method, method).removeprefix("Baseline: ")
    return "translator's image" if method == "translated" else label


def _kept(r: dict[str, Any]) -> dict[str, Any] | None:
    """The validation of the weights that are kept, or the last one while the training goes on; None without any."""
    seen = [v for v in r["validations"] if _finite(v.get("mae"))]
    if r.get("ended") and r.get("selected") == "best":
        seen = [v for v in seen if v["step"] == r.get("selected_step")] or seen
    return seen[-1] if seen else None


def _verdict(network: str, r: dict[str, Any], kept: dict[str, Any] | None) -> str:
    """What was reached, in words, against the best trivial predictor and the translator; said either way."""
    steps, done = _value(r, "steps"), bool(r.get("ended"))
    at = kept["step"] if kept else r["history"][-1]["step"] if r["history"] else 0
    of = "" if at == steps else f" of {count(steps)}"
    best = " (its best checkpoint)" if done and kept and of and r.get("selected") == "best" else ""
    head = f"{network}{'' if done else ', not done yet,'} after {count(at)}{of} steps{best}"
    head += f" on {count(_value(r, 'pairs'))} pairs"
    if kept is None:
        return f"{head}: not measured on held-out pairs{'' if done else ' so far'}."
    a = float(kept["mae"])
    said = f"{head}: mean MAE {number(a)} on {count(_value(r, 'validation_pairs'))} held-out pairs"
    levels = {m: float(v["mae"]) for m, v in r["baselines"].items() if _finite(v.get("mae"))}
    translated = levels.pop("translated", None)
    if levels:
        name, b = min(levels.items(), key=lambda level: level[1])
        against = f"the best trivial predictor ({_label(name).partition(' to ')[0]}, {number(b)})"
        if a < b:
            said += f", {percent(1 - a / b)} below {against}"
        elif a == b:
            said += f", the same as {against}: nothing is gained over it"
        else:
            more = f"{percent(a / b - 1)} above" if b > 0 else "above"
            said += f", {more} {against}: by this measure it knows no more than a trivial predictor"
    if translated:
        change = f"takes off {percent(1 - a / translated)}" if a < translated else "changes nothing"
        change = f"makes them {percent(a / translated - 1)} worse" if a > translated else change
        said += f". The translator's images alone score {number(translated)} on these pairs: the enhancer {change}"
    return f"{said}."


def _facts(r: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value) pairs; an empty value is not known."""

    def middle(name: str) -> float | None:
        values = [v for line in r["history"] if (v := _value(line, name)) is not None and math.isfinite(v)]
        return statistics.median(values) if values else None

    def most(name: str) -> str:
        return count(n) if (n := max((_value(line, name) or 0 for line in r["history"]), default=0)) else ""

    phases = [{k: count(_value(p, k)) for k in ("start", "stop", "crop", "batch")} for p in r["phases"]]
    one = phases[0] if len(phases) == 1 else {"crop": "", "batch": count(_value(r, "batch"))}
    cost, attempts, busy, wait = r["cost"], _value(r, "attempts"), middle("busy"), middle("wait")
    hours = [f"{number(h)} {k} hours" for k in ("GPU", "CPU") if (h := _value(cost, f"{k.lower()}_hours"))]
    amount = _value(cost, "amount")
    energy = [f"{number(v)} {unit}" for k, unit in (("kwh", "kWh"), ("kg_co2", "kg CO2")) if (v := _value(cost, k))]
    price = "" if amount is None else f"{amount:,.2f} {cost.get('currency', '')}".strip()
    chosen = count(_value(r, "selected_step"))
    rate = f"{number(middle('samples_per_s'))} samples/s, median" if middle("samples_per_s") is not None else ""
    shares = [f"{percent(s)} {what}" for s, what in ((busy, "busy"), (wait, "waiting for data")) if s is not None]
    return [
        ("Trained on", f"{count(_value(r, 'pairs'))} pairs, {count(_value(r, 'validation_pairs'))} held out"),
        ("Batch", one["batch"] if len(phases) < 2 else ""),
        ("Crop", f"{one['crop']} pixels square" if one["crop"] else ""),
        ("Phases", "; ".join(f"steps {p['start']} to {p['stop']}: crop {p['crop']}, batch {p['batch']}" for p in phases)
         if len(phases) > 1 else ""),
        ("Workers", count(_value(r, "workers"))),
        ("Device", ", ".join(str(r[k]) for k in ("device", "precision") if r.get(k))),
        ("Time", human_seconds(_value(r, "seconds")) + (f", {count(attempts)} attempts" if (attempts or 0) > 1 else "")),
        ("Speed", rate),
        ("Share of the time, median", ", ".join(shares)),
        ("Cost", ", ".join([*([price] if price else []), *hours])),
        ("Energy, by hours and the power set", ", ".join(energy)),
        ("Started", text.when(str(r.get("started") or ""))),
        ("Ended", text.when(str(r.get("ended") or "")) or "not yet"),
        ("Weights kept", f"{r.get('selected') or 'last'}, step {chosen}" if r.get("ended") else ""),
        ("Bundle", str(r.get("bundle") or "")),
        ("Options", ", ".join(f"{k} {v}" for k, v in r["options"].items())),
        ("Scaling", ", ".join(f"{k} {v}" for k, v in r["scaling"].items())),
        ("Unreadable samples replaced", most("replaced")),
        ("Steps skipped", most("skipped")),
    ]  # fmt: skip


def _events(r: dict[str, Any]) -> list[tuple[str, float | None, int, str]]:
    """(event, step of the first, how often, words of the first) in the order in which the kinds first came."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for e in r["events"]:
        kinds.setdefault(str(e.get("event")), []).append(e)
    return [(k, _value(e[0], "step"), len(e), _words(e[0].get("text"))) for k, e in kinds.items()]


def _table(network: str, r: dict[str, Any]) -> list[tuple[str, dict[str, tuple[float | None, bool]]]]:
    """Best and last validation, then what they are measured against: (label, metric -> (value, best of its column))."""
    rows: list[tuple[str, Mapping[str, Any]]] = []
    if r["validations"]:
        last, at = r["validations"][-1], r["best"].get("step")
        best = next((v for v in r["validations"] if v["step"] == at), r["best"])
        if at is not None and at != last["step"]:
            rows.append((f"{network}, step {count(_value(best, 'step'))} (best)", best))
        what = "last" if at != last["step"] else "last and best"
        rows.append((f"{network}, step {count(last['step'])} ({what})", last))
    order = [m for m in METHODS if m in r["baselines"]]
    for method in [*order, *sorted(r["baselines"].keys() - set(order))]:
        label = _label(method)
        rows.append((label[:1].upper() + label[1:], r["baselines"][method]))
    values = {m: [v for _, cells in rows if (v := _value(cells, m)) is not None] for m in METRICS}
    top = {m: (max if m in HIGHER else min)(v) for m, v in values.items() if v}
    return [(label, {m: (v := _value(c, m), v is not None and v == top[m]) for m in METRICS}) for label, c in rows]


def _loss(role: str, name: str, history: Sequence[Mapping[str, Any]]) -> Curve:
    x, y = _series(history, name)
    good = [v for v in y if math.isfinite(v)]
    if not good:
        return Curve(name, None, None, Markup(), len(y))
    svg = plots.loss_curve(x, y, f"{role}-{name}")
    return Curve(name, good[0], good[-1], Markup(svg), len(y) - len(good))  # noqa: S704  our own SVG


def _measured(
    role: str, metric: str, r: dict[str, Any], names: Sequence[str], kept: Mapping[str, Any] | None
) -> Curve | None:
    x, y = _series(r["validations"], metric)
    good = [v for v in y if math.isfinite(v)]
    if not good:
        return None
    levels = {m: r["baselines"][m][metric] for m in names if _finite(r["baselines"][m].get(metric))}
    svg, beyond = plots.validation_curve(x, y, levels, kept["step"] if kept else None, f"{role}-{metric}")
    off = ", ".join(f"{_label(m)} {number(levels[m])}" for m in beyond)
    return Curve(metric.upper(), good[0], good[-1], Markup(svg), len(y) - len(good), off)  # noqa: S704


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that have this name; null is NaN."""
    rows = [(float(line["step"]), _value(line, name)) for line in lines if name in line]
    return [s for s, _ in rows], [math.nan if v is None else v for _, v in rows]
