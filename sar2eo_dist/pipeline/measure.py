"""evaluate's worker: the networks, the trivial predictors and the nearest clear date, pair by pair against the truth."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sar2eo_dist import sources, storage
from sar2eo_dist.cca import cloud, exposure
from sar2eo_dist.errors import AccessDenied, BadInput, ConfigError, Corrupt, NotFound, SourceChanged
from sar2eo_dist.evaluation import baselines
from sar2eo_dist.evaluation.challenge import ENOUGH, distances
from sar2eo_dist.evaluation.lpips import Lpips
from sar2eo_dist.evaluation.metrics import NAMES, image_metrics
from sar2eo_dist.ledger import Entry
from sar2eo_dist.models.extractors import extractor
from sar2eo_dist.pairing.align import offset, shift
from sar2eo_dist.pipeline.actors import Chain
from sar2eo_dist.radiometry import decode_db, display, scale_eo, scale_sar, to_uint8
from sar2eo_dist.reader import PairReader
from sar2eo_dist.records import Artifact, Pair, TileRef, Unit
from sar2eo_dist.sections import CCA, Speed
from sar2eo_dist.sections_evaluation import Evaluate
from sar2eo_dist.sources.land_cover import LandCover, guessed

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
TRUE = "true"
ABOUT = ("sar_key", "eo_key", "place", "lon", "lat", "sar_date", "eo_date", "days", "orbit", "platform", "split")
_NUMBERS = (*NAMES, "lpips", "challenge_mse", "challenge_mae")
SCHEMA = pa.schema(
    [
        ("rank", pa.int64()), ("sar_key", pa.string()), ("eo_key", pa.string()), ("place", pa.string()),
        ("lon", pa.float64()), ("lat", pa.float64()), ("sar_date", pa.date32()), ("eo_date", pa.date32()),
        ("days", pa.int64()), ("orbit", pa.string()), ("platform", pa.string()), ("split", pa.string()),
        ("cover", pa.string()), ("cloud_share", pa.float64()), ("valid_share", pa.float64()), ("method", pa.string()),
        *((name, pa.float64()) for name in _NUMBERS),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair to be measured: its place in the store, what it is, another clear date, whether features are wanted."""

    rank: int
    pair: Pair
    near: TileRef | None
    featured: bool = False

    def mark(self) -> tuple[object, ...]:
        return self.rank, self.near.digest if self.near else "", self.featured


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker loads. whole: digest of the store and the networks; fit: ranks that the baselines are fitted on."""

    root: str
    store: str
    bundles: tuple[str, ...]
    evaluate: Evaluate
    cca: CCA
    speed: Speed
    fit: tuple[int, ...]
    whole: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A pair as all methods see it. true, images: (3, H, W) float32 in [0, 1]; eo: DN; masks: where each image counts; dn:
    an image as it was before it was scaled, where there is that."""

    db: F32
    eo: npt.NDArray[np.uint16]
    valid: Mask
    true: F32
    images: dict[str, F32]
    masks: dict[str, Mask]
    dn: dict[str, npt.NDArray[np.uint16]]
    fault: str  # why there is no image of the nearest date, though there should be


