"""The model of the confidence band: fitted once a translator, on held-out pairs of the store that it was trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models import bundle
from sar2eo_dist.mosaic.confidence import FORMAT, RADIUS, Fit
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.shard import present
from sar2eo_dist.pipeline.stage import Failure, Options, read_summary, run_stage
from sar2eo_dist.radiometry import decode_db, scale_eo
from sar2eo_dist.reader import PairReader, ranks
from sar2eo_dist.records import Unit, digest
from sar2eo_dist.sections import Speed

STAGE = "confidence"
PAIRS = 512  # that are looked at, evenly spread; they are 34 million pixels
FOLDS = ("val", "test", "train")  # the first that has pairs: errors on training pairs are too small


def plan(cfg: Config, root: str, uris: Sequence[str], infos: Sequence[bundle.BundleInfo], weights: str) -> Unit:
    """The unit of work that fits the model. Raises Sar2EoError where the pairs are not those of the translator's training."""
    t = cfg.translate
    if t.statistics != "window" and t.halo < RADIUS:
        raise ConfigError(
            f"translate.confidence looks {RADIUS} pixels around a pixel: translate.halo {t.halo} is too small"
        )
    sharded = read_summary(cfg, "shard")
    for uri, info in zip(uris, infos, strict=True):
        if info.data != sharded["digest"]:
            raise Sar2EoError(
                f"translate.confidence is fitted on held-out pairs of the store that a bundle was trained on, and this run "
                f"folder has another: use the run folder that trained it, or leave confidence off: {uri}"
            )
    fingerprint = digest(STAGE, FORMAT, PAIRS, cfg.speed.model_dump(mode="json"), t.threads)
    return Unit(STAGE, "model", fingerprint, digest(weights, sharded["digest"]))


def path(unit: Unit) -> str:
    """Where the model lies, below the run folder."""
    return f"translate/confidence-{unit.id[:12]}.json"


def run(cfg: Config, opts: Options, root: str, uris: Sequence[str], unit: Unit) -> None:
    """Fit the model unless it is there. Raises TooManyFailures where it cannot be."""
    sharded = read_summary(cfg, "shard")
    store = storage.join(root, sharded["outputs"]["store"])
    found = (present(sharded, ranks(store, fold)).tolist() for fold in FOLDS)
    chosen: list[int] = next((pairs for pairs in found if pairs), [])
    if not chosen:
        raise ConfigError(f"no pair to fit translate.confidence on: {store}")
    pairs = [chosen[i * len(chosen) // min(PAIRS, len(chosen))] for i in range(min(PAIRS, len(chosen)))]

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        part = cluster.share(1, cfg.translate.threads, 1, *cluster.capacity(cfg))
        make = partial(Fitter, root, store, uris, cfg.translate.threads, cfg.speed)
        yield from units.run(None, [(u, pairs) for u in todo], attempt, make=make, part=part)

    summary = run_stage(cfg, opts, STAGE, [unit], execute, "models")
    if summary.done > summary.resumed:
        print(summary.line(), flush=True)


class Fitter:
    """Both networks in one process; compares what they make of pairs with what was seen."""

    def __init__(self, root: str, store: str, bundles: Sequence[str], threads: int, speed: Speed) -> None:
        self.root, self.read, self.chain = root, PairReader(store), Chain(bundles, threads, speed)

    def __call__(self, unit: Unit, pairs: Sequence[int], attempt: int) -> Entry:
        begin, size, fit = time.time(), 0, Fit()
        for i in pairs:
            sar, eo, valid = self.read(i)
            size += sar.nbytes + eo.nbytes
            db = decode_db(sar)
            fit.add(db, self.chain(db), scale_eo(eo, valid, self.chain.scaling), valid)
        model = storage.publish(self.root, path(unit), fit.solve().to_json().encode())
        return Entry(unit, (model,), time.time() - begin, size, attempt, {"pairs": len(pairs)})
