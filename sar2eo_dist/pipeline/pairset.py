"""The enhancement set: what the translator makes of every pair of a pair store, as shards beside it.

What an enhancer is trained on, made once instead of in every epoch: whole patches, since instance norm and attention read
statistics of the window, and those of a crop are not what the enhancer will meet. Sample i is made of sample i
of the pair store, one shard object of one of the other, so the two are read side by side by the same places.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist import shards, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import TooManyFailures
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.shard import present
from sar2eo_dist.pipeline.stage import Failure, Options, read_summary, run_stage
from sar2eo_dist.radiometry import decode_db
from sar2eo_dist.reader import Range, StoredArray, fetch
from sar2eo_dist.records import PATCH, Artifact, Unit, digest
from sar2eo_dist.sections import Speed

STAGE = "translate"
FORMAT = 1  # of a set; another one is another set
ARRAY = "translated"
STEP = 1 / 32767  # -1, 0 and 1 are stored exactly, the rest is at most half a step (1.6e-5) off
RUN = 16  # samples of one read

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PairSet:
    """Where the set goes and what it says of itself. folder: of the set, store: of its pairs, both below the run folder."""

    folder: str
    store: str
    spec: shards.ArraySpec
    attributes: dict[str, str]


def array(count: int, samples: int) -> shards.ArraySpec:
    """`translated` (N, 3, 256, 256) int16, `samples` to an object: the image in [-1, 1] in steps of 1 / 32767."""
    size = (3, PATCH, PATCH)
    about = {"scale_factor": STEP, "add_offset": 0.0, "units": "1", "band": ["B4", "B3", "B2"]}
    dims = ("sample", "band", "row", "col")
    return shards.ArraySpec(ARRAY, (count, *size), (samples, *size), (1, *size), "int16", dims, 0, "lz4", about)


def plan(cfg: Config, root: str, weights: str) -> tuple[PairSet, list[tuple[Unit, int]]]:
    """The set of the pair store that jobs/shard.py left, and its units: one a shard object that is there, with its number.

    root: of the run; weights: `bundle.digest` of the translator. Pixels depend on these two, on `speed` and on
    `translate.threads`, so nothing else of the config plans them anew. Raises Sar2EoError where there is no pair store.
    """
    sharded = read_summary(cfg, "shard")
    store, counts = sharded["outputs"]["store"], sharded["counts"]
    count, samples = counts["pairs"], counts["pairs a shard"]
    pairs = str(shards.open_store(storage.join(root, store)).attrs["store"])
    fingerprint = digest(FORMAT, cfg.speed.model_dump(mode="json"), cfg.translate.threads)
    mark = digest(fingerprint, pairs, weights)
    attributes = {
        "created_by": "sar2eo_dist", "pair_store": store, "pair_store_digest": pairs, "bundle_digest": weights,
    }  # fmt: skip
    made = PairSet(f"{store}-{ARRAY}-{mark[:12]}", store, array(count, samples), attributes)
    numbers = (present(sharded, np.arange(0, count, samples)) // samples).tolist()
    return made, [(Unit(STAGE, f"{made.folder}/{i:05d}", fingerprint, digest(mark, i)), i) for i in numbers]


def write_template(root: str, made: PairSet) -> list[Artifact]:
    """The set's metadata; by the driver, before any shard."""
    return shards.write_template(root, made.folder, (made.spec,), made.attributes)


def write(chain: Chain, root: str, made: PairSet, unit: Unit, number: int, attempt: int) -> Entry:
    """One shard object: whole patches scaled by the bundle's scaling, one a forward, as the enhancer's training makes them.

    chain: of the translator alone (what follows it would run for nothing). Raises what reading pairs does (Corrupt,
    NotFound, storage's errors).
    """
    begin, size = time.time(), 0
    shard = shards.Shard(made.spec, (number, 0, 0, 0))
    first, count = number * made.spec.shard[0], made.spec.extent(shard.index)[0]
    for sar in _Samples(storage.join(root, made.store), "sar").ahead(first, first + count):
        size += sar.nbytes
        for counts in sar:
            shard.add(quantise(chain(decode_db(counts))[0])[None])
    return Entry(unit, (shard.publish(root, made.folder),), time.time() - begin, size, attempt, {"pairs": count})


