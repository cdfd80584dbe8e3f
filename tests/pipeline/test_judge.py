"""What a collect task and an extractor actor do with tiles, without a cluster."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sar2eo_dist import sources
from sar2eo_dist.cca import exposure
from sar2eo_dist.errors import BadInput, ModelError, NotFound, Unavailable
from sar2eo_dist.pipeline import manifest
from sar2eo_dist.pipeline.actors import scored
from sar2eo_dist.pipeline.judge import Judge, bare, from_ipc, judge
from sar2eo_dist.records import TileRef, Verdict, from_table, to_table
from sar2eo_dist.sections import CCA
from sar2eo_dist.sources import EO

RNG = np.random.default_rng(11)
CFG = CCA(pack=4, brightness_min=0, dark_max_fraction=1)


def refs(count: int, sensor: str = "s2") -> list[TileRef]:
    return [
        TileRef(sensor, -55, -4, dt.date(2019, 6, 1) + dt.timedelta(i), "k", (), (f"u{i}",), f"d{i}")
        for i in range(count)
    ]


def forest(side: int = 32, offset: int = 0) -> EO:
    return EO((RNG.integers(200, 900, (3, side, side)) + offset).astype(np.uint16), None, offset)


def slices(
    found: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scored: bool = True, final: bool = False
) -> list[dict[str, Any]]:
    rows = refs(len(found))
    table = to_table(rows, TileRef).add_column(0, "key", pa.array([r.key for r in rows]))
    (part,) = manifest.write([table], str(tmp_path))

    def read_many(given: list[TileRef], ahead: int) -> Iterator[tuple[TileRef, Any]]:
        assert given == rows
        yield from zip(given, found, strict=True)

    monkeypatch.setattr(sources, "read_many", read_many)
    row = {"unit": "u", "manifest": part.uri, "group": part.group, "final": final}
    return [{k: v[0] for k, v in p.items()} for p in Judge(CFG, scored)(pa.Table.from_pylist([row]))]


def test_packs_hold_survivors_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[Any] = [forest() for _ in range(10)]
    found[2] = BadInput("unreadable", "u2", "torn")
    found[5] = EO(np.full((3, 32, 32), 5000, np.uint16), None)  # constant
    packs = slices(found, monkeypatch, tmp_path)
    assert [p["pack"] for p in packs] == [0, 1, 2]
    assert [p["last"] for p in packs] == [False, False, True]
    verdicts = [v for p in packs for v in from_table(from_ipc(p["verdicts"]), Verdict)]
    assert [v.key for v in verdicts] == [r.key for r in refs(10)]
    assert [v.reason for v in verdicts if v.reason] == ["unreadable", "constant"]
    assert {v.unit for v in verdicts} == {"u"}
    images = [np.frombuffer(p["pixels"], np.uint8).reshape(-1, 3, 32, 32) for p in packs[:2]]
    assert [len(i) for i in images] == [4, 4]
    kept = [eo for eo in found if isinstance(eo, EO) and eo.bands.min() < 5000]
    np.testing.assert_array_equal(np.concatenate(images), [exposure.stretch(eo.bands) for eo in kept])
    assert packs[-1]["bytes_in"] == sum(eo.bands.nbytes for eo in found if isinstance(eo, EO))


def test_a_pack_has_one_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packs = slices([forest(), forest(), forest(40), forest(40), forest()], monkeypatch, tmp_path)
    assert [p["shape"] for p in packs] == [[3, 32, 32], [3, 40, 40], [3, 32, 32]]


def test_without_a_cloud_set_no_pixels_travel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (pack,) = slices([forest() for _ in range(9)], monkeypatch, tmp_path, scored=False)
    assert (pack["pixels"], pack["last"], len(from_ipc(pack["verdicts"]))) == (b"", True, 9)


def test_an_outage_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packs = slices([forest(), Unavailable("u1", "store did not answer")], monkeypatch, tmp_path, final=True)
    assert packs[-1]["error"].startswith("Unavailable: store did not answer")
    assert not len(from_ipc(packs[-1]["verdicts"]))


def test_a_lost_file_is_tried_again_and_at_last_a_rejection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [forest(), NotFound("u1", "not found")]
    assert slices(found, monkeypatch, tmp_path)[-1]["error"].startswith("NotFound")
    last = slices(found, monkeypatch, tmp_path, final=True)[-1]
    assert last["error"] == ""
    assert [v.reason for v in from_table(from_ipc(last["verdicts"]), Verdict)] == ["", "unreadable"]
    gone = slices([NotFound("u0", "not found")] * 2, monkeypatch, tmp_path, final=True)[-1]
    assert gone["error"].startswith("NotFound"), "a whole slice is lost: that is the store, not its tiles"


def test_an_offset_is_removed_before_anything_is_measured() -> None:
    ref, plain = refs(1)[0], forest()
    shifted = EO(plain.bands + np.uint16(1000), None, 1000)
    (v, image, _), (w, other, _) = judge(ref, plain, CFG), judge(ref, shifted, CFG)
    assert (v.max_dn, v.light, v.offset, w.max_dn, w.light, w.offset) == (v.max_dn, v.light, 0, v.max_dn, v.light, 1000)
    np.testing.assert_array_equal(image, other)


def test_scores_go_to_those_that_were_scored_and_nan_rejects() -> None:
    rows = [bare(r, reason) for r, reason in zip(refs(4), ("", "qa60", "", ""), strict=True)] + [
        bare(refs(1, "s1")[0], "")
    ]
    found = from_table(scored(to_table(rows, Verdict), np.array([1.5, np.nan, 2.5]), "fid", "mark"), Verdict)
    assert [(v.reason, v.score_name, v.scored_by) for v in found] == [
        ("", "fid", "mark"), ("qa60", "", ""), ("not_scored", "fid", "mark"), ("", "fid", "mark"), ("", "", ""),
    ]  # fmt: skip
    np.testing.assert_array_equal([v.score for v in found], [1.5, np.nan, np.nan, 2.5, np.nan])
    with pytest.raises(ModelError, match="2 scores for 3 tiles"):
        scored(to_table(rows, Verdict), np.ones(2), "fid", "mark")
