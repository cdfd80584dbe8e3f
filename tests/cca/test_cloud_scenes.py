"""`recommended` on real scenes whose pixels somebody labelled, and on a synthetic world of which no threshold knows.

The thresholds' values come from physics and the synthetic world, but the two labelled scenes were looked at while the
rule took its form (cca/cloud.py): a guard against getting worse, no blind test.
"""

from __future__ import annotations

from collections import Counter

import cloud_scenes
import numpy as np
import pytest

from sar2eo_dist.cca import assess
from sar2eo_dist.sections import CCA

L1C = CCA(profile="recommended", level="l1c")


@pytest.mark.parametrize(
    ("name", "label", "precision", "recall"),
    [
        ("ukis", "hand", 1.0, 1.0),
        ("s2cloudless", "s2cloudless", 0.97, 0.89),
        ("s2cloudless", "ukis-csmask", 0.97, 0.93),
    ],
)
def test_precision_and_recall_on_labelled_scenes(samples, name, label, precision, recall):
    found, shares = cloud_scenes.tiles(*cloud_scenes.scene(samples, name), label)
    cloudy = shares[label] >= cloud_scenes.CLOUDY
    dropped = np.array([bool(assess(t, None, L1C).reason) for t in found])
    assert cloudy.sum() > 20
    assert (dropped & cloudy).sum() / dropped.sum() >= precision
    assert (dropped & cloudy).sum() / cloudy.sum() >= recall


@pytest.mark.parametrize("name", ["nz", "spain"])
def test_clear_scenes_are_kept(samples, name):
    bands, masks = cloud_scenes.scene(samples, name)
    found, _ = cloud_scenes.tiles(bands, masks, next(iter(masks)))
    assert len(found) >= 16
    assert not [m.detail for m in (assess(t, None, L1C) for t in found) if m.reason]


def test_an_unseen_synthetic_world():
    """40 windows; `make bench` looks at many more."""
    cca = CCA(profile="recommended")
    clear, cloudy = Counter(), Counter()
    for view in cloud_scenes.world(404, 40):
        reason = assess(view.bands, view.qa60, cca).reason
        if view.label == "clear":
            clear[reason] += 1
        elif view.cloud_fraction >= 0.08 or view.label == "night":
            cloudy[reason] += 1
    assert sum(clear.values()) > 10
    assert clear[""] == sum(clear.values())
    assert sum(cloudy.values()) > 8
    assert cloudy[""] == 0
