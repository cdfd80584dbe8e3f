"""Real pixel-labelled scenes and synthetic tiles, as stages 1 and 2 are judged on them. Contains modified Copernicus
Sentinel data; clouds_s2cloudless_scene is CC-BY-SA-4.0 of the s2cloudless package."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from sar2eo_dist.sources.synthetic import EOView, World, eo_dates

U16 = npt.NDArray[np.uint16]
SIDE, CLOUDY, CLEAR = 64, 0.05, 0.005  # px; share of cloud from which, and up to which, a tile is called so


def patches(samples: Path) -> Iterator[tuple[str, str, U16, U16]]:
    """(date, label, bands B4 B3 B2, QA60) of the eight labelled MultiEarth patches, L2A."""
    with (samples / "tier_a/multiearth2023/cloud_labels_visual.csv").open() as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        end = f"{row['lon']}_{row['lat']}_{row['date'].replace('-', '_')}.tiff"
        *bands, qa60 = (_read(samples / f"tier_a/multiearth2023/sent2/Sentinel2_{b}_{end}", [1])[0]
                        for b in ("B4", "B3", "B2", "QA60"))  # fmt: skip
        yield row["date"], row["label"], np.stack(bands), qa60


def scene(samples: Path, name: str) -> tuple[U16, dict[str, npt.NDArray[np.bool_]]]:
    """Bands B4, B3, B2 of a whole L1C scene, and its cloud masks by who made them; the first one is the label.

    "ukis": hand-labelled, 30 m; "s2cloudless": overview of an estuary, labelled by s2cloudless itself; "nz": clear, 10 m;
    "spain": clear by eye, towns and roofs, 10 m.
    """
    if name == "nz":
        bands = _read(next((samples / "tier_a/s2_l1c_clear_nz").glob("*.tif*")), [4, 3, 2])
        return bands, {"known clear": np.zeros(bands.shape[1:], bool)}
    if name == "spain":
        bands = _read(samples / "tier_b/pairs_sen1floods11/Spain_7370579_S2Hand.tif", [4, 3, 2])
        return bands, {"clear by eye": np.zeros(bands.shape[1:], bool)}
    file = {"ukis": "clouds_ukis_handlabelled/sentinel2_cols000-341.npz",
            "s2cloudless": "clouds_s2cloudless_scene/s2_l1c_rows000-569.npz"}[name]  # fmt: skip
    with np.load(samples / "tier_a" / file) as z:
        bands = np.ascontiguousarray(
            np.stack([z["toa_1e4"][..., list(z["bands"]).index(b)] for b in ("B04", "B03", "B02")])
        )
        ukis = {"ukis-csmask": z["ukis_csm"] == 1}
        if name == "ukis":
            return bands, {"hand": z["hand_mask"] == 4} | ukis
        return bands, {"s2cloudless": z["s2cloudless_mask"] == 1} | ukis


def tiles(
    bands: U16, masks: dict[str, npt.NDArray[np.bool_]], label: str
) -> tuple[list[U16], dict[str, npt.NDArray[np.float64]]]:
    """The tiles of a scene that `label` calls cloudy or clear, and the share of cloud that each mask gives them."""
    found, shares = [], []
    _, h, w = bands.shape
    for i in range(0, h - SIDE + 1, SIDE):
        for j in range(0, w - SIDE + 1, SIDE):
            window = slice(i, i + SIDE), slice(j, j + SIDE)
            share = {k: float(m[window].mean()) for k, m in masks.items()}
            if not CLEAR < share[label] < CLOUDY:
                found.append(bands[:, *window])
                shares.append(share)
    return found, {k: np.array([s[k] for s in shares]) for k in masks}


def world(seed: int, count: int, side: int = 256) -> Iterator[EOView]:
    """Windows of a synthetic world, anywhere, on any of 12 dates."""
    rng, dates = np.random.default_rng(seed), eo_dates(seed, 12)
    for _ in range(count):
        row, col, date = (int(x) for x in (*rng.integers(-20_000, 20_000, 2), rng.integers(len(dates))))
        yield World(seed).eo(dates[date], row, col, side, side)


def auc(score: npt.NDArray[np.float64], cloudy: npt.NDArray[np.bool_]) -> float:
    """Probability that a cloudy tile scores above a clear one, ties by halves; NaN where one kind is missing."""
    if cloudy.all() or not cloudy.any():
        return float("nan")
    a, b = score[cloudy][:, None], score[~cloudy]
    return float(np.mean((a > b) + 0.5 * (a == b)))


def _read(path: Path, bands: list[int]) -> U16:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as f:
            return np.asarray(f.read(bands)).astype(np.uint16)
