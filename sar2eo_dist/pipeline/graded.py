"""What `grade` compares: mosaics where they lie, with their last radar day and finished blocks; and a run's clear tiles."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, NotFound, NothingYet
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.mosaic import store
from sar2eo_dist.pipeline.mosaics import TABLE
from sar2eo_dist.pipeline.near import ROWS
from sar2eo_dist.pipeline.stage import read_summary
from sar2eo_dist.records import KEPT, S2, Unit, digest
from sar2eo_dist.sources import scene_tiles
from sar2eo_dist.sources.ranged import ranged

#: (row, column) of each block that is made -> its unit of work, or what tells the version of its objects
Blocks = dict[tuple[int, int], Unit | str]
STORE = "mosaic.zarr"


@dataclass(frozen=True, slots=True)
class Mosaic:
    """name: of its folder; uri: the folder; last: the last day of the radar that it is made of."""

    name: str
    uri: str
    layout: store.Layout
    last: dt.date

    @property
    def store(self) -> str:
        return storage.join(self.uri, STORE)


@dataclass(frozen=True, slots=True)
class ClearTiles:
    """All georeferenced clear S2 tiles of a run's archive, in its order, without their pointers. verdicts: URI of the table;
    row: in it, ascending; lon, lat: degrees; day: ordinal; targets: digests of those that are in training pairs."""

    verdicts: str
    row: npt.NDArray[np.int64]
    lon: npt.NDArray[np.float64]
    lat: npt.NDArray[np.float64]
    day: npt.NDArray[np.int64]
    targets: frozenset[str]


def mosaics(cfg: Config, root: str) -> list[Mosaic]:
    """Those of `grade.mosaics`, else of the last translate. Raises ConfigError: none, no date, two of one name; NotFound."""
    given = [storage.absolute(folder) for folder in cfg.grade.mosaics]
    if not given:
        outputs = read_summary(cfg, "translate")["outputs"]
        given = [storage.join(root, v) for k, v in outputs.items() if k.partition(" ")[0] == "mosaic"]
    if not given:
        raise ConfigError("the last translate made no mosaic: set data.scenes and run it again, or set grade.mosaics")
    found = []
    for folder in given:
        uri = folder.rstrip("/").removesuffix(STORE).rstrip("/")
        found.append(Mosaic(storage.name(uri), uri, store.read_layout(storage.join(uri, STORE)), _last_day(uri)))
    if twice := [m.uri for m in found if Counter(x.name for x in found)[m.name] > 1]:
        raise ConfigError(f"grade.mosaics of one name would overwrite each other's skill maps: {', '.join(twice)}")
    return found


def _last_day(uri: str) -> dt.date:
    """The end of the temporal extent in the mosaic's STAC collection; where there is none yet, the last of its scenes."""
    days: list[Any] = []
    try:
        collection = json.loads(storage.read_bytes(storage.join(uri, "stac/collection.json")))
        _, end = collection["extent"]["temporal"]["interval"][0]
        days = [end and dt.datetime.fromisoformat(end).date()]
    except NotFound:
        if frame := _frame(uri):
            with ranged(storage.join(uri, storage.name(frame["scenes"]))) as f:
                days = pq.read_table(f, columns=["date"])["date"].to_pylist()
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise ConfigError(f"not the STAC collection of a mosaic ({type(e).__name__}: {e}): {uri}") from e
    if not days or None in days:
        raise ConfigError(
            f"nothing says when the radar of this mosaic was acquired, so no S2 day comes after it: give its scenes a date "
            f"(tag DATE, a product name, or STAC) and run jobs/translate.py again: {uri}"
        )
    last: dt.date = max(days)
    return last


def _frame(uri: str) -> Any:
    """frame.json as translate left it; None where there is none."""
    try:
        return json.loads(storage.read_bytes(storage.join(uri, "frame.json")))
    except NotFound:
        return None


