"""The object-store edge: everything that touches bytes by URI goes through here.

Local paths, `s3://` and any other fsspec URI (`memory://` in unit tests only). Writes are atomic: a reader sees the old
object, the new one, or none. Transient failures are retried with exponential backoff and full jitter; the others are
raised at once under their names (errors.NotFound, errors.AccessDenied, errors.Unavailable).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import posixpath
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sar2eo_dist import atomic
from sar2eo_dist.errors import AccessDenied, NotFound, StorageError, StorageFull, Unavailable
from sar2eo_dist.records import Artifact, digest

RETRIES = 6  # further attempts after the first: with s3fs's own, an outage of half a minute is waited out
BACKOFF_S = 0.5  # first upper bound of the jittered pause; doubles up to 20 s
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Info:
    """One listed object: full URI, size in bytes, and the version mark of its store (ETag, or mtime in ns)."""

    uri: str
    size: int
    mark: str

    @property
    def digest(self) -> str:
        return digest(self.uri, self.size, self.mark)


def join(base: str, *parts: str) -> str:
    """Path or URI below a base; a part that is absolute, or a URI, stands for itself."""
    if parts and "://" in parts[0]:
        return join(*parts)
    return posixpath.join(base.rstrip("/") if len(base) > 1 else base, *parts)


def name(uri: str) -> str:
    """Last component of a path or URI."""
    return uri.rstrip("/").rpartition("/")[2]


def absolute(uri: str) -> str:
    """A local path made absolute (workers run in other folders); a URI as it is."""
    return uri if "://" in uri or not uri else os.path.abspath(os.path.expanduser(uri))


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


def _retried(fn: Callable[P, R]) -> Callable[P, R]:
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


def filesystem(uri: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Credentials and endpoint come from the standard chain of the environment."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as e:
        raise StorageError(uri, f"cannot use this URI ({e})") from e
    return fs, path


@_retried
def read_bytes(uri: str) -> bytes:
    """A whole object."""
    fs, path = filesystem(uri)
    data: bytes = fs.cat_file(path)
    return data


@_retried
def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of an object."""
    fs, path = filesystem(uri)
    data: bytes = fs.cat_file(path, start=start, end=end)
    return data


@_retried
def read_tail(uri: str, size: int) -> bytes:
    """The last `size` bytes of an object; all of a smaller one."""
    fs, path = filesystem(uri)
    data: bytes = fs.cat_file(path, start=-size)
    return data


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Bytes [start, end) of objects of one store, side by side where it can; what fails is retried by itself."""
    if not ranges:
        return []
    fs, _ = filesystem(ranges[0][0])
    paths = [fs._strip_protocol(uri) for uri, _, _ in ranges]
    starts, ends = [r[1] for r in ranges], [r[2] for r in ranges]
    found = fs.cat_ranges(paths, starts, ends, on_error="return")
    return [d if isinstance(d, bytes) else read_range(*r) for d, r in zip(found, ranges, strict=True)]


def local_path(uri: str) -> str:
    """The path of a local URI; "" for an object store."""
    fs, path = filesystem(uri)
    return str(path) if isinstance(fs, LocalFileSystem) else ""


@_retried
def open_read(uri: str) -> IO[bytes]:
    """A seekable reader that fetches what is asked for."""
    fs, path = filesystem(uri)
    handle: IO[bytes] = fs.open(path, "rb")
    return handle


@_retried
def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


@_retried
def info(uri: str) -> Info:
    """Size and version mark of one object. Raises NotFound."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return _info(fs, fs.info(path))


def _info(fs: Any, entry: dict[str, Any]) -> Info:
    if isinstance(fs, LocalFileSystem):
        return Info(entry["name"], int(entry["size"]), str(os.stat(entry["name"]).st_mtime_ns))
    mark = next((str(entry[k]) for k in ("ETag", "etag", "LastModified", "mtime", "created") if entry.get(k)), "")
    return Info(fs.unstrip_protocol(entry["name"]), int(entry["size"] or 0), mark.strip('"'))


@_retried
def list_files(uri: str) -> list[Info]:
    """All objects below a folder, recursively, in order of URI. Raises NotFound where there is no such folder."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    found = fs.find(path, withdirs=False, detail=True)
    if not found and not fs.exists(path):
        raise NotFound(uri, "not found")
    infos = []
    for entry in found.values():
        if entry["type"] == "file" and not name(entry["name"]).endswith(".tmp"):  # another writer's unfinished object
            try:
                infos.append(_info(fs, entry))
            except FileNotFoundError:
                continue  # gone since it was listed
    return sorted(infos, key=lambda i: i.uri)


@_retried
def put(uri: str, data: bytes | Sequence[bytes]) -> None:
    """Write or replace an object atomically: temporary file, fsync and rename locally, one PUT on an object store.

    data: the bytes, or pieces of them in order.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        with atomic.temporary(path, _pieces(data)) as temporary:
            os.replace(temporary, path)
        atomic.sync_folder(path)
    else:
        whole = {"chunksize": 5 << 30} if "s3" in fs.protocol else {}  # s3fs would cut what is above 100 MB into parts
        fs.pipe_file(path, data if isinstance(data, bytes) else b"".join(data), **whole)


@_retried
def put_if_absent(uri: str, data: bytes) -> bool:
    """Create an object only where there is none; False where one exists already. Atomic among any number of writers."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        try:
            with atomic.temporary(path, _pieces(data)) as temporary:
                os.link(temporary, path)
        except FileExistsError:
            return False
        atomic.sync_folder(path)
        return True
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except Exception as e:
        if getattr(e, "response", {}).get("Error", {}).get("Code") in {
            "PreconditionFailed",
            "ConditionalRequestConflict",
        }:
            return False
        raise
    return True


def sweep(uri: str) -> None:
    """Remove what killed writers left below a local folder; an object store has nothing of the kind."""
    if path := local_path(uri):
        atomic.sweep(path)


@_retried
def put_file(uri: str, local: str) -> None:
    """Publish a local file atomically (rename locally, one upload on an object store)."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
        fs.put_file(local, temporary)
        os.replace(temporary, path)
    else:
        fs.put_file(local, path)


@_retried
def delete(uri: str) -> None:
    """Remove an object or everything below a folder; nothing there is fine."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if fs.exists(path):
        fs.rm(path, recursive=True)


def _pieces(data: bytes | Sequence[bytes]) -> Sequence[bytes]:
    return [data] if isinstance(data, bytes) else data


def sha256(data: bytes | Sequence[bytes]) -> str:
    sha = hashlib.sha256()
    for piece in _pieces(data):
        sha.update(piece)
    return sha.hexdigest()


def publish(root: str, path: str, data: bytes | Sequence[bytes]) -> Artifact:
    """`put` below a root, described for the ledger."""
    put(join(root, path), data)
    return Artifact(path, sum(map(len, _pieces(data))), sha256(data))


def chunks(uri: str, size: int = 8 << 20) -> Iterator[bytes]:
    """An object piece by piece, so that hashing it never holds it whole."""
    whole = info(uri).size
    for start in range(0, whole, size):
        yield read_range(uri, start, min(start + size, whole))
