"""The Dockerfiles, without an engine: linted, pinned, without root or secrets, and of files and packages that there are."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from conftest import need

import sar2eo_dist

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "infra" / "docker"
FILES = ("Dockerfile.cpu", "Dockerfile.gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
Instruction = tuple[str, str]


def instructions(name: str) -> list[Instruction]:
    """(word, rest) of each, comments out and continued lines joined."""
    kept = [
        line for line in (DOCKER / name).read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    lines = re.sub(r"\s*\\\n\s*", " ", "\n".join(kept)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def of(name: str, word: str) -> list[str]:
    return [rest for w, rest in instructions(name) if w == word]


def environment(name: str) -> dict[str, str]:
    """ENV of the last stage."""
    last = (DOCKER / name).read_text().rpartition("\nFROM ")[2]
    pairs = re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^ENV ((?:.*\\\n)*.*)$", last, re.MULTILINE)))
    return dict(pairs)


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines), f"{path}: an exact version each"
    return {plain(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def context() -> set[str]:
    """What a build is given of a clean clone: the files that git knows or would add, less .dockerignore's."""
    asked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    return {f for f in asked.stdout.splitlines() if (ROOT / f).exists() and not ignored(f, rules)}


def ignored(path: str, rules: list[str]) -> bool:
    """The last rule that matches a path, or a folder it lies in, counts. `**/` stands for any folders or none."""
    parts = path.split("/")
    places = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    out = False
    for rule in rules:
        pattern = rule.lstrip("!")
        tails = [p.rpartition("/")[2] for p in places] if pattern.startswith("**/") else places
        if any(
            fnmatch(p, pattern.removeprefix("**/")) and ("/" not in p or p.count("/") == pattern.count("/"))
            for p in tails
        ):
            out = not rule.startswith("!")
    return out


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    found = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    need("hadolint", found is not None, "make setup")
    done = subprocess.run([str(found), str(DOCKER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_the_base_is_pinned_and_of_the_python_that_was_tested(name: str) -> None:
    (base,) = [a.partition("=")[2] for a in of(name, "ARG") if a.startswith("BASE=")]
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base)
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert of(name, "FROM") == ["${BASE} AS packages", "${BASE}"], "nothing but the one base"
    assert "python3.11" in of(name, "WORKDIR")[1]


@pytest.mark.parametrize("name", FILES)
def test_no_root_no_secret_nothing_from_the_network_but_packages(name: str) -> None:
    words = [w for w, _ in instructions(name)]
    assert "ADD" not in words
    last = len(words) - 1 - words[::-1].index("USER")
    assert of(name, "USER") == ["1000:100"]
    assert set(words[last + 1 :]) == {"RUN", "ENTRYPOINT"}, "what comes after it changes nothing of the image"
    spec = yaml.safe_load((ROOT / "infra/kuberay/cluster/raycluster.yaml").read_text())["spec"]["headGroupSpec"]
    pod = spec["template"]["spec"]["securityContext"]
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == "1000:100", "the pods' user has a name in the image"
    text = (DOCKER / name).read_text()
    assert not re.search(r"(?i)password|secret|credential|AWS_|RAY_AUTH_TOKEN|curl |wget http|git clone", text)
    hosts = set(re.findall(r"https?://([\w.]+)", text))
    assert hosts <= {"download.pytorch.org"}
    assert environment(name)["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_in_a_clean_clone(name: str) -> None:
    given = context()
    for rest in of(name, "COPY"):
        if not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert source in given or any(f.startswith(source.rstrip("/") + "/") for f in given), source
    assert "COPY --from=packages /opt/sar2eo /opt/sar2eo" in (DOCKER / name).read_text()


def test_the_build_is_given_what_it_needs_and_little_more() -> None:
    given = context()
    assert {"pyproject.toml", "LICENSE", "infra/constraints.txt", "jobs/check.py", "jobs/configs/demo.yaml"} <= given
    package = {
        str(p.relative_to(ROOT)) for p in (ROOT / "sar2eo_dist").rglob("*") if p.suffix in {".py", ".j2", ".geojson"}
    }
    assert package <= given
    assert {f.partition("/")[0] for f in given} == {"pyproject.toml", "LICENSE", "infra", "jobs", "sar2eo_dist"}
    assert {f for f in given if f.startswith("infra/")} <= {"infra/constraints.txt"} | {
        f"infra/docker/{p.name}" for p in DOCKER.iterdir()
    }
    assert sum((ROOT / f).stat().st_size for f in given) < 4 << 20


@pytest.mark.parametrize(
    ("path", "out"),
    [("tests/a.py", True), (".git/config", True), ("runs/demo/x", True), ("sar2eo_dist/cca/qa.py", False),
     ("sar2eo_dist/cca/__pycache__/qa.pyc", True), ("infra/kuberay/run.sh", True), ("infra/docker/start", False),
     ("README.md", True), ("LICENSE", False)],
)  # fmt: skip
def test_dockerignore(path: str, out: bool) -> None:
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert ignored(path, rules) is out


@pytest.mark.parametrize("name", FILES)
def test_every_package_is_at_a_tested_version(name: str) -> None:
    known = pins(ROOT / "infra/constraints.txt")
    wanted = {plain(re.match(r"[\w.-]+", d)[0]) for d in PROJECT["project"]["dependencies"]}  # type: ignore[index]
    assert wanted <= set(known)
    installs = re.findall(r"pip install ([^&]+)", " && ".join(of(name, "RUN")))
    assert len(installs) == 4
    for words in (i.split() for i in installs):
        assert "-c constraints.txt" in " ".join(words)
        valued = {i + 1 for i, w in enumerate(words) if w in ("-c", "--index-url")}
        named = {plain(w) for i, w in enumerate(words) if i not in valued and not w.startswith("-") and w != "."}
        assert named <= set(known), words
    assert {"PIP_NO_CACHE_DIR=1", "PIP_PYTHON=/opt/sar2eo/bin/python"} <= set(of(name, "ENV")[0].split())


def test_what_cuda_brings_is_pinned_beside_the_rest() -> None:
    cuda, known = pins(DOCKER / "constraints-cuda.txt"), pins(ROOT / "infra/constraints.txt")
    assert not set(cuda) & set(known)
    assert {"triton", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "cuda-toolkit"} <= set(cuda)
    assert "-c constraints-cuda.txt" in " ".join(of("Dockerfile.gpu", "RUN"))
    assert cuda["cuda-toolkit"].startswith("13."), "as the driver that Dockerfile.gpu and jobs/check.py name"


@pytest.mark.parametrize("name", FILES)
def test_what_kubernetes_asks_of_the_image(name: str) -> None:
    apt = re.search(r"apt-get install -y --no-install-recommends ([^&]+)", " ".join(of(name, "RUN")))
    assert apt
    assert {"tini", "wget", "libexpat1"} <= set(apt[1].split()), (
        "probes, the first process, what rasterio's wheel lacks"
    )
    env = environment(name)
    assert env["SAR2EO_IMAGE"] == name.rpartition(".")[2]
    assert all(env[k] == "/tmp" or env[k].startswith("/tmp/") for k in ("HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"))
    assert "RAY_TMPDIR" not in env, "Ray's folder is the volume at /tmp/ray"
    assert of(name, "WORKDIR")[-1] == env["PYTHONPATH"] == "/app", "`python jobs/collect.py` finds both"
    assert of(name, "RUN")[-1].startswith("python jobs/check.py"), "an image that fails its own check is not built"


@pytest.mark.parametrize("name", FILES)
def test_labels_and_entrypoint(name: str) -> None:
    version = PROJECT["project"]["version"]
    assert f"VERSION={version}" in of(name, "ARG")
    assert version == sar2eo_dist.__version__
    assert f"sar2eo-dist:{version}-{name[-3:]}" in (DOCKER / name).read_text()
    (label,) = of(name, "LABEL")
    assert {"version", "revision", "licenses", "title"} == set(re.findall(r"org\.opencontainers\.image\.(\w+)=", label))
    assert json.loads(of(name, "ENTRYPOINT")[0]) == ["tini", "--", "sar2eo-start"]
    assert "infra/docker/start /usr/local/bin/sar2eo-start" in of(name, "COPY")
    assert os.access(DOCKER / "start", os.X_OK)
    assert not of(name, "CMD")
    assert not of(name, "HEALTHCHECK"), "Kubernetes' probes are KubeRay's"


def test_both_images_differ_in_what_is_marked() -> None:
    cpu, gpu = ([f"{w} {r}" for w, r in instructions(name)] for name in FILES)
    differ = [line for line in difflib.ndiff(cpu, gpu) if line[0] in "+-"]
    told = (
        r"COPY pyproject\.toml",
        r"RUN python -m venv",
        r"RUN rm -rf torch/test",
        r"ARG COMPILER",
        r"RUN apt-get",
        r"ENV PATH",
    )
    for line in differ:
        assert any(re.match(pattern, line[2:]) for pattern in told), line


@pytest.mark.parametrize(("check", "code", "ran"), [(0, 7, True), (1, 1, False)])
def test_start_lets_the_command_run_only_after_the_check(check: int, code: int, ran: bool, tmp_path: Path) -> None:
    """`python` is a stand-in here that answers the check."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$*" = /app/jobs/check.py ] && exit {check}\nexit 99\n')
    python.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = [str(DOCKER / "start"), "sh", "-c", f"touch {tmp_path}/ran; exit $1", "sh", "7"]
    assert subprocess.run(command, env=env).returncode == code
    assert (tmp_path / "ran").exists() is ran
    assert subprocess.run(command[:1], env=env).returncode == check, "without a command, the check is all"
