"""The section of a graded mosaic: what it says, and what it bears."""

from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dom import Node, parse
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from test_report_plots import checked, words

from sar2eo_dist.report import field, text
from sar2eo_dist.report.images import Album
from sar2eo_dist.report.load import Run, Stage, load

NAME = "utm21s-0123456789ab"


def row(days: int, mae: float, trivial: float, skill: float, pixels: int = 600_000, **more: Any) -> dict[str, Any]:
    rmse = 1.3 * trivial
    return {
        "mosaic": NAME, "date": dt.date(2020, 6, 1) + dt.timedelta(days), "days": days, "tiles": 12, "pixels": pixels,
        "mae": mae, "rmse": rmse * (1 - skill) ** 0.5, "bias": -12.5, "skill": skill, "trivial_mae": trivial,
        "trivial_rmse": rmse,
    } | more  # fmt: skip


def run_of(base: Path, rows: list[dict[str, Any]], picture: bool = True, **told: Any) -> Run:
    outputs = {"skill": f"grade/skill_{NAME}.tif", "skill_quicklook": f"grade/skill_{NAME}.png", "series": field.SERIES}
    counts = {"tiles kept": 40, "tiles graded": 24, "tiles outside": 9, "tiles out of days": 7}
    (base / "grade").mkdir(parents=True)
    summary = {"status": "complete", "counts": counts, "outputs": outputs} | told
    (base / "grade/summary.json").write_text(json.dumps(summary))
    pq.write_table(pa.Table.from_pylist(rows), base / field.SERIES)
    if picture:
        (base / "grade" / f"skill_{NAME}.png").write_bytes(
            field.picture(*np.random.default_rng(1).normal(0, 1, (2, 9, 14)))
        )
    return load(str(base))


def shown(run: Run) -> Node:
    found = field.section(run, Album(run.uri))
    assert found is not None
    env = Environment(loader=PackageLoader("sar2eo_dist.report", ""), autoescape=True, undefined=StrictUndefined)
    for name in ("count", "number", "shorten"):
        env.filters[name] = getattr(text, name)
    page = env.from_string('{% from "field.html.j2" import in_the_field %}{{ in_the_field(f) }}').render(f=found)
    return parse(page.encode())


def test_one_date_in_a_sentence(tmp_path: Path) -> None:
    run = run_of(tmp_path, [row(42, 212.4, 301.0, 0.41, 1_234_567)])
    page = shown(run)
    said = "42 days after the mosaic's last radar image: MAE 212 DN over 1.2 million clear pixels, skill 0.41"
    assert said in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "24 of 40 clear Sentinel-2 tiles" in page.text
    assert "9 lie where the mosaic has no pixel, 7 are of other days" in page.text
    assert "training" not in page.text
    assert not page.all("p", class_="trouble")
    assert page.one("img").attrs["src"].startswith("data:image/")
    assert [n.text for n in page.all("code")] == [f"grade/skill_{NAME}.tif", "grade/series.parquet"]
    assert page.one("a", class_="csv").attrs["download"] == "field.csv"
    assert not run.problems


def test_several_dates_are_pooled_by_their_pixels_and_a_bad_one_is_called_bad(tmp_path: Path) -> None:
    rows = [row(5, 100.0, 200.0, 0.5, 100_000), row(60, 400.0, 200.0, -1.0, 300_000)]
    found = field.pooled(rows)
    assert found["mae"] == pytest.approx(325)
    assert found["skill"] == pytest.approx(1 - (0.5 * 1 + 2.0 * 3) / 4)
    page = shown(run_of(tmp_path, rows, counts={"tiles kept": 4, "tiles graded": 4, "tiles trained on": 3}))
    assert "2 dates, 5 to 60 days after" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "over 400,000 clear pixels, skill -0.62 over" in page.text
    assert "one flat colour" in page.one("p", class_="trouble").text
    assert "3 of those compared are targets of this run's own training pairs" in page.text
    assert [n.text for n in page.one("tbody").all("tr")[1].all("td")][:3] == ["2020-07-31", "60", "12"]


def test_what_is_partial_missing_or_broken_is_named(tmp_path: Path) -> None:
    page = shown(run_of(tmp_path / "a", [row(5, 100.0, 200.0, 0.5)], picture=False, status="partial"))
    assert "Grading is partial" in page.text
    assert page.one("div", class_="none").attrs["title"]
    bad = run_of(tmp_path / "b", [row(5, 100.0, 200.0, 0.5)])
    (tmp_path / "b" / field.SERIES).write_bytes(b"PAR1 torn")
    assert "No clear pixel met a mosaic" in shown(bad).text
    assert set(bad.problems) == {field.SERIES}
    empty = run_of(tmp_path / "c", [row(5, 100.0, 200.0, 0.5, 0)])
    assert "No clear pixel met a mosaic" in shown(empty).text
    (tmp_path / "c" / field.SERIES).unlink()
    shown(empty)
    assert "not there" in empty.problems[field.SERIES]
    leads_out = run_of(tmp_path / "d", [], outputs={"series": "../../etc/passwd"})
    shown(leads_out)
    assert "not a path inside" in next(iter(leads_out.problems.values()))


def test_nothing_graded_is_no_section(tmp_path: Path) -> None:
    assert field.section(load(str(tmp_path)), Album(str(tmp_path))) is None
    failed = Stage("grade", "failed", 1, 0, 0, (), 1, 1, 0, 0, "", "", {}, {}, {})
    assert field.section(Run(str(tmp_path), stages={"grade": failed}), Album(str(tmp_path))) is None


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    page = shown(run_of(tmp_path, [row(5, 1.0, 2.0, 0.5, mosaic=evil), row(6, 1.0, 2.0, 0.5)]))
    assert not page.all("script")
    assert evil in [n.text for n in page.all("h3")]


@pytest.mark.parametrize("skills", [[0.4], [0.4, -3.0], [float("nan")], [0.0, 0.0, 1.0]])
def test_plots_of_any_series(skills: list[float]) -> None:
    rows = [row(7 * k, 120.0 + k, 200.0, s) for k, s in enumerate(skills)]
    drawn = field.series_plots(rows, NAME)
    assert [label for label, _ in drawn] == ["MAE, DN", "Skill"]
    for _, svg in drawn:
        assert "days after the last radar image" in words(checked(svg))
    assert field.series_plots(rows, NAME) == drawn


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (40, 3)])
def test_the_picture_has_a_bearable_size_whatever_the_maps_shape(shape: tuple[int, int]) -> None:
    with Image.open(
        io.BytesIO(field.picture(np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32)))
    ) as image:
        assert image.size[0] == 1050
        assert 200 < image.size[1] < 1400


def test_the_picture_shows_the_sign_of_skill_and_is_the_same_bytes_twice() -> None:
    skill = np.array([[0.9, -0.9, np.nan, -7.0]], np.float32)
    mae = np.full((1, 4), 100, np.float32)
    data = field.picture(mae, skill)
    assert data == field.picture(mae, skill)
    with Image.open(io.BytesIO(data)) as image:
        better, worse, none, far = (image.convert("RGB").getpixel((30 + 120 * k + 60, 30 + 60)) for k in range(4))
    assert better[1] > better[0]  # green
    assert worse[0] > worse[2]  # brown
    assert none == (207, 207, 207)
    assert sum(far) < sum(worse)
