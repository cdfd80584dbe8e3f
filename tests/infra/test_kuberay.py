"""The Kubernetes manifests: rendered, valid against KubeRay's and Kubernetes' own schemas, and what they promise."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import crd
import kubernetes_validate
import pytest
from conftest import need
from manifests import OVERLAYS, ROOT, VERBS, Tree, clusters, containers, everywhere, of, pods, rendered, size


@pytest.fixture(scope="module")
def crds() -> Path:
    folder = os.environ.get("SAR2EO_CRDS", "")
    need("crds", bool(folder) and Path(folder).is_dir(), f"KubeRay's definitions, SAR2EO_CRDS={folder!r}")
    return Path(folder)


def test_every_overlay_has_what_it_says() -> None:
    for o in OVERLAYS:
        standing, jobs = rendered()[f"overlays/{o}"], rendered()[f"overlays/{o}/jobs"]
        assert {j["metadata"]["name"] for j in of(jobs, "RayJob")} == VERBS
        assert {j["kind"] for j in jobs} == {"RayJob", "ConfigMap"}, "no job brings along what stands still"
        assert not of(standing, "RayJob"), "applying what stands still starts nothing"
        assert [len(of(standing, k)) for k in ("RayCluster", "RayCronJob", "CronJob", "Namespace")] == [1, 1, 1, 1]
        groups = [[g["groupName"] for g in s["workerGroupSpecs"]] for _, s in clusters(standing)]
        assert groups == [["cpu"] if o == "cpu" else ["cpu", "gpu"]] * 2


def test_custom_objects_are_valid_for_kuberay(crds: Path) -> None:
    for folder, objects in rendered().items():
        for o in objects:
            if o["apiVersion"] == "ray.io/v1":
                assert not crd.errors(crds, o), f"{folder} {o['kind']}/{o['metadata']['name']}"


def test_the_schema_check_refuses_what_an_api_server_would(crds: Path) -> None:
    job = of(rendered()["overlays/gpu/jobs"], "RayJob")[0]

    def broken(path: str, value: object) -> str:
        tree = copy.deepcopy(job)
        *parents, leaf = path.split(".")
        place: Any = tree
        for p in parents:
            place = place[int(p) if isinstance(place, list) else p]
        place[leaf] = value
        return " ".join(crd.errors(crds, tree))

    assert "backOffLimit" in broken("spec.backOffLimit", 1)
    assert "'2'" in broken("spec.backoffLimit", "2")
    assert "tolerationz" in broken("spec.rayClusterSpec.workerGroupSpecs.1.template.spec.tolerationz", [])
    assert "sizeLimits" in broken(
        "spec.rayClusterSpec.headGroupSpec.template.spec.volumes.0.emptyDir", {"sizeLimits": 1}
    )
    assert "managedBy" in broken("spec.managedBy", "somebody")
    assert "requires either BOTH" in broken("spec.deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}})
    both = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}
    rule = {"deletionRules": [{"policy": "DeleteSelf", "condition": both}]}
    assert "cannot be used together" in broken("spec.deletionStrategy", rule)
    assert broken("spec.backoffLimit", 3) == ""


def test_core_objects_are_valid_for_kubernetes() -> None:
    core = {json.dumps(o): o for objects in rendered().values() for o in objects if o["apiVersion"] != "ray.io/v1"}
    assert {o["kind"] for o in core.values()} >= {
        "Namespace",
        "ServiceAccount",
        "NetworkPolicy",
        "ResourceQuota",
        "CronJob",
    }
    for o in core.values():
        kubernetes_validate.validate(o, "1.30", strict=True)
    cron = copy.deepcopy(of(rendered()["overlays/cpu"], "CronJob")[0])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(cron | {"spec": cron["spec"] | {"shedule": "x"}}, "1.30", strict=True)


def test_what_the_operator_itself_refuses() -> None:
    """Checks that KubeRay makes in code, not in the schema."""
    ray = re.search(r"^ray==(.+)$", (ROOT / "infra/constraints.txt").read_text(), re.MULTILINE)
    assert ray
    for objects in rendered().values():
        for name, spec in clusters(objects):
            assert spec["rayVersion"] == ray[1], f"{name}: the image's Ray"
            assert spec["authOptions"] == {"mode": "token"}, name
            assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", f"{name}: no work on the head"
            for group in spec["workerGroupSpecs"]:
                assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], name
                assert "labels" not in group["rayStartParams"], name
            if spec["enableInTreeAutoscaling"]:
                assert spec["autoscalerOptions"]["version"] == "v2", name
                assert all(p["restartPolicy"] == "Never" for _, role, p in pods(objects) if role != "submit"), name
        for o in of(objects, "RayJob") + [{**c, "spec": c["spec"]["jobTemplate"]} for c in of(objects, "RayCronJob")]:
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", o["metadata"]["name"])
            assert len(o["metadata"]["name"]) <= 47
            assert o["spec"]["shutdownAfterJobFinishes"], "a suspended job, and a TTL, want it"
            assert o["spec"]["activeDeadlineSeconds"] > o["spec"]["preRunningDeadlineSeconds"] > 0


def test_no_pod_is_root_privileged_or_without_limits() -> None:
    seen = everywhere(rendered())
    # standing: 2 clusters of head and cpu, 2 submitters; 7 jobs of head, cpu, submitter; gpu: 2 clusters, 5 jobs
    assert len(seen) == 3 * (2 * 2 + 2 + 7 * 3) + 2 * (2 + 5)
    for name, role, pod in seen:
        assert pod["automountServiceAccountToken"] is (role == "head"), (
            f"{name}: only the autoscaler asks the API server"
        )
        assert pod["serviceAccountName"] == ("sar2eo-head" if role == "head" else "sar2eo"), name
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod), name
        assert {next(k for k in v if k != "name") for v in pod["volumes"]} <= {"emptyDir", "configMap", "secret"}, name
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (1000, 100), name
        for c in containers(pod):
            confined(name, c["securityContext"])
            asked, most = c["resources"]["requests"], c["resources"]["limits"]
            assert asked["memory"] == most["memory"], f"{name}: memory that is lent is memory that is killed for"
            assert {"cpu", "memory", "ephemeral-storage"} <= set(asked) & set(most), name
            assert re.fullmatch(r"\S+(:[\w][\w.-]+|@sha256:[0-9a-f]{64})", c["image"]), f"{name}: {c['image']}"
            assert not c["image"].endswith(":latest"), name
            assert ("-gpu" in c["image"]) == (role == "gpu"), name
    for objects in rendered().values():
        for name, spec in clusters(objects):
            confined(name, spec["autoscalerOptions"]["securityContext"])
            assert set(spec["autoscalerOptions"]["resources"]["limits"]) == {"cpu", "memory"}, name
        for n in of(objects, "Namespace"):
            assert n["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def confined(name: str, context: Tree) -> None:
    assert context["runAsNonRoot"] is True, name
    assert context["runAsUser"] == 1000, name
    assert context["allowPrivilegeEscalation"] is False, name
    assert context["readOnlyRootFilesystem"] is True, name
    assert context["capabilities"] == {"drop": ["ALL"]}, name
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert not context.get("privileged"), name


def test_disk_and_shared_memory_fit_in_what_the_pod_asks_for() -> None:
    for name, role, pod in everywhere(rendered()):
        volumes = {v["name"]: v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v}
        disk = sum(size(v["sizeLimit"]) for v in volumes.values() if v.get("medium") != "Memory")
        main = pod["containers"][0]
        assert disk <= size(main["resources"]["limits"]["ephemeral-storage"]), name
        mounts = {m["mountPath"]: m["name"] for m in main["volumeMounts"]}
        assert {"/tmp"} <= set(mounts), f"{name}: a read-only root wants a place to write"
        if role != "submit":
            assert volumes[mounts["/dev/shm"]]["medium"] == "Memory", name
            assert volumes[mounts["/tmp/ray"]] == volumes["ray-logs"], (
                f"{name}: KubeRay would add a second, unbounded one"
            )
    for objects in rendered().values():
        for name, spec in clusters(objects):
            for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
                pod = group["template"]["spec"]
                store = float(group["rayStartParams"]["object-store-memory"])
                shm = next(size(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v["name"] == "shared-mem")
                assert store < shm, f"{name}: a full object store would be a full /dev/shm"
                assert store + 1.5 * 2**30 < size(pod["containers"][0]["resources"]["limits"]["memory"]), name


def test_gpu_nodes_are_for_gpu_workers_and_spot_nodes_for_them_alone() -> None:
    spot_labels = {"karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType", "cloud.google.com/gke-spot"}
    for name, role, pod in everywhere(rendered()):
        tolerated = {t["key"] for t in pod.get("tolerations", [])}
        gpus = [c["resources"]["limits"].get("nvidia.com/gpu", "0") for c in containers(pod)]
        affinity = pod.get("affinity", {}).get("nodeAffinity", {})
        if role == "gpu":
            assert gpus == ["1"], name
            assert pod["nodeSelector"] == {"sar2eo/pool": "gpu"}, name
        else:
            assert set(gpus) == {"0"}, name
            assert not tolerated, f"{name}: a tainted node must keep it off"
        on_spot = role == "gpu" and name.startswith("overlays/spot")
        if role == "gpu":
            assert tolerated == {"nvidia.com/gpu"} | (
                {"cloud.google.com/gke-spot", "sar2eo/spot"} if on_spot else set()
            )
        if on_spot:
            liked = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
            assert {e["key"] for w in liked for e in w["preference"]["matchExpressions"]} == spot_labels
            assert "requiredDuringSchedulingIgnoredDuringExecution" not in affinity, f"{name}: no spot node, no run"
            assert pod["terminationGracePeriodSeconds"] <= 25
        elif role != "submit":
            (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            assert {e["key"]: e["operator"] for e in term["matchExpressions"]} == dict.fromkeys(spot_labels, "NotIn"), (
                name
            )


def test_runs_have_workers_from_the_start_and_only_verbs_with_networks_have_gpus() -> None:
    for o in ("gpu", "spot"):
        found = {
            j["metadata"]["name"]: {
                g["groupName"]: g["minReplicas"] for g in j["spec"]["rayClusterSpec"]["workerGroupSpecs"]
            }
            for j in of(rendered()[f"overlays/{o}/jobs"], "RayJob")
        }
        assert {v for v, groups in found.items() if groups.get("gpu", 0) >= 1} == VERBS - {"shard", "grade"}
        assert all(groups["cpu"] >= 1 for groups in found.values())
        quota = of(rendered()[f"overlays/{o}"], "ResourceQuota")[0]["spec"]["hard"]["requests.nvidia.com/gpu"]
        most = [
            g["maxReplicas"] for _, s in clusters(rendered()[f"overlays/{o}/jobs"]) for g in s["workerGroupSpecs"][1:]
        ]
        assert max(most) <= int(quota)
