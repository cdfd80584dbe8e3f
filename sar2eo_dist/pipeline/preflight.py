"""What a config wants, looked at before a job does: its run folder, its inputs, its clock against the store's, its cluster."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.exceptions

from sar2eo_dist import lease, retry, s3, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import NotFound, Sar2EoError, StorageError
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline import cluster, job
from sar2eo_dist.pipeline.installed import FREE, GB, Line

SKEW_S = 300.0  # seconds off the store's clock that are too many; S3 refuses from 900 on
MANY = 1_000_000  # units: as many as a cluster could ever work on at a time


def check(cfg: Config) -> Iterator[Line]:
    """All of it, line by line. Ray is left again."""
    yield from run_folder(storage.absolute(cfg.run.out))
    yield from inputs(cfg)
    yield from tools(cfg)
    yield from ray_cluster(cfg)


def run_folder(root: str) -> Iterator[Line]:
    """Whether run.out can be listed, written, and is free; the store's clock on the way."""
    answer = first_answer(root)
    yield from answer
    if answer[-1].mark == "FAIL":
        return
    if path := storage.local_path(root):
        yield disk(path)
    try:
        yield probe(root)
        last = job.written_by(root)
        yield Line("OK", "run.out", f"last written by sar2eo_dist {last}" if last else "new")
        _, holder = lease.newest_of(root)
    except Sar2EoError as e:
        yield Line("FAIL", "run.out", str(e))
        return
    if holder and not holder.released and not holder.gone():
        said = f"in use by {holder.words()}: a job of yours looks for a sign of life, then is refused"
        yield Line("WARN", "run.out", said)


def first_answer(uri: str) -> list[Line]:
    """One request to a store, tried once: it answers, takes the credentials, has the bucket, and what its clock says."""
    if not s3.is_s3(uri):
        return [Line("OK", "run.out", uri)]
    begin = time.monotonic()
    try:
        fs, path = s3.opened(uri)
        bucket, key, _ = fs.split_path(path)
        reply = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1, **fs.req_kw)
    except Exception as e:  # named by its cause
        error = retry.named(uri, e)
        return [Line("FAIL", "run.out", f"{type(error).__name__}: {error}")]
    ms = 1000 * (time.monotonic() - begin)
    return [Line("OK", "run.out", f"{uri} answers in {ms:.0f} ms and can be listed"), *clock(reply)]


def clock(reply: dict[str, Any]) -> list[Line]:
    """This machine's clock against the `Date` of an answer."""
    ahead = retry.skew(reply)
    if abs(ahead) <= SKEW_S:
        return [Line("OK", "clock", f"{abs(ahead):.0f} s off the store's")]
    off = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's, which refuses from 900 on"
    return [Line("FAIL", "clock", f"{off}: set it by NTP (timedatectl set-ntp true), on every node")]


def disk(path: str) -> Line:
    """Room for a local run folder."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    there = shutil.disk_usage(path)
    said = f"{there.free / GB:.1f} of {there.total / GB:.0f} GiB free in {path}"
    if there.free < FREE:
        return Line("FAIL", "run.out", f"{said}: clear it, or set run.out to a larger disk or a bucket")
    return Line("OK", "run.out", said)


def probe(root: str) -> Line:
    """Create an object, read it, be refused to create it again, and delete it: what ledger and lease rest on.

    Nothing of it stays. Raises StorageError.
    """
    uri = storage.join(root, f"check-{uuid.uuid4().hex}")
    path = storage.local_path(root)
    new = bool(path) and not os.path.isdir(path)
    try:
        created = storage.put_if_absent(uri, b"first")
        again = storage.put_if_absent(uri, b"second")
        there = storage.read_bytes(uri)
        storage.delete(uri)
    finally:
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(path)
    if not created or again or there != b"first":
        return Line("FAIL", "run.out", "the store writes over what it was asked to create if absent (If-None-Match), so two "
                    "runs could own one folder: use one that honours it, as S3, Ceph and MinIO do")  # fmt: skip
    return Line("OK", "run.out", "written, read, not written over, deleted")


def inputs(cfg: Config) -> Iterator[Line]:
    """Every setting that names something to read. A synthetic world's own files are made by the job."""
    data = ("s1", "s2", "pairs", "target", "scenes", "truth")
    named: dict[str, str] = {f"data.{k}": getattr(cfg.data, k) for k in data}
    named |= {f"cca.{k}": getattr(cfg.cca, k) for k in ("weights", "reference", "calibration")}
    named |= {"evaluate.lpips": cfg.evaluate.lpips, "mosaic.aoi": cfg.mosaic.aoi if cfg.mosaic.aoi != "amazon" else ""}
    for name, uri in named.items():
        if uri:
            yield readable(name, storage.absolute(uri))
    bundles = {f"translate.bundles.{i}": uri for i, uri in enumerate(cfg.translate.bundles)}
    stages = {"coarse": cfg.train.coarse, "translate": cfg.train.translate, "enhance": cfg.train.enhance}
    bundles |= {f"train.{name}.start": stage.start for name, stage in stages.items() if stage and stage.start}
    for name, uri in bundles.items():
        try:
            info = bundle.read(storage.absolute(uri))
            size = storage.info(storage.join(storage.absolute(uri), bundle.WEIGHTS)).size
            yield Line("OK", name, f"{info.model}, {info.step} steps, {size / 1e6:.0f} MB, {uri}")
        except Sar2EoError as e:
            yield Line("FAIL", name, f"{e}: correct {name}, the folder that jobs/train.py left in train/bundles")


