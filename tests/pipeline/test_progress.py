from __future__ import annotations

import io

from sar2eo_dist.pipeline.progress import Meter


def test_a_log_gets_lines_with_rate_and_eta() -> None:
    out = io.StringIO()
    with Meter("collect", 10, "tiles", every=0.0, out=out) as meter:
        meter.advance(4, "note")
    line = out.getvalue().splitlines()[0]
    assert line.startswith("collect: 4/10 ")
    assert "tiles/s" in line
    assert "note" in line
    assert line.endswith("left")
