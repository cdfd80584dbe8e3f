"""The object-store edge: everything that touches bytes by URI goes through here.

Local paths, `s3://` and any other fsspec URI (`memory://` in unit tests only). Writes are atomic: a reader sees the old
object, the new one, or none. Transient failures are retried with exponential backoff and full jitter; the others are
raised at once under their names (errors.NotFound, errors.AccessDenied, errors.Unavailable).
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sar2eo_dist.errors import AccessDenied, NotFound, StorageError, Unavailable
from sar2eo_dist.records import Artifact, digest

RETRIES = 5  # further attempts after the first
BACKOFF_S = 0.5  # first upper bound of the jittered pause; doubles up to 20 s

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
    """Path or URI below a base."""
    return posixpath.join(base.rstrip("/") if len(base) > 1 else base, *parts)


def name(uri: str) -> str:
    """Last component of a path or URI."""
    return uri.rstrip("/").rpartition("/")[2]


def absolute(uri: str) -> str:
    """A local path made absolute (workers run in other folders); a URI as it is."""
    return uri if "://" in uri or not uri else os.path.abspath(os.path.expanduser(uri))


def _named(uri: str, e: BaseException) -> StorageError:
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
                error = _named(str(args[0]), e)
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
def put(uri: str, data: bytes) -> None:
    """Write or replace an object atomically: temporary file, fsync and rename locally, one PUT on an object store."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        temporary = _write_temporary(path, data)
        os.replace(temporary, path)
        _sync_folder(path)
    else:
        fs.pipe_file(path, data)


@_retried
def put_if_absent(uri: str, data: bytes) -> bool:
    """Create an object only where there is none; False where one exists already. Atomic among any number of writers."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        _sync_folder(path)
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


def _write_temporary(path: str, data: bytes) -> str:
    folder, base = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{base}.{uuid.uuid4().hex}.tmp")
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    return temporary


def _sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def publish(root: str, path: str, data: bytes) -> Artifact:
    """`put` below a root, described for the ledger."""
    put(join(root, path), data)
    return Artifact(path, len(data), sha256(data))


def chunks(uri: str, size: int = 8 << 20) -> Iterator[bytes]:
    """An object piece by piece, so that hashing it never holds it whole."""
    with open_read(uri) as f:
        while piece := f.read(size):
            yield piece
