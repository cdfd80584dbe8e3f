"""What a set of images is, as its features describe it: mergeable moments, and the cloud set that others are scored against.

Features are (N, D): one row an image ("pooled"), or one row a position of an image's last map ("positions").
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ReferenceSetError
from sar2eo_dist.records import digest

F64 = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]

POOLED, POSITIONS = KINDS = ("pooled", "positions")
_TEXT = ("extractor", "preprocessing", "kind", "distance", "digest")


def factorise(sigma: F64) -> F64:
    """B (D, rank) with B B^T = sigma (D, D), a covariance; float64. Eigenvalues under D eps max are taken for 0."""
    values, vectors = np.linalg.eigh(sigma)
    real = values > len(sigma) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    factor: F64 = vectors[:, real] * np.sqrt(values[real])
    return factor


def contrasts(x: F64) -> F64:
    """(n, D) to (n - 1, D): Helmert's, orthonormal and orthogonal to the ones, so of the same scatter as the centred x.

    Unlike the n centred rows they have no direction that is zero but for rounding, whose square root would count.
    """
    k = np.arange(1.0, len(x))[:, None]
    found: F64 = (np.cumsum(x[:-1], axis=0) - k * x[1:]) / np.sqrt(k * (k + 1))
    return found


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Mergeable first and second moments: count of samples, mean (D,), scatter (D, D) about the mean; float64.

    Centred from the start and merged by Chan's formula: raw sums of squares lose every digit at a large offset.
    """

    count: int
    mean: F64
    scatter: F64

    @classmethod
    def from_features(cls, features: Features) -> Moments:
        """Of (N, D) features, N >= 1, accumulated in float64. Raises ReferenceSetError: empty, not finite."""
        x = _checked(features, 1)
        mean = x.mean(axis=0)
        x -= mean
        return cls(len(x), mean, x.T @ x)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together. Raises ReferenceSetError where the dimensions differ."""
        if self.mean.shape != other.mean.shape:
            raise ReferenceSetError(f"cannot merge moments of {self.mean.shape[0]} and {other.mean.shape[0]} features")
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> F64:
        """(D, D), divided by n - 1. Raises ReferenceSetError for fewer than 2 samples."""
        if self.count < 2:
            raise ReferenceSetError(f"a covariance needs 2 images or more, not {self.count}")
        return self.scatter / (self.count - 1)


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """A set of cloud images, as its features describe it: what single images are scored against.

    mean            (D,) float64
    factor          B (D, k) float32 with B B^T = Sigma, k <= min(D, samples - 1)
    trace           Tr Sigma
    count           images; 0 = not known
    extractor, preprocessing    what made the features
    kind            "pooled": a sample is an image, for `point_distance`; "positions": a sample is a position of an
                    image, for `spatial_distance` and `position_distance`
    own             (n,) float64, ascending: distances of the set's own images, for the rule "reference"; empty = not made
    distance        which distance `own` are of; "" = none
    digest          of all of these

    Features of another extractor, preprocessing or kind are refused by `check`. Raises ReferenceSetError for shapes
    that do not agree or an unknown kind.
    """

    mean: F64
    factor: npt.NDArray[np.float32]
    trace: float
    count: int
    extractor: str
    preprocessing: str
    kind: str
    own: F64 = field(default_factory=lambda: np.empty(0))
    distance: str = ""
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.factor.ndim != 2 or len(self.factor) != len(self.mean) or self.kind not in KINDS:
            raise ReferenceSetError(
                f"no reference set: mean {self.mean.shape}, factor {self.factor.shape}, kind {self.kind!r} of {KINDS}"
            )
        arrays = [(a.shape, hashlib.sha256(a.tobytes()).hexdigest()) for a in (self.mean, self.factor, self.own)]
        words = (self.extractor, self.preprocessing, self.kind, self.distance)
        parts = (arrays, float(self.trace).hex(), self.count, *words)
        object.__setattr__(self, "digest", digest("frechet reference", *parts))

    @classmethod
    def from_features(cls, features: Features, extractor: str, preprocessing: str) -> Reference:
        """Of (N, D) pooled features in canonical order; their contrasts are the factor where N <= D.

        Raises ReferenceSetError: fewer than 2 images, values not finite.
        """
        x = _checked(features, 2)
        count, dims = x.shape
        if count > dims:
            return cls.from_moments(Moments.from_features(x), extractor, preprocessing, POOLED, count)
        mean = x.mean(axis=0)
        x -= mean
        x /= np.sqrt(count - 1)
        factor = np.ascontiguousarray(contrasts(x).T, dtype=np.float32)
        return cls(mean, factor, float(np.square(x).sum()), count, extractor, preprocessing, POOLED)

    @classmethod
    def from_moments(cls, moments: Moments, extractor: str, preprocessing: str, kind: str, count: int) -> Reference:
        """Of the moments of `count` images' samples, merged in canonical order: for sets larger than memory.

        Raises ReferenceSetError: fewer than 2 samples.
        """
        return cls._of(moments.mean, moments.covariance, extractor, preprocessing, kind, count)

    @classmethod
    def _of(cls, mean: F64, sigma: F64, extractor: str, preprocessing: str, kind: str, count: int) -> Reference:
        factor = np.ascontiguousarray(factorise(sigma), dtype=np.float32)
        return cls(mean, factor, float(np.trace(sigma)), count, extractor, preprocessing, kind)

    def check(self, extractor: str, preprocessing: str, kind: str) -> None:
        """Raises ReferenceSetError unless features made so may be compared with this set."""
        ours, theirs = (self.extractor, self.preprocessing, self.kind), (extractor, preprocessing, kind)
        if ours != theirs:
            raise ReferenceSetError(
                f"reference {self.digest} was made of {ours}, the features are {theirs}: build it again from its "
                f"images, or set cca.extractor and cca.distance to what it was made for"
            )

    def to_bytes(self) -> bytes:
        """An .npz without pickled objects; equal references give equal bytes."""
        text = {k: getattr(self, k) for k in _TEXT}
        return _npz({
            "mean": self.mean.astype("<f8"),
            "factor": self.factor.astype("<f4"),
            "own": self.own.astype("<f8"),
            "trace": np.float64(self.trace),
            "count": np.int64(self.count),
            **{k: np.frombuffer(v.encode(), np.uint8) for k, v in text.items()},
        })  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """The inverse of `to_bytes`. Raises ReferenceSetError: not such a file, or its digest does not fit."""
        found = _arrays(data)
        if {"mu", "sigma"} <= found.keys():
            raise ReferenceSetError("these are pytorch-fid's statistics (mu, sigma): read them by `from_pytorch_fid`")
        if {"mean", "trace", "digest"} <= found.keys() and "kind" not in found:
            raise ReferenceSetError("reference set of an older version (it has no kind): build it again")
        try:
            text = {k: found[k].tobytes().decode() for k in _TEXT}
            reference = cls(
                np.asarray(found["mean"], np.float64),
                np.asarray(found["factor"], np.float32),
                float(found["trace"]),
                int(found["count"]),
                text["extractor"],
                text["preprocessing"],
                text["kind"],
                np.asarray(found["own"], np.float64),
                text["distance"],
            )
        except (KeyError, TypeError, ValueError) as e:
            raise ReferenceSetError(f"{len(data)} bytes are no reference set ({type(e).__name__}: {e})") from e
        if reference.digest != text["digest"]:
            raise ReferenceSetError(f"reference set is corrupt: digest {reference.digest}, stated {text['digest']}")
        return reference

    def to_pytorch_fid(self) -> bytes:
        """The .npz that pytorch_fid reads in place of a folder: mu (D,), sigma (D, D) float64, sigma as exact as `factor`."""
        wide = self.factor.astype(np.float64)
        return _npz({"mu": self.mean.astype("<f8"), "sigma": (wide @ wide.T).astype("<f8")})

    @classmethod
    def from_pytorch_fid(cls, data: bytes, preprocessing: str) -> Reference:
        """Of the .npz that pytorch_fid's `save_fid_stats` writes: pooled features of extractor "inception".

        preprocessing: inception's own (`models.inception.Inception.preprocessing`); the file does not state it, nor how
        many images it is of: count is 0. Raises ReferenceSetError: not such a file, not finite, sigma no covariance.
        """
        found = _arrays(data)
        if not {"mu", "sigma"} <= found.keys():
            raise ReferenceSetError(f"no pytorch-fid statistics: wanted arrays mu and sigma, found {sorted(found)}")
        mu, sigma = found["mu"], found["sigma"]
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not {mu.dtype.kind, sigma.dtype.kind} <= set("fiu"):
            raise ReferenceSetError(
                f"no pytorch-fid statistics: mu {mu.shape} {mu.dtype}, sigma {sigma.shape} {sigma.dtype}"
            )
        mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
        if not len(mu) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise ReferenceSetError(
                "pytorch-fid statistics are empty or not finite: were they made of 2 images or more?"
            )
        made = cls._of(mu, sigma, "inception", preprocessing, POOLED, 0)
        # what the factor holds is all of a covariance, but lacks what has negative eigenvalues
        held = float(np.square(made.factor, dtype=np.float64).sum())
        if not (np.allclose(sigma, sigma.T) and abs(held - made.trace) <= 1e-5 * held):
            raise ReferenceSetError(
                f"pytorch-fid statistics: sigma is no covariance (trace {made.trace:g}, of positive eigenvalues {held:g})"
            )
        return made


def _checked(features: Features, least: int) -> F64:
    """A float64 copy."""
    x = np.array(features, dtype=np.float64, order="C")
    if x.ndim != 2 or not x.shape[1]:
        raise ReferenceSetError(f"features have shape {x.shape}, not (N, D)")
    if len(x) < least:
        raise ReferenceSetError(f"{len(x)} images: a set needs {least} or more")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise ReferenceSetError(f"features of {bad.size} of {len(x)} images are not finite, first: image {bad[0]}")
    return x


def _npz(arrays: Mapping[str, Any]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as z:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asanyarray(array), allow_pickle=False)
            # np.savez leaves time stamp and platform of an entry to the library version: fix them
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            z.writestr(entry, part.getvalue())
    return whole.getvalue()


def _arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an .npz. Raises ReferenceSetError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as z:
            return {name: z[name] for name in z.files}
    except Exception as e:  # a damaged zip raises whatever its parser stumbles over
        raise ReferenceSetError(f"{len(data)} bytes are no reference set ({type(e).__name__}: {e})") from e
