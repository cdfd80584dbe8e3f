"""Atomic, durable writes to a local disk: a temporary file, fsync, and a rename that only whole files get."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator

_OURS = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)


@contextlib.contextmanager
def temporary(path: str, pieces: Iterable[bytes]) -> Iterator[str]:
    """The pieces in a durable temporary file beside `path`, gone at the end if it was not renamed (a full disk)."""
    folder, base = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    made = os.path.join(folder, f".{base}.{uuid.uuid4().hex}.tmp")
    try:
        with open(made, "wb") as f:
            f.writelines(pieces)
            f.flush()
            os.fsync(f.fileno())
        yield made
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)


def put(path: str, pieces: Iterable[bytes]) -> None:
    """Write or replace a file."""
    with temporary(path, pieces) as made:
        os.replace(made, path)
    sync_folder(path)


def create(path: str, pieces: Iterable[bytes]) -> bool:
    """Write a file where there is none; False where there is one."""
    try:
        with temporary(path, pieces) as made:
            os.link(made, path)
    except FileExistsError:
        return False
    sync_folder(path)
    return True


def sweep(root: str, age_s: float = 3600) -> None:
    """Remove temporary files that killed writers left below a folder; those of a live writer are younger."""
    for folder, _, files in os.walk(root):
        for file in files:
            path = os.path.join(folder, file)
            with contextlib.suppress(OSError):  # gone by now, or somebody else's
                if _OURS.fullmatch(file) and time.time() - os.stat(path).st_mtime > age_s:
                    os.unlink(path)


def sync_folder(path: str) -> None:
    """Make a rename in the folder of `path` durable."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
