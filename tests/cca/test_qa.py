from __future__ import annotations

import math

import numpy as np
import pytest

from sar2eo_dist.cca import qa
from sar2eo_dist.errors import BadInput


def test_bits_of_the_two_profiles():
    band = np.array([[0, 1 << 10, 1 << 11, 3 << 10], [1, 1 << 9, 1 << 12, 0]], np.uint16)
    assert qa.cloud_fraction(band, "paper") == 3 / 8
    assert qa.cloud_fraction(band, "none") == 3 / 8
    assert qa.cloud_fraction(band, "released") == 6 / 8


def test_three_states():
    assert math.isnan(qa.cloud_fraction(None, "paper"))
    assert qa.state(float("nan"), 0.0) == "unknown"
    assert qa.state(0.0, 0.0) == "clear"
    assert qa.state(1e-5, 0.0) == "cloudy"
    assert qa.state(0.1, 0.1) == "clear"


def test_what_is_no_qa60():
    with pytest.raises(BadInput, match="float32"):
        qa.cloud_fraction(np.zeros((2, 2), np.float32), "paper")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"\(2, 2, 1\)"):
        qa.cloud_fraction(np.zeros((2, 2, 1), np.uint16), "paper")
