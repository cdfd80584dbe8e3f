"""What a stage tells of its units while it runs, as metrics and as events of the log; `stage.run_stage` calls it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sar2eo_dist.config import Config
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import log, metrics
from sar2eo_dist.records import S1, S2, Unit

SHOWN = 20  # failed attempts of a stage that a person is shown


class Told:
    """One stage of one invocation. planned: its units; resumed: how many of them were found done."""

    def __init__(self, cfg: Config, stage: str, planned: Sequence[Unit], resumed: int) -> None:
        self.stage, self.most, self.done, self.failures = stage, cfg.run.max_attempts, resumed, 0
        self.units = {u.id: u for u in planned}
        self.last: dict[str, int] = {}  # the attempt of each unit that was begun last, and the one that has failed last
        self.told: dict[str, int] = {}
        metrics.name_run(metrics.run_of(cfg))
        metrics.put("sar2eo_price_per_hour", cfg.cost.gpu_hour, resource="GPU")
        metrics.put("sar2eo_price_per_hour", cfg.cost.cpu_hour, resource="CPU")
        metrics.put("sar2eo_units_planned", len(planned), stage=stage)
        metrics.put("sar2eo_units_done", resumed, stage=stage)
        metrics.put("sar2eo_quarantined_units", 0, stage=stage)
        metrics.put("sar2eo_run_started_timestamp_seconds", time.time(), stage=stage)
        metrics.state(stage, "running")
        log.tell(log.INFO, "stage_started", stage=stage, planned=len(planned), resumed=resumed)

    def begun(self, unit: Unit, attempt: int) -> None:
        """An attempt of a unit is about to be made."""
        self.last[unit.id] = attempt
        if attempt > 1:
            metrics.add("sar2eo_unit_retries_total", 1, stage=self.stage)
            log.tell(log.INFO, "unit_retried", **self._of(unit))

    def committed(self, entry: Entry) -> None:
        """A unit is in the ledger."""
        self.done += 1
        count(entry)
        metrics.put("sar2eo_units_done", self.done, stage=self.stage)
        sizes: dict[str, Any] = {
            "seconds": round(entry.seconds, 3),
            "bytes_in": entry.bytes_in,
            "bytes_out": entry.bytes_out,
        }
        log.tell(log.INFO, "unit_done", **self._of(entry.unit), **sizes)

    def failed(self, unit_id: str, reason: str) -> None:
        """An attempt of a unit ended in an error; a unit that nobody planned is none of this stage's."""
        if (unit := self.units.get(unit_id)) is None:
            return
        self.failures += 1
        self.told[unit_id] = self.last.get(unit_id, 1)
        metrics.add("sar2eo_units_total", 1, stage=self.stage, result="failed")
        of = f"attempt {self.last.get(unit_id, 1)} of {self.most}"
        text = f"{self.stage}: {unit.key} ({unit_id[:12]}) failed, {of}: {reason}" if self.failures <= SHOWN else ""
        if self.failures == SHOWN + 1:
            text = f"{self.stage}: more attempts failed; what stays so is in summary.json"
        log.tell(log.WARNING, "unit_failed", text, **self._of(unit), reason=reason)

    def died(self, units: Sequence[Unit], reason: str) -> None:
        """A worker that died took these with it; those that had failed by themselves before have told so."""
        for unit in units:
            if self.told.get(unit.id) != self.last.get(unit.id):
                self.failed(unit.id, reason)

    def gave_up(self, quarantined: Sequence[Mapping[str, str]]) -> None:
        """Units that have failed in every attempt: (unit, key, reason) each, as the summary has them."""
        metrics.put("sar2eo_quarantined_units", len(quarantined), stage=self.stage)
        for q in quarantined:
            log.tell(log.ERROR, "quarantined", **self._of(self.units[q["unit"]]), reason=q["reason"])

    def outage(self, reason: str) -> None:
        """The store has stopped to answer."""
        log.tell(log.WARNING, "outage", stage=self.stage, reason=reason)

    def ended(self, status: str, seconds: float) -> None:
        """The stage's units are through; its verb may still have something to write."""
        metrics.state(self.stage, status)
        log.tell(log.INFO, "stage_ended", stage=self.stage, status=status, done=self.done, seconds=round(seconds, 3))

    def _of(self, unit: Unit) -> dict[str, Any]:
        return {"stage": self.stage, "unit": unit.id, "key": unit.key, "attempt": self.last.get(unit.id, 1)}


def count(entry: Entry) -> None:
    """The metrics of a completed unit."""
    stage, counts = entry.unit.stage, Counter(entry.counts)
    metrics.add("sar2eo_units_total", 1, stage=stage, result="done")
    metrics.observe("sar2eo_unit_seconds", entry.seconds, stage=stage)
    metrics.add("sar2eo_bytes_total", entry.bytes_in, stage=stage, direction="in")
    metrics.add("sar2eo_bytes_total", entry.bytes_out, stage=stage, direction="out")
    metrics.add("sar2eo_objects_total", len(entry.outputs), stage=stage)
    for step, seconds in entry.steps.items():
        metrics.add("sar2eo_step_seconds_total", seconds, stage=stage, step=step)
    if stage == "collect":
        tiles = [(k.partition(" "), n) for k, n in counts.items() if k.startswith((S1, S2))]
        for (sensor, _, reason), n in tiles:
            metrics.add("sar2eo_tiles_total", n, sensor=sensor)
            metrics.add("sar2eo_rejects_total", n if reason != "pass" else 0, sensor=sensor, reason=reason)
    metrics.add("sar2eo_km2_total", counts["valid ha"] / 100)


def summary(cfg: Config, stage: str, status: str, counts: Mapping[str, int]) -> None:
    """The metrics of a verb that has written its summary."""
    if status in ("complete", "partial"):
        metrics.join(cfg)
    metrics.name_run(metrics.run_of(cfg))
    metrics.state(stage, status)
    if status in ("complete", "partial"):
        metrics.put("sar2eo_run_finished_timestamp_seconds", time.time(), stage=stage)
        for what, n in counts.items():
            metrics.put("sar2eo_result", n, stage=stage, what=what)
