"""collect: stream Sentinel tiles through the Clean Collector Algorithm; verdicts, calibration and pairs to parquet.

    manifest slice -> read + stages 1 and 2 (tasks) -> packs of survivors -> features + Frechet score (actors) -> driver

A pack is `cca.pack` survivors of one slice in canonical order, padded: the forward that scores a tile is the same
whatever the workers do, so a slice's verdicts are equal bytes on every run. The driver only gathers small rows, writes
a slice's verdicts when its last pack is in, and commits.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from sar2eo_dist import sources, storage
from sar2eo_dist.cca import assess, exposure
from sar2eo_dist.config import Config
from sar2eo_dist.errors import AccessDenied, BadInput, ConfigError, NotFound
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline import cluster, selection
from sar2eo_dist.pipeline.actors import ScoreActor
from sar2eo_dist.pipeline.reference import reference_images, reference_set
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, run_stage, write_summary
from sar2eo_dist.radiometry import validity
from sar2eo_dist.records import KEPT, S1, S2, TileRef, Unit, Verdict, by_key, digest, from_table, to_table
from sar2eo_dist.sections import CCA

STAGE = "collect"


def slices(refs: Sequence[TileRef], size: int) -> list[list[TileRef]]:
    """Cut refs (in canonical order) into slices of about `size`, at places that the keys themselves decide.

    Content-defined: a tile that appears or vanishes changes the slice it falls in, and not the ones after it.
    """
    out: list[list[TileRef]] = []
    current: list[TileRef] = []
    for ref in refs:
        current.append(ref)
        boundary = int(digest(ref.key)[:8], 16) % max(size // 2, 1) == 0
        if len(current) >= 2 * size or (len(current) >= max(size // 2, 1) and boundary):
            out.append(current)
            current = []
    return [*out, current] if current else out


def collect(cfg: Config, opts: Options) -> Summary:
    """Run the verb. Raises ConfigError where nothing is listed, ReferenceSetError for a bad cloud set."""
    refs, rejected = [], []
    for sensor, root in ((S1, cfg.data.s1), (S2, cfg.data.s2)):
        if not root and cfg.data.kind != "folder_pair":  # which is refused by its own name
            raise ConfigError(f"data.{sensor} is empty: set it to a MultiEarth TIFF folder or NetCDF file (any URI)")
        found, bad = sources.list_tiles(cfg.data.kind, storage.absolute(root), sensor)
        refs += by_key(found)
        rejected += bad
    if not refs:
        raise ConfigError(f"no Sentinel-1 or Sentinel-2 tile in {cfg.data.s1} or {cfg.data.s2}")
    images = reference_images(cfg.cca)
    fingerprint = cfg.fingerprint(STAGE)
    mark = digest([i.digest for i in images])
    plan = {
        u.id: (u, part)
        for part in slices(refs, cfg.cca.slice)
        if (u := Unit(STAGE, part[0].key, fingerprint, digest(mark, [r.digest for r in part])))
    }
    units = [u for u, _ in plan.values()]

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        yield from _stream(cfg, [plan[u.id] for u in todo], reference_set(cfg, images, mark), attempt)

    summary = run_stage(cfg, opts, STAGE, units, execute, "slices")
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"tiles": len(refs), "unusable": len(rejected)})
    bad_units = {q["unit"] for q in summary.quarantined}
    finished = [u for u in units[: summary.planned] if u.id not in bad_units]
    entries = Ledger(cfg.run.out).entries(finished)
    outputs, counts = selection.publish(cfg, [e.outputs[0].path for e in entries], rejected, mark)
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs, counts=counts))


def _stream(
    cfg: Config, todo: Sequence[tuple[Unit, list[TileRef]]], reference: str, attempt: int
) -> Iterator[Entry | Failure]:
    """Units through Ray Data; yields a completion as soon as a unit's last pack has arrived."""
    manifest = _write_manifest(cfg, todo)
    cpus, gpus = cluster.capacity(cfg)
    final = attempt >= cfg.run.max_attempts
    rows = [{"unit": u.id, "group": i, "manifest": manifest, "final": final} for i, (u, _) in enumerate(todo)]
    readers = TaskPoolStrategy(cfg.resources.readers) if cfg.resources.readers else None
    packs = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Assess(cfg.cca, bool(reference)), batch_size=1, batch_format="pyarrow", compute=readers, **cluster.TASKS
    )
    if reference:
        part = cluster.share(cfg.resources.extractors, cfg.cca.threads, len(rows), cpus, gpus, readers=1.0)
        packs = packs.map_batches(
            ScoreActor,
            fn_constructor_args=(cfg.cca, reference),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=part.actors, max_size=part.actors),
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            **cluster.ACTORS,
        )
    units = {u.id: u for u, _ in todo}
    started: dict[str, float] = {}
    gathered: dict[str, dict[int, pa.Table]] = defaultdict(dict)
    lengths: dict[str, int] = {}
    sizes: dict[str, int] = defaultdict(int)
    for row in packs.iter_rows():
        uid = row["unit"]
        if row["error"]:
            gathered.pop(uid, None)
            yield Failure(uid, row["error"])
            continue
        started.setdefault(uid, row["started"])
        gathered[uid][row["pack"]] = pa.ipc.open_stream(row["verdicts"]).read_all()
        sizes[uid] = max(sizes[uid], int(row["bytes_in"]))
        if row["last"]:
            lengths[uid] = row["pack"] + 1
        if lengths.get(uid) == len(gathered[uid]):
            tables = gathered.pop(uid)
            table = pa.concat_tables([tables[i] for i in range(len(tables))])
            yield _complete(cfg, units[uid], table, time.time() - started[uid], sizes[uid], attempt)


