"""The SAR of each target against a plain search, the images, and the challenge's zip: what is in it, and its bytes."""

from __future__ import annotations

import datetime as dt
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from archive import verdict
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile

from sar2eo_dist import sources, storage
from sar2eo_dist.config import load
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.pipeline import near, patches
from sar2eo_dist.radiometry import to_uint8
from sar2eo_dist.records import KEPT, S1, S2, TileRef, Unit, Verdict, to_table
from sar2eo_dist.sources.multiearth_netcdf import Target

START = dt.date(2020, 1, 1)


def day(n: int) -> dt.date:
    return START + dt.timedelta(n)


def tile(place: int, n: int, sensor: str = S1, mark: str = "") -> TileRef:
    lon = round(-55 + place / 50, 2)
    bands = ("VV", "VH") if sensor == S1 else ("B4", "B3", "B2")
    return TileRef(
        sensor, lon, -4.0, day(n), "multiearth_tiff", bands, (f"{sensor}-{place}-{n}",), f"{place}/{n}{mark}"
    )


def target(place: int, n: int) -> Target:
    ref = tile(place, n)
    return Target(f"Sentinel2_{ref.lon:.2f}_-4.00_{day(n):%Y_%m_%d}", "Sentinel-2", ref.lon, -4.0, day(n), (), 0)


def put(uri: str, verdicts: list[Verdict], group: int = 1 << 20, ordered: bool = True) -> str:
    sink = io.BytesIO()
    verdicts = sorted(verdicts, key=lambda v: v.key) if ordered else verdicts
    pq.write_table(to_table(verdicts, Verdict), sink, row_group_size=group)
    storage.put(uri, sink.getvalue())
    return uri


def rejected(ref: TileRef, reason: str) -> Verdict:
    found = verdict(ref)
    return Verdict(**{f: getattr(found, f) for f in Verdict.__slots__} | {"reason": reason})


acquisitions = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 25), st.sampled_from([S1, S1, S1, S2]), st.sampled_from([KEPT, KEPT, "dark"])),
    max_size=40, unique_by=lambda a: a[:3],
)  # fmt: skip
asked = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 25)), max_size=6, unique=True)


