"""From what was measured to the published tables, and choosing again, without a cluster."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sar2eo_dist import storage
from sar2eo_dist.cca.reference import Reference
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, KeptOutOfBounds, Sar2EoError
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.models.extractors import extractor
from sar2eo_dist.pipeline import archive, selection
from sar2eo_dist.pipeline import collect as collecting
from sar2eo_dist.pipeline.calibration import CURRENT, from_json
from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.members import members
from sar2eo_dist.pipeline.stage import Summary, read_summary
from sar2eo_dist.records import Pair, Rejected, Unit, Verdict, from_table, place_key, schema, to_table

ABOUT = {"whole": True}
CLEAR = {
    "valid_fraction": 1.0, "qa60_state": "clear", "qa60_fraction": 0.0, "qa60_any": 0.0, "max_dn": 2500.0,
    "alpha_fraction": 0.0, "contrast": 900.0, "brightness": 60.0, "dark_fraction": 0.01, "dark_released": 0.01,
    "brightness_released": 60.0,
    "light": 600.0, "white_fraction": 0.0, "haze": 0.0, "offset": 0.0,
}  # fmt: skip


def verdict(sensor: str, day: int, place: int, reason: str = "", **measured: object) -> Verdict:
    lon, lat, date = -55.2 + 0.02 * place, -4.39, dt.date(2019, 6, 1) + dt.timedelta(day)
    key = f"{sensor}/{place_key(lon, lat)}/{date}"
    found = Verdict(key, sensor, place_key(lon, lat), lon, lat, date, "ascending", "S1A", "multiearth_tiff", (), (), (),
                    f"{sensor}{day}/{place}", reason)  # fmt: skip
    numbers = CLEAR | measured if sensor == "s2" and (reason == "" or measured) else {}
    return dataclasses.replace(found, **numbers)  # type: ignore[arg-type]


def scored(*scores: float, mark: str = "m", **measured: object) -> list[Verdict]:
    """S2 tiles of one place with these scores."""
    return [
        verdict("s2", d, 0, score=s, score_name="fid", scored_by=mark, unit="u", **measured)
        for d, s in enumerate(scores)
    ]


def config(out: Path, *more: str) -> Config:
    return load(None, [f"run.out={out}", "cca.reference=x", "cca.min_kept=0", *more])


def put(out: Path, *parts: list[Verdict]) -> list[str]:
    for i, rows in enumerate(parts):
        storage.put(str(out / f"{i}.parquet"), parquet(rows))
    return [f"{i}.parquet" for i in range(len(parts))]


def parquet(rows: list[Verdict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(rows, Verdict), sink)
    return bytes(sink.getvalue())


def test_slices_become_one_table_pairs_and_their_yield(tmp_path: Path) -> None:
    rows = [verdict("s1", d, p) for d in (0, 12) for p in (0, 1)] + [verdict("s1", 5, 0, "all_nodata")]
    rows += [verdict("s2", d, p) for d, p in ((3, 0), (4, 0), (11, 1), (30, 1))] + [verdict("s2", 1, 0, "unreadable")]
    cfg = load(None, [f"run.out={tmp_path}", "cca.profile=none", "pairing.max_days=7", "split.val=0"])
    table, twice = archive.merge(cfg, put(tmp_path, rows[1::2], rows[0::2]))
    assert twice == []
    rejected = [Rejected("s2", "x", "bad_date", "month 13")]
    outputs, counts = selection.publish(cfg, table, rejected, ABOUT, "", True)
    assert counts == {
        "S1 tiles": 5, "S2 tiles": 5, "S1 usable": 4, "S2 kept": 4, "unusable files": 1, "pairs": 3, "pairs train": 3,
    }  # fmt: skip
    assert "calibration" not in outputs
    found = {name: pq.read_table(tmp_path / path) for name, path in outputs.items()}
    order = [(v.sensor, v.date, v.key) for v in from_table(found["verdicts"], Verdict)]
    assert order == sorted(order)
    assert found["rejected"].num_rows == 1
    assert found["pairs"].schema == schema(Pair)
    assert [(p.days, p.place[-1:], p.split) for p in from_table(found["pairs"], Pair)] == [
        (-1, "9", "train"), (3, "9", "train"), (4, "9", "train"),
    ]  # fmt: skip
    curve = found["yield"].to_pydict()
    assert curve["days"] == list(range(31))
    assert [curve["eo_images"][d] for d in (0, 1, 3, 4, 7, 17, 18, 30)] == [0, 1, 2, 3, 3, 3, 4, 4]
    assert [curve["combinations"][d] for d in (7, 8, 9, 11, 18, 30)] == [3, 4, 5, 6, 7, 8]


def test_of_a_tile_in_two_scenes_the_one_with_more_data_counts(tmp_path: Path) -> None:
    torn, half, good = verdict("s2", 1, 0, "unreadable"), verdict("s2", 1, 0, valid_fraction=0.5), verdict("s2", 1, 0)
    parts = [[dataclasses.replace(v, uris=(name,))] for v, name in ((torn, "a"), (half, "b"), (good, "c"), (good, "d"))]
    table, twice = archive.merge(config(tmp_path), put(tmp_path, *parts))
    assert table["uris"].to_pylist() == [["c"]]
    assert [(r.uri, r.reason) for r in twice] == [("d", "duplicate"), ("b", "duplicate"), ("a", "duplicate")]


def test_rows_are_moved_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "ROWS", 3)
    rows = [verdict("s2", d, 0) for d in range(10)]
    table, _ = archive.merge(config(tmp_path), put(tmp_path, rows[5:], rows[:5]))
    assert table.schema == schema(Verdict)
    assert table.select(["key", "bands", "light", "digest"]).equals(
        to_table(rows, Verdict).select(["key", "bands", "light", "digest"])
    )


def test_a_death_while_publishing_leaves_nothing_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path)
    table, _ = archive.merge(cfg, put(tmp_path, scored(1.0, 2.0)))
    selection.publish(cfg, table, [], ABOUT, "m", True)
    assert archive.about(cfg) == ABOUT
    for at in range(1, 6):
        calls, real, other = iter(range(1, 99)), storage.put, config(tmp_path, "cca.beta=0.6")

        def dies(uri: str, data: bytes, at: int = at, calls: object = calls, real: object = real) -> None:
            if "summary" not in uri and next(calls) == at:  # type: ignore[call-overload]
                raise OSError("no space")
            real(uri, data)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(storage, "put", dies)
            with pytest.raises(OSError, match="no space"):
                selection.publish(other, table, [], ABOUT, "m", True)
        with pytest.raises(ConfigError, match="no archive to choose from"):
            archive.about(cfg)
        with pytest.raises(Sar2EoError, match="'failed': run jobs/collect"):
            read_summary(cfg, "collect")
    selection.publish(cfg, table, [], ABOUT, "m", True)
    assert archive.about(cfg) == ABOUT


def test_an_empty_archive_is_published_too(tmp_path: Path) -> None:
    cfg = load(None, [f"run.out={tmp_path}"])
    table, _ = archive.merge(cfg, [])
    outputs, counts = selection.publish(cfg, table, [], ABOUT, "", True)
    assert counts == {
        "S1 tiles": 0, "S2 tiles": 0, "S1 usable": 0, "S2 kept": 0, "unusable files": 0, "pairs": 0,
    }  # fmt: skip
    assert pq.read_table(tmp_path / outputs["pairs"]).schema == schema(Pair)


def test_overlapping_scenes_give_a_tile_once(tmp_path: Path) -> None:
    first = [dataclasses.replace(verdict("s2", d, 0), uris=("a.tif",)) for d in range(3)]
    second = [dataclasses.replace(verdict("s2", d, 0), uris=("b.tif",)) for d in (1, 2, 3)]
    table, twice = archive.merge(config(tmp_path), put(tmp_path, second, first))
    assert len(table) == 4
    assert table["uris"].to_pylist()[1] == ["b.tif"], "the first in canonical order counts"
    assert [(r.uri, r.reason) for r in twice] == [("a.tif", "duplicate")] * 2


def test_stage_3_and_choosing_again(tmp_path: Path) -> None:
    rows = [*scored(1.0, 1.9, 2.1, 2.5, 3.0), verdict("s1", 0, 0)]
    rows += [verdict("s2", 9, 0, brightness=5.0), verdict("s2", 10, 0, "unreadable")]
    cfg = config(tmp_path)
    table, _ = archive.merge(cfg, put(tmp_path, rows))
    outputs, counts = selection.publish(cfg, table, [], ABOUT, "m", True)
    assert counts["S2 kept"] == 4  # 1.0 + 2.0 x 0.4 = 1.8
    reasons = {v.key[-2:]: (v.reason, v.detail) for v in read(tmp_path, outputs)}
    assert reasons["10"] == ("brightness", "mean V 5.00")
    assert reasons["11"] == ("unreadable", "")
    stricter = config(tmp_path, "cca.beta=0.6")
    before = (tmp_path / "collect/verdicts.parquet").read_bytes()
    change = selection.preview(stricter, "m")
    assert (change.enter, change.leave, change.gaps) == (0, 2, 0)
    assert (change.before["frechet"], change.after["frechet"]) == (1, 3)
    assert "0 S2 tiles enter, 2 leave: 4 -> 2 of 7" in change.text()
    assert len(change.leaving) == 2
    assert (tmp_path / "collect/verdicts.parquet").read_bytes() == before
    assert from_json((tmp_path / CURRENT).read_bytes(), "").version == 1
    _, counts = selection.publish(stricter, archive.stored(stricter)[0], [], ABOUT, "m", True)
    assert counts["S2 kept"] == 2
    assert from_json((tmp_path / CURRENT).read_bytes(), "").version == 2
    looser = config(tmp_path, "cca.brightness_min=1")
    change = selection.preview(looser, "m")
    assert change.gaps == 1
    assert "1 more are undecided" in change.text()


def test_another_profile_is_another_filter_on_the_same_numbers(tmp_path: Path) -> None:
    rows = scored(2.0, 2.0, brightness=20.0, dark_fraction=0.5, dark_released=0.2, max_dn=5000.0, alpha_fraction=0.001)
    cfg = config(tmp_path)
    table, _ = archive.merge(cfg, put(tmp_path, rows))
    assert set(selection.screened(table, cfg.cca)) == {"alpha"}
    assert set(selection.screened(table, config(tmp_path, "cca.alpha=6000").cca)) == {"brightness"}
    assert set(selection.screened(table, config(tmp_path, "cca.profile=recommended").cca)) == {""}


def test_scores_that_came_later_fill_the_gaps(tmp_path: Path) -> None:
    rows = [
        *scored(1.0, 2.0),
        verdict("s2", 5, 0),
        *[dataclasses.replace(v, key=v.key + "x") for v in scored(7.0, mark="old")],
    ]
    cfg = config(tmp_path)
    table, _ = archive.merge(cfg, put(tmp_path, rows))
    missing = selection.gaps(table, cfg.cca, "m")
    assert missing.sum() == 2, "no score, or one against another cloud set"
    late = table.filter(pa.array(missing))
    at = late.schema.get_field_index("score")
    late = late.set_column(at, late.schema.field(at), pa.array([3.0, 4.0]))
    for name, value in (("score_name", "fid"), ("scored_by", "m")):
        at = late.schema.get_field_index(name)
        late = late.set_column(at, late.schema.field(at), pa.array([value] * 2))
    unit = Unit("score", "k", "f", "i")
    sink = pa.BufferOutputStream()
    pq.write_table(late, sink)
    storage.put(str(tmp_path / f"collect/scores/m/{unit.id}.parquet"), bytes(sink.getvalue()))
    assert selection.gaps(archive.with_scores(cfg, table, "m"), cfg.cca, "m").sum() == 2, "not committed yet"
    Ledger(cfg.run.out).commit(Entry(unit, (), 1.0))
    full = archive.with_scores(cfg, table, "m")
    assert not selection.gaps(full, cfg.cca, "m").any()
    assert sorted(full["score"].to_pylist()) == [1.0, 2.0, 3.0, 4.0]
    assert full.schema == table.schema
    torn = tmp_path / f"collect/scores/m/{unit.id}.parquet"
    torn.write_bytes(torn.read_bytes()[:200])
    assert selection.gaps(archive.with_scores(cfg, table, "m"), cfg.cca, "m").sum() == 2, "torn: scored again"
    other = archive.with_scores(cfg, table, "another")
    np.testing.assert_array_equal(other["score"].to_numpy(), table["score"].to_numpy())


def test_a_tile_that_got_no_score_is_never_kept(tmp_path: Path) -> None:
    rows = [*scored(1.0, 2.0, float("nan")), verdict("s2", 9, 0)]
    cfg = config(tmp_path)
    table, _ = archive.merge(cfg, put(tmp_path, rows))
    outputs, counts = selection.publish(cfg, table, [], ABOUT, "m", True)
    assert counts["S2 kept"] == 1
    assert [v.reason for v in read(tmp_path, outputs)] == ["frechet", "", "not_scored", "not_scored"]


def test_a_kept_share_out_of_bounds_stops_after_everything_is_written(tmp_path: Path) -> None:
    cfg = config(tmp_path, "cca.min_kept=0.5")
    table, _ = archive.merge(cfg, put(tmp_path, scored(*([200.0] * 9), 900.0)))
    with pytest.raises(KeptOutOfBounds, match=r"1 of 10 scored tiles"):
        selection.publish(cfg, table, [], ABOUT, "m", True)
    assert (tmp_path / "collect/pairs.parquet").exists()


def read(out: Path, outputs: dict[str, str]) -> list[Verdict]:
    return from_table(pq.read_table(out / outputs["verdicts"]), Verdict)


def test_a_later_score_of_other_pixels_is_not_this_tile(tmp_path: Path) -> None:
    cfg, old = config(tmp_path), scored(5.0)[0]
    fresh = dataclasses.replace(old, digest="reprocessed", score=float("nan"), scored_by="", score_name="")
    storage.put(str(tmp_path / "collect/scores/m/x.parquet"), parquet([old]))
    unit = Unit("score", "k", "f", "i")
    storage.put(str(tmp_path / f"collect/scores/m/{unit.id}.parquet"), parquet([old]))
    Ledger(cfg.run.out).commit(Entry(unit, (), 1.0))
    table, _ = archive.merge(cfg, put(tmp_path, [fresh]))
    assert np.isnan(archive.with_scores(cfg, table, "m")["score"].to_numpy()).all()
    again, _ = archive.merge(cfg, put(tmp_path, [dataclasses.replace(old, score=7.0)]))
    assert archive.with_scores(cfg, again, "m")["score"].to_pylist() == [7.0], "its own score counts"
    other = to_table([dataclasses.replace(old, scored_by="n", score=1.0)], Verdict)
    assert archive.with_scores(cfg, other, "m")["score"].to_pylist() == [5.0]
    assert archive.with_scores(cfg, other, "none")["score"].to_pylist() == [1.0]


def test_the_guards_advice_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that the guard stopped is chosen from again, without a cluster; a slip on the way spoils nothing."""
    net = extractor("means")
    images = np.random.default_rng(0).integers(0, 255, (4, 3, 64, 64)).astype(np.uint8)
    built = Reference.from_features(net.features(images), net.name, net.preprocessing)
    (tmp_path / "set.npz").write_bytes(built.to_bytes())
    sets = [f"run.out={tmp_path}", f"cca.reference={tmp_path / 'set.npz'}", "cca.extractor=means", "cca.min_kept=0.5"]
    cfg = load(None, sets)
    mark = collecting.scored_by(cfg, members(cfg.cca))
    table, _ = archive.merge(cfg, put(tmp_path, scored(*np.linspace(200, 210, 2999), 900.0, mark=mark)))
    about = {"whole": True, "fingerprint": collecting._measured_as(cfg)}
    about["summary"] = dataclasses.asdict(Summary("collect", "complete"))
    with pytest.raises(KeptOutOfBounds, match="--reselect --dry-run --set cca.rule=quantile"):
        selection.publish(cfg, table, [], about, mark, True)

    def job(*more: str) -> int:
        argv = [part for s in [*sets, *more] if not s.startswith("--") for part in ("--set", s)]
        return main("collect", [collecting.collect], "", [*argv, *(s for s in more if s.startswith("--"))])

    assert job("--reselect", "--dry-run", "cca.rule=quantile") == 0
    assert "1,798 S2 tiles enter" in capsys.readouterr().out
    assert job("--reselect", "cca.rule=quantile") == 0
    summary = json.loads((tmp_path / "collect/summary.json").read_text())
    assert (summary["status"], summary["counts"]["S2 kept"]) == ("complete", 1799)
    assert job("--reselect", f"cca.calibration={tmp_path / 'nowhere.json'}") == 1
    assert job("--reselect", "cca.level=l1c") == 2
    assert "measured with other settings" in capsys.readouterr().err
    assert json.loads((tmp_path / "collect/summary.json").read_text()) == summary
    assert job("--reselect", "cca.beta=0.99") == 1
    assert json.loads((tmp_path / "collect/summary.json").read_text())["status"] == "failed"
