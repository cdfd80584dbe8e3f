"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real Sentinel samples, or a skip that names it."""
    folder = os.environ.get("SAR2EO_SAMPLES", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"real samples absent: SAR2EO_SAMPLES={folder!r}")
    return Path(folder)
