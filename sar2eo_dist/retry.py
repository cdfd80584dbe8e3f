"""What fails on the way to a store gets a name (`errors`), and what may pass is tried again."""

from __future__ import annotations

import errno
import functools
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sar2eo_dist.errors import AccessDenied, NotFound, StorageError, StorageFull, Unavailable

RETRIES = 6  # further attempts after the first: with s3fs's own, an outage of half a minute is waited out
BACKOFF_S = 0.5  # first upper bound of the jittered pause; doubles up to 20 s
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

P = ParamSpec("P")
R = TypeVar("R")


def named(uri: str, e: BaseException) -> StorageError:
    """The named error of whatever a file system raised."""
    text = f"{type(e).__name__}: {e}".strip().rstrip(":")
    code = str(getattr(e, "response", {}).get("Error", {}).get("Code", "")) if hasattr(e, "response") else ""
    if isinstance(e, FileNotFoundError | NotADirectoryError) or code in {"NoSuchBucket", "NoSuchKey", "404"}:
        return NotFound(uri, "not found")
    denied = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "ExpiredToken", "InvalidToken"}
    if (
        isinstance(e, PermissionError)
        or code in denied
        or type(e).__name__ in {"NoCredentialsError", "PartialCredentialsError"}
    ):
        return AccessDenied(uri, f"access denied, check the credentials ({text})")
    if isinstance(e, OSError) and e.errno in FULL:
        return StorageFull(uri, f"cannot be written ({e.strerror}): make room, then run the same command again")
    if isinstance(e, ValueError | ImportError | IsADirectoryError):
        return StorageError(uri, f"cannot use this URI ({text})")
    return Unavailable(uri, f"store did not answer ({text})")


def retried(fn: Callable[P, R]) -> Callable[P, R]:
    """Retry what may pass (Unavailable); raise the rest at once. The URI is the first argument."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(RETRIES + 1):
            try:
                return fn(*args, **kwargs)
            except FileExistsError:
                raise
            except StorageError:
                raise
            except Exception as e:
                error = named(str(args[0]), e)
                if attempt == RETRIES or not isinstance(error, Unavailable):
                    raise error from e
                time.sleep(random.uniform(0, min(20.0, BACKOFF_S * 2**attempt)))
        raise AssertionError("unreachable")

    return call
