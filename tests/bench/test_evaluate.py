"""`evaluate` of 10,000 pairs through Ray: rate, memory, and the same figures to the last digit for any number of workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import held_out_run
import numpy as np
import pytest
import torch
from memory_watch import Watch

from sar2eo_dist.config import Config
from sar2eo_dist.evaluation import metrics
from sar2eo_dist.evaluation.metrics import NAMES, image_metrics
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline.evaluate import evaluate
from sar2eo_dist.pipeline.stage import Options

PAIRS = int(os.environ.get("SAR2EO_BENCH_PAIRS", "10000"))


@pytest.mark.timeout(3 * 3600)
def test_ten_thousand_pairs_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random `tiny` networks; 16 distinct pairs, each rolled by its own number of pixels."""
    some = [held_out_run.pixels(2 * i) for i in range(16)]

    def draw(i: int) -> dict[str, np.ndarray]:
        return {name: np.roll(plane, 7 * i, axis=-1) for name, plane in some[i % 16].items()}

    cfg = held_out_run.make(tmp_path / "run", 64, PAIRS, 448, draw=draw)
    (tmp_path / "run/verdicts.parquet").unlink()  # its other dates lie in no file
    updates = {"slice": 64, "samples": 6, "extremes": 4, "frechet": 2000, "extractor": "efficientnet_lite0"}
    cfg = cfg.model_copy(
        update={
            "evaluate": cfg.evaluate.model_copy(update=updates),
            "resources": cfg.resources.model_copy(update={"translators": 0, "object_store_mb": 400}),
            "data": cfg.data.model_copy(update={"kind": "folder_pair"}),
        }
    )
    watch, times, commit = Watch(), [], Ledger.commit

    def counted(self: Ledger, entry: Entry) -> Any:
        times.append((time.time(), entry.counts.get("pairs", 0)))
        watch.done += entry.counts.get("pairs", 0)
        return commit(self, entry)

    monkeypatch.setattr(Ledger, "commit", counted)
    watch.start()
    begin = time.time()
    evaluate(cfg, Options())
    watch.stop.set()
    measured = [(t, n) for t, n in times if n]
    rate = sum(n for _, n in measured[1:]) / (measured[-1][0] - measured[0][0])
    rows = np.array(watch.rows)
    print(f"\n{PAIRS:,} pairs, 5 methods each: {rate:.2f} pairs/s, {time.time() - begin:,.0f} s in all")
    for column, name in ((1, "driver"), (2, "largest worker")):
        parts = [
            rows[(rows[:, 0] >= a * PAIRS) & (rows[:, 0] < b * PAIRS), column] for a, b in ((0.05, 0.2), (0.8, 0.99))
        ]
        first, last = (float(np.median(p)) if len(p) else np.nan for p in parts)
        most = rows[:, column].max()
        print(
            f"{name}: private memory {first:.0f} MB after a twentieth, {last:.0f} MB near the end, most {most:.0f} MB"
        )
    _fewer_workers(cfg, tmp_path)


def _fewer_workers(cfg: Config, tmp_path: Path) -> None:
    """Some of the same slices by one worker, elsewhere: the same bytes."""
    one = cfg.model_copy(
        update={
            "run": cfg.run.model_copy(update={"out": str(tmp_path / "one")}),
            "resources": cfg.resources.model_copy(update={"translators": 1}),
        }
    )
    (tmp_path / "one").mkdir()
    for name in ("shards", "shard", "train", "collect"):
        (tmp_path / "one" / name).symlink_to(tmp_path / "run" / name)
    evaluate(one, Options(limit=2))
    made = sorted((tmp_path / "one/evaluate/slices").glob("*.parquet"))
    assert len(made) == 2
    for path in made:
        assert path.read_bytes() == (tmp_path / "run/evaluate/slices" / path.name).read_bytes()
    print("two slices by one worker: the same bytes")


def test_metrics_of_an_image_beside_torchmetrics_in_one_batch(versus: Any) -> None:
    """Ours measure every image by itself and know masks; the peer is torchmetrics on all images at once, without masks."""
    rng = np.random.default_rng(0)
    true = rng.random((6, 3, 256, 256), dtype=np.float32)
    made = np.clip(true + rng.normal(0, 0.1, true.shape).astype(np.float32), 0, 1)
    valid = np.ones((6, 256, 256), bool)
    library = metrics._library()
    a, b = torch.from_numpy(made), torch.from_numpy(true)
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def peer() -> None:
        library.structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        library.multiscale_structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        library.spectral_angle_mapper(a, b, reduction="none")

    try:
        versus(
            "6 images, all metrics",
            lambda: image_metrics(made, true, valid, 1.0, NAMES),
            peer,
            "torchmetrics, a batch",
            3,
        )
    finally:
        torch.set_num_threads(before)