def _run_of(uri: str) -> str:
    """The run folder that a mosaic was made in and still lies in; "" of any other."""
    suffix = f"/{(_frame(uri) or {}).get('folder')}"
    return uri.removesuffix(suffix) if uri.endswith(suffix) else ""


def made_blocks(m: Mosaic) -> Blocks:
    """The blocks that are finished: by the plan and the ledger of the run that made them, else by what lies in the store."""
    if not (run := _run_of(m.uri)):
        return _listed(m.store)
    done = Ledger(run).done("translate")
    with ranged(storage.join(m.uri, TABLE)) as f:
        rows = pq.read_table(f, filters=[("what", "=", "block")]).to_pylist()
    planned = {(r["row"], r["col"]): Unit(r["stage"], r["key"], r["fingerprint"], r["inputs"]) for r in rows}
    return {at: unit for at, unit in planned.items() if unit.id in done}


def _listed(uri: str) -> Blocks:
    """Of a mosaic without a ledger: sizes and marks of its objects."""
    marks: dict[tuple[int, int], list[str]] = {}
    for array in ("rgb", "valid"):
        for info in storage.list_files(storage.join(uri, array, "c")):
            row, col = info.uri.split("/")[-2:]
            marks.setdefault((int(row), int(col)), []).append(f"{info.size} {info.mark}")
    return {at: digest(found) for at, found in marks.items() if len(found) == 2}


def versions(m: Mosaic, made: Blocks, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """What tells whether the pixels of some made blocks are still the same: their sha256 in the ledger, where there is one."""
    out = {at: made[at] for at in sorted(wanted)}
    by_unit = {at: unit for at, unit in out.items() if isinstance(unit, Unit)}
    entries = Ledger(_run_of(m.uri)).entries([*by_unit.values()])
    marks = (digest([a.sha256 for a in e.outputs if f"/{STORE}/" in a.path]) for e in entries)
    return {at: str(mark) for at, mark in (out | dict(zip(by_unit, marks, strict=True))).items()}


def clear_tiles(cfg: Config, root: str) -> ClearTiles:
    """Of collect's verdicts. Raises ConfigError where nothing that collect kept says where its pixels lie."""
    outputs = read_summary(cfg, "collect")["outputs"]
    uri, start, others = storage.join(root, outputs["verdicts"]), 0, 0
    found: list[tuple[npt.NDArray[Any], ...]] = [(np.empty(0, np.int64), *np.empty((2, 0)), np.empty(0, np.int64))]
    with ranged(uri) as f:
        for some in pq.ParquetFile(f).iter_batches(ROWS, columns=["sensor", "reason", "kind", "lon", "lat", "date"]):
            clear = pc.and_(pc.equal(some["sensor"], S2), pc.equal(some["reason"], KEPT)).to_numpy(False)
            here = clear & pc.equal(some["kind"], scene_tiles.KIND).to_numpy(False)
            others += int(clear.sum() - here.sum())
            days = some["date"].cast(pa.int32()).to_numpy(False)[here].astype(np.int64)
            places = (some[c].to_numpy(False)[here] for c in ("lon", "lat"))
            found.append((np.flatnonzero(here) + start, *places, days + np.datetime64(0, "D").item().toordinal()))
            start += some.num_rows
    row, lon, lat, day = (np.concatenate(part) for part in zip(*found, strict=True))
    if not row.size:
        why = f"the {others} clear S2 tiles are MultiEarth patches, which say their place to 0.01 degrees alone"
        raise (ConfigError if others else NothingYet)(
            f"nothing to grade with: {why if others else 'collect kept no S2 tile'}. Grading wants georeferenced S2 scenes: "
            f"set data.kind=scenes and data.s2 to a folder of them, and run jobs/collect.py"
        )
    targets: list[str] = []
    if "pairs" in outputs:
        with ranged(storage.join(root, outputs["pairs"])) as f:
            pairs = pq.read_table(f, columns=["eo_digest"], filters=[("split", "=", "train")])
        targets = pairs["eo_digest"].to_pylist()
    return ClearTiles(uri, row, lon, lat, day, frozenset(targets))
