"""Stage 3's threshold as a record that lasts: frozen, versioned, reused by increments, with the drift of new scores.

`collect/calibrations/NNNN.json` are all versions of a run folder, each with the tiles that it was made of (`.parquet`, 32 bits
of their digests), `collect/calibration.json` is the one in force. A version is made where there is none yet for these scores,
survivors and rule; later tiles are judged by it, not it by them.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.cca.threshold import calibrate, decide
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, KeptOutOfBounds, NotFound
from sar2eo_dist.records import Calibration, digest
from sar2eo_dist.report.text import histogram, number
from sar2eo_dist.sources.ranged import ranged

CURRENT = "collect/calibration.json"
FOLDER = "collect/calibrations"
#: the keys of `cca` that decide stages 1 and 2
SCREEN = {
    "profile", "qa60_max_fraction", "alpha", "alpha_max_fraction", "brightness_min", "dark_max_fraction", "light_min",
    "valid_min_fraction", "white_max_fraction", "haze_max",
}  # fmt: skip
ENOUGH = 100  # new scores; fewer tell nothing of a distribution

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drift:
    """New scores against the calibration that judges them.

    count: new scores; distance: Kolmogorov-Smirnov, the largest difference of the two distribution functions, 0..1;
    median: of the new scores less that of the calibration's, in scores; kept: share of the new scores that is kept
    """

    version: int
    count: int
    distance: float
    median: float
    kept: float

    def line(self, limit: float) -> str:
        """What to tell a person; "" where the new scores are too few to tell anything."""
        if self.count < ENOUGH:
            return ""
        loud = self.distance > limit
        return (
            f"{'DRIFT: ' if loud else ''}{self.count:,} new scores against calibration {self.version}: Kolmogorov-Smirnov "
            f"distance {self.distance:.3f} (limit {limit:g}), median {self.median:+.4g}, {self.kept:.1%} kept"
            + (". Look at them, then calibrate anew with jobs/collect.py --recalibrate" if loud else "")
        )


def settle(
    cfg: Config, made: Calibration, scores: F64, digests: Callable[[], list[str]], whole: bool
) -> tuple[Calibration, Drift | None]:
    """Publish what `foresee` found for (N,) scores as the calibration in force; with the drift of scores that did not enter it.

    digests: of their N tiles, asked for where they are wanted; whole: False for a part of the plan. A new calibration is
    frozen where the plan is whole and the kept share is within the bounds: one that the guard refuses must not last.
    """
    storage.put(storage.join(cfg.run.out, CURRENT), to_json(made))
    if made.version or cfg.cca.calibration:
        new = scores if cfg.cca.calibration else scores[~_entered(cfg, made, _short(digests()))]
        return made, drift(new, made) if new.size and made.quantiles else None
    if whole and cfg.cca.min_kept <= made.kept <= cfg.cca.max_kept:
        made = dataclasses.replace(made, version=max(_versions(cfg), default=0) + 1)
        corpus = pa.table({"tile": np.unique(_short(digests()))})
        sink = pa.BufferOutputStream()
        pq.write_table(corpus, sink, compression="zstd")
        storage.put(_version(cfg, made.version, "parquet"), sink.getvalue().to_pybytes())
        storage.put(_version(cfg, made.version, "json"), to_json(made))
        storage.put(storage.join(cfg.run.out, CURRENT), to_json(made))
    return made, None


def foresee(cfg: Config, scores: F64, name: str, mark: str, own: F64, anew: bool = False) -> Calibration:
    """The calibration of (N,) scores: the one that is frozen, else a new one of version 0. Nothing is written.

    mark: `Verdict.scored_by` of all of them; own: distances of the cloud set's images (rule "reference"); anew: make one
    whatever there is. Raises ConfigError where `cca.calibration` names one of other scores.
    """
    if cfg.cca.calibration:
        return _given(cfg, name, mark)
    if not anew and (found := _frozen(cfg, name, mark)):
        return found
    made = calibrate(scores, name, cfg.cca.rule, cfg.cca.beta, mark, own)
    finite = scores[np.isfinite(scores)]
    return dataclasses.replace(
        made,
        kept=float(decide(scores, made).mean()),
        quantiles=tuple(float(q) for q in np.quantile(finite, np.linspace(0, 1, 101))) if finite.size else (),
        survivors=_survivors(cfg),
    )


def _short(digests: list[str]) -> npt.NDArray[np.uint32]:
    """32 bits of each: among millions, one new tile in a thousand is taken for an old one, which no drift hangs on."""
    return np.fromiter((zlib.crc32(d.encode()) for d in digests), np.uint32, len(digests))


def _entered(cfg: Config, made: Calibration, tiles: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Which of (N,) tiles are among those that a calibration of this run folder was made of."""
    with ranged(_version(cfg, made.version, "parquet")) as f:
        corpus = pq.read_table(f)["tile"].to_numpy()
    at = np.minimum(np.searchsorted(corpus, tiles), len(corpus) - 1)
    known: npt.NDArray[np.bool_] = corpus[at] == tiles
    return known


def _survivors(cfg: Config) -> str:
    """Digest of stages 1 and 2: other survivors are another corpus."""
    return digest(cfg.fingerprint("collect"), cfg.cca.model_dump(mode="json", include=SCREEN))