def readable(name: str, uri: str) -> Line:
    """The first page of what lies there, and a byte of the first object."""
    try:
        page = next(storage.walk(uri), [])
        if not page:
            return Line("FAIL", name, f"holds nothing: correct {name}: {uri}")
        storage.read_range(page[0].uri, 0, 1)
    except NotFound as e:
        return Line("FAIL", name, f"{e}: correct {name}")
    except StorageError as e:
        return Line("FAIL", name, str(e))
    many = f"{len(page)} objects or more" if len(page) >= storage.PAGE - 1 else f"{len(page)} objects"
    return Line("OK", name, f"{many if page[0].uri != uri else '1 object'}, readable: {uri}")


def tools(cfg: Config) -> Iterator[Line]:
    """What some settings want of a machine."""
    if cfg.speed.compile and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        yield Line("WARN", "speed.compile", "wants a C compiler on each worker, and there is none here: build the GPU image "
                   'with --build-arg COMPILER="gcc libc6-dev", or leave it off')  # fmt: skip


def ray_cluster(cfg: Config) -> Iterator[Line]:
    """Whether a cluster that is named takes this job in, and has room for what the config asks. It is not made to grow."""
    address = cfg.resources.address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield Line("OK", "Ray", "no address is given: the job starts its own, here")
        return
    as_it_is = cfg.resources.model_copy(update={"wait_cpus": 0, "wait_gpus": 0})
    try:
        cluster.start(cfg.model_copy(update={"resources": as_it_is}))
        yield from fits(cfg, address, cluster.nodes())
    except (Sar2EoError, ray.exceptions.RayError) as e:
        yield Line("FAIL", "Ray", str(e))
    except (OSError, RuntimeError, ValueError) as e:  # another version of Ray, an address that is none
        said = f"{e}: resources.address and RAY_ADDRESS want HOST:6379 or auto, and the image that the cluster runs"
        yield Line("FAIL", "Ray", said)
    finally:
        ray.shutdown()


def fits(cfg: Config, address: str, nodes: Sequence[tuple[float, float]]) -> Iterator[Line]:
    """nodes: (CPUs, GPUs) of each. Raises ConfigError with the arithmetic where the config has no room on them."""
    cpus, gpus = (sum(n[i] for n in nodes) for i in (0, 1))
    yield Line("OK", "Ray", f"{address}: {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs")
    if len(nodes) > 1 and storage.local_path(storage.absolute(cfg.run.out)):
        said = f"run.out is a path, {cfg.run.out}, and must be one folder to all {len(nodes)} nodes: a bucket is"
        yield Line("WARN", "Ray", said)
    wanted = cfg.resources.wait_cpus, cfg.resources.wait_gpus
    if wanted[0] > cpus or wanted[1] > gpus:
        yield Line(
            "OK", "Ray", f"a job asks for {wanted[0]} CPUs and {wanted[1]} GPUs and waits for them (resources.wait_s)"
        )
        return
    cluster.feed(cfg.resources, cfg.cca.threads, MANY, nodes, cfg.cca.extractor != "means")
    cluster.translators(cfg, MANY)
    yield Line("OK", "Ray", "extractors, translators and what feeds them have room")
