"""The dated page of a scheduled run: what was new, which blocks it changed, how good, how long, and the runs before it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.report import cost, text
from sar2eo_dist.report.field import SERIES
from sar2eo_dist.report.images import Album, Picture
from sar2eo_dist.report.load import Run, Stage
from sar2eo_dist.sources.ranged import ranged

FILE = "report.html"
SCENES = 60  # shown of each kind; all are in changes.csv
MAPS = 16  # mosaics shown, those with most changes first
RUNS = 30  # of the history
DAYS = 20  # of the grades, the newest
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Changes:
    """Since the last finished run. new, changed, withdrawn: URIs of scenes; blocks: rows of the blocks that were made."""

    new: tuple[str, ...]
    changed: tuple[str, ...]
    withdrawn: tuple[str, ...]
    blocks: tuple[Mapping[str, Any], ...]

    @property
    def any(self) -> bool:
        return bool(self.new or self.changed or self.withdrawn or self.blocks)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """folder: in the run folder; places: (row, column) of all its blocks; made: of those that this run made."""

    folder: str
    places: tuple[Place, ...]
    made: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Night:
    """One run. history: a row a run, this one last; troubles: what was quarantined (key, reason)."""

    day: dt.date
    folder: str
    status: str
    history: Sequence[Mapping[str, Any]]
    changes: Changes
    mosaics: Sequence[Mosaic]
    troubles: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Map:
    """A quick-look with a frame around each block that was made; left, top, wide, high: its extent in blocks."""

    name: str
    picture: Picture
    left: int
    top: int
    wide: int
    high: int
    made: tuple[Place, ...]
    of: int


def build(root: str, night: Night) -> bytes:
    """One self-contained UTF-8 page without a script. Raises AccessDenied or Unavailable where the store refuses."""
    env = Environment(
        loader=PackageLoader("sar2eo_dist.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    for name in ("human_bytes", "human_seconds", "count", "number", "shorten", "redact", "when"):
        env.filters[name] = getattr(text, name)
    env.filters |= {"money": cost.money, "human_hours": cost.human_hours}
    album = Album(root)
    shown = sorted(night.mosaics, key=lambda m: (-len(m.made), m.folder))[:MAPS]
    page = env.get_template("basin.html.j2").render(
        night=night, this=night.history[-1], past=night.history[-2 : -RUNS - 1 : -1],
        maps=[_map(album, m) for m in shown], hidden=len(night.mosaics) - len(shown), scenes=SCENES,
        grades=_grades(root), runs=len(night.history),
    )  # fmt: skip
    return page.encode()


def spent(config: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """What the blocks that were made have taken: device, its hours, hours of cores beside, energy and money where the price
    table has any. Statistics windows, overviews and grades are not in it."""
    total = {k: sum(b[k] for b in changes.blocks) for k in ("seconds", "compute", "bytes", "puts", "gpu")}
    steps = {"compute": total["compute"], "tasks": total["seconds"] - total["compute"]}
    stage = Stage(
        "translate", "complete", None, None, None, (), None, total["seconds"], None, total["bytes"], "", "", {},
        {"blocks on a GPU": total["gpu"]}, {}, steps=steps, puts=total["puts"],
    )  # fmt: skip
    row = cost.verb(Run("", config=config), stage)
    return {
        "device": row.device, "hours": row.hours, "beside": row.beside, "kwh": row.kwh, "money": row.money,
        "currency": str(config["cost"]["currency"]),
    }  # fmt: skip


def _map(album: Album, m: Mosaic) -> Map:
    rows, cols = [r for r, _ in m.places], [c for _, c in m.places]
    top, left = min(rows), min(cols)
    size = max(cols) - left + 1, max(rows) - top + 1
    picture = album.file(f"{m.folder}/quicklook.png", 720)
    return Map(storage.name(m.folder), picture, left, top, *size, m.made, len(m.places))


def _grades(root: str) -> list[dict[str, Any]]:
    """The newest dates of the series that `grade` left; none where it has not run."""
    try:
        with ranged(storage.join(root, SERIES)) as f:
            rows = pq.read_table(f).to_pylist()
    except NotFound:
        return []
    return sorted(rows, key=lambda r: (r["date"], r["mosaic"]), reverse=True)[:DAYS]
