"""From slices of verdicts to the published tables, without a cluster."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path

import pyarrow.parquet as pq

from sar2eo_dist.config import load
from sar2eo_dist.pipeline import selection
from sar2eo_dist.records import Pair, Rejected, Verdict, from_table, place_key, schema, to_table


def verdict(sensor: str, day: int, place: int, reason: str = "") -> Verdict:
    lon, lat, date = -55.2 + 0.02 * place, -4.39, dt.date(2019, 6, 1) + dt.timedelta(day)
    key = f"{sensor}/{place_key(lon, lat)}/{date}"
    return Verdict(key, sensor, place_key(lon, lat), lon, lat, date, "ascending", "S1A", "multiearth_tiff", (), (), (),
                   f"{sensor}{day}/{place}", reason)  # fmt: skip


def test_slices_become_one_table_pairs_and_their_yield(tmp_path: Path) -> None:
    rows = [verdict("s1", d, p) for d in (0, 12) for p in (0, 1)] + [verdict("s1", 5, 0, "all_nodata")]
    rows += [verdict("s2", d, p) for d, p in ((3, 0), (4, 0), (11, 1), (30, 1))] + [verdict("s2", 1, 0, "qa60")]
    for i in range(2):
        (tmp_path / f"{i}.parquet").write_bytes(parquet(rows[i::2]))
    cfg = load(None, [f"run.out={tmp_path}", "cca.profile=none", "pairing.max_days=7", "split.val=0"])
    rejected = [Rejected("s2", "x", "bad_date", "month 13")]
    outputs, counts = selection.publish(cfg, ["1.parquet", "0.parquet"], rejected, "")
    assert counts == {
        "S1 tiles": 5, "S2 tiles": 5, "S1 usable": 4, "S2 kept": 4, "unusable files": 1, "pairs": 3, "pairs train": 3,
    }  # fmt: skip
    assert "calibration" not in outputs
    found = {name: pq.read_table(tmp_path / path) for name, path in outputs.items()}
    assert from_table(found["verdicts"], Verdict)[0].key == min(r.key for r in rows)
    assert found["rejected"].num_rows == 1
    assert found["pairs"].schema == schema(Pair)
    assert [(p.days, p.place[-1:], p.split) for p in from_table(found["pairs"], Pair)] == [
        (-1, "9", "train"), (3, "9", "train"), (4, "9", "train"),
    ]  # fmt: skip
    assert [p.eo_key for p in from_table(found["pairs"], Pair)] == sorted(
        p for p in found["pairs"]["eo_key"].to_pylist()
    )
    curve = found["yield"].to_pydict()
    assert curve["days"] == list(range(31))
    assert [curve["eo_images"][d] for d in (0, 1, 3, 4, 7, 17, 18, 30)] == [0, 1, 2, 3, 3, 3, 4, 4]
    assert [curve["combinations"][d] for d in (7, 8, 9, 11, 18, 30)] == [3, 4, 5, 6, 7, 8]


def test_an_empty_archive_is_published_too(tmp_path: Path) -> None:
    cfg = load(None, [f"run.out={tmp_path}"])
    outputs, counts = selection.publish(cfg, [], [], "")
    assert counts == {
        "S1 tiles": 0, "S2 tiles": 0, "S1 usable": 0, "S2 kept": 0, "unusable files": 0, "pairs": 0,
    }  # fmt: skip
    assert pq.read_table(tmp_path / outputs["pairs"]).schema == schema(Pair)


def parquet(rows: list[Verdict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(to_table(rows, Verdict), sink)
    return sink.getvalue()
