"""tests/bench/models.py, the script of `make gpu`: run for real, on a network so small that its speed says nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "models.py"
FIGURES = ("seconds", "first_seconds", "memory_bytes", "macs", "samples_per_s", "tflops", "of_float32", "of_bfloat16")
TINY = {"device": "cpu", "preset": "tiny", "window": 32, "batch": 1, "reference": "/nowhere/at/all.pt"}
MACHINE = {
    "device": "a machine",
    "torch": "2",
    "threads": 1,
    "gemm_side": 8,
    "gemm_tflops": {"float32": 1, "bfloat16": 2},
}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_models", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_on_a_bare_torch_machine(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("ray", "zarr", "pydantic"):  # whoever imports one of them dies
        (bare / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    out = tmp_path / "speed.json"
    command = [sys.executable, str(SCRIPT), "--preset", "tiny", "--window", "32", "--repeat", "1", "--out", str(out)]
    command += ["--models", "restormer", "--tasks", "forward", "--configurations", "options off,bfloat16"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(bare)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", timeout=120)

    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert {"date", "device", "torch", "cpus", "threads", "command"} <= report.keys()
    assert all(rate > 0 for rate in report["gemm_tflops"].values())
    off, half = report["rows"]
    for row in (off, half):
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in (*FIGURES, "km2_per_s", "speedup")), row
        assert row["tflops"] == pytest.approx(2 * row["macs"] / row["seconds"] / 1e12)
        assert row["km2_per_s"] == pytest.approx(0.32**2 / row["seconds"])
        assert row["memory_bytes"] > 50e6  # torch alone takes more
    assert 10e6 < off["macs"] < 20_000 * 32**2
    assert (off["speedup"], off["max_error"], off["rms_error"]) == (1.0, 0.0, 0.0)
    assert 0.05 < off["products_share"] < 1
    assert 1e-4 < half["rms_error"] < half["max_error"] < 0.1  # bfloat16 has 8 bits
    assert "restormer, forward, bfloat16 ..." in done.stderr
    assert "times as fast" in done.stdout


def test_a_training_step_is_measured(script: ModuleType) -> None:
    found = script.network({"model": "pix2pixhd", "task": script.STEP, "configuration": script.OFF, **TINY})
    assert found.keys() == {"seconds", "first_seconds", "memory_bytes", "products_share"}
    assert all(math.isfinite(x) and x > 0 for x in found.values())


def test_an_extractor_without_its_package_is_skipped_by_name(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    for model, package in (("inception", "torchvision"), ("efficientnet_lite0", "efficientnet_lite_pytorch")):
        assert package in script.features({"model": model, **TINY})["skipped"]


def test_a_process_that_dies_becomes_a_row(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert script.ask(model="restormer", task=script.STEP)["error"].startswith("process ended with 1")


def test_the_others_go_on_after_a_failure(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {script.OFF: [4.0, 3.0], "bfloat16": [1.0, 1.5]}

    def ask(**spec: Any) -> dict[str, Any]:
        if spec["task"] == "machine":
            return {**MACHINE, "macs": {"restormer": {script.FORWARD: 5e11}}}
        left = seconds.get(spec["configuration"])
        if not left:
            return {"error": "out of memory"}
        return {"seconds": left.pop(0), "first_seconds": 9.0, "memory_bytes": 2**30}

    monkeypatch.setattr(script, "ask", ask)
    monkeypatch.setattr(sys, "argv", ["models.py", "--models", "restormer", "--tasks", "forward"])
    assert script.main() == 1
    lines = capsys.readouterr().out.splitlines()
    off, half = (next(x.split() for x in lines if name in x) for name in (script.OFF, "bfloat16  "))
    # ms, samples/s, km2/s of 256 px at 10 m, TFLOP/s, shares of 1 and 2 TFLOP/s, GiB, times as fast; the best round counts
    assert off[4:] == ["3000.0", "0.333", "2.185", "0.333", "33", "17", "1.00", "1.00"]
    assert half[3:] == ["1000.0", "1.000", "6.554", "1", "100", "50", "1.00", "3.00"]
    assert next(x for x in lines if "forward  float32" in x).endswith("out of memory")


def test_the_share_of_products_counts_no_other_layer(script: ModuleType) -> None:
    products = ("mkldnn_convolution", "convolution_backward", "bmm", "mm", "addmm", "baddbmm", "_slow_conv2d_forward")
    others = ("native_group_norm", "copy_", "gelu", "_softmax", "mul", "add_", "reflection_pad2d")
    assert all(script.PRODUCTS.match(f"aten::{name}") for name in products)
    assert not any(script.PRODUCTS.match(f"aten::{name}") for name in others)


def test_no_gpu_is_said_and_ends_with_2(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(script, "ask", lambda **spec: script.machine(spec))
    monkeypatch.setattr(sys, "argv", ["models.py", "--device", "cuda"])
    assert script.main() == 2
    assert "sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [("--models", "unet"), ("--batch", "0"), ("--configurations", "fast")])
def test_bad_arguments_end_with_2(
    bad: tuple[str, str], script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["models.py", *bad])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert bad[0] in capsys.readouterr().err
