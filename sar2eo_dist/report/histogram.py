"""The histogram of the scores as SVG of our own: its bars can be told apart, so the page can recolour them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from sar2eo_dist.report.text import minus

Floats = npt.NDArray[np.float64]

WIDTH, HEIGHT = 400, 244
LEFT, RIGHT, TOP, BOTTOM = 48.0, 392.0, 20.0, 200.0  # of the plane
BARS = 36


@dataclass(frozen=True, slots=True)
class Histogram:
    """svg: the plot; edges: of its bars, in scores; beyond: scores that lie outside of the axis."""

    svg: Markup
    edges: tuple[float, ...]
    beyond: int


def histogram(scores: Floats, kept: npt.NDArray[np.bool_], threshold: float | None) -> Histogram:
    """(N,) finite scores, kept or not, with the threshold as a line where it is a finite number.

    The axis spans the bulk (0.5 to 99.5 %, and half as much again on either side) and the threshold: one far outlier
    must not squeeze all else into one bar. The threshold is an edge, so that no bar mixes its two sides.
    """
    if threshold is not None and not np.isfinite(threshold):
        threshold = None
    edges = _edges(scores, threshold)
    counts = [np.histogram(scores[m], edges)[0] for m in (kept, ~kept)]
    most = max(int((counts[0] + counts[1]).max()), 1)
    low, high = float(edges[0]), float(edges[-1])
    tall = (BOTTOM - TOP) / (1.08 * most)

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    parts = []
    for n in MaxNLocator(5, integer=True).tick_values(0, 1.08 * most):
        y = BOTTOM - tall * n
        if TOP - 1 <= y <= BOTTOM:
            parts.append(f'<line x1="{LEFT:g}" x2="{RIGHT:g}" y1="{y:.2f}" y2="{y:.2f}" style="stroke: var(--line)"/>')
            parts.append(_label(LEFT - 7, y + 4, f"{n:,.0f}", "end"))
    for i in range(len(edges) - 1):
        left, right = x(edges[i]) + 0.4, x(edges[i + 1]) - 0.4
        base = BOTTOM
        for kind, n in (("kept", counts[0][i]), ("dropped", counts[1][i])):
            base -= tall * n
            parts.append(
                f'<rect class="{kind}" x="{left:.2f}" y="{base:.2f}" width="{max(right - left, 0.5):.2f}" '
                f'height="{tall * n:.2f}" style="fill: var(--{kind})"/>'
            )
    parts.append(f'<line x1="{LEFT:g}" x2="{RIGHT:g}" y1="{BOTTOM}" y2="{BOTTOM}" style="stroke: var(--muted)"/>')
    for value in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high):
        if low <= value <= high:
            parts.append(_label(x(value), BOTTOM + 17, minus(f"{value:,.7g}"), "middle"))
    parts.append(_label((LEFT + RIGHT) / 2, BOTTOM + 37, "score (distance to the cloud set)", "middle"))
    parts.append(_label(0, TOP - 8, "tiles", "start"))
    parts.append(_cut(LEFT if threshold is None else x(threshold), threshold is None))
    scale = f'data-low="{low!r}" data-high="{high!r}" data-left="{LEFT:g}" data-right="{RIGHT:g}"'
    svg = (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Histogram of the scores" {scale} '
        f'data-bottom="{BOTTOM:g}">{"".join(parts)}</svg>'
    )
    beyond = int(np.sum((scores < low) | (scores > high)))
    return Histogram(Markup(svg), tuple(map(float, edges)), beyond)  # noqa: S704  no text from outside is in it


def _cut(x: float, hidden: bool) -> str:
    """The threshold's line with its name, which stands on the side that has room."""
    side, away = ("start", 5) if x < (LEFT + RIGHT) / 2 else ("end", -5)
    seen = "hidden" if hidden else "visible"
    return (
        f'<g class="cut" transform="translate({x:.2f} 0)" visibility="{seen}"><line x1="0" x2="0" y1="{TOP - 4:g}" '
        f'y2="{BOTTOM:g}" style="stroke: currentColor; stroke-width: 1.5; stroke-dasharray: 5 3"/><text x="{away}" '
        f'y="{TOP + 6:g}" text-anchor="{side}" style="fill: currentColor; font-size: 12px">threshold</text></g>'
    )


def _edges(scores: Floats, threshold: float | None) -> Floats:
    low, high = (float(q) for q in np.quantile(scores, [0.005, 0.995]))
    margin = (high - low) / 2
    low, high = max(low - margin, float(np.min(scores))), min(high + margin, float(np.max(scores)))
    anchor = low if threshold is None else threshold
    low, high = min(low, anchor), max(high, anchor)
    width = (high - low) / BARS or max(abs(high), 1.0) / BARS
    first, last = np.floor((low - anchor) / width), np.floor((high - anchor) / width) + 1
    edges: Floats = anchor + width * np.arange(first, last + 1)
    return edges


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" style="fill: var(--muted); font-size: 12px">{text}</text>'
