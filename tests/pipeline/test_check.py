"""The pre-flight check: what is wrong is told before a job meets it, each with its remedy."""

from __future__ import annotations

import datetime as dt
import email.utils
import errno
import importlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import botocore.auth
import ceph_server
import pytest
import s3fs
import torch

from sar2eo_dist import atomic, lease, retry, storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline import check, cluster, installed, preflight
from sar2eo_dist.pipeline.installed import GB, Line

ROOT = Path(__file__).resolve().parents[2]


def failing(lines: Iterator[Line] | list[Line]) -> list[str]:
    return [str(line) for line in lines if line.mark == "FAIL"]


def with_disk(monkeypatch: pytest.MonkeyPatch, total: float, free: float) -> None:
    usage = shutil._ntuple_diskusage(int(total * GB), int((total - free) * GB), int(free * GB))  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


# ---- this machine


def test_packages_are_held_against_what_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAR2EO_IMAGE", raising=False)
    assert installed.packages((ROOT / "infra/constraints.txt").read_text()).mark == "OK"
    assert installed.packages("").mark == "OK", "a folder that was shipped has no constraints beside it"
    wrong = "# numpy==9\nPyYAML==0.1  # old\nno-such-package==1.0\n"
    line = installed.packages(wrong)
    assert line.mark == "WARN"
    assert "PyYAML 6" in line.said
    assert "no-such" not in line.said, "packages of development are in no image"
    monkeypatch.setenv("SAR2EO_IMAGE", "cpu")
    assert installed.packages(wrong).mark == "FAIL"


def test_a_build_of_the_same_version_is_that_version(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.__version__.partition("+")[0]
    assert installed.packages(f"torch=={plain}\n").mark == "OK"
    assert installed.packages(f"torch=={plain}1\n").mark != "OK"


def test_root_and_a_user_without_a_name_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "1000:100" in installed.user().said
    monkeypatch.setattr(os, "geteuid", lambda: 987654)
    assert "set USER" in installed.user().said
    monkeypatch.setenv("USER", "somebody")
    assert installed.user().mark == "OK"


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "TMPDIR", "RAY_TMPDIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "new" / "deeper"))
    assert [line.mark for line in installed.folders()] == ["OK"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "numba"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    assert sorted((line.mark, line.said.partition("=")[0]) for line in installed.folders()) == [
        ("FAIL", "RAY_TMPDIR"), ("WARN", "NUMBA_CACHE_DIR"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("total", "free", "mark"), [(100, 50, "OK"), (100, 4, "WARN"), (100, 0.5, "FAIL"), (4, 3.9, "OK")]
)
def test_room_for_ray(total: float, free: float, mark: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_disk(monkeypatch, total, free)
    assert installed.room(str(tmp_path)).mark == mark


def test_the_shared_memory_that_containers_get_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    with_disk(monkeypatch, 64 / 1024, 64 / 1024)
    line = installed.shared_memory("/dev/shm")
    assert line.mark == "WARN"
    assert "--shm-size" in line.said
    with_disk(monkeypatch, 1, 0.2)
    assert installed.shared_memory("/dev/shm").mark == "OK"


def test_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "none yet" in installed.token().said
    path = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert installed.token().mark == "FAIL"
    path.write_text("\n")
    assert installed.token().mark == "FAIL"
    path.write_text("0123456789abcdef\n")
    line = installed.token()
    assert line.mark == "OK"
    assert "0123" not in line.said, "a token is never printed"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "fedcba")
    assert "fedcba" not in installed.token().said
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert installed.token().mark == "WARN"


def test_a_clock_behind_the_code_itself() -> None:
    now = dt.datetime.now(dt.UTC).timestamp()
    assert installed.clock(now).mark == "OK"
    assert installed.clock(dt.datetime(2020, 1, 1, tzinfo=dt.UTC).timestamp()).mark == "WARN"


def test_an_import_that_lacks_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_expat(name: str) -> object:
        if name == "rasterio":
            raise ImportError("libexpat.so.1: cannot open shared object file")
        return plain(name)

    plain = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", without_expat)
    lines = list(installed.check())
    assert len(failing(lines)) == 1
    assert "libexpat" in failing(lines)[0]
    assert not [line for line in lines if line.what == "GPU"], "what comes after a broken import is not tried"


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert installed.gpu("cpu").mark == "OK"
    assert "CPU build" in installed.gpu("gpu").said
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert installed.gpu("gpu").mark == "WARN"
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda p: p == "/dev/nvidiactl" or exists(p))
    assert "GPU image" in installed.gpu("").said


def test_a_gpu_that_is_seen_and_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*shape: int, device: str) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    plain = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    monkeypatch.setattr(torch, "ones", refuse)
    line = installed.gpu("gpu")
    assert (line.mark, "no kernel image" in line.said, "more" in line.said) == ("FAIL", True, False)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: plain(*shape))
    assert installed.gpu("gpu").mark == "OK"
    monkeypatch.setattr(torch, "ones", lambda *shape, device: plain(*shape) * 1.5)
    assert installed.gpu("gpu").mark == "FAIL"


