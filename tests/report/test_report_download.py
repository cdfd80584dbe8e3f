"""CSV links: what a spreadsheet reads is what the page says, and nothing runs in it."""

from __future__ import annotations

import math
from pathlib import Path

import fake_run
import numpy as np
import pyarrow.parquet as pq
import pytest
from dom import Node, parse, table

from sar2eo_dist.report import download
from sar2eo_dist.report.load import Run
from sar2eo_dist.report.text import UNKNOWN


def read(text: str) -> list[list[str]]:
    return table(parse(text.encode()).one("a"))


def test_numbers_in_full_and_text_that_runs_nowhere() -> None:
    odd = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", 'a "b", c\nd', "s3://me:secret@bucket/a", UNKNOWN]
    rows = read(download.link("x.csv", ("name", "=n"), [(t, -0.1 - 0.2) for t in odd]))
    assert rows[0] == ["name", "'=n"]
    assert [r[0] for r in rows[1:]] == [*(f"'{t}" for t in odd[:6]), odd[6], "s3://***@bucket/a", UNKNOWN]
    assert {float(r[1]) for r in rows[1:]} == {-0.1 - 0.2}
    assert read(download.link("x.csv", ("a", "b", "c"), [(None, math.nan, np.int64(3).item())]))[1] == ["", "", "3"]


def test_the_name_is_escaped() -> None:
    assert '"<' not in download.link('"><b>.csv', ("a",), [])


def test_a_table_of_the_run_folder_up_to_a_bearable_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(fake_run.table(fake_run.metrics()))
    run = Run(str(tmp_path))
    found = download.parquet(run, "t.parquet", "t.csv")
    assert found is not None
    rows = read(found)
    truth = pq.read_table(tmp_path / "t.parquet")
    assert rows[0] == truth.column_names
    assert len(rows) == 1 + len(truth)
    at = rows[0].index("mae")
    assert [float(r[at]) for r in rows[1:]] == truth["mae"].to_pylist()
    monkeypatch.setattr(download, "MOST", len(truth) - 1)
    assert download.parquet(run, "t.parquet", "t.csv") is None
    assert download.parquet(run, "nowhere.parquet", "t.csv") is None
    assert not run.problems
    (tmp_path / "torn.parquet").write_bytes(b"PAR1torn")
    assert download.parquet(run, "torn.parquet", "t.csv") is None
    assert "torn.parquet" in run.problems


def test_every_table_of_the_page_can_be_taken_away(page: Node) -> None:
    links = {a.attrs["download"]: table(a) for a in page.all("a", class_="csv")}
    assert set(links) == {
        "run.csv", "kept.csv", "unusable.csv", "yield.csv", "metrics.csv", "challenge.csv", "metrics-by-group.csv",
        "metrics-of-pairs.csv", "cost.csv", "quarantined.csv",
    }  # fmt: skip
    assert all(len(rows) > 1 and len({len(r) for r in rows}) == 1 for rows in links.values())
    kept = {(r[0], r[1]): int(r[2]) for r in links["kept.csv"][1:]}
    assert kept["s2", "kept"] == fake_run.ENDS[""]
    assert kept["s2", "alpha"] == fake_run.ENDS["alpha"]
    assert len(links["unusable.csv"]) == 1 + fake_run.UNUSABLE  # also those that the page only counts
    assert len(links["yield.csv"]) == 62
    assert len(links["metrics-of-pairs.csv"]) == 1 + len(fake_run.metrics())
    head, *rows = links["metrics.csv"]
    told = {r[head.index("method")]: float(r[head.index("mae_mean")]) for r in rows}
    assert told == {m["method"]: m["mae"]["mean"] for m in fake_run.scores()["methods"]}
