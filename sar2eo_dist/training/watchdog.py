"""Ends a process whose training step hangs (a lost peer in a collective, a dead mount), so that the workers start again."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable


class Watchdog:
    """After `limit` seconds without a `beat`: tell(words), every thread's stack on stderr, and the process ends.

    limit 0: never. `at_rest`: no step is awaited until the next beat (a checkpoint, a validation).
    """

    def __init__(self, limit: float, tell: Callable[[str], None], end: Callable[[int], None] = os._exit) -> None:
        self.limit, self._tell, self._end = limit, tell, end
        self._last: float | None = time.monotonic()
        self._stopped = threading.Event()
        if limit:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()

    def at_rest(self) -> None:
        self._last = None

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(min(1.0, self.limit / 10)):
            last = self._last
            if last is not None and time.monotonic() - last > self.limit:
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                try:
                    self._tell(f"a step took longer than {self.limit:g} s (train.hang_s): the workers start again")
                finally:  # whom it tells may be gone too
                    self._end(70)
                return
