"""The mosaic in the field as the page shows it: the skill map's picture, and the figures of `grade/series.parquet`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.report import plots
from sar2eo_dist.report.download import parquet
from sar2eo_dist.report.images import Album, Picture
from sar2eo_dist.report.load import Run, part
from sar2eo_dist.report.text import count, minus, number, span

SERIES = "grade/series.parquet"
_COLUMNS = {
    "mosaic": "string", "date": "date32", "days": "int64", "tiles": "int64", "pixels": "int64", "mae": "float64",
    "rmse": "float64", "bias": "float64", "skill": "float64", "trivial_mae": "float64", "trivial_rmse": "float64",
}  # fmt: skip
#: of the summary's counts -> what became of these tiles, in words
_LEFT = {
    "tiles outside": "lie where the mosaic has no pixel", "tiles out of days": "are of other days than grade.days asks for",
    "tiles without clear pixels": "show no clear ground of it", "tiles left out": "belong to slices that did not finish",
}  # fmt: skip
_WIDE, _GAP, _BELOW = 480, 30, 46  # pixels of a quick-look: one panel, around it, under its scale


@dataclass(frozen=True, slots=True)
class Graded:
    """One mosaic. said: what it is worth, in a sentence; rows: of the series, by date; plots: MAE and skill over days."""

    name: str
    said: str
    trouble: str
    picture: Picture
    rows: tuple[dict[str, Any], ...]
    plots: tuple[tuple[str, Markup], ...]


@dataclass(frozen=True, slots=True)
class Field:
    """mosaics: those that any clear pixel met; note: which tiles these figures are of, and which they are not; status: of
    the summary; files: (name, path in the run folder); csv: the series to take away, where it is short."""

    mosaics: tuple[Graded, ...]
    note: str
    status: str
    files: tuple[tuple[str, str], ...]
    csv: Markup | None


def section(run: Run, album: Album) -> Field | None:
    """None where no mosaic was graded. What is missing or broken is named in `run.problems`."""
    stage = run.stages.get("grade")
    if stage is None or "series" not in stage.outputs:
        return None
    looks = [path for name, path in stage.outputs.items() if name.partition(" ")[0] == "skill_quicklook"]
    rows = _series(run, stage.outputs["series"])
    made = []
    for name in dict.fromkeys(r["mosaic"] for r in rows):
        own = tuple(r for r in rows if r["mosaic"] == name)
        path = next((p for p in looks if p.endswith(f"/skill_{name}.png")), "")
        picture = album.file(path, 1200, 90) if path else Picture(missing="no picture of this skill map was made")
        curves = tuple((label, Markup(svg)) for label, svg in series_plots(own, name))  # noqa: S704 -- our own
        made.append(Graded(name, verdict(own), _worse(own), picture, own, curves))
    files = tuple((n, p) for n, p in stage.outputs.items() if n.partition(" ")[0] in ("skill", "series"))
    csv = parquet(run, stage.outputs["series"], "field.csv") if made else None
    return Field(tuple(made), _note(stage.counts), stage.status, files, csv)


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """mae, trivial_mae (DN), skill and pixels over several dates, weighted by their clear pixels."""
    n = np.array([r["pixels"] for r in rows], np.float64)
    of = {k: np.array([r[k] for r in rows], np.float64) for k in ("mae", "trivial_mae", "rmse", "trivial_rmse")}
    squares, trivial = (float((n * of[k] ** 2).sum()) for k in ("rmse", "trivial_rmse"))
    out = {k: float((n * of[k]).sum() / n.sum()) for k in ("mae", "trivial_mae")}
    return out | {"skill": 1 - squares / trivial if trivial else math.nan, "pixels": float(n.sum())}


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the dates of one mosaic say together, in a sentence."""
    all_of, days = pooled(rows), sorted(r["days"] for r in rows)
    when = f"{span(days[0])} after" if days[0] >= 0 else f"{span(-days[0])} before"
    if len(rows) > 1:
        when = f"{len(rows)} dates, {minus(str(days[0]))} to {minus(span(days[-1]))} after"
    return (
        f"{when} the mosaic's last radar image: MAE {number(all_of['mae'])} DN over {_many(all_of['pixels'])} clear pixels, "
        f"skill {_signed(all_of['skill'])} over the scene's mean colour ({number(all_of['trivial_mae'])} DN)."
    )


