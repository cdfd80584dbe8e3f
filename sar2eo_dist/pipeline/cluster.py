"""The Ray that a run uses: the cluster it was submitted to, or one of its own on this machine."""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext

from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError

#: pixels wait between stages in blocks of about this size, so that memory in flight stays bounded
BLOCK_BYTES = 16 << 20
#: no row for so long means a deadlock or a dead cluster: fail with Ray's own words rather than hang
NO_PROGRESS_S = 900

#: a worker that dies is tried again so often by Ray (for ever is its default); then the unit counts a failed attempt
TASKS: dict[str, Any] = {"max_retries": 2}
ACTORS: dict[str, Any] = {"max_restarts": 2, "max_task_retries": 2}


def start(cfg: Config) -> None:
    """Join or start Ray once a process. Token authentication is Ray's default; RAY_AUTH_MODE in the environment rules it."""
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
        ray.init(**options)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # until Ray names them: retries of a worker that died have no other way in (2.60; pyproject stays below 2.64)
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S


@dataclass(frozen=True, slots=True)
class Share:
    """How many actors hold a model, and what each reserves. What they leave is for the read tasks."""

    actors: int
    cpus: float
    gpus: float


def share(asked: int, threads: int, units: int, cpus: float, gpus: float, readers: float = 0.0) -> Share:
    """Actors for a model stage out of what the cluster has.

    Two actors that take all CPUs starve the tasks that feed them, and the job hangs without an error: where tasks feed
    the actors, `readers` CPUs stay free for them (half of a single CPU), checked here with the arithmetic shown.
    asked: `resources.*` (0 = automatic); threads: of one actor; units: no more actors than work. Raises ConfigError.
    """
    free = cpus - min(readers, cpus / 2)
    wanted = asked or (int(gpus) if gpus >= 1 else max(1, int(free // threads)))
    n = min(wanted, max(units, 1))
    each = 1.0 if gpus >= 1 else float(threads)
    each = each if asked else min(each, free / n)
    if n * each > free + 1e-9:
        raise ConfigError(
            f"{n} actors x {each:g} CPUs = {n * each:g} of {cpus:g} CPUs leave fewer than the {cpus - free:g} that reading "
            f"needs: the job would hang. Lower resources.extractors/translators or the threads, or add CPUs."
        )
    return Share(n, each, 1.0 / math.ceil(n / gpus) if gpus >= 1 else 0.0)


def capacity(cfg: Config) -> tuple[float, float]:
    """(CPUs, GPUs) of the running cluster, GPUs 0 where resources.gpu is 'never'."""
    total = ray.cluster_resources()
    return float(total.get("CPU", 1)), 0.0 if cfg.resources.gpu == "never" else float(total.get("GPU", 0))
