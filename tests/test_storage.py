from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sar2eo_dist import storage
from sar2eo_dist.errors import AccessDenied, NotFound, StorageError, Unavailable


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_put_read_list_delete(root: str) -> None:
    uri = storage.join(root, "a/b.bin")
    artifact = storage.publish(root, "a/b.bin", b"0123456789")
    assert (artifact.size, artifact.sha256) == (10, storage.sha256(b"0123456789"))
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_range(uri, 2, 5) == b"234"
    assert b"".join(storage.chunks(uri, 3)) == b"0123456789"
    storage.put(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert [storage.name(i.uri) for i in storage.list_files(root)] == ["b.bin"]
    assert storage.info(uri).size == 3
    storage.delete(storage.join(root, "a"))
    storage.delete(storage.join(root, "a"))
    assert not storage.exists(uri)


def test_put_if_absent_keeps_the_first(root: str) -> None:
    uri = storage.join(root, "one")
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_put_if_absent_has_one_winner_among_threads(tmp_path: Path) -> None:
    uri, wins = str(tmp_path / "x"), []
    gate = threading.Barrier(8)

    def race(i: int) -> None:
        gate.wait()
        if storage.put_if_absent(uri, b"%d" % i):
            wins.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wins) == 1
    assert storage.read_bytes(uri) == b"%d" % wins[0]
    assert os.listdir(tmp_path) == ["x"]  # no temporary file is left


def test_a_failed_local_write_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "x")
    storage.put(uri, b"old")

    def full(*a: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "BACKOFF_S", 0.0)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Unavailable, match="No space left"):
        storage.put(uri, b"new")
    assert storage.read_bytes(uri) == b"old"


def test_what_passes_is_retried_and_what_does_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BACKOFF_S", 0.0)
    calls: list[str] = []

    def flaky(fail: int, error: BaseException) -> Any:
        @storage._retried
        def f(uri: str) -> str:
            calls.append(uri)
            if len(calls) <= fail:
                raise error
            return "ok"

        return f

    assert flaky(3, TimeoutError("slow"))("u") == "ok"
    assert len(calls) == 4
    calls.clear()
    with pytest.raises(Unavailable, match="slow.*: u$"):
        flaky(99, TimeoutError("slow"))("u")
    assert len(calls) == storage.RETRIES + 1
    for error, named in (
        (FileNotFoundError(), NotFound),
        (PermissionError("no"), AccessDenied),
        (ValueError("x"), StorageError),
    ):
        calls.clear()
        with pytest.raises(named):
            flaky(99, error)("u")
        assert len(calls) == 1


@pytest.mark.parametrize("uri", ["nosuchscheme://x/y", "/nonexistent/folder/x"])
def test_unreadable_uris_are_named(uri: str) -> None:
    with pytest.raises(StorageError) as e:
        storage.read_bytes(uri)
    assert uri in str(e.value)
    with pytest.raises(StorageError):
        storage.list_files(uri)


def test_absolute_touches_only_local_paths() -> None:
    assert storage.absolute("s3://b/x") == "s3://b/x"
    assert storage.absolute("x") == os.path.abspath("x")
    assert storage.absolute("") == ""


def test_a_changed_file_changes_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"aa")
    before = storage.info(str(path)).digest
    os.utime(path, ns=(1, 1))
    assert storage.info(str(path)).digest != before
