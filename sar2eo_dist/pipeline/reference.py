"""reference: the cloud set of the Frechet stage; images -> features through the extractor -> a stored Reference.

    reference/<version>/reference.npz     what tiles are scored against (cca/reference.py)
    reference/<version>/reference.json    what it was made of, for a person
    reference/<version>/contact-1.png ... its images

The version stands for the images (URI, size, ETag or mtime) and for what the config does to them.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from sar2eo_dist import storage
from sar2eo_dist.cca.frechet import Moments, Reference, own_distance
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ReferenceSetError, Sar2EoError
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.models.extractors import Extractor
from sar2eo_dist.pipeline import candidates, cluster, driver
from sar2eo_dist.pipeline.actors import forward, load_extractor
from sar2eo_dist.pipeline.driver import Driver
from sar2eo_dist.pipeline.members import (
    KINDS,
    Member,
    Members,
    listed,
    preprocessing,
    read_all,
    same_size,
    stored,
)
from sar2eo_dist.pipeline.progress import Meter
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, run_stage, write_summary
from sar2eo_dist.records import PATCH, Artifact, Unit, digest
from sar2eo_dist.report import contact
from sar2eo_dist.sections import CCA

T = TypeVar("T")
STAGE = "reference"
FEW = 50  # images under which a set deserves a warning; the paper's had 1,000


def reference(cfg: Config, opts: Options) -> Summary:
    """Run the verb: build the set that `cca.reference` names, or list candidates for one (`opts.candidates`).

    Raises what `members.listed`, `build` and `candidates.propose` raise.
    """
    if opts.candidates:
        return candidates.propose(cfg, opts)
    found = listed(cfg.cca)
    unit = unit_of(cfg.cca, found)

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        if found.items:
            cluster.start(cfg)
        yield build(cfg, unit, found, attempt)

    summary = run_stage(cfg, opts, STAGE, [unit], execute, "")
    if opts.dry_run:
        return summary
    entry = Ledger(cfg.run.out).entry(unit)
    made = storage.join(cfg.run.out, entry.outputs[0].path)
    print(f"The same config finds this set by itself in {cfg.run.out}; elsewhere: --set cca.reference={made}")
    names = {"reference.npz": "reference", "reference.json": "made of", "contact-1.png": "contact sheets"}
    outputs = {names[n]: a.path for a in entry.outputs if (n := storage.name(a.path)) in names}
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs))


def unit_of(cca: CCA, found: Members) -> Unit:
    """The unit of work that builds a set: the same images under the same config, whatever the profile and the machine."""
    kind = KINDS[cca.distance]
    own = cca.distance if cca.rule == "reference" else ""
    affects = digest(cca.extractor, preprocessing(cca.extractor), kind, cca.pack, cca.threads, own)
    return Unit(STAGE, f"{cca.extractor} {kind}", affects, found.mark)


def built(cfg: Config, found: Members) -> str:
    """URI of the stored Reference of a set, made now unless the run folder has it whole; Ray must be up. "" of no set."""
    if not found.mark:
        return ""
    unit, ledger = unit_of(cfg.cca, found), Ledger(cfg.run.out)
    if not has(cfg, found):
        ledger.forget([unit])
        ledger.commit(build(cfg, unit, found))
    return storage.absolute(storage.join(cfg.run.out, ledger.entry(unit).outputs[0].path))


def has(cfg: Config, found: Members) -> bool:
    """Whether the run folder has this set, whole."""
    unit, ledger = unit_of(cfg.cca, found), Ledger(cfg.run.out)
    return unit.id in ledger.done(STAGE) and not ledger.audit([unit], rehash=False)


def build(cfg: Config, unit: Unit, found: Members, attempt: int = 1) -> Entry:
    """Make a set and publish it below `reference/<version>/`; Ray must be up where it has images.

    Raises ReferenceSetError: an image that cannot be decoded or has another size, features that are not finite; storage's
    errors.
    """
    begin, cca, n = time.time(), cfg.cca, len(found.items)
    folder = f"{STAGE}/{unit.id[:12]}"
    if 0 < n < FEW:
        print(
            f"a cloud set of {n} images is small (the paper's has 1,000): scores hang on which they are",
            file=sys.stderr,
        )
    if found.items:
        made, size, sheets = _from_images(cfg, found, folder)
        if cca.rule == "reference":
            packs = _packs(cfg, found.items, made.to_bytes())
            own = np.concatenate([np.frombuffer(row["features"], np.float64) for row in packs])
            made = dataclasses.replace(made, own=np.sort(own), distance=cca.distance)
    else:
        made, size, sheets = stored(storage.read_bytes(found.built), cca), [], []
    about = {
        "version": unit.id[:12], "digest": made.digest, "count": made.count, "extractor": made.extractor,
        "preprocessing": made.preprocessing, "kind": made.kind, "pack": cca.pack, "threads": cca.threads,
        "image_size": size, "built_from": found.built,
        "members": [{"name": m.name, "uris": m.uris, "digest": m.digest} for m in found.items],
    }  # fmt: skip
    outputs = (
        storage.publish(cfg.run.out, f"{folder}/reference.npz", made.to_bytes()),
        storage.publish(cfg.run.out, f"{folder}/reference.json", json.dumps(about, indent=1).encode()),
        *sheets,
    )
    return Entry(unit, outputs, time.time() - begin, 0, attempt, {"images": made.count})


def _from_images(cfg: Config, found: Members, folder: str) -> tuple[Reference, list[int], list[Artifact]]:
    """(the set, [width, height] of its images, contact sheets) of images, pack by pack in canonical order.

    Memory stays bounded: pooled features are gathered while they are fewer than they are long, all else goes into
    moments as it arrives.
    """
    cca, items, kind = cfg.cca, found.items, KINDS[cfg.cca.distance]
    pooled: list[npt.NDArray[np.float32]] = []
    moments: Moments | None = None
    cells: list[contact.Cell] = []
    sheets: list[Artifact] = []
    shape: list[int] = []
    with Meter(STAGE, len(items), "images") as meter:
        for at, row in zip(range(0, len(items), cca.pack), _packs(cfg, items), strict=True):
            part = items[at : at + cca.pack]
            shape = shape or row["shape"]
            same_size(part[0], row["shape"], shape, items[0])
            x = np.frombuffer(row["features"], np.float32).reshape(len(part), -1, row["dims"])  # (n, P, D)
            if len(bad := np.flatnonzero(~np.isfinite(x).all(axis=(1, 2)))):
                name = part[int(bad[0])].name
                raise ReferenceSetError(f"extractor {cca.extractor} gives features that are not finite: {name}")
            if kind == "pooled" and len(items) <= row["dims"]:
                pooled.append(x[:, 0])
            else:
                more = alone(Moments.from_features, x.reshape(-1, row["dims"]))
                moments = moments.merge(more) if moments else more
            thumbs = np.frombuffer(row["thumbs"], np.uint8).reshape(len(part), contact.THUMB, contact.THUMB, 3)
            cells += [contact.Cell(t, at + i, (storage.name(m.name) if m.ref is None else m.name,))
                      for i, (m, t) in enumerate(zip(part, thumbs, strict=True), 1)]  # fmt: skip
            while len(cells) >= contact.PER_SHEET or (cells and at + len(part) == len(items)):
                page, cells = cells[: contact.PER_SHEET], cells[contact.PER_SHEET :]
                title = f"Cloud set, images {page[0].number} to {page[-1].number} of {len(items)}"
                path = f"{folder}/contact-{len(sheets) + 1}.png"
                sheets.append(storage.publish(cfg.run.out, path, contact.sheet(page, title)))
            meter.advance(len(part))
    if shape[1:] != [PATCH, PATCH]:
        print(f"the cloud set's images are {shape[2]} x {shape[1]}: it fits tiles of that size", file=sys.stderr)
    words = (cca.extractor, preprocessing(cca.extractor))
    if moments:
        return alone(Reference.from_moments, moments, *words, kind, len(items)), shape[:0:-1], sheets
    return alone(Reference.from_features, np.concatenate(pooled), *words), shape[:0:-1], sheets


def alone(work: Callable[..., T], *arguments: object) -> T:
    """`work` in a Ray task of one BLAS thread: last bits depend on their number, and so would the set on the machine."""
    found: T = (
        ray.get(ray.remote(num_cpus=0)(_call).remote(work, *arguments)) if ray.is_initialized() else work(*arguments)
    )
    return found


def _call(work: Callable[..., T], *arguments: object) -> T:
    return work(*arguments)


def _packs(cfg: Config, items: Sequence[Member], made: bytes = b"") -> Iterator[dict[str, Any]]:
    """What FeatureActor makes of each pack, in order. Raises the first error that one met."""
    size = cfg.cca.pack
    rows = [{"members": pickle.dumps(items[at : at + size])} for at in range(0, len(items), size)]
    part = cluster.share(cfg.resources.extractors, cfg.cca.threads, len(rows), *cluster.capacity(cfg))
    packs = ray.data.from_items(rows, override_num_blocks=len(rows))
    packs.context.execution_options.preserve_order = True  # so that the driver never holds packs back
    for row in packs.map_batches(
        FeatureActor,
        fn_constructor_args=(cfg.cca, driver.here(), made),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=part.actors, max_size=part.actors),
        num_cpus=part.cpus,
        num_gpus=part.gpus,
        **cluster.ACTORS,
        **cluster.one_blas_thread(cfg.cca.threads),
    ).iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])  # noqa: S301 -- made by this run's own workers
        yield row


class FeatureActor:
    """Packs of members in; features (n, P, D) float32 (pooled: P = 1), image size and thumbnails out.

    made: the stored set, once there is one; then `features` are the distances (n,) float64 of its own images to it.
    """

    def __init__(self, cca: CCA, sender: Driver, made: bytes = b"") -> None:
        sender.meet()
        self.cca = cca
        self.made = Reference.from_bytes(made) if made else None
        self.net = load_extractor(cca)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        part: Sequence[Member] = pickle.loads(batch["members"][0].as_py())  # noqa: S301 -- made by this run's own driver
        features, thumbs, shape, error = b"", b"", [0], b""
        dims = 0
        try:
            images, small = read_all(part)
            x = features_of(self.net, images, self.cca)
            thumbs, shape, dims = small.tobytes(), list(images.shape[1:]), x.shape[-1]
            maps = x.reshape(len(x), -1, dims)
            features = (own_distance(maps, self.made, self.cca.distance) if self.made else x).tobytes()
        except Sar2EoError as e:
            error = pickle.dumps(e)
        return {"features": [features], "thumbs": [thumbs], "shape": [shape], "dims": [dims], "error": [error]}


def features_of(net: Extractor, images: npt.NDArray[np.uint8], cca: CCA) -> npt.NDArray[np.float32]:
    """(n, D) or (n, P, D) float32 of n <= pack images (n, 3, H, W), as `cca.distance` wants them."""
    return forward(net.features if KINDS[cca.distance] == "pooled" else net.positions, net, images, cca.pack)
