"""From a table of measured pairs to the figures that a page shows: means with intervals, the challenge's, and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo_dist.evaluation import distribution
from sar2eo_dist.evaluation.bootstrap import interval

Columns = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]

#: in the order of every table: the networks, the trivial predictors, and a reference that uses optical data
METHODS = ("translated", "enhanced", "baseline_linear", "baseline_mean", "baseline_zero", "nearest_date")
METRICS = ("mae", "rmse", "psnr", "ssim", "ms_ssim", "sam", "lpips")
CHALLENGE = ("challenge_mse", "challenge_mae")
#: upper end of a class, its name
DAYS = ((0, "same day"), (3, "1 to 3 days"), (7, "4 to 7 days"), (14, "8 to 14 days"), (30, "15 to 30 days"))
CLOUD = ((0.0, "none"), (0.005, "up to 0.5 %"), (0.05, "0.5 to 5 %"))


def methods(
    columns: Columns, names: Sequence[str] = METRICS, asked: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """One entry a method, in the order of METHODS: for each metric mean, median, 95 % interval of the mean (bootstrap over
    places) and the count of pairs that it is taken over; and the challenge's two figures.

    columns: equally long: method, place, sar_key (str) and the metrics (float64, NaN where there was nothing to measure).
    asked: see `challenge`. An infinite PSNR (a perfect image) makes an infinite mean; it is None like all that cannot be said.
    """
    out = []
    for method in _there(columns):
        rows = {k: v[columns["method"] == method] for k, v in columns.items()}
        entry: dict[str, Any] = {"method": method, "n": len(rows["method"])}
        entry |= {name: _figure(rows[name], rows["place"]) for name in names}
        out.append(entry | {"challenge": challenge(rows, asked)})
    return out


def challenge(rows: Columns, asked: Mapping[str, int] | None = None) -> dict[str, Any]:
    """`multiearth_mse_sum` and `mae_min` of one method's rows: a query is a SAR image, its truths the optical images paired
    with it, its answer the one image made of it (the challenge's own queries had three, summed).

    The image of the nearest other date is another one for each truth, and may be a truth of the same query: there each pair
    is a query of its own. asked: SAR key -> truths that it should have had. unanswered: queries without any figure;
    incomplete: those with fewer truths than asked for, whose minimum is the larger for it.
    """
    out: dict[str, Any] = {"multiearth_mse_sum": None, "mae_min": None}
    dated = bool(len(rows["method"])) and rows["method"][0] == "nearest_date"
    keys, query = np.unique(rows["rank" if dated else "sar_key"], return_inverse=True)
    wanted = np.ones(len(keys), int) if dated or asked is None else np.array([asked[k] for k in keys.tolist()])
    lost = 0 if dated or asked is None else len(asked) - len(keys)
    for figure, name in zip(("multiearth_mse_sum", "mae_min"), CHALLENGE, strict=True):
        best = np.full(len(keys), np.inf)
        known = np.isfinite(rows[name])
        np.minimum.at(best, query[known], rows[name][known])
        answered = best[np.isfinite(best)]
        if len(answered):
            out[figure] = float(answered.mean())
        truths = np.bincount(query, known, len(keys))
        out |= {"queries": len(answered), "images": len(answered), "unanswered": len(keys) - len(answered) + lost,
                "incomplete": int(((truths > 0) & (truths < wanted)).sum())}  # fmt: skip
    return out


def groups(columns: Columns, names: Sequence[str] = METRICS) -> dict[str, list[dict[str, Any]]]:
    """By land cover, days between the two images, orbit, cloud share of the truth: kind -> a row a group and method, with the
    mean of each metric and the pairs that it is over."""
    kinds = {
        "cover": np.where(columns["cover"] == "", "unknown", columns["cover"]),
        "days": _classes(np.abs(columns["days"]), DAYS, "over 30 days"),
        "orbit": np.where(columns["orbit"] == "", "unknown", columns["orbit"]),
        "cloud": _classes(columns["cloud_share"], CLOUD, "over 5 %"),
    }
    order = [name for _, name in (*DAYS, *CLOUD)]
    out: dict[str, list[dict[str, Any]]] = {}
    for kind, labels in kinds.items():
        rows = out.setdefault(kind, [])
        for label in sorted(set(labels.tolist()), key=lambda v: (order.index(v) if v in order else len(order), v)):
            for method in _there(columns):
                mask = (labels == label) & (columns["method"] == method)
                if mask.any():
                    values = {name: _mean(columns[name][mask]) for name in names}
                    rows.append({"group": label, "method": method, "n": int(mask.sum())} | values)
    return out


def frechet(features: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]], places: Mapping[int, str],
            name: str) -> dict[str, dict[str, Any] | None]:  # fmt: skip
    """Frechet distance and KID of each method's images to the true ones of the same pairs; None with fewer than 2.

    features: method, and "true" -> (rank in the store (n,), features (n, D)); places: rank -> place; name: of the score.
    """
    ranks, true = features["true"]
    at = {int(r): k for k, r in enumerate(ranks)}
    out: dict[str, dict[str, Any] | None] = {}
    for method in METHODS:
        mine, made = features.get(method, (ranks[:0], true[:0]))
        known = np.isin(mine, ranks)
        mine, made = mine[known], made[known]
        if len(mine) < 2:
            out[method] = None
            continue
        real = true[[at[int(r)] for r in mine]]
        d = distribution.distances(made, real, np.array([places[int(r)] for r in mine]))
        out[method] = {"name": name, "value": d.value, "low": _known(d.low), "high": _known(d.high), "n": d.n,
                       "kid": _known(d.kid), "kid_n": d.kid_n}  # fmt: skip
    return out


def extremes(columns: Columns, n: int) -> tuple[list[int], list[int]]:
    """Ranks of the n pairs with the largest and with the smallest MAE of the last network, worst and best first."""
    last = next((m for m in ("enhanced", "translated") if (columns["method"] == m).any()), "")
    mask = (columns["method"] == last) & np.isfinite(columns["mae"])
    ranks, mae = columns["rank"][mask], columns["mae"][mask]
    order = ranks[np.lexsort((ranks, mae))].tolist()
    half = -(-len(order) // 2)  # of a handful of pairs, none is both
    return order[::-1][: min(n, half)], order[: min(n, len(order) - half)]


def words(found: Sequence[Mapping[str, Any]]) -> str:
    """The main figures as a small table for a terminal."""
    names = [n for n in ("mae", "psnr", "ssim", "lpips") if any(_has(e, n) for e in found)]
    head = (
        f"  {'':16s}{'pairs':>8s}" + "".join(f"{n.upper():>10s}" for n in names) + f"{'challenge':>12s}{'Frechet':>12s}"
    )
    lines = [head]
    for e in found:
        cells = "".join(f"{e[n]['mean']:10.4f}" if _has(e, n) else f"{'':10s}" for n in names)
        score, distance = e["challenge"]["multiearth_mse_sum"], e.get("frechet")
        last = f"{score:12.5f}" if score is not None else f"{'':12s}"
        lines.append(
            f"  {e['method']:16s}{e['mae']['n']:8,d}{cells}{last}" + (f"{distance['value']:12.2f}" if distance else "")
        )
    return "\n".join(lines)


def _has(entry: Mapping[str, Any], name: str) -> bool:
    return bool(entry.get(name)) and entry[name]["mean"] is not None


def _there(columns: Columns) -> list[str]:
    found = set(columns["method"].tolist())
    return [m for m in METHODS if m in found] + sorted(found - set(METHODS))


def _classes(values: npt.NDArray[Any], ends: Sequence[tuple[float, str]], beyond: str) -> npt.NDArray[Any]:
    names = np.array([*(name for _, name in ends), beyond, "unknown"])
    at = np.searchsorted(np.array([end for end, _ in ends], np.float64), values.astype(np.float64), side="left")
    return np.asarray(names[np.where(np.isfinite(values.astype(np.float64)), at, len(names) - 1)])


def _figure(values: Floats, places: npt.NDArray[Any]) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    if not len(known):
        return {"mean": None, "median": None, "low": None, "high": None, "n": 0}
    low, high = interval(values, places) if np.isfinite(known).all() else (np.nan, np.nan)
    mean, median = float(np.mean(known)), float(np.median(known))
    return {"mean": _known(mean), "median": _known(median), "low": _known(low), "high": _known(high), "n": len(known)}


def _mean(values: Floats) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    return {"mean": _known(float(np.mean(known))) if len(known) else None, "n": len(known)}


def _known(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None
