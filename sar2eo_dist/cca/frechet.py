"""Frechet distances between pooled features: two sets, or one image and a reference set of cloud images.

d = |mu1 - mu2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2)  (Heusel et al., arXiv 1706.08500). Called FID only when the
official Inception weights made the features. No scipy: the last trace comes from symmetric eigenvalues and singular
values, so it is always real.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sar2eo_dist.errors import ReferenceSetError
from sar2eo_dist.records import digest

F64 = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]


def frechet_distance(mu1: F64, sigma1: F64, mu2: F64, sigma2: F64) -> float:
    """Frechet distance of two Gaussians: means (D,), covariances (D, D), float64. Never negative, never complex.

    Sigma = B B^T by eigh, eigenvalues under D eps max taken for 0; Tr (S1 S2)^(1/2) is then the nuclear norm of
    B1^T B2. Singular values lose eps where square roots of eigenvalues of a product lose sqrt(eps).
    Raises ReferenceSetError for shapes that do not agree or values that are not finite (fewer than 2 images).
    """
    mu1, mu2 = np.atleast_1d(np.asarray(mu1, np.float64)), np.atleast_1d(np.asarray(mu2, np.float64))
    sigma1, sigma2 = np.atleast_2d(np.asarray(sigma1, np.float64)), np.atleast_2d(np.asarray(sigma2, np.float64))
    if mu1.ndim != 1 or mu1.shape != mu2.shape or not sigma1.shape == sigma2.shape == (len(mu1), len(mu1)):
        raise ReferenceSetError(
            f"moments do not agree: means {mu1.shape} and {mu2.shape}, covariances {sigma1.shape} and {sigma2.shape}"
        )
    if not all(np.isfinite(a).all() for a in (mu1, mu2, sigma1, sigma2)):
        raise ReferenceSetError("moments are not finite: a set of fewer than 2 images has no covariance")
    shift = mu1 - mu2
    cross = _factor(sigma1).T @ _factor(sigma2)
    nuclear = float(np.linalg.svd(cross, compute_uv=False).sum()) if cross.size else 0.0
    return max(0.0, float(shift @ shift) + float(np.trace(sigma1)) + float(np.trace(sigma2)) - 2 * nuclear)


def _factor(sigma: F64) -> F64:
    """B (D, rank) with B B^T = sigma."""
    values, vectors = np.linalg.eigh(sigma)
    real = values > len(sigma) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    factor: F64 = vectors[:, real] * np.sqrt(values[real])
    return factor


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Mergeable first and second moments: count, mean (D,), scatter (D, D) about the mean; float64.

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
        """(D, D), divided by n - 1. Raises ReferenceSetError for fewer than 2 images."""
        if self.count < 2:
            raise ReferenceSetError(f"a covariance needs 2 images or more, not {self.count}")
        return self.scatter / (self.count - 1)


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """A set of cloud images, as its features describe it: what single images are scored against.

    mean            (D,) float64
    factor          B (D, n) float32 with B B^T = Sigma, rank <= n - 1; None where n > D: it would not be thin
    trace           Tr Sigma
    count           images
    extractor, preprocessing    what made the features; others are refused by `check`
    digest          of all of these
    """

    mean: F64
    factor: npt.NDArray[np.float32] | None
    trace: float
    count: int
    extractor: str
    preprocessing: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        arrays = [hashlib.sha256(a.tobytes()).hexdigest() for a in (self.mean, self.factor) if a is not None]
        parts = (arrays, float(self.trace).hex(), self.count, self.extractor, self.preprocessing)
        object.__setattr__(self, "digest", digest("frechet reference", *parts))

    @classmethod
    def from_features(cls, features: Features, extractor: str, preprocessing: str) -> Reference:
        """Of (N, D) features in canonical order. Raises ReferenceSetError: fewer than 2 images, values not finite."""
        x = _checked(features, 2)
        count, dims = x.shape
        mean = x.mean(axis=0)
        x -= mean
        x /= np.sqrt(count - 1)
        factor = np.ascontiguousarray(x.T, dtype=np.float32) if count <= dims else None
        return cls(mean, factor, float(np.square(x).sum()), count, extractor, preprocessing)

    def check(self, extractor: str, preprocessing: str) -> None:
        """Raises ReferenceSetError unless features made so may be compared with this set."""
        ours, theirs = (self.extractor, self.preprocessing), (extractor, preprocessing)
        if ours != theirs:
            raise ReferenceSetError(f"reference {self.digest} was made by {ours}, the features by {theirs}")

    def to_bytes(self) -> bytes:
        """An .npz without pickled objects; equal references give equal bytes."""
        arrays = {
            "mean": self.mean.astype("<f8"),
            "trace": np.float64(self.trace),
            "count": np.int64(self.count),
            "extractor": np.frombuffer(self.extractor.encode(), np.uint8),
            "preprocessing": np.frombuffer(self.preprocessing.encode(), np.uint8),
            "digest": np.frombuffer(self.digest.encode(), np.uint8),
        }
        if self.factor is not None:
            arrays["factor"] = self.factor.astype("<f4")
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

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """The inverse of `to_bytes`. Raises ReferenceSetError: not such a file, or its digest does not fit."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as z:
                text = {k: z[k].tobytes().decode() for k in ("extractor", "preprocessing", "digest")}
                reference = cls(
                    np.asarray(z["mean"], np.float64),
                    np.asarray(z["factor"], np.float32) if "factor" in z.files else None,
                    float(z["trace"]),
                    int(z["count"]),
                    text["extractor"],
                    text["preprocessing"],
                )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
            raise ReferenceSetError(f"{len(data)} bytes are no reference set ({type(e).__name__}: {e})") from e
        if reference.digest != text["digest"]:
            raise ReferenceSetError(f"reference set is corrupt: digest {reference.digest}, stated {text['digest']}")
        return reference


def point_distance(features: Features, reference: Reference) -> F64:
    """Frechet distance of each single image to the reference set: (N, D) -> (N,) float64; NaN or inf in, same out.

    A single image is a Gaussian of zero covariance: d = |mu - f|^2 + Tr Sigma, which is what pytorch-fid gives for a
    folder that holds the image twice. Each value depends on its own row alone, not on the batch.
    Raises ReferenceSetError where D is not the reference's.
    """
    if features.ndim != 2 or features.shape[1:] != reference.mean.shape:
        raise ReferenceSetError(f"features {features.shape} against a reference of {reference.mean.shape[0]} features")
    distance = np.empty(len(features), np.float64)
    for at in range(0, len(features), 64):  # 64 rows of 2048 stay in the cache: 10 times faster than all at once
        shift = np.ascontiguousarray(features[at : at + 64], dtype=np.float64) - reference.mean
        np.square(shift, out=shift).sum(axis=1, out=distance[at : at + 64])
    distance += reference.trace
    return distance


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
