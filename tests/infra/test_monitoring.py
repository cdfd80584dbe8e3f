"""The dashboard, the alerts and their page, against the metrics that a node really serves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import live_metrics
import pytest
import ray
import yaml
from conftest import need

from sar2eo_dist.pipeline.job import parser
from sar2eo_dist.pipeline.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "infra" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((HERE / "dashboard.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((HERE / "rules.yaml").read_text())
GROUPS: list[dict[str, Any]] = RULES["spec"]["groups"]
ALERTS: dict[str, dict[str, Any]] = {r["alert"]: r for g in GROUPS for r in g["rules"] if "alert" in r}
PAGE = (HERE / "BAD_NIGHT.md").read_text()
NAME = re.compile(r"\b(?:ray_[a-z0-9_]+|up)\b(?=\s*[\[{)\s=<>/*+-]|$)")
#: Ray's own metrics that a quiet node without a GPU does not serve: they stand in the dashboards that Ray brings along
TROUBLE = {"ray_memory_manager_worker_eviction_total", "ray_node_manager_unexpected_worker_failure_total"}
GPU = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gpu_power_milliwatts"}
#: Prometheus' own, of every target
PROMETHEUS = {"up"}


def panels() -> list[dict[str, Any]]:
    return [p for p in DASHBOARD["panels"] if p["type"] != "row"]


def expressions() -> dict[str, str]:
    """Every PromQL expression of dashboard and rules, by where it stands."""
    found = {f"{p['title']} {t['refId']}": t["expr"] for p in panels() for t in p["targets"]}
    return found | {r.get("alert") or r["record"]: r["expr"] for g in GROUPS for r in g["rules"]}


def names(expression: str) -> set[str]:
    """Metrics that an expression asks for; labels stand in braces or after by, on, ignoring."""
    bare = re.sub(r"\b(by|on|ignoring|without|group_left)\s*\([^)]*\)", " ", re.sub(r"\{[^}]*\}", " ", expression))
    return set(NAME.findall(bare))


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    need("promtool", found is not None, "install the package prometheus")
    return str(found)


def check(promtool: str, *args: str) -> None:
    done = subprocess.run([promtool, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_are_found_in_an_expression() -> None:
    text = 'sum by (run) (rate(ray_a_total{ray_b="x"}[5m])) / on (ray_c) group_left () ray_d - ray_e offset 15m or up{x="y"}'
    assert names(text) == {"ray_a_total", "ray_d", "ray_e", "up"}


def test_every_metric_that_is_asked_for_is_served(ray_session: None) -> None:
    served = {s.name for s in live_metrics.live()[1]}
    wanted = {n for e in expressions().values() for n in names(e)}
    assert len(wanted) > 30
    assert wanted - served - PROMETHEUS <= TROUBLE | GPU
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    known = "".join(f.read_text() for f in folder.glob("*_panels.py"))
    for name in (TROUBLE | GPU) & wanted:
        assert f"{name}{{" in known, f"Ray's own dashboards do not know {name}"


def test_every_metric_of_ours_is_shown(ray_session: None) -> None:
    shown = {n for p in panels() for t in p["targets"] for n in names(t["expr"])}
    ours = {f"ray_{n}{'_bucket' if m.kind == 'histogram' else ''}" for n, m in METRICS.items()}
    assert ours <= shown


def test_labels_that_are_asked_for_are_carried(ray_session: None) -> None:
    """A label that no series has makes an empty panel."""
    carried: dict[str, set[str]] = {}
    for s in live_metrics.live()[1]:
        carried.setdefault(s.name, set()).update(s.labels)
    for where, e in expressions().items():
        for name, inside in re.findall(r"(ray_\w+)\{([^}]*)\}", e):
            if name in carried:
                assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) <= carried[name], f"{where}: {name}"
        every = names(e)
        if len(every) == 1 and (have := carried.get(*every)):
            for by in re.findall(r"\bby \(([^)]*)\)", e):
                assert {b.strip() for b in by.split(",")} <= have | {"le"}, f"{where}: {every}"


def test_every_expression_is_promql(promtool: str, tmp_path: Path) -> None:
    filled = {w: e.replace("$run", ".*") for w, e in expressions().items()}
    assert not [w for w, e in filled.items() if "$" in e]
    rules = [{"record": f"x:{i}", "expr": e} for i, e in enumerate(filled.values())]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    check(promtool, "check", "rules", str(tmp_path / "all.yaml"))
    (tmp_path / "bad.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "x", "rules": [{"record": "y", "expr": "sum(("}]}]})
    )
    with pytest.raises(AssertionError):
        check(promtool, "check", "rules", str(tmp_path / "bad.yaml"))


def test_panels_fill_the_grid_and_none_lies_on_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for p in DASHBOARD["panels"]:
        at = p["gridPos"]
        assert at["x"] + at["w"] <= 24, p["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), p["title"]) == p["title"], f"{p['title']} lies on {taken[x, y]}"
    rows = [p for p in DASHBOARD["panels"] if p["type"] == "row"]
    assert all(r["gridPos"]["w"] == 24 for r in rows)
    assert len({p["id"] for p in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    high = max(y for _, y in taken) + 1
    assert len(taken) == 24 * high, "a gap in a row"


def test_the_dashboard_asks_the_chosen_prometheus() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert {"datasource", "run"} == {v["name"] for v in DASHBOARD["templating"]["list"]}
    assert {t["datasource"]["uid"] for p in panels() for t in p["targets"]} == {"${datasource}"}
    for p in panels():
        refs = [t["refId"] for t in p["targets"]]
        assert refs
        assert len(refs) == len(set(refs))
        assert p["fieldConfig"]["defaults"]["unit"]


def anchors() -> set[str]:
    heads = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in heads}


def test_every_alert_has_words_and_a_place_on_the_page() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule["annotations"]["summary"], name
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "BAD_NIGHT.md"
        assert anchor in anchors(), f"{name}: {anchor}"
        assert f"`{name}`" in PAGE, f"{name} is not explained"
    assert set(re.findall(r"`(Sar2eo\w+)`", PAGE)) == set(ALERTS)
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors()


def test_the_pages_commands_are_the_projects() -> None:
    """Each job exists and knows each option; each config key is one."""
    lines = re.findall(r"python (jobs/\w+\.py)([^`\n#;]*)", PAGE)
    assert len(lines) >= 4
    for file, rest in lines:
        assert (ROOT / file).is_file(), file
        if file in ("jobs/wait.py", "jobs/check.py"):
            continue
        parser(Path(file).stem, "").parse_args(rest.split())
    from sar2eo_dist.config import Config

    keys = set(re.findall(r"`((?:run|resources|translate|train|cca|cost)\.[a-z_.]+)(?:=\w+)?`", PAGE))
    assert len(keys) >= 8
    for key in keys:
        section, _, name = key.partition(".")
        part = getattr(Config(), section)
        assert hasattr(part, name), key


# A driver's labels are the same on all its gauges; values are by the minute (LONG: by the hour), as promtool writes them.
DRIVER = 'run="n", stage="translate", WorkerId="w"'
DONE, PLANNED, LOST, BEGUN = (
    f"ray_sar2eo_{n}{{{DRIVER}}}"
    for n in ("units_done", "units_planned", "quarantined_units", "run_started_timestamp_seconds")
)
RUNNING, COMPLETE, PARTIAL, FAILED, NEXT = (
    f'ray_sar2eo_run_status{{run="n", stage="translate", status="{status}", WorkerId="{driver}"}}'
    for status, driver in (("running", "w"), ("complete", "w"), ("partial", "w"), ("failed", "w"), ("running", "next"))
)
TRAIN = 'run="n", stage="train"'
STEP, DRIFT = 'ray_sar2eo_train_step{run="n", role="translate"}', 'ray_sar2eo_calibration_drift{run="n"}'
UNSAVED, BLOB = (f'ray_sar2eo_train_events_total{{run="n", event="{e}"}}' for e in ("checkpoint_failed", "blob"))
TILES, REJECTS = (f'ray_sar2eo_{n}_total{{run="n", sensor="s2"}}' for n in ("tiles", "rejects"))
WAIT, BUSY = (f'ray_sar2eo_device_{w}_seconds_total{{run="n", device="gpu"}}' for w in ("wait", "busy"))
FINISHED = 'ray_sar2eo_run_finished_timestamp_seconds{run="n", stage="basin"}'
RETRIES = 'ray_sar2eo_store_retries_total{run="n", error="SlowDown"}'
HEAD, WORKER = (f'up{{ray_io_node_type="{t}", ray_io_cluster="c"}}' for t in ("head", "worker"))
MEMORY, SPILLED = (f'ray_object_store_memory{{NodeAddress="a", Location="{x}"}}' for x in ("MMAP_SHM", "SPILLED"))
ROOM = 'ray_resources{NodeAddress="a", Name="object_store_memory", State="USED"}'
DISK, KILLED = (
    'ray_node_disk_utilization_percentage{ip="a"}',
    'ray_memory_manager_worker_eviction_total{SessionName="s"}',
)
TASKS, DRIVERS = (
    f'ray_node_manager_unexpected_worker_failure_total{{SessionName="s", Type="Raylet.Unexpected{t}Failure.Total"}}'
    for t in ("Task", "Driver")
)
Series = dict[str, str]
#: alert -> (when, series of a bad night, series of good ones)
NIGHTS: dict[str, tuple[str, Series, list[Series]]] = {
    "Sar2eoNoProgress": (
        "40m", {DONE: "1 2 3 4 4+0x100", PLANNED: "9+0x100", RUNNING: "1+0x100"},
        [
            {DONE: "1+0x22 2+0x16 3+0x60", PLANNED: "9+0x100", RUNNING: "1+0x100"},
            {DONE: "9+0x100", PLANNED: "9+0x100", RUNNING: "1+0x100"},  # all is done
            {DONE: "4+0x100", PLANNED: "9+0x100", RUNNING: "0+0x100"},  # this stage has ended, its driver lives
            {DONE: "_x25 4+0x100", PLANNED: "_x25 9+0x100", RUNNING: "_x25 1+0x100"},  # just begun
        ],
    ),
    "Sar2eoTrainingStands": ("40m", {STEP: "7+0x100"}, [{STEP: "7+1x100"}]),
    "Sar2eoUnitsQuarantined": ("10m", {LOST: "0 2 2 2"}, [{LOST: "0+0x60"}]),
    "Sar2eoRunFailed": (
        "10m", {FAILED: "0 0 1 1", RUNNING: "1 1 0 0"},
        [{FAILED: "0+0x60", COMPLETE: "1+0x60"}, {FAILED: "0 1 1", NEXT: "_x5 1+0x60"}],
    ),
    "Sar2eoRunPartial": ("10m", {PARTIAL: "0 0 1 1"}, [{PARTIAL: "0+0x60", COMPLETE: "1+0x60"}]),
    "Sar2eoDriverGone": (
        "10m", {RUNNING: "1 1 1 1"},
        [{RUNNING: "1 1 1 0", COMPLETE: "0 0 0 1"}, {RUNNING: "1+0x60"}, {RUNNING: "1 1 1 1", NEXT: "_x6 1+0x60"}],
    ),
    "Sar2eoHeadGone": ("10m", {HEAD: "1 1 0+0x60"}, [{HEAD: "1+0x60", WORKER: "0+0x60"}]),
    "Sar2eoCheckpointsFail": ("20m", {UNSAVED: "_x15 1+0x60"}, [{UNSAVED: "1+0x60"}, {BLOB: "_x15 1+0x60"}]),
    "Sar2eoStoreRetries": ("40m", {RETRIES: "0+30x60"}, [{RETRIES: "0+2x60"}, {RETRIES: "0x30 70+0x60"}]),
    "Sar2eoDeviceStarved": ("60m", {WAIT: "0+40x90", BUSY: "0+20x90"}, [{WAIT: "0+5x90", BUSY: "0+50x90"}]),
    "Sar2eoCalibrationDrift": ("10m", {DRIFT: "0.3 0.3"}, [{DRIFT: "0.05+0x60"}]),
    "Sar2eoSpilling": ("30m", {SPILLED: "0+1000000000x60"}, [{SPILLED: "50000000000+0x60"}]),
    "Sar2eoObjectStoreFull": (
        "30m", {MEMORY: "98+0x60", ROOM: "100+0x60"}, [{MEMORY: "60+0x60", SPILLED: "90+0x60", ROOM: "100+0x60"}],
    ),
    "Sar2eoDiskFull": ("10m", {DISK: "91+0x60"}, [{DISK: "60+0x60"}]),
    "Sar2eoOutOfMemory": ("20m", {KILLED: "_x15 1+0x60"}, [{KILLED: "3+0x60"}]),
    "Sar2eoWorkersDie": ("20m", {TASKS: "_x15 8+0x60"}, [{DRIVERS: "_x15 8+0x60"}, {TASKS: "8+0x60"}]),
}  # fmt: skip
LONG: dict[str, tuple[str, Series, list[Series]]] = {
    "Sar2eoRunLong": (
        "38h", {BEGUN: "0+0x60", RUNNING: "1+0x60"},
        [
            {BEGUN: "90000+0x60", RUNNING: "1+0x60"},
            {f"ray_sar2eo_run_started_timestamp_seconds{{{TRAIN}}}": "0+0x60",
             f'ray_sar2eo_run_status{{{TRAIN}, status="running"}}': "1+0x60"},
        ],
    ),
    "Sar2eoRunLate": ("195h", {FINISHED: "600 600"}, [{FINISHED: "_x24 86400 86400"}]),  # 8 days are 192 h
    "Sar2eoRejectsJump": (
        "72h", {TILES: "2000+0x24 _x24 4000+0x60", REJECTS: "1000+0x24 _x24 3000+0x60"},
        [
            {TILES: "2000+0x24 _x24 4000+0x60", REJECTS: "1000+0x24 _x24 2200+0x60"},
            {TILES: "2000+0x24 _x24 40+0x60", REJECTS: "1000+0x24 _x24 40+0x60"},  # few tiles
        ],
    ),
}  # fmt: skip


def suite(nights: dict[str, tuple[str, Series, list[Series]]], interval: str) -> dict[str, Any]:
    """promtool's unit tests: each alert on its bad night, and on each of its good ones."""
    every = [(a, w, bad, True) for a, (w, bad, _) in nights.items()]
    every += [(a, w, series, False) for a, (w, _, good) in nights.items() for series in good]
    tests = [
        {
            "name": f"{alert} {'fires' if fires else 'is silent'}: {series}",
            "interval": interval,
            "input_series": [{"series": k, "values": v} for k, v in series.items()],
            "promql_expr_test": [{
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})', "eval_time": when,
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }],
        }
        for alert, when, series, fires in every
    ]  # fmt: skip
    order = [g["name"] for g in GROUPS]  # else any: what records shares must come before what reads them
    return {"rule_files": ["rules.yaml"], "evaluation_interval": interval, "group_eval_order": order, "tests": tests}


