"""Plots as inline SVG whose colours are the page's CSS variables, so that they follow its theme.

Text from outside (names, reasons) never enters a plot: it stands in the page around it. The same numbers give the same
bytes: no date, no random ids.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from sar2eo_dist.report.facts import Tolerance, spaced
from sar2eo_dist.report.text import minus, span

Floats = npt.NDArray[np.float64]

# matplotlib wants real colours: these stand for the CSS values they are replaced by
INK, MUTED, LINE = "#0a0b01", "#0a0b02", "#0a0b03"
KEPT, DROPPED, CURVE = "#0a0b04", "#0a0b05", "#0a0b06"
SPLIT = {"train": "#0a0b07", "val": "#0a0b08", "test": "#0a0b09", "guard": "#0a0b0a"}
_CSS = {
    INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", KEPT: "var(--kept)", DROPPED: "var(--dropped)",
    CURVE: "var(--accent)", "#0a0b07": "var(--s-train)", "#0a0b08": "var(--s-val)", "#0a0b09": "var(--s-test)",
    "#0a0b0a": "var(--s-guard)",
}  # fmt: skip

_STYLE = {"svg.fonttype": "none", "font.size": 12}
POINTS = 240  # of a curve: more are averaged, with the span behind them
#: a method that a network is measured against -> key of SPLIT (its colour, and a class of the page) and its dashes
LEVELS = {
    "baseline_linear": ("train", (0, (6, 3))),
    "baseline_mean": ("val", (0, (2, 2))),
    "baseline_zero": ("guard", (0, (1, 2))),
    "translated": ("test", (0, (8, 2, 2, 2))),
}


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours: a user's matplotlibrc must not change the page."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@_style()
def day_bars(days: Mapping[str, Counter[int]]) -> str:
    """Pairs by day difference (EO date - SAR date), stacked by split."""
    gaps = [g for c in days.values() for g in c]
    low, high = min([*gaps, -1]), max([*gaps, 1])
    x = np.arange(low, high + 1)
    fig, ax = _axes(400, 240)
    bottom = np.zeros(len(x))
    for split, counter in days.items():
        heights = np.array([counter[int(d)] for d in x], float)
        ax.bar(x, heights, 0.86, bottom=bottom, color=SPLIT.get(split, MUTED))
        bottom += heights
    ax.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    ax.set_xlim(low - 0.7, high + 0.7)
    ax.set_ylim(0, max(float(bottom.max()), 1.0) * 1.06)
    ax.set_xlabel("EO date minus SAR date, days")
    ax.set_ylabel("pairs")
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _svg(fig, "days", "Pairs by day difference")


@_style()
def yield_curve(t: Tolerance) -> str:
    """Optical images with radar within a number of days: their count and, where it is known, their share of all kept."""
    days, images = [r.days for r in t.rows], [r.images for r in t.rows]
    total, limit = t.total, t.limit
    fig, ax = _axes(400, 240)
    ax.plot(days, images, color=CURVE, linewidth=1.8, drawstyle="steps-post", marker="o" if len(days) == 1 else "")
    ax.fill_between(days, images, step="post", color=CURVE, alpha=0.14, linewidth=0)
    top = 1.08 * max(total or 0, *images, 1)
    ax.set_ylim(0, top)
    ax.set_xlim(days[0], max(days[-1], days[0] + 1))
    if limit is not None:
        n = images[days.index(limit)]
        ax.axvline(limit, color=INK, linewidth=1.4, linestyle=(0, (5, 3)))
        ax.plot([limit], [n], color=INK, marker="o", markersize=5, linestyle="")
        right = 2 * limit <= days[0] + days[-1]
        ax.annotate(  # under the curve there is room, unless it runs low
            f"{n:,}\nwithin {span(limit)}", (limit, n / 2 if n > 0.3 * top else 0.85 * top),
            xytext=(7 if right else -7, 0), textcoords="offset points", ha="left" if right else "right", va="center",
            color=INK,
        )  # fmt: skip
    ax.set_xlabel("days allowed between SAR and EO")
    ax.set_ylabel("optical images")
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    if total:
        shares = ax.secondary_yaxis("right", functions=(lambda n: 100 * n / total, lambda p: p * total / 100))
        shares.set_yticks([0, 25, 50, 75, 100], [f"{p} %" for p in (0, 25, 50, 75, 100)])
        shares.tick_params(length=0, labelcolor=MUTED, labelsize=12)
        shares.spines["right"].set_visible(False)
        shares.patch.set_visible(False)
    return _svg(fig, "yield", "Yield against tolerance")


@_style()
def loss_curve(steps: Sequence[float], values: Sequence[float], label: str) -> str:
    """One loss over the steps; gaps where it is not finite. A logarithmic axis where it spans more than a factor 30."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    each = -(-len(x) // POINTS)  # whole numbers of points, so that a bin's noise is the same all along
    parts = [np.arange(i, min(i + each, len(x))) for i in range(0, len(x), each)]
    at = np.array([x[p].mean() for p in parts])
    mean, low, high = (np.array([_finite(f, y[p]) for p in parts]) for f in (np.mean, np.min, np.max))
    fig, ax = _axes(300, 170)
    if each > 1:
        ax.fill_between(at, low, high, color=CURVE, alpha=0.22, linewidth=0)
    ax.plot(at, mean, color=CURVE, linewidth=1.6, marker="o" if len(x) == 1 else "")
    seen = y[np.isfinite(y)]
    if seen.size and seen.min() > 0 and seen.max() > 30 * seen.min():
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: minus(f"{v:g}")))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if abs(v) >= 10_000 else f"{v:g}"))
    ax.set_xlabel("step")
    return _svg(fig, f"loss-{label}", "Loss over training steps")


