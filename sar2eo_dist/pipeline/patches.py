"""Patch-wise translation: a MultiEarth target file plus S1 in; images of each target, and the challenge's zip of them, out.

The challenge wants several images of a query: one is made of each of the `translate.nearest` SAR acquisitions nearest in
time. What its server checks and reads (bmswens/Rainforest-Challenge-Submission, frontend/utils.py and eval/translation.py):
a zip with an entry `translation/<name>.tiff` for every name that it expects, one missing and nothing is scored; each opened
by rasterio as three bands of 256 x 256, red, green, blue (B4, B3, B2), each band stretched to its own range, so the dtype
is free; a constant band becomes 0. Which names it expects of the images of one query is in its truth alone: here
`<target>`, `<target>_2`, `<target>_3`, nearest in time first, so that the target's own name is always there.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from sar2eo_dist import sources, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.stage import read_summary
from sar2eo_dist.radiometry import to_uint8
from sar2eo_dist.records import KEPT, PATCH, S1, TileRef, Unit, digest, from_table
from sar2eo_dist.sources.multiearth_netcdf import Target, list_targets
from sar2eo_dist.sources.ranged import ranged

ROWS = 1 << 16  # of verdicts that are decoded at a time
READERS, AHEAD = 16, 64  # threads that fetch images for the zip, and images held at a time
POINTER = [f.name for f in dataclasses.fields(TileRef)]

#: of patches.parquet: a row an image, and one (rank 0, no SAR) for each target that has no SAR in range
SCHEMA = pa.schema(
    [
        ("name", pa.string()), ("target", pa.string()), ("rank", pa.int32()), ("place", pa.string()),
        ("date", pa.date32()), ("sar_key", pa.string()), ("days", pa.int32()), ("status", pa.string()),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Image:
    """One image to be made: name (stem of its file), the target that it answers, its rank (1 = nearest), and its SAR."""

    name: str
    target: Target
    rank: int
    sar: TileRef


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets, each with its SAR acquisitions, nearest first (none: no usable one within `translate.max_days`).

    folder: below the run folder; weights: digest of the networks; nearest: images that a target has in the zip.
    """

    folder: str
    weights: str
    nearest: int
    chosen: tuple[tuple[Target, tuple[TileRef, ...]], ...]

    def images(self) -> Iterator[Image]:
        """All images to be made, in canonical order."""
        for target, refs in self.chosen:
            for rank, ref in enumerate(refs, 1):
                yield Image(_name(target, rank), target, rank, ref)

    def slices(self, size: int) -> Iterator[tuple[str, list[Image], str]]:
        """Units of `size` images in canonical order: (key, images, digest of their inputs)."""
        images = list(self.images())
        for at in range(0, len(images), size):
            part = images[at : at + size]
            yield f"patches{at // size:05d}", part, digest(self.weights, [(i.name, i.sar.digest) for i in part])


def _name(target: Target, rank: int) -> str:
    return target.name if rank == 1 else f"{target.name}_{rank}"


def plan(cfg: Config, weights: str) -> Targets:
    """Choose the SAR of each target of `data.target`. Raises ConfigError where it names none, and what `list_targets` does."""
    uri, t = storage.absolute(cfg.data.target), cfg.translate
    targets = list_targets(uri)
    if not targets:
        raise ConfigError(f"the target file names no target: {uri}")
    verdicts = storage.join(storage.absolute(cfg.run.out), read_summary(cfg, "collect")["outputs"]["verdicts"])
    chosen = tuple(zip(targets, nearest(verdicts, targets, t.max_days, t.nearest), strict=True))
    marks = [(target.name, [ref.digest for ref in refs]) for target, refs in chosen]
    mark = digest(fingerprint(cfg), weights, t.nearest, marks)
    return Targets(f"translate/patches-{mark[:12]}", weights, t.nearest, chosen)


def fingerprint(cfg: Config) -> str:
    """Digest of the config that the pixels of an image depend on, once its SAR is chosen."""
    return digest("patches", cfg.speed.model_dump(mode="json"), cfg.translate.threads)


def nearest(verdicts: str, targets: Sequence[Target], max_days: int, k: int) -> list[tuple[TileRef, ...]]:
    """For each target at most k usable SAR acquisitions of its place, nearest in time first, of equally near ones the earlier.

    verdicts: URI of a parquet file of Verdicts. It is read by columns and ROWS rows at a time, twice: for places and dates
    of the usable SAR, then for the pointers that were chosen; nothing else of it is ever held.
    """
    places = sorted({t.place for t in targets})
    with ranged(verdicts) as f:
        file = pq.ParquetFile(f)
        place, day, row = _usable(file, places)
        order = np.lexsort((row, day, place))
        place, day, row = place[order], day[order], row[order]
        picked: list[list[int]] = []
        for target in targets:
            code, wanted = np.searchsorted(places, target.place), target.date.toordinal()
            first, last = np.searchsorted(place, [code, code + 1])
            near = first + np.searchsorted(day[first:last], [wanted - max_days, wanted + max_days + 1])
            distance = np.abs(day[slice(*near)] - wanted)
            picked.append(row[slice(*near)][np.argsort(distance, kind="stable")[:k]].tolist())
        refs = _pointers(file, sorted({r for rows in picked for r in rows}))
    return [tuple(refs[r] for r in rows) for rows in picked]