class Worker:
    """The networks in one process."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.read = PairReader(setup.store)
        self.chain = Chain(setup.bundles, setup.evaluate.threads, setup.speed)

    def _unit_range(self, eo: npt.NDArray[np.uint16], valid: Mask) -> F32:
        """EO in [0, 1] by the bundle's scaling: of DN 0..3000 (`fixed`), or of the image's own range (`minmax`)."""
        return (scale_eo(eo, valid, self.chain.scaling) + np.float32(1)) / np.float32(2)

    def compare(self, sample: Sample) -> Compared:
        """The networks' images of one pair, and that of the other date; one that does not read any more is told of, for it is
        a reference alone. Raises storage's errors of the pair itself, and Unavailable."""
        sar, eo, valid = self.read(sample.rank)
        db = decode_db(sar)
        made = zip(("translated", "enhanced"), self.chain(db), strict=False)
        images = {name: (x + np.float32(1)) / np.float32(2) for name, x in made}
        masks: dict[str, Mask] = dict.fromkeys(images, valid)
        dn, fault = {}, ""
        if sample.near:
            try:
                dn["nearest_date"], there = self._near(sample.near, sample.pair)
                images["nearest_date"] = self._unit_range(dn["nearest_date"], there)
                masks["nearest_date"] = valid & there
            except (BadInput, NotFound, AccessDenied, SourceChanged) as e:
                fault = str(e)
        return Compared(db, eo, valid, self._unit_range(eo, valid), images, masks, dn, fault)

    def _near(self, ref: TileRef, pair: Pair) -> tuple[npt.NDArray[np.uint16], Mask]:
        """DN of another date on the grid of this pair's own, and where it has data."""
        seen = sources.read_eo(ref)
        sources.unchanged(ref)
        bands = exposure.harmonise(seen.bands, seen.offset)
        moved = shift(bands.astype(np.float32), *offset((ref.lon, ref.lat), (pair.lon, pair.lat)))
        there: Mask = np.asarray((np.nan_to_num(moved) > 0).all(axis=0))
        return np.where(there, np.nan_to_num(moved), 0).astype(np.uint16), there


