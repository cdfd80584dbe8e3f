"""Jobs submitted to a real cluster of three hosts, with token authentication: tests/chaos/test_hosts.py in short."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from conftest import need
from host_networks import allowed
from hosts import HIDDEN, ROOT, Hosts
from small_job import Done

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
]  # the first also runs the main job, where no test before did


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    need("namespaces", not (why := allowed()), why)
    with Hosts() as cluster:
        yield cluster
    assert not cluster.folder.exists()
    assert cluster.bridge not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout


def config_of(main_job: Done, folder: Path, out: str, **resources: object) -> str:
    """A config like the main job's, of another run folder."""
    tree = main_job.cfg.model_dump(mode="json")
    tree["run"] |= {"out": str(folder / out), "max_attempts": 6}
    tree["resources"] |= resources
    (folder / f"{out}.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / f"{out}.yaml")


def shipped(hosts: Hosts, name: str) -> dict[str, int]:
    """What was unpacked of the upload on a host: bytes by first folder."""
    sizes: dict[str, int] = {}
    for package in (hosts.folder / name / "ray").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*"):
        for path in package.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                top = path.relative_to(package).parts[0]
                sizes[top] = sizes.get(top, 0) + path.stat().st_size
    return sizes


def test_a_host_cut_off_in_the_middle_changes_nothing(hosts: Hosts, main_job: Done, tmp_path: Path) -> None:
    config, ledger = config_of(main_job, tmp_path, "run"), tmp_path / "run/ledger/collect"
    begin = time.monotonic()
    hosts.submit(["jobs/collect.py", "--config", config], "night-1")
    while not list(ledger.glob("*.json")) and time.monotonic() < begin + 120:
        assert hosts.status("night-1") in ("PENDING", "RUNNING"), hosts.logs("night-1")
        time.sleep(0.05)
    hosts.cut("w1")
    finished = len(list(ledger.glob("*.json")))
    others = sorted(hosts.hosts[name].address for name in ("head", "w2"))
    while hosts.alive() != others and time.monotonic() < begin + 180:
        time.sleep(0.2)
    hosts.mend("w1")  # what it still did is over: it finds itself declared dead, and ends
    assert hosts.wait("night-1") == "SUCCEEDED", hosts.logs("night-1")
    seconds = time.monotonic() - begin
    assert hosts.alive() == others
    summary = json.loads((tmp_path / "run/collect/summary.json").read_text())
    whole = main_job.summaries["collect"]
    assert (summary["status"], summary["digest"], summary["submission"]) == ("complete", whole.digest, "night-1")
    assert finished < summary["planned"], "cut too late to show anything"
    for name in ("verdicts", "pairs", "calibration"):
        made = (tmp_path / "run" / whole.outputs[name]).read_bytes()
        assert made == main_job.path("collect", name).read_bytes(), name
    # the hosts have no package but what was shipped, and that is small
    gone = hosts.command("w2", sys.executable, "-c", "import sar2eo_dist.config")
    assert b"ModuleNotFoundError" in subprocess.run(gone, env=hosts.environment(), capture_output=True).stderr
    sizes = shipped(hosts, "w2")
    assert set(sizes) == set(HIDDEN), sizes
    assert sum(sizes.values()) < 2e6, sizes
    print(f"\ncluster up in {hosts.seconds['start']:.1f} s; {finished} of {summary['planned']} units when a host was cut off, "
          f"{seconds:.0f} s in all; {sum(sizes.values()) / 1e6:.2f} MB shipped")  # fmt: skip


def test_a_wrong_or_missing_token_is_refused_with_the_remedy(hosts: Hosts, main_job: Done, tmp_path: Path) -> None:
    """By `ray job submit`, by our own wait, and by a job that is started by hand."""
    head = hosts.hosts["head"].address

    def job(token: str, script: str, *words: str) -> tuple[int, str]:
        ran = subprocess.run([sys.executable, script, *words], env=hosts.environment(token), cwd=ROOT,
                             capture_output=True, text=True, timeout=120)  # fmt: skip
        return ran.returncode, ran.stderr

    def collect(token: str) -> tuple[int, str]:
        where = config_of(main_job, tmp_path, f"by-hand-{token}", address=f"{head}:6379")
        return job(token, "jobs/collect.py", "--config", where)

    def wait(token: str) -> tuple[int, str]:
        return job(token, "jobs/wait.py", "night-1", "--address", hosts.api)

    def submit(token: str) -> tuple[int, str]:
        ran = hosts.ray("job", "submit", "--no-wait", "--working-dir", "jobs", "--", "python", "-c", "1", token=token)
        return ran.returncode, ran.stderr

    tokens = ("f" * 64, "")
    with ThreadPoolExecutor(6) as pool:  # all at once: Ray tries a wrong token for 20 s
        by_hand, waited, submitted = (pool.map(how, tokens) for how in (collect, wait, submit))
    for code, said in by_hand:
        assert code == 2, said
        assert f"config error: no Ray cluster takes this job in at {head}:6379" in said
        assert "RAY_AUTH_TOKEN_PATH" in said.splitlines()[-1]
    for code, said in waited:
        assert code == 1, said
        assert "RAY_AUTH_TOKEN_PATH to the cluster's token" in said
        assert "Traceback" not in said
    for (code, said), words in zip(submitted, ("Invalid authentication token", "couldn't find an auth"), strict=True):
        assert code == 1, said
        assert words in said
        assert "RAY_AUTH_TOKEN" in said
