"""Stages 1 and 2 of the Clean Collector Algorithm put together: everything measured, and the first failing reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sar2eo_dist.cca import exposure, qa
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.records import KEPT


class Thresholds(Protocol):
    """What `assess` reads of `config.CCA`."""

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


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measured part of a `records.Verdict` (same names, same units), with the first failing reason ("" = none)."""

    valid_fraction: float
    qa60_state: str
    qa60_fraction: float
    max_dn: float
    alpha_fraction: float
    brightness: float
    dark_fraction: float
    reason: str
    detail: str


def assess(bands: npt.NDArray[np.uint16], qa60: npt.NDArray[np.integer] | None, cfg: Thresholds) -> Measurements:
    """Stages 1 and 2 on one tile: bands (3, H, W) uint16 DN in the order B4, B3, B2; qa60 (H, W) or None.

    Every number is measured, whatever rejects the tile first. Order: all_nodata, qa60, constant, alpha, brightness,
    dark. Profile `paper` follows arXiv 2306.12626, `released` the authors' script decision for decision (with the
    default thresholds, which are the script's), `none` measures as `paper` does and rejects nothing.
    Raises BadInput (wrong_shape, wrong_dtype), ConfigError (unknown profile).
    """
    if cfg.profile not in ("paper", "released", "none"):
        raise ConfigError(f"unknown cca.profile {cfg.profile!r}: paper, released or none")
    _check(bands, qa60)
    size = bands[0].size
    valid = exposure.valid_fraction(bands)
    cloudy = qa.cloud_fraction(qa60, cfg.profile)
    state = qa.state(cloudy, cfg.qa60_max_fraction)
    constant = exposure.constant(bands)
    over_alpha = exposure.alpha_fraction(bands, cfg.alpha)
    image = exposure.stretch(bands)
    bright = exposure.brightness(image)
    dark = exposure.dark_count(image, cfg.profile)
    max_dn = int(bands.max())

    reason, detail = KEPT, ""
    if cfg.profile != "none":
        dark_max = exposure.DARK_MAX[cfg.profile]
        failures = [
            (valid == 0, "all_nodata", "no pixel has data in all of B4, B3, B2"),
            (state == qa.CLOUDY, "qa60", f"QA60 cloudy on {cloudy:.4f} > {cfg.qa60_max_fraction:g}"),
            (constant, "constant", "min = max in a band"),
            (
                over_alpha > cfg.alpha_max_fraction,
                "alpha",
                f"DN >= {cfg.alpha} on {over_alpha:.4f} > {cfg.alpha_max_fraction:g}, largest {max_dn}",
            ),
            (bright < cfg.brightness_min, "brightness", f"mean V {bright:.2f} < {cfg.brightness_min:g}"),
            # as the script compares: a count with the share of the image
            (dark > size * dark_max, "dark", f"dark pixels on {dark / size:.4f} > {dark_max:g}"),
        ]
        reason, detail = next(((r, d) for failed, r, d in failures if failed), (KEPT, ""))
    return Measurements(valid, state, cloudy, float(max_dn), over_alpha, bright, dark / size, reason, detail)


def _check(bands: npt.NDArray[np.uint16], qa60: npt.NDArray[np.integer] | None) -> None:
    if bands.ndim != 3 or bands.shape[0] != 3 or not bands.size:
        raise BadInput("wrong_shape", "(array)", f"bands {bands.shape}, not (3, H, W): B4, B3, B2")
    if bands.dtype != np.uint16:
        raise BadInput("wrong_dtype", "(array)", f"bands {bands.dtype}, not uint16")
    if qa60 is not None and qa60.shape != bands.shape[1:]:
        raise BadInput("wrong_shape", "(array)", f"QA60 {qa60.shape} beside bands of {bands.shape[1:]}")
