"""Prometheus metrics of a run, through Ray: each node's agent serves them with the prefix `ray_` beside Ray's own.

Every value is told once, by the process that alone knows it: the driver as units are committed; a worker its retries of
the store and how long its network waited. Without Ray nothing is sent: a complete plan ends before Ray is started.

Ray 2.60 exports every 10 s and when a process ends, but not when it is killed. A counter then stays with the node's agent;
a gauge is gone 20 s after it was last set, so a thread sets them again for as long as the driver lives.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.util import metrics as of_ray

from sar2eo_dist import retry, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import StorageError
from sar2eo_dist.pipeline import cluster

AGAIN_S = 5.0  # between two times that gauges are set
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of a driver that was started by `ray job submit`
STATES = ("running", "complete", "partial", "failed", "stopped")
#: bounds of unit_seconds; Ray passes on how many fell between two of them, so its `_sum` is an estimate
SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]


@dataclass(frozen=True, slots=True)
class Metric:
    """kind: counter | gauge | histogram; tags: besides `run`, the last part of `run.out`; few values each, never a unit."""

    kind: str
    tags: tuple[str, ...]
    about: str


METRICS: dict[str, Metric] = {
    "sar2eo_units_total": Metric("counter", ("stage", "result"), "attempts of units that ended: done, failed"),
    "sar2eo_unit_retries_total": Metric("counter", ("stage",), "attempts of units after their first"),
    "sar2eo_unit_seconds": Metric("histogram", ("stage",), "seconds of the attempts that completed a unit"),
    "sar2eo_step_seconds_total": Metric("counter", ("stage", "step"), "seconds of the steps of completed units"),
    "sar2eo_bytes_total": Metric("counter", ("stage", "direction"), "bytes of completed units: in (pixels), out (objects)"),
    "sar2eo_objects_total": Metric("counter", ("stage",), "storage objects of completed units"),
    "sar2eo_tiles_total": Metric("counter", ("sensor",), "tiles that collect has measured"),
    "sar2eo_rejects_total": Metric("counter", ("sensor", "reason"), "tiles that stages 1 and 2 of the CCA reject"),
    "sar2eo_km2_total": Metric("counter", (), "valid ground of finished blocks, square kilometres"),
    "sar2eo_units_planned": Metric("gauge", ("stage",), "units of the plan"),
    "sar2eo_units_done": Metric("gauge", ("stage",), "of them, finished in this run or before"),
    "sar2eo_quarantined_units": Metric("gauge", ("stage",), "of them, given up after run.max_attempts"),
    "sar2eo_run_status": Metric("gauge", ("stage", "status"), "1 for how a stage stands, 0 for the other states"),
    "sar2eo_run_started_timestamp_seconds": Metric("gauge", ("stage",), "when this invocation began the stage"),
    "sar2eo_run_finished_timestamp_seconds": Metric("gauge", ("stage",), "when it ended it, complete or partial"),
    "sar2eo_result": Metric("gauge", ("stage", "what"), "the counts of a stage's summary"),
    "sar2eo_calibration_drift": Metric("gauge", (), "Kolmogorov-Smirnov distance of new scores to the calibration"),
    "sar2eo_price_per_hour": Metric("gauge", ("resource",), "cost.gpu_hour and cost.cpu_hour"),
    "sar2eo_device_busy_seconds_total": Metric("counter", ("stage", "device"), "seconds that actors with a network computed"),
    "sar2eo_device_wait_seconds_total": Metric("counter", ("stage", "device"), "seconds that they waited for work"),
    "sar2eo_store_retries_total": Metric("counter", ("error",), "requests to the store that were tried again"),
    "sar2eo_train_step": Metric("gauge", ("role",), "optimiser step that a training has reached"),
    "sar2eo_train_samples_per_second": Metric("gauge", ("role",), "samples a second, all workers"),
    "sar2eo_train_loader_wait_ratio": Metric("gauge", ("role",), "share of the time in which the loader was waited for"),
    "sar2eo_train_loss": Metric("gauge", ("role", "loss"), "losses of the newest line of the log"),
    "sar2eo_train_events_total": Metric("counter", ("role", "event"), "what a training told: checkpoint_failed, blob, ..."),
}  # fmt: skip

_made: dict[str, of_ray.Metric] = {}
_gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
_lock = threading.Lock()
_run = ""
_thread: threading.Thread | None = None
_ended = threading.Event()


def name_run(run: str) -> None:
    """What this process's metrics carry as `run`; a worker is told by what it was made with."""
    global _run
    _run = run