class Measure(Worker):
    """A slice of pairs in; a row of figures for each pair and method, and features of some, out."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        e, device = setup.evaluate, str(self.chain.device)
        self.net = None if e.extractor == "none" else extractor(e.extractor, weights=setup.cca.weights, device=device)
        self.lpips = Lpips(storage.absolute(e.lpips), device) if e.lpips else None
        self.cover = LandCover(storage.absolute(e.land_cover)) if e.land_cover else None
        self.damaged = 0  # training pairs that the baselines had to do without
        self.trivial = baselines.fit(self._training(setup.fit))

    def _training(self, ranks: Sequence[int]) -> Iterator[tuple[F32, F32, Mask]]:
        """The training pairs that read. Raises ConfigError, which ends the run, where none does."""
        for i in ranks:
            try:
                sar, eo, valid = self.read(i)
            except (Corrupt, NotFound) as e:
                self.damaged += 1
                if self.damaged == len(ranks):
                    raise ConfigError(f"none of {len(ranks)} training pairs reads; the last: {e}") from e
                continue
            yield decode_db(sar), self._unit_range(eo, valid), valid

    def compare(self, sample: Sample) -> Compared:
        """Those, and the trivial predictors'."""
        seen = super().compare(sample)
        trivial = self.trivial.images(seen.db)
        seen.images.update(trivial)
        seen.masks.update(dict.fromkeys(trivial, seen.valid))
        return seen

    def __call__(self, unit: Unit, part: Sequence[Sample], attempt: int) -> Entry:
        begin, size = time.time(), 0
        counts: Counter[str] = Counter({"pairs": len(part)})
        counts["slices whose baselines lack damaged training pairs"] += bool(self.damaged)
        rows: list[dict[str, Any]] = []
        features: list[dict[str, Any]] = []
        for sample in part:
            seen = self.compare(sample)
            size += seen.db.nbytes + seen.eo.nbytes + seen.valid.nbytes
            rows += self._rows(sample, seen, counts)
            if sample.featured and self.net:
                features += self._features(sample, seen)
        outputs = [self._publish(f"slices/{unit.id}.parquet", pa.Table.from_pylist(rows, SCHEMA))]
        if self.net and features:
            kind = pa.list_(pa.float32(), self.net.dims)
            columns = {"rank": pa.int64(), "method": pa.string(), "features": kind, "name": pa.string()}
            outputs.append(
                self._publish(f"features/{unit.id}.parquet", pa.Table.from_pylist(features, pa.schema(columns.items())))
            )
        return Entry(unit, tuple(outputs), time.time() - begin, size, attempt, dict(counts))

    def _publish(self, path: str, table: pa.Table) -> Artifact:
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return storage.publish(self.setup.root, f"evaluate/{path}", sink.getvalue())

    def _rows(self, sample: Sample, seen: Compared, counts: Counter[str]) -> list[dict[str, Any]]:
        pair, valid = sample.pair, seen.valid
        inside = int(valid.sum())
        white = cloud.look(np.where(valid, seen.eo, 0), self.setup.cca).white if inside else 0
        base = {name: getattr(pair, name) for name in ABOUT} | {
            "rank": sample.rank,
            "cover": self.cover(pair.lon, pair.lat) if self.cover else guessed(seen.db),
            "cloud_share": white / inside if inside else np.nan,
            "valid_share": inside / valid.size,
        }
        counts["pairs without a valid pixel"] += not inside
        counts["pairs with too little data for the challenge"] += 0 < inside < ENOUGH * valid.size
        counts["pairs with a constant truth"] += bool(inside) and bool((np.ptp(seen.eo[:, valid], axis=1) == 0).any())
        counts["pairs without another clear date"] += "nearest_date" not in seen.images
        counts["other dates unreadable"] += bool(seen.fault)
        rows = []
        for method, image in seen.images.items():
            figures, mask = dict.fromkeys(_NUMBERS, np.nan), seen.masks[method]
            if mask.any() and np.isfinite(image[:, mask]).all():
                figures |= self._figures(method, seen)
            elif mask.any():
                counts[f"{method} images not finite"] += 1
            rows.append(base | {"method": method} | figures)
        return rows

    def _figures(self, method: str, seen: Compared) -> dict[str, float]:
        image, mask = seen.images[method], seen.masks[method]
        image = np.clip(np.where(mask, image, 0), 0, 1)
        found = image_metrics(image[None], seen.true[None], mask[None], 1.0, NAMES)
        if self.lpips:
            found["lpips"] = self.lpips(image[None], seen.true[None], mask[None])
        if mask.mean() >= ENOUGH:
            raw = seen.dn.get(method, image)  # against DN, and DN against it: neither is clipped
            for p, name in ((2, "challenge_mse"), (1, "challenge_mae")):
                found[name] = distances(raw[None], seen.eo[None], p, mask[None])[0]
        return {name: float(value[0]) for name, value in found.items()}

    def _features(self, sample: Sample, seen: Compared) -> list[dict[str, Any]]:
        """Of the images as pictures; without data they are black, and so is the truth. Not of the nearest date: as a set,
        those are the truths of other pairs again, and no distance away."""
        if not seen.valid.any() or self.net is None:
            return []
        images = {TRUE: seen.true} | {k: v for k, v in seen.images.items() if k != "nearest_date"}
        pictures = np.stack([to_uint8(np.where(seen.valid, np.nan_to_num(x), 0) * 2 - 1) for x in images.values()])
        found = self.net.features(pictures)  # so many images in every forward: its shape never varies
        return [
            {"rank": sample.rank, "method": method, "features": row, "name": self.net.score_name}
            for (method, image), row in zip(images.items(), found, strict=True)
            if np.isfinite(image[:, seen.valid]).all()
        ]


class Show(Worker):
    """A few pairs in, their pictures as PNG out."""

    def __call__(self, unit: Unit, part: Sequence[Sample], attempt: int) -> Entry:
        begin, made = time.time(), []
        look = self.chain.scaling.model_copy(update={"sar": "fixed", "third": "difference_db", "median": 0})
        for sample in part:
            seen = self.compare(sample)
            shown = seen.images | {TRUE: seen.true}
            pictures = {"sar": to_uint8(scale_sar(seen.db, look))}
            pictures |= {k: display(to_uint8(np.nan_to_num(v) * 2 - 1)) for k, v in shown.items()}
            for name, picture in pictures.items():
                sink = io.BytesIO()
                Image.fromarray(picture.transpose(1, 2, 0)).save(sink, "PNG")
                path = f"{stem(unit, sample)}_{name}.png"
                made.append(storage.publish(self.setup.root, path, sink.getvalue()))
        return Entry(unit, tuple(made), time.time() - begin, 0, attempt, {})


def stem(unit: Unit, sample: Sample) -> str:
    """How the names of a pair's pictures begin that a unit makes: no other one writes there."""
    return f"evaluate/samples/{unit.id[:12]}/{sample.rank:08d}"
