"""The scale model beside real runs: rates of one run predict the wall times of others, with one and with two translators."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import small_mosaic

from sar2eo_dist.config import load
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.translate import translate

pytestmark = pytest.mark.timeout(3600)
SPAWN = multiprocessing.get_context("spawn")
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