def _complete(cfg: Config, unit: Unit, table: pa.Table, seconds: float, bytes_in: int, attempt: int) -> Entry:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    artifact = storage.publish(cfg.run.out, f"{STAGE}/slices/{unit.id}.parquet", buffer.getvalue())
    counts = Counter(f"{s} {r or 'pass'}" for s, r in zip(*(table[c].to_pylist() for c in ("sensor", "reason"))))  # noqa: B905
    return Entry(unit, (artifact,), seconds, bytes_in, attempt, dict(counts))


def _write_manifest(cfg: Config, todo: Sequence[tuple[Unit, list[TileRef]]]) -> str:
    """The pointers of the units to run: one parquet row group a unit, so that Ray carries no pointer lists."""
    uri = storage.join(cfg.run.out, STAGE, f"manifest-{digest([u.id for u, _ in todo])[:12]}.parquet")
    buffer = io.BytesIO()
    first = to_table(todo[0][1], TileRef)
    with pq.ParquetWriter(buffer, first.schema, compression="zstd") as writer:
        for _, refs in todo:
            writer.write_table(to_table(refs, TileRef), row_group_size=len(refs))
    storage.put(uri, buffer.getvalue())
    return storage.absolute(uri)


class _Assess:
    """A manifest slice -> packs: reads each tile, runs stages 1 and 2, and keeps pixels of survivors only."""

    def __init__(self, cca: CCA, scored: bool) -> None:
        self.cca, self.scored = cca, scored

    def __call__(self, batch: pa.Table) -> Iterator[dict[str, Any]]:
        for row in batch.to_pylist():
            yield from self._slice(row)

    def _slice(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        begin, size = time.time(), 0
        verdicts: list[Verdict] = []
        pixels: list[npt.NDArray[np.uint8]] = []
        number = 0

        def pack(last: bool, error: str = "") -> dict[str, Any]:
            sink = io.BytesIO()
            table = to_table(verdicts, Verdict)
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            return {
                "unit": [row["unit"]], "pack": [number], "last": [last], "error": [error], "started": [begin],
                "bytes_in": [size], "verdicts": [sink.getvalue()],
                "pixels": [np.stack(pixels).tobytes() if pixels else b""],
            }  # fmt: skip

        try:
            with storage.open_read(row["manifest"]) as f:
                refs = from_table(pq.ParquetFile(f).read_row_group(row["group"]), TileRef)
            lost = 0
            for ref in refs:
                try:
                    verdict, image, nbytes = judge(ref, self.cca)
                except (NotFound, AccessDenied) as e:
                    lost += 1
                    if not row["final"] or lost == len(refs):  # the store's fault, not this tile's: try the unit again
                        raise
                    verdict, image, nbytes = bare(ref, "unreadable", f"{e.message} in every attempt"), None, 0
                size += nbytes
                verdicts.append(verdict)
                if self.scored and image is not None:
                    pixels.append(image)
                if len(pixels) == self.cca.pack:
                    yield pack(last=False)
                    number += 1
                    verdicts, pixels = [], []
        except Exception as e:  # an outage (or our own error) is no verdict on a tile: the unit is tried again
            verdicts, pixels = [], []
            yield pack(last=True, error=f"{type(e).__name__}: {e}")
            return
        yield pack(last=True)


def bare(ref: TileRef, reason: str, detail: str = "") -> Verdict:
    """A verdict without measurements."""
    pointer = {f.name: getattr(ref, f.name) for f in dataclasses.fields(TileRef)}
    return Verdict(**pointer, key=ref.key, place=ref.place, reason=reason, detail=detail)


def judge(ref: TileRef, cca: CCA) -> tuple[Verdict, npt.NDArray[np.uint8] | None, int]:
    """Read one tile and run stages 1 and 2: (verdict, stretched image (3, H, W) uint8 RGB of a survivor, pixel bytes).

    A bad tile is a verdict with its reason; an outage of the store raises StorageError.
    """
    try:
        if ref.sensor == S1:
            db = sources.read_sar(ref)
            share = float(validity(db).mean())
            return dataclasses.replace(bare(ref, KEPT), valid_fraction=share), None, db.nbytes
        eo = sources.read_eo(ref)
    except BadInput as e:
        return bare(ref, e.reason, e.detail), None, 0
    m = assess(eo.bands, eo.qa60, cca)
    verdict = dataclasses.replace(bare(ref, m.reason), **dataclasses.asdict(m))
    return verdict, exposure.stretch(eo.bands) if m.reason == KEPT else None, eo.bands.nbytes
