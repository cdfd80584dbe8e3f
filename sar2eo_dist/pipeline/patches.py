"""Patch-wise translation: a MultiEarth target file plus S1 in, one image per target out."""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rasterio.io import MemoryFile

from sar2eo_dist import sources, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.stage import read_summary
from sar2eo_dist.radiometry import to_uint8
from sar2eo_dist.records import KEPT, S1, TileRef, Unit, Verdict, digest, from_table, place_key
from sar2eo_dist.sources.multiearth_netcdf import Target, list_targets


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets with the SAR acquisition that each is made from (None: none within `translate.max_days`)."""

    folder: str
    chosen: tuple[tuple[Target, TileRef | None], ...]

    def slices(self, size: int) -> Iterator[tuple[str, list[tuple[Target, TileRef]]]]:
        """Units of `size` patches in canonical order, those without SAR left out."""
        found = [(t, ref) for t, ref in self.chosen if ref is not None]
        for at in range(0, len(found), size):
            yield f"patches{at // size:05d}", found[at : at + size]


def plan(cfg: Config, weights: str) -> Targets:
    """Choose for each target the usable SAR nearest in time at its place (a tie goes to the earlier one)."""
    uri = storage.absolute(cfg.data.target)
    targets = list_targets(uri)
    if not targets:
        raise ConfigError(f"the target file names no target: {uri}")
    collected = read_summary(cfg, "collect")["outputs"]["verdicts"]
    table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(cfg.run.out, collected))))
    usable = table.filter(pc.and_(pc.equal(table["sensor"], S1), pc.equal(table["reason"], KEPT)))
    by_place: dict[str, list[TileRef]] = defaultdict(list)
    for verdict in from_table(usable, Verdict):
        by_place[verdict.place].append(verdict.ref)
    chosen = []
    for t in sorted(targets, key=lambda t: t.name):
        near = [r for r in by_place[place_key(t.lon, t.lat)] if abs((r.date - t.date).days) <= cfg.translate.max_days]
        best = min(near, key=lambda r: (abs((r.date - t.date).days), r.date, r.key), default=None)
        chosen.append((t, best))
    mark = digest(cfg.fingerprint("translate"), weights, [(t.name, ref.digest if ref else "") for t, ref in chosen])
    return Targets(f"translate/patches-{mark[:12]}", tuple(chosen))


def write(
    chain: Chain, root: str, folder: str, unit: Unit, part: Sequence[tuple[Target, TileRef]], attempt: int
) -> Entry:
    """Translate a slice of patches; one 3-band uint8 RGB TIFF of 256 x 256 each, named after its target."""
    begin, size, outputs = time.time(), 0, []
    for target, ref in part:
        db = sources.read_sar(ref)
        size += db.nbytes
        rgb = to_uint8(chain(db)[-1])
        with MemoryFile() as memory:
            profile: dict[str, Any] = {"driver": "GTiff", "count": 3, "dtype": "uint8", "photometric": "RGB"}
            with memory.open(height=rgb.shape[1], width=rgb.shape[2], compress="deflate", **profile) as out:
                out.write(rgb)
            outputs.append(storage.publish(root, f"{folder}/translation/{target.name}.tiff", memory.read()))
    return Entry(unit, tuple(outputs), time.time() - begin, size, attempt, {"patches": len(part)})


def publish(root: str, targets: Targets, made: set[str]) -> dict[str, str]:
    """`patches.parquet`: every target with its SAR key and day difference, also those that had no SAR."""
    rows = [
        {
            "name": t.name, "place": place_key(t.lon, t.lat), "date": t.date, "sar_key": ref.key if ref else "",
            "days": (t.date - ref.date).days if ref else None,
            "status": "translated" if t.name in made else "not done" if ref else "no SAR in range",
        }
        for t, ref in targets.chosen
    ]  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    storage.put(storage.join(root, targets.folder, "patches.parquet"), sink.getvalue())
    return {"patches": f"{targets.folder}/translation", "patch_table": f"{targets.folder}/patches.parquet"}
