"""The mosaic's layers, the field and what else hangs on a run folder's optional parts."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import matplotlib
import numpy as np
from dom import Node, safe
from PIL import Image

from sar2eo_dist.report import page as report

Some = Callable[..., Path]


def pixels(figure: Node) -> np.ndarray:
    """(h, w, 4) of the picture in a figure."""
    data = base64.b64decode(figure.one("img").attrs["src"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), np.int64)


def layers(folder: Path) -> dict[str, Node]:
    section = safe(report.build(str(folder))).one("section", id="mosaic")
    return {f.attrs["data-layer"]: f for f in section.one("div", class_="looks").all("figure")}


def save(path: Path, *bands: np.ndarray) -> None:
    Image.fromarray(np.dstack(bands).astype(np.uint8)).save(path)


def test_where_the_mosaic_has_data_and_how_far_off_it_is(some: Some) -> None:
    folder = some("translate")
    ramp, seen = np.tile(np.arange(256), (64, 1)), np.full((64, 256), 255)
    seen[:32, :128], seen[32:, :128] = 0, 128
    save(folder / "translate/scene/quicklook.png", ramp, ramp, ramp, seen)
    save(folder / "translate/scene/error.png", ramp, ramp, ramp, seen)
    found = layers(folder)
    valid = pixels(found["valid"])[..., :3]
    for at, colour in ((np.s_[8:24, 8:100], (150, 152, 148)), (np.s_[8:24, 160:240], (47, 138, 99)),
                       (np.s_[40:56, 8:100], (98, 145, 123))):  # fmt: skip
        np.testing.assert_allclose(valid[at].mean((0, 1)), colour, atol=4)  # half of the data, half of the way
    error = pixels(found["error"])
    assert error[0, 0, 3] == 0
    scale = matplotlib.colormaps["viridis"](np.arange(256), bytes=True)[:, :3].astype(int)
    np.testing.assert_allclose(error[40, 140:250, :3], scale[140:250], atol=24)  # a lossy picture
    assert all("data-apart" not in f.attrs for f in (found["valid"], found["error"], found["translated"]))


def test_a_picture_of_other_ground_is_not_laid_over(some: Some) -> None:
    folder = some("translate")
    save(folder / "translate/scene/sar.png", *3 * [np.zeros((100, 256))])
    found = layers(folder)
    assert "data-apart" in found["sar"].attrs
    assert "covers other ground" in found["sar"].text
    assert "data-apart" not in found["true"].attrs
    (folder / "translate/scene/sar.png").unlink()
    assert "NotFound" in layers(folder)["sar"].text


def grade(folder: Path, rows: list[dict[str, Any]]) -> Node:
    (folder / "grade").mkdir(exist_ok=True)
    outputs = {"skill": "grade/skill_m.tif", "skill_quicklook": "grade/skill_m.png", "series": "grade/series.parquet"}
    counts = {"tiles kept": 9, "tiles graded": 5}
    (folder / "grade/summary.json").write_text(
        json.dumps(fake_run.summary("grade", 14, outputs=outputs, counts=counts))
    )
    (folder / "grade/series.parquet").write_bytes(fake_run.table(rows))
    save(folder / "grade/skill_m.png", *3 * [np.full((64, 128), 200)])
    return safe(report.build(str(folder)))


def test_the_field_stands_between_metrics_and_cost(some: Some) -> None:
    row = {"mosaic": "m", "date": dt.date(2020, 9, 1), "days": 42, "tiles": 5, "pixels": 1_200_000, "mae": 212.0,
           "rmse": 300.0, "bias": -20.0, "skill": 0.41, "trivial_mae": 350.0, "trivial_rmse": 400.0}  # fmt: skip
    root = grade(some("config.yaml", "translate"), [row])
    sections = [s.attrs["id"] for s in root.all("section")]
    assert sections[sections.index("metrics") :][:3] == ["metrics", "field", "cost"]
    field = root.one("section", id="field")
    assert "42 days after the mosaic's last radar image: MAE 212 DN" in field.text.replace("\xa0", " ")
    assert field.one("img").attrs["src"].startswith("data:image/")
    assert "grade/skill_m.tif" in field.text
    assert root.one("tr", data_stage="grade")
    assert "#field" in [a.attrs["href"] for a in root.one("nav").all("a")]


def test_a_broken_field_is_named(some: Some) -> None:
    root = grade(some("config.yaml"), [{"mosaic": 3}])
    assert "grade/series.parquet" in [t.one("code").text for t in root.all("p", class_="trouble") if t.all("code")]
    assert not safe(report.build(str(some("translate")))).one("section", id="mosaic").all("p", class_="trouble")


def test_another_run_beside_this_one_is_named(some: Some) -> None:
    folder = some("config.yaml", "evaluate")
    assert "against.html" not in report.build(str(folder)).decode()
    (folder / "evaluate/against.html").write_text("x")
    assert "evaluate/against.html" in safe(report.build(str(folder))).one("section", id="metrics").text


def test_samples_of_older_runs_and_of_other_reasons(some: Some) -> None:
    folder = some("evaluate")
    samples = json.loads((folder / "evaluate/samples.json").read_text())
    samples[0].pop("why")
    samples[1]["why"] = "odd one"
    (folder / "evaluate/samples.json").write_text(json.dumps(samples))
    section = safe(report.build(str(folder))).one("section", id="samples")
    assert [s.attrs["data-why"] for s in section.all("div", class_="sample")] == [
        "spread", "spread", "worst", "best", "odd one",
    ]  # fmt: skip
    assert section.all("h3")[-1].text == "odd one"
