"""Is the order of the paper's methods (arXiv 2306.12626) found where the truth is known? The synthetic world knows it.

    python tests/bench/training_order.py [--seeds 0,1,2] [--workers 2] [--runs NAME,...] [--out FILE] [--quick]

a. pix2pixHD on the pairs that the Clean Collector keeps (`cleaned`: profile `recommended`, stages 1 and 2) against all
(`uncleaned`: profile `none`); b. + Restormer, trained on what the frozen pix2pixHD makes of its training pairs; c. + L1 loss;
d. all against trivial predictors. A run is named `cleaned` or `uncleaned`, then `+l1`, then `+restormer`.

World: 256 px patches of World(seed=7), one in each cell of a 16 x 14 grid of 1024 px, so that any two are at least 7.6 km
apart; 160 cells drawn for training with three EO dates each, the other 64 held out with one of these dates each. An EO
image is paired with the nearest SAR date (at most 4 days). Runs of a network have the same steps, batch and crop, so that
as many samples are seen, cleaned or not; a seed changes weights, order, crops and turns, not the world.

Judged on held-out places from SAR alone against the cloud-free truth of the date, where SAR has data:
    challenge_mse, challenge_mae   per image: each band of both from its own minimum and maximum to [0, 1] (a constant band
                                   is 0), then the mean squared or absolute difference (evaluation/challenge.py); truth
                                   in DN, not clipped
    mae, rmse, psnr, ssim          of DN 0..3000 as [0, 1], clipped (evaluation/metrics.py)
    bias, detail                   no quality: mean of prediction - truth in those units; mean |difference of neighbouring
                                   pixels| of the prediction as a share of the truth's (1: as sharp, 0: flat)
Figures are means over the held-out images. The networks are `tiny` and trained for minutes: the figures say nothing of
full ones, and are not comparable with published ones, which come from other data. `nearest date` is no competitor but a
reference: the EO image of the same place and the nearest other date that the Clean Collector keeps. --out: a JSON object
a line, as each run ends: the world, then baselines and runs with their figures by image.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sar2eo_dist import models, radiometry
from sar2eo_dist.cca import assess
from sar2eo_dist.evaluation import challenge
from sar2eo_dist.evaluation.baselines import LinearFit, MeanImage, constant
from sar2eo_dist.evaluation.metrics import image_metrics
from sar2eo_dist.records import KEPT, PATCH
from sar2eo_dist.sections import CCA, Scaling
from sar2eo_dist.sources.synthetic import World, eo_dates, sar_dates
from sar2eo_dist.training.fit import seed as seed_torch
from sar2eo_dist.training.loader import Loader, Raw, Read

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Row = dict[str, Any]
Window = tuple[int, int, int, int]

SEED, CELL, GRID, DATES = 7, 1024, (16, 14), 3
REFERENCE_DATES = 8  # among which the nearest clean one is looked for
SCALING, CLEANER = Scaling(), CCA(profile="recommended")
BATCH, CROP, RATE = 4, 96, {"pix2pixhd": 1e-3, "restormer": 3e-3}
L1 = models.translator("pix2pixhd").PRESETS["tiny"]["lambda_l1"]
RUNS = ("uncleaned", "cleaned", "cleaned+restormer", "cleaned+l1")
KNOWN = tuple(f"{p}{a}{b}" for p in ("uncleaned", "cleaned") for a in ("", "+l1") for b in ("", "+restormer"))
#: metric -> 1 if more is better, -1 if less is
BETTER = {"challenge_mse": -1, "challenge_mae": -1, "mae": -1, "rmse": -1, "psnr": 1, "ssim": 1}
METRICS = (*BETTER, "bias", "detail")
FULL, QUICK = (160, 64, 1600, 450), (16, 8, 30, 30)  # of `Size`
TRIVIAL = ("zero", "mean", "linear", "mean, uncleaned", "linear, uncleaned")
NEAREST = "nearest date (reference)"


class Size(NamedTuple):
    """Places for training and held out; steps of both networks."""

    training: int
    held_out: int
    pix2pixhd: int
    restormer: int


class Pairs(NamedTuple):
    """N training pairs: sar (N, 2, S, S) int16 of 0.01 dB; eo (N, 3, S, S) DN as seen; valid (N, S, S): both have data;
    kept (N,): by the Clean Collector; cloud (N,): true share of cloud."""

    sar: npt.NDArray[np.int16]
    eo: npt.NDArray[np.uint16]
    valid: Mask
    kept: Mask
    cloud: npt.NDArray[np.float64]

    def read(self, i: int) -> Raw:
        return self.sar[i], self.eo[i], self.valid[i]

    def ranks(self, cleaned: bool) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.kept if cleaned else np.ones_like(self.kept))


class Held(NamedTuple):
    """A held-out place: sar (2, S, S) int16; truth (3, S, S) DN without clouds; valid (S, S): the SAR has data; nearest
    (3, S, S) DN of the nearest clean date and its data mask, None where no date is clean."""

    sar: npt.NDArray[np.int16]
    truth: npt.NDArray[np.uint16]
    valid: Mask
    nearest: tuple[npt.NDArray[np.uint16], Mask] | None


def places() -> list[Window]:
    """A window in every cell, shuffled: the first ones are for training, the last ones held out."""
    cells = np.random.default_rng(SEED).permutation(GRID[0] * GRID[1]).tolist()
    return [(k // GRID[1] * CELL, k % GRID[1] * CELL, PATCH, PATCH) for k in cells]


def radar(world: World, eo_date: dt.date, window: Window) -> tuple[npt.NDArray[np.int16], Mask]:
    """SAR of the date nearest to an EO date, as stored, and where it has data."""
    db = world.sar(min(sar_dates(REFERENCE_DATES), key=lambda d: abs((d - eo_date).days)), *window)
    valid = radiometry.validity(db)
    return radiometry.encode_db(np.where(valid, db, np.float32(np.nan))), valid


@functools.cache
def training_pairs(size: Size) -> Pairs:
    world, found = World(SEED), []
    for window in places()[: size.training]:
        for date in eo_dates(SEED, DATES):
            (sar, valid), view = radar(world, date, window), world.eo(date, *window)
            kept = assess(view.bands, view.qa60, CLEANER).reason == KEPT
            found.append((sar, view.bands, valid & view.valid, kept, view.cloud_fraction))
    return Pairs(*(np.array(column) for column in zip(*found, strict=True)))


@functools.cache
def held_out(size: Size) -> list[Held]:
    world, dates, found = World(SEED), eo_dates(SEED, REFERENCE_DATES), []
    for n, window in enumerate(places()[-size.held_out :]):
        date = dates[n % DATES]
        others = sorted(set(dates) - {date}, key=lambda d: (abs((d - date).days), d))
        views = (world.eo(d, *window) for d in others)
        clean = ((v.bands, v.valid) for v in views if assess(v.bands, v.qa60, CLEANER).reason == KEPT)
        sar, valid = radar(world, date, window)
        found.append(Held(sar, world.clear(date, *window), valid, next(clean, None)))
    return found


def figures(dn: npt.NDArray[Any], truth: npt.NDArray[np.uint16], valid: Mask) -> dict[str, float]:
    """METRICS of one prediction (3, S, S) in DN."""
    query = (dn[None], truth[None], valid[None])
    unit, true = (np.clip(x / np.float64(radiometry.DN_RANGE[1]), 0, 1) for x in (dn, truth))
    usual = {k: float(v[0]) for k, v in image_metrics(unit[None], true[None], valid[None], 1.0).items()}
    squared, absolute = (challenge.score([query], p) for p in (2, 1))
    both = valid[:, 1:] & valid[:, :-1]
    steep, wanted = (float(np.abs(np.diff(x, axis=2))[:, both].mean()) for x in (unit, true))
    seen = {"bias": float((unit - true)[:, valid].mean()), "detail": steep / wanted}
    return {"challenge_mse": squared, "challenge_mae": absolute, **usual, **seen}


def row(run: str, seed: int | None, found: Sequence[Any], **more: Any) -> Row:
    """A line of the results: means over images, and the images' own figures (None: not judged)."""
    judged = [f for f in found if f is not None]
    means = {m: float(np.mean([f[m] for f in judged])) for m in METRICS}
    images = {m: [None if f is None else float(f"{f[m]:.5g}") for f in found] for m in METRICS}
    return {"run": run, "seed": seed, "judged": len(judged)} | more | {"figures": means, "images": images}


