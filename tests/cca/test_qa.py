from __future__ import annotations

import math

import numpy as np
import pytest

from sar2eo_dist.cca import qa
from sar2eo_dist.errors import BadInput


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_bits_and_any_value(dtype):
    band = np.array([[0, 1 << 10, 1 << 11, 3 << 10], [1, 1 << 9, 1 << 12, 0]], dtype)
    assert qa.fractions(band) == (3 / 8, 6 / 8)
    assert qa.fractions(np.zeros((2, 4), dtype)) == (0.0, 0.0)


def test_negative_values_are_no_cloud_to_the_script():
    assert qa.fractions(np.array([[-4096, 0]], np.int16)) == (0.0, 0.0)
    assert qa.fractions(np.array([[-1, 0]], np.int16)) == (0.5, 0.0)


def test_three_states_whatever_is_allowed():
    assert all(math.isnan(f) for f in qa.fractions(None))
    assert qa.state(float("nan")) == "unknown"
    assert qa.state(0.0) == "clear"
    assert qa.state(1e-5) == "cloudy"


def test_what_is_no_qa60():
    with pytest.raises(BadInput, match="float32"):
        qa.fractions(np.zeros((2, 2), np.float32))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"\(2, 2, 1\)"):
        qa.fractions(np.zeros((2, 2, 1), np.uint16))
