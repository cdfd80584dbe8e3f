from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from sar2eo_dist import retry, storage
from sar2eo_dist.errors import AccessDenied, NotFound, StorageError, StorageFull, Unavailable


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


def test_a_full_disk_is_named_leaves_the_old_object_and_no_debris(tmp_path: Path) -> None:
    """A real refusal of the system in the middle of a write: the largest file size allowed is 1 MB."""
    uri = str(tmp_path / "x")
    storage.put(uri, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StorageFull, match=r"make room, then run the same command again: .*x"):
            storage.put(uri, bytes(3 << 20))
        with pytest.raises(StorageFull):
            storage.put_if_absent(str(tmp_path / "y"), bytes(3 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert storage.read_bytes(uri) == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_ranges_and_tails(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    storage.put(a, b"0123456789")
    storage.put(b, b"abc")
    assert storage.read_ranges([(a, 2, 5), (b, 0, 2), (a, 9, 10)]) == [b"234", b"ab", b"9"]
    assert storage.read_ranges([]) == []
    assert (storage.read_tail(a, 3), storage.read_tail(b, 99)) == (b"789", b"abc")
    with pytest.raises(NotFound, match="gone"):
        storage.read_ranges([(a, 0, 1), (str(tmp_path / "gone"), 0, 1)])
    assert (storage.local_path(a), storage.local_path("memory://x")) == (a, "")


def test_what_passes_is_retried_and_what_does_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF_S", 0.0)
    calls: list[str] = []

    def flaky(fail: int, error: BaseException) -> Any:
        @retry.retried
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
    assert len(calls) == retry.RETRIES + 1
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


NAMES = ["a.b", "a/x", "a/y/z", "a/.tmp.d/q", "a b/x", "a0", "Z/\u00e9", "Z/e", "b/c/d/e"]


def test_a_walk_gives_pages_in_order_of_uri(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAGE", 4)
    for name in [*NAMES, "a/writing.tmp"]:
        storage.put(storage.join(root, name), name.encode())
    pages = list(storage.walk(root))
    assert [len(p) for p in pages] == [4, 4, 1]
    infos = [i for p in pages for i in p]
    assert [i.uri for i in infos] == sorted(i.uri for i in infos)
    assert sorted(i.uri.partition(root.rpartition("/")[2] + "/")[2] for i in infos) == sorted(NAMES)
    assert infos == storage.list_files(root)
    one = storage.join(root, "a/x")
    assert [[i.uri for i in page] for page in storage.walk(one)] == [[storage.info(one).uri]]
    if storage.local_path(root):  # memory:// marks a listed object in another way
        assert infos == [storage.info(i.uri) for i in infos]
    with pytest.raises(NotFound, match="nothing"):
        next(storage.walk(storage.join(root, "nothing")))


def test_a_local_walk_passes_over_links_and_what_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAGE", 1)
    for name in ("a", "b", "c/d"):
        storage.put(str(tmp_path / name), b"1")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "aa").symlink_to(tmp_path / "a")
    pages = storage.walk(str(tmp_path))
    assert [i.uri for i in next(pages)] == [str(tmp_path / "a")]
    storage.delete(str(tmp_path / "b"))
    storage.delete(str(tmp_path / "c"))
    assert list(pages) == []


def test_a_folder_that_may_not_be_read_is_named_and_one_that_fails_once_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BACKOFF_S", 0.0)
    storage.put(str(tmp_path / "a/b"), b"1")
    faults: list[OSError] = [OSError(errno.EIO, "cable"), OSError(errno.EIO, "cable")]
    scandir = os.scandir

    def flaky(path: str) -> Any:
        if path.endswith("/a") and faults:
            raise faults.pop()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", flaky)
    assert [i.size for i in storage.list_files(str(tmp_path))] == [1]
    faults.append(PermissionError("no"))
    with pytest.raises(AccessDenied, match="/a$"):
        storage.list_files(str(tmp_path))


def test_join() -> None:
    assert storage.join("s3://b/", "x", "y") == "s3://b/x/y"
    assert storage.join("runs", "s3://b/x") == "s3://b/x"
    assert storage.join("s3://b", "/x") == "/x"


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


def test_what_killed_writers_left_is_swept_but_not_what_live_ones_write(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    old, live, data = (tmp_path / "a" / n for n in (f".x.{0:032x}.tmp", f".x.{1:032x}.tmp", ".session.tmp"))
    for path in (old, live, data):
        path.write_bytes(b"1")
    for path in (old, data):
        os.utime(path, (1, 1))
    storage.sweep(str(tmp_path))
    assert (old.exists(), live.exists(), data.exists()) == (False, True, True)
    storage.sweep("memory://nothing")
