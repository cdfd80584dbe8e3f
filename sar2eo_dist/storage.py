"""The object-store edge: everything that touches bytes by URI goes through here.

Local paths, `s3://` and any other fsspec URI (`memory://` in unit tests only). Writes are atomic: a reader sees the old
object, the new one, or none. Transient failures are retried with exponential backoff and jitter; the others are raised
at once under their names (errors.NotFound, errors.AccessDenied, errors.Unavailable). What S3 needs is in `s3`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sar2eo_dist import atomic, s3
from sar2eo_dist.errors import NotFound, StorageError
from sar2eo_dist.records import Artifact, digest
from sar2eo_dist.retry import named as named
from sar2eo_dist.retry import retried

PAGE = s3.PAGE  # objects of one page of a listing


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


def filesystem(uri: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Credentials and endpoint come from the standard chain of the environment."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as e:
        raise StorageError(uri, f"cannot use this URI ({e})") from e
    return fs, path


def _opened(uri: str) -> tuple[Any, str, bool]:
    """The file system of the functions here, which retry by themselves, path in it, and whether it is S3."""
    return (*s3.opened(uri), True) if s3.is_s3(uri) else (*filesystem(uri), False)


@retried
def read_bytes(uri: str) -> bytes:
    """A whole object."""
    fs, path, of_s3 = _opened(uri)
    data: bytes = s3.read(fs, path) if of_s3 else fs.cat_file(path)
    return data


@retried
def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of an object; fewer where it ends before."""
    fs, path, of_s3 = _opened(uri)
    data: bytes = s3.read_range(fs, path, start, end) if of_s3 else fs.cat_file(path, start=start, end=end)
    return data