def test_each_alert_fires_on_a_bad_night_and_on_no_good_one(promtool: str, tmp_path: Path) -> None:
    assert {*NIGHTS, *LONG} == set(ALERTS)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES["spec"]))
    for nights, interval in ((NIGHTS, "1m"), (LONG, "1h")):
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite(nights, interval)))
        check(promtool, "test", "rules", str(tmp_path / "suite.yaml"))


def test_the_component_brings_rules_scraping_and_dashboard(tmp_path: Path) -> None:
    need("kubectl", shutil.which("kubectl") is not None, "install kubectl")
    shutil.copytree(HERE, tmp_path / "monitoring")
    (tmp_path / "overlay").mkdir()
    text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\ncomponents: [../monitoring]\n"
    (tmp_path / "overlay" / "kustomization.yaml").write_text(text)
    made = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "overlay")], capture_output=True, text=True, check=True
    )
    objects = {o["kind"]: o for o in yaml.safe_load_all(made.stdout)}
    assert set(objects) == {"PrometheusRule", "PodMonitor", "ConfigMap"}
    assert json.loads(objects["ConfigMap"]["data"]["sar2eo.json"]) == DASHBOARD
    assert objects["PrometheusRule"]["spec"] == RULES["spec"]
    assert {o["metadata"]["namespace"] for o in objects.values()} == {"sar2eo"}
    monitor = objects["PodMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert [e["interval"] for e in monitor["podMetricsEndpoints"]] == [
        "15s"
    ]  # shorter than the 20 s a gauge outlives its driver
