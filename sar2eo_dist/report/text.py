"""Numbers in words that a person reads at a glance. What is not known is an en dash, never a zero."""

from __future__ import annotations

import datetime as dt
import math
import re

import numpy as np
import numpy.typing as npt

UNKNOWN = "\N{EN DASH}"
_ = "\N{NO-BREAK SPACE}"  # between a number and its unit


def known(value: float | None) -> bool:
    """Neither absent nor NaN; infinity is a value."""
    return value is not None and not math.isnan(value)


def minus(text: str) -> str:
    """Numbers as text with true minus signs: a hyphen is too short beside digits."""
    return text.replace("-", "\N{MINUS SIGN}")


def human_bytes(n: float | None) -> str:
    """1536 -> '1.5 KB' (decimal prefixes, as object stores bill)."""
    if n is None or not math.isfinite(n):
        return UNKNOWN
    for unit in ("B", "KB", "MB", "GB", "TB"):
        # 999.96 must become "1.0 MB", not "1000.0 KB"
        if abs(n) < (999.5 if unit == "B" else 999.95) or unit == "TB":
            return f"{n:.0f}{_}{unit}" if unit == "B" else f"{n:.1f}{_}{unit}"
        n /= 1000
    raise AssertionError("unreachable")


def human_seconds(s: float | None) -> str:
    """3725 -> '1 h 02 min'."""
    if s is None or not math.isfinite(s):
        return UNKNOWN
    if s < 59.5:
        return f"{s:.0f}{_}s" if s >= 9.95 else f"{s:.1f}{_}s"
    minutes, seconds = divmod(round(s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}{_}h {minutes:02d}{_}min" if hours else f"{minutes}{_}min {seconds:02d}{_}s"


def count(n: float | None) -> str:
    """12345 -> '12,345'."""
    return UNKNOWN if n is None or not math.isfinite(n) else f"{n:,.0f}"


def number(x: float | None, digits: int = 3) -> str:
    """About `digits` significant digits, never in powers of ten between 0.001 and a million."""
    if x is None or math.isnan(x):
        return UNKNOWN
    if math.isinf(x):
        return minus("∞" if x > 0 else "-∞")
    if x == 0:
        return "0"
    size = math.floor(math.log10(abs(x)))
    if not -4 < size < 7:
        return minus(f"{x:.{digits - 1}e}")
    return minus(f"{x:,.{max(0, digits - 1 - size)}f}")


def percent(share: float | None) -> str:
    """0.1234 -> '12 %'; small but not zero keeps a digit."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    p = 100 * share
    if 0 < p < 0.1:
        return f"<{_}0.1{_}%"
    return f"{p:.1f}{_}%" if 0 < p < 10 else f"{p:.0f}{_}%"


def day_gap(days: float | None) -> str:
    """EO date - SAR date in words."""
    if days is None or not math.isfinite(days):
        return "day difference unknown"
    d = round(days)
    if d == 0:
        return "Same day"
    return f"EO {abs(d)} day{'s' if abs(d) > 1 else ''} {'after' if d > 0 else 'before'} SAR"


def span(days: int) -> str:
    """1 -> '1 day'."""
    return f"{days}{_}day{'s' if days != 1 else ''}"


def when(iso: str) -> str:
    """'2026-11-22T20:38:07+00:00' -> '2026-11-22 20:38 UTC'; anything else as it is."""
    try:
        t = dt.datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return t.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC") if t.tzinfo else t.strftime("%Y-%m-%d %H:%M")


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the middle left out: both ends of a URI tell something."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def redact(text: str) -> str:
    """Without the secrets that URIs can carry: user:password@ and the query of a signed link."""
    text = re.sub(r"((?<!\w)\w+://)[^/\s@'\"<>]+@", r"\1***@", text)
    return re.sub(r"((?<!\w)\w+://[^\s?'\"<>]+)\?[^\s'\"<>]+", r"\1?***", text)


def histogram(values: npt.NDArray[np.float64], mark: float, rows: int = 12, width: int = 40) -> str:
    """Counts of (N,) values as lines of text; the line that holds `mark` says so. Values that are not finite are left out.

    The bins span the 0.5 and 99.5 % quantiles; what lies beyond is in the first and last, which name the true ends.
    """
    finite = np.sort(values[np.isfinite(values)])
    if not finite.size:
        return "(no value)"
    low, high = (float(q) for q in np.quantile(finite, (0.005, 0.995)))
    edges = np.linspace(low, high if high > low else low + 1, rows + 1)
    at = np.clip(np.searchsorted(edges, finite, side="right") - 1, 0, rows - 1)
    counts = np.bincount(at, minlength=rows)
    starts = [float(min(edges[0], finite[0])), *map(float, edges[1:-1])]
    ends = [*map(float, edges[1:-1]), float(max(edges[-1], finite[-1]))]
    lines = []
    for start, end, n in zip(starts, ends, counts.tolist(), strict=True):
        bar = "█" * max(round(width * n / int(counts.max())), 1 if n else 0)
        here = "  <- threshold" if start <= mark < end or (mark == end == ends[-1]) else ""
        lines.append(f"{number(start):>10} to {number(end):<10} {bar:<{width}} {n:,}{here}")
    return "\n".join(lines)
