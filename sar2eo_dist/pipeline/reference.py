"""The cloud reference set of the Frechet stage: a folder of images -> features through the extractor -> a Reference."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from PIL import Image, UnidentifiedImageError
from ray.data import ActorPoolStrategy

from sar2eo_dist import storage
from sar2eo_dist.cca.frechet import Reference
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, ReferenceSetError, StorageError
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.models import inception
from sar2eo_dist.pipeline import cluster
from sar2eo_dist.pipeline.actors import load_extractor, padded_features
from sar2eo_dist.records import PATCH, Unit
from sar2eo_dist.sections import CCA

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def reference_images(cca: CCA) -> list[storage.Info]:
    """The images of the configured set, in order of URI; none for the profiles that have no stage 3.

    Raises ConfigError where no set is configured, ReferenceSetError where it holds fewer than 2 images.
    """
    if cca.profile != "paper":
        return []
    if not cca.reference:
        raise ConfigError(
            "cca.reference is empty: set it to a folder (any URI) of 8-bit RGB cloud images of 256 x 256, "
            "or set cca.profile=none to keep every readable tile"
        )
    if cca.extractor == "inception":
        inception.place(cca.weights)  # missing or wrong weights stop here, before anything starts
    uri = storage.absolute(cca.reference)
    images = [i for i in storage.list_files(uri) if i.uri.lower().endswith(ENDINGS)]
    if len(images) < 2:
        raise ReferenceSetError(f"a reference set needs at least 2 images, {len(images)} found: {uri}")
    return images


def read_image(uri: str) -> npt.NDArray[np.uint8]:
    """One reference image as (3, 256, 256) uint8 RGB. Raises ReferenceSetError."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
            if image.size != (PATCH, PATCH):
                raise ReferenceSetError(f"reference image is {image.size[0]} x {image.size[1]}, not 256 x 256: {uri}")
            if image.mode not in ("RGB", "RGBA", "L", "P"):
                raise ReferenceSetError(f"reference image is of mode {image.mode}, not 8-bit RGB or grey: {uri}")
            return np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError, SyntaxError) as e:
        raise ReferenceSetError(f"cannot decode reference image ({e}): {uri}") from e


class FeatureActor:
    """Packs of image URIs in, features (n, D) float32 out."""

    def __init__(self, cca: CCA) -> None:
        self.pack = cca.pack
        self.net = load_extractor(cca)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        (row,) = batch.to_pylist()
        out = {"pack": [row["pack"]], "features": [b""], "error": [""], "extractor": [self.net.name]}
        out["preprocessing"] = [self.net.preprocessing]
        try:
            images = np.stack([read_image(u) for u in row["uris"]])
            out["features"] = [padded_features(self.net, images, self.pack).tobytes()]
        except (ReferenceSetError, StorageError) as e:
            out["error"] = [str(e)]
        return out


def reference_set(cfg: Config, images: Sequence[storage.Info], mark: str) -> str:
    """URI of the stored Reference of `images`, made now unless the run folder has it; Ray must be up. "" without images."""
    if not images:
        return ""
    unit = Unit("reference", cfg.cca.extractor, cfg.fingerprint("collect"), mark)
    path = f"collect/reference-{unit.id[:12]}.npz"
    ledger = Ledger(cfg.run.out)
    if unit.id not in ledger.done("reference"):
        begin = time.time()
        reference = Reference.from_features(*_features(cfg, images))
        artifact = storage.publish(cfg.run.out, path, reference.to_bytes())
        size = sum(i.size for i in images)
        ledger.commit(Entry(unit, (artifact,), time.time() - begin, size, 1, {"images": len(images)}))
    return storage.absolute(storage.join(cfg.run.out, path))


def _features(cfg: Config, images: Sequence[storage.Info]) -> tuple[npt.NDArray[np.float32], str, str]:
    size = cfg.cca.pack
    rows = [
        {"pack": n, "uris": [i.uri for i in images[at : at + size]]} for n, at in enumerate(range(0, len(images), size))
    ]
    part = cluster.share(cfg.resources.extractors, cfg.cca.threads, len(rows), *cluster.capacity(cfg))
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        FeatureActor,
        fn_constructor_args=(cfg.cca,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=part.actors, max_size=part.actors),
        num_cpus=part.cpus,
        num_gpus=part.gpus,
        **cluster.ACTORS,
    )
    packs = sorted(done.iter_rows(), key=lambda r: r["pack"])
    for row in packs:
        if row["error"]:
            raise ReferenceSetError(row["error"])
    features = np.concatenate([
        np.frombuffer(row["features"], np.float32).reshape(len(rows[row["pack"]]["uris"]), -1) for row in packs
    ])  # fmt: skip
    return features, packs[0]["extractor"], packs[0]["preprocessing"]
