"""evaluate: metrics of every pair of the held-out fold, beside trivial baselines; then the report."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.evaluation.baselines import LinearFit, LinearModel, MeanImage, constant
from sar2eo_dist.evaluation.metrics import NAMES, image_metrics
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.pipeline.shard import present, spread
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage, write_summary
from sar2eo_dist.radiometry import decode_db, display, scale_eo, scale_sar, to_uint8
from sar2eo_dist.reader import PairReader, ranks
from sar2eo_dist.records import Artifact, Pair, Unit, digest, from_table
from sar2eo_dist.report.page import write as write_report
from sar2eo_dist.sections import Speed
from sar2eo_dist.sources.ranged import ranged

STAGE = "evaluate"


def evaluate(cfg: Config, opts: Options) -> Summary:
    """Run the verb and write `report.html`. Raises ConfigError where the chosen split is empty."""
    sharded, trained = read_summary(cfg, "shard"), read_summary(cfg, "train")["outputs"]
    root = storage.absolute(cfg.run.out)
    bundles = [storage.join(root, trained[r]) for r in ("translate", "enhance") if r in trained]
    store = storage.join(root, sharded["outputs"]["store"])
    for uri in bundles:
        if bundle.read(uri).data != sharded["digest"]:  # its training pairs may be in this store's held-out fold
            raise Sar2EoError(f"this bundle was trained on other shards: run jobs/train.py again: {uri}")
    chosen, training = (present(sharded, ranks(store, s)).tolist() for s in (cfg.evaluate.split, "train"))
    if not chosen or not training:
        raise ConfigError(
            f"split {cfg.evaluate.split!r} holds {len(chosen)} pairs and 'train' {len(training)}: change evaluate.split, or "
            f"split.cell_degrees ({cfg.split.cell_degrees:g}), split.val ({cfg.split.val:g}) and split.seed of collect"
        )
    shown = set(spread(chosen, cfg.evaluate.samples))
    weights = [bundle.digest(bundle.read(b)) for b in bundles]
    whole = digest(sharded["digest"], weights)
    fingerprint = cfg.fingerprint(STAGE)
    plan: dict[str, tuple[Unit, Any]] = {}
    with ranged(storage.join(root, sharded["outputs"]["index"])) as f:
        rows = from_table(pq.read_table(f).take(chosen), Pair)
    for at in range(0, len(chosen), cfg.evaluate.slice):
        part = chosen[at : at + cfg.evaluate.slice]
        unit = Unit(STAGE, f"{cfg.evaluate.split}{at:08d}", fingerprint, digest(whole, part, sorted(shown & set(part))))
        plan[unit.id] = (unit, [(i, rows[at + k], i in shown) for k, i in enumerate(part)])

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        cluster.start(cfg)
        part = cluster.share(cfg.resources.translators, cfg.evaluate.threads, len(todo), *cluster.capacity(cfg))
        fit = spread(training, cfg.evaluate.fit)
        make = partial(Worker, root, store, bundles, cfg.evaluate.threads, cfg.speed, fit, whole)
        yield from units.run(None, [plan[u.id] for u in todo], attempt, make=make, part=part)

    summary = run_stage(cfg, opts, STAGE, [u for u, _ in plan.values()], execute, "slices")
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"pairs": len(chosen)})
    lost = {q["unit"] for q in summary.quarantined}
    entries = Ledger(root).entries([u for u, _ in list(plan.values())[: summary.planned] if u.id not in lost])
    if not entries:
        raise Sar2EoError(f"no pair could be measured; the first reason: {summary.quarantined[0]['reason']}")
    outputs = _gather(root, [e.outputs for e in entries])
    write_summary(cfg, dataclasses.replace(summary, outputs=outputs))
    write_report(root)
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs | {"report": "report.html"}))


class Worker:
    """Networks and baselines in one process; measures a slice of pairs."""

    def __init__(
        self, root: str, store: str, bundles: Sequence[str], threads: int, speed: Speed, fit: Sequence[int], mark: str
    ) -> None:
        self.root, self.mark = root, mark
        self.read = PairReader(store)
        self.chain = Chain(bundles, threads, speed)
        self.mean, self.linear = self._fit(fit)

    def _unit_range(self, eo: npt.NDArray[np.uint16], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """EO in [0, 1] by the bundle's scaling: of DN 0..3000 (`fixed`), or of the image's own range (`minmax`)."""
        return (scale_eo(eo, valid, self.chain.scaling) + np.float32(1)) / np.float32(2)

    def _fit(self, indices: Sequence[int]) -> tuple[npt.NDArray[np.float64], LinearModel]:
        mean, linear = MeanImage(), LinearFit()
        for i in indices:
            sar, eo, valid = self.read(i)
            true = self._unit_range(eo, valid)[None]
            mean.add(true, valid[None])
            linear.add(decode_db(sar)[None], true, valid[None])
        return mean.solve(), linear.solve()

    def __call__(self, unit: Unit, part: Sequence[tuple[int, Pair, bool]], attempt: int) -> Entry:
        begin, size = time.time(), 0
        rows: list[dict[str, Any]] = []
        outputs: list[Artifact] = []
        for i, pair, show in part:
            sar, eo, valid = self.read(i)
            size += sar.nbytes + eo.nbytes + valid.nbytes
            db = decode_db(sar)
            true = self._unit_range(eo, valid)
            images = {
                name: (x + np.float32(1)) / np.float32(2)
                for name, x in zip(("translated", "enhanced"), self.chain(db), strict=False)
            }
            compared = images | {
                "baseline_mean": constant(self.mean, (1, *true.shape))[0],
                "baseline_zero": np.zeros_like(true),
                "baseline_linear": np.clip(self.linear.predict(db[None])[0], 0, 1),
            }
            stem = f"{STAGE}/samples/{self.mark[:8]}-{i:08d}" if show else ""
            base = {
                "sample": stem,
                "sar_key": pair.sar_key,
                "eo_key": pair.eo_key,
                "split": pair.split,
                "days": pair.days,
            }
            for method, image in compared.items():
                found = image_metrics(image[None], true[None], valid[None], 1.0)
                rows.append(base | {"method": method} | {n: float(found[n][0]) for n in NAMES})
            if show:
                outputs += self._show(stem, db, images | {"true": true})
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
        table = storage.publish(self.root, f"{STAGE}/slices/{unit.id}.parquet", sink.getvalue())
        return Entry(unit, (table, *outputs), time.time() - begin, size, attempt, {"pairs": len(part)})

    def _show(
        self, stem: str, db: npt.NDArray[np.float32], images: dict[str, npt.NDArray[np.float32]]
    ) -> list[Artifact]:
        look = self.chain.scaling.model_copy(update={"sar": "fixed", "third": "difference_db", "median": 0})
        pictures = {"sar": to_uint8(scale_sar(db, look))} | {k: display(to_uint8(v * 2 - 1)) for k, v in images.items()}
        made = []
        for name, picture in pictures.items():
            sink = io.BytesIO()
            Image.fromarray(picture.transpose(1, 2, 0)).save(sink, "PNG")
            made.append(storage.publish(self.root, f"{stem}_{name}.png", sink.getvalue()))
        return made


def _gather(root: str, outputs: Sequence[tuple[Artifact, ...]]) -> dict[str, str]:
    """metrics.parquet of all slices, and samples.json that says which pictures belong together."""
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, o[0].path)))) for o in outputs]
    table = pa.concat_tables(tables).sort_by(
        [("eo_key", "ascending"), ("sar_key", "ascending"), ("method", "ascending")]
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.put(storage.join(root, STAGE, "metrics.parquet"), sink.getvalue())
    samples: list[dict[str, Any]] = []
    for row in table.to_pylist():
        if not row["sample"]:
            continue
        same = samples and (samples[-1]["sar_key"], samples[-1]["eo_key"]) == (row["sar_key"], row["eo_key"])
        if not same:
            pictures = {a.path for o in outputs for a in o if a.path.startswith(row["sample"] + "_")}
            images = {p.rsplit("_", 1)[1][:-4]: p for p in sorted(pictures)}
            samples.append({k: row[k] for k in ("sar_key", "eo_key", "days")} | {"images": images, "mae": {}})
        samples[-1]["mae"][row["method"]] = row["mae"]
    storage.put(storage.join(root, STAGE, "samples.json"), json.dumps(samples, indent=1).encode())
    return {"metrics": f"{STAGE}/metrics.parquet", "samples": f"{STAGE}/samples.json"}