def baselines(size: Size) -> list[Row]:
    pairs, held, out = training_pairs(size), held_out(size), []
    for name in ("", ", uncleaned"):
        mean, linear = MeanImage(), LinearFit()
        for i in pairs.ranks(cleaned=not name):
            sar, eo, valid = pairs.read(i)
            seen = np.minimum(eo, radiometry.DN_RANGE[1])[None]  # what a network with this scaling can see
            mean.add(seen, valid[None])
            linear.add(radiometry.decode_db(sar)[None], seen, valid[None])
        flat, model = constant(mean.solve(), (1, 3, PATCH, PATCH))[0], linear.solve()
        out.append(row(f"mean{name}", None, [figures(flat, h.truth, h.valid) for h in held]))
        lines = (model.predict(radiometry.decode_db(h.sar)[None])[0] for h in held)
        clipped = (np.clip(np.nan_to_num(x), *radiometry.DN_RANGE) for x in lines)
        each = zip(clipped, held, strict=True)
        out.append(row(f"linear{name}", None, [figures(x, h.truth, h.valid) for x, h in each]))
    out.append(row("zero", None, [figures(np.zeros_like(flat), h.truth, h.valid) for h in held]))
    near = [h.nearest and figures(h.nearest[0], h.truth, h.valid & h.nearest[1]) for h in held]
    return [*out, row(NEAREST, None, near)]


