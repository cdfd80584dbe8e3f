"""Score a submission to the MultiEarth challenge here: against the clear S2 images that `collect` found near each target.

The organisers' truths are theirs alone. Here a query is a target of `data.target`, and its truths are the S2 tiles of its
place that the Clean Collector kept, `evaluate.truth_days` from its date at most; where a truth has no data, no pixel
counts. So the figures rank submissions made of one archive, and say nothing of any published table.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import sources, storage
from sar2eo_dist.cca import exposure
from sar2eo_dist.config import Config
from sar2eo_dist.errors import BadInput, ConfigError, Sar2EoError
from sar2eo_dist.evaluation import challenge
from sar2eo_dist.evaluation.submission import entry_of, list_names, quiet, read_image, validate_zip
from sar2eo_dist.pipeline.near import usable
from sar2eo_dist.pipeline.patches import image_name
from sar2eo_dist.pipeline.stage import Options, read_summary
from sar2eo_dist.records import PATCH, S2, TileRef
from sar2eo_dist.sources.multiearth_netcdf import Target, list_targets
from sar2eo_dist.sources.ranged import ranged

READERS = 8  # threads, each with one query in memory
SHOWN = 10  # names in a message; challenge.json has all
OUTPUT = "evaluate/challenge.json"
#: what is scored -> its title in the table
METHODS = {"submission": "submission", "black": "black, or any one colour", "nearest_date": "nearest clear date"}
Unchanged = Callable[[TileRef], None]


@dataclass(frozen=True, slots=True)
class Query:
    """A target with the names of its images, its truths, and the clear S2 image nearest to its date that is none of them."""

    target: Target
    names: tuple[str, ...]
    truths: tuple[TileRef, ...]
    other: TileRef | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A query's figures, method -> (sum of squares' minima, mean of absolute differences' minima); none without a truth.

    truths: that it was compared with; left_out: S2 key and reason of those that could not be used.
    """

    name: str
    truths: int
    figures: dict[str, tuple[float, float]]
    left_out: tuple[tuple[str, str], ...]


def submission(cfg: Config, opts: Options) -> str:
    """Score the zip at the URI `opts.submission`; write `evaluate/challenge.json`; return a table in words.

    Every target must have the same number of images, named as jobs/translate.py does; targets that have no truth cannot
    be scored and are named. Raises ConfigError (no data.target, or it names nothing), BadInput (no zip), Sar2EoError (an
    image is missing or unusable; no target has a truth), SourceChanged, and what storage does.
    """
    if not cfg.data.target:
        raise ConfigError("data.target is empty: it names the file of the targets that a submission answers")
    targets = list_targets(storage.absolute(cfg.data.target))
    if not targets:
        raise ConfigError(f"the target file names no target: {cfg.data.target}")
    root, uri = storage.absolute(cfg.run.out), storage.absolute(opts.submission)
    verdicts = storage.join(root, read_summary(cfg, "collect")["outputs"]["verdicts"])
    with _local(uri) as path:
        names = _names(targets, list_names(path))
        warnings = _check(uri, path, targets, names)
        queries = _queries(verdicts, targets, names, cfg.evaluate.truth_days)
        asked = [q for q in queries if q.truths]
        if not asked:
            days = cfg.evaluate.truth_days
            raise Sar2EoError(f"none of the {len(targets)} targets has a clear S2 image within {days} days: {verdicts}")
        if opts.dry_run:
            count = sum(len(q.truths) for q in asked)
            return f"submission: would score {len(asked)} of {len(queries)} queries against {count} truths"
        trained = _trained(cfg, root)
        unchanged = partial(sources.unchanged, info=cache(storage.info))
        with quiet(), ZipFile(path) as archive, ThreadPoolExecutor(READERS) as pool:
            scored = list(pool.map(partial(_scored, archive, unchanged), asked))
        with open(path, "rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    found = _gathered(queries, scored, trained) | {
        "submission": storage.name(uri), "sha256": sha256, "truth_days": cfg.evaluate.truth_days, "warnings": warnings,
    }  # fmt: skip
    storage.put(storage.join(root, OUTPUT), json.dumps(found, indent=1, sort_keys=True, allow_nan=False).encode())
    return _table(found, storage.join(root, OUTPUT))


def _trained(cfg: Config, root: str) -> set[str]:
    """Places whose pairs train this run's networks: a submission of its own has seen their truths."""
    pairs = read_summary(cfg, "collect")["outputs"].get("pairs", "")
    if not pairs:
        return set()
    with ranged(storage.join(root, pairs)) as f:
        table = pq.read_table(f, columns=["place", "split"])
    return set(table.filter(pc.equal(table["split"], "train"))["place"].unique().to_pylist())


