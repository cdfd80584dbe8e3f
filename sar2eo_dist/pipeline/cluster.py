"""The Ray that a run uses: the cluster it was submitted to, or one of its own on this machine."""

from __future__ import annotations

import atexit
import logging
import math
import os
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.autoscaler.sdk import request_resources
from ray.data import DataContext

from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline import log
from sar2eo_dist.report.text import human_seconds
from sar2eo_dist.sections_training import Resources

#: pixels wait between stages in blocks of about this size: larger ones cost less to pass on, and more memory in flight
BLOCK_BYTES = 48 << 20
#: no row for so long means a deadlock or a dead cluster: fail with Ray's own words rather than hang
NO_PROGRESS_S = 900
LOOK_S, TOLD_S = 5.0, 60.0  # while the cluster grows: between two looks, and two lines about it
#: for a cluster's head to take a connection
CONNECT_S = 20.0

#: a worker that dies is tried again so often by Ray (for ever is its default); then the unit counts a failed attempt
TASKS: dict[str, Any] = {"max_retries": 2}
ACTORS: dict[str, Any] = {"max_restarts": 2, "max_task_retries": 2}


def one_blas_thread(threads: int) -> dict[str, Any]:
    """Remote arguments of an actor whose numpy must not depend on the CPUs that Ray gives it.

    Ray sets OMP_NUM_THREADS to them where they are 2 or more, and sums then differ in their last bits; torch's threads
    are set by `actors.exact` in any case.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {"runtime_env": {"env_vars": dict.fromkeys(names, "1")}} if threads > 1 else {}


def stop(number: int, frame: object) -> None:
    """SIGTERM, as `ray job stop` and Kubernetes send it, is what Ctrl-C is: what is finished stays, the lease is given back."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def interruptible() -> None:
    """Let SIGTERM stop this job cleanly."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def reach(address: str) -> None:
    """Raises OSError where nobody listens at `host:port`: Ray itself would look for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def start(cfg: Config) -> None:
    """Join or start Ray once a process, and wait for the workers that `resources.wait_*` count on.

    Token authentication is Ray's default; RAY_AUTH_MODE in the environment rules it.

    Raises ConfigError where the cluster does not answer or refuses the token.
    """
    if not ray.is_initialized():
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = cfg.resources.address or os.environ.get("RAY_ADDRESS", "")
        options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        if address:
            options["address"] = address
        else:
            # the dashboard is what Ray Train asks whether its controller lives: without it, cleaners stay behind
            options |= {"address": "local", "include_dashboard": True}
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # end within a second, not after several
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts this machine
            # Ray Data's actors trip a harmless C++ error line (ray#53727); failures still reach us as exceptions
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            if cfg.resources.object_store_mb:
                options["object_store_memory"] = cfg.resources.object_store_mb << 20
            if shutil.disk_usage(os.environ.get("RAY_TMPDIR", "/tmp")).free < 1 << 30:  # noqa: S108
                raise ConfigError("less than 1 GB free for Ray's session folder; set RAY_TMPDIR to a larger disk")
        before = signal.getsignal(signal.SIGTERM)
        try:
            reach(address)
            ray.init(**options)
        except (OSError, ray.exceptions.AuthenticationError) as e:
            if not address:
                raise
            raise ConfigError(
                f"no Ray cluster takes this job in at {address} ({str(e).split('. ')[0]}). Is its head up? "
                f"Is RAY_AUTH_MODE the cluster's (token or disabled), and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH its token?"
            ) from e
        if before == stop:
            interruptible()  # Ray has put its own handler there
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # until Ray names them: retries of a worker that died have no other way in (2.60; pyproject stays below 2.64)
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    gather(cfg.resources)


def gather(resources: Resources) -> None:
    """Ask an autoscaling cluster for workers and wait for them: stages share their work out by the nodes that they find.

    The cluster keeps what was asked for until this process ends. Raises ConfigError where not one of a kind has come.
    """
    wanted = {"CPU": resources.wait_cpus, "GPU": resources.wait_gpus}
    if not any(wanted.values()):
        return
    request_resources(num_cpus=wanted["CPU"], bundles=[{"GPU": 1}] * wanted["GPU"])
    atexit.unregister(_release)  # every stage comes by here
    atexit.register(_release)
    begin = told = time.monotonic()
    while True:
        have = dict(zip(("CPU", "GPU"), (sum(column) for column in zip(*nodes(), strict=True)), strict=True))
        short = {kind: n for kind, n in wanted.items() if have.get(kind, 0.0) < n}
        if not short:
            return
        words = ", ".join(f"{have.get(kind, 0.0):g} of {n} {kind}s" for kind, n in short.items())
        if time.monotonic() - begin >= resources.wait_s:
            break
        if time.monotonic() - told >= TOLD_S or told == begin:
            told = time.monotonic()
            log.tell(log.INFO, "waiting", f"waiting for the cluster to grow: {words} are there", **short)
        time.sleep(min(LOOK_S, resources.wait_s / 10))
    if any(not have.get(kind) for kind in short):
        raise ConfigError(
            f"{words} came within {human_seconds(resources.wait_s)}: `ray status` says what the autoscaler waits for (quota, "
            f"maxReplicas, taints, image). Lower resources.wait_gpus or wait_cpus, or raise resources.wait_s"
        )
    log.tell(
        log.WARNING, "short", f"the cluster has not grown as asked for: {words} are there; going on with these", **short
    )


