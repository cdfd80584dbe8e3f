"""Checkpoints: what is damaged is named and passed over; what cannot be written is borne for a while, then told."""

from __future__ import annotations

import pickle
import threading
import time

import pytest
import torch

from sar2eo_dist import storage
from sar2eo_dist.errors import ModelError, NotFound, StorageFull, Unavailable
from sar2eo_dist.training import checkpoint
from sar2eo_dist.training.checkpoint import Writer, decode, encode, newest, path, steps

TREE = {
    "step": 3,
    "trainer": {"weight": torch.arange(300.0), "half": torch.ones(3, dtype=torch.bfloat16), "count": torch.tensor(7)},
    "record": {"history": [{"l1": 0.5, "lr": None}], "started": "now", "replaced": {4: "gone"}, "done": True},
}


class Code:
    """A pickle that runs something when it is read."""

    ran: list[str] = []  # noqa: RUF012

    def __reduce__(self):
        return exec, ("from test_checkpoint import Code; Code.ran.append('ran')",)


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a.dtype == b.dtype and torch.equal(a, b) if torch.is_tensor(a) else a == b and type(a) is type(b)


def of(step):
    return encode({"step": step, "x": torch.full((4,), float(step))})


def test_round_trip():
    data = encode(TREE)
    assert same(decode(data, "u"), TREE)
    assert encode(decode(data, "u")) == data


def test_torn_at_any_length_is_named():
    data = encode(TREE)
    for length in {*range(0, len(data), 7), *range(len(data) - 30, len(data))}:
        with pytest.raises(ModelError, match=r": s3://b/x\.pt$"):
            decode(data[:length], "s3://b/x.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_flipped_byte_is_named_or_changes_nothing():
    """Wherever it is, in a number as in the index: a training must not go on from another's weights."""
    data = encode(TREE)
    for at in range(0, len(data), 3):
        for flip in (0x01, 0xFF):
            torn = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            try:
                tree = decode(torn, "s3://b/x.pt")
            except ModelError:
                continue
            assert same(tree, TREE), (at, flip)


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path):
    Code.ran.clear()
    torch.save({"step": 1, "x": Code()}, tmp_path / "zip")
    torch.save({"step": 1, "x": Code()}, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "plain").write_bytes(pickle.dumps({"step": 1, "x": Code()}))
    for name in ("zip", "old", "plain"):
        with pytest.raises(ModelError, match=rf": .*{name}$"):
            decode((tmp_path / name).read_bytes(), str(tmp_path / name))
    with pytest.raises(ModelError, match=r"(?s)refused.*: here$"):
        decode(encode({"step": 1, "x": Code()}), "here")
    assert Code.ran == []
    pickle.loads((tmp_path / "plain").read_bytes())
    assert Code.ran == ["ran"]  # it would have


@pytest.mark.parametrize("tree", [[1, 2], torch.ones(3), {"x": 1}, {"step": "3"}, {"step": None}])
def test_what_is_no_checkpoint_is_named(tree):
    with pytest.raises(ModelError, match=r"no readable checkpoint.*without a step.*: here$"):
        decode(encode(tree), "here")


@pytest.mark.parametrize("root", ["folder", "memory://checkpoints/a"])
def test_the_newest_is_found_and_other_objects_are_not(tmp_path, root):
    root = root if "://" in root else str(tmp_path / root)
    assert newest(root) is None
    assert steps(root) == []
    for step in (20, 3, 100):
        storage.put(path(root, step), of(step))
    for other in ("x.pt", "00000000999.pt", "000000200.pt.tmp", "bundle.json"):
        storage.put(storage.join(root, other), b"")
    assert steps(root) == [3, 20, 100]
    assert newest(root)["step"] == 100
    assert path(root, 3).endswith("/000000003.pt")


def test_a_damaged_newest_one_is_passed_over_with_a_word(tmp_path, capsys):
    root = str(tmp_path)
    for step, data in ((1, of(1)), (2, of(2)), (3, of(3)[:-50]), (4, b"")):
        storage.put(path(root, step), data)
    assert newest(root)["step"] == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("warning: checkpoint passed over: ") for line in lines)
    assert lines[0].endswith("000000004.pt")
    assert lines[1].endswith("000000003.pt")


def test_where_all_are_damaged_no_training_begins_anew_without_a_word(tmp_path, capsys):
    for step in (1, 2):
        storage.put(path(str(tmp_path), step), b"torn")
    with pytest.raises(ModelError, match=rf"none of 2 checkpoints can be read, --fresh .*: {tmp_path}"):
        newest(str(tmp_path))
    assert capsys.readouterr().err.count("passed over") == 2


