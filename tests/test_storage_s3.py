"""The object-store edge against an S3 server."""

from __future__ import annotations

import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs

from sar2eo_dist import retry, shards, storage
from sar2eo_dist.errors import AccessDenied, Corrupt, NotFound, Unavailable
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Unit


def test_objects(s3: str) -> None:
    uri = f"{s3}/a/b.bin"
    storage.put(uri, b"0123456789")
    assert storage.read_range(uri, 2, 4) == b"23"
    assert storage.info(uri).size == 10
    assert [i.uri for i in storage.list_files(s3)] == [uri]
    before = storage.info(uri).mark
    storage.put(uri, b"other")
    assert storage.info(uri).mark not in ("", before)
    storage.delete(f"{s3}/a")
    with pytest.raises(NotFound, match="a/b.bin"):
        storage.read_bytes(uri)


def test_create_if_absent_keeps_the_first(s3: str) -> None:
    assert storage.put_if_absent(f"{s3}/x", b"first")
    assert not storage.put_if_absent(f"{s3}/x", b"second")
    assert storage.read_bytes(f"{s3}/x") == b"first"


def test_ledger_and_shards(s3: str) -> None:
    arrays = shards.pair_arrays(1, 1)
    shards.write_template(s3, "p", arrays, {})
    data = [np.ones((1, *a.shape[1:]), a.dtype) for a in arrays]
    outputs = tuple(shards.write_shard(s3, "p", a, (0,) * d.ndim, d) for a, d in zip(arrays, data, strict=True))
    unit, ledger = Unit("shard", "k", "f", "i"), Ledger(s3)
    assert ledger.commit(Entry(unit, outputs, 1.0))
    assert ledger.done("shard") == {unit.id}
    assert ledger.audit([unit]) == []
    sar, _, valid = PairReader(f"{s3}/p")(0)
    assert (sar == 1).all()
    assert valid.all()


def test_a_walk_goes_page_by_page_and_on_from_the_page_that_failed(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.s3.models import s3_backends

    store, bucket = s3_backends["123456789012"]["aws"], s3.removeprefix("s3://")
    keys = [f"in/{i:04d}.tiff" for i in range(2050)]
    for key in [*keys, "in/", "in/marker/", "in/writing.tmp", "in.nc", "inner/x"]:
        store.put_object(bucket, key, b"1" if key[-1] != "/" else b"")
    monkeypatch.setattr(retry, "BACKOFF_S", 0.0)
    asked: list[str] = []
    plain = s3fs.S3FileSystem._call_s3

    async def flaky(self: object, method: str, *args: object, **kwargs: str) -> object:
        asked.append(kwargs.get("ContinuationToken", ""))
        if len(asked) in (2, 3):
            raise ConnectionError("reset by peer")
        return await plain(self, method, *args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(s3fs.S3FileSystem, "_call_s3", flaky)
        m.setattr(s3fs.S3FileSystem, "call_s3", fsspec.asyn.sync_wrapper(flaky))
        pages = list(storage.walk(f"{s3}/in"))
    assert len(asked) == 5
    assert asked[1] == asked[2] == asked[3] != ""
    assert len(set(asked)) == 3
    assert [len(p) for p in pages] == [999, 1000, 51]
    assert [i.uri for p in pages for i in p] == [f"{s3}/{key}" for key in keys]
    assert pages[2][-1] == storage.info(f"{s3}/{keys[-1]}")
    assert [i.uri for i in storage.list_files(f"{s3}/in.nc")] == [f"{s3}/in.nc"]
    assert [i.uri for i in storage.list_files(f"{s3}/inner/")] == [f"{s3}/inner/x"]
    assert len(storage.list_files(s3)) == len(keys) + 2
    with pytest.raises(NotFound, match="/i$"):
        storage.list_files(f"{s3}/i")


def test_an_empty_bucket_is_an_empty_folder(s3: str) -> None:
    assert storage.list_files(s3) == []


def test_no_bucket_and_wrong_credentials_are_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no-such-bucket"):
        storage.list_files("s3://no-such-bucket/x")
    from moto.core import set_initial_no_auth_action_count

    storage.put(f"{s3}/x", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()

    @set_initial_no_auth_action_count(0)
    def refused() -> None:
        with pytest.raises(AccessDenied, match="check the credentials"):
            storage.read_bytes(f"{s3}/x")
        with pytest.raises(AccessDenied, match="check the credentials"):
            storage.list_files(s3)

    refused()


def test_an_outage_is_waited_out_and_a_lasting_one_is_named(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """A server of its own that goes away: what it holds (this process's memory) is there when it comes back."""
    from moto.server import ThreadedMotoServer

    def serve(port: int) -> ThreadedMotoServer:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        return server

    server = serve(0)
    _, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    storage.put(f"{s3}/x", b"0123")
    server.stop()
    back: list[ThreadedMotoServer] = []
    timer = threading.Timer(1.5, lambda: back.append(serve(port)))
    timer.start()
    assert storage.read_ranges([(f"{s3}/x", 1, 3)]) == [b"12"]
    storage.put(f"{s3}/y", b"9")
    timer.join()
    back[0].stop()
    monkeypatch.setattr(retry, "RETRIES", 0)
    with pytest.raises(Unavailable, match=f"did not answer.*{s3}/z"):
        storage.put(f"{s3}/z", b"1")


def test_a_reader_over_s3_equals_the_local_one_with_one_request_a_sample_and_array(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = shards.pair_arrays(5, 3)
    rng = np.random.default_rng(0)
    for root in (s3, str(tmp_path)):
        rng = np.random.default_rng(0)
        shards.write_template(root, "p", arrays, {"store": "x"})
        for spec in arrays:
            data = rng.integers(0, 2 if spec.name == "valid" else 300, spec.shape).astype(spec.dtype)
            for i in range(2):
                shards.write_shard(root, "p", spec, (i,) + (0,) * (data.ndim - 1), data[3 * i : 3 * i + 3])
    ours, local = PairReader(f"{s3}/p"), PairReader(str(tmp_path / "p"))
    for i in (4, 0, 2):
        for a, b in zip(ours(i), local(i), strict=True):
            np.testing.assert_array_equal(a, b)
    requests: list[object] = []
    plain = s3fs.S3FileSystem._cat_file

    async def counted(self: object, *args: object, **kwargs: object) -> bytes:
        requests.append(args)
        return await plain(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", counted)
    ours(1)
    assert len(requests) == 2
    ours.run(0, 3)
    assert len(requests) == 4
    storage.put(f"{s3}/p/eo/c/1/0/0/0", storage.read_bytes(f"{s3}/p/eo/c/1/0/0/0")[:-100_000])
    with pytest.raises(Corrupt, match=r"eo/c/1/0/0/0"):
        PairReader(f"{s3}/p")(4)
    storage.delete(f"{s3}/p/sar/c/1")
    with pytest.raises(NotFound, match="sar/c/1"):
        PairReader(f"{s3}/p")(4)


def test_an_object_of_the_largest_size_is_one_put(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    plain = s3fs.S3FileSystem._call_s3

    async def counted(self: object, method: str, *args: object, **kwargs: object) -> object:
        calls.append(method)
        return await plain(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    storage.put(f"{s3}/big", bytes(110 << 20))
    assert calls == ["put_object"]
    assert storage.info(f"{s3}/big").size == 110 << 20
