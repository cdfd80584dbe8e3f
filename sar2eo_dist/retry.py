"""What fails on the way to a store gets a name (`errors`), and what may pass is tried again.

These are the only retries: the clients below make one attempt (`storage`), so that waits do not multiply, and whoever
creates an object if absent knows whether an earlier attempt of his own went unanswered.
"""

from __future__ import annotations

import email.utils
import errno
import functools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sar2eo_dist.errors import AccessDenied, NotFound, StorageError, StorageFull, Unavailable

RETRIES = 12  # further attempts after the first: with the pauses between them, an outage of a minute is waited out
PATIENCE_S = 120.0  # after this long no further attempt is begun, however slowly the first ones failed
BACKOFF_S = 0.5  # first upper bound of the jittered pause; doubles up to 20 s
TELL_S = 30.0  # a process that waits for the store says so, at most this often
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
SKEW_S = 14 * 60  # S3 refuses requests of a clock that is off by a quarter of an hour
#: refusals (status 4xx) that the same request may not meet again
PASSING = {
    "RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "OperationAborted", "SlowDown",
}  # fmt: skip
RENEW = "they have expired: renew them, then run the same command again"
#: code of S3, or name of a client's error -> what to do about it
DENIED = {
    "InvalidAccessKeyId": "the store does not know the access key: check AWS_ACCESS_KEY_ID or AWS_PROFILE, and the endpoint",
    "SignatureDoesNotMatch": "the secret does not fit the access key: check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "AccessDenied": "they may not do this here: have the right granted on the bucket, or use others",
    "ExpiredToken": RENEW,
    "TokenRefreshRequired": RENEW,
    "UnauthorizedSSOTokenError": RENEW,
    "InvalidToken": "the session token is not of this store: check AWS_SESSION_TOKEN, leave it out with lasting keys",
    "NoCredentialsError": "there are none: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or bind a role",
    "PartialCredentialsError": "they are not complete",
    "ProfileNotFound": "the files of AWS have no such profile: check AWS_PROFILE",
    "403": "the access key, its secret or its right on the bucket",
}
#: errors of the client that no second attempt would mend
UNUSABLE = {
    "ParamValidationError",
    "InvalidConfigError",
    "ConfigParseError",
    "InvalidRegionError",
    "UnknownEndpointError",
}
#: told of every attempt that will be followed by another: (what it is called, what was raised)
observers: list[Callable[[StorageError, BaseException], None]] = []
now = time.time  # this machine's clock, which may be wrong
_told = threading.Lock()
_next_line = 0.0

P = ParamSpec("P")
R = TypeVar("R")


def answer(e: BaseException) -> dict[str, Any]:
    """What an S3 store answered, of an error raised by s3fs (which translates) or by its client; {} where it did not."""
    for error in (e, e.__cause__):
        if isinstance(reply := getattr(error, "response", None), dict):
            return reply
    return {}


def code(e: BaseException) -> str:
    """The store's own word for it ("NoSuchBucket"), or its status, or the error's name where no store answered."""
    return str(answer(e).get("Error", {}).get("Code", "")) or type(e).__name__


def named(uri: str, e: BaseException) -> StorageError:
    """The named error of whatever a file system raised; its message names the remedy, and never a key."""
    reply, word = answer(e), code(e)
    said = str(reply.get("Error", {}).get("Message") or "") if reply else str(e)
    text = f"{word}: {said}".strip().rstrip(":")
    status = int(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if word == "NoSuchBucket":
        return NotFound(uri, "no such bucket: create it, or correct the setting that names it")
    if isinstance(e, FileNotFoundError | NotADirectoryError) or word in {"NoSuchKey", "404"}:
        return NotFound(uri, "not found")
    if word == "QuotaExceeded" or status == 507:
        return StorageFull(
            uri, f"cannot be written ({text}): make room or raise the quota, then run the same command again"
        )
    if word == "RequestTimeTooSkewed" or (status == 403 and abs(skew(reply)) > SKEW_S):
        return AccessDenied(uri, f"access denied: {_clock(skew(reply))}")
    if word in DENIED or status in {401, 403}:
        return AccessDenied(uri, f"access denied, check the credentials: {DENIED.get(word, DENIED['403'])} ({text})")
    if isinstance(e, PermissionError) and not reply:
        return AccessDenied(uri, f"access denied ({text})")
    if word in {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}:
        where = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
        where = where or reply.get("Error", {}).get("Region", "its region")
        return StorageError(uri, f"the bucket lies in another region: set AWS_DEFAULT_REGION to {where} ({text})")
    if isinstance(e, OSError) and e.errno in FULL:
        return StorageFull(uri, f"cannot be written ({e.strerror}): make room, then run the same command again")
    if word == "SSLError":
        return StorageError(uri, f"the store's certificate is not trusted: set AWS_CA_BUNDLE ({text})")
    if isinstance(e, ValueError | ImportError | IsADirectoryError) or word in UNUSABLE:
        return StorageError(uri, f"cannot use this URI ({text})")
    if ((400 <= status < 500 and status not in {408, 409, 425, 429}) or status == 501) and word not in PASSING:
        return StorageError(uri, f"the store refuses the request ({text})")
    return Unavailable(uri, f"store did not answer ({text})")


def skew(reply: dict[str, Any]) -> float:
    """Seconds that this machine's clock is ahead of the one that stamped an answer; 0 where none did."""
    stamp = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        theirs = email.utils.parsedate_to_datetime(stamp)
    except ValueError:
        return 0.0
    return now() - theirs.timestamp()


def _clock(skew: float) -> str:
    off = f"{abs(skew) / 60:.0f} minutes {'ahead of' if skew > 0 else 'behind'}" if skew else "too far from"
    return f"this machine's clock is {off} the store's: set it by NTP (timedatectl set-ntp true), then run it again"


def pause(attempt: int) -> float:
    """Seconds to wait after a failed attempt (0 is the first); jittered, so that many do not come back at once."""
    bound = min(20.0, BACKOFF_S * 2**attempt)
    return random.uniform(bound / 2, bound)


def retried(fn: Callable[P, R]) -> Callable[P, R]:
    """Retry what may pass (Unavailable); raise the rest at once. The URI is the first argument."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        begin = time.monotonic()
        for attempt in range(RETRIES + 1):
            try:
                return fn(*args, **kwargs)
            except FileExistsError:
                raise
            except StorageError:
                raise
            except Exception as e:
                error = named(str(args[0]), e)
                if not isinstance(error, Unavailable):
                    raise error from e
                waited, wait = time.monotonic() - begin, pause(attempt)
                if attempt == RETRIES or waited + wait > PATIENCE_S:
                    hint = ": check the network, and AWS_ENDPOINT_URL" if error.uri.startswith("s3") else ""
                    said = f"{error.message}, {attempt + 1} times in {waited:.0f} s{hint}"
                    raise Unavailable(error.uri, said) from e
                for tell in observers:
                    tell(error, e)
                if attempt >= 3:
                    _tell(error)
                time.sleep(wait)
        raise AssertionError("unreachable")

    return call


def _tell(error: StorageError) -> None:
    """Say that this process waits; many threads wait for one store, and one line is enough."""
    global _next_line
    with _told:
        if time.monotonic() < _next_line:
            return
        _next_line = time.monotonic() + TELL_S
    logging.getLogger("sar2eo_dist").warning("%s; tried again for up to %.0f s", error, PATIENCE_S)