def drift(new: F64, calibration: Calibration) -> Drift:
    """How (N,) new scores differ from those that a calibration was made of, by its quantiles."""
    old, ordered = np.asarray(calibration.quantiles), np.sort(new)
    at = np.concatenate([ordered, old])
    gaps = [
        np.abs(np.searchsorted(ordered, at, side=side) / ordered.size - _distribution(old, at, side)).max()
        for side in ("left", "right")
    ]
    kept = float(decide(new, calibration).mean())
    return Drift(calibration.version, int(new.size), float(max(gaps)), float(np.median(new) - old[len(old) // 2]), kept)


def _distribution(quantiles: F64, at: F64, side: str) -> F64:
    """Share of values below ("left") or up to ("right") each point, by evenly spaced quantiles; linear between them."""
    levels = np.linspace(0, 1, len(quantiles))
    values, first = np.unique(quantiles, return_index=True)  # a value that many share stands at several levels
    low, high = levels[first], levels[np.append(first[1:], len(quantiles)) - 1]
    i = np.clip(np.searchsorted(values, at, side="right") - 1, 0, len(values) - 1)
    j = np.minimum(i + 1, len(values) - 1)
    width = np.where(j > i, values[j] - values[i], 1.0)
    between = high[i] + np.clip((at - values[i]) / width, 0, 1) * (low[j] - high[i]) * (j > i)
    exact = np.where(values[i] == at, low[i] if side == "left" else high[i], between)
    return np.where(at < values[0], 0.0, np.where(at > values[-1], 1.0, exact))


def guard(cfg: Config, scores: F64, calibration: Calibration | None, tried: int) -> None:
    """Raise KeptOutOfBounds, with the histogram, where the kept share of the tiles that went to the extractor is outside
    the configured bounds.

    scores: (N,) finite ones; calibration: None where there is no score at all; tried: N and those without a finite score.
    """
    kept = int(decide(scores, calibration).sum()) if calibration else 0
    if cfg.cca.min_kept <= kept / tried <= cfg.cca.max_kept:
        return
    bound, side = (cfg.cca.min_kept, "less") if kept / tried < cfg.cca.min_kept else (cfg.cca.max_kept, "more")
    which = "min_kept" if side == "less" else "max_kept"
    told = (
        f"{kept:,} of {tried:,} scored tiles ({kept / tried:.2%}) are kept, {side} than cca.{which} {bound:g} allows: no pair "
        f"is published as usable."
    )
    if scores.size < tried:
        told += (
            f" The extractor gave {tried - scores.size:,} of them no finite score (reason not_scored in "
            f"collect/verdicts.parquet): look at its weights and at those tiles."
        )
    if calibration:
        low, high = number(calibration.low), number(calibration.high)
        told += (
            f" Threshold {number(calibration.threshold)} (rule {calibration.rule}, beta {calibration.beta:g}, from {low} to "
            f"{high}):\n{histogram(scores, calibration.threshold)}\nOne outlier can do this. Try jobs/collect.py --reselect "
            f"--dry-run --set cca.rule=quantile, or another cca.beta: no image is read again."
        )
        if calibration.version:
            told += (
                f" These tiles are judged by calibration {calibration.version}; --recalibrate makes a new one of them."
            )
    raise KeptOutOfBounds(f"{told} If this share is what you want, set cca.{which}.")


def put_drift(cfg: Config, found: Drift) -> str:
    """Write `collect/drift.json`; its path in the run folder."""
    path = "collect/drift.json"
    storage.put(storage.join(cfg.run.out, path), json.dumps(dataclasses.asdict(found), indent=1).encode())
    return path


def to_json(calibration: Calibration) -> bytes:
    return json.dumps(dataclasses.asdict(calibration), indent=1, sort_keys=True).encode()


def from_json(data: bytes, uri: str) -> Calibration:
    """Raises ConfigError where it is none."""
    try:
        tree = json.loads(data)
        tree["quantiles"] = tuple(tree["quantiles"])
        return Calibration(**tree)
    except (ValueError, TypeError, KeyError) as e:
        raise ConfigError(f"no calibration ({type(e).__name__}: {e}): {uri}") from e


def _given(cfg: Config, name: str, mark: str) -> Calibration:
    uri = storage.absolute(cfg.cca.calibration)
    found = from_json(storage.read_bytes(uri), uri)
    if (found.score_name, found.reference) != (name, mark):
        raise ConfigError(
            f"cca.calibration is of {found.score_name} scores made by {found.reference}, these are {name} made by {mark}: "
            f"use the cloud set, extractor, distance, pack and threads that it was made with: {uri}"
        )
    return found


def _frozen(cfg: Config, name: str, mark: str) -> Calibration | None:
    """The newest version of this run folder that is of these scores, survivors and rule."""
    wanted = (name, mark, cfg.cca.rule, cfg.cca.beta, _survivors(cfg))
    for version in sorted(_versions(cfg), reverse=True):
        uri = _version(cfg, version, "json")
        found = from_json(storage.read_bytes(uri), uri)
        if (found.score_name, found.reference, found.rule, found.beta, found.survivors) == wanted:
            return found
    return None


def _versions(cfg: Config) -> list[int]:
    try:
        listed = storage.list_files(storage.join(cfg.run.out, FOLDER))
    except NotFound:
        return []
    names = [storage.name(i.uri) for i in listed]
    return [int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit()]


def _version(cfg: Config, version: int, ending: str) -> str:
    return storage.join(cfg.run.out, FOLDER, f"{version:04d}.{ending}")
