"""export: the pairs of a store as two folders of images, so that other people's trainers can run on our data.

    <to>/{split}_A/<stem>.png   SAR, the input; 8-bit RGB as `scaling` says (.tiff: raw dB, VV and VH)
    <to>/{split}_B/<stem>.png   EO, the target; likewise (.tiff: raw DN, B4, B3, B2)
    <to>/dataset.json           what the values mean, and pairs a split

pix2pixHD: `train.py --dataroot <to> --label_nc 0 --no_instance --resize_or_crop none` (png; test.py: `--phase val`)
pix2pix: link {split}_A as A/{split} and {split}_B as B/{split}, then `combine_A_and_B.py --fold_A A --fold_B B --fold_AB AB`
anything else: the same sorted names on both sides, 256 x 256; `sources.list_pairs` reads them back here
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, TooManyFailures
from sar2eo_dist.ledger import Entry
from sar2eo_dist.pipeline import cluster, units
from sar2eo_dist.pipeline.shard import SPLITS, present
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, read_summary, run_stage, write_summary
from sar2eo_dist.radiometry import DN_RANGE, RANGES, decode_db, scale_eo, scale_sar, to_uint8
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import S1_BANDS, S2_BANDS, Artifact, Pair, Unit, digest, from_table
from sar2eo_dist.sections import Scaling
from sar2eo_dist.sources.folder_pair import encode_png, encode_tiff, stem

STAGE = "export"
ABOUT = "dataset.json"
MEANING = {
    "fixed": "0..255 is the range, clipped",
    "tanh_fixed": "0..255 is tanh, -1..1, of the distance from the range's centre over a quarter of its length",
    "minmax": "0..255 is minimum..maximum of this image and band",
    "tanh": "0..255 is minimum..maximum of tanh((x - median) / (1.4826 MAD)) of this image and band",
}
THREADS = 8  # pairs under way in one task: reading and publishing wait for the store, not for the CPU


def export(cfg: Config, opts: Options) -> Summary:
    """Run the verb. An export to a folder of its own (`export.to`) carries its own ledger, so that it can be moved.

    Raises ConfigError where the store holds no pair, or the folder another export: files of both would be trained on.
    """
    sharded = read_summary(cfg, "shard")
    root = storage.absolute(cfg.run.out)
    store = sharded["outputs"]["store"]
    index = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(root, sharded["outputs"]["index"]))))
    ranks = present(sharded, np.arange(index.num_rows))
    pairs = from_table(index.take(ranks), Pair)
    chosen = [(rank, p.split, stem(rank, p)) for rank, p in zip(ranks.tolist(), pairs, strict=True)]
    if not chosen:
        raise ConfigError(
            f"no pair to export: every shard is missing, run jobs/shard.py again: {storage.join(root, store)}"
        )
    fingerprint = cfg.fingerprint(STAGE)
    mark = digest(fingerprint, store)
    base, folder = (storage.absolute(cfg.export.to), "") if cfg.export.to else (root, f"{STAGE}/{mark[:12]}")
    home = cfg.model_copy(update={"run": cfg.run.model_copy(update={"out": base})})
    where = storage.join(base, folder) if folder else base
    _refuse_another(where, mark, len(chosen))
    plan: dict[str, tuple[Unit, Any]] = {}
    for at in range(0, len(chosen), cfg.export.slice):
        part = chosen[at : at + cfg.export.slice]
        unit = Unit(STAGE, f"{cfg.export.format}{at:08d}", fingerprint, digest(store, sharded["digest"], part))
        plan[unit.id] = (unit, part)

    def execute(todo: Sequence[Unit], attempt: int) -> Iterator[Entry | Failure]:
        _describe(where, cfg, mark, {})  # first: whatever a killed export leaves is known to be of this one
        cluster.start(cfg)
        work = partial(
            write,
            base=base,
            folder=folder,
            store=storage.join(root, store),
            form=cfg.export.format,
            scaling=cfg.scaling,
        )
        yield from units.run(work, [plan[u.id] for u in todo], attempt, parallel=cfg.resources.readers)

    try:
        summary = run_stage(home, opts, STAGE, [u for u, _ in plan.values()], execute, "slices")
    except TooManyFailures:
        failed = storage.read_bytes(storage.join(base, STAGE, "summary.json"))
        storage.put(storage.join(root, STAGE, "summary.json"), failed)
        raise
    if opts.dry_run:
        return dataclasses.replace(summary, counts={"pairs": len(chosen)})
    _describe(where, cfg, mark, {s: summary.counts.get(f"pairs {s}", 0) for s in SPLITS})
    outputs = {"folder": where if cfg.export.to else folder}
    return write_summary(cfg, dataclasses.replace(summary, outputs=outputs))


def _refuse_another(where: str, mark: str, pairs: int) -> None:
    if storage.exists(uri := storage.join(where, ABOUT)):
        try:
            about = json.loads(storage.read_bytes(uri))
            found, held = about["export"], sum(about["pairs"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            found, held = "not ours", 0
        if found != mark:
            raise ConfigError(
                f"the folder holds another export ({found[:12]}, this one is {mark[:12]}) and the files of both would mix: "
                f"delete it, or name another one with export.to: {where}"
            )
        if held > pairs:
            raise ConfigError(
                f"the folder holds {held} pairs, of which only {pairs} are in the store now: make the missing shards again "
                f"(jobs/shard.py), delete the folder, or name another one with export.to: {where}"
            )
        return
    for name in (f"{split}_{side}" for split in SPLITS for side in "AB"):
        if storage.exists(storage.join(where, name)):
            raise ConfigError(
                f"{name} is there already and no export of ours: name another folder with export.to: {where}"
            )


def _describe(where: str, cfg: Config, mark: str, pairs: dict[str, int]) -> None:
    """Publish dataset.json. pairs: a split, once known."""
    about: dict[str, Any] = {"created_by": "sar2eo_dist", "export": mark, "format": cfg.export.format, "pairs": pairs}
    about["names"] = (
        "rank_platform_orbit_SARDATE_lon_lat_EODATE; A is Sentinel-1, B is Sentinel-2, 256 x 256 px of 10 m"
    )
    if cfg.export.format == "tiff":
        about["A"] = {"bands": S1_BANDS, "dtype": "float32", "units": "dB", "nodata": "NaN"}
        about["B"] = {"bands": S2_BANDS, "dtype": "uint16", "units": "DN", "nodata": 0}
    else:
        sar, eo = cfg.scaling.sar, cfg.scaling.eo
        bands = [*S1_BANDS, cfg.scaling.third]
        a: dict[str, Any] = {
            "bands": bands,
            "scaling": sar,
            "meaning": MEANING[sar],
            "median_blur_px": cfg.scaling.median,
        }
        if sar in ("fixed", "tanh_fixed"):
            a["ranges"] = {band: RANGES[band] for band in bands}
            a["units"] = "dB" if bands[2].endswith("_db") else "dB, dB, ratio"
        b: dict[str, Any] = {"bands": S2_BANDS, "scaling": eo, "meaning": MEANING[eo]}
        if eo == "fixed":
            b |= {"range": DN_RANGE, "units": "DN, reflectance x 10000"}
        about |= {"A": a | {"nodata": [0, 0, 0]}, "B": b | {"nodata": [0, 0, 0]}}
    about["licence"] = "synthetic data" if cfg.synthetic.enabled else "Contains modified Copernicus Sentinel data"
    storage.put(storage.join(where, ABOUT), json.dumps(about, indent=1).encode())


def write(
    unit: Unit, part: Sequence[tuple[int, str, str]], number: int, *, base: str, folder: str, store: str, form: str,
    scaling: Scaling,
) -> Entry:  # fmt: skip
    """One slice: read each pair (its index in the store, split, stem), encode both sides, publish them."""
    begin, read = time.time(), PairReader(store)

    def one(item: tuple[int, str, str]) -> tuple[list[Artifact], int]:
        i, split, name = item
        sar, eo, valid = read(i)
        sides = zip("AB", encode(sar, eo, valid, form, scaling), strict=True)
        paths = [(storage.join(folder, f"{split}_{side}", f"{name}.{form}"), data) for side, data in sides]
        return [storage.publish(base, path, data) for path, data in paths], sar.nbytes + eo.nbytes + valid.nbytes

    with ThreadPoolExecutor(THREADS, thread_name_prefix="export") as pool:
        done = list(pool.map(one, part))
    counts = Counter({"pairs": len(part)}) + Counter(f"pairs {split}" for _, split, _ in part)
    outputs = tuple(artifact for artifacts, _ in done for artifact in artifacts)
    return Entry(unit, outputs, time.time() - begin, sum(size for _, size in done), number, dict(counts))


def encode(
    sar: npt.NDArray[np.int16], eo: npt.NDArray[np.uint16], valid: npt.NDArray[np.bool_], form: str, scaling: Scaling
) -> tuple[bytes, bytes]:
    """The files of a pair, A and B. sar: (2, H, W) counts of 0.01 dB; eo: (3, H, W) DN; valid: (H, W).

    tiff: float32 dB, NaN = no data, and DN, both without loss. png: as a network of ours would see them, in 8 bits, and 0
    on both sides where `valid` is false: trainers without a mask then learn black from black, nothing else.
    """
    db = decode_db(sar)
    if form == "tiff":
        return encode_tiff(db, S1_BANDS, float("nan")), encode_tiff(eo, S2_BANDS, 0)
    a, b = to_uint8(scale_sar(db, scaling)), to_uint8(scale_eo(eo, valid, scaling))
    a[:, ~valid] = b[:, ~valid] = 0
    return encode_png(a), encode_png(b)
