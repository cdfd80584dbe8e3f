from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline.cluster import share


@given(st.integers(1, 8), st.integers(1, 1000), st.integers(1, 128), st.integers(0, 8))
def test_automatic_shares_always_leave_cpus_to_read(threads: int, units: int, cpus: int, gpus: int) -> None:
    s = share(0, threads, units, cpus, gpus, readers=1.0)
    assert 1 <= s.actors <= units
    assert s.actors * s.cpus <= cpus - 0.5 + 1e-9
    alone = share(0, threads, units, cpus, gpus)
    assert alone.actors * alone.cpus <= cpus + 1e-9
    assert s.actors * s.gpus <= gpus


def test_too_many_actors_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError, match=r"2 actors x 1 CPUs = 2 of 2 CPUs"):
        share(asked=2, threads=1, units=9, cpus=2, gpus=0, readers=1.0)
    assert share(asked=1, threads=1, units=9, cpus=2, gpus=0, readers=1.0).actors == 1
    assert share(asked=0, threads=1, units=9, cpus=2, gpus=0).actors == 2
