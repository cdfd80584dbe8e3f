"""A small archive of MultiEarth patches with clouds of chosen size, and the verdicts that a collect leaves of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sar2eo_dist import sources, storage
from sar2eo_dist.records import KEPT, PATCH, S2, TileRef, Verdict, by_key, to_table
from sar2eo_dist.sources.folder_pair import encode_tiff
from sar2eo_dist.sources.multiearth import stem

DAY = dt.date(2020, 6, 1)


def verdict(ref: TileRef, **measured: float) -> Verdict:
    pointer = {f.name: getattr(ref, f.name) for f in dataclasses.fields(TileRef)}
    base = {"valid_fraction": 1.0, "contrast": 100.0, "qa60_fraction": 0.0, "white_fraction": 0.0,
            "alpha_fraction": 0.0, "brightness": 50.0, "light": 500.0}  # fmt: skip
    return Verdict(**pointer, key=ref.key, place=ref.place, reason=KEPT, **(base | measured))


def put_verdicts(run: str, verdicts: list[Verdict]) -> None:
    sink = io.BytesIO()
    pq.write_table(to_table(by_key(verdicts), Verdict), sink)
    storage.put(f"{run}/collect/verdicts.parquet", sink.getvalue())


def make(base: Path, clouds: list[float]) -> list[Verdict]:
    """A tile a place, its share of cloud as given; the run folder `base`/run with the verdicts of a collect."""
    rng = np.random.default_rng(5)
    for n, share in enumerate(clouds):
        for band, level in (("B4", 250), ("B3", 350), ("B2", 300)):
            dn = rng.integers(level, level + 80, (1, PATCH, PATCH)).astype(np.uint16)
            dn[:, : round(share * PATCH)] += 4000
            name = stem("Sentinel-2", -55.0 + n / 50, -4.0, DAY, band)
            storage.put(str(base / "sent2" / f"{name}.tiff"), encode_tiff(dn, (band,), 0))
    refs, _ = sources.list_tiles("multiearth_tiff", str(base / "sent2"), S2)
    share_of = {round(-55.0 + n / 50, 2): share for n, share in enumerate(clouds)}
    found = [verdict(r, white_fraction=share_of[r.lon], light=500 + 4000 * share_of[r.lon]) for r in refs]
    put_verdicts(str(base / "run"), found)
    return by_key(found)
