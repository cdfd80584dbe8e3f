"""Checkpoints of a training below a URI: one object each, written beside the training, read back with weights_only.

The object is put at once or not at all, so whatever is there is whole; what is damaged later is passed over with a word.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sar2eo_dist import storage
from sar2eo_dist.errors import ModelError, NotFound, NotSaved, StorageError

_NAME = re.compile(r"(\d{9})\.pt")
CRC = 4  # bytes
AGAIN_S = 15.0  # between two tries to write while the store is down


def encode(tree: dict[str, Any]) -> bytes:
    """Tensors, numbers, strings, lists and dicts as the bytes of one checkpoint: those of torch.save, and their CRC32.

    (torch.load checks none, and would go on from weights with a flipped bit.)
    """
    sink = io.BytesIO()
    torch.save(tree, sink)
    sink.write(zlib.crc32(sink.getbuffer()).to_bytes(CRC, "little"))
    return sink.getvalue()


def decode(data: bytes, where: str) -> dict[str, Any]:
    """The inverse, on the CPU. Raises ModelError: torn, or a pickle with code in it (refused, never run)."""
    try:
        if zlib.crc32(memoryview(data)[:-CRC]) != int.from_bytes(data[-CRC:], "little"):
            raise ValueError(f"the CRC32 of its {len(data)} bytes does not hold")
        tree = torch.load(io.BytesIO(memoryview(data)[:-CRC]), map_location="cpu", weights_only=True)
        if not isinstance(tree, dict) or not isinstance(tree.get("step"), int):
            raise TypeError(f"a {type(tree).__name__} without a step")
    except pickle.UnpicklingError as e:
        text = str(e).strip().partition("\n")[0]  # what follows is advice to run the code
        raise ModelError(f"not a plain state of tensors, refused ({text}): {where}") from e
    except Exception as e:  # whatever damaged bytes make of an unpickler
        raise ModelError(f"no readable checkpoint ({type(e).__name__}: {e}): {where}") from e
    return tree


def path(folder: str, step: int) -> str:
    """URI of the checkpoint after `step` steps."""
    return storage.join(folder, f"{step:09d}.pt")


def steps(folder: str) -> list[int]:
    """Steps of the checkpoints that are there, ascending."""
    try:
        found = [_NAME.fullmatch(storage.name(i.uri)) for i in storage.list_files(folder)]
    except NotFound:
        return []
    return sorted(int(m[1]) for m in found if m)


def newest(folder: str) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, None where there is none. A damaged one is named on stderr.

    Raises ModelError where all are damaged: a training is not begun anew without a word.
    """
    there = steps(folder)
    for step in reversed(there):
        try:
            return decode(storage.read_bytes(path(folder, step)), path(folder, step))
        except (ModelError, NotFound) as e:
            print(f"warning: checkpoint passed over: {e}", file=sys.stderr)
    if there:
        raise ModelError(f"none of {len(there)} checkpoints can be read, --fresh starts from the first step: {folder}")
    return None


class Writer:
    """Writes checkpoints in a thread of its own, the latest last; older ones are deleted once a newer one is safe.

    publish: called in that thread after each checkpoint, for what may be lost (curves, pictures); its storage errors
    count as the checkpoint's. patience: seconds for which the store may fail before `check` raises.
    """

    def __init__(self, folder: str, patience: float, on_failure: Callable[[str], None]) -> None:
        self.folder, self.patience, self._on_failure = folder, patience, on_failure
        self._changed = threading.Condition()
        self._waiting: tuple[int, bytes, frozenset[int], Callable[[], None]] | None = None
        self._busy = self._closed = False
        self._failing_since: float | None = None
        self._error: StorageError | None = None
        self._broken: Exception | None = None
        self.done = -1  # the newest step that this writer made safe
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, step: int, data: bytes, keep: Iterable[int], publish: Callable[[], None]) -> None:
        """Hand over a checkpoint; it takes the place of one that still waits. keep: older ones not to be deleted."""
        with self._changed:
            self._waiting = step, data, frozenset(keep), publish
            self._changed.notify_all()

    def check(self) -> None:
        """Raises NotSaved where nothing could be written for `patience` seconds; whatever else went wrong, at once."""
        with self._changed:
            since, error, broken = self._failing_since, self._error, self._broken
        if broken is not None:
            raise broken
        if since is not None and error is not None and time.monotonic() - since > self.patience:
            safe = f"of step {self.done}" if self.done >= 0 else "the one from which this run went on"
            text = f"no checkpoint could be written for {self.patience:.0f} s (train.outage_s), so training stopped; the last"
            more = f"safe one is {safe}. When the store is back, the same command goes on. {error}"
            raise NotSaved(self.folder, f"{text} {more}")

    def close(self) -> None:
        """Wait until what was handed over is safe. Raises as `check` does."""
        with self._changed:
            while self._waiting is not None or self._busy:
                self._changed.wait(0.2)
                self.check()
            self.check()
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """End the thread after what it is writing, whatever waits."""
        with self._changed:
            self._waiting, self._closed = None, True
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._closed or self._waiting is not None:
            with self._changed:
                while self._waiting is None and not self._closed:
                    self._changed.wait()
                if self._waiting is None:
                    return
                work, self._waiting, self._busy = self._waiting, None, True
            error = self._write(*work)
            with self._changed:
                self._busy = False
                if self._closed:
                    return
                if error is None:
                    self._failing_since = self._error = None
                else:
                    if self._failing_since is None:
                        self._failing_since = time.monotonic()
                        self._on_failure(str(error))
                    self._error = error
                    self._waiting = self._waiting or work  # a newer one takes its place
                self._changed.notify_all()
                if error is not None:
                    self._changed.wait(min(AGAIN_S, max(self.patience / 4, 0.1)))

    def _write(self, step: int, data: bytes, keep: frozenset[int], publish: Callable[[], None]) -> StorageError | None:
        try:
            storage.put(path(self.folder, step), data)
            publish()
            self.done = step
            older = [s for s in steps(self.folder) if s < step]
            for old in older[:-1]:
                if old not in keep:
                    storage.delete(path(self.folder, old))
        except StorageError as e:
            return e
        except Exception as e:  # of `publish`: no second try would help
            self._broken = e
        return None
