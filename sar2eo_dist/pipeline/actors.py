"""The actors that hold a model on a GPU (or on CPU threads): the Frechet scorer and the translator."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from sar2eo_dist import storage
from sar2eo_dist.cca.frechet import Reference, point_distance, position_distance, spatial_distance
from sar2eo_dist.errors import ModelError
from sar2eo_dist.models import bundle, statistics
from sar2eo_dist.models import speed as speeds
from sar2eo_dist.models.extractors import Extractor, extractor
from sar2eo_dist.pipeline import metrics
from sar2eo_dist.pipeline.driver import Driver
from sar2eo_dist.pipeline.judge import to_ipc
from sar2eo_dist.pipeline.members import KINDS
from sar2eo_dist.radiometry import scale_sar
from sar2eo_dist.records import KEPT, S2
from sar2eo_dist.sections import CCA, Scaling, Speed


def device_of_actor() -> str:
    """The GPU that Ray gave this actor, or the CPU (also outside Ray, which asking would start)."""
    return "cuda" if ray.is_initialized() and ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


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


class Scorer:
    """Frechet scores of 8-bit images against a stored reference set, as `cca.distance` says."""

    def __init__(self, cca: CCA, reference: str) -> None:
        self.pack, self.distance = cca.pack, cca.distance
        self.net = load_extractor(cca)
        self.reference = Reference.from_bytes(storage.read_bytes(reference))
        self.reference.check(self.net.name, self.net.preprocessing, KINDS[cca.distance])

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """(n,) float64 of n <= pack images (n, 3, H, W) uint8 RGB; NaN where the network gives none."""
        if self.distance == "point":
            return point_distance(forward(self.net.features, self.net, images, self.pack), self.reference)
        maps = forward(self.net.positions, self.net, images, self.pack)
        return (spatial_distance if self.distance == "spatial" else position_distance)(maps, self.reference)


def forward(
    features: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    net: Extractor,
    images: npt.NDArray[np.uint8],
    pack: int,
) -> npt.NDArray[np.float32]:
    """`features` of n <= pack images; on a GPU one forward of exactly `pack`, so that its shape never varies."""
    n = len(images)
    if net.device.type != "cpu" and n < pack:
        images = np.concatenate([images, np.zeros((pack - n, *images.shape[1:]), np.uint8)])
    return features(images)[:n]


class ScoreActor:
    """Packs in, the same packs with Frechet scores out (and without pixels).

    Two calls at a time: while one computes, the other unpacks its pack.
    """

    def __init__(self, cca: CCA, reference: str, mark: str, sender: Driver) -> None:
        sender.meet()
        self.scorer, self.mark, self.turn = Scorer(cca, reference), mark, threading.Lock()
        self.device = metrics.Device()

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        row = {k: batch[k][0].as_py() for k in batch.column_names if k != "pixels"}
        try:
            shape = row.pop("shape")
            if shape and not row["error"]:
                images = np.frombuffer(batch["pixels"][0].as_buffer(), np.uint8).reshape(-1, *shape)
                with self.turn, self.device.busy("collect"):
                    scores = self.scorer(images)
                verdicts = pa.ipc.open_stream(row["verdicts"]).read_all()
                row["verdicts"] = to_ipc(scored(verdicts, scores, self.scorer.net.score_name, self.mark))
        except Exception as e:  # this slice is tried again; the others go on
            row["error"] = f"{type(e).__name__}: {e}"
        return {k: [v] for k, v in row.items()}


def scored(verdicts: pa.Table, scores: npt.NDArray[np.float64], name: str, mark: str) -> pa.Table:
    """Verdicts with the scores of those that stages 1 and 2 keep, in order; a score that is not finite rejects."""
    rows = np.asarray(pc.and_(pc.equal(verdicts["sensor"], S2), pc.equal(verdicts["reason"], KEPT)))
    if int(rows.sum()) != len(scores):
        raise ModelError(f"{len(scores)} scores for {int(rows.sum())} tiles")
    score = np.full(len(rows), np.nan)
    score[rows] = scores
    bad = rows & ~np.isfinite(score)
    columns = {
        "score": pa.array(score),
        "score_name": pa.array(np.where(rows, name, "")),
        "scored_by": pa.array(np.where(rows, mark, "")),
        "reason": pc.if_else(pa.array(bad), "not_scored", verdicts["reason"]),
    }
    for column, values in columns.items():
        at = verdicts.schema.get_field_index(column)
        verdicts = verdicts.set_column(at, verdicts.schema.field(at), values)
    return verdicts


class Chain:
    """Translator and enhancer from their bundles, one after the other; nothing here knows which networks they are."""

    def __init__(self, bundles: Sequence[str], threads: int, speed: Speed) -> None:
        self.device = device_of_actor()
        exact(self.device, threads)
        loaded = [bundle.load(uri, self.device) for uri in bundles]
        self.nets = [speeds.apply(net, speed.precision, speed.compile) for net, _ in loaded]
        self.info = loaded[0][1]
        self.scaling = Scaling.model_validate(self.info.scaling)

    def scaled(self, dbs: Sequence[npt.NDArray[np.float32]]) -> torch.Tensor:
        """(N, 3, h, w) float32 in [-1, 1] on the device, of N windows (2, h, w) dB of one size."""
        return torch.from_numpy(np.stack([scale_sar(db, self.scaling) for db in dbs])).to(self.device)

    def padded(self, k: int, height: int, width: int) -> tuple[int, int]:
        """Height and width to which network k pads an image."""
        multiple: int = self.nets[k].multiple  # type: ignore[assignment]
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def run(
        self,
        dbs: Sequence[npt.NDArray[np.float32]],
        given: Callable[[int], tuple[statistics.Source, Sequence[str]]] | None = None,
    ) -> list[npt.NDArray[np.float32]]:
        """Images (N, 3, h, w) float32 in [-1, 1] of N windows (2, h, w) dB of one size: one array after each network.

        given: network -> the statistics that it uses, and the layers that do; None: each window's own.
        """
        x, images = self.scaled(dbs), []
        with torch.inference_mode():
            for k, net in enumerate(self.nets):
                with statistics.use(net, *given(k)) if given else contextlib.nullcontext():
                    x = net(x).clamp(-1, 1)
                images.append(x.float().cpu().numpy())
        return images

    def __call__(self, db: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Images (3, h, w) float32 in [-1, 1] of one SAR window (2, h, w) dB: one after each network."""
        return [image[0] for image in self.run([db])]