@retried
def read_tail(uri: str, size: int) -> bytes:
    """The last `size` bytes of an object; all of a smaller one."""
    fs, path, of_s3 = _opened(uri)
    data: bytes = s3.read_range(fs, path, -size, None) if of_s3 else fs.cat_file(path, start=-size)
    return data


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Bytes [start, end) of objects of one store, side by side where it can; what fails is retried by itself."""
    if not ranges:
        return []
    fs, _, _ = _opened(ranges[0][0])
    paths = [fs._strip_protocol(uri) for uri, _, _ in ranges]
    starts, ends = [r[1] for r in ranges], [r[2] for r in ranges]
    found = fs.cat_ranges(paths, starts, ends, on_error="return")
    return [d if isinstance(d, bytes) else read_range(*r) for d, r in zip(found, ranges, strict=True)]


def local_path(uri: str) -> str:
    """The path of a local URI; "" for an object store."""
    fs, path = filesystem(uri)
    return str(path) if isinstance(fs, LocalFileSystem) else ""


@retried
def open_read(uri: str) -> IO[bytes]:
    """A seekable reader that fetches what is asked for, with the retries of its file system."""
    fs, path = filesystem(uri)
    handle: IO[bytes] = fs.open(path, "rb")
    return handle


@retried
def exists(uri: str) -> bool:
    fs, path, _ = _opened(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


@retried
def info(uri: str) -> Info:
    """Size and version mark of one object. Raises NotFound."""
    fs, path, _ = _opened(uri)
    fs.invalidate_cache()
    return _local_info(path) if isinstance(fs, LocalFileSystem) else _info(fs, fs.info(path))


def _info(fs: Any, entry: dict[str, Any]) -> Info:
    mark = next((str(entry[k]) for k in ("ETag", "etag", "LastModified", "mtime", "created") if entry.get(k)), "")
    return Info(fs.unstrip_protocol(entry["name"]), int(entry["size"] or 0), mark.strip('"'))


def _local_info(path: str) -> Info:
    stat = os.stat(path)
    return Info(path, stat.st_size, str(stat.st_mtime_ns))


def list_files(uri: str) -> list[Info]:
    """All objects below a folder, recursively, in order of URI. Raises NotFound where there is no such folder."""
    return [info for page in walk(uri) for info in page]


def walk(uri: str) -> Iterator[list[Info]]:
    """All objects below a folder, recursively, in order of URI, by pages of at most PAGE; the whole is never held.

    Held are: of S3 one page, of a local disk the names of one folder and its parents (symbolic links are passed over),
    elsewhere all of fsspec's listing. An outage of S3 is waited out within the page that it meets. Raises NotFound, at the
    first page, where there is no such folder; the one object itself where the URI is no folder.
    """
    fs, path, of_s3 = _opened(uri)
    if of_s3:
        page, token = _s3_page(uri, "")
        yield page
        while token:
            page, token = _s3_page(uri, token)
            yield page
        return
    found = _local_files(path) if isinstance(fs, LocalFileSystem) else iter(_found(uri))
    while page := list(itertools.islice(found, PAGE)):
        yield page


@retried
def _s3_page(uri: str, token: str) -> tuple[list[Info], str]:
    """A page of a listing and the token of the next one: "" asks for the first and ends the last."""
    fs, path, _ = _opened(uri)
    entries, following = s3.page(fs, path, token)
    if not entries and not token and "/" in path:
        fs.invalidate_cache()
        entries = [e for e in (fs.info(path),) if e["type"] == "file"]
    return [_info(fs, e) for e in entries if not _passed_over(e["name"])], following


def _local_files(path: str) -> Iterator[Info]:
    if os.path.isfile(path):
        yield _stat(path)
        return
    for entry in _names(path):
        try:
            if entry.endswith("/"):
                yield from _local_files(os.path.join(path, entry[:-1]))
            elif not _passed_over(entry):
                yield _stat(os.path.join(path, entry))
        except NotFound:
            continue  # gone since it was listed


@retried
def _names(path: str) -> list[str]:
    """What a local folder holds, folders ending in "/": so sorted, a walk is in order of the whole path."""
    with os.scandir(path) as entries:
        folders = ((e.name, e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False)) for e in entries)
        return sorted(f"{name}/" if folder else name for name, folder, file in folders if folder or file)


_stat = retried(_local_info)


@retried
def _found(uri: str) -> list[Info]:
    fs, path, _ = _opened(uri)
    fs.invalidate_cache()
    found = fs.find(path, withdirs=False, detail=True)
    if not found and not fs.exists(path):
        raise NotFound(uri, "not found")
    files = (e for e in found.values() if e["type"] == "file" and not _passed_over(e["name"]))
    return sorted((_info(fs, e) for e in files), key=lambda i: i.uri)


def _passed_over(path: str) -> bool:
    return path.endswith(("/", ".tmp"))  # a folder's marker; another writer's unfinished object


@retried
def put(uri: str, data: bytes | Sequence[bytes]) -> None:
    """Write or replace an object atomically: temporary file, fsync and rename locally, one PUT on an object store. data: its
    bytes, or pieces of them in order."""
    fs, path, of_s3 = _opened(uri)
    if isinstance(fs, LocalFileSystem):
        atomic.put(path, _pieces(data))
        return
    whole = data if isinstance(data, bytes) else b"".join(data)
    if of_s3:
        s3.put(fs, path, whole)
    else:
        fs.pipe_file(path, whole)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Create an object only where there is none; False where one exists already. Atomic among any number of writers.

    An attempt may do its work and go unanswered, also within HTTP clients. So one that exists with just these bytes counts
    as created here: give bytes that no other writer has (a token, a time).
    """
    return _create(uri, data) or _holds(uri, data)


def _holds(uri: str, data: bytes) -> bool:
    try:
        return read_bytes(uri) == data
    except NotFound:  # removed since
        return False


@retried
def _create(uri: str, data: bytes) -> bool:
    fs, path, of_s3 = _opened(uri)
    if of_s3:
        return s3.create(fs, path, data)
    if isinstance(fs, LocalFileSystem):
        return atomic.create(path, _pieces(data))
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def sweep(uri: str) -> None:
    """Remove what killed writers left below a local folder; an object store has nothing of the kind."""
    if path := local_path(uri):
        atomic.sweep(path)


@retried
def put_file(uri: str, local: str) -> None:
    """Publish a local file atomically (rename locally, one upload on an object store)."""
    fs, path, of_s3 = _opened(uri)
    if isinstance(fs, LocalFileSystem):
        with open(local, "rb") as f:
            atomic.put(path, iter(lambda: f.read(1 << 20), b""))
    elif of_s3:
        s3.put_file(fs, path, local)
    else:
        fs.put_file(local, path)


@retried
def delete(uri: str) -> None:
    """Remove an object or everything below a folder; nothing there is fine."""
    fs, path, of_s3 = _opened(uri)
    fs.invalidate_cache()
    if of_s3:
        s3.delete(fs, path)
    elif fs.exists(path):
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
