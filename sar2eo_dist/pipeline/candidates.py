"""A cloud reference set out of the archive itself: the cloudiest tiles, shown to a person, who strikes out what is no cloud.

reference/candidates.csv        a row a tile; `keep` is the person's: yes or no
reference/candidates.parquet    the pointers (TileRef) of these tiles, by key: what a spreadsheet would spoil
reference/candidates-1.png ...  contact sheets, in the order of the table
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sar2eo_dist import sources, storage
from sar2eo_dist.cca import exposure
from sar2eo_dist.config import Config
from sar2eo_dist.errors import BadInput, ConfigError, NotFound, ReferenceSetError, Sar2EoError
from sar2eo_dist.pipeline.progress import Meter
from sar2eo_dist.pipeline.stage import Options, Summary, machine, now, write_summary
from sar2eo_dist.records import S2, TileRef, Verdict, digest, from_table, to_table
from sar2eo_dist.report import contact
from sar2eo_dist.report.text import percent
from sar2eo_dist.sources.ranged import ranged

STAGE = "reference"
TABLE = f"{STAGE}/candidates.csv"
POINTERS = f"{STAGE}/candidates.parquet"
RANKED_BY = ("sensor", "date", "lon", "lat", "valid_fraction", "contrast", "qa60_fraction", "white_fraction",
             "alpha_fraction", "light")  # fmt: skip
WHOLE = 0.99  # least share of pixels with data
SCENES = 50  # acquisitions that the candidates come from at least, where the archive has them
READERS = 16  # tiles in flight: reading waits for the store
COLUMNS = ("number", "keep", "key", "date", "lon", "lat", "qa60_fraction", "white_fraction", "alpha_fraction",
           "brightness", "light", "uris")  # fmt: skip


def propose(cfg: Config, opts: Options) -> Summary:
    """Write the table, pointers and contact sheets of the `opts.candidates` cloudiest tiles of an earlier collect.

    What a person has struck out before stays struck out (not with `--fresh`). Raises Sar2EoError where there is no
    collect yet, ConfigError where it holds no whole S2 tile, ReferenceSetError where the table was edited badly.
    """
    begin, started = time.monotonic(), now()
    if opts.candidates < 2:
        raise ConfigError(f"--candidates {opts.candidates}: a cloud set needs 2 tiles or more (the paper used 1,000)")
    found = _cloudiest(storage.join(cfg.run.out, "collect/verdicts.parquet"), opts.candidates)
    if opts.dry_run:
        return Summary(STAGE, "planned", len(found), started=started)
    uri = storage.join(cfg.run.out, TABLE)
    before = {} if opts.fresh or not storage.exists(uri) else read_table(uri)
    struck = {key for key, (keep, _) in before.items() if not keep}
    shown = list(_shown(found))
    if not shown:
        raise Sar2EoError(f"none of the {len(found)} cloudiest tiles can be read any more: run jobs/collect.py again")
    tiles = [v for v, _ in shown]
    sheets = _draw(cfg.run.out, shown, struck)
    pointers = io.BytesIO()
    pq.write_table(to_table([v.ref for v in tiles], TileRef), pointers, compression="zstd")
    storage.put(storage.join(cfg.run.out, POINTERS), pointers.getvalue())
    storage.put(uri, _csv(tiles, struck))
    print(
        f"The {len(tiles)} cloudiest tiles are listed in {uri}; {sheets} contact sheet(s) beside it show them.\n"
        f"Look at them, set `keep` to no in the row of every tile that is not cloud, then build the set:\n"
        f"  python jobs/reference.py, with this config and --set cca.reference={uri}"
    )
    counts = {"candidates": len(tiles), "struck out": len(struck & {v.key for v in tiles}), "sheets": sheets}
    outputs = {"candidates": TABLE, "contact sheets": f"{STAGE}/candidates-1.png"}
    summary = Summary(
        STAGE, "complete", len(tiles), len(tiles), seconds=time.monotonic() - begin, started=started, ended=now(),
        digest=digest([v.digest for v in tiles]), counts=counts, outputs=outputs, machine=machine(),
    )  # fmt: skip
    return write_summary(cfg, summary)


def _cloudiest(uri: str, n: int) -> list[Verdict]:
    """The verdicts that `choose` picks out of a parquet file of them."""
    if not storage.exists(uri):
        raise Sar2EoError(f"{uri} is not there: run jobs/collect.py first (--set cca.profile=none needs no cloud set)")
    with ranged(uri) as f:
        file = pq.ParquetFile(f)
        rows = choose(file.read(columns=list(RANKED_BY)), n)
        if not len(rows):
            raise ConfigError(f"no S2 tile with more than {WHOLE:.0%} of its pixels: nothing to choose from in {uri}")
        return from_table(_take(file, rows), Verdict)


def choose(verdicts: pa.Table, n: int) -> npt.NDArray[np.int64]:
    """Rows of at most n cloudiest whole S2 tiles, cloudiest first; verdicts: the columns RANKED_BY, in order of key.

    First those that QA60 calls mostly cloud (it is 0 in many clouds, so less than half tells nothing, nor does its
    absence), then by bright and white pixels, then pixels over alpha, then light; equal ones in the table's order. No
    acquisition (a date in one degree cell, about a Sentinel-2 scene) gives more than its share, n / SCENES or 2, unless
    there are not enough others.
    """
    column = {c: verdicts[c].to_numpy(zero_copy_only=False) for c in RANKED_BY if c not in ("sensor", "date")}
    cloud = {c: np.nan_to_num(column[c]) for c in ("qa60_fraction", "white_fraction", "alpha_fraction", "light")}
    optical = pc.equal(verdicts["sensor"], S2).to_numpy(zero_copy_only=False)
    usable = optical & (column["valid_fraction"] > WHOLE) & ~(column["contrast"] == 0)
    order = np.lexsort(
        (-cloud["light"], -cloud["alpha_fraction"], -cloud["white_fraction"], cloud["qa60_fraction"] <= 0.5)
    )
    order = order[usable[order]]
    days = verdicts["date"].cast(pa.int32()).to_numpy(zero_copy_only=False).astype(np.int64)
    scene = (days * 1000 + np.floor(column["lon"]).astype(np.int64)) * 1000 + np.floor(column["lat"]).astype(np.int64)
    by_scene = np.argsort(scene[order], kind="stable")
    starts = np.flatnonzero(np.diff(scene[order][by_scene], prepend=scene.min(initial=0) - 1))
    nth = np.empty(len(order), np.int64)  # how many of the same acquisition are cloudier
    nth[by_scene] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    share = max(2, math.ceil(n / SCENES))
    spread = np.concatenate([np.flatnonzero(nth < share), np.flatnonzero(nth >= share)])[:n]
    chosen: npt.NDArray[np.int64] = order[np.sort(spread)].astype(np.int64)
    return chosen


def _take(file: pq.ParquetFile, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Rows of a parquet file in the order given, without ever holding the whole of it."""
    wanted, at, parts = np.sort(rows), 0, []
    for batch in file.iter_batches():
        low, high = np.searchsorted(wanted, (at, at + len(batch)))
        if low < high:
            parts.append(batch.take(pa.array(wanted[low:high] - at)))
        at += len(batch)
    return pa.Table.from_batches(parts).take(pa.array(np.searchsorted(wanted, rows)))


