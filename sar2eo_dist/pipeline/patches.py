"""Patch-wise translation: a MultiEarth target file plus S1 in; images of each target, and the challenge's zip of them, out.

The challenge wants several images of a query: one is made of each of the `translate.nearest` SAR acquisitions nearest in
time. What its server checks and reads (bmswens/Rainforest-Challenge-Submission, frontend/utils.py and eval/translation.py):
a zip with an entry `translation/<name>.tiff` for every name that it expects, one missing and nothing is scored; each opened
by rasterio as three bands of 256 x 256, red, green, blue (B4, B3, B2), each band stretched to its own range, so the dtype
is free; a constant band becomes 0. Which names it expects of the images of one query is in its truth alone: here
`<target>`, `<target>_2`, `<target>_3`, nearest in time first, so that the target's own name is always there.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sar2eo_dist import sources, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError
from sar2eo_dist.evaluation.submission import encode, entry_of, write_zip
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.near import usable
from sar2eo_dist.pipeline.stage import read_summary
from sar2eo_dist.radiometry import to_uint8
from sar2eo_dist.records import PATCH, S1, TileRef, Unit, digest
from sar2eo_dist.sources.multiearth_netcdf import Target, list_targets

READERS, AHEAD = 16, 64  # threads that fetch images for the zip, and images held at a time

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
                yield Image(image_name(target, rank), target, rank, ref)

    def slices(self, size: int) -> Iterator[tuple[str, list[Image], str]]:
        """Units of `size` images in canonical order: (key, images, digest of their inputs)."""
        images = list(self.images())
        for at in range(0, len(images), size):
            part = images[at : at + size]
            yield f"patches{at // size:05d}", part, digest(self.weights, [(i.name, i.sar.digest) for i in part])


def image_name(target: Target, rank: int) -> str:
    """Name of the image of a target that is made of its rank-th nearest SAR (1 = nearest)."""
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

    verdicts: URI of a parquet file of Verdicts, see `usable`.
    """

    def pick(days: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        near = np.flatnonzero(np.abs(days) <= max_days)
        return near[np.argsort(np.abs(days[near]), kind="stable")[:k]]

    return usable(verdicts, S1, [(t.place, t.date) for t in targets], pick)


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
        outputs.append(storage.publish(root, _path(folder, image.name), encode(to_uint8(chain(db)[-1]))))
    return Entry(unit, tuple(outputs), time.time() - begin, size, attempt, {"patches": len(part)})


def _path(folder: str, name: str) -> str:
    return f"{folder}/{entry_of(name)}"


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
            name = image_name(target, rank)
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
        names = [image_name(target, rank) for rank in range(1, targets.nearest + 1)]
        best = next((name for name in names[: len(refs)] if name in made), "")
        entries += [(name, name if name in made else best) for name in names]
    return sorted(entries)


def _zip(root: str, path: str, targets: Targets, made: set[str]) -> None:
    """Stream the submission through a temporary file: the same bytes for the same images, AHEAD of them held at a time."""
    black = encode(np.zeros((3, PATCH, PATCH), np.uint8))
    entries = submission(targets, made)

    def read(entry: tuple[str, str]) -> bytes:
        return storage.read_bytes(storage.join(root, _path(targets.folder, entry[1]))) if entry[1] else black

    def images(pool: ThreadPoolExecutor) -> Iterator[tuple[str, bytes]]:
        for at in range(0, len(entries), AHEAD):
            some = entries[at : at + AHEAD]
            yield from zip((name for name, _ in some), pool.map(read, some), strict=True)

    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(READERS) as pool:
        local = str(Path(work, "submission.zip"))
        write_zip(local, images(pool))
        storage.put_file(storage.join(root, path), local)