def fitted(name: str, options: Row, read: Read, ranks: Any, steps: int, seed: int) -> tuple[nn.Module, Row]:
    """A trained network in eval mode, and what its training was like."""
    begin, module = time.perf_counter(), models.translator(name)
    seed_torch(seed, -1)
    net = module.build(options, 3, 3)
    trainer = module.Trainer(net, options, RATE[name], steps)
    loader = Loader(read, ranks, 64, BATCH, CROP, SCALING, seed, threads=1)
    losses: list[dict[str, float]] = []
    for step, batch in enumerate(loader.batches(0, steps)):
        seed_torch(seed, step)
        losses.append(trainer.step(step, *batch))
    last = losses[-max(1, steps // 20) :]
    about = {"seconds": round(time.perf_counter() - begin, 1), "steps": steps, "epochs": steps * BATCH / len(ranks)}
    return net.eval(), about | {"losses": {k: float(np.mean([x[k] for x in last])) for k in last[0]}}


def trained(size: Size, seed: int, kind: str, runs: Sequence[str]) -> list[Row]:
    """Rows of the runs `kind` (pairs and loss) and `kind`+restormer, those that are asked for."""
    torch.set_num_threads(1)
    pairs, held = training_pairs(size), held_out(size)
    ranks = pairs.ranks(cleaned=kind.startswith("cleaned"))
    options = {"preset": "tiny", "lambda_l1": L1 if "+l1" in kind else 0.0}
    net, about = fitted("pix2pixhd", options, pairs.read, ranks, size.pix2pixhd, seed)

    def image(network: nn.Module, source: F32) -> F32:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(source)[None])[0].numpy())

    def judged(images: Sequence[F32]) -> list[dict[str, float]]:
        dn = (radiometry.unscale_eo(x, SCALING) for x in images)
        return [figures(x, h.truth, h.valid) for x, h in zip(dn, held, strict=True)]

    images = [image(net, radiometry.scale_counts(h.sar, SCALING)) for h in held]
    rows = [row(kind, seed, judged(images), **about)] if kind in runs else []
    if f"{kind}+restormer" in runs:
        sources = {int(i): image(net, radiometry.scale_counts(pairs.sar[i], SCALING)) for i in ranks}

        def read(i: int) -> Raw:
            return sources[i], *pairs.read(i)[1:]

        better, about = fitted("restormer", {"preset": "tiny"}, read, ranks, size.restormer, seed)
        rows.append(row(f"{kind}+restormer", seed, judged([image(better, x) for x in images]), **about))
    return rows


def surroundings(size: Size) -> Row:
    """What is trained on, and how: the first line of the results."""
    pairs = training_pairs(size)
    cloud = {n: float(pairs.cloud[pairs.ranks(n == "cleaned")].mean()) for n in ("uncleaned", "cleaned")}
    count = {"pairs": len(pairs.kept), "kept": int(pairs.kept.sum()), "mean_cloud": cloud}
    return {"world": SEED, **size._asdict(), **count, "batch": BATCH, "crop": CROP, "torch": torch.__version__}


