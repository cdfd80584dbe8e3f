"""The main job on the real MultiEarth sample. It learns nothing from three pairs: shapes and counts are checked, no score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from small_job import VERBS

from sar2eo_dist.config import Config, load
from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.job import multiearth
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.records import Pair, Verdict, from_table

pytestmark = pytest.mark.cluster
CONFIG = str(Path(__file__).resolve().parents[2] / "jobs" / "configs" / "multiearth_sample.yaml")
CANDIDATES = {("2019-06-08", "2019-06-06"), ("2019-06-08", "2019-06-11"), ("2019-07-02", "2019-07-01")}


def config(samples: Path, out: Path, *more: str) -> Config:
    data = multiearth(str(samples / "tier_a" / "multiearth2023"))
    return load(CONFIG, [*data, f"run.out={out}", *more])


def read(cfg: Config, path: str, record: type) -> list:
    return from_table(pq.read_table(Path(cfg.run.out) / path), record)


def test_tiff_and_netcdf_give_identical_verdicts(ray_session: None, samples: Path, tmp_path: Path) -> None:
    folder = samples / "tier_a" / "multiearth2023"
    tiff = config(samples, tmp_path / "tiff", "cca.profile=released")
    netcdf = tiff.model_copy(update={
        "run": tiff.run.model_copy(update={"out": str(tmp_path / "nc")}),
        "data": tiff.data.model_copy(update={
            "kind": "multiearth_netcdf", "s1": str(folder / "sent1_sample.nc"), "s2": str(folder / "sent2_sample.nc")
        }),
    })  # fmt: skip
    found = []
    for cfg in (tiff, netcdf):
        summary = collect(cfg, Options())
        assert (summary.counts["S1 tiles"], summary.counts["S2 tiles"]) == (4, 8)
        rows = read(cfg, summary.outputs["verdicts"], Verdict)
        pointers = {"kind", "uris", "rows", "digest", "bands", "unit"}
        found.append([[str(getattr(v, f)) for f in Verdict.__slots__ if f not in pointers] for v in rows])
    assert found[0] == found[1]


def test_the_three_candidates_go_through_the_whole_thread(ray_session: None, samples: Path, tmp_path: Path) -> None:
    short = ["train.translate.steps=2", "train.translate.crop=64", "train.enhancer="]
    cfg = config(samples, tmp_path, *short)
    summaries = {v.__name__: v(cfg, Options()) for v in VERBS[1:]}
    pairs = read(cfg, summaries["collect"].outputs["pairs"], Pair)
    assert {(str(p.sar_date), str(p.eo_date)) for p in pairs} == CANDIDATES
    assert len(pairs) == 3
    assert {(p.lon, p.lat) for p in pairs} == {(-55.2, -4.39)}
    made = sorted((tmp_path / summaries["translate"].outputs["patches"]).glob("*.tiff"))
    table = pq.read_table(tmp_path / summaries["translate"].outputs["patch_table"]).to_pylist()
    assert len(table) == 8
    assert [p.stem for p in made] == sorted(r["name"] for r in table if r["status"] == "translated")
    assert len(made) == 3
    with rasterio.open(made[0]) as patch:
        assert patch.read().shape == (3, 256, 256)
        assert np.ptp(patch.read()) > 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