# ---- the run folder


def test_a_bucket_that_is_well_and_keeps_nothing_of_the_probe(s3: str) -> None:
    lines = list(preflight.run_folder(f"{s3}/run"))
    assert {line.mark for line in lines} == {"OK"}
    assert {line.what for line in lines} == {"run.out", "clock"}
    assert storage.list_files(s3) == []


def test_no_bucket(s3: str) -> None:
    (line,) = preflight.run_folder("s3://no-such-bucket/run")
    assert line.mark == "FAIL"
    assert "no such bucket" in line.said


def test_wrong_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.core import set_initial_no_auth_action_count

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()

    @set_initial_no_auth_action_count(0)
    def lines() -> list[Line]:
        return list(preflight.run_folder(f"{s3}/run"))

    (line,) = lines()
    assert line.mark == "FAIL"
    assert "AWS_ACCESS_KEY_ID" in line.said
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_is_not_there_is_asked_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    (line,) = preflight.run_folder(f"{s3}/run")
    assert "did not answer" in line.said
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(("off", "mark"), [(3600, "FAIL"), (-3600, "FAIL"), (301, "FAIL"), (60, "OK"), (-200, "OK")])
def test_the_clock_against_the_stores(off: float, mark: str) -> None:
    there = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=off)
    (line,) = preflight.clock(
        {"ResponseMetadata": {"HTTPHeaders": {"date": email.utils.format_datetime(there, usegmt=True)}}}
    )
    assert line.mark == mark
    assert mark == "OK" or ("ahead" if off > 0 else "behind") in line.said


def test_a_wrong_clock_is_enough(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "skew", lambda reply: -3600.0)
    lines = list(preflight.run_folder(f"{s3}/run"))
    assert len(failing(lines)) == 1
    assert "NTP" in failing(lines)[0]