def _shown(found: Sequence[Verdict]) -> Iterator[tuple[Verdict, npt.NDArray[np.uint8]]]:
    """Tiles with their thumbnails, side by side; those that are gone or torn since the collect are left out and named."""

    def look(v: Verdict) -> npt.NDArray[np.uint8] | Sar2EoError:
        try:
            eo = sources.read_eo(v.ref)
            return contact.thumbnail(contact.natural(exposure.harmonise(eo.bands, eo.offset)))
        except (BadInput, NotFound) as e:
            return e

    with ThreadPoolExecutor(READERS) as pool, Meter("candidates", len(found), "tiles") as meter:
        for v, image in zip(found, pool.map(look, found), strict=True):
            meter.advance()
            if isinstance(image, Sar2EoError):
                print(f"left out: {v.key}: {type(image).__name__}: {image}", file=sys.stderr)
            else:
                yield v, image


def _draw(root: str, shown: Sequence[tuple[Verdict, npt.NDArray[np.uint8]]], struck: set[str]) -> int:
    """The contact sheets in place of those of an earlier list; their number."""
    with contextlib.suppress(NotFound):
        for info in storage.list_files(storage.join(root, STAGE)):
            if storage.name(info.uri).startswith("candidates-"):
                storage.delete(info.uri)
    cells = [
        contact.Cell(image, n, (v.key, f"QA60 {percent(v.qa60_fraction)}, white {percent(v.white_fraction)}"), v.key in struck)
        for n, (v, image) in enumerate(shown, 1)
    ]  # fmt: skip
    sheets = [cells[at : at + contact.PER_SHEET] for at in range(0, len(cells), contact.PER_SHEET)]
    for number, part in enumerate(sheets, 1):
        title = f"Candidates {part[0].number} to {part[-1].number} of {len(cells)}, cloudiest first: set keep to no for what is no cloud"  # noqa: E501
        storage.put(storage.join(root, f"{STAGE}/candidates-{number}.png"), contact.sheet(part, title))
    return len(sheets)


