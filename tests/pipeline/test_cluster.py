from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline import cluster
from sar2eo_dist.pipeline.cluster import feed, share
from sar2eo_dist.sections_training import Resources


@given(st.integers(1, 8), st.integers(1, 1000), st.integers(1, 128), st.integers(0, 8))
def test_automatic_shares_fit(threads: int, units: int, cpus: int, gpus: int) -> None:
    alone = share(0, threads, units, cpus, gpus)
    assert 1 <= alone.actors <= units
    assert alone.actors * alone.cpus <= cpus + 1e-9
    assert alone.actors * alone.gpus <= gpus


@given(
    st.integers(1, 8), st.integers(1, 1000), st.integers(1, 64), st.integers(1, 8), st.integers(0, 8), st.booleans()
)  # fmt: skip
def test_a_reader_fits_on_every_node_whatever_dies(
    threads: int, units: int, cpus: int, count: int, gpus: int, network: bool
) -> None:
    f = feed(Resources(), threads, units, [(cpus, gpus)] * count, network)
    assert 1 <= f.least == f.actors <= units
    assert 0 < f.reader_cpus <= 1
    light = bool(f.actor_gpus) or not network
    on_node = f.actors if light else min(f.actors, int(cpus / f.actor_cpus + 1e-9))  # as many as can gather on one
    left = cpus - on_node * f.actor_cpus
    assert left >= f.reader_cpus - 1e-9
    # a restarted actor cannot take the reader's room
    assert light or on_node == f.actors or left < f.actor_cpus
    assert f.actors * f.actor_gpus <= gpus * count + 1e-9


def test_two_cores_hold_two_extractors_and_a_reader() -> None:
    f = feed(Resources(), 1, 100, [(2, 0)], True)
    assert (f.actors, f.actor_cpus, f.readers, f.reader_cpus) == (2, 0.8, 1, 0.4)
    f = feed(Resources(extractors_min=1), 1, 100, [(2, 0)], True)
    assert (f.least, f.actors) == (1, 2)


def test_without_a_network_readers_get_nearly_everything() -> None:
    f = feed(Resources(), 1, 100, [(2, 0)], False)
    assert (f.actors, f.actor_cpus, f.readers, f.reader_cpus) == (1, 0.25, 2, 0.875)


def test_on_gpus_actors_take_few_cpus() -> None:
    f = feed(Resources(), 4, 10_000, [(16, 4), (16, 4)], True)
    assert (f.actors, f.actor_cpus, f.actor_gpus, f.readers) == (8, 0.25, 1.0, 32)
    assert f.actors * f.actor_cpus + f.readers * f.reader_cpus <= 32
    assert feed(Resources(extractors=16), 1, 10_000, [(16, 4), (16, 4)], True).actor_gpus == 0.5


def test_too_many_actors_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError, match=r"2 extractors x 1 CPUs = 2 of 2 CPUs leave 0"):
        feed(Resources(extractors=2), 1, 9, [(2, 0)], True)
    assert feed(Resources(extractors=1), 1, 9, [(2, 0)], True).actors == 1
    with pytest.raises(ConfigError, match=r"3 actors x 1 CPUs = 3"):
        share(asked=3, threads=1, units=9, cpus=2, gpus=0)
    assert share(asked=0, threads=1, units=9, cpus=2, gpus=0).actors == 2


def test_what_no_node_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="have no CPU for tasks"):
        feed(Resources(), 1, 9, [(0, 1), (0, 0)], True)
    with pytest.raises(ConfigError, match=r"1 extractors of 8 CPUs each do not fit on nodes of 4, 4, 4 CPUs"):
        feed(Resources(extractors=1), 8, 9, [(4, 0)] * 3, True)
    with pytest.raises(ConfigError, match=r"2 extractors of 5 CPUs each do not fit on nodes of 4, 8"):
        feed(Resources(extractors=2), 5, 9, [(4, 0), (8, 0)], True)
    assert feed(Resources(), 1, 9, [(0, 2), (8, 0)], True).actor_gpus == 0, "no actor can be placed where no CPU is"


def growing(monkeypatch: pytest.MonkeyPatch, *sizes: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """A cluster whose nodes are these at one look after the other, the last for ever; what it was asked for."""
    left, asked = list(sizes), list[dict[str, Any]]()
    monkeypatch.setattr(cluster, "nodes", lambda: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(cluster, "request_resources", lambda **what: asked.append(what))
    monkeypatch.setattr(cluster, "LOOK_S", 0.01)
    monkeypatch.setattr(cluster, "_release", lambda: None)
    return asked


def test_a_stage_waits_for_the_workers_that_it_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = growing(monkeypatch, [(0, 0)], [(0, 0), (8, 0)], [(0, 0), (8, 0), (8, 1)], [(0, 0), (8, 0), (8, 1), (8, 1)])
    cluster.gather(Resources(wait_cpus=16, wait_gpus=2))
    assert asked == [{"num_cpus": 16, "bundles": [{"GPU": 1}, {"GPU": 1}]}]
    assert cluster.nodes() == [(0, 0), (8, 0), (8, 1), (8, 1)]  # it looked until they were there, and no longer


def test_it_goes_on_with_what_came_and_refuses_where_nothing_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growing(monkeypatch, [(8, 1)])
    cluster.gather(Resources(wait_gpus=4, wait_s=0.05))
    assert "1 of 4 GPUs are there; going on with these" in capsys.readouterr().err
    growing(monkeypatch, [(8, 0)])
    with pytest.raises(ConfigError, match=r"0 of 4 GPUs came within .*ray status"):
        cluster.gather(Resources(wait_gpus=4, wait_s=0.05))


def test_a_cluster_that_is_asked_for_nothing_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = growing(monkeypatch, [(8, 0)])
    cluster.gather(Resources())
    assert asked == []
