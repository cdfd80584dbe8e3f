"""What S3 wants to be asked in a way of its own; `storage` asks, names the errors and retries.

Credentials, endpoint and region come from the standard chain of AWS's libraries: AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role; AWS_ENDPOINT_URL; AWS_DEFAULT_REGION. A store that knows its
buckets by path (`host/bucket`) and not as hosts (`bucket.host`) needs `s3 = addressing_style = path` in AWS_CONFIG_FILE,
unless its address is in numbers.
"""

from __future__ import annotations

import os
from typing import Any

import fsspec
from fsspec.asyn import sync

from sar2eo_dist.retry import code

PAGE = 1000  # objects of one page of a listing, and of one request to delete
SINGLE = 5 << 30  # bytes that one PUT can carry
#: one attempt a request (`retry` makes the next), and seconds after which a silent store counts as gone
CLIENT: dict[str, Any] = {
    "retries": {"mode": "standard", "total_max_attempts": 1}, "connect_timeout": 5, "read_timeout": 30,
}  # fmt: skip
SLOWEST = 1 << 20  # bytes a second: an upload that is slower has come to a stop


def is_s3(uri: str) -> bool:
    return uri.startswith(("s3://", "s3a://"))


def opened(uri: str) -> tuple[Any, str]:
    """(s3fs's file system, path in it) that makes one attempt a request."""
    fs, path = fsspec.core.url_to_fs(uri, config_kwargs=CLIENT)
    fs.retries = 1
    return fs, path


def read(fs: Any, path: str) -> bytes:
    """A whole object by one request, so never half of one version and half of another."""
    data: bytes = fs.cat_file(path, max_concurrency=1)
    return data


def read_range(fs: Any, path: str, start: int, end: int | None) -> bytes:
    """Bytes [start, end), fewer where the object ends before; a negative start counts from its end."""
    try:
        data: bytes = fs.cat_file(path, start=start, end=end)
    except OSError as e:
        if code(e) != "InvalidRange":  # the range begins at the end or beyond
            raise
        return b""
    return data


def page(fs: Any, path: str, token: str) -> tuple[list[dict[str, Any]], str]:
    """A page of what lies below a folder and the token of the next one: "" asks for the first and ends the last."""
    bucket, key, _ = fs.split_path(path)
    more = {"ContinuationToken": token} if token else {}
    reply = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else "", **more, **fs.req_kw)
    entries = [o | {"name": f"{bucket}/{o['Key']}", "size": o["Size"]} for o in reply.get("Contents", ())]
    return entries, reply.get("NextContinuationToken", "")


def _in_time(fs: Any, send: Any, size: int, *args: Any, **kwargs: Any) -> Any:
    """Run one of s3fs's coroutines that send `size` bytes. The client's own time-outs begin when all is sent: a store that
    takes the connection and falls silent, or never says "100 Continue", would be waited for without end."""
    return sync(fs.loop, send, *args, timeout=CLIENT["read_timeout"] + size / SLOWEST, **kwargs)


def put(fs: Any, path: str, data: bytes) -> None:
    """One PUT whatever the size: s3fs would cut what is above 100 MB into parts."""
    _in_time(fs, fs._pipe_file, len(data), path, data, chunksize=SINGLE)


def put_file(fs: Any, path: str, local: str) -> None:
    """One upload, in parts if it is large; it is there when the last one is."""
    _in_time(fs, fs._put_file, os.path.getsize(local), local, path)


def create(fs: Any, path: str, data: bytes) -> bool:
    """A PUT on condition that there is no such object; False where there is one."""
    try:
        _in_time(fs, fs._pipe_file, len(data), path, data, chunksize=SINGLE, mode="create")
    except FileExistsError:
        return False
    except OSError as e:
        if code(e) not in {"PreconditionFailed", "412"}:
            raise
        return False
    return True


def delete(fs: Any, path: str) -> None:
    """Remove an object and everything below it, page by page. s3fs would pass over what the store refuses to delete."""
    bucket, key, _ = fs.split_path(path)
    _remove(fs, bucket, [key] if key else [])
    token: str | None = None
    while token != "":
        entries, token = page(fs, path, token or "")
        _remove(fs, bucket, [e["Key"] for e in entries])


def _remove(fs: Any, bucket: str, keys: list[str]) -> None:
    if not keys:
        return
    wanted = {"Objects": [{"Key": k} for k in keys], "Quiet": True}
    reply = _in_time(fs, fs._call_s3, 0, "delete_objects", Bucket=bucket, Delete=wanted)
    for refused in reply.get("Errors", ()):
        raise PermissionError(f"{refused.get('Key')} stays: {refused.get('Code')} {refused.get('Message', '')}")