def test_a_store_that_writes_over(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(fs: s3fs.S3FileSystem, path: str, data: bytes) -> bool:
        fs.pipe_file(path, data)
        return True

    monkeypatch.setattr(preflight.s3, "create", create)
    (told,) = failing(preflight.run_folder(f"{s3}/run"))
    assert "If-None-Match" in told
    assert storage.list_files(s3) == []


def test_rights_to_list_and_not_to_write(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(fs: object, path: str, data: bytes) -> bool:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(preflight.s3, "create", create)
    (told,) = failing(preflight.run_folder(f"{s3}/run"))
    assert "access denied" in told


def test_a_real_store(ceph: ceph_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ceph.bucket("check")
    assert {line.mark for line in preflight.run_folder(root)} == {"OK"}
    assert storage.list_files(root) == []
    now, today = time.time, botocore.auth.get_current_datetime
    with monkeypatch.context() as m:
        m.setattr(retry, "now", lambda: now() + 3600)
        m.setattr(botocore.auth, "get_current_datetime", lambda: today() + dt.timedelta(hours=1))
        (told,) = failing(preflight.run_folder(root))
        assert "60 minutes ahead" in told
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    s3fs.S3FileSystem.clear_instance_cache()
    (told,) = failing(preflight.run_folder(root))
    assert "check AWS_SECRET_ACCESS_KEY" in told
    assert ceph.access_key not in told


def test_a_local_folder_is_left_as_it_was(tmp_path: Path) -> None:
    assert not failing(preflight.run_folder(str(tmp_path / "new")))
    assert list(tmp_path.iterdir()) == []
    storage.put(str(tmp_path / "old" / "a"), b"1")
    assert not failing(preflight.run_folder(str(tmp_path / "old")))
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["a"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, pieces: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        with_disk(m, 100, 0.01)
        assert "larger disk" in failing(preflight.run_folder(str(tmp_path)))[0]
    monkeypatch.setattr(atomic, "temporary", full)
    (told,) = failing(preflight.run_folder(str(tmp_path)))
    assert "No space left" in told
    assert "make room" in told


def test_who_works_in_the_run_folder_and_what_wrote_it(tmp_path: Path) -> None:
    root = str(tmp_path)
    with lease.held(root, "jobs/translate.py", 60.0):
        lines = list(preflight.run_folder(root))
        assert [line.said for line in lines if line.mark == "WARN" and "jobs/translate.py" in line.said]
    assert {line.mark for line in preflight.run_folder(root)} == {"OK"}
    storage.put(f"{root}/written_by.json", b'{"sar2eo_dist": "99.0.0"}')
    (told,) = failing(preflight.run_folder(root))
    assert "99.0.0" in told


# ---- inputs and cluster


def test_inputs_are_named_by_their_setting(s3: str, tmp_path: Path) -> None:
    storage.put(f"{s3}/s1/a.tif", b"1")
    (tmp_path / "empty").mkdir()
    cfg = load(None, [
        f"data.s1={s3}/s1", f"data.s2={s3}/s2", "data.scenes=s3://no-such-bucket/x", f"data.pairs={tmp_path}/empty",
        f"cca.weights={s3}/s1/a.tif", f"translate.bundles=[{s3}/bundle]", "mosaic.aoi=amazon",
    ])  # fmt: skip
    marks = {line.what: line for line in preflight.inputs(cfg)}
    assert {what: line.mark for what, line in marks.items()} == {
        "data.s1": "OK", "data.s2": "FAIL", "data.scenes": "FAIL", "data.pairs": "FAIL", "cca.weights": "OK",
        "translate.bundles.0": "FAIL",
    }  # fmt: skip
    assert "no such bucket" in marks["data.scenes"].said
    assert "holds nothing" in marks["data.pairs"].said
    assert "bundle.json" in marks["translate.bundles.0"].said
    assert list(preflight.inputs(Config())) == []


def test_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load(None, ["speed.compile=true"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert [line.mark for line in preflight.tools(cfg)] == ["WARN"]
    assert list(preflight.tools(Config())) == []
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert list(preflight.tools(cfg)) == []


def test_a_cluster_that_nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (line,) = preflight.ray_cluster(Config())
    assert line.mark == "OK"


def test_a_cluster_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(cfg: Config) -> None:
        asked.append(cfg.resources)
        raise ConfigError("no Ray cluster takes this job in: is RAY_AUTH_TOKEN its token?")

    monkeypatch.setattr(cluster, "start", refuse)
    monkeypatch.setattr(preflight.ray, "shutdown", lambda: None)
    cfg = load(None, ["resources.address=10.0.0.1:6379", "resources.wait_gpus=8"])
    (told,) = failing(preflight.ray_cluster(cfg))
    assert "RAY_AUTH_TOKEN" in told
    assert asked[0].wait_gpus == 0, "a check makes no cluster grow"


def test_room_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(nodes: list[tuple[float, float]], *overrides: str) -> list[Line]:
        monkeypatch.setattr(cluster, "nodes", lambda: nodes)
        return list(preflight.fits(load(None, ["run.out=s3://bucket/run", *overrides]), "head:6379", nodes))

    assert [line.mark for line in lines([(0, 0), (4, 0), (4, 1)])] == ["OK", "OK"]
    assert [line.mark for line in lines([(0, 0), (4, 0)], "run.out=runs/here")] == ["OK", "WARN", "OK"]
    with pytest.raises(ConfigError, match="add workers"):
        lines([(0, 0)])
    with pytest.raises(ConfigError, match="translators"):
        lines([(4, 0)], "resources.translators=8", "translate.threads=4")
    grows = lines([(0, 0)], "resources.wait_cpus=16")
    assert "waits for them" in grows[-1].said


# ---- the command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(installed, "check", lambda: iter([Line("OK", "user", "sar2eo"), Line("WARN", "GPU", "none")]))
    assert check.main([]) == 0
    assert "check: 1 OK, 1 WARN, 0 FAIL" in capsys.readouterr().out
    assert check.main(["--set", f"run.out={tmp_path}"]) == 0
    assert "not written over" in capsys.readouterr().out
    assert check.main(["--set", f"run.out={tmp_path}", "--set", f"data.s1={tmp_path}/nowhere"]) == 1
    assert "FAIL  data.s1" in capsys.readouterr().out
    assert check.main(["--set", "run.nonsense=1"]) == 2
    monkeypatch.setattr(installed, "check", lambda: iter([Line("FAIL", "room", "none")]))
    assert check.main(["--set", f"run.out={tmp_path}"]) == 1
    assert "run.out" not in capsys.readouterr().out, "a machine that cannot run anything is asked no more"


def test_this_machine_passes_its_own_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0, capsys.readouterr().out
