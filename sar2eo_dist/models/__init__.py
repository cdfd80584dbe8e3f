"""Networks, in pure torch. A *translator* is ONE file of this folder, and nothing else may know which one runs.

The contract of such a file is the protocol `Translator` below: functions `build` and `complete`, a class `Trainer` and
`PRESETS`. Adding a file that has them is all it takes; `translator(name)` finds it by its module name. An enhancer
(EO -> EO) is a translator too: it only differs in what the caller feeds it.

Values between rooms: images are (N, C, H, W) float32 in [-1, 1]; masks are (N, 1, H, W) bool, True = data.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from sar2eo_dist.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Network(Protocol):
    """What `build` returns: an nn.Module that also states its sizes.

    Called with (N, in_channels, H, W) float32 in [-1, 1], it returns (N, out_channels, H, W) float32 of the same H and
    W, in [-1, 1] in eval mode (a network without a bounded last layer is clamped in eval mode only). H and W may be
    any number >= `minimum`: the image is padded right and bottom by reflection to the next `multiple`, cropped back.
    Raises ModelError that says what to do: wrong channel count, too small, NaN or infinite input.
    """

    in_channels: int
    out_channels: int
    multiple: int
    minimum: int

    def __call__(self, x: Tensor) -> Tensor: ...


class Trainer(Protocol):
    """One network (or a generator and its critic) with its optimisers: everything that changes while training."""

    networks: dict[str, nn.Module]
    """Raw modules by name. Their parameters are the state; what DDP wraps is derived from them."""

    def __init__(self, net: nn.Module, options: Mapping[str, Any], lr: float, steps: int) -> None:
        """`net` comes from `build` and is already on its device; other networks are made on the same device.

        options: those of `build`. lr: initial learning rate. steps: length of the whole schedule. Weights that are
        drawn here come from torch's global generator: seed it before.
        """

    def accelerate(
        self, precision: str = "float32", compile: bool = False, checkpointing: bool = False, micro: int = 0
    ) -> None:
        """`speed.apply` to every network; before `wrap`. Raises ConfigError: a precision that cannot be trained in.

        micro: samples in one forward pass; the gradients of a step's batch are accumulated over such pieces. 0 = all.
        """

    def wrap(self, fn: Callable[[nn.Module], nn.Module], mean: Callable[[Tensor], Tensor]) -> None:
        """Run `fn(module)`, a DistributedDataParallel, in place of each module of `networks`.

        mean: a tensor's mean over all ranks; it is called once a step, by every rank.
        """

    def learning_rate(self, index: int) -> float:
        """The rate of step `index` (0-based), a pure function of it."""

    def step(self, index: int, source: Tensor, target: Tensor, valid: Tensor, weight: float = 1.0) -> dict[str, float]:
        """One full optimisation step, the `index`-th. Returns the losses by name, the same on every rank.

        source, target: (N, C, H, W) in [-1, 1]; valid: (N, 1, H, W) bool. Target and prediction are masked before any
        loss, so invalid pixels count for nothing; losses are divided by constants, so that the average over ranks is
        the loss of the global batch. weight: of this rank's part, world * N / batch, where the parts are uneven.
        `grad_norm_<network>` is told beside the losses, before any clipping. Raises NonFinite with step and names, on
        every rank at once, where one of them is not finite; the weights are then still those of the step before.
        """

    def symptoms(self, means: Mapping[str, float]) -> dict[str, str]:
        """What losses, averaged over some steps, say of a sick training: event -> words. Empty where all looks well."""

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimisers; tensors and plain values only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse. Raises ModelError naming missing, unexpected and misshapen keys."""


class Translator(Protocol):
    """A file of this folder: SAR to EO, or EO to better EO."""

    Trainer: type[Trainer]
    PRESETS: Mapping[str, Mapping[str, Any]]
    """Options by name of a preset, over the defaults; `options["preset"]` chooses one."""

    def build(self, options: Mapping[str, Any], in_channels: int, out_channels: int) -> nn.Module:
        """A `Network`. Raises ConfigError: unknown option (with the nearest name), impossible value."""

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Every option with its value, JSON-ready, so that a bundle does not depend on a later version's presets."""


def translator(name: str) -> Translator:
    """The translator that lives in models/`name`.py. Raises ConfigError listing what there is."""
    if name.isidentifier() and any(m.name == name for m in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        if _is_translator(module):
            return cast("Translator", module)
    raise ConfigError(f"no translator {name!r}; there are: {', '.join(translators())}")


def translators() -> list[str]:
    """Names of all translators, sorted."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return [n for n in names if _importable(n)]


def _importable(name: str) -> bool:
    try:
        return _is_translator(importlib.import_module(f"{__name__}.{name}"))
    except ImportError:  # a file that needs a package which is not here is no choice on this machine
        return False


def _is_translator(module: object) -> bool:
    return all(hasattr(module, part) for part in ("build", "complete", "Trainer", "PRESETS"))
