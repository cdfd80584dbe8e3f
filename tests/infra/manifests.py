"""The Kubernetes manifests as kustomize prints them, and ways to look into them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import need

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra/kuberay"
OVERLAYS = ("cpu", "gpu", "spot")
VERBS = {"collect", "shard", "train", "translate", "evaluate", "grade", "basin"}
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1}
Tree = dict[str, Any]


def render(folder: Path) -> list[Tree]:
    """What `kubectl kustomize` prints of a folder."""
    need("kubectl", shutil.which("kubectl") is not None, "it renders kustomizations; any version from 1.27 on")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@functools.cache
def rendered() -> dict[str, list[Tree]]:
    """Folder below infra/kuberay -> its objects: every overlay, its jobs, and the base."""
    folders = ["base", *(f for o in OVERLAYS for f in (f"overlays/{o}", f"overlays/{o}/jobs"))]
    return {f: render(KUBERAY / f) for f in folders}


def of(objects: list[Tree], kind: str) -> list[Tree]:
    return [o for o in objects if o["kind"] == kind]


def clusters(objects: list[Tree]) -> Iterator[tuple[str, Tree]]:
    """(name, RayCluster spec) wherever one stands."""
    for o in objects:
        spec = {
            "RayCluster": lambda s: s,
            "RayJob": lambda s: s["rayClusterSpec"],
            "RayCronJob": lambda s: s["jobTemplate"]["rayClusterSpec"],
        }.get(o["kind"])
        if spec:
            yield f"{o['kind']}/{o['metadata']['name']}", spec(o["spec"])


def pods(objects: list[Tree]) -> Iterator[tuple[str, str, Tree]]:
    """(name, role, pod spec); role: head, a worker group's name, or submit."""
    for name, spec in clusters(objects):
        yield f"{name}/head", "head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}/{group['groupName']}", group["groupName"], group["template"]["spec"]
    for o in objects:
        if o["kind"] in ("RayJob", "RayCronJob"):
            job = o["spec"] if o["kind"] == "RayJob" else o["spec"]["jobTemplate"]
            yield f"{o['metadata']['name']}/submit", "submit", job["submitterPodTemplate"]["spec"]
        if o["kind"] == "CronJob":
            yield f"{o['metadata']['name']}/submit", "submit", o["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def everywhere(rendered: dict[str, list[Tree]]) -> list[tuple[str, str, Tree]]:
    """All pods of all overlays (base has no image yet)."""
    return [(f"{f}: {n}", role, p) for f, objects in rendered.items() if f != "base" for n, role, p in pods(objects)]


def containers(pod: Tree) -> list[Tree]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def size(text: str | float) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]
