"""What a run tells Prometheus: on the node's real endpoint, and nothing at all without Ray."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import live_metrics
import pytest
import ray

from sar2eo_dist.config import Config, load
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import metrics, told
from sar2eo_dist.pipeline.metrics import METRICS
from sar2eo_dist.records import Unit

PIPELINE = Path(metrics.__file__).parent


def value(name: str, **labels: str) -> float:
    """Sum over the processes that told it."""
    found = [s for s in live_metrics.own(live_metrics.live()[1]) if s.name == f"ray_{name}"]
    fitting = [s.value for s in found if labels.items() <= s.labels.items()]
    assert fitting, f"{name} {labels} is not among {[s.labels for s in found]}"
    return sum(fitting)


def test_every_metric_reaches_the_endpoint_with_its_tags(ray_session: None) -> None:
    samples = live_metrics.own(live_metrics.live()[1])
    for name, m in METRICS.items():
        served = [s for s in samples if s.name == f"ray_{name}{'_bucket' if m.kind == 'histogram' else ''}"]
        assert served, f"{name} is not served"
        assert all(set(m.tags) <= set(s.labels) for s in served), name


def test_units_count_once(ray_session: None) -> None:
    summary, _ = live_metrics.live()
    assert (summary.done, len(summary.quarantined)) == (3, 1)
    assert value("sar2eo_units_total", stage="collect", result="done") == 3
    assert value("sar2eo_units_total", stage="collect", result="failed") == 3  # k0 once, k1 twice
    assert value("sar2eo_unit_retries_total", stage="collect") == 2
    assert value("sar2eo_units_planned", stage="collect") == 4
    assert value("sar2eo_units_done", stage="collect") == 3
    assert value("sar2eo_quarantined_units", stage="collect") == 1
    assert value("sar2eo_unit_seconds_bucket", stage="collect", le="5.0") == 3
    assert value("sar2eo_unit_seconds_bucket", stage="collect", le="2.0") == 0


def test_amounts_are_those_of_the_entries(ray_session: None) -> None:
    assert value("sar2eo_bytes_total", stage="collect", direction="in") == 300
    assert value("sar2eo_bytes_total", stage="collect", direction="out") == 30
    assert value("sar2eo_objects_total", stage="collect") == 3
    assert value("sar2eo_tiles_total", sensor="s2") == 24
    assert value("sar2eo_rejects_total", sensor="s2", reason="dark") == 15
    told_of = live_metrics.own(live_metrics.live()[1])
    assert {s.labels["reason"] for s in told_of if s.name == "ray_sar2eo_rejects_total"} == {"dark"}
    assert value("sar2eo_km2_total") == pytest.approx(7.5)
    assert value("sar2eo_step_seconds_total", step="compute") == pytest.approx(6.0)
    assert value("sar2eo_price_per_hour", resource="GPU") == 2


def test_workers_tell_what_only_they_know_under_the_runs_name(ray_session: None) -> None:
    assert value("sar2eo_store_retries_total", error="ConnectionResetError") == 6  # in each of six attempts
    assert value("sar2eo_device_busy_seconds_total", stage="collect", device="cpu") > 0
    assert value("sar2eo_device_wait_seconds_total", stage="collect", device="cpu") > 0


def test_how_it_ended(ray_session: None) -> None:
    stands = {s: value("sar2eo_run_status", stage="collect", status=s) for s in metrics.STATES}
    assert stands == {"running": 0, "complete": 0, "partial": 1, "failed": 0, "stopped": 0}
    begun, ended = (value(f"sar2eo_run_{w}_timestamp_seconds", stage="collect") for w in ("started", "finished"))
    assert 0 < ended - begun < 300
    assert value("sar2eo_result", stage="collect", what="s2 dark") == 15


def test_a_training_tells_through_its_board(ray_session: None) -> None:
    assert value("sar2eo_train_step", role="translate") == 7
    assert value("sar2eo_train_samples_per_second", role="translate") == 12.5
    assert value("sar2eo_train_loss", role="translate", loss="gan") == 0.5
    assert value("sar2eo_train_events_total", role="translate", event="checkpoint_failed") == 1


def test_gauges_stay_while_the_driver_lives(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets a gauge that is not set again: the thread sets all of them, whenever they were put."""
    live_metrics.live()
    again: list[tuple[str, float]] = []

    class Heard:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            again.append((self.name, value))

    monkeypatch.setattr(metrics, "_metric", Heard)
    metrics._set_again()
    assert ("sar2eo_calibration_drift", 0.04) in again
    assert metrics._thread is not None
    assert metrics._thread.is_alive()


SHORT = """
import sys, ray
from sar2eo_dist.pipeline import metrics
metrics.name_run("short")
metrics.put("sar2eo_run_finished_timestamp_seconds", 1234.0, stage="basin")  # before Ray is there
ray.init(address=sys.argv[1], log_to_driver=False)
metrics.add("sar2eo_km2_total", 42)
"""


def test_a_driver_that_ends_at_once_loses_nothing(ray_session: None) -> None:
    address = ray.get_runtime_context().gcs_address
    subprocess.run([sys.executable, "-c", SHORT, address], check=True, capture_output=True, timeout=120)
    told_of = {s.name: s.value for s in live_metrics.own(live_metrics.scrape(), "short")}
    assert told_of == {"ray_sar2eo_km2_total": 42, "ray_sar2eo_run_finished_timestamp_seconds": 1234}


def test_without_ray_nothing_is_made_or_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(metrics, "_metric", lambda name: pytest.fail(f"{name} was made"))
    monkeypatch.setattr(metrics, "_gauges", {})
    told.count(Entry(Unit("collect", "k", "f", "i"), (), 1.0, 5, counts={"s2 dark": 1}, steps={"read": 1.0}))
    metrics.state("collect", "running")
    with metrics.Device().busy("collect"):
        pass
    assert len(metrics._gauges) == len(metrics.STATES)  # sent once Ray is there


def test_a_submitted_run_that_has_nothing_to_do_joins_its_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    joined: list[Config] = []
    monkeypatch.setattr(metrics.cluster, "start", joined.append)
    monkeypatch.delenv(metrics.SUBMITTED, raising=False)
    cfg = load(overrides=[f"run.out={tmp_path}/basin/"])
    told.summary(cfg, "basin", "complete", {})
    assert not joined
    monkeypatch.setenv(metrics.SUBMITTED, "{}")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    told.summary(cfg, "basin", "failed", {})  # perhaps because there is no cluster to join
    assert not joined
    told.summary(cfg, "basin", "complete", {})
    assert joined == [cfg]
    assert metrics.named_run() == "basin"


def test_names_follow_the_conventions_and_each_is_told_somewhere() -> None:
    code = "".join(p.read_text() for p in PIPELINE.glob("*.py") if p.name != "metrics.py")
    code += (PIPELINE / "metrics.py").read_text().partition("\n}  # fmt: skip")[2]
    for name, m in METRICS.items():
        assert re.fullmatch(r"sar2eo(_[a-z0-9]+)+", name)
        assert name.endswith("_total") == (m.kind == "counter"), name
        assert not {"unit", "uri", "key", "path"} & set(m.tags), f"{name}: as many series as there is data"
        assert f'"{name}"' in code or name in {f"sar2eo_train_{n}" for n in ("samples_per_second", "loader_wait_ratio")}
