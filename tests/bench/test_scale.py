"""The scale model beside real runs: rates of one run predict the wall times of others, with one and with two translators."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import small_mosaic
import test_mosaic
import torch

from sar2eo_dist.config import load
from sar2eo_dist.models import bundle, translator
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.translate import translate

pytestmark = pytest.mark.timeout(3600)
SPAWN = multiprocessing.get_context("spawn")
ASSUMED = Path(__file__).resolve().parents[2] / "jobs/configs/rates_h100_assumed.json"
SIDE = 2048  # pixels: 16 blocks of 512


def made(base: str, name: str, translators: int, *more: str) -> dict[str, Any]:
    """A run through Ray, in a folder of its own; its `translate/forecast.json`."""
    out = Path(base) / name
    summary = translate(load(overrides=[
        "translate={window: 256, halo: 96, block: 512, statistics_window: 512}", f"data.scenes={base}/scene.tif",
        f"translate.bundles=[{base}/bundles/pix2pixhd, {base}/bundles/restormer]", f"run.out={out}",
        "resources.object_store_mb=600", f"resources.translators={translators}", *more,
    ]), Options())  # fmt: skip
    found: dict[str, Any] = json.loads((out / summary.outputs["forecast"]).read_text())
    return found


def apart(*given: Any) -> dict[str, Any]:
    """The same in a fresh process."""
    with SPAWN.Pool(1) as pool:
        result = pool.apply(made, given)
        pool.close()
        pool.join()
    return result


def test_predicted_and_actual_wall_time(tmp_path: Path) -> None:
    small_mosaic.bundles(str(tmp_path / "bundles"))
    small_mosaic.scene(tmp_path / "scene.tif", 50_000, 30_000, SIDE, SIDE)
    apart(str(tmp_path), "rates", 1)
    (rates,) = json.loads((tmp_path / "rates/translate/rates.json").read_text()).values()
    print(
        "\nrates of a run with one translator: "
        + ", ".join(f"{k} {v:.3g}" for k, v in rates.items() if k not in ("source", "gpu"))
    )
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    for name, asked in (("one", 1), ("two", 0)):  # 0: as many as there are CPUs, with room for the tasks that read
        tree = apart(str(tmp_path), name, asked, f"cost.rates={tmp_path / 'rates.json'}")
        said, was = tree["predicted"], tree["actual"]
        n, wall, own = was["translators"], said["wall_seconds"], said["wall_seconds_by_own_rates"]
        assert (n, was["blocks"]) == (asked or os.cpu_count(), 16)
        parts = ", ".join(f"{k} {v:.1f}" for k, v in said["wall_parts"].items() if v >= 0.05)
        stages = ", ".join(f"{k} {v:.1f}" for k, v in was["stages"].items())
        print(f"{n} translator(s): predicted {wall:.1f} s ({parts})")
        took = was["wall_seconds"]
        print(
            f"  actual {took:.1f} s ({stages}): {took / wall:.2f} of the prediction, {took / own:.2f} of that by its own rates;"
        )
        print(
            f"  of translators {was['translator_seconds']:.1f} s where {said['translator_seconds']:.1f} s were predicted"
        )


def test_the_basin_on_1_4_16_64(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan of the basin (four days of the synthetic archive, 4 to 5 scenes a block) in three tables: this machine's cores
    with the networks as published, measured on one window; and GPUs that are assumed, at 40 and at 100 TFLOP/s."""
    test_mosaic.archive(tmp_path / "s1.parquet", test_mosaic.SCENES)
    nets = small_mosaic.bundles(str(tmp_path / "bundles"), preset="paper")
    torch.manual_seed(0)
    info = bundle.read(nets[1])
    full = {"preset": "paper"}
    bundle.save(nets[1], translator("restormer").build(full, 3, 3), dataclasses.replace(info, options=full))
    assumed = json.loads(ASSUMED.read_text())
    faster = {k: assumed[k] * 0.4 for k in ("window_s", "statistics_s")} | {"source": "the same at 100 TFLOP/s"}
    gpu = ["cost.gpu_hour=3", "cost.put_1000=0.005", "cost.gpu_watts=1400", "cost.kwh_co2=98"]
    for name, rates, prices in (
        ("cores", None, ["cost.cpu_hour=0.05", "cost.cpu_watts=10"]), ("40", assumed, gpu), ("100", assumed | faster, gpu),
    ):  # fmt: skip
        more = []
        if rates:
            (tmp_path / f"{name}.json").write_text(json.dumps(rates))
            more = [f"cost.rates={tmp_path / name}.json"]
        translate(load(str(ASSUMED.parent / "amazon.yaml"), [
            f"data.scenes={tmp_path / 's1.parquet'}", f"translate.bundles={nets}", f"run.out={tmp_path / 'run'}",
            "mosaic.orbit=both", "mosaic.start=2019-09-01", "mosaic.end=2019-09-04", "cost.node_mb_s=1000", *prices, *more,
        ]), Options(dry_run=True))  # fmt: skip
        said = capsys.readouterr().out.splitlines()
        with capsys.disabled():
            print("", *(line for line in said if line.startswith(("forecast", "  "))), sep="\n")
        assert "17,053 blocks" in "".join(said)
