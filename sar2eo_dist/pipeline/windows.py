"""Both networks over the windows of a lattice: statistics of a window, images of a block. No Ray, no I/O.

Whatever is computed depends on the lattice window and its data alone, never on the block that asks, so neighbouring blocks
agree and a block can be made again anywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import field, statistics
from sar2eo_dist.mosaic.blend import Blender
from sar2eo_dist.mosaic.grid import Block, Grid, Window
from sar2eo_dist.mosaic.sar import Sar
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.radiometry import validity

if TYPE_CHECKING:
    from sar2eo_dist.mosaic.confidence import Model

F32 = npt.NDArray[np.float32]
#: "weight" () and "<network>:<layer>:<key>" (C,) of one statistics window; of `exact` of any shape, and no weight
Gathered = Mapping[str, Tensor]


def gathered(chain: Chain, lattice: Grid, block: Block, sar: Sar) -> dict[str, Tensor]:
    """Norm statistics of every network over one window of the statistics lattice, which it runs as it was trained to.

    sar: of `lattice.around(block)`. The weight is the share of a whole window that is data; without any, no network runs.
    """
    weight = float(validity(sar.cut(block)).sum()) / lattice.block**2
    out = {"weight": torch.tensor(weight, dtype=torch.float64)}
    names = [field.moments(net) for net in chain.nets]
    if not weight:
        return out
    x, place = chain.scaled([sar.db]), lattice.around(block)
    with torch.inference_mode():
        for k, net in enumerate(chain.nets):
            if not any(names[k:]):
                break
            padded = chain.padded(k, place.height, place.width)
            with statistics.gather(net, padded, _core(lattice, block, place, padded), only=names[k]) as found:
                x = net(x).clamp(-1, 1)
            out |= {f"{k}:{n}:{key}": found[n][key][0].cpu().contiguous() for n in names[k] for key in ("mean", "var")}
    return out


def exact(chain: Chain, lattice: Grid, read: Callable[[Block], Sar]) -> dict[str, Tensor]:
    """Statistics of the whole grid as whole-image inference would compute them, by one process in lock-step.

    Every window is read and run once for each layer of each network: for verification, not for a basin.
    """
    known: list[dict[str, statistics.Statistic]] = []
    for k, net in enumerate(chain.nets):

        def inputs(k: int = k) -> Iterable[tuple[Tensor, tuple[int, int], field.Core]]:
            for block in lattice.blocks():
                place = lattice.around(block)
                padded = chain.padded(k, place.height, place.width)
                x = _through(chain.nets[:k], chain.scaled([read(block).cut(place)]), [dict(s) for s in known])
                yield x, padded, _core(lattice, block, place, padded)

        known.append(field.lockstep(net, inputs))
    return {
        f"{k}:{name}:{key}": value.cpu().contiguous()
        for k, layers in enumerate(known)
        for name, values in layers.items()
        for key, value in values.items()
    }


def _through(nets: Sequence[torch.nn.Module], x: Tensor, sources: Sequence[statistics.Source]) -> Tensor:
    with torch.inference_mode():
        for net, source in zip(nets, sources, strict=True):
            with statistics.use(net, source):
                x = net(x).clamp(-1, 1)
    return x


def _core(lattice: Grid, block: Block, place: Window, padded: tuple[int, int]) -> field.Core:
    """A statistics window within its padded input; at the grid's far edges it owns the padding, as the whole image does."""
    top, left = block.y - place.row, block.x - place.col
    bottom = padded[0] if block.y + block.height == lattice.height else top + block.height
    right = padded[1] if block.x + block.width == lattice.width else left + block.width
    return top, bottom, left, right


@dataclass(frozen=True, slots=True)
class Made:
    """A block's image (3, h, w) float32 in [-1, 1], and its typical error (h, w) uint16 DN where it was asked for.

    NaN (and 0) where no window had data. windows: that ran through the networks.
    """

    image: F32
    error: npt.NDArray[np.uint16] | None
    windows: int


