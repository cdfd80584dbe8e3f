"""Both translators and the feature extractors, measured: forward pass and training step, every speed option beside none.

    python tests/bench/models.py --device cuda --out gpu.json        (make gpu; the CPU's turn is part of make bench)

Needs torch and numpy, no installation, and imports neither ray, zarr nor pydantic. "options off" is the network as built:
eager, float32 (TF32 off), NCHW. Every measurement has a process of its own, because keeping the heap changes a whole process
and peaks of memory stay apart; configurations alternate, and the best of all rounds counts. Exit code 1: some row has "error".

A row: seconds (a call), first_seconds (the first: compilation), samples_per_s, km2_per_s (forward; 10 m pixels), tflops (2 x
multiply-adds of convolutions and matrix products, see `cost`), of_float32, of_bfloat16 (shares of the matrix product rate of
this run), memory_bytes (GPU: largest sum of tensors; CPU: largest resident size), speedup over "options off", max_error and
rms_error of the output against it (shares of its standard deviation; same seed, untrained), products_share (CPU, options
off: convolutions and matrix products in the wall time of one profiled call). What does not apply is null.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MODELS, EXTRACTORS = ("pix2pixhd", "restormer"), ("efficientnet_lite0", "inception")
FORWARD, STEP, FEATURES = TASKS = ("forward", "training step", "features")
OFF = "options off"
#: name -> (speed.apply's precision and compile, None: not applied; whether float32 products may use TF32)
CONFIGURATIONS: dict[str, tuple[tuple[str, bool] | None, bool]] = {
    OFF: (None, False),
    "options off + TF32": (None, True),  # torch's own default for convolutions on a GPU
    "float32": (("float32", False), False),
    "float32 + compile": (("float32", True), False),
    "bfloat16": (("bfloat16", False), False),
    "bfloat16 + compile": (("bfloat16", True), False),
}
DEFAULT = {"cpu": (OFF, "float32", "bfloat16"), "cuda": tuple(CONFIGURATIONS)}
BATCH = {"cpu": {FORWARD: 1, STEP: 1, FEATURES: 8}, "cuda": {FORWARD: 8, STEP: 4, FEATURES: 64}}
GEMM_SIDE = {"cpu": 2048, "cuda": 4096}
SLOW = 10.0  # seconds; a call that takes longer is not repeated within its process
PRODUCTS = re.compile(r"aten::(\w*conv\w*|(add|badd)?b?mm|mkldnn_linear)$")
Spec = dict[str, Any]


def timed(call: Callable[[], object], device: str, rounds: int = 3) -> Spec:
    """Seconds of the first call and of the best later one (GPU: by its own clock, mean of a block), and peak of memory."""
    import torch

    def once() -> float:
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    first = once()
    if device == "cpu":
        best = min(once() for _ in range(1 if first > SLOW else rounds))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"seconds": best, "first_seconds": first, "memory_bytes": peak}
    block, best = max(3, min(1000, int(0.3 / min(once() for _ in range(3))))), float("inf")
    event: Any = torch.cuda.Event
    for _ in range(rounds):
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        for _ in range(block):
            call()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / block)
    return {"seconds": best, "first_seconds": first, "memory_bytes": torch.cuda.max_memory_allocated()}


def machine(spec: Spec) -> Spec:
    """Device, versions, rate of a square matrix product by precision in TFLOP/s, multiply-adds of a window by task."""
    import torch

    from sar2eo_dist.models import cost

    device = spec["device"]
    if device == "cuda" and not torch.cuda.is_available():
        return {"error": f"--device cuda: torch {torch.__version__} sees no GPU: install a CUDA build or use the CPU"}
    side, rates = GEMM_SIDE[device], {}
    for name in ("float32", "bfloat16", *(["tf32"] if device == "cuda" else [])):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, name, torch.float32)) for _ in range(2))
        rates[name] = 2 * side**3 / timed(lambda a=a, b=b: a @ b, device)["seconds"] / 1e12  # type: ignore[misc]
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    name = torch.cuda.get_device_name() if device == "cuda" else cpu[1] if cpu else "CPU"
    about = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    about |= {"threads": torch.get_num_threads(), "gemm_side": side, "gemm_tflops": rates}
    cases, side = {m: cost.Case(m, {"preset": spec["preset"]}) for m in spec["models"]}, spec["window"]
    count = {m: {task: cost.macs(c, side, task == STEP) for task in (FORWARD, STEP)} for m, c in cases.items()}
    return {**about, "macs": count}


def network(spec: Spec) -> Spec:
    """Forward pass or training step of one configuration."""
    import torch
    from torch.autograd.profiler import profile

    from sar2eo_dist import models
    from sar2eo_dist.models import speed

    device, task, options, off = spec["device"], spec["task"], {"preset": spec["preset"]}, spec["configuration"] == OFF
    applied, tf32 = CONFIGURATIONS[spec["configuration"]]
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if applied and device == "cpu":
        speed.keep_heap()
    torch.manual_seed(0)
    module: Any = models.translator(spec["model"])
    net = module.build(options, 3, 3).to(device)
    shape = (spec["batch"], 3, spec["window"], spec["window"])
    source, target = ((torch.rand(shape) * 2 - 1).to(device) for _ in range(2))
    valid = torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool, device=device)
    if task == STEP:
        trainer = module.Trainer(net, options, 1e-4, 1000)
        if applied:
            trainer.accelerate(*applied)
    elif applied:
        speed.apply(net, *applied)
    net.train(task == STEP)

    def call() -> Any:
        if task == STEP:
            return trainer.step(0, source, target, valid)
        with torch.no_grad():
            return net(source)

    found = timed(call, device, 2 if task == STEP else 3)
    if task == FORWARD:
        y = call().cpu()
        if off:
            torch.save(y, spec["reference"])
        if Path(spec["reference"]).exists():  # else "options off" failed, or was not asked for
            wanted = torch.load(spec["reference"], weights_only=True)
            error = (y - wanted).abs() / wanted.std()
            found |= {"max_error": float(error.max()), "rms_error": float(error.square().mean().sqrt())}
    if off and device == "cpu":
        with profile() as record:
            begin = time.perf_counter()
            call()
            wall = time.perf_counter() - begin
        products = (e.self_cpu_time_total for e in record.key_averages() if PRODUCTS.match(e.key))
        found["products_share"] = sum(products) / 1e6 / wall
    return found


def features(spec: Spec) -> Spec:
    """A feature extractor on 8-bit images: exact float32. Inception's weights are random here: they cost the same."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sar2eo_dist.errors import ConfigError
    from sar2eo_dist.models import extractors, inception

    class Untrained(extractors.Network):
        score_name, dims, preprocessing = "none", 1008, "as inception"

        def __init__(self) -> None:
            super().__init__()
            self.net = inception.flat()

        def forward(self, images: torch.Tensor) -> Any:
            x = torch.nn.functional.interpolate(images.float() / 255, (299, 299), mode="bilinear", align_corners=False)
            return self.net(2 * x - 1)

    name, device = spec["model"], spec["device"]
    try:
        mine = extractors.Extractor(name, Untrained(), device) if name == "inception" else None
        extractor = mine or extractors.extractor(name, device=device)
    except (ImportError, ConfigError) as e:
        return {"skipped": str(e)}
    images = torch.randint(0, 256, (spec["batch"], 3, spec["window"], spec["window"]), dtype=torch.uint8).numpy()
    found = timed(lambda: extractor.features(images), device)
    with FlopCounterMode(display=False) as counter:
        extractor.features(images)
    return {**found, "macs": counter.get_total_flops() // 2 // spec["batch"]}


def ask(**spec: Any) -> Spec:
    """What a process of its own finds; {"error": why} where it is killed. This one has no torch, so that it weighs nothing."""
    print(", ".join(spec[k] for k in ("model", "task", "configuration") if k in spec), "...", file=sys.stderr)
    run = subprocess.run([sys.executable, __file__, "--one", json.dumps(spec)], capture_output=True, text=True)
    last = (run.stdout.splitlines() or [""])[-1]
    if last.startswith("{"):
        return dict(json.loads(last))
    why = (run.stderr.strip() or "it said nothing; out of memory?").splitlines()[-1][:300]
    return {"error": f"process ended with {run.returncode}: {why}"}


def measure(args: argparse.Namespace, report: Spec, folder: str) -> None:
    plan = [(m, t, c) for m in args.models for t in args.tasks if t != FEATURES for c in args.configurations]
    plan += [(name, FEATURES, "float32, exact") for name in EXTRACTORS if FEATURES in args.tasks]
    rows: dict[tuple[str, str, str], Spec] = {}
    for model, task, configuration in plan * args.repeat:
        if (before := rows.get(key := (model, task, configuration), {})).keys() & {"error", "skipped"}:
            continue
        batch = args.batch or BATCH[args.device][task]
        spec = {"model": model, "task": task, "configuration": configuration, "batch": batch, "window": args.window}
        found = ask(**spec, device=args.device, preset=args.preset, reference=f"{folder}/{model}.pt")
        if "seconds" not in found or found["seconds"] < before.get("seconds", float("inf")):
            rows[key] = spec | found
        report["rows"] = [derived(r, rows, report) for r in rows.values()]
        if args.out:  # after each, so that a run that is cut off leaves what it has
            Path(f"{args.out}.part").write_text(json.dumps(report, indent=1) + "\n")
            Path(f"{args.out}.part").replace(args.out)


def derived(row: Spec, rows: Any, report: Spec) -> Spec:
    """The row with the figures that follow from it."""
    if "seconds" not in row:
        return row
    model, task, seconds, batch = row["model"], row["task"], row["seconds"], row["batch"]
    work = row.get("macs") or report["macs"].get(model, {}).get(task)
    rate = 2 * work * batch / seconds / 1e12 if work else None
    off = rows.get((model, task, OFF), {}).get("seconds")
    area = batch * row["window"] ** 2 * 1e-4 if task == FORWARD else None
    more = {"macs": work, "samples_per_s": batch / seconds, "km2_per_s": area and area / seconds, "tflops": rate}
    more |= {f"of_{name}": rate and rate / report["gemm_tflops"][name] for name in ("float32", "bfloat16")}
    more |= {"speedup": off and off / seconds}
    return dict.fromkeys(("max_error", "rms_error", "products_share")) | row | more


def table(rows: list[Spec]) -> str:
    """The rows as aligned text."""
    text, numbers = ("model", "task", "configuration"), {
        "seconds": ("ms", 1e3, ".1f"), "samples_per_s": ("samples/s", 1, ".3f"), "km2_per_s": ("km2/s", 1, ".3f"),
        "tflops": ("TFLOP/s", 1, ".3g"), "of_float32": ("% of f32 GEMM", 100, ".0f"),
        "of_bfloat16": ("% of bf16 GEMM", 100, ".0f"), "memory_bytes": ("GiB", 2**-30, ".2f"),
        "speedup": ("times as fast", 1, ".2f"), "max_error": ("max error", 1, ".0e"),
        "rms_error": ("rms error", 1, ".0e"), "products_share": ("% in products", 100, ".1f"),
    }  # fmt: skip
    lines, why = [[*text, *(head for head, _, _ in numbers.values())]], [""]
    for row in rows:
        cells = ("" if row.get(k) is None else format(row[k] * x, how) for k, (_, x, how) in numbers.items())
        lines.append([*(row[k] for k in text), *cells])
        why.append(row.get("error") or row.get("skipped") or "")
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, reason in zip(lines, why, strict=True):
        line[:] = [f"{cell:{'<' if i < 3 else '>'}{wide[i]}}" for i, cell in enumerate(line)] + [reason]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=list(DEFAULT), default="cpu")
    parser.add_argument("--preset", default="paper", help="of both models: tiny, base, paper")
    parser.add_argument("--window", type=int, default=256, help="side in pixels")
    parser.add_argument("--batch", type=int, help=f"windows in a call; default {BATCH}")
    lists = {"models": MODELS, "tasks": TASKS, "configurations": tuple(CONFIGURATIONS)}
    for name, known in lists.items():
        default = None if name == "configurations" else known
        parser.add_argument(f"--{name}", type=lambda t: t.split(","), default=default, help=f"of {', '.join(known)}")
    parser.add_argument("--repeat", type=int, help="rounds, of which the best counts; default 2 on a CPU, 1 on a GPU")
    parser.add_argument("--out", default="", metavar="FILE.json")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the root of the project
        try:
            found = {"machine": machine, FEATURES: features}.get(args.one["task"], network)(args.one)
        except Exception as e:
            found = {"error": f"{type(e).__name__}: {(str(e).strip() or 'no message').splitlines()[0][:300]}"}
        print(json.dumps(found))
        return 0
    args.configurations = args.configurations or DEFAULT[args.device]
    args.repeat = (2 if args.device == "cpu" else 1) if args.repeat is None else args.repeat
    for name, known in lists.items():
        if unknown := set(getattr(args, name)) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if min(args.window, args.repeat, 1 if args.batch is None else args.batch) < 1:
        parser.error("--window, --batch and --repeat must be at least 1")
    sizes = {"preset": args.preset, "window": args.window}
    about = ask(task="machine", device=args.device, models=args.models, **sizes)
    if "error" in about:
        print(about["error"], file=sys.stderr)
        return 2
    report: Spec = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": shlex.join(sys.argv)}
    report |= about | sizes | {"rows": []}
    with tempfile.TemporaryDirectory() as folder:
        measure(args, report, folder)
    rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in report["gemm_tflops"].items())
    print(f"{report['device']}, torch {report['torch']}, {report['threads']} threads; {args.preset}, {args.window} px")
    print(f"matrix product {report['gemm_side']}^3: {rates}\n{table(report['rows']).strip()}")
    return int(any("error" in row for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
