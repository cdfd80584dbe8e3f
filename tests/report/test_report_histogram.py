"""The histogram of the scores: every tile in a bar of its own side, the threshold where it belongs."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sar2eo_dist.report.histogram import BOTTOM, histogram
from sar2eo_dist.report.plots import _CSS

RNG = np.random.default_rng(5)


def drawn(scores: np.ndarray, kept: np.ndarray, threshold: float | None) -> tuple[ET.Element, tuple[float, ...], int]:
    found = histogram(scores, kept, threshold)
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", found.svg)) <= set(_CSS.values())
    return ET.fromstring(found.svg), found.edges, found.beyond


def heights(root: ET.Element, kind: str) -> np.ndarray:
    return np.array([float(r.get("height", "nan")) for r in root.iter("rect") if r.get("class") == kind])


def test_bars_are_the_counts_of_both_sides() -> None:
    scores = RNG.normal(200, 30, 1000)
    root, edges, beyond = drawn(scores, scores >= 180, 180.0)
    assert 180.0 in edges
    for kind, members in (("kept", scores[scores >= 180]), ("dropped", scores[scores < 180])):
        counts, tall = np.histogram(members, edges)[0], heights(root, kind)
        unit = tall.max() / counts.max()
        np.testing.assert_allclose(tall, counts * unit, atol=0.01)
    assert beyond == np.sum((scores < edges[0]) | (scores > edges[-1]))
    both = list(zip(root.iter("rect"), strict=False))
    assert all(float(r.get("y", "0")) + float(r.get("height", "0")) <= BOTTOM + 0.01 for (r,) in both)


def test_the_threshold_stands_at_its_score() -> None:
    scores = RNG.normal(200, 30, 1000)
    root, edges, _ = drawn(scores, scores >= 180, 180.0)
    (cut,) = [g for g in root.iter("g") if g.get("class") == "cut"]
    at = float(re.findall(r"[\d.]+", cut.get("transform", ""))[0])
    left, right = float(root.get("data-left", "")), float(root.get("data-right", ""))
    assert at == pytest.approx(left + (right - left) * (180 - edges[0]) / (edges[-1] - edges[0]), abs=0.01)
    assert cut.get("visibility") == "visible"
    assert "threshold" in [t.text for t in root.iter("text")]


@pytest.mark.parametrize("threshold", [None, -math.inf])
def test_no_threshold_no_line(threshold: float | None) -> None:
    root, _, _ = drawn(RNG.normal(200, 30, 100), np.ones(100, bool), threshold)
    (cut,) = [g for g in root.iter("g") if g.get("class") == "cut"]
    assert cut.get("visibility") == "hidden"


def test_one_far_score_does_not_squeeze_the_rest() -> None:
    scores = np.concatenate([np.linspace(190, 210, 999), [9000.0]])
    _, edges, beyond = drawn(scores, scores > 195, 195.0)
    assert beyond == 1
    assert edges[-1] < 300
    assert histogram(scores, scores > 195, 195.0).svg == histogram(scores, scores > 195, 195.0).svg


@pytest.mark.parametrize(
    ("scores", "threshold"), [([5.0], None), ([5.0, 5.0, 5.0], 5.0), ([0.0, 0.0], 0.0), ([-3.0, 1e9], -100.0)]
)
def test_degenerate_scores(scores: list[float], threshold: float | None) -> None:
    values = np.array(scores)
    root, edges, _ = drawn(values, np.ones(len(values), bool), threshold)
    assert sum(heights(root, "kept")) > 0
    assert list(edges) == sorted(set(edges))
