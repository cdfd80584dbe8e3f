"""lineage: from a pixel of a mosaic back to its block, scenes, bundles, config and code; and that block made again."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import rasterio.warp
from rasterio.transform import AffineTransformer

from sar2eo_dist import __version__, storage
from sar2eo_dist.config import Config
from sar2eo_dist.errors import AuditError, ConfigError, NotFound, Sar2EoError
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.models import bundle
from sar2eo_dist.mosaic import area, store
from sar2eo_dist.mosaic.area import LONLAT
from sar2eo_dist.mosaic.grid import Block
from sar2eo_dist.pipeline import blocks, mosaics
from sar2eo_dist.pipeline.blocks import EXACT, Frame, Task
from sar2eo_dist.pipeline.compute import Compute
from sar2eo_dist.pipeline.mosaics import STAGE
from sar2eo_dist.pipeline.stage import Options, read_summary
from sar2eo_dist.records import Artifact, Unit
from sar2eo_dist.report.text import human_seconds
from sar2eo_dist.sources import composite


def lineage(cfg: Config, opts: Options) -> str:
    """What is known of one pixel, in words. Raises ConfigError: no place, outside; AuditError: remade, it differs."""
    root = storage.absolute(cfg.run.out)
    frame, row, col = _found(cfg, root, opts)
    block = frame.grid.at(row // frame.grid.block, col // frame.grid.block)
    found = mosaics.planned(frame, "block", block.row, block.col)
    if found is None:
        raise ConfigError(f"block {block.key} is not planned: no scene touches it, or the area of interest does not")
    unit, task = found
    try:
        entry: Entry | None = Ledger(root).entry(unit)
    except NotFound:
        entry = None
    lines = [
        *_where(frame, block, row, col, entry is not None),
        *_made(frame, unit, entry),
        *_scenes(frame, task, row, col),
    ]
    if opts.remake:
        if entry is None:
            raise ConfigError(f"block {block.key} is planned but not made: run jobs/translate.py first")
        lines += _remade(frame, unit, task, entry)
    return "\n".join(lines)


def _found(cfg: Config, root: str, opts: Options) -> tuple[Frame, int, int]:
    """The mosaic that owns the pixel that is asked for, and its row and column."""
    if bool(opts.at) == bool(opts.pixel):
        raise ConfigError("say which pixel: --at=LON,LAT in degrees, or --pixel=ROW,COL of the mosaic")
    try:
        first, second = (float(v) for v in (opts.at or opts.pixel).split(","))
    except ValueError as e:
        raise ConfigError(f"two numbers with a comma between them, not {opts.at or opts.pixel!r}") from e
    folders = [opts.mosaic]
    if not opts.mosaic:
        outputs = read_summary(cfg, STAGE)["outputs"]
        folders = [v.rpartition("/")[0] for k, v in outputs.items() if k.partition(" ")[0] == "mosaic"]
    for folder in folders:
        frame = _frame(root, folder)
        g = frame.grid
        row, col = int(first), int(second)
        if opts.at:
            (x,), (y,) = rasterio.warp.transform(LONLAT, g.crs, [first], [second])
            row, col = (int(v) for v in AffineTransformer(rasterio.Affine(*g.transform)).rowcol(x, y))
        if 0 <= row < g.height and 0 <= col < g.width:
            block = g.at(row // g.block, col // g.block)
            if len(folders) == 1 or area.owned(g, block)[row - block.y, col - block.x]:
                return frame, row, col
    raise ConfigError(f"{opts.at or opts.pixel} lies outside of {', '.join(folders) or 'all mosaics: none was made'}")


def _frame(root: str, folder: str) -> Frame:
    uri = storage.join(root, folder, "frame.json")
    try:
        return Frame.from_json(storage.read_bytes(uri), root)
    except (ValueError, KeyError, TypeError) as e:
        raise Sar2EoError(f"not the description of a mosaic ({type(e).__name__}: {e}): {uri}") from e


def _where(frame: Frame, block: Block, row: int, col: int, there: bool) -> list[str]:
    g = frame.grid
    x, y = AffineTransformer(rasterio.Affine(*g.transform)).xy(row, col)
    (lon,), (lat,) = rasterio.warp.transform(g.crs, LONLAT, [x], [y])
    value = "not made yet"
    if there:
        pixels = store.read_block(storage.join(frame.root, frame.store), frame.layout, 0, block.row, block.col)
        at = row - block.y, col - block.x
        value = "no data"
        if pixels is not None and pixels.valid[at]:
            value = f"{frame.dtype} {', '.join(str(v) for v in pixels.rgb[:, *at].tolist())}"
    return [
        f"pixel    row {row}, column {col} of {frame.folder}",
        f"         {x:.1f}, {y:.1f} in {g.crs if len(g.crs) < 40 else 'its CRS'}; {lon:.6f}, {lat:.6f} degrees",
        f"value    {value}",
        f"block    {block.key}: {block.height} x {block.width} pixels from row {block.y}, column {block.x}",
    ]


def _made(frame: Frame, unit: Unit, entry: Entry | None) -> list[str]:
    lines = [f"unit     {unit.id}"]
    if entry:
        steps = ", ".join(f"{k} {human_seconds(v)}" for k, v in entry.steps.items())
        lines += [f"made     at attempt {entry.attempt} in {human_seconds(entry.seconds)} ({steps})"]
        lines += [f"         {a.sha256[:16]} {a.path}" for a in entry.outputs]
    else:
        lines += ["made     not yet: planned only"]
    for uri in frame.bundles:
        info = bundle.read(uri)
        lines.append(f"bundle   {info.model}, step {info.step}, weights {info.weights_sha256[:16]}: {uri}")
        lines.append(f"         trained by {info.code} on data {info.data[:16]}, {info.quantity}")
    lines.append(f"config   {frame.properties['sar2eo:config']}: {frame.folder}/config.yaml")
    lines.append(f"code     {frame.properties['sar2eo:code']}; here: sar2eo_dist {__version__}")
    return lines


def _scenes(frame: Frame, task: Task, row: int, col: int) -> list[str]:
    """Every scene that the block is made from, with what it holds at the pixel."""
    lines = [
        f"scenes   {len(task.scenes)} touch what the block is computed from; {frame.composite}, orbit {frame.orbit}:"
    ]
    for r in blocks.scenes_of(frame, task):
        try:
            vv, vh = composite.read([r], frame.grid.crs, frame.grid.transform, row, col, 1, 1)[:, 0, 0].tolist()
            said = f"VV {vv:.2f}, VH {vh:.2f} dB here" if vv == vv else "no data here"
        except Sar2EoError as e:
            said = f"cannot be read any more ({e})"
        lines.append(f"         {r.date or 'undated'} {r.orbit:10s} {said}: {' '.join(r.uris)}")
    return lines


def _remade(frame: Frame, unit: Unit, task: Task, entry: Entry) -> list[str]:
    """Make the block again below a temporary folder, with the statistics around it, and compare every object."""
    with tempfile.TemporaryDirectory() as folder:
        away = dataclasses.replace(frame, root=folder, scenes=storage.join(frame.root, frame.scenes))
        compute = Compute(frame)

        def make(some: Task, source: Frame) -> tuple[Artifact, ...]:
            value: Any = compute(unit, some, blocks.read(unit, some, None, frame=source), frame=source)
            return blocks.write(unit, some, value, frame=away).outputs

        made = list(_statistics(frame, task, make, away))
        made += make(task, away if made else frame)
    wanted = {a.path: a.sha256 for a in entry.outputs}
    again = {a.path: a.sha256 for a in made if a.path in wanted}
    other = sorted(path for path, sha in wanted.items() if again.get(path) != sha)
    if other:
        raise AuditError(
            f"made again, {len(other)} of {len(wanted)} objects of {unit.key} differ, first {other[0]}: another device type, "
            f"another code version, or inputs that changed"
        )
    return [f"remade   {len(made) - len(again)} statistics windows and {len(again)} objects: the same bytes"]


def _statistics(frame: Frame, task: Task, make: Any, away: Frame) -> Any:
    """The block's statistics windows made again; those of `exact`, which take the whole scene, are copied."""
    if frame.lattice is None:
        return
    if frame.statistics_mode == EXACT:
        data = storage.read_bytes(storage.join(frame.root, frame.statistics(EXACT)))
        yield storage.publish(away.root, away.statistics(EXACT), data)
    for row, col in task.knots:
        found = mosaics.planned(frame, "statistics", row, col)
        if found is not None:
            yield from make(found[1], frame)