@settings(max_examples=60, deadline=None)
@given(acquisitions, asked, st.integers(0, 9), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_the_nearest_are_those_of_a_plain_search(
    tiles: list[tuple[int, int, str, str]], wanted: list[tuple[int, int]], max_days: int, k: int, group: int, rows: int
) -> None:
    verdicts = [rejected(tile(place, n, sensor), reason) for place, n, sensor, reason in tiles]
    uri = put("memory://patches/verdicts.parquet", verdicts, group, ordered=False)
    targets = [target(*w) for w in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "ROWS", rows)
        found = patches.nearest(uri, targets, max_days, k)
    for t, refs in zip(targets, found, strict=True):
        usable = [v.ref for v in verdicts if v.sensor == S1 and v.reason == KEPT and v.place == t.place]
        within = [r for r in usable if abs((r.date - t.date).days) <= max_days]
        assert list(refs) == sorted(within, key=lambda r: (abs((r.date - t.date).days), r.date))[:k]


def test_only_pointers_of_what_is_chosen_become_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(str(tmp_path / "v.parquet"), [verdict(tile(p, n)) for p in range(8) for n in range(8)], 16)
    made, groups, plain = [], [], near.from_table
    opened = pq.ParquetFile.iter_batches
    monkeypatch.setattr(near, "from_table", lambda table, kind: made.append(table.num_rows) or plain(table, kind))

    def watched(self: Any, size: int, row_groups: Any = None, columns: Any = None) -> Iterator[pa.RecordBatch]:
        groups.extend(row_groups or [])
        assert set(columns) <= {*near.POINTER, "place", "reason"}
        return opened(self, size, **({"row_groups": row_groups} if row_groups else {}), columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    found = patches.nearest(uri, [target(5, 3), target(5, 4)], 2, 2)
    assert [[r.date for r in refs] for refs in found] == [[day(3), day(2)], [day(4), day(3)]]
    assert sum(made) == 3
    assert len(groups) == 1  # of four


@pytest.fixture
def targets() -> patches.Targets:
    """Three images asked for; in order of their names the targets have 1, 0, 2 and 3 acquisitions."""
    chosen = [(target(p, 9), tuple(tile(p, 9 - i) for i in range(n))) for p, n in enumerate((3, 2, 0, 1))]
    return patches.Targets("translate/patches-x", "weights", 3, tuple(sorted(chosen, key=lambda c: c[0].name)))


def test_slices_hold_every_image_once_and_their_inputs_tell_of_all_that_matters(targets: patches.Targets) -> None:
    parts = list(targets.slices(4))
    assert [(key, len(part)) for key, part, _ in parts] == [("patches00000", 4), ("patches00001", 2)]
    images = [i for _, part, _ in parts for i in part]
    assert images == list(targets.images())
    assert len({i.name for i in images}) == 6
    assert {i.name for i in images if i.rank == 1} == {t.name for t, refs in targets.chosen if refs}
    assert {i.name.removeprefix(i.target.name) for i in images} == {"", "_2", "_3"}

    def inputs(weights: str, mark: str) -> list[str]:
        chosen = tuple((t, tuple(tile(0, n, mark=mark) for n, _ in enumerate(refs))) for t, refs in targets.chosen)
        return [digest for _, _, digest in patches.Targets("f", weights, 3, chosen).slices(4)]

    assert inputs("w", "") == inputs("w", "")
    assert not set(inputs("w", "")) & (set(inputs("v", "")) | set(inputs("w", "new")))


def test_a_plan_follows_the_config_and_what_was_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [verdict(tile(1, n)) for n in (3, 8, 9, 30)]
    put(str(tmp_path / "collect/verdicts.parquet"), verdicts)
    summary = {"status": "complete", "outputs": {"verdicts": "collect/verdicts.parquet"}}
    storage.put(str(tmp_path / "collect/summary.json"), json.dumps(summary).encode())
    monkeypatch.setattr(patches, "list_targets", lambda uri: [target(1, 8), target(2, 8)] if "some" in uri else [])

    def plan(*more: str) -> patches.Targets:
        return patches.plan(load(overrides=[f"run.out={tmp_path}", "data.target=some.nc", *more]), "w")

    found = plan()
    assert [[r.date for r in refs] for _, refs in found.chosen] == [[day(8), day(9), day(3)], []]
    assert [r.date for r in plan("translate.nearest=1").chosen[0][1]] == [day(8)]
    assert [r.date for r in plan("translate.max_days=1").chosen[0][1]] == [day(8), day(9)]
    assert found == plan()
    others = ["translate.nearest=4", "translate.max_days=1", "speed.precision=bfloat16"]
    assert len({plan(o).folder for o in others} | {found.folder}) == 4
    with pytest.raises(ConfigError, match=r"none\.nc"):
        plan("data.target=none.nc")


def _pixels(ref: TileRef) -> npt.NDArray[np.float32]:
    return np.full((2, 256, 256), ref.date.day, np.float32)


def chain(db: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """A translator that says zero, and an enhancer whose bands tell the acquisition and the band."""
    return [np.zeros((3, 256, 256), np.float32), np.stack([db[0] / 100 + b / 4 for b in range(3)])]


def made(root: str, targets: patches.Targets, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make all images of some targets; names of the files."""

    def read_many(refs: Iterable[TileRef]) -> Iterator[tuple[TileRef, Any]]:
        return ((ref, _pixels(ref)) for ref in refs)

    monkeypatch.setattr(sources, "read_many", read_many)
    out = []
    for key, part, inputs in targets.slices(4):
        unit = Unit("translate", key, "f", inputs)
        entry = patches.write(chain, root, targets.folder, unit, part, 2)  # type: ignore[arg-type]
        assert (entry.unit, entry.attempt, entry.counts) == (unit, 2, {"patches": len(part)})
        assert entry.bytes_in == len(part) * 2 * 256 * 256 * 4
        assert [storage.sha256(storage.read_bytes(storage.join(root, a.path))) for a in entry.outputs] == [
            a.sha256 for a in entry.outputs
        ]
        out += [Path(a.path).stem for a in entry.outputs]
    return out


def test_an_image_is_the_last_networks_as_three_bands_of_rgb(
    tmp_path: Path, targets: patches.Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(str(tmp_path), targets, monkeypatch) == [i.name for i in targets.images()]
    for image in targets.images():
        with rasterio.open(tmp_path / targets.folder / "translation" / f"{image.name}.tiff") as found:
            assert (found.count, found.shape, set(found.dtypes)) == (3, (256, 256), {"uint8"})
            assert [c.name for c in found.colorinterp] == ["red", "green", "blue"]
            np.testing.assert_array_equal(found.read(), to_uint8(chain(_pixels(image.sar))[-1]))


def test_what_does_not_read_fails_the_unit_by_name(targets: patches.Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = BadInput("unreadable", "s3://b/x.tiff", "torn")
    monkeypatch.setattr(sources, "read_many", lambda refs: ((ref, torn) for ref in refs))
    _, part, inputs = next(targets.slices(4))
    with pytest.raises(BadInput, match=r"torn.*x\.tiff"):
        patches.write(chain, "memory://none", "f", Unit("translate", "k", "f", inputs), part, 1)  # type: ignore[arg-type]


def test_the_table_tells_of_every_image_and_of_targets_without(
    tmp_path: Path, targets: patches.Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = made(str(tmp_path), targets, monkeypatch)
    outputs = patches.publish(str(tmp_path), targets, set(names[1:]))
    rows = pq.read_table(tmp_path / outputs["patch_table"]).to_pylist()
    assert len(rows) == 7
    status = {r["name"]: r["status"] for r in rows}
    assert [n for n, s in status.items() if s == "translated"] == names[1:]
    assert status[names[0]] == "not done"
    (none,) = [r for r in rows if r["status"] == "no SAR in range"]
    assert (none["name"], none["rank"], none["sar_key"], none["days"]) == (targets.chosen[1][0].name, 0, "", None)
    by_name = {r["name"]: r for r in rows}
    for image in targets.images():
        row = by_name[image.name]
        assert (row["target"], row["rank"], row["sar_key"]) == (image.target.name, image.rank, image.sar.key)
        assert (row["days"], row["date"], row["place"]) == (image.rank - 1, day(9), image.target.place)


@pytest.mark.parametrize("root", ["local", "memory://zipped"])
def test_the_zip_holds_all_that_the_server_asks_for(
    root: str, tmp_path: Path, targets: patches.Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path) if root == "local" else root
    names = made(root, targets, monkeypatch)
    lost = names[1]  # the nearest image of the target with two
    monkeypatch.setattr(patches, "AHEAD", 5)
    outputs = patches.publish(root, targets, set(names) - {lost})
    data = storage.read_bytes(storage.join(root, outputs["submission"]))
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        entries = {i.filename: found.read(i) for i in found.infolist()}
        assert list(entries) == sorted(entries)
        assert {(i.date_time, i.compress_type, i.create_system) for i in found.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 0, 3)
        }
    stems = [t.name + end for t, _ in targets.chosen for end in ("", "_2", "_3")]
    assert list(entries) == sorted(f"translation/{s}.tiff" for s in stems)

    def stored(name: str) -> bytes:
        return storage.read_bytes(storage.join(root, outputs["patches"], f"{name}.tiff"))

    for (t, refs), kept in zip(targets.chosen, ([0], [], [None, 1], [0, 1, 2]), strict=True):
        own = [t.name, f"{t.name}_2", f"{t.name}_3"]
        best = next((own[k] for k in kept if k is not None), None)
        for k, name in enumerate(own):
            got = entries[f"translation/{name}.tiff"]
            if best is None:
                with MemoryFile(got) as memory, memory.open() as black:
                    assert (black.count, black.shape, black.read().any()) == (3, (256, 256), False)
            else:
                assert got == stored(name if k in kept else best), (t.name, len(refs), k)


def test_entries_of_the_zip_are_in_order_whatever_the_order_of_targets() -> None:
    chosen = tuple((target(p, 9), (tile(p, 9),)) for p in (2, 0, 1))
    entries = patches.submission(patches.Targets("f", "w", 2, chosen), {target(0, 9).name})
    names = sorted(t.name for t, _ in chosen)
    made = target(0, 9).name
    assert entries == [(n + end, made if n == made else "") for n in names for end in ("", "_2")]


def test_publishing_again_gives_equal_bytes_and_touches_nothing_that_is_right(
    tmp_path: Path, targets: patches.Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set(made(str(tmp_path), targets, monkeypatch))
    outputs = patches.publish(str(tmp_path), targets, names)
    files = [tmp_path / outputs[k] for k in ("submission", "patch_table")]
    before = [(f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_ino) for f in files]
    assert patches.publish(str(tmp_path), targets, names) == outputs
    assert [(f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_ino) for f in files] == before
    for gone in files:
        gone.unlink()
        patches.publish(str(tmp_path), targets, names)
        assert [f.read_bytes() for f in files] == [b[0] for b in before]
    patches.publish(str(tmp_path), targets, set())
    assert files[0].read_bytes() != before[0][0]
