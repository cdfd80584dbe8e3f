"""What lies in a run folder, read as far as it is there: a missing part is None, a broken one is a named problem."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.records import Calibration, Verdict, from_table
from sar2eo_dist.report.text import redact

STAGES = ("synthesise", "collect", "shard", "train", "translate", "evaluate", "grade")
ROLES = ("coarse", "translate", "enhance")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A unit that kept failing, with its reason in words."""

    stage: str
    unit: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stage:
    """`<stage>/summary.json`. seconds: wall time of the last invocation; work: summed over its units, whenever they
    ran (None where the summary does not say); puts: objects written; steps: of `work`, what ran as steps apart. Unknown
    numbers are None."""

    name: str
    status: str
    planned: float | None
    done: float | None
    resumed: float | None
    quarantined: tuple[Quarantined, ...]
    seconds: float | None
    work: float | None
    bytes_in: float | None
    bytes_out: float | None
    started: str
    ended: str
    machine: dict[str, str]
    counts: dict[str, float]
    outputs: dict[str, str]
    puts: float | None = None
    steps: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """Everything the page is made of. Tables hold the columns named in `_COLUMNS` and those of `_MORE` that they have;
    records: role -> what its training cost; scores: evaluate/scores.json; problems: path -> what is wrong."""

    uri: str
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    verdicts: pa.Table | None = None
    rejected: pa.Table | None = None
    pairs: pa.Table | None = None
    yields: pa.Table | None = None
    metrics: pa.Table | None = None
    calibration: Calibration | None = None
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    records: dict[str, dict[str, float]] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    def setting(self, name: str, default: Any = None) -> Any:
        """A value of the resolved config by its dotted name, or `default` where there is none."""
        node: Any = self.config
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node

    def problems_of(self, *prefixes: str) -> dict[str, str]:
        """Problems of the parts below any of these paths."""
        return {p: text for p, text in self.problems.items() if p.startswith(prefixes)}


#: the columns that the page needs (the rest of a table of millions of rows is not fetched), and what they must hold
_COLUMNS: dict[str, dict[str, str]] = {
    "collect/verdicts.parquet": {
        "key": "string", "sensor": "string", "reason": "string", "score": "float64", "score_name": "string",
        "haze": "float64",
    },
    "collect/rejected.parquet": {"sensor": "string", "uri": "string", "reason": "string", "detail": "string"},
    "collect/pairs.parquet": {"days": "int64", "split": "string"},
    "collect/yield.parquet": {"days": "int64", "eo_images": "int64", "combinations": "int64"},
    "evaluate/metrics.parquet": {
        "sar_key": "string", "eo_key": "string", "split": "string", "method": "string",
        "mae": "float64", "rmse": "float64", "psnr": "float64", "ssim": "float64",
    },
}  # fmt: skip
#: columns of the same kind that an older run lacks
_MORE = {"evaluate/metrics.parquet": ("ms_ssim", "sam", "lpips", "challenge_mse", "challenge_mae")}


def load(uri: str) -> Run:
    """Read a run folder (any fsspec URI).

    Raises AccessDenied or Unavailable where the store itself refuses: that is not "not run yet".
    """
    run = Run(uri)
    run.config_text = _part(run, "config.yaml", lambda b: redact(b.decode())) or ""
    run.config = _part(run, "config.yaml", _config) or {}
    for stage in STAGES:
        found = _part(run, f"{stage}/summary.json", partial(_stage, stage))
        if found:
            run.stages[stage] = found
    run.verdicts, run.rejected, run.pairs, run.yields, run.metrics = (_table(run, path) for path in _COLUMNS)
    run.calibration = _part(run, "collect/calibration.json", _calibration)
    for role in ROLES:
        lines = _part(run, f"train/{role}/history.jsonl", partial(_history, run, role))
        if lines:
            run.history[role] = lines
        spent = _part(run, f"train/{role}/record.json", _spent)
        if spent:
            run.records[role] = spent
    run.scores = _part(run, "evaluate/scores.json", _scores) or {}
    run.samples = _part(run, "evaluate/samples.json", _samples) or []
    return run


def part(run: str, path: str) -> str:
    """The URI of a part of the run folder. Raises ValueError for a path that leads out of it."""
    if path.startswith("/") or "://" in path or "::" in path or ".." in path.split("/"):
        raise ValueError(f"not a path inside the run folder: {path}")
    return storage.join(run, path)


def _part(run: Run, path: str, parse: Callable[[bytes], T]) -> T | None:
    """One object, parsed; None where it is not there; None and a problem where it is not what it should be."""
    try:
        return parse(storage.read_bytes(storage.join(run.uri, path)))
    except NotFound:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError, pa.ArrowException) as e:
        run.problems[path] = f"{type(e).__name__}: {e}"
        return None


def _table(run: Run, path: str) -> pa.Table | None:
    try:
        with storage.open_read(storage.join(run.uri, path)) as f:
            there = pq.ParquetFile(f)
            more = [n for n in _MORE.get(path, ()) if n in there.schema_arrow.names]
            wanted = _COLUMNS[path] | dict.fromkeys(more, "float64")
            table = there.read(columns=list(wanted)).select(list(wanted)).cast(pa.schema(wanted.items()))
        for name, kind in wanted.items():
            if kind != "float64" and table[name].null_count:  # a float that is null is a NaN
                raise ValueError(f"column {name} has {table[name].null_count} nulls")
        return table
    except NotFound:
        return None
    except (ValueError, KeyError, OSError, pa.ArrowException) as e:  # pyarrow says OSError for a torn file
        run.problems[path] = f"{type(e).__name__}: {e}"
        return None