def named_run() -> str:
    return _run


def run_of(cfg: Config) -> str:
    """The last part of `run.out`: few enough to be a label."""
    return storage.name(cfg.run.out.rstrip("/"))


def join(cfg: Config) -> None:
    """Join the cluster that this driver was submitted to, so that a run with nothing left to do is seen to have ended."""
    if os.environ.get(SUBMITTED) and os.environ.get("RAY_ADDRESS"):
        cluster.start(cfg)


def add(name: str, value: float, **tags: str) -> None:
    """Raise a counter; 0 tells nothing."""
    if value > 0 and ray.is_initialized():
        _metric(name).inc(float(value), {"run": _run, **tags})  # type: ignore[attr-defined]
        _keep_alive()


def observe(name: str, value: float, **tags: str) -> None:
    """Add to a histogram."""
    if ray.is_initialized():
        _metric(name).observe(float(value), {"run": _run, **tags})  # type: ignore[attr-defined]


def put(name: str, value: float, **tags: str) -> None:
    """Set a gauge of the driver, for as long as it lives; what is set before Ray starts is sent once it has."""
    labels = {"run": _run, **tags}
    with _lock:
        _gauges[name, tuple(sorted(labels.items()))] = float(value)
    if ray.is_initialized():
        _metric(name).set(float(value), labels)  # type: ignore[attr-defined]
        _keep_alive()


def state(stage: str, status: str) -> None:
    """How a stage stands."""
    for other in STATES:
        put("sar2eo_run_status", other == status, stage=stage, status=other)


def _metric(name: str) -> of_ray.Metric:
    with _lock:
        if name not in _made:
            m = METRICS[name]
            tags = ("run", *m.tags)
            if m.kind == "histogram":
                _made[name] = of_ray.Histogram(name, m.about, SECONDS, tags)
            else:
                _made[name] = {"counter": of_ray.Counter, "gauge": of_ray.Gauge}[m.kind](name, m.about, tags)
        return _made[name]


def _set_again() -> None:
    with _lock:
        gauges = dict(_gauges)
    if ray.is_initialized():
        for (name, tags), value in gauges.items():
            _metric(name).set(value, dict(tags))  # type: ignore[attr-defined]


def _keep_alive() -> None:
    """Start the thread that sets gauges again, once there is one to keep."""
    global _thread
    with _lock:
        if not _gauges or _thread is not None:
            return
        _thread = threading.Thread(target=_beat, name="metrics", daemon=True)
    _thread.start()
    atexit.register(_end)  # after Ray's own, so it runs before: the last values go out with Ray's last export


def _beat() -> None:
    while True:
        _set_again()
        if _ended.wait(AGAIN_S):
            return


def _end() -> None:
    _ended.set()
    if _thread is not None:
        _thread.join(timeout=AGAIN_S)
    _set_again()


class Device:
    """How long the network of an actor computes, and how long it waits for work; one call at a time."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    @contextlib.contextmanager
    def busy(self, stage: str) -> Iterator[None]:
        """Around the work of a call."""
        begin, labels = time.monotonic(), {"stage": stage, "device": "gpu" if _on_gpu() else "cpu"}
        add("sar2eo_device_wait_seconds_total", begin - self.since, **labels)
        try:
            yield
        finally:
            self.since = time.monotonic()
            add("sar2eo_device_busy_seconds_total", self.since - begin, **labels)


def _on_gpu() -> bool:
    return ray.is_initialized() and bool(ray.get_gpu_ids())


def store_retried(error: StorageError, cause: BaseException) -> None:
    """A request to the store that will be tried again, for this reason."""
    add("sar2eo_store_retries_total", 1, error=retry.code(cause))


retry.observers.append(store_retried)  # every process that runs units imports this
