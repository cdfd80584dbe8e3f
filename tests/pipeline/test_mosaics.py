"""Plans of mosaics from scene records alone: grids, zones, margins, limits."""

from __future__ import annotations

import dataclasses
import datetime as dt

import numpy as np
import pytest
import shapely

from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.mosaic.grid import utm_grid
from sar2eo_dist.pipeline import mosaics
from sar2eo_dist.pipeline.mosaics import Plan, plans
from sar2eo_dist.records import SceneRef


def ref(lon: float, lat: float, name: str = "a", wide: float = 0.4, **more: object) -> SceneRef:
    ring = (lon - wide, lat - wide, lon + wide, lat - wide, lon + wide, lat + wide, lon - wide, lat + wide)
    zone, base = int((lon + 180) // 6) + 1, 32700 if lat < 0 else 32600
    made = SceneRef((f"s3://b/{name}.tif",), f"EPSG:{base + zone}", (10.0, 0, 4e5, 0, -10.0, 9.6e6), 9000, 9000,
                    dt.date(2024, 6, 1), "descending", "S1A", "db", "sigma0", f"stac-{name}", ring)  # fmt: skip
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def config(*more: str) -> Config:
    return load(overrides=["data.scenes=s3://b/all.parquet", "mosaic.grid=utm", *more])


def made(cfg: Config, refs: list[SceneRef], root: str) -> dict[str, Plan]:
    return {p.frame.grid.name: p for p in plans(cfg, root, refs, ["bundle"], "weights")}


def test_a_scene_across_two_zones_and_the_equator_is_planned_in_four_grids(tmp_path) -> None:
    found = made(config(), [ref(-54.0, 0.0)], str(tmp_path))
    assert sorted(found) == ["utm21n", "utm21s", "utm22n", "utm22s"]
    for plan in found.values():
        assert all(t.scenes == (0,) for _, t in plan.blocks)
        assert len(plan.statistics) >= len(plan.blocks)  # a ring of windows around them
        assert plan.bare == 0


def test_another_scene_far_away_changes_no_unit(tmp_path) -> None:
    one = made(config(), [ref(-57.0, -3.0)], str(tmp_path))["utm21s"]
    two = made(config(), [ref(-69.0, -9.0, "b"), ref(-57.0, -3.0)], str(tmp_path))
    assert sorted(two) == ["utm19s", "utm21s"]
    assert [u for u, _ in two["utm21s"].blocks] == [u for u, _ in one.blocks]
    assert [r.uri for r in two["utm21s"].refs] == ["s3://b/a.tif"]


def test_a_new_scene_plans_what_it_touches_and_one_statistics_window_more(tmp_path) -> None:
    old = [ref(-57.0, -3.0, wide=1.0)]
    before = {t.row * 1000 + t.col: u.id for u, t in made(config(), old, str(tmp_path))["utm21s"].blocks}
    new = ref(-57.0, -3.0, "b", wide=0.05, date=dt.date(2024, 6, 13))
    plan = made(config(), [*old, new], str(tmp_path))["utm21s"]
    after = {t.row * 1000 + t.col: u.id for u, t in plan.blocks}
    assert after.keys() == before.keys()
    touched = {t.row * 1000 + t.col for _, t in plan.blocks if len(t.scenes) == 2}
    changed = {k for k in after if after[k] != before[k]}
    assert touched < changed
    near = {k + 1000 * i + j for k in touched for i in (-2, -1, 0, 1, 2) for j in (-2, -1, 0, 1, 2)}
    assert changed <= near
    assert len(changed) < len(after) / 3


def test_data_may_lie_a_little_outside_of_a_stated_outline(tmp_path) -> None:
    small, exact = ref(-57.0, -3.0, wide=0.1), ref(-57.0, -3.0, wide=0.1, footprint=())
    grid = made(config(), [small], str(tmp_path))["utm21s"].frame.grid
    stated, raster = mosaics._outlines(grid, [small, exact])
    (plain,) = mosaics.scene_index.footprints([small], grid.crs)
    assert stated.contains(plain.buffer(1900))
    assert not stated.contains(plain.buffer(2100))
    assert raster.equals(mosaics.scene_index.footprints([exact], grid.crs)[0])


def test_scenes_that_a_zone_may_need_are_not_left_out() -> None:
    grid = utm_grid(21, True, 10.0, window=512, overlap=0, block=2048)
    boxes = np.array([shapely.box(w, -3, w + 0.5, -2) for w in (-62.5, -60.6, -57, -53.9, -51.0)], object)
    assert mosaics._near(grid, 3 * 2048, boxes).tolist() == [1, 2, 3]
    north = np.array([shapely.box(-57, s, -56.5, s + 0.5) for s in (-0.2, 0.3, 3.0)], object)
    assert mosaics._near(grid, 3 * 2048, north).tolist() == [0, 1]


def test_the_basin_comes_with_the_package(tmp_path) -> None:
    found = made(config("mosaic.aoi=amazon"), [ref(-57.0, -3.0)], str(tmp_path))
    assert list(found) == ["utm21s"]
    assert found["utm21s"].bare > 1000


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["mosaic.grid=EPSG:4326"], "utm, EPSG:326nn, EPSG:327nn or empty, not 'EPSG:4326'"),
        (["mosaic.grid=EPSG:32721", "translate.statistics=exact"], r"exact runs \d+ windows"),
        (["mosaic.end=2024-05-31"], "none of 1 scenes lies within"),
        (["mosaic.orbit=ascending"], "orbit ascending"),
        (["translate.halo=40"], "halo 40 must be a multiple of 32"),
    ],
)
def test_impossible_plans(tmp_path, more: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(config(*more), [ref(-57.0, -3.0)], str(tmp_path))