def verdicts_of(run: Run, keys: Sequence[str]) -> dict[str, Verdict]:
    """The whole verdicts of a few tiles by key, read from the table of all."""
    path = "collect/verdicts.parquet"
    if not keys:
        return {}
    try:
        with storage.open_read(storage.join(run.uri, path)) as f:
            table = pq.read_table(f, filters=[("key", "in", list(keys))])
        return {v.key: v for v in from_table(table, Verdict)}
    except (ValueError, KeyError, OSError, pa.ArrowException) as e:
        run.problems[path] = f"{type(e).__name__}: {e}"
        return {}


def _config(data: bytes) -> dict[str, Any]:
    tree = yaml.safe_load(data)
    if not isinstance(tree, dict):
        raise ValueError(f"a mapping of sections is wanted, not {type(tree).__name__}")
    return tree


def _mapping(data: bytes) -> dict[str, Any]:
    tree = json.loads(data)
    if not isinstance(tree, dict):
        raise ValueError(f"a JSON object is wanted, not {type(tree).__name__}")
    return tree


def _calibration(data: bytes) -> Calibration:
    found = Calibration(**_mapping(data))
    numbers = {n: float(getattr(found, n)) for n in ("beta", "low", "high", "threshold")}
    bare = {"threshold"} if found.rule == "none" else set()  # of which it is minus infinity
    if not all(math.isfinite(v) for n, v in numbers.items() if n not in bare):
        raise ValueError(f"finite numbers are wanted: {numbers}")
    return dataclasses.replace(found, **numbers)  # type: ignore[arg-type]


def _samples(data: bytes) -> list[dict[str, Any]]:
    tree = json.loads(data)
    if not isinstance(tree, list) or not all(isinstance(s, dict) and isinstance(s.get("images"), dict) for s in tree):
        raise ValueError("a list of samples with images is wanted")
    return tree


def _scores(data: bytes) -> dict[str, Any]:
    """The shape that the page walks; what is wrong deeper down is a number that is not known."""
    tree = _mapping(data)
    groups = tree.get("groups") or {}
    lists = [tree.get("methods"), *(groups.values() if isinstance(groups, dict) else [None])]
    if not all(isinstance(rows, list) and all(isinstance(r, dict) for r in rows) for rows in lists):
        raise ValueError("methods and groups should be lists of objects")
    if not all("method" in r for rows in lists for r in rows) or not isinstance(tree.get("metrics"), list):
        raise ValueError("a list of metrics is wanted, and a method in every row")
    return tree


def _spent(data: bytes) -> dict[str, float]:
    """Of a training's record, its cost."""
    cost = _mapping(data).get("cost") or {}
    if not isinstance(cost, dict):
        raise ValueError(f"cost should be an object, not {type(cost).__name__}")
    return {k: n for k in ("gpu_hours", "cpu_hours", "amount", "kwh") if (n := _finite(cost.get(k))) is not None}


def as_number(value: Any) -> float | None:
    """A JSON number as float; None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _finite(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def _stage(name: str, data: bytes) -> Stage:
    tree = _mapping(data)

    def mapping(key: str) -> dict[str, Any]:
        value = tree.get(key) or {}
        if not isinstance(value, dict):
            raise ValueError(f"{key} should be an object, not {type(value).__name__}")
        return value

    def text(value: Any) -> str:
        return "" if value is None else redact(str(value))

    quarantined = [
        Quarantined(name, text(q.get("unit")), text(q.get("key")), text(q.get("reason")))
        for q in tree.get("quarantined") or []
    ]
    number = {
        k: _finite(tree.get(k)) for k in ("planned", "done", "resumed", "seconds", "bytes_in", "bytes_out", "puts")
    }

    def numbers(key: str) -> dict[str, float]:
        return {str(k): n for k, v in mapping(key).items() if (n := _finite(v)) is not None}

    return Stage(
        name=name,
        status=text(tree.get("status")) or "unknown",
        quarantined=tuple(quarantined),
        work=_finite(tree.get("unit_seconds")),
        started=text(tree.get("started")),
        ended=text(tree.get("ended")),
        machine={str(k): text(v) for k, v in mapping("machine").items()},
        counts=numbers("counts"),
        steps=numbers("steps"),
        outputs={str(k): str(v) for k, v in mapping("outputs").items() if isinstance(v, str)},
        **number,
    )


def _history(run: Run, role: str, data: bytes) -> list[dict[str, float]]:
    """Lines by step; a resumed training logs some steps again, and the last word counts."""
    lines: dict[int, dict[str, float]] = {}
    broken = 0
    for text in data.decode(errors="replace").splitlines():
        if not text.strip():
            continue
        try:
            row = {str(k): n for k, v in json.loads(text).items() if (n := as_number(v)) is not None}
            lines[int(row["step"])] = row
        except (ValueError, KeyError, AttributeError, OverflowError):  # a torn line, or one that is no record
            broken += 1
    if broken:
        run.problems[f"train/{role}/history.jsonl"] = f"{broken} unreadable line{'s' if broken > 1 else ''} left out"
    return [lines[s] for s in sorted(lines)]
