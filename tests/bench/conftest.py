"""Benchmarks run under `make bench` alone; they print ratios, measured side by side in one run, and assert nothing timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


@pytest.fixture
def versus(request: pytest.FixtureRequest) -> Callable[..., None]:
    """versus(label, ours, peer, peer_name): best of alternating runs of both, printed as times and ratio."""

    def run(
        label: str, ours: Callable[[], object], peer: Callable[[], object], peer_name: str, repeat: int = 5
    ) -> None:
        best = [float("inf"), float("inf")]
        for _ in range(repeat):
            for i, call in enumerate((ours, peer)):
                begin = time.perf_counter()
                call()
                best[i] = min(best[i], time.perf_counter() - begin)
        print(
            f"\n{label}: {best[0] * 1e3:.2f} ms; {peer_name}: {best[1] * 1e3:.2f} ms; {best[1] / best[0]:.2f} times as fast"
        )

    return run
