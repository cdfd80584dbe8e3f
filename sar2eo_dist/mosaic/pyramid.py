"""Overviews: what a block of pixels is, and how 2 x 2 of them become one of the next level. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import AlignmentError

Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]
DN = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixels of a block: rgb (3, h, w) uint8 or uint16, valid (h, w) bool, error (h, w) uint16 DN or None."""

    rgb: Image
    valid: Mask
    error: DN | None = None


def downsample(children: Sequence[Sequence[Pixels | None]], block: int, height: int, width: int) -> Pixels | None:
    """One block of the next level from the up to 2 x 2 blocks below it, None = missing; None where all are.

    block: side of a block; height, width: of the area that the children cover together (at most 2 blocks each). A pixel
    is the mean of the valid ones of the 4 below it, in integers, rounded half up; valid where one of them is; at odd
    edges there are fewer. So the result is that of halving the whole level at once, whatever the block.
    Raises AlignmentError where a child does not fit its place.
    """
    found = [(i, j, p) for i, line in enumerate(children) for j, p in enumerate(line) if p is not None]
    if not found:
        return None
    first = found[0][2]
    for i, j, p in found:
        extent = min(block, height - i * block), min(block, width - j * block)
        shapes = [p.rgb.shape[1:], p.valid.shape] + ([] if p.error is None else [p.error.shape])
        kind, wanted = ((q.rgb.dtype.name, len(q.rgb), q.error is not None) for q in (p, first))
        if any(s != extent for s in shapes) or kind != wanted:
            raise AlignmentError(
                f"child ({i}, {j}) is of {shapes}, {kind} (dtype, bands, has error), where {extent}, {wanted} belongs"
            )

    def whole(planes: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uint32]:
        """Sums over 2 x 2 pixels of the children's planes put together, 0 where nothing is."""
        canvas = np.zeros((height + height % 2, width + width % 2), planes[0].dtype)
        for (i, j, _), plane in zip(found, planes, strict=True):
            canvas[i * block : i * block + plane.shape[0], j * block : j * block + plane.shape[1]] = plane
        rows = np.add(canvas[::2], canvas[1::2], dtype=np.uint32)
        return rows[:, ::2] + rows[:, 1::2]

    masks = [p.valid.view(np.uint8) for _, _, p in found]
    count = whole(masks)
    share = np.maximum(count, 1)

    def mean(planes: Sequence[npt.NDArray[Any]]) -> Any:
        total = whole([plane * mask for plane, mask in zip(planes, masks, strict=True)])
        return ((2 * total + share) // (2 * share)).astype(planes[0].dtype)

    rgb = np.stack([mean([p.rgb[band] for _, _, p in found]) for band in range(len(first.rgb))])
    errors = [p.error for _, _, p in found if p.error is not None]
    return Pixels(rgb, count > 0, mean(errors) if errors else None)
