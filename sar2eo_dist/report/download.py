"""Tables of a page as files to take away: a link that holds the whole CSV, so that the page stays one file."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from sar2eo_dist import storage
from sar2eo_dist.errors import NotFound
from sar2eo_dist.report.load import Run, part
from sar2eo_dist.report.text import redact

MOST = 2000  # rows of a table that a page holds
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # text that begins so is run by spreadsheets


def link(name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """An <a download> whose data: URI is the table as UTF-8 CSV (RFC 4180). name: of the file, ours, not from outside.

    Numbers are written in full, with a point; None and NaN are empty. Text loses its secrets (text.redact) and, where a
    spreadsheet would run it as a formula, gets a leading apostrophe.
    """
    sink = io.StringIO()
    out = csv.writer(sink)
    out.writerow([_cell(h) for h in header])
    out.writerows([_cell(v) for v in row] for row in rows)
    data = base64.b64encode(sink.getvalue().encode()).decode()
    return Markup('<a class="csv" download="{}" href="data:text/csv;charset=utf-8;base64,{}">CSV</a>').format(
        name, data
    )


def parquet(run: Run, path: str, name: str) -> Markup | None:
    """`link` of a table of the run folder; None where it is not there, is broken (a named problem) or has more than
    MOST rows."""
    try:
        with storage.open_read(part(run.uri, path)) as f:
            file = pq.ParquetFile(f)
            if file.metadata.num_rows > MOST:
                return None
            table = file.read()
    except NotFound:
        return None
    except (ValueError, OSError, pa.ArrowException) as e:  # pyarrow says OSError for a torn file
        run.problems[path] = f"{type(e).__name__}: {e}"
        return None
    return link(name, table.column_names, zip(*(table[c].to_pylist() for c in table.column_names), strict=True))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float):
        return repr(value)
    text = redact(str(value))
    return f"'{text}" if text.startswith(FORMULA) else text
