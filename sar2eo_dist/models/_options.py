"""Options of a network: a frozen dataclass per translator, presets, and refusals that name the nearest key."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from sar2eo_dist.errors import ConfigError

T = TypeVar("T")


def resolve(kind: type[T], presets: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], owner: str) -> T:
    """`kind(**options)` over the values of the preset that `options["preset"]` names (default: kind's own).

    Raises ConfigError: unknown preset or key (with the nearest one), a value of another type than the default's.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    preset = options.get("preset", fields["preset"].default)
    if preset not in presets:
        raise ConfigError(f"{owner}: unknown preset {preset!r}{nearest(str(preset), presets)}")
    values = {**presets[preset], **options}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{owner}: unknown option {key!r}{nearest(key, fields)}")
        values[key] = _like(fields[key].default, value, f"{owner}: option {key!r}")
    return kind(**values)


def complete(resolved: object) -> dict[str, Any]:
    """The options as plain JSON values; `resolve` reads them back to the same object."""
    tree = dataclasses.asdict(resolved)  # type: ignore[call-overload]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in tree.items()}


def nearest(name: str, known: Mapping[str, object]) -> str:
    """The tail of a message about an unknown name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _like(default: Any, value: Any, what: str) -> Any:
    """`value` in the type of `default`: an int may stand for a float, a list for a tuple of ints."""
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(type(v) is int for v in value):
            return tuple(value)
        raise ConfigError(f"{what} must be a list of integers, not {value!r}")
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{what} must be of type {type(default).__name__}, not {value!r}")
    return value


def require(ok: bool, message: str) -> None:
    """ConfigError unless `ok`."""
    if not ok:
        raise ConfigError(message)
