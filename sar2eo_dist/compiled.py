"""Loops as machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Machine code of a loop, without the GIL, kept on disk for the next process.

    Numba keeps it beside the source or, where that is read-only, in the user's cache folder (NUMBA_CACHE_DIR); where
    neither can be written, each process compiles for itself (seconds).
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        made: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no locator for the cache
        made = numba.njit(**options)(function)
    return made
