"""Live progress: a bar with rate and ETA on a terminal, a line every ten seconds in a job's log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from sar2eo_dist.report.text import human_seconds


class Meter:
    """Counts things of one stage while they happen; shows nothing without a noun. `advance` from one thread."""

    def __init__(self, label: str, total: int, noun: str, every: float = 10.0, out: TextIO | None = None) -> None:
        self.label, self.total, self.noun, self.every = label, total, noun, every
        self.out = out or sys.stderr
        self.count, self.note = 0, ""
        self.start = self.printed = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> Meter:
        if self.total and self.noun and self.out.isatty():
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
            left = (self.total - self.count) * (now - self.start) / max(self.count, 1)
            eta = f", {human_seconds(left)} left" if self.count else ""
            print(f"{self.label}: {self.count}/{self.total} {self._extra(now)}{eta}", file=self.out, flush=True)

    def _extra(self, now: float) -> str:
        rate = self.count / max(now - self.start, 1e-6)
        speed = f"{rate:.1f} {self.noun}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s a {self.noun.rstrip('s')}"
        return f"{speed}{'  ' + self.note if self.note else ''}"

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()
