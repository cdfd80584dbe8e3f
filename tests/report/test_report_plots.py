"""Plots: well-formed, theme colours only, nothing from outside, the same bytes twice."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter

import matplotlib
import pytest

from sar2eo_dist.report import plots
from sar2eo_dist.report.facts import Tolerance, Within

VARIABLES = {"currentColor", "none", *(c for c in plots._CSS.values())}


def checked(svg: str) -> ET.Element:
    """Parse, and check what every plot must keep."""
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert colours <= VARIABLES, colours
    assert "http" not in svg
    assert "<style" not in svg
    assert root.get("role") == "img"
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)
    return root


def words(root: ET.Element) -> list[str]:
    return ["".join(t.itertext()) for t in root.iter("text")]


def bars(root: ET.Element, colour: str) -> int:
    return sum(colour in (p.get("style") or "") for p in root.iter("path"))


def test_day_bars_stack_the_splits() -> None:
    days = {"train": Counter({-3: 4, 0: 2}), "val": Counter({0: 1}), "elsewhere": Counter({2: 1})}
    root = checked(plots.day_bars(days))
    assert {"-3", "0"} <= {w.replace("\N{MINUS SIGN}", "-") for w in words(root)}
    assert bars(root, "var(--s-train)") == 6  # one for each day from -3 to 2
    checked(plots.day_bars({"val": Counter({0: 1})}))


def tolerance(images: list[int], total: int | None, limit: int | None) -> Tolerance:
    rows = tuple(Within(d, n, n) for d, n in enumerate(images))
    return Tolerance(rows, rows, total, limit, "")


def test_yield_curve_marks_the_limit_and_its_count() -> None:
    texts = words(checked(plots.yield_curve(tolerance([5, 1200, 1500, 2000, 2000], 4000, 2))))
    assert {"1,500", "within 2\N{NO-BREAK SPACE}days", "0 %", "50 %", "100 %", "2,000", "4,000"} <= set(texts)
    texts = words(checked(plots.yield_curve(tolerance([5, 1200, 1500, 2000, 2000], None, None))))
    assert not any("%" in t or "within" in t for t in texts)


@pytest.mark.parametrize("images", [[0], [7], [0, 0, 0], [0, 1], [3] * 91])
@pytest.mark.parametrize("total", [None, 7, 10**9])
def test_degenerate_yields(images: list[int], total: int | None) -> None:
    for limit in (None, 0, len(images) - 1):
        checked(plots.yield_curve(tolerance(images, total, limit)))


def test_loss_curve_has_gaps_and_scales() -> None:
    steps = list(range(1, 601))
    falling = [100.0 / s**1.5 for s in steps]
    falling[50] = float("nan")
    root = checked(plots.loss_curve(steps, falling, "a"))
    assert {"0.1", "1", "10"} <= set(words(root))  # logarithmic
    linear = words(checked(plots.loss_curve(steps, [-1.0 + s / 1000 for s in steps], "b")))
    assert any(w.startswith("\N{MINUS SIGN}") for w in linear)
    checked(plots.loss_curve([7], [0.3], "one point"))
    checked(plots.loss_curve([20_000, 40_000], [0.0, float("inf")], "c"))


def test_two_plots_share_no_ids_and_a_users_style_changes_nothing() -> None:
    steps, values = [1, 2, 3], [3.0, 2.0, 1.0]
    ids = [set(re.findall(r'\bid="([^"]+)"', plots.loss_curve(steps, values, n))) for n in ("a", "b")]
    assert not ids[0] & ids[1]
    before = plots.loss_curve(steps, values, "a")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert plots.loss_curve(steps, values, "a") == before
        assert matplotlib.rcParams["font.size"] == 30