def _release() -> None:
    if ray.is_initialized():
        request_resources(num_cpus=0, bundles=[])


@dataclass(frozen=True, slots=True)
class Share:
    """How many actors hold a model, and what each reserves."""

    actors: int
    cpus: float
    gpus: float


def share(asked: int, threads: int, units: int, cpus: float, gpus: float) -> Share:
    """Actors for a model stage that nothing feeds, out of what the cluster has.

    asked: `resources.*` (0 = automatic); threads: of one actor; units: no more actors than work. Raises ConfigError.
    """
    wanted = asked or (int(gpus) if gpus >= 1 else max(1, int(cpus // threads)))
    n = min(wanted, max(units, 1))
    each = 1.0 if gpus >= 1 else float(threads)
    each = each if asked else min(each, cpus / n)
    if n * each > cpus + 1e-9:
        raise ConfigError(
            f"{n} actors x {each:g} CPUs = {n * each:g}, more than the {cpus:g} CPUs there are: the job would wait for "
            f"ever. Lower resources.translators or resources.extractors or the threads, or add CPUs."
        )
    return Share(n, each, 1.0 / math.ceil(n / gpus) if gpus >= 1 else 0.0)


@dataclass(frozen=True, slots=True)
class Feed:
    """Read tasks that feed actors: how many of each at most, and what one reserves. `least`: actors always kept."""

    actors: int
    least: int
    actor_cpus: float
    actor_gpus: float
    readers: int
    reader_cpus: float


def feed(
    resources: Resources,
    threads: int,
    units: int,
    nodes: Sequence[tuple[float, float]],
    network: bool,
    what: tuple[str, str] = ("extractors", "cca.threads"),
) -> Feed:
    """Split a cluster between actors with a network and the read tasks that feed them.

    nodes: (CPUs, GPUs) of each node; network: False where an actor computes next to nothing; what: how the actors and
    their threads are called in the config. Actors that may take every
    CPU starve the tasks, and the job hangs without an error; so does one that loses a node, if restarted actors may take
    what is left. Hence on each node a reader's CPUs stay free, fewer than an actor wants. Raises ConfigError with the
    arithmetic.
    """
    places = [c for c, _ in nodes if c > 0]
    if not places:
        raise ConfigError(f"the cluster's {len(nodes)} node(s) have no CPU for tasks: add workers, then run this again")
    cpus, smallest = sum(places), min(places)
    gpus = 0.0 if resources.gpu == "never" or not network else sum(g for c, g in nodes if c > 0)
    light = gpus >= 1 or not network
    on_node = [max(1, int(c // threads)) for c in places]
    wanted = resources.extractors or (int(gpus) if gpus >= 1 else len(places) if light else sum(on_node))
    n = min(wanted, max(units, 1))
    if light:  # all of them on one node would still leave most of it
        each = min(0.25, smallest / (4 * n))
        reader = min(1.0, (smallest - n * each) / max(1, int(smallest)))
    elif resources.extractors:
        each, reader = float(threads), min(1.0, threads / 2)
    else:
        each = min(threads, *(c / (k + 0.5) for c, k in zip(places, on_node, strict=True)))
        reader = min(1.0, each / 2)
    free = cpus - n * each
    if not light and sum(int(c / each + 1e-9) for c in places) < n:
        raise ConfigError(
            f"{n} {what[0]} of {each:g} CPUs each do not fit on nodes of {', '.join(f'{c:g}' for c in places)} CPUs: the "
            f"job would wait for ever. Lower {what[1]} or resources.{what[0]}, or add CPUs."
        )
    readers = resources.readers or max(1, int(cpus) if light else math.ceil(cpus / 8))
    if free < reader - 1e-9:
        raise ConfigError(
            f"{n} {what[0]} x {each:g} CPUs = {n * each:g} of {cpus:g} CPUs leave {max(free, 0):g}, and a read task wants "
            f"{reader:g}: nothing would feed them and the job would hang. Lower resources.{what[0]} or {what[1]}, or "
            f"add CPUs."
        )
    # 4 digits: Ray counts in ten-thousandths, and a sum rounded up would not fit
    each, reader = math.floor(each * 1e4) / 1e4, math.floor(reader * 1e4) / 1e4
    least = min(resources.extractors_min or n, n)
    return Feed(n, least, each, 1.0 / math.ceil(n / gpus) if gpus >= 1 else 0.0, readers, reader)


def translators(cfg: Config, units: int) -> Feed:
    """The feed of a mosaic's translators on the running cluster. Raises ConfigError."""
    resources = cfg.resources.model_copy(update={"extractors": cfg.resources.translators, "extractors_min": 0})
    what = ("translators", "translate.threads")
    return feed(resources, cfg.translate.threads, units, nodes(), True, what)


def nodes() -> list[tuple[float, float]]:
    """(CPUs, GPUs) of each living node."""
    found = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    return [(float(r.get("CPU", 0)), float(r.get("GPU", 0))) for r in found]


def capacity(cfg: Config) -> tuple[float, float]:
    """(CPUs, GPUs) of the running cluster, GPUs 0 where resources.gpu is 'never'."""
    total = ray.cluster_resources()
    return float(total.get("CPU", 1)), 0.0 if cfg.resources.gpu == "never" else float(total.get("GPU", 0))
