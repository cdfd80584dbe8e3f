"""The S1 scenes that a mosaic is made of: indexed once, refused where a bundle cannot use them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from sar2eo_dist import storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import ConfigError, NotFound
from sar2eo_dist.models import bundle
from sar2eo_dist.pipeline.progress import Meter
from sar2eo_dist.records import Rejected, SceneRef, from_table, to_table
from sar2eo_dist.sources import scene_index
from sar2eo_dist.sources.ranged import ranged

FOLDER = "translate"


def index(cfg: Config, root: str, keep: bool) -> tuple[list[SceneRef], list[Rejected]]:
    """The index of `data.scenes`: what is known from the last time is not opened again; with `keep`, it is stored.

    Raises ConfigError where no scene is usable, with the first reason.
    """
    declared = {b"units": cfg.data.units.encode(), b"quantity": cfg.data.quantity.encode()}
    known: list[SceneRef] = []
    try:
        with ranged(storage.join(root, FOLDER, "scenes.parquet")) as f:
            table = pq.read_table(f)
            known = from_table(table, SceneRef) if table.schema.metadata == declared else []
    except (NotFound, pa.ArrowInvalid, KeyError):  # none, or of an older version
        pass
    uri = storage.absolute(cfg.data.scenes)
    with Meter("scenes", None, "headers") as meter:
        found, rejected = scene_index.index(
            uri, cfg.data.units, cfg.data.quantity, known, lambda done, total: meter.advance(done - meter.count)
        )
    if keep:
        put_table(root, f"{FOLDER}/scenes.parquet", to_table(found, SceneRef).replace_schema_metadata(declared))
        put_table(root, f"{FOLDER}/rejected.parquet", to_table(rejected, Rejected))
    if not found:
        why = (
            f"the first of {len(rejected)}: {rejected[0].reason}: {rejected[0].detail}: {rejected[0].uri}"
            if rejected
            else "it is empty"
        )
        raise ConfigError(f"no usable S1 scene in data.scenes ({why}): {uri}")
    return found, rejected


def require_fit(infos: Sequence[bundle.BundleInfo], refs: Sequence[SceneRef]) -> None:
    """Refuse bundles that cannot make this mosaic. Raises ConfigError.

    Per-image scaling gives neighbours another radiometry, and sigma-nought and gamma-nought differ by the incidence
    angle: a network knows only the one that it learned.
    """
    for info in infos:
        found = (info.scaling["sar"], info.scaling["eo"])
        if found != ("fixed", "fixed"):
            raise ConfigError(
                f"this bundle ({info.model}) was trained with scaling sar={found[0]}, eo={found[1]}; a mosaic needs fixed on "
                f"both sides (patches do not): set scaling.sar, scaling.eo and train again, or leave data.scenes empty"
            )
    other = next((r for r in refs if r.quantity != infos[0].quantity), None)
    if other:
        raise ConfigError(
            f"the bundle was trained on {infos[0].quantity}, the scene is {other.quantity}: {other.uri}. Use scenes of one "
            f"kind, or declare data.quantity where a tag is wrong"
        )


def put_table(root: str, path: str, table: pa.Table) -> None:
    """A parquet below `root`."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.put(storage.join(root, path), sink.getvalue())
