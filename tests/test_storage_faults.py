"""The object-store edge against a server that answers what it is told to: throttling, cut answers, expired tokens, silence.

What Ceph's gateway cannot be made to answer (it expires no token here, and throttles nobody) is played by a stub.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import s3fs
from botocore.exceptions import ClientError

from sar2eo_dist import retry, s3, storage
from sar2eo_dist.errors import AccessDenied, StorageError, StorageFull, Unavailable

URI = "s3://b/x"
#: (status, code in the XML), "reset", "cut" (half of the body), "lost" (done, but never answered), "ok"
Answer = tuple[int, str] | str


class Stub(ThreadingHTTPServer):
    """One bucket of objects in memory; `script` says how the next requests are answered, then it is "ok"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = []
        self.asked: list[str] = []
        self.objects: dict[str, bytes] = {"/b/x": b"0123456789"}
        self.headers: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, status: int, body: bytes, send: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "ETag": '"1"', **self.server.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body if send else body[: len(body) // 2])

    def _answer(self) -> None:
        stub = self.server
        stub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = stub.script.pop(0) if stub.script else "ok"
        if isinstance(answer, tuple):
            word = f"<Error><Code>{answer[1]}</Code><Message>said</Message><Region>eu-1</Region></Error>"
            return self._reply(answer[0], word.encode())
        if answer == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return self.connection.close()
        if self.command == "PUT":
            if self.headers.get("If-None-Match") and self.path in stub.objects:
                return self._reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            stub.objects[self.path] = body
            body = b""
        else:
            body = stub.objects[self.path]
        if answer in ("lost", "cut"):
            self.close_connection = True
        if answer != "lost":
            self._reply(200, body, send=answer == "ok")
        return None

    do_GET = do_PUT = do_HEAD = _answer


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    reach(monkeypatch, server.server_port)
    monkeypatch.setattr(retry, "BACKOFF_S", 0.0)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def reach(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for key, value in {
        "AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_SESSION_TOKEN": "a-token",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "fault",
    ["reset", "cut", (503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests"),
     (400, "RequestTimeout"), (409, "OperationAborted"), (502, "")],
    ids=str,
)  # fmt: skip
def test_what_passes_is_asked_again_one_request_an_attempt(stub: Stub, fault: Answer) -> None:
    stub.script = [fault, fault, fault]
    assert storage.read_bytes(URI) == b"0123456789"
    assert len(stub.asked) == 4
    stub.script = ["reset" if fault == "cut" else fault]
    storage.put("s3://b/y", b"12")
    assert (stub.objects["/b/y"], len(stub.asked)) == (b"12", 6)


@pytest.mark.parametrize(
    ("fault", "error", "remedy"),
    [
        ((400, "ExpiredToken"), AccessDenied, "they have expired: renew them"),
        ((400, "TokenRefreshRequired"), AccessDenied, "they have expired: renew them"),
        ((400, "InvalidToken"), AccessDenied, "check AWS_SESSION_TOKEN"),
        ((403, "RequestTimeTooSkewed"), AccessDenied, "set it by NTP"),
        ((403, "AllAccessDisabled"), AccessDenied, "its right on the bucket"),
        ((403, "QuotaExceeded"), StorageFull, "raise the quota"),
        ((507, "InsufficientStorage"), StorageFull, "make room"),
        ((501, "NotImplemented"), StorageError, "refuses the request"),
        ((400, "KeyTooLongError"), StorageError, "refuses the request"),
        ((405, "MethodNotAllowed"), StorageError, "refuses the request"),
    ],
    ids=str,
)
def test_what_stays_is_named_after_one_request(
    stub: Stub, fault: Answer, error: type[StorageError], remedy: str
) -> None:
    for ask in (
        lambda: storage.read_bytes(URI),
        lambda: storage.put(URI, b""),
        lambda: storage.put_if_absent(URI, b""),
    ):
        stub.script, stub.asked = [fault], []
        with pytest.raises(error, match=remedy) as e:
            ask()
        assert len(stub.asked) == 1
        assert not isinstance(e.value, Unavailable)
        assert not [k for k in ("a-key", "a-secret", "a-token") if k in str(e.value)]


def test_an_object_that_was_created_without_an_answer_is_ours(stub: Stub) -> None:
    stub.script = ["lost"]
    assert storage.put_if_absent("s3://b/new", b"mine")
    assert len(stub.asked) > 1
    stub.script = ["reset"]
    assert not storage.put_if_absent("s3://b/new", b"another's")
    assert stub.objects["/b/new"] == b"mine"


@pytest.mark.parametrize("fault", [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")], ids=str)
def test_a_bucket_of_another_region_is_found(stub: Stub, fault: Answer) -> None:
    """By botocore, where the store says which; otherwise the remedy is named."""
    stub.script = [fault]
    assert storage.read_bytes(URI) == b"0123456789"
    assert len(stub.asked) == 2
    refused = ClientError({"Error": {"Code": fault[1]}, "ResponseMetadata": {"HTTPStatusCode": fault[0]}}, "GetObject")
    assert "set AWS_DEFAULT_REGION to its region" in str(storage.named(URI, refused))


def test_a_store_that_throttles_for_ever_is_given_up(stub: Stub) -> None:
    stub.script = [(503, "SlowDown")] * 99
    with pytest.raises(
        Unavailable, match=rf"SlowDown: said\), {retry.RETRIES + 1} times in \d s: check the network.*{URI}"
    ):
        storage.read_bytes(URI)
    assert len(stub.asked) == retry.RETRIES + 1


@pytest.mark.parametrize("silent", ["connects", "swallows"])
def test_a_silent_endpoint_costs_its_time_out_once_an_attempt(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    """It takes connections and never answers (a stopped server), or drops what asks for one (a firewall)."""
    monkeypatch.setattr(s3, "CLIENT", s3.CLIENT | {"connect_timeout": 0.3, "read_timeout": 0.3})
    monkeypatch.setattr(s3, "SLOWEST", 1 << 26)
    monkeypatch.setattr(retry, "PATIENCE_S", 1.0)
    whole = b"1" * (1 << 24)  # more than the network's buffers take
    monkeypatch.setattr(retry, "pause", lambda _: 0.1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if silent == "swallows" else 50)
        port = listener.getsockname()[1]
        fill = [socket.socket() for _ in range(3)] if silent == "swallows" else []
        for s in fill:  # its queue is full: what comes later gets no answer at all
            s.setblocking(False)
            s.connect_ex(("127.0.0.1", port))
        reach(monkeypatch, port)
        begin = time.monotonic()
        for ask in (
            lambda: storage.read_bytes(URI),
            lambda: storage.put(URI, whole),
            lambda: storage.put_if_absent(URI, b"1"),
        ):
            with pytest.raises(Unavailable, match="Time.*AWS_ENDPOINT_URL"):
                ask()
        with pytest.raises(Unavailable):
            storage.delete(URI)
        assert 3 < time.monotonic() - begin < 30
        for s in fill:
            s.close()
    assert s3.CLIENT["connect_timeout"] + s3.CLIENT["read_timeout"] < 60


def test_waits_outlast_a_minute_and_stay_below_patience() -> None:
    least = sum(min(20.0, retry.BACKOFF_S * 2**n) / 2 for n in range(retry.RETRIES))
    assert least > 70, "an outage of a minute is waited out, whatever the jitter"
    assert all(retry.pause(n) <= 20 for n in range(40))
    assert len({retry.pause(9) for _ in range(9)}) > 1