class Maker:
    """The translator in one process; makes shards of a set."""

    def __init__(self, root: str, uri: str, threads: int, speed: Speed, made: PairSet) -> None:
        self.root, self.made = root, made
        self.chain = Chain([uri], threads, speed)

    def __call__(self, unit: Unit, number: int, attempt: int) -> Entry:
        return write(self.chain, self.root, self.made, unit, number, attempt)


def make(cfg: Config, opts: Options, root: str, uri: str) -> tuple[str, set[int]]:
    """Make what is missing of the set of the translator's bundle at `uri`, before its enhancer is trained.

    Returns the set's URI and the numbers of the shards that could not be made. Raises TooManyFailures where they are a
    larger share than run.tolerance.
    """
    made, planned = plan(cfg, root, bundle.digest(bundle.read(uri)))
    write_template(root, made)
    numbers = {unit.id: (unit, number) for unit, number in planned}

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        part = cluster.share(cfg.resources.translators, cfg.translate.threads, len(todo), *cluster.capacity(cfg))
        build = partial(Maker, root, uri, cfg.translate.threads, cfg.speed, made)
        yield from units.run(None, [numbers[u.id] for u in todo], attempt, make=build, part=part)

    whole = dataclasses.replace(opts, limit=0, fresh=False)
    summary = run_stage(cfg, whole, STAGE, [u for u, _ in planned], execute, "shards", of=1 << 40)
    lost = {q["unit"]: q["reason"] for q in summary.quarantined}
    if len(lost) > cfg.run.tolerance * len(planned):
        first = next(iter(lost.values()))
        raise TooManyFailures(f"{len(lost)} of {len(planned)} shards of the enhancement set failed; the first: {first}")
    return storage.join(root, made.folder), {numbers[uid][1] for uid in lost}


def quantise(image: F32) -> npt.NDArray[np.int16]:
    """[-1, 1] float to int16 in steps of 1 / 32767, clipped; to the nearest, so at most 1.6e-5 off."""
    counts: npt.NDArray[np.int16] = np.rint(np.clip(image, -1, 1) * np.float32(32767)).astype(np.int16)
    return counts


class TranslatedReader:
    """Images of the set at a URI, by place of the pair store. Opened at its first use; many threads may share it.

    Raises as `reader.PairReader` does: NotFound, Corrupt, StorageError, Unavailable; IndexError outside.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self._samples = uri, _Samples(uri, ARRAY)

    def __reduce__(self) -> tuple[Any, ...]:
        return TranslatedReader, (self.uri,)

    def __len__(self) -> int:
        return self._samples.array.count

    def __call__(self, i: int) -> F32:
        """(3, 256, 256) float32 in [-1, 1], at most 2e-5 off what the translator gave."""
        image: F32 = self._samples.run(i, i + 1)[0] * np.float32(STEP)
        return image


class _Samples:
    """Samples of one array of a store, by place."""

    def __init__(self, uri: str, name: str) -> None:
        self._uri, self._name = uri, name

    @cached_property
    def array(self) -> StoredArray:
        return StoredArray(self._uri, self._name)

    def run(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Samples [start, stop) with a leading axis: one ranged read of each shard object that holds some of them."""
        array = self.array
        if not 0 <= start < stop <= array.count:
            raise IndexError(f"samples {start} to {stop} of a store of {array.count}: {self._uri}")
        out, at = np.empty((stop - start, *array.shape), array.dtype), start
        while at < stop:
            number, first = divmod(at, array.per_object)
            last = min(first + stop - at, array.per_object)
            held = array.object(number)
            found = held.locate(first, last)
            data, offset = (next(fetch([found])), found.start) if isinstance(found, Range) else (found, 0)
            for k in range(first, last):
                held.decode(array, data, offset, k, out[at - start + k - first])
            at += last - first
        return out

    def ahead(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """`run` by RUN samples from start to stop; while one is used, the next is read."""
        with ThreadPoolExecutor(1, thread_name_prefix="pairs") as pool:
            coming = pool.submit(self.run, start, min(start + RUN, stop))
            for at in range(start, stop, RUN):
                here = coming.result()
                if (after := at + RUN) < stop:
                    coming = pool.submit(self.run, after, min(after + RUN, stop))
                yield here
