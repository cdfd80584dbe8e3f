"""A batch in the making, and what of each patch goes into it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

A = TypeVar("A", Tensor, npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class Cut:
    """What of a sample's patch is trained on."""

    rows: slice
    columns: slice

    def of(self, patch: A) -> A:
        return patch[:, self.rows, self.columns]


class Slots:
    """A batch in the making: each sample is written to its own place, by whichever thread makes it."""

    def __init__(self, size: int, pin: bool) -> None:
        self.cuts = [Cut(slice(0), slice(0))] * size
        self.tensors: list[Tensor] = []
        self._arrays: list[npt.NDArray[Any]] = []  # the same memory
        self._pin, self._lock = pin, threading.Lock()

    def take(self, j: int, *like: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Slot j of arrays like these. Memory is taken by the first: a batch that is only planned takes none."""
        with self._lock:
            if not self._arrays:
                shapes = [((len(self.cuts), *a.shape), torch.from_numpy(np.empty(0, a.dtype)).dtype) for a in like]
                self.tensors = [torch.empty(shape, dtype=dtype, pin_memory=self._pin) for shape, dtype in shapes]
                self._arrays = [part.numpy() for part in self.tensors]
        return [part[j] for part in self._arrays]

    def put(self, j: int, *parts: npt.NDArray[Any]) -> None:
        for place, part in zip(self.take(j, *parts), parts, strict=True):
            place[:] = part

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.tensors)