def _names(targets: Sequence[Target], there: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """target -> names that its images must have: as many as the target with most has, at least one."""
    most, known = 1, set(there)
    for target in targets:
        while image_name(target, most + 1) in known and all(image_name(target, r) in known for r in range(1, most + 1)):
            most += 1
    return {t.name: tuple(image_name(t, rank) for rank in range(1, most + 1)) for t in targets}


def _check(uri: str, path: str, targets: Sequence[Target], names: dict[str, tuple[str, ...]]) -> list[str]:
    """The warnings of a zip. Raises Sar2EoError where it has problems: with the number of each kind and the first ten."""
    checked = validate_zip(path, [name for some in names.values() for name in some])
    if checked.problems:
        lost = {p.entry for p in checked.problems if p.kind == "missing"}
        have = Counter(sum(entry_of(n) not in lost for n in names[t.name]) for t in targets)
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(p.kind for p in checked.problems).items())
        counts = ", ".join(f"{n} targets with {k}" for k, n in sorted(have.items(), reverse=True))
        raise Sar2EoError(
            f"this submission cannot be scored ({kinds}): {uri}\nimages of a target: {counts}\n"
            + "\n".join(str(p) for p in checked.problems[:SHOWN])
            + (f"\n... and {len(checked.problems) - SHOWN} more" if len(checked.problems) > SHOWN else "")
        )
    return [str(w) for w in checked.warnings]


