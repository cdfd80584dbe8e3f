"""Live progress: a bar with rate and ETA on a terminal, a line every ten seconds in a job's log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

import ray
import ray.exceptions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from sar2eo_dist.pipeline import log, metrics
from sar2eo_dist.report.text import human_seconds


class Meter:
    """Counts things of one stage while they happen; `total` None where nobody knows it; shows nothing without a noun.

    `advance` from one thread.
    """

    def __init__(
        self, label: str, total: int | None, noun: str, every: float = 10.0, out: TextIO | None = None
    ) -> None:
        self.label, self.total, self.noun, self.every = label, total, noun, every
        self.out = out or sys.stderr
        self.count, self.note = 0, ""
        self.start = self.printed = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> Meter:
        if self.total != 0 and self.noun and self.out.isatty() and not log.as_json():
            fixed, rest = Column(no_wrap=True), Column(ratio=1, no_wrap=True, overflow="ellipsis")
            self.bar = Progress(
                TextColumn("{task.description}", table_column=fixed), BarColumn(16), MofNCompleteColumn(table_column=fixed),
                TimeRemainingColumn(table_column=fixed), TextColumn("{task.fields[extra]}", table_column=rest),
                console=Console(file=self.out), transient=True, expand=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, extra="")
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        self.count += n
        self.note = note or self.note
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=self.count, extra=self._extra(now))
        elif self.noun and now - self.printed >= self.every:
            self.printed = now
            if log.as_json():
                told = {"stage": self.label, "done": self.count, "total": self.total, "unit_of_work": self.noun}
                log.tell(log.INFO, "progress", self.note, **told, seconds=round(now - self.start, 1))
                return
            of, eta = "", ""
            if self.total is not None:
                left = (self.total - self.count) * (now - self.start) / max(self.count, 1)
                of, eta = f"/{self.total:,}", f", {human_seconds(left)} left" if self.count else ""
            print(f"{self.label}: {self.count:,}{of} {self._extra(now)}{eta}", file=self.out, flush=True)

    def _extra(self, now: float) -> str:
        rate = self.count / max(now - self.start, 1e-6)
        speed = f"{rate:,.1f} {self.noun}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s a {self.noun.rstrip('s')}"
        return f"{speed}{'  ' + self.note if self.note else ''}"

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()


#: of a line of a training's log, what is no loss
KNOWN = {"step", "samples_per_s", "wait", "busy", "lr", "skipped", "time", "replaced"}


def losses(line: dict[str, Any]) -> dict[str, float]:
    """The losses of a line of a training's log, by name."""
    return {k: float(v) for k, v in line.items() if k not in KNOWN and not k.startswith("grad_norm") and v is not None}


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """How fast it goes, by the metrics' names; nothing of a line that is not there yet."""
    names = {"samples_per_s": "samples_per_second", "wait": "loader_wait_ratio"}
    return {name: float(line[k]) for k, name in names.items() if k in line}


@ray.remote
class Board:
    """Between training workers and the driver: how far rank 0 is, what any of them has to tell, how it ended."""

    def __init__(self) -> None:
        self.step, self.note = 0, ""
        self.line: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.urgent: list[dict[str, Any]] = []
        self.replaced: dict[int, str] = {}
        self.error: Exception | None = None
        self.result: Any = None

    def post(
        self,
        step: int,
        note: str,
        events: list[dict[str, Any]],
        replaced: dict[int, str],
        line: dict[str, Any] | None = None,
    ) -> None:
        """line: the newest of the log's; None where there is no new one."""
        self.step, self.note, self.events, self.line = step, note or self.note, events, line or self.line
        self.replaced |= replaced

    def tell(self, event: dict[str, Any]) -> None:
        """An event of a worker that is about to end; the next one keeps it."""
        self.urgent.append(event)

    def told(self) -> list[dict[str, Any]]:
        told, self.urgent = self.urgent, []
        return told

    def stop(self, error: Exception) -> None:
        """An error that another try would only repeat; the first one counts."""
        self.error = self.error or error

    def failed(self) -> Exception | None:
        return self.error

    def finish(self, result: Any) -> None:
        self.result = result

    def ended(self) -> tuple[Exception | None, Any]:
        return self.error, self.result

    def read(self) -> tuple[int, str, list[dict[str, Any]], dict[int, str], dict[str, Any]]:
        return self.step, self.note, [*self.events, *self.urgent], self.replaced, self.line


class Watch:
    """Shows the board while the driver waits for a training to end; each event and replaced sample is told once, on stderr.

    role: of the network that is trained.
    """

    def __init__(self, board: Any, role: str, steps: int) -> None:
        self.board, self.meter, self.stop = board, Meter(f"train {role}", steps, "steps"), threading.Event()
        self.role = role
        self.thread = threading.Thread(target=self._poll, daemon=True)
        self.named: set[object] = set()

    def _poll(self) -> None:
        while not self.stop.wait(1.0):
            self._show()

    def _show(self) -> None:
        try:
            step, note, events, replaced, line = ray.get(self.board.read.remote())
        except ray.exceptions.RayError:  # a display that is gone is no reason to lose a training
            return
        news = {
            (e["step"], e["event"]): (e["event"], e["step"], f"step {e['step']}: {e['event']}: {e['text']}")
            for e in events
        }
        replacements = sorted(replaced.items())
        news |= {i: ("replaced", step, f"sample {i} is replaced, it cannot be read: {w}") for i, w in replacements}
        for key in [k for k in news if k not in self.named]:
            event, at, text = news[key]
            log.tell(
                log.WARNING,
                "training",
                f"{self.meter.label}: {text}",
                stage="train",
                role=self.role,
                what=event,
                step=at,
            )
            metrics.add("sar2eo_train_events_total", 1, role=self.role, event=event)
            self.named.add(key)
        metrics.put("sar2eo_train_step", step, role=self.role)
        for name, value in numbers(line).items():
            metrics.put(f"sar2eo_train_{name}", value, role=self.role)
        for name, value in losses(line).items():
            metrics.put("sar2eo_train_loss", value, role=self.role, loss=name)
        self.meter.advance(step - self.meter.count, note)

    def __enter__(self) -> None:
        self.meter.__enter__()
        self.thread.start()

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        self.thread.join(timeout=10)
        self._show()
        self.meter.__exit__(None, None, None)
