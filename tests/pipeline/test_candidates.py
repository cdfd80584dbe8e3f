"""Candidates for a cloud set: who is chosen, what a person may do to the table, and what is refused with its line."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections import Counter
from pathlib import Path

import archive
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist import storage
from sar2eo_dist.config import load
from sar2eo_dist.errors import ConfigError, ReferenceSetError, Sar2EoError
from sar2eo_dist.pipeline import candidates
from sar2eo_dist.pipeline.candidates import TABLE, choose, propose
from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.members import listed
from sar2eo_dist.pipeline.reference import reference
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.records import S1, TileRef, Verdict, by_key, from_table, to_table
from sar2eo_dist.sections import CCA

NAN = float("nan")
CLOUDS = [0.0, 0.9, 0.2, 0.6, 1.0, 0.1]

share = st.sampled_from([NAN, 0.0, 0.05, 0.4, 0.6, 1.0])
tiles = st.lists(
    st.tuples(share, share, st.sampled_from([NAN, 0.5, 0.99, 1.0]), st.sampled_from([0.0, 9.0, NAN]),
              st.sampled_from(["s2", "s2", "s1"]), st.integers(0, 3), st.integers(0, 1)),
    max_size=25,
)  # fmt: skip


def some(rows: list[tuple[float, float, float, float, str, int, int]]) -> list[Verdict]:
    out = []
    for n, (qa60, white, valid, contrast, sensor, cell, day) in enumerate(rows):
        ref = TileRef(
            sensor, -55.5 + cell + n / 1000, -4.5, archive.DAY + dt.timedelta(day), "multiearth_tiff", (), (), f"{n}"
        )
        measured = {"qa60_fraction": qa60, "white_fraction": white, "valid_fraction": valid, "contrast": contrast}
        out.append(archive.verdict(ref, **measured))
    return out


def scene(v: Verdict) -> tuple[object, ...]:
    return (v.date, v.lon // 1, v.lat // 1)


@given(tiles, st.integers(2, 12))
def test_the_cloudiest_whole_tiles_spread_over_acquisitions(rows: list[tuple], n: int) -> None:
    """Against a plain loop: walk the ranking, take 2 of an acquisition at most; then, if too few, the rest."""
    found = some(rows)
    chosen = choose(to_table(found, Verdict).select(candidates.RANKED_BY), n).tolist()

    def rank(i: int) -> tuple[object, ...]:
        v = found[i]
        return (not v.qa60_fraction > 0.5, -(v.white_fraction if v.white_fraction == v.white_fraction else 0), i)

    usable = [i for i, v in enumerate(found) if v.sensor == "s2" and v.valid_fraction > 0.99 and v.contrast != 0]
    ranking = sorted(usable, key=rank)
    seen: Counter[tuple[object, ...]] = Counter()
    first, rest = [], []
    for i in ranking:
        seen[scene(found[i])] += 1
        (first if seen[scene(found[i])] <= 2 else rest).append(i)
    assert chosen == sorted([*first, *rest][:n], key=rank)


def test_a_large_set_takes_more_of_an_acquisition() -> None:
    rows = [(0.0, 1 - n / 1000, 1.0, 9.0, "s2", 0, 0) for n in range(200)]
    rows += [(0.0, 0.01, 1.0, 9.0, "s2", 2, n % 2) for n in range(200)]
    chosen = choose(to_table(some(rows), Verdict).select(candidates.RANKED_BY), 200)
    assert len(chosen) == 200
    assert chosen[:4].tolist() == [0, 1, 2, 3]  # 200 / 50 = 4 of each of the three, before any is filled up
    assert {200, 201, 206, 207} <= set(chosen.tolist())


@pytest.fixture
def run(tmp_path: Path) -> str:
    archive.make(tmp_path, CLOUDS)
    return str(tmp_path / "run")


def table(run: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((Path(run) / TABLE).read_text())))


def edit(run: str, old: str, new: str) -> None:
    path = Path(run) / TABLE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_candidates_are_listed_shown_and_explained(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--set", f"run.out={run}", "--candidates", "4"]
    assert main("reference", [reference], "about", [*argv, "--dry-run"]) == 0
    assert "would run 4 of 4" in capsys.readouterr().out
    assert not (Path(run) / "reference").exists()
    assert main("reference", [reference], "about", argv) == 0
    said = capsys.readouterr().out
    assert f"--set cca.reference={run}/reference/candidates.csv" in said
    assert "set `keep` to no" in said
    rows = table(run)
    assert [r["number"] for r in rows] == ["1", "2", "3", "4"]
    assert {r["keep"] for r in rows} == {"yes"}
    assert [float(r["white_fraction"]) for r in rows] == [1.0, 0.9, 0.6, 0.2]
    assert (Path(run) / "reference" / "candidates-1.png").stat().st_size > 4 * 128 * 128 / 10
    summary = json.loads((Path(run) / "reference" / "summary.json").read_text())
    assert (summary["status"], summary["counts"]["candidates"]) == ("complete", 4)
    refs = candidates.read(f"{run}/{TABLE}")
    assert [r.key for r in refs] == sorted(r["key"] for r in rows)
    verdicts = from_table(pq.read_table(f"{run}/collect/verdicts.parquet"), Verdict)
    assert set(refs) <= {v.ref for v in verdicts}


def test_a_bucket_will_do(s3: str, run: str) -> None:
    storage.put(f"{s3}/run/collect/verdicts.parquet", Path(run, "collect/verdicts.parquet").read_bytes())
    summary = propose(load(None, [f"run.out={s3}/run"]), Options(candidates=4))
    assert storage.exists(f"{s3}/run/{summary.outputs['contact sheets']}")
    found = listed(CCA(extractor="means", reference=f"{s3}/run/{TABLE}"))
    assert [m.name for m in found.items] == [r.key for r in candidates.read(f"{s3}/run/{TABLE}")]
    assert len(found.items) == 4


def test_what_was_struck_out_stays_so_until_fresh(run: str) -> None:
    cfg = load(None, [f"run.out={run}"])
    propose(cfg, Options(candidates=2))
    victim = table(run)[1]["key"]
    edit(run, f"yes,{victim}", f"no,{victim}")
    assert [r.key for r in candidates.read(f"{run}/{TABLE}")] == [table(run)[0]["key"]]
    summary = propose(cfg, Options(candidates=5))
    assert summary.counts["struck out"] == 1
    assert [r["keep"] for r in table(run)] == ["yes", "no", "yes", "yes", "yes"]
    assert propose(cfg, Options(candidates=5, fresh=True)).counts["struck out"] == 0
    edit(run, "yes", "maybe")
    with pytest.raises(ReferenceSetError, match="line 2.*'maybe'"):
        propose(cfg, Options(candidates=5))  # a person's work is never overwritten unread


def test_sheets_of_a_longer_list_are_taken_away(run: str) -> None:
    stale = Path(run) / "reference" / "candidates-7.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    propose(load(None, [f"run.out={run}"]), Options(candidates=3))
    assert sorted(p.name for p in stale.parent.glob("*.png")) == ["candidates-1.png"]


def test_tiles_that_are_gone_are_left_out_and_named(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = load(None, [f"run.out={run}"])
    verdicts = from_table(pq.read_table(f"{run}/collect/verdicts.parquet"), Verdict)
    first = max(verdicts, key=lambda v: v.white_fraction)
    Path(first.uris[0]).unlink()
    assert propose(cfg, Options(candidates=3)).counts["candidates"] == 2
    assert f"left out: {first.key}: NotFound" in capsys.readouterr().err
    for v in verdicts:
        Path(v.uris[1]).unlink()
    with pytest.raises(Sar2EoError, match=r"none of the 3 .*jobs/collect\.py"):
        propose(cfg, Options(candidates=3))


def test_what_cannot_be_proposed_says_why(tmp_path: Path) -> None:
    cfg = load(None, [f"run.out={tmp_path}"])
    with pytest.raises(Sar2EoError, match=r"verdicts\.parquet is not there: run jobs/collect\.py.*profile=none"):
        propose(cfg, Options(candidates=9))
    with pytest.raises(ConfigError, match="--candidates -1"):
        propose(cfg, Options(candidates=-1))
    ref = TileRef(S1, 0.0, 0.0, archive.DAY, "multiearth_tiff", (), (), "d")
    archive.put_verdicts(str(tmp_path), [archive.verdict(ref)])
    with pytest.raises(ConfigError, match="no S2 tile"):
        propose(cfg, Options(candidates=9))


def test_only_the_reference_job_knows_the_option(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as e:
        main("shard", [reference], "about", ["--set", f"run.out={tmp_path}", "--candidates", "4"])
    assert e.value.code == 2


KEYS = [v.key for v in by_key(some([(0.0, 0.0, 1.0, 9.0, "s2", n, 0) for n in range(3)]))]
GOOD = f"number,keep,key,note\n1,yes,{KEYS[0]},a\n2,no,{KEYS[1]},b\n3,Yes ,{KEYS[2]},c\n"


def written(tmp_path: Path, text: str | bytes) -> str:
    found = by_key(some([(0.0, 0.0, 1.0, 9.0, "s2", n, 0) for n in range(3)]))
    pq.write_table(to_table([v.ref for v in found], TileRef), tmp_path / "mine.parquet")
    (tmp_path / "mine.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "\N{BYTE ORDER MARK}" + GOOD,
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t").replace("\n", "\r\n"),
        GOOD + ",,,\n",
        "".join(f'"{line}"\n'.replace(",", '","') for line in GOOD.splitlines()),
    ],
)
def test_a_table_survives_a_spreadsheet(tmp_path: Path, text: str) -> None:
    assert [r.key for r in candidates.read(written(tmp_path, text))] == [KEYS[0], KEYS[2]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("no", "nope"), r"line 3: keep is 'nope', not yes or no, of s2/.*mine\.csv"),
        (GOOD.replace(",no,", ",,"), "line 3: keep is ''"),
        (GOOD + f"4,no,{KEYS[0]},\n", f"line 5: {KEYS[0]} appears twice"),
        (GOOD + "4,yes,s2/nowhere,\n", r"line 5: 's2/nowhere' is not a tile of mine\.parquet.*larger number"),
        (GOOD.replace("keep", "Behalten"), "line 1: there is no column 'keep' in 'number,Behalten"),
        (GOOD.replace("key", "K"), "line 1: there is no column 'key'"),
        ("", "line 1: there is no column 'keep' in ''"),
        (GOOD.encode("utf-16"), "line 1: not UTF-8.*CSV UTF-8"),
        (GOOD.replace("yes", "yes\0"), "line 2"),
    ],
)
def test_a_table_edited_badly_names_the_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(ReferenceSetError, match=words):
        candidates.read(written(tmp_path, text))


def test_a_table_without_its_pointers_says_what_is_missing(tmp_path: Path) -> None:
    uri = written(tmp_path, GOOD)
    (tmp_path / "mine.parquet").unlink()
    with pytest.raises(ReferenceSetError, match=r"needs mine\.parquet beside it"):
        candidates.read(uri)
    (tmp_path / "mine.parquet").write_bytes(b"torn")
    with pytest.raises(ReferenceSetError, match=r"needs mine\.parquet beside it"):
        candidates.read(uri)