def images(
    chain: Chain,
    grid: Grid,
    block: Block,
    sar: Sar,
    given: Callable[[Window], Sequence[tuple[Block, Gathered]]] | Gathered | None,
    lattice: Grid | None,
    batch: int,
    confidence: Model | None,
) -> Made:
    """The block's pixels from every lattice window that touches it; windows without data in their core run no network.

    sar: of `grid.reach(block)`. given: None, each window's own statistics, windows blended (`window`); a function from a
    window with its halo to the knots around it, of `lattice` (`field`); the whole grid's statistics (`exact`).
    """
    if given is None:
        return _blended(chain, grid, block, sar, confidence)
    image = np.full((3, block.height, block.width), np.nan, np.float32)
    error = np.zeros((block.height, block.width), np.uint16) if confidence else None
    todo = [w for w in grid.windows_of(block) if validity(sar.cut(w)).any()]
    for group in _batches(grid, todo, batch):
        places = [grid.around(w) for w in group]
        sources = _sources(chain, places, given, lattice)
        dbs = [sar.cut(p) for p in places]
        dbs += dbs[-1:] * (batch - len(dbs))  # the shape of a forward pass never varies
        made = chain.run(dbs, lambda k, found=sources: found(k, batch))  # type: ignore[misc]
        for n, (w, place) in enumerate(zip(group, places, strict=True)):
            core = np.s_[w.row - place.row :, w.col - place.col :]
            inside = np.s_[
                ..., w.row - block.y : w.row - block.y + w.height, w.col - block.x : w.col - block.x + w.width
            ]
            cut = np.s_[..., : w.height, : w.width]
            image[inside] = made[-1][n][:, core[0], core[1]][cut]
            if confidence and error is not None:
                error[inside] = confidence.predict(dbs[n], [m[n] for m in made])[core][cut]
    return Made(image, error, len(todo))


def _batches(grid: Grid, windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Windows in groups of at most `size` whose inputs have one shape, in canonical order."""
    shapes: dict[tuple[int, int], list[Window]] = defaultdict(list)
    for w in windows:
        place = grid.around(w)
        shapes[place.height, place.width].append(w)
    for group in shapes.values():
        for at in range(0, len(group), size):
            yield group[at : at + size]


def _sources(
    chain: Chain,
    places: Sequence[Window],
    given: Callable[[Window], Sequence[tuple[Block, Gathered]]] | Gathered,
    lattice: Grid | None,
) -> Callable[[int, int], tuple[statistics.Source, Sequence[str]]]:
    """(network, batch) -> the statistics that it is to use and the layers that use them."""
    if not callable(given):
        split: dict[int, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
        for name, value in given.items():
            k, layer, key = name.split(":")
            split[int(k)][layer][key] = value.to(chain.device)
        return lambda k, batch: (split[k], list(split[k]))
    if lattice is None:
        raise TypeError("a field without its lattice")
    fields = [_fields(chain, lattice, given(p)) for p in places]

    def found(k: int, batch: int) -> tuple[statistics.Source, Sequence[str]]:
        padded = chain.padded(k, places[0].height, places[0].width)
        at = [(f[k], p.row, p.col) for f, p in zip(fields, places, strict=True)]
        at += at[-1:] * (batch - len(at))
        return field.source(at, padded), field.moments(chain.nets[k])

    return found


def _fields(chain: Chain, lattice: Grid, knots: Sequence[tuple[Block, Gathered]]) -> list[field.Field]:
    """Each network's field from the statistics windows around one window, row by row."""
    rows, cols = sorted({b.row for b, _ in knots}), sorted({b.col for b, _ in knots})
    if len(knots) != len(rows) * len(cols) or not any(float(g["weight"]) for _, g in knots):
        raise ModelError(f"no statistics around a window with data: {[b.key for b, _ in knots]}")
    weights = np.array([float(g["weight"]) for _, g in knots]).reshape(len(rows), len(cols))
    full = next(g for _, g in knots if float(g["weight"]))
    half = lattice.block / 2
    out = []
    for k, net in enumerate(chain.nets):
        values = {}
        for layer in field.moments(net):
            pair = []
            for key in ("mean", "var"):
                name = f"{k}:{layer}:{key}"
                parts = [g.get(name, torch.zeros_like(full[name])) for _, g in knots]
                pair.append(torch.stack(parts).view(len(rows), len(cols), -1).to(chain.device))
            values[layer] = (pair[0], pair[1])
        out.append(field.Field([r * lattice.block + half - 0.5 for r in rows],
                               [c * lattice.block + half - 0.5 for c in cols], weights, values))  # fmt: skip
    return out


def _blended(chain: Chain, grid: Grid, block: Block, sar: Sar, confidence: Model | None) -> Made:
    blender, count = Blender(grid, block, 4 if confidence else 3), 0
    for w in grid.windows_of(block):
        db = sar.cut(w)
        seen = validity(db)
        if seen.any():
            made = chain(db)
            planes = [made[-1]] + ([confidence.predict(db, made)[None].astype(np.float32)] if confidence else [])
            blender.add(w, np.concatenate(planes), seen)
            count += 1
    result = blender.result()
    error = np.rint(np.nan_to_num(result[3])).astype(np.uint16) if confidence else None
    return Made(result[:3], error, count)
