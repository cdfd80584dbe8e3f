"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import ceph_server
import pytest
import small_job

#: what this machine must have (.ci/run sets it): a test that needs it fails where it would skip
REQUIRED = set(os.environ.get("SAR2EO_REQUIRE", "").split())


def need(what: str, present: bool, why: str) -> None:
    """Skip, by name, where something is absent; fail instead where it is required."""
    if not present:
        (pytest.fail if what in REQUIRED else pytest.skip)(f"{what} absent: {why}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run tests/bench (make bench)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks are no tests: `make bench` alone collects them."""
    return True if collection_path.name == "bench" and not config.getoption("--benchmark") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the run's one Ray is marked `cluster`, for `make test` to run it after the others."""
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Networks are tested on one thread: on a busy machine spinning threads cost more than these tiny networks."""
    if request.path.parent.name not in {"models", "training"}:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real Sentinel samples."""
    folder = os.environ.get("SAR2EO_SAMPLES", "")
    need("samples", bool(folder) and Path(folder).is_dir(), f"SAR2EO_SAMPLES={folder!r}")
    return Path(folder)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a headless Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    need("browser", found is not None, "install the package chromium")
    return str(found)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server in this process (moto): fast, in memory; it checks no credentials by default."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty bucket, reached through the standard environment: `s3://...`."""
    import s3fs

    for key, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:50].strip("-")
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def ceph_started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ceph_server.Server]:
    """A real S3 server with real authentication; about 10 s."""
    need("ceph", not ceph_server.lacking(), ceph_server.lacking())
    server = ceph_server.start(tmp_path_factory.mktemp("ceph"))
    yield server
    server.stop()


@pytest.fixture
def ceph(ceph_started: ceph_server.Server, monkeypatch: pytest.MonkeyPatch) -> ceph_server.Server:
    """That server, reached through the standard environment."""
    import s3fs

    for key, value in ceph_started.environment().items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return ceph_started


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the whole test run."""
    import ray

    from sar2eo_dist.config import Config
    from sar2eo_dist.pipeline import cluster

    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    ray.init(address="local", num_cpus=2, include_dashboard=True, object_store_memory=200 << 20, log_to_driver=False)
    cluster.start(Config())
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def main_job(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> small_job.Done:
    """The whole main job on a small synthetic world, once."""
    return small_job.run(tmp_path_factory.mktemp("job"))