def _queries(verdicts: str, targets: Sequence[Target], names: dict[str, tuple[str, ...]], days: int) -> list[Query]:
    def pick(apart: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        near = np.abs(apart) <= days
        others = np.flatnonzero(~near)
        return np.append(np.flatnonzero(near), others[np.argsort(np.abs(apart[others]), kind="stable")[:1]])

    queries = []
    for target, refs in zip(targets, usable(verdicts, S2, [(t.place, t.date) for t in targets], pick), strict=True):
        truths = tuple(r for r in refs if abs((r.date - target.date).days) <= days)
        queries.append(Query(target, names[target.name], truths, next(iter(refs[len(truths) :]), None)))
    return queries


def _scored(archive: ZipFile, unchanged: Unchanged, query: Query) -> Scored:
    truths, masks, left_out = [], [], []
    for ref in query.truths:
        dn = _read(ref, unchanged)
        if isinstance(dn, BadInput):
            left_out.append((ref.key, str(dn)))
            continue
        valid = (dn > 0).all(axis=0)
        if valid.mean() < challenge.ENOUGH:
            left_out.append((ref.key, f"partial: data in {valid.mean():.1%} of its pixels"))
            continue
        truths.append(dn)
        masks.append(valid)
    if not truths:
        return Scored(query.target.name, 0, {}, tuple(left_out))
    count = len(query.names)
    images: list[npt.NDArray[Any]] = [read_image(archive, name) for name in query.names]
    rows = {"submission": list(range(count)), "black": [count] * count}
    images.append(np.zeros((3, PATCH, PATCH), np.uint8))
    stacked, true, valid = np.stack(images), np.stack(truths), np.stack(masks)
    squares, absolute = (challenge.distances(stacked, true, p, valid) for p in (2, 1))
    figures = {
        m: (challenge.nearest(squares[at], "sum"), challenge.nearest(absolute[at], "mean")) for m, at in rows.items()
    }
    if query.other is not None:
        dn = _read(query.other, unchanged)
        there = valid if isinstance(dn, BadInput) else valid & (dn > 0).all(axis=0)
        if isinstance(dn, BadInput) or there.mean() < challenge.ENOUGH:
            left_out.append((query.other.key, str(dn) if isinstance(dn, BadInput) else "partial: too little data"))
        else:
            apart = [challenge.distances(dn[None], true, p, there) for p in (2, 1)]
            figures["nearest_date"] = (count * challenge.nearest(apart[0]), challenge.nearest(apart[1]))
    return Scored(query.target.name, len(truths), figures, tuple(left_out))


def _read(ref: TileRef, unchanged: Unchanged) -> npt.NDArray[np.uint16] | BadInput:
    """DN (3, 256, 256) of an S2 tile as pairs have them, or why there are none. Raises SourceChanged and storage's errors."""
    found: npt.NDArray[np.uint16] | BadInput
    try:
        eo = sources.read_eo(ref)
        found = exposure.harmonise(eo.bands, eo.offset)
    except BadInput as e:
        found = e
    unchanged(ref)  # `collect` found it clear, another file may be cloudy
    return found


def _gathered(queries: Sequence[Query], scored: Sequence[Scored], trained: set[str]) -> dict[str, Any]:
    """What challenge.json tells of the scores. Raises Sar2EoError where no query could be scored."""
    whole = [s for s in scored if s.figures]
    if not whole:
        raise Sar2EoError(
            f"no truth of {len(scored)} queries can be used; the first: {': '.join(scored[0].left_out[0])}"
        )
    dated = [s for s in whole if "nearest_date" in s.figures]
    names = {s.name for s in whole}
    seen = {q.target.name for q in queries if q.target.place in trained}
    return {
        "targets": len(queries), "images_per_target": len(queries[0].names), "queries": len(whole),
        "images": len(whole) * len(queries[0].names), "truths": sum(s.truths for s in whole),
        "scores": {method: _means(method, dated if method == "nearest_date" else whole) for method in METHODS},
        "beside_nearest_date": _means("submission", dated),
        "at_training_places": len(seen & names), "elsewhere": _means("submission", [s for s in whole if s.name not in seen]),
        "without_truth": [q.target.name for q in queries if q.target.name not in names],
        "without_nearest_date": [s.name for s in whole if "nearest_date" not in s.figures],
        "left_out": [{"target": s.name, "eo_key": key, "reason": reason} for s in scored for key, reason in s.left_out],
        "each": [
            {"target": s.name, "truths": s.truths}
            | {m: {"mse_sum": f[0], "mae_min": f[1]} for m, f in s.figures.items()}
            for s in whole
        ],
    }  # fmt: skip


def _means(method: str, some: Sequence[Scored]) -> dict[str, Any]:
    """A method's two figures over some queries, None over none."""
    squares, absolute = zip(*(s.figures[method] for s in some), strict=True) if some else (None, None)
    means = {"multiearth_mse_sum": squares, "mae_min": absolute}
    return {name: each and challenge.mean(each) for name, each in means.items()} | {"queries": len(some)}


def _table(found: dict[str, Any], where: str) -> str:
    width = 24
    lines = [
        f"submission {found['submission']}: {found['images_per_target']} images of each of {found['targets']} targets",
        f"{'lower is better':{width}s}  {'multiearth_mse_sum':>18s}  {'mae_min':>8s}  {'queries':>7s}",
    ]
    rows = [(title, found["scores"][method]) for method, title in METHODS.items()]
    if found["without_nearest_date"]:
        rows.append(("submission, same queries", found["beside_nearest_date"]))
    if found["at_training_places"]:
        rows.append(("submission, new places", found["elsewhere"]))
    for title, figures in rows:
        told = ("-" if figures[k] is None else f"{figures[k]:.6f}" for k in ("multiearth_mse_sum", "mae_min"))
        lines.append("{:{}s}  {:>18s}  {:>8s}  {:7d}".format(title, width, *told, figures["queries"]))
    lines += [
        f"{found['queries']} queries, {found['images']} images, {found['truths']} truths: clear S2 images of the place "
        f"within {found['truth_days']} days",
        f"{len(found['without_truth'])} targets without truth are in no figure{_first(found['without_truth'])}",
    ]
    if found["at_training_places"]:
        lines.append(f"{found['at_training_places']} queries are of places whose pairs train this run's networks")
    if found["without_nearest_date"]:
        missing = found["without_nearest_date"]
        lines.append(f"{len(missing)} queries have no other clear date and are not in its figure{_first(missing)}")
    if found["left_out"]:
        keys = [x["eo_key"] for x in found["left_out"]]
        lines.append(f"{len(keys)} S2 images could not be used{_first(keys)}")
    if found["warnings"]:
        lines.append(f"{len(found['warnings'])} bands of the submission are constant{_first(found['warnings'])}")
    lines += [
        "Each band is stretched to its own range: an image of one colour, the mean one too, is black.",
        f"Not comparable with published figures, which are of other truths. All of it: {where}",
    ]
    return "\n".join(lines)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f": {', '.join(names[:SHOWN])}{more}" if names else ""


@contextmanager
def _local(uri: str) -> Iterator[str]:
    """Path of a local copy of an object, for as long as it is wanted; of a local file its own. Raises NotFound."""
    storage.info(uri)
    if path := storage.local_path(uri):
        yield path
        return
    with tempfile.TemporaryDirectory() as work:
        path = str(Path(work, "submission.zip"))
        with open(path, "wb") as out:
            for piece in storage.chunks(uri):
                out.write(piece)
        yield path
