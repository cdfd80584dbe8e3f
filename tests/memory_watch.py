"""Memory of a driver and its workers while a job runs."""

from __future__ import annotations

import threading

import psutil


class Watch(threading.Thread):
    """Private resident memory, MB, of this process and of the largest worker below it, every half second.

    done: what its user counts; rows: (done, driver, largest worker).
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self.rows: list[tuple[int, float, float]] = []
        self.stop = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.stop.wait(0.5):
            workers = [0.0]
            for child in me.children(recursive=True):
                try:
                    if child.name().startswith("ray::") or child.name().startswith("python"):
                        info = child.memory_info()
                        workers.append((info.rss - info.shared) / 1e6)
                except psutil.Error:
                    continue
            own = me.memory_info()
            self.rows.append((self.done, (own.rss - own.shared) / 1e6, max(workers)))