@_style()
def validation_curve(
    steps: Sequence[float], values: Sequence[float], levels: Mapping[str, float], mark: float | None, label: str
) -> tuple[str, tuple[str, ...]]:
    """One metric of the validations over the steps, levels (keys of LEVELS, finite) as lines across: (svg, the levels
    that lie beyond the axis).

    values: at least one is finite; where one is not, the curve has a gap. mark: the step to ring. The axis spans the
    values and the level nearest to the last of them, and as much again on either side for the others: a level far
    off must not flatten the curve.
    """
    points = spaced(list(zip(steps, values, strict=True)), POINTS)
    x, y = np.array(points, float).T
    seen = y[np.isfinite(y)]
    core = [*seen, *sorted(levels.values(), key=lambda v: abs(v - seen[-1]))[:1]]
    low, high = min(core), max(core)
    beyond = tuple(n for n, v in levels.items() if not 2 * low - high <= v <= 2 * high - low)
    fig, ax = _axes(300, 170)
    for name, level in levels.items():
        if name not in beyond:
            ax.axhline(level, color=SPLIT[LEVELS[name][0]], linewidth=1.6, linestyle=LEVELS[name][1])
    ax.plot(x, y, color=CURVE, linewidth=1.6, marker="o" if len(x) <= 40 else "", markersize=3.5)
    here = x == mark
    ax.plot(x[here], y[here], color=INK, marker="o", markersize=8, markerfacecolor="none", linestyle="")
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: minus(f"{v:g}")))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if abs(v) >= 10_000 else f"{v:g}"))
    ax.set_xlabel("step")
    return _svg(fig, f"validation-{label}", "Validation metric over training steps"), beyond


def _finite(f: Any, values: Floats) -> float:
    good = values[np.isfinite(values)]
    return float(f(good)) if good.size else float("nan")


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of width x height CSS pixels; only the axis lines that carry something."""
    fig = Figure(figsize=(width / 72, height / 72), layout="constrained")
    ax = fig.subplots()
    fig.patch.set_visible(False)
    ax.patch.set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.tick_params(axis="both", which="both", color=MUTED, labelcolor=MUTED, labelsize=12)
    ax.tick_params(axis="y", which="both", length=0)
    ax.xaxis.label.set(color=MUTED, size=12)
    ax.yaxis.label.set(color=MUTED, size=12)
    return fig, ax


def _svg(fig: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element of the page: theme colours, the page's font, no prolog, no global style, no ids
    but those that something refers to (salted by `name`, so that two plots never share one)."""
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(fig).print_svg(sink, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|<defs>\s*</defs>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    for colour, css in _CSS.items():
        text = text.replace(colour, css)
    text = re.sub(r"<[^>]*>", lambda tag: _shorter(tag[0]), text)
    head = re.compile(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>")
    return head.sub(rf'<svg class="plot" viewBox="\1" role="img" aria-label="{label}">', text, count=1).strip()


def _shorter(tag: str) -> str:
    """Two decimals are a hundredth of a pixel."""
    return re.sub(r"\s+", " ", re.sub(r"(\d\.\d\d)\d+", r"\1", tag))
