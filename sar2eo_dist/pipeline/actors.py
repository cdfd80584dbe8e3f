"""The actors that hold a model on a GPU (or on CPU threads): the Frechet scorer and the translator."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch

from sar2eo_dist.cca.frechet import Reference, point_distance
from sar2eo_dist.config import CCA
from sar2eo_dist.models.extractors import Extractor, extractor
from sar2eo_dist.records import KEPT, PATCH, S2, Verdict, from_table, to_table


def device_of_actor() -> str:
    """The GPU that Ray gave this actor, or the CPU."""
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def load_extractor(cca: CCA) -> Extractor:
    """The configured extractor on this process's device, with the threads that the config fixes."""
    torch.set_num_threads(cca.threads)
    return extractor(cca.extractor, weights=cca.weights, device=device_of_actor())


def padded_features(net: Extractor, images: npt.NDArray[np.uint8], pack: int) -> npt.NDArray[np.float32]:
    """Features (n, D) float32 of n <= pack images (n, 3, H, W): one forward of exactly `pack`, so of one fixed shape."""
    full = np.zeros((pack, *images.shape[1:]), np.uint8)
    full[: len(images)] = images
    return net.features(full)[: len(images)]


class ScoreActor:
    """Packs in, the same packs with Frechet scores out (and without pixels)."""

    def __init__(self, cca: CCA, reference: Any) -> None:
        self.pack = cca.pack
        self.net = load_extractor(cca)
        self.reference = Reference.from_bytes(ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference)
        self.reference.check(self.net.name, self.net.preprocessing)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        (row,) = batch.to_pylist()
        pixels = row.pop("pixels")
        if pixels and not row["error"]:
            images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, PATCH, PATCH)
            scores = iter(point_distance(padded_features(self.net, images, self.pack), self.reference).tolist())
            verdicts = from_table(pa.ipc.open_stream(row["verdicts"]).read_all(), Verdict)
            row["verdicts"] = _ipc([self._scored(v, scores) for v in verdicts])
        return {k: [v] for k, v in row.items()}

    def _scored(self, v: Verdict, scores: Any) -> Verdict:
        if v.sensor != S2 or v.reason != KEPT:
            return v
        score = next(scores)
        reason = KEPT if np.isfinite(score) else "not_scored"
        return dataclasses.replace(v, score=score, score_name=self.net.score_name, reason=reason)


def _ipc(verdicts: list[Verdict]) -> bytes:
    table = to_table(verdicts, Verdict)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
