"""Window statistics as an input and an output: instance norm's mean and variance, channel attention's sums.

As trained, both networks read the statistics of the window they are given. A mosaic needs more: `gather` returns those
of a window (or of its core, without the halo), `merge` pools them over windows, `use` runs a network with statistics
given from outside. METHOD.md's modes `field` and `exact` stand on these three.

Per layer, as tensors on the network's device, float32 but for the count (float64):
instance norm: "mean" and "var" (N, C), the biased variance; channel attention: "qk" (N, heads, c, c), sum over pixels
of q k^T, "q2" and "k2" (N, heads, c), sums of squares. Both: "count" (), pixels summed over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sar2eo_dist.errors import ModelError

Statistic = dict[str, Tensor]
#: by layer name; or a function of layer name and map size (h, w), for statistics that vary over the window
Source = Mapping[str, Mapping[str, Tensor]] | Callable[[str, tuple[int, int]], Mapping[str, Tensor]]


class _EnoughError(Exception):
    """Ends a forward pass after the last layer that is wanted; `gather` alone raises and catches it."""


class Tapped(nn.Module):
    """A layer with window statistics. `given` replaces them, `taken` receives them; both None as trained."""

    keys: tuple[str, ...] = ()
    given: Callable[[tuple[int, int]], Mapping[str, Tensor]] | None = None
    taken: Callable[[Tensor], Tensor] | None = None
    found: Statistic | None = None
    last = False

    def end(self) -> None:
        """To be called once `found` is filled: stops the forward pass where nobody wants more of it."""
        if self.last:
            raise _EnoughError

    def outside(self, size: tuple[int, int]) -> list[Tensor]:
        """The given statistics in the order of `keys`. Raises ModelError naming what is missing."""
        values = self.given(size) if self.given is not None else {}
        missing = [k for k in self.keys if k not in values]
        if missing:
            raise ModelError(f"given statistics lack {missing}: they hold {sorted(values)}")
        return [values[k] for k in self.keys]


def layers(net: nn.Module) -> list[str]:
    """Names of the layers that have window statistics, in the order in which they run."""
    return [name for name, _ in _layers(net)]


def keys(net: nn.Module, name: str) -> tuple[str, ...]:
    """What a layer's statistics are called, but for "count"."""
    return dict(_layers(net))[name].keys


@contextmanager
def gather(
    net: nn.Module,
    window: tuple[int, int] = (0, 0),
    core: tuple[int, int, int, int] | None = None,
    only: Collection[str] | None = None,
    last: str = "",
) -> Iterator[dict[str, Statistic]]:
    """The dictionary that forward passes within the context fill, layer by layer; the last pass counts.

    core: (top, bottom, left, right) rows and columns of the input that count, [top, bottom) and [left, right), of an
    input of `window` = (H, W) pixels; None = all of it. only: layers wanted, None = all; last: this layer's alone, and the
    context ends quietly once a pass has met it. Raises ModelError where an edge falls between a layer's pixels.
    """
    found: dict[str, Statistic] = {}
    crop = _crop(window, core) if core else lambda x: x
    only = [last] if last else only
    with (
        _set(net, "taken", lambda name: crop, only),
        _set(net, "found", lambda name: found.setdefault(name, {}), only),
        _set(net, "last", lambda name: name == last),
        contextlib.suppress(_EnoughError),
    ):
        yield found


@contextmanager
def use(net: nn.Module, source: Source, only: Collection[str] | None = None) -> Iterator[None]:
    """Within the context, `net` computes with the statistics of `source` instead of its input's own.

    mean and var may be (N, C) or (1, C), or maps that broadcast with (N, C, h, w). only: the layers that do so, the others
    as trained; None = all. Raises ModelError: a layer is absent.
    """
    if not callable(source):
        missing = [name for name in (layers(net) if only is None else only) if name not in source]
        if missing:
            raise ModelError(f"statistics of {len(missing)} layers are missing, first {missing[0]}: gather them first")

    def given(name: str) -> Callable[[tuple[int, int]], Mapping[str, Tensor]]:
        return (lambda size: source(name, size)) if callable(source) else (lambda size: source[name])

    with _set(net, "given", given, only):
        yield


def merge(parts: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, Statistic]:
    """Statistics of the union of disjoint parts, summed in float64 in the order given (moments: Chan et al., 1979).

    Raises ModelError where parts differ in their layers, or there are none.
    """
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        raise ModelError(f"{len(parts)} parts to merge: at least one is needed, all of the same layers")
    return {name: _merged([part[name] for part in parts]) for name in parts[0]}


def _merged(parts: list[Mapping[str, Tensor]]) -> Statistic:
    wide = [{k: v.double() for k, v in part.items()} for part in parts]
    count = torch.stack([p["count"] for p in wide]).sum(0)
    if "mean" not in wide[0]:
        sums = {k: torch.stack([p[k] for p in wide]).sum(0).float() for k in wide[0] if k != "count"}
        return {**sums, "count": count}
    share = [p["count"] / count for p in wide]
    mean = torch.stack([s * p["mean"] for s, p in zip(share, wide, strict=True)]).sum(0)
    var = torch.stack([s * (p["var"] + (p["mean"] - mean) ** 2) for s, p in zip(share, wide, strict=True)]).sum(0)
    return {"mean": mean.float(), "var": var.float(), "count": count}


def pixels(part: Tensor) -> Tensor:
    """The "count" of a map (N, C, h, w): h w, float64, which holds a basin's pixels exactly."""
    return torch.tensor(float(part.shape[2] * part.shape[3]), dtype=torch.float64, device=part.device)


def _crop(window: tuple[int, int], core: tuple[int, int, int, int]) -> Callable[[Tensor], Tensor]:
    def crop(x: Tensor) -> Tensor:
        edges = []
        for edge, side, size in zip(core, (0, 0, 1, 1), (2, 2, 3, 3), strict=True):
            if edge * x.shape[size] % window[side]:
                raise ModelError(
                    f"core {core} of a window {window} falls between pixels of a layer of {tuple(x.shape[2:])}: "
                    f"edges must be multiples of the network's `multiple`"
                )
            edges.append(edge * x.shape[size] // window[side])
        return x[:, :, edges[0] : edges[1], edges[2] : edges[3]]

    return crop


def _layers(net: nn.Module) -> list[tuple[str, Tapped]]:
    return [(name, module) for name, module in net.named_modules() if isinstance(module, Tapped)]


@contextmanager
def _set(
    net: nn.Module, attribute: str, value: Callable[[str], object], only: Collection[str] | None = None
) -> Iterator[None]:
    taps = [(name, layer) for name, layer in _layers(net) if only is None or name in only]
    try:
        for name, layer in taps:
            setattr(layer, attribute, value(name))
        yield
    finally:
        for _, layer in taps:
            vars(layer).pop(attribute, None)