def _worse(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where it is no better than one colour, said so."""
    skill = pooled(rows)["skill"]
    if skill > 0:
        return ""
    if math.isnan(skill):
        return "The truth is of one colour throughout: nothing can be better than that colour."
    return "By squared error one flat colour, the mean of the day, comes closer to the truth than this mosaic does."


def _signed(x: float) -> str:
    return "unknown" if math.isnan(x) else minus(f"{x:.2f}")


def _many(n: float) -> str:
    """1234567 -> '1.2 million'."""
    return f"{n / 1e6:,.1f} million" if n >= 1e6 else count(n)


def _note(counts: Mapping[str, float]) -> str:
    kept, graded = counts.get("tiles kept", 0), counts.get("tiles graded", 0)
    text = f"{count(graded)} of {count(kept)} clear Sentinel-2 tiles that collect kept were compared"
    left = [f"{count(counts[k])} {why}" for k, why in _LEFT.items() if counts.get(k)]
    text += f"; {', '.join(left)}." if left else "."
    trained = counts.get("tiles trained on", 0)
    if trained:
        text += f" {count(trained)} of those compared are targets of this run's own training pairs: no new ground."
    return text


def _series(run: Run, path: str) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(part(run.uri, path))), columns=list(_COLUMNS))
        table = table.select(list(_COLUMNS)).cast(pa.schema([(n, pa.type_for_alias(t)) for n, t in _COLUMNS.items()]))
        found: list[dict[str, Any]] = table.to_pylist()
        if any(r[k] is None for r in found for k in _COLUMNS) or any(r["pixels"] < 1 for r in found):
            raise ValueError("a row without a mosaic, a date, clear pixels or a figure")
        return found
    except NotFound:
        run.problems[path] = "the series is not there, though the summary names it"
    except (ValueError, KeyError, OSError, pa.ArrowException) as e:
        run.problems[path] = f"{type(e).__name__}: {e}"
    return []


@plots._style()
def series_plots(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, str]]:
    """(title, svg) of MAE, beside the trivial predictor's, and of skill, each over days after the last radar image."""
    days = np.array([r["days"] for r in rows], np.float64)
    out = []
    for label, lines in (("MAE, DN", ("mae", "trivial_mae")), ("Skill", ("skill",))):
        fig, ax = plots._axes(380, 200)
        for key in lines:
            style = {"color": plots.CURVE, "marker": "o"} if key in ("mae", "skill") else {
                "color": plots.MUTED, "marker": "s", "linestyle": (0, (4, 3))}  # fmt: skip
            ax.plot(days, [r[key] for r in rows], linewidth=1.6, markersize=4, **style)
        seen = np.array([r[k] for r in rows for k in lines], np.float64)
        seen = seen[np.isfinite(seen)]
        if label == "Skill":
            ax.axhline(0, color=plots.INK, linewidth=1.2, linestyle=(0, (5, 3)))
            ax.set_ylim(min(0.0, *seen, 0.0) - 0.08, 1.0)
        else:
            ax.set_ylim(0, 1.1 * max([*seen, 1.0]))
        ax.set_xlim(min(days.min() - 1, 0), days.max() + 1)
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(lambda v, _: minus(f"{v:g}"))
        ax.set_xlabel("days after the last radar image")
        out.append((label, plots._svg(fig, f"field-{name}-{label}", f"{label} over days after the last radar image")))
    return out


@plots._style()
def picture(mae: npt.NDArray[np.float32], skill: npt.NDArray[np.float32]) -> bytes:
    """PNG of a skill map and its MAE side by side with their scales. mae (DN), skill: (h, w), NaN = nothing compared.

    Skill from -1 (and below) to 1, diverging at 0; MAE from 0 to what 98 % of the cells stay under. The same arrays give
    the same bytes.
    """
    rows, cols = skill.shape
    tall = round(min(max(rows / cols, 0.25), 2.5) * _WIDE)
    width, height = (
        2 * _WIDE + 3 * _GAP,
        tall + 2 * _GAP + _BELOW,
    )  # placed by hand: matplotlib's own layout takes seconds
    fig = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    known = mae[np.isfinite(mae)]
    top = max(float(np.quantile(known, 0.98)), 1.0) if known.size else 1.0
    panels = (
        (skill, "Skill", "BrBG", (-1.0, 1.0), "min",
         "1: perfect   0: no better than the day's mean colour   below: worse"),
        (mae, "MAE", "magma_r", (0.0, top), "max", "DN (reflectance x 10,000), mean of red, green and blue"),
    )  # fmt: skip
    for k, (values, title, colours, (low, high), beyond, label) in enumerate(panels):
        left = (_GAP + k * (_WIDE + _GAP)) / width
        ax = fig.add_axes((left, (_GAP + _BELOW) / height, _WIDE / width, tall / height))
        shades = colormaps[colours].with_extremes(bad="#cfcfcf")
        shown = ax.imshow(values, cmap=shades, vmin=low, vmax=high, interpolation="nearest", aspect="equal")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, loc="left", fontsize=13)
        under = fig.add_axes((left, _BELOW / height, _WIDE / width, 12 / height))
        bar = fig.colorbar(shown, cax=under, orientation="horizontal", extend=beyond)
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=9)
    sink = io.BytesIO()
    FigureCanvasAgg(fig).print_png(sink, metadata={"Software": None})
    return sink.getvalue()