def test_one_that_is_deleted_while_it_is_looked_for_is_passed_over(tmp_path, monkeypatch, capsys):
    for step in (1, 2):
        storage.put(path(str(tmp_path), step), of(step))
    read = storage.read_bytes

    def gone(uri):
        if uri.endswith("2.pt"):
            raise NotFound(uri, "no such object")
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", gone)
    assert newest(str(tmp_path))["step"] == 1
    assert "no such object" in capsys.readouterr().err


def until(true, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(2e-3)


class Store:
    """Stands before storage.put: counts, waits, fails."""

    def __init__(self, monkeypatch):
        self.error, self.tried, self.gate, self._put = None, [], threading.Event(), storage.put
        self.gate.set()
        monkeypatch.setattr(storage, "put", self.put)

    def put(self, uri, data):
        self.tried.append(uri)
        assert self.gate.wait(5)
        if self.error is not None:
            raise self.error(uri, "the store is down")
        self._put(uri, data)


@pytest.fixture
def store(monkeypatch):
    return Store(monkeypatch)


@pytest.fixture
def told():
    return []


@pytest.fixture
def writer(tmp_path, told):
    """Its thread is ended after the test, whatever the test found."""
    made = Writer(str(tmp_path), 60.0, told.append)
    yield made
    made.abandon()


def nothing():
    pass


def test_each_is_written_and_keep_and_the_one_before_are_kept(writer, told, tmp_path):
    published = []
    for step in (1, 2, 3, 4, 5):
        writer.put(step, of(step), [2], lambda step=step: published.append((step, steps(str(tmp_path))[-1])))
        until(lambda step=step: writer.done == step)
        writer.check()
    writer.close()
    assert steps(str(tmp_path)) == [2, 4, 5]
    assert published == [(s, s) for s in (1, 2, 3, 4, 5)]  # told of once it is safe
    assert newest(str(tmp_path))["step"] == 5
    assert told == []
    until(lambda: not writer._thread.is_alive())


def test_what_was_there_before_a_resume_is_kept_as_the_one_before(tmp_path, told):
    for step in (10, 20):
        storage.put(path(str(tmp_path), step), of(step))
    writer = Writer(str(tmp_path), 60.0, told.append)
    writer.put(30, of(30), [], nothing)
    writer.close()
    assert steps(str(tmp_path)) == [20, 30]


def test_one_that_waits_gives_way_to_a_newer_one_and_training_never_waits(writer, store, tmp_path):
    store.gate.clear()
    began = time.monotonic()
    writer.put(1, of(1), [], nothing)
    until(lambda: store.tried)
    for step in (2, 3, 4):
        writer.put(step, of(step), [], nothing)
        writer.check()
    assert time.monotonic() - began < 3
    store.gate.set()
    writer.close()
    assert steps(str(tmp_path)) == [1, 4]
    assert len(store.tried) == 2


def test_one_that_failed_gives_way_to_what_came_meanwhile(store, told, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "AGAIN_S", 0.01)
    writer = Writer(str(tmp_path), 60.0, told.append)
    store.error = Unavailable
    store.gate.clear()
    writer.put(1, of(1), [], nothing)
    until(lambda: store.tried)
    writer.put(2, of(2), [], nothing)
    store.gate.set()
    until(lambda: len(store.tried) > 2)
    store.error = None
    writer.close()
    assert not any(uri.endswith("1.pt") for uri in store.tried[1:])
    assert steps(str(tmp_path)) == [2]


@pytest.mark.parametrize("error", [Unavailable, StorageFull])
def test_an_outage_is_told_once_and_when_it_is_over_the_newest_is_written(store, told, tmp_path, error, monkeypatch):
    monkeypatch.setattr(checkpoint, "AGAIN_S", 0.01)
    writer = Writer(str(tmp_path), 60.0, told.append)
    store.error = error
    writer.put(1, of(1), [], nothing)
    until(lambda: len(store.tried) > 3)
    writer.put(2, of(2), [], nothing)
    until(lambda: store.tried[-1].endswith("2.pt"))
    writer.check()
    assert [("the store is down" in t, t.endswith("1.pt")) for t in told] == [(True, True)]
    store.error = None
    writer.close()
    assert steps(str(tmp_path)) == [2]
    assert writer.done == 2
    assert len(told) == 1
    until(lambda: not writer._thread.is_alive())


def test_a_second_outage_is_told_again(store, told, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "AGAIN_S", 0.01)
    writer = Writer(str(tmp_path), 60.0, told.append)
    for step in (1, 2):
        store.error, tried = Unavailable, len(store.tried)
        writer.put(step, of(step), [], nothing)
        until(lambda tried=tried: len(store.tried) > tried + 2)
        store.error = None
        until(lambda step=step: writer.done == step)
    writer.close()
    assert len(told) == 2
    assert steps(str(tmp_path)) == [1, 2]


def test_check_raises_after_patience_and_not_before(store, writer, monkeypatch):
    monkeypatch.setattr(checkpoint, "AGAIN_S", 0.01)
    writer.put(7, of(7), [], nothing)
    until(lambda: writer.done == 7)
    store.error, tried = StorageFull, len(store.tried)
    writer.put(8, of(8), [], nothing)
    until(lambda: len(store.tried) > tried + 2)
    writer.check()  # 60 s have not gone by
    writer.patience = 0.0
    with pytest.raises(Unavailable, match=r"for 0 s \(train.outage_s\).* of step 7\. .*the store is down") as e:
        writer.check()
    assert e.value.uri == writer.folder
    with pytest.raises(Unavailable):
        writer.close()
    store.error = None
    until(lambda: writer.done == 8 and writer._error is None)  # one after the other
    writer.check()  # recovered


def test_close_waits_for_what_is_being_written(store, told, tmp_path):
    writer = Writer(str(tmp_path), 60.0, told.append)
    store.gate.clear()
    writer.put(1, of(1), [], nothing)
    ended = threading.Thread(target=writer.close, daemon=True)
    ended.start()
    time.sleep(0.05)
    assert ended.is_alive()
    store.gate.set()
    ended.join(5)
    assert not ended.is_alive()
    assert steps(str(tmp_path)) == [1]
    until(lambda: not writer._thread.is_alive())


def test_close_raises_when_the_store_stays_away_and_abandoned_it_leaves_no_thread(store, told, tmp_path):
    writer = Writer(str(tmp_path), 0.2, told.append)
    store.error = Unavailable
    writer.put(1, of(1), [], nothing)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no checkpoint could be written"):
        writer.close()
    assert 0.2 < time.monotonic() - began < 3
    assert len(told) == 1
    writer.abandon()
    until(lambda: not writer._thread.is_alive())


def test_abandoned_it_ends_after_what_it_is_writing_whatever_waits(store, told, tmp_path):
    writer = Writer(str(tmp_path), 60.0, told.append)
    store.gate.clear()
    writer.put(1, of(1), [], nothing)
    until(lambda: store.tried)
    writer.put(2, of(2), [], nothing)
    writer.abandon()
    store.gate.set()
    until(lambda: not writer._thread.is_alive())
    assert steps(str(tmp_path)) == [1]
    idle = Writer(str(tmp_path), 60.0, told.append)
    idle.abandon()
    until(lambda: not idle._thread.is_alive())
    assert told == []


def test_publish_counts_as_part_of_a_checkpoint(told, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "AGAIN_S", 0.01)
    writer, tries = Writer(str(tmp_path), 60.0, told.append), []

    def publish():
        tries.append(1)
        if len(tries) < 3:
            raise Unavailable("s3://b/curves", "slow down")

    writer.put(1, of(1), [], publish)
    writer.close()
    assert len(tries) == 3
    assert told == ["slow down: s3://b/curves"]
    assert steps(str(tmp_path)) == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_any_other_error_of_publish_ends_in_an_error_and_not_in_a_wait_without_end(told, tmp_path):
    writer, found = Writer(str(tmp_path), 60.0, told.append), []

    def publish():
        raise ValueError("a curve of nothing")

    def close():
        try:
            writer.close()
        except Exception as e:
            found.append(e)

    writer.put(1, of(1), [], publish)
    ended = threading.Thread(target=close, daemon=True)
    ended.start()
    ended.join(1.5)
    alive, writer._busy = ended.is_alive(), False  # lets a close that waits go
    assert not alive
    assert "a curve of nothing" in str(found)


def test_the_one_before_is_kept_though_a_deletion_failed_at_first(told, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "AGAIN_S", 0.01)
    writer, delete, failed = Writer(str(tmp_path), 60.0, told.append), storage.delete, []

    def once(uri):
        if not failed:
            failed.append(uri)
            raise Unavailable(uri, "slow down")
        delete(uri)

    monkeypatch.setattr(storage, "delete", once)
    for step in (1, 2, 3):
        writer.put(step, of(step), [], nothing)
        until(lambda step=step: writer.done == step)
    writer.close()
    assert failed
    assert steps(str(tmp_path)) == [2, 3]