def _csv(tiles: Sequence[Verdict], struck: set[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for number, v in enumerate(tiles, 1):
        measured = (v.qa60_fraction, v.white_fraction, v.alpha_fraction)
        writer.writerow([
            number, "no" if v.key in struck else "yes", v.key, v.date, f"{v.lon:.5f}", f"{v.lat:.5f}",
            *("" if math.isnan(x) else f"{x:.4f}" for x in measured),
            *("" if math.isnan(x) else f"{x:.1f}" for x in (v.brightness, v.light)), " ".join(v.uris),
        ])  # fmt: skip
    return text.getvalue().encode()


def read_table(uri: str) -> dict[str, tuple[bool, int]]:
    """Key -> (kept, line), of a candidates table as a person left it: commas, semicolons or tabs, with or without a BOM.

    Raises ReferenceSetError with the line: no `keep` or `key` column, another value than yes or no, a key twice.
    """
    fault = partial(_fault, uri)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise fault(1, f"not UTF-8 ({e.reason} at byte {e.start}): save it as 'CSV UTF-8'") from e
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count))
    for name in ("keep", "key"):
        if name not in (reader.fieldnames or ()):
            raise fault(
                1, f"there is no column {name!r} in {head.strip()!r}: the first line must stay as it was written"
            )
    kept: dict[str, tuple[bool, int]] = {}
    try:
        for row in reader:
            line = reader.line_num
            key, keep = (row["key"] or "").strip(), (row["keep"] or "").strip().lower()
            if not key and not keep:
                continue  # a spreadsheet leaves empty rows
            if keep not in ("yes", "no"):
                raise fault(line, f"keep is {row['keep']!r}, not yes or no, of {key}")
            if key in kept:
                raise fault(line, f"{key} appears twice: delete one of the rows")
            kept[key] = keep == "yes", line
    except csv.Error as e:
        raise fault(reader.line_num, f"not a table ({e})") from e
    return kept


def read(uri: str) -> list[TileRef]:
    """The tiles that a candidates table keeps, by key; pointers from the .parquet beside it. Raises ReferenceSetError."""
    kept = read_table(uri)
    beside = uri[: -len(".csv")] + ".parquet"
    try:
        refs = {r.key: r for r in from_table(pq.read_table(io.BytesIO(storage.read_bytes(beside))), TileRef)}
    except (NotFound, pa.ArrowInvalid, KeyError) as e:
        raise ReferenceSetError(
            f"{uri} needs {storage.name(beside)} beside it, as jobs/reference.py --candidates wrote both ({e})"
        ) from e
    for key, (_, line) in kept.items():
        if key not in refs:
            raise _fault(uri, line, f"{key!r} is not a tile of {storage.name(beside)}: set keep to no, but change no key "
                         "and add no row; jobs/reference.py --candidates with a larger number gives more")  # fmt: skip
    return [refs[key] for key in sorted(kept) if kept[key][0]]


def _fault(uri: str, line: int, what: str) -> ReferenceSetError:
    return ReferenceSetError(f"line {line}: {what}: {uri}")
