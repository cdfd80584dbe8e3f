"""The manifests in use: commands, configs, schedules, who reaches whom, the script that runs a verb, the guide's commands."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from cronsim import CronSim
from manifests import KUBERAY, OVERLAYS, ROOT, VERBS, Tree, containers, everywhere, of, render, rendered

from sar2eo_dist.config import Config, load
from sar2eo_dist.pipeline.job import parser
from sar2eo_dist.pipeline.wait import entry


def commands(objects: list[Tree]) -> list[str]:
    """Every command line with a jobs/*.py in it."""
    found = [o["spec"]["entrypoint"] for o in of(objects, "RayJob")]
    found += [o["spec"]["jobTemplate"]["entrypoint"] for o in of(objects, "RayCronJob")]
    for _, _, pod in everywhere({"": objects}):
        for c in containers(pod):
            if c.get("command", [""])[0] == "python":
                found.append(shlex.join(c["command"]))
            found += re.findall(r"python jobs/[^&\n]*(?= &&)", c.get("command", ["", "", ""])[-1])
    return found


def test_commands_name_jobs_that_exist_with_options_that_parse() -> None:
    seen = set()
    for folder, objects in rendered().items():
        if folder == "base":
            continue
        configs = {k for m in of(objects, "ConfigMap") for k in m["data"] if k.endswith(".yaml")}
        for command in commands(objects):
            python, job, *args = shlex.split(command)
            assert (python, (ROOT / job).is_file()) == ("python", True), command
            config = parser(Path(job).stem, "").parse_args(args).config
            assert config.removeprefix("/etc/sar2eo/") in configs, command
            told = entry(command)
            assert told, command
            assert told.name == Path(job).stem, "jobs/wait.py would not know which summary to read"
            seen.add(Path(job).stem)
    assert seen == VERBS | {"check"}


def test_every_submitter_checks_the_config_that_it_submits() -> None:
    for o in OVERLAYS:
        for objects in (rendered()[f"overlays/{o}"], rendered()[f"overlays/{o}/jobs"]):
            for job in of(objects, "RayJob") + [
                {**c, "spec": c["spec"]["jobTemplate"]} for c in of(objects, "RayCronJob")
            ]:
                (check,) = job["spec"]["submitterPodTemplate"]["spec"]["initContainers"]
                assert check["command"][-1] == shlex.split(job["spec"]["entrypoint"])[-1], job["metadata"]["name"]
            for cron in of(objects, "CronJob"):
                pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
                script = pod["containers"][0]["command"][-1]
                assert f"python jobs/basin.py --config {pod['initContainers'][0]['command'][-1]} &&" in script
                assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_configs_are_those_of_the_project_with_uris_of_a_bucket() -> None:
    data = next(
        m["data"] for m in of(rendered()["overlays/cpu"], "ConfigMap") if m["metadata"]["name"] == "sar2eo-config"
    )
    assert set(data) == {"amazon.yaml", "basin.yaml"}

    def without_uris(cfg: Config) -> Tree:
        tree = cfg.model_dump(mode="json", exclude={"cost", "resources"})  # a site's own
        for key in ("s1", "s2", "scenes"):
            tree["data"][key] = ""
        return tree | {"run": tree["run"] | {"out": ""}}

    for name in data:
        site = load(str(KUBERAY / "site" / name))
        assert site.run.out.startswith("s3://"), "a pod's own disk ends with the pod"
        assert without_uris(site) == without_uris(load(str(ROOT / "jobs/configs" / name))), name


def test_schedules_leave_room_for_every_attempt_and_start_suspended() -> None:
    for o in OVERLAYS:
        objects = rendered()[f"overlays/{o}"]
        (ray,), (plain,) = of(objects, "RayCronJob"), of(objects, "CronJob")
        assert (ray["spec"]["suspend"], plain["spec"]["suspend"]) == (True, True), "two schedules of one run folder"
        assert ray["spec"]["timeZone"] == plain["spec"]["timeZone"] == "Etc/UTC"
        for spec, job in (
            (ray["spec"], ray["spec"]["jobTemplate"]),
            (plain["spec"], plain["spec"]["jobTemplate"]["spec"]),
        ):
            times = CronSim(spec["schedule"], dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
            first, second = next(times), next(times)
            attempts = job["activeDeadlineSeconds"] * (job["backoffLimit"] + 1)
            assert dt.timedelta(seconds=attempts) < second - first
        assert plain["spec"]["concurrencyPolicy"] == "Forbid"


def test_no_secret_lies_in_the_files() -> None:
    for objects in rendered().values():
        assert not of(objects, "Secret")
        for m in of(objects, "ConfigMap"):
            assert not [k for k in m["data"] if re.search("SECRET|PASSWORD|TOKEN|ACCESS_KEY", k)]
    text = "\n".join(p.read_text() for p in KUBERAY.rglob("*") if p.is_file())
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|aws_secret_access_key", text, re.IGNORECASE)


# who reaches whom -----------------------------------------------------------------------------------------------------

OURS, SYSTEM = {"kubernetes.io/metadata.name": "sar2eo"}, {"kubernetes.io/metadata.name": "kube-system"}
HEAD = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
WORKER = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}
SUBMIT = {"sar2eo/role": "submit"}


def selects(selector: Tree, labels: Tree) -> bool:
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())


def peer(rule: Tree, labels: Tree, namespace: Tree, address: str) -> bool:
    if "ipBlock" in rule:
        block = rule["ipBlock"]
        inside = [
            ipaddress.ip_address(address) in ipaddress.ip_network(n) for n in [block["cidr"], *block.get("except", [])]
        ]
        return inside[0] and not any(inside[1:])
    here = namespace == OURS if "namespaceSelector" not in rule else selects(rule["namespaceSelector"], namespace)
    return here and bool(labels) and selects(rule.get("podSelector", {}), labels)


def allowed(
    policies: list[Tree], way: str, pod: Tree, port: int, labels: Tree, namespace: Tree, address: str = "10.1.2.3"
) -> bool:
    """Whether a pod of ours may talk to (Egress) or be reached from (Ingress) a peer: policies add up, no policy allows all."""
    mine = [p["spec"] for p in policies if selects(p["spec"]["podSelector"], pod) and way in p["spec"]["policyTypes"]]
    return not mine or any(
        (side not in rule or any(peer(r, labels, namespace, address) for r in rule[side]))
        and ("ports" not in rule or port in [p["port"] for p in rule["ports"]])
        for spec in mine
        for rule in spec.get(way.lower(), [])
        for side in (["from"] if way == "Ingress" else ["to"])
    )


def test_only_what_is_named_reaches_anything() -> None:
    policies = of(rendered()["overlays/gpu"], "NetworkPolicy")

    def into(pod: Tree, port: int, labels: Tree, namespace: Tree) -> bool:
        return allowed(policies, "Ingress", pod, port, labels, namespace)

    def out(pod: Tree, port: int, labels: Tree, namespace: Tree, address: str = "10.1.2.3") -> bool:
        return allowed(policies, "Egress", pod, port, labels, namespace, address)

    operator = {"app.kubernetes.io/component": "kuberay-operator"}
    assert into(HEAD, 8265, operator, {"kubernetes.io/metadata.name": "kuberay-system"})
    assert into(HEAD, 8265, SUBMIT, OURS)
    assert out(SUBMIT, 8265, HEAD, OURS)
    assert into(WORKER, 8080, {"app": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})
    for a, b in ((HEAD, WORKER), (WORKER, HEAD), (WORKER, WORKER)):
        assert out(a, 40123, b, OURS)
        assert into(b, 40123, a, OURS)
    for pod in (HEAD, WORKER, SUBMIT):
        assert out(pod, 53, {"k8s-app": "kube-dns"}, SYSTEM)
        assert out(pod, 443, {}, {}, "52.219.0.1"), "the store"
        assert not out(pod, 80, {}, {}, "169.254.169.254"), "the machine's own credentials"
        assert pod is HEAD or not out(pod, 443, {}, {}, "169.254.169.254")
        assert not out(pod, 22, {}, {}, "52.219.0.1")
        assert not into(pod, 8265, {"app": "somebody"}, {"kubernetes.io/metadata.name": "default"})
    assert out(HEAD, 6443, {}, {}), "the autoscaler's API server"
    assert not out(WORKER, 6443, {}, {})
    assert not into(HEAD, 6379, SUBMIT, OURS)
    assert not into(WORKER, 8265, SUBMIT, OURS)
    assert not into(SUBMIT, 8080, WORKER, OURS)


# variants, the script, the guide --------------------------------------------------------------------------------------


def copied(tmp_path: Path) -> Path:
    """The manifests in a folder of the test's own, to be edited as a user would."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    return tmp_path / "kuberay"


def test_with_kueue_jobs_wait_in_a_queue_and_keep_their_size(tmp_path: Path) -> None:
    overlay = copied(tmp_path) / "overlays/gpu/jobs"
    with (overlay / "kustomization.yaml").open("a") as f:
        f.write("  - ../../../components/kueue\n")
    jobs = of(render(overlay), "RayJob")
    assert {j["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for j in jobs} == {"sar2eo"}
    assert {j["metadata"]["labels"]["sar2eo/verb"] for j in jobs} == VERBS
    assert all(j["spec"]["suspend"] and not j["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] for j in jobs)


def test_with_monitoring_prometheus_finds_the_port_and_passes_the_network_policy(tmp_path: Path) -> None:
    overlay = copied(tmp_path) / "overlays/cpu"
    shutil.copytree(ROOT / "infra/monitoring", tmp_path / "monitoring")
    with (overlay / "kustomization.yaml").open("a") as f:
        f.write("  - ../../../monitoring\n")
    objects = render(overlay)
    (monitor,) = of(objects, "PodMonitor")
    (policy,) = [p for p in of(objects, "NetworkPolicy") if p["metadata"]["name"] == "metrics"]
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    names = {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]}
    for _, role, pod in everywhere({"overlays/cpu": objects}):
        if role != "submit":
            ports = {p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]}
            assert {ports[n] for n in names} <= {p["port"] for p in policy["spec"]["ingress"][0]["ports"]}


def test_images_by_digest_and_a_schedule_let_go_reach_every_pod(tmp_path: Path) -> None:
    site = copied(tmp_path) / "site/kustomization.yaml"
    digest = "sha256:" + "0123456789abcdef" * 4
    text = (
        site.read_text()
        .replace("newTag: 0.1.0-cpu", f"digest: {digest}")
        .replace("newTag: 0.1.0-gpu", f"digest: {digest}")
    )
    site.write_text(text.replace("path: /spec/suspend, value: true", "path: /spec/suspend, value: false", 1))
    objects = render(tmp_path / "kuberay/overlays/spot")
    images = {c["image"] for _, _, pod in everywhere({"overlays/spot": objects}) for c in containers(pod)}
    assert images == {f"registry.example.com/sar2eo-dist@{digest}"}
    assert of(objects, "RayCronJob")[0]["spec"]["suspend"] is False
    assert of(objects, "CronJob")[0]["spec"]["suspend"] is True


FAKE = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  *jobDeploymentStatus*) n=$(cat "$CALLS" | grep -c jobDeploymentStatus); sed -n "${n}p" "$STATES" ;;
  *status.jobStatus*) cat "$RESULT" ;;
  *status.reason*) echo AppFailed ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "result", "code"),
    [
        (["", "Initializing", "Running", "Complete"], "SUCCEEDED", 0),
        (["Running", "Retrying", "Initializing", "Running", "Complete"], "SUCCEEDED", 0),
        (["Running", "Failed"], "FAILED", 1),
        (["Running", "Complete"], "STOPPED", 1),
    ],
)
def test_the_script_creates_lets_go_follows_and_judges(
    tmp_path: Path, states: list[str], result: str, code: int
) -> None:
    fake = tmp_path / "kubectl"
    fake.write_text(FAKE)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    (tmp_path / "result").write_text(result)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "STATES": str(tmp_path / "states"),
        "RESULT": str(tmp_path / "result"), "POLL_S": "0",
    }  # fmt: skip
    done = subprocess.run(
        [KUBERAY / "run.sh", "gpu", "translate"], env=env, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "delete rayjob translate" in calls[0]
    assert re.search(r"create -k \S+overlays/gpu/jobs -l sar2eo/verb=translate", calls[1])
    assert '{"spec":{"suspend":false}}' in calls[2]
    assert sum("logs --follow" in c for c in calls) == states.count("Running")


def test_the_script_refuses_what_is_no_overlay(tmp_path: Path) -> None:
    done = subprocess.run([KUBERAY / "run.sh", "tpu", "translate"], capture_output=True, text=True, check=False)
    assert (done.returncode, "run.sh OVERLAY VERB" in done.stderr) == (2, True)


def test_the_guide_names_what_exists() -> None:
    text = (ROOT / "infra/README.md").read_text()
    for path in re.findall(r"(?<![\w/.:-])((?:infra|jobs|tests)/[\w./-]+\w)", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "infra" / link).exists(), link
    gates = {
        g["name"]: g["enabled"] for g in yaml.safe_load((KUBERAY / "operator-values.yaml").read_text())["featureGates"]
    }
    assert gates["RayCronJob"] is True
    assert "--version 1.7.0" in text
