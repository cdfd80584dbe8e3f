"""A run folder that is ready to be evaluated: pairs, two bundles of random weights, and verdicts of other dates."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import small_mosaic

from sar2eo_dist import shards, storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.records import Pair, Verdict, place_key, to_table

STORE, DIGEST = "shards/abc", "d" * 32
DAY = dt.date(2020, 6, 1)


def pair(i: int, split: str) -> Pair:
    """Two pairs a place; the second one's EO image is of another day, its SAR image the same."""
    lon, day = round(-55 + 0.02 * (i // 2), 2), DAY + dt.timedelta(3 * (i % 2))
    place = place_key(lon, -4.0)
    keys = f"s1/{place}/{DAY}", f"s2/{place}/{day}"
    orbit = "ascending" if i % 4 < 2 else "descending"
    return Pair(place, lon, -4.0, *keys, DAY, day, (day - DAY).days, orbit, "S1A", f"a{i // 2}", f"b{i}", split)


def pixels(i: int) -> dict[str, np.ndarray]:
    """EO follows SAR, with an error that grows with i."""
    rng = np.random.default_rng(i // 2)
    ground = rng.normal(0, 1, (2, 32, 32)).repeat(8, 1).repeat(8, 2)
    sar = np.array([-10.0, -16.0])[:, None, None] + ground + rng.normal(0, 0.5, (2, 256, 256))
    base = np.array([500, 600, 300])[:, None, None] + 80 * ground[:1] + 30 * i
    eo = np.clip(base + np.random.default_rng(i).normal(0, 20, (3, 256, 256)), 1, 10000)
    return {
        "sar": np.round(sar * 100).astype(np.int16),
        "eo": eo.astype(np.uint16),
        "valid": np.ones((256, 256), np.uint8),
    }


def make(
    root: Path, train: int = 4, val: int = 6, per: int = 4, seed: int = 0, edit: Any = None, draw: Any = pixels
) -> Config:
    """Write it all below `root`, shard by shard. draw: i -> pixels of pair i; edit: (i, pixels) -> None changes them."""
    count = train + val
    pairs = [pair(i, "train" if i < train else "val") for i in range(count)]
    arrays = shards.pair_arrays(count, per)
    folder = root / STORE
    folder.mkdir(parents=True)
    index = to_table(pairs, Pair).replace_schema_metadata({"store": DIGEST})
    pq.write_table(index, folder / "index.parquet")
    shards.write_template(str(root), STORE, arrays, {"store": DIGEST})
    for i in range(arrays[0].grid[0]):
        data = [draw(k) for k in range(i * per, min((i + 1) * per, count))]
        for k, planes in enumerate(data):
            if edit:
                edit(i * per + k, planes)
        for spec in arrays:
            part = np.stack([d[spec.name] for d in data])
            shards.write_shard(str(root), STORE, spec, (i,) + (0,) * (part.ndim - 1), part)
    uris = small_mosaic.bundles(str(root / "train/bundles"), data=DIGEST, seed=seed)
    sharded = {
        "status": "complete", "planned": arrays[0].grid[0] + 1, "digest": DIGEST, "quarantined": [], "bytes_out": 1,
        "counts": {"pairs": count, "pairs a shard": per}, "outputs": {"store": STORE},
    }  # fmt: skip
    trained = dict(zip(("translate", "enhance"), (str(Path(u).relative_to(root)) for u in uris), strict=True))
    verdicts = [other(p) for p in {(p.place, p.eo_date): p for p in pairs}.values()]
    pq.write_table(to_table(verdicts, Verdict), root / "verdicts.parquet")
    base = {"status": "complete", "quarantined": []}
    summaries = {
        "shard": sharded, "train": base | {"outputs": trained},
        "collect": base | {"outputs": {"verdicts": "verdicts.parquet"}},
    }  # fmt: skip
    for stage, tree in summaries.items():
        storage.put(storage.join(str(root), stage, "summary.json"), json.dumps(tree).encode())
    return load(overrides=[f"run.out={root}", "evaluate.slice=4", "evaluate.samples=2", "evaluate.extremes=1",
                           "resources.translators=1", "evaluate.extractor=means"])  # fmt: skip


def other(p: Pair) -> Verdict:
    """The verdict of a pair's own optical image: it is another date to the other pair of its place."""
    about = (
        "s2",
        p.place,
        p.lon,
        p.lat,
        p.eo_date,
        "descending",
        "S2A",
        "multiearth_tiff",
        (f"{p.eo_key}.tif",),
        ("B4",),
        (),
    )
    return Verdict(p.eo_key, *about, p.eo_digest, "")
