"""The object-store edge against a real S3 server (Ceph's gateway): its authentication, its refusals, its outages."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import botocore.auth
import ceph_server
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import s3fs
import zarr

from sar2eo_dist import retry, shards, storage
from sar2eo_dist.errors import AccessDenied, NotFound, StorageError
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Unit
from sar2eo_dist.sources.ranged import ranged
from sar2eo_dist.sources.raster import Raster

NAMES = ("a b+c%20d&e=f", "\u00e9\u00fc \u65e5\u672c/\u4e9a\u9a6c\u900a", "<x>\"y'z#1?2", "~-_.!*()")
#: every way to ask, of an object that is there
ASKS = {
    "read": lambda root: storage.read_bytes(f"{root}/x"), "range": lambda root: storage.read_range(f"{root}/x", 0, 1),
    "tail": lambda root: storage.read_tail(f"{root}/x", 1), "ranges": lambda root: storage.read_ranges([(f"{root}/x", 0, 1)]),
    "info": lambda root: storage.info(f"{root}/x"), "list": lambda root: storage.list_files(root),
    "exists": lambda root: storage.exists(f"{root}/x"), "open": lambda root: storage.open_read(f"{root}/x").read(),
    "put": lambda root: storage.put(f"{root}/y", b"2"), "create": lambda root: storage.put_if_absent(f"{root}/y", b"2"),
    "delete": lambda root: storage.delete(f"{root}/x"), "raster": lambda root: Raster(f"{root}/x"),
    "ranged": lambda root: ranged(f"{root}/x").read(1), "parquet": lambda root: pq.read_table(ranged(f"{root}/x")),
    "pairs": lambda root: PairReader(f"{root}/p")(0), "ledger": lambda root: Ledger(root).done("shard"),
}  # fmt: skip
HEADS = {"info", "exists", "raster", "ranged", "parquet", "open"}  # begin with a HEAD: refused, it does not say why


def again() -> None:
    """The environment has changed: clients are made anew."""
    s3fs.S3FileSystem.clear_instance_cache()


def failures(root: str, *but: str) -> dict[str, StorageError]:
    """What each way to ask raises, which must be a named error."""
    found = {}
    for name in ASKS.keys() - set(but):
        with pytest.raises(StorageError) as e:
            ASKS[name](root)
        found[name] = e.value
    return found


def test_objects_of_any_name_and_size(ceph: ceph_server.Server) -> None:
    root = ceph.bucket("objects")
    for name in NAMES:
        storage.put(f"{root}/n/{name}", name.encode())
    assert sorted(i.uri for i in storage.list_files(f"{root}/n")) == sorted(f"{root}/n/{n}" for n in NAMES)
    assert [storage.read_bytes(f"{root}/n/{n}").decode() for n in NAMES] == list(NAMES)
    whole = bytes(range(256)) * (110 << 12)  # 110 MiB: s3fs alone would send it in parts
    storage.put(f"{root}/whole", whole)
    assert "-" not in storage.info(f"{root}/whole").mark, "sent in parts"
    assert storage.sha256(storage.read_bytes(f"{root}/whole")) == storage.sha256(whole)
    assert storage.read_range(f"{root}/whole", 1000, 1004) == whole[1000:1004]
    assert storage.read_tail(f"{root}/whole", 3) == whole[-3:]
    storage.put(f"{root}/none", b"")
    assert [storage.read_tail(f"{root}/none", 9), storage.read_range(f"{root}/none", 5, 9)] == [b"", b""]
    storage.delete(f"{root}/n")
    assert [storage.name(i.uri) for i in storage.list_files(root)] == ["none", "whole"]
    with pytest.raises(NotFound):
        storage.list_files(f"{root}/n")


def test_one_of_eight_writers_creates_an_object(ceph: ceph_server.Server) -> None:
    root = ceph.bucket("race")
    for n in range(5):
        at_once = threading.Barrier(8)

        def create(me: int, uri: str = f"{root}/{n}", at_once: threading.Barrier = at_once) -> bool:
            at_once.wait()
            return storage.put_if_absent(uri, b"%d" % me)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        assert storage.read_bytes(f"{root}/{n}") == b"%d" % won.index(True)


def test_folders_of_more_than_a_page_are_listed_and_deleted(ceph: ceph_server.Server) -> None:
    root, client = ceph.bucket("pages"), ceph.client()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.put_object(Bucket="pages", Key=f"in/{n:04d}", Body=b"1"), range(1010)))
    storage.put(f"{root}/inner", b"1")
    assert [len(p) for p in storage.walk(f"{root}/in")] == [1000, 10]
    storage.delete(f"{root}/in")
    assert [i.uri for i in storage.list_files(root)] == [f"{root}/inner"]


def test_shards_ledger_and_what_other_tools_read(ceph: ceph_server.Server, tmp_path: Path) -> None:
    root = ceph.bucket("shards")
    arrays = shards.pair_arrays(3, 2)
    shards.write_template(root, "p", arrays, {})
    data = [np.full((2, *a.shape[1:]), 7, a.dtype) for a in arrays]
    made = tuple(shards.write_shard(root, "p", a, (0,) * d.ndim, d) for a, d in zip(arrays, data, strict=True))
    unit, ledger = Unit("shard", "k", "f", "i"), Ledger(root)
    assert ledger.commit(Entry(unit, made, 1.0))
    assert not ledger.commit(Entry(unit, made, 2.0))
    assert ledger.entry(unit).seconds == 1.0
    assert ledger.audit([unit]) == []
    assert (PairReader(f"{root}/p")(1)[0] == 7).all()
    assert (zarr.open_group(f"{root}/p", mode="r", use_consolidated=False)["sar"][0] == 7).all()
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=64, height=64, count=1, dtype="int16") as f:
        f.write(np.arange(4096, dtype="int16").reshape(1, 64, 64))
    storage.put_file(f"{root}/a.tif", str(tmp_path / "a.tif"))
    raw, _ = Raster(f"{root}/a.tif").read([1], 8, 8, 2, 2)
    assert raw.tolist() == [[[520, 521], [584, 585]]]
    host = ceph.endpoint.removeprefix("http://")
    with rasterio.Env(AWS_S3_ENDPOINT=host, AWS_HTTPS="NO", AWS_VIRTUAL_HOSTING="FALSE"), \
            rasterio.open("/vsis3/shards/a.tif") as f:  # fmt: skip
        assert f.read(1)[8, 8] == 520
    pq.write_table(pa.table({"n": [1, 2, 3]}), tmp_path / "t.parquet")
    storage.put_file(f"{root}/t.parquet", str(tmp_path / "t.parquet"))
    assert pq.read_table(ranged(f"{root}/t.parquet"))["n"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "unknown-key"}, "does not know the access key"),
        ({"AWS_ACCESS_KEY_ID": "{other_access_key}", "AWS_SECRET_ACCESS_KEY": "{other_secret_key}"}, "right granted"),
        ({"AWS_PROFILE": "nobody"}, "no such profile"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "there are none: set AWS_ACCESS_KEY_ID"),
    ],
    ids=["secret", "key", "right", "profile", "none"],
)
def test_refused_credentials_are_named_at_once_and_never_told(
    ceph: ceph_server.Server, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], remedy: str
) -> None:
    root, client, attempts = ceph.bucket("refused"), ceph.client(), list[BaseException]()
    storage.put(f"{root}/x", b"1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(retry, "observers", [lambda _, cause: attempts.append(cause)])
    for key, value in change.items():
        monkeypatch.setenv(key, value.format(**asdict(ceph))) if value else monkeypatch.delenv(key)
    again()
    told = failures(root)
    assert attempts == [], "refusals were tried again"
    for name, error in told.items():
        assert isinstance(error, AccessDenied), (name, error)
        assert remedy in str(error) or name in HEADS, (name, error)
        assert root in str(error)
        secret = [ceph.secret_key, ceph.access_key, ceph.other_secret_key, ceph.other_access_key, "wrong-", "unknown-"]
        assert not [s for s in secret if s in "".join(traceback.format_exception(error))], name
    assert [o["Key"] for o in client.list_objects_v2(Bucket="refused")["Contents"]] == ["x"]


@pytest.mark.parametrize(("hours", "where"), [(1, "60 minutes ahead of"), (-1, "60 minutes behind")])
def test_a_clock_that_is_off_is_named(
    ceph: ceph_server.Server, monkeypatch: pytest.MonkeyPatch, hours: int, where: str
) -> None:
    root, now, today = ceph.bucket("clock"), time.time, botocore.auth.get_current_datetime
    storage.put(f"{root}/x", b"1")
    monkeypatch.setattr(retry, "observers", [lambda *_: pytest.fail("it was tried again")])
    monkeypatch.setattr(retry, "now", lambda: now() + 3600 * hours)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: today() + dt.timedelta(hours=hours))
    for name, error in failures(root).items():
        assert isinstance(error, AccessDenied), name
        assert f"clock is {where} the store's: set it by NTP" in str(error), name


def test_a_bucket_that_does_not_exist_is_named_and_not_made(ceph: ceph_server.Server) -> None:
    for name, error in failures("s3://no-such-bucket", "exists", "ledger", "pairs").items():
        assert isinstance(error, NotFound), name
        assert "no such bucket: create it" in str(error), name
    assert not storage.exists("s3://no-such-bucket/x")
    assert "no-such-bucket" not in [b["Name"] for b in ceph.client().list_buckets()["Buckets"]]


def test_endpoint_keys_and_style_come_from_a_profile(
    ceph: ceph_server.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = ceph.bucket("chain")
    storage.put(f"{root}/x", b"1")
    host = ceph.endpoint.replace("127.0.0.1", "localhost")
    (tmp_path / "config").write_text(
        f"[profile night]\nregion = us-east-1\nendpoint_url = {host}\ns3 =\n  addressing_style = path\n"
    )
    keys = f"aws_access_key_id = {ceph.access_key}\naws_secret_access_key = {ceph.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[night]\n{keys}")
    for key in ceph.environment():
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_PROFILE", "night")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    again()
    assert storage.read_bytes(f"{root}/x") == b"1"
    fs, _ = storage.filesystem(root)
    assert fs.s3.meta.endpoint_url == host
    assert fs.s3.meta.config.s3["addressing_style"] == "path"


def test_kills_and_pauses_of_the_server_are_waited_out(
    ceph: ceph_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers and readers go on through a stop of the gateway and a kill -9 of all of it; nothing is torn or lost."""
    root, over, done, seen = ceph.bucket("outage"), threading.Event(), [0] * 4, list[str]()
    monkeypatch.setattr(retry, "observers", [lambda _, cause: seen.append(retry.code(cause))])
    monkeypatch.setattr(retry, "pause", lambda _: 0.5)
    monkeypatch.setattr(retry, "RETRIES", 200)

    def work(me: int) -> None:
        rng = random.Random(me)
        while not over.is_set():
            data, uri = rng.randbytes(200_000), f"{root}/{me}/{done[me] % 5}"
            storage.put(uri, data)
            assert storage.read_bytes(uri) == data
            assert storage.read_ranges([(uri, 5, 9), (uri, 0, 2)]) == [data[5:9], data[:2]]
            assert storage.put_if_absent(f"{root}/{me}/entry{done[me]}", data[:100]), "an entry of its own"
            done[me] += 1

    def each_goes_on() -> None:
        """Wait until every worker has done two rounds more."""
        then, limit = list(done), time.monotonic() + 100
        while any(d < t + 2 for d, t in zip(done, then, strict=True)) and not any(w.done() for w in workers):
            assert time.monotonic() < limit, (then, done)
            time.sleep(0.05)

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, n) for n in range(4)]
        try:
            each_goes_on()
            ceph.pause()
            time.sleep(1)
            ceph.resume()
            each_goes_on()
            ceph.kill()
            time.sleep(1)
            assert seen, "nobody noticed"
            ceph.restart()
            each_goes_on()
        finally:
            over.set()
        for worker in workers:
            worker.result()
    listed = [i for i in storage.list_files(root) if "entry" in i.uri]
    assert len(listed) == sum(done)
    assert {i.size for i in listed} == {100}