def _usable(file: pq.ParquetFile, places: list[str]) -> tuple[npt.NDArray[np.int64], ...]:
    """(index of the place, day as ordinal, row of the file), each (n,) int64, of the usable SAR at some places."""
    epoch, start, found = np.datetime64(0, "D").item().toordinal(), 0, []
    for batch in file.iter_batches(ROWS, columns=["sensor", "reason", "place", "date"]):
        at = pc.index_in(batch["place"], pa.array(places, pa.string()))
        keep = pc.and_(pc.and_(pc.equal(batch["sensor"], S1), pc.equal(batch["reason"], KEPT)), pc.is_valid(at))
        rows = np.flatnonzero(keep.to_numpy(zero_copy_only=False))
        days = batch["date"].cast(pa.int32()).to_numpy(zero_copy_only=False)[rows].astype(np.int64) + epoch
        found.append((at.take(pa.array(rows)).to_numpy(zero_copy_only=False).astype(np.int64), days, rows + start))
        start += batch.num_rows
    return tuple(np.concatenate([part[i] for part in found] or [np.empty(0, np.int64)]) for i in range(3))


def _pointers(file: pq.ParquetFile, rows: Sequence[int]) -> dict[int, TileRef]:
    """row -> pointer, of ascending rows of a file of Verdicts; row groups without any are not read."""
    refs: dict[int, TileRef] = {}
    wanted, start = np.array(rows, np.int64), 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if np.searchsorted(wanted, end) > np.searchsorted(wanted, start):
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=POINTER):
                here = wanted[slice(*np.searchsorted(wanted, [start, start + batch.num_rows]))]
                some = pa.Table.from_batches([batch]).take(pa.array(here - start))
                refs |= zip(here.tolist(), from_table(some, TileRef), strict=True)
                start += batch.num_rows
        start = end
    return refs


def write(chain: Chain, root: str, folder: str, unit: Unit, part: Sequence[Image], attempt: int) -> Entry:
    """Make a slice of images: `<folder>/translation/<name>.tiff`, 3 bands (RGB) of 256 x 256 uint8.

    Raises what `sources.read_sar` does of an acquisition that does not read any more.
    """
    begin, size, outputs = time.time(), 0, []
    for image, (_, db) in zip(part, sources.read_many(image.sar for image in part), strict=True):
        if isinstance(db, Exception):
            raise db
        if not isinstance(db, np.ndarray):
            raise TypeError(f"{image.sar.key} is no SAR")
        size += db.nbytes
        outputs.append(storage.publish(root, _path(folder, image.name), _tiff(to_uint8(chain(db)[-1]))))
    return Entry(unit, tuple(outputs), time.time() - begin, size, attempt, {"patches": len(part)})


def _path(folder: str, name: str) -> str:
    return f"{folder}/translation/{name}.tiff"


def _tiff(rgb: npt.NDArray[np.uint8]) -> bytes:
    profile: dict[str, Any] = {"driver": "GTiff", "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the challenge's images have no place
        with memory.open(height=rgb.shape[1], width=rgb.shape[2], compress="deflate", **profile) as out:
            out.write(rgb)
        data: bytes = memory.read()
    return data


def publish(root: str, targets: Targets, made: set[str]) -> dict[str, str]:
    """`submission.zip`, then `patches.parquet`, which tells that the zip is whole; both are left where they are right already.

    made: names of the images that were made. Status in the table: "translated", "not done" (its unit was not run, or is
    quarantined) or "no SAR in range".
    """
    rows: list[dict[str, Any]] = []
    for target, refs in targets.chosen:
        base = {"target": target.name, "place": target.place, "date": target.date}
        if not refs:
            rows.append(base | {"name": target.name, "rank": 0, "sar_key": "", "status": "no SAR in range"})
        for rank, ref in enumerate(refs, 1):
            name = _name(target, rank)
            about = {"name": name, "rank": rank, "sar_key": ref.key, "days": (target.date - ref.date).days}
            rows.append(base | about | {"status": "translated" if name in made else "not done"})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
    table, archive = (f"{targets.folder}/{name}" for name in ("patches.parquet", "submission.zip"))
    uris = storage.join(root, table), storage.join(root, archive)
    if not (all(map(storage.exists, uris)) and storage.read_bytes(uris[0]) == sink.getvalue()):
        _zip(root, archive, targets, made)
        storage.put(uris[0], sink.getvalue())
    return {"patches": f"{targets.folder}/translation", "patch_table": table, "submission": archive}


def submission(targets: Targets, made: set[str]) -> list[tuple[str, str]]:
    """(entry, image that it holds) of the zip, by name: exactly `translate.nearest` entries a target.

    The server wants every image of every target. What could not be made is the target's nearest image that could; where
    there is none ("") it is black, the trivial prediction.
    """
    entries = []
    for target, refs in targets.chosen:
        names = [_name(target, rank) for rank in range(1, targets.nearest + 1)]
        best = next((name for name in names[: len(refs)] if name in made), "")
        entries += [(name, name if name in made else best) for name in names]
    return sorted(entries)


def _zip(root: str, path: str, targets: Targets, made: set[str]) -> None:
    """Stream the submission through a temporary file: the same bytes for the same images, AHEAD of them held at a time."""
    black = _tiff(np.zeros((3, PATCH, PATCH), np.uint8))
    entries = submission(targets, made)

    def read(entry: tuple[str, str]) -> bytes:
        return storage.read_bytes(storage.join(root, _path(targets.folder, entry[1]))) if entry[1] else black

    with tempfile.TemporaryDirectory() as work:
        local = Path(work, "submission.zip")
        with zipfile.ZipFile(local, "w") as out, ThreadPoolExecutor(READERS) as pool:
            for at in range(0, len(entries), AHEAD):
                some = entries[at : at + AHEAD]
                for (name, _), data in zip(some, pool.map(read, some), strict=True):
                    # stored, for the images are compressed; of a ZipInfo the date is 1980, and the system is said here
                    info = zipfile.ZipInfo(f"translation/{name}.tiff")
                    info.create_system, info.external_attr = 3, 0o644 << 16
                    out.writestr(info, data)
        storage.put_file(storage.join(root, path), str(local))
