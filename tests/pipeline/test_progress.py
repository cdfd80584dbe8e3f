from __future__ import annotations

import io

import pytest

from sar2eo_dist.pipeline.progress import Meter, human_bytes, human_seconds


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")])
def test_bytes(n: float, text: str) -> None:
    assert human_bytes(n) == text


@pytest.mark.parametrize(("s", "text"), [(0.25, "0.2 s"), (59, "59 s"), (61, "1 min 01 s"), (3725, "1 h 02 min")])
def test_seconds(s: float, text: str) -> None:
    assert human_seconds(s) == text


def test_a_log_gets_lines_with_rate_and_eta() -> None:
    out = io.StringIO()
    with Meter("collect", 10, "tiles", every=0.0, out=out) as meter:
        meter.advance(4, "note")
    line = out.getvalue().splitlines()[0]
    assert line.startswith("collect: 4/10 ")
    assert "tiles/s" in line
    assert "note" in line
    assert line.endswith("left")
