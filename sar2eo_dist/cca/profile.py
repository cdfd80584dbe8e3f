"""Stages 1 and 2 of the Clean Collector Algorithm put together: what is measured, and which rule it fails first.

Measuring and deciding are apart: thresholds are a filter on measurements, for one tile as for a stored archive, so
another profile or a stricter threshold never touches imagery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sar2eo_dist.cca import cloud, exposure, qa
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.records import KEPT

PROFILES = ("paper", "released", "recommended", "none")


class Measured(cloud.Whiteness, Protocol):
    """What `measure` reads of `sections.CCA`: all that its numbers depend on."""

    @property
    def alpha(self) -> int: ...


class Thresholds(Protocol):
    """What `decide` reads of `sections.CCA`."""

    @property
    def profile(self) -> str: ...
    @property
    def qa60_max_fraction(self) -> float: ...
    @property
    def alpha(self) -> int: ...
    @property
    def alpha_max_fraction(self) -> float: ...
    @property
    def brightness_min(self) -> float: ...
    @property
    def dark_max_fraction(self) -> float: ...
    @property
    def valid_min_fraction(self) -> float: ...
    @property
    def light_min(self) -> float: ...
    @property
    def white_max_fraction(self) -> float: ...
    @property
    def haze_max(self) -> float: ...


class Settings(Measured, Thresholds, Protocol):
    """What `assess` reads of `sections.CCA`."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measured part of a `records.Verdict` (same names, same units): numbers, whatever the profile.

    NaN: qa60_fraction and qa60_any without QA60; haze where no pixel can tell. All others are finite.
    """

    valid_fraction: float
    qa60_state: str
    qa60_fraction: float
    qa60_any: float
    max_dn: float
    alpha_fraction: float
    contrast: float
    brightness: float
    dark_fraction: float
    dark_released: float
    brightness_released: float
    light: float
    white_fraction: float
    haze: float
    offset: float


NAMES = tuple(f.name for f in dataclasses.fields(Measurements))


@dataclass(frozen=True, slots=True)
class Assessment(Measurements):
    """Measurements with the first failing reason ("" = none) and its detail."""

    reason: str
    detail: str


def measure(
    bands: npt.NDArray[np.uint16], qa60: npt.NDArray[np.integer] | None, cfg: Measured, offset: int = 0
) -> Measurements:
    """All numbers of stages 1 and 2 on one tile: bands (3, H, W) uint16 DN, B4, B3, B2; qa60 (H, W) or None; any H, W.

    offset: DN that the product adds (its metadata: 0 or 1000); it is removed before anything is measured.
    Raises BadInput (wrong_shape, wrong_dtype), ConfigError (impossible offset).
    """
    if bands.ndim != 3 or bands.shape[0] != 3 or not bands.size:
        raise BadInput("wrong_shape", "(array)", f"bands {bands.shape}, not (3, H, W): B4, B3, B2")
    if bands.dtype != np.uint16:
        raise BadInput("wrong_dtype", "(array)", f"bands {bands.dtype}, not uint16")
    if qa60 is not None and qa60.shape != bands.shape[1:]:
        raise BadInput("wrong_shape", "(array)", f"QA60 {qa60.shape} beside bands of {bands.shape[1:]}")
    flagged, valued = qa.fractions(qa60)
    raw, bands = bands, exposure.harmonise(bands, offset)
    seen, sky = exposure.expose(bands, cfg.alpha), cloud.look(bands, cfg)
    script = exposure.expose(raw, cfg.alpha) if offset else seen  # no data is 0 in both, so the stretch is not the same
    size = bands[0].size
    return Measurements(
        valid_fraction=seen.valid / size,
        qa60_state=qa.state(flagged),
        qa60_fraction=flagged,
        qa60_any=valued,
        max_dn=float(seen.max_dn),
        alpha_fraction=seen.alpha / size,
        contrast=float(seen.contrast),
        brightness=seen.bright / size,
        dark_fraction=seen.dark / size,
        dark_released=script.dark_released / size,
        brightness_released=script.bright / size,
        light=sky.light,
        white_fraction=sky.white / max(1, seen.valid),
        haze=sky.haze,
        offset=float(offset),
    )


def decide(columns: Mapping[str, npt.NDArray[Any]], cfg: Thresholds) -> npt.NDArray[np.str_]:
    """The first failing reason of each of N tiles, (N,), "" = kept; columns: field of `Measurements` -> (N,) numbers.

    `paper` follows arXiv 2306.12626, `released` the authors' script decision for decision (with the default thresholds,
    which are the script's), `recommended` is the rules that they lack; `none` keeps all. A number that is NaN fails no
    rule. Raises ConfigError (unknown profile).
    """
    names = [KEPT]
    reasons = np.zeros(len(columns["valid_fraction"]), np.uint8)
    for reason, failed in _rules(columns, cfg):
        reasons[(reasons == 0) & failed] = len(names)
        names.append(reason)
    return np.array(names, np.str_)[reasons]


def assess(
    bands: npt.NDArray[np.uint16], qa60: npt.NDArray[np.integer] | None, cfg: Settings, offset: int = 0
) -> Assessment:
    """`measure` and `decide` on one tile: everything is measured, whatever rejects it first. Raises as both do."""
    m = measure(bands, qa60, cfg, offset)
    numbers = {name: getattr(m, name) for name in NAMES}
    reason = next((r for r, failed in _rules(numbers, cfg) if failed), KEPT)
    return Assessment(**numbers, reason=reason, detail=explain(reason, numbers))


def _rules(m: Mapping[str, Any], cfg: Thresholds) -> Iterator[tuple[str, Any]]:
    """(reason, does it fail) in the order in which tiles meet them; numbers or columns alike."""
    if cfg.profile not in PROFILES:
        raise ConfigError(f"unknown cca.profile {cfg.profile!r}: {', '.join(PROFILES)}")
    if cfg.profile == "none":
        return
    released = cfg.profile == "released"
    nothing = m["valid_fraction"] == 0
    # the script has no such rule: to it a patch without any data is constant, and one with gaps like any other
    yield "all_nodata", nothing & (m["contrast"] == 0) if released else nothing
    yield "qa60", m["qa60_any" if released else "qa60_fraction"] > cfg.qa60_max_fraction
    yield "constant", m["contrast"] == 0
    if cfg.alpha_max_fraction:
        yield "alpha", m["alpha_fraction"] > cfg.alpha_max_fraction
    else:  # the script knows no offsets
        yield "alpha", (m["max_dn"] + m["offset"] if released else m["max_dn"]) >= cfg.alpha
    yield "brightness", m["brightness_released" if released else "brightness"] < cfg.brightness_min
    # the script compares counts, count > size * 0.3: the same, since both products and quotients round to 0.3 there
    yield "dark", m["dark_released" if released else "dark_fraction"] > cfg.dark_max_fraction
    yield "partial", m["valid_fraction"] < cfg.valid_min_fraction
    yield "night", m["light"] < cfg.light_min
    yield "white", m["white_fraction"] > cfg.white_max_fraction
    yield "haze", m["haze"] > cfg.haze_max


_WORDS = {
    "all_nodata": "no pixel has data in all of B4, B3, B2",
    "qa60": "QA60 flags {qa60_fraction:.4f} of the pixels, has a value on {qa60_any:.4f}",
    "constant": "min = max in a band",
    "alpha": "largest DN {max_dn:.0f}, alpha reached on {alpha_fraction:.4f}",
    "brightness": "mean V {brightness:.2f}",
    "dark": "dark pixels: {dark_fraction:.4f}, as released {dark_released:.4f}",
    "partial": "data on {valid_fraction:.4f}",
    "night": "the darkest tenth ends at DN {light:.0f}",
    "white": "bright and white on {white_fraction:.4f}",
    "haze": "haze {haze:.0f} DN",
}
EXPLAINED = sorted(_WORDS)  # reasons that `explain` has words for


def explain(reason: str, m: Mapping[str, Any]) -> str:
    """What was measured where a reason applies, in words without any threshold; "" for reasons of other stages.

    m: the fields of `Measurements` of one tile.
    """
    return _WORDS.get(reason, "").format_map(m)
