"""The object-store edge against an S3 server."""

from __future__ import annotations

import numpy as np
import pytest
import s3fs

from sar2eo_dist import shards, storage
from sar2eo_dist.errors import AccessDenied, NotFound
from sar2eo_dist.ledger import Entry, Ledger
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
    arrays = shards.pair_arrays(1, 1, 3)
    shards.write_template(s3, "p", arrays, {})
    data = [np.ones((1, *a.shape[1:]), a.dtype) for a in arrays]
    outputs = tuple(shards.write_shard(s3, "p", a, (0,) * d.ndim, d) for a, d in zip(arrays, data, strict=True))
    unit, ledger = Unit("shard", "k", "f", "i"), Ledger(s3)
    assert ledger.commit(Entry(unit, outputs, 1.0))
    assert ledger.done("shard") == {unit.id}
    assert ledger.audit([unit]) == []
    sar, _, valid = shards.PairReader(f"{s3}/p")(0)
    assert (sar == 1).all()
    assert valid.all()


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