def table(rows: Sequence[Row]) -> str:
    """Markdown: mean over seeds (each seed's figure)."""
    lines = ["| method | " + " | ".join(METRICS) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for run in dict.fromkeys(r["run"] for r in rows):
        own, cells = [r["figures"] for r in rows if r["run"] == run], []
        for m in METRICS:
            digits = {"psnr": ".2f", "detail": ".2f"}.get(m, ".4f")
            each = " ".join(format(f[m], digits) for f in own)
            cells.append(format(np.mean([f[m] for f in own]), digits) + (f" ({each})" if len(own) > 1 else ""))
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared(rows: Sequence[Row], one: str, other: str) -> str:
    """In how many seeds `one` is better than `other`; mean difference and its standard error over places."""
    a, b = ([r for r in rows if r["run"] == run] for run in (one, other))
    words, both = [], list(zip(a, b, strict=True))
    for m, sign in BETTER.items():
        won = sum(sign * (x["figures"][m] - y["figures"][m]) > 0 for x, y in both)
        apart = np.mean([np.subtract(x["images"][m], y["images"][m]) for x, y in both], axis=0)
        error = apart.std(ddof=1) / len(apart) ** 0.5
        words.append(f"{m} in {won} of {len(both)} seeds ({apart.mean():+.4f} +- {error:.4f} over places)")
    return f"{one} better than {other}: " + "; ".join(words)


def above_trivial(rows: Sequence[Row], run: str) -> str:
    """In how many seeds a run is better than the best trivial predictor, which is another one by each metric."""
    own, words, trivial = [r["figures"] for r in rows if r["run"] == run], [], [r for r in rows if r["run"] in TRIVIAL]
    for m, sign in BETTER.items():
        best = max(trivial, key=lambda r: sign * r["figures"][m])
        won = sum(sign * (f[m] - best["figures"][m]) > 0 for f in own)
        words.append(f"{m} in {won} of {len(own)} ({best['run']}, {best['figures'][m]:.4f})")
    return f"{run} better than the best trivial predictor: " + "; ".join(words)


def claims(rows: Sequence[Row], runs: Sequence[str]) -> list[str]:
    asked = [("a", "cleaned", "uncleaned"), ("a", "cleaned+l1", "uncleaned+l1"), ("b", "cleaned+restormer", "cleaned"),
             ("b", "cleaned+l1+restormer", "cleaned+l1"), ("c", "cleaned+l1", "cleaned")]  # fmt: skip
    lines = [f"{c}. {compared(rows, x, y)}" for c, x, y in asked if {x, y} <= set(runs)]
    return lines + [f"d. {above_trivial(rows, run)}" for run in runs]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=lambda t: [int(x) for x in t.split(",")], default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--runs", type=lambda t: t.split(","), default=list(RUNS), help=f"of {', '.join(KNOWN)}")
    parser.add_argument("--quick", action="store_true", help="30 steps on a few places, the first seed: does it work?")
    parser.add_argument("--out", default="", metavar="FILE.jsonl")
    args = parser.parse_args()
    if unknown := set(args.runs) - set(KNOWN):
        parser.error(f"--runs: {', '.join(sorted(unknown))}: there are {', '.join(KNOWN)}")
    size, seeds = (Size(*QUICK), args.seeds[:1]) if args.quick else (Size(*FULL), args.seeds)
    rows: list[Row] = []
    kinds = dict.fromkeys(r.removesuffix("+restormer") for r in args.runs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, spawn) as pool, open(args.out or os.devnull, "w", buffering=1) as out:
        about, trivial = pool.submit(surroundings, size), pool.submit(baselines, size)
        # the longest first, so that no worker is left alone with it
        jobs = sorted(((s, k) for s in seeds for k in kinds), key=lambda j: f"{j[1]}+restormer" not in args.runs)
        coming = [pool.submit(trained, size, s, k, args.runs) for s, k in jobs]
        out.write(json.dumps(about.result()) + "\n")
        for done in as_completed([trivial, *coming]):
            for found in done.result():
                out.write(json.dumps(found) + "\n")
                print(found["run"], found["seed"], found["figures"], file=sys.stderr)
                rows.append(found)
    names = [*TRIVIAL, *(runs := [r for r in KNOWN if r in args.runs]), NEAREST]
    rows.sort(key=lambda r: (names.index(r["run"]), r["seed"] or 0))
    print("\n".join([json.dumps(about.result()), "", table(rows), "", *claims(rows, runs)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
