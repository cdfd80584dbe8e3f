"""Slices of a listing: stable, complete, cut by content and never across scenes."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist.config import load
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.pipeline import manifest
from sar2eo_dist.records import TileRef, digest, from_table, to_table


def refs(count: int, kind: str = "multiearth_netcdf", files: int = 1) -> list[TileRef]:
    day = dt.date(2019, 6, 6)
    per = -(-count // files)
    return [
        TileRef("s2", -60 + 0.02 * (i % 500), -5 + 0.02 * (i // 500), day, kind, ("B4", "B3", "B2"), (f"f{i // per}",),
                digest(i), (i,)) for i in range(count)
    ]  # fmt: skip


def tables(rows: list[TileRef], size: int) -> list[pa.Table]:
    whole = to_table(rows, TileRef).add_column(0, "key", pa.array([r.key for r in rows]))
    return [whole.slice(at, size) for at in range(0, len(rows), size)]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 60))
def test_slices_hold_everything_once_and_do_not_depend_on_how_it_came(count: int, size: int, chunk: int) -> None:
    rows = refs(count)
    found = list(manifest.cut(tables(rows, chunk), size))
    assert [k for t in found for k in t["key"].to_pylist()] == [r.key for r in rows]
    assert found == list(manifest.cut(tables(rows, 1000), size))
    assert all(len(t) <= 2 * size for t in found)
    assert all(len(t) >= max(size // 2, 1) for t in found[:-1])


def test_a_new_tile_changes_the_slice_it_falls_in_and_hardly_another() -> None:
    rows = refs(2000)
    before = {tuple(t["digest"].to_pylist()) for t in manifest.cut(tables(rows, 500), 40)}
    after = {tuple(t["digest"].to_pylist()) for t in manifest.cut(tables([*rows[:700], *rows[701:]], 500), 40)}
    assert len(before) > 40
    assert len(before - after) <= 3


def test_a_slice_never_holds_two_scenes() -> None:
    found = list(manifest.cut(tables(refs(95, "scenes", files=10), 30), 40))
    assert [len({u for row in t["uris"].to_pylist() for u in row}) for t in found] == [1] * len(found)
    assert len(found) >= 10


def test_windows_by_date_go_back_to_the_order_of_their_scenes() -> None:
    whole = pa.concat_tables(tables(refs(95, "scenes", files=10), 30))
    whole = manifest.as_listed(whole)
    mixed = whole.take(np.random.default_rng(0).permutation(len(whole)))
    assert manifest.as_listed(mixed).equals(whole)
    assert len(list(manifest.cut([mixed], 40))) > 50 > len(list(manifest.cut([manifest.as_listed(mixed)], 40)))
    plain = pa.concat_tables(tables(refs(20), 30))
    assert manifest.as_listed(plain) is plain


def test_written_slices_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "SLICES", 3)
    rows = refs(400)
    slices = list(manifest.write(manifest.cut(tables(rows, 64), 40), str(tmp_path)))
    assert len({s.uri for s in slices}) == -(-len(slices) // 3)
    back = [r for s in slices for r in from_table(manifest.read(s.uri, s.group), TileRef)]
    assert back == rows
    assert [s.tiles for s in slices] == [len(manifest.read(s.uri, s.group)) for s in slices]
    assert slices[0].key == rows[0].key
    assert len({s.inputs for s in slices}) == len(slices)
    dry = list(manifest.write(manifest.cut(tables(rows, 64), 40), ""))
    assert [(s.key, s.inputs, s.tiles) for s in dry] == [(s.key, s.inputs, s.tiles) for s in slices]


def test_what_is_not_set_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.s1 is empty"):
        manifest.list_archive(load(), keep=False)
