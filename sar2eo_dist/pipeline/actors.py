"""The actors that hold a model on a GPU (or on CPU threads): the Frechet scorer and the translator."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch

from sar2eo_dist import storage
from sar2eo_dist.cca.frechet import Reference, point_distance
from sar2eo_dist.models import bundle
from sar2eo_dist.models import speed as speeds
from sar2eo_dist.models.extractors import Extractor, extractor
from sar2eo_dist.radiometry import scale_sar
from sar2eo_dist.records import KEPT, PATCH, S2, Verdict, from_table, to_table
from sar2eo_dist.sections import CCA, Scaling, Speed


def device_of_actor() -> str:
    """The GPU that Ray gave this actor, or the CPU."""
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def exact(device: str, threads: int) -> None:
    """Fix what this process's arithmetic depends on: threads, deterministic kernels, float32 without TF32 (on a GPU)."""
    if device == "cpu":
        speeds.keep_heap()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is only deterministic with it
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def load_extractor(cca: CCA) -> Extractor:
    """The configured extractor on this process's device, with the threads that the config fixes."""
    device = device_of_actor()
    exact(device, cca.threads)
    return extractor(cca.extractor, weights=cca.weights, device=device)


def padded_features(net: Extractor, images: npt.NDArray[np.uint8], pack: int) -> npt.NDArray[np.float32]:
    """Features (n, D) float32 of n <= pack images (n, 3, H, W): one forward of exactly `pack`, so of one fixed shape."""
    full = np.zeros((pack, *images.shape[1:]), np.uint8)
    full[: len(images)] = images
    return net.features(full)[: len(images)]


class ScoreActor:
    """Packs in, the same packs with Frechet scores out (and without pixels)."""

    def __init__(self, cca: CCA, reference: str) -> None:
        self.pack = cca.pack
        self.net = load_extractor(cca)
        self.reference = Reference.from_bytes(storage.read_bytes(reference))
        self.reference.check(self.net.name, self.net.preprocessing)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        (row,) = batch.to_pylist()
        pixels = row.pop("pixels")
        try:
            self._score(row, pixels)
        except Exception as e:  # this slice is tried again; the others go on
            row["error"] = f"{type(e).__name__}: {e}"
        return {k: [v] for k, v in row.items()}

    def _score(self, row: dict[str, Any], pixels: bytes) -> None:
        if pixels and not row["error"]:
            images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, PATCH, PATCH)
            scores = iter(point_distance(padded_features(self.net, images, self.pack), self.reference).tolist())
            verdicts = from_table(pa.ipc.open_stream(row["verdicts"]).read_all(), Verdict)
            row["verdicts"] = _ipc([self._scored(v, scores) for v in verdicts])

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


class Chain:
    """Translator and enhancer from their bundles, one after the other; nothing here knows which networks they are."""

    def __init__(self, bundles: Sequence[str], threads: int, speed: Speed) -> None:
        self.device = device_of_actor()
        exact(self.device, threads)
        loaded = [bundle.load(uri, self.device) for uri in bundles]
        self.nets = [speeds.apply(net, speed.precision, speed.compile) for net, _ in loaded]
        self.info = loaded[0][1]
        self.scaling = Scaling.model_validate(self.info.scaling)

    def __call__(self, db: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Images (3, h, w) float32 in [-1, 1] of one SAR window (2, h, w) dB: one after each network."""
        x = torch.from_numpy(scale_sar(db, self.scaling))[None].to(self.device)
        images = []
        with torch.inference_mode():
            for net in self.nets:
                x = net(x).clamp(-1, 1)
                images.append(x[0].float().cpu().numpy())
        return images
