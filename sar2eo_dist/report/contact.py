"""Contact sheets: many small tiles on one PNG, each with its number and a few words, for a person to judge at a glance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

THUMB = 128  # side of a thumbnail, pixels
COLUMNS, ROWS = 10, 10
PER_SHEET = COLUMNS * ROWS
GAP, LINE, HEAD = 10, 13, 40  # between cells, of a line of text, above the first row; pixels
PAPER, INK, FAINT, STRUCK = (250, 250, 248), (25, 25, 25), (95, 95, 95), (200, 30, 30)

#: DN (as reflectance x 10000) -> 8 bit: the whole range, so that cloud differs from thicker cloud, and gamma 2.2, so that
#: forest (DN 300) is not black
_EYE = np.round(255 * (np.minimum(np.arange(1 << 16), 10_000) / 10_000) ** (1 / 2.2)).astype(np.uint8)


def natural(bands: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """(3, H, W) uint16 DN (B4, B3, B2; offset removed) -> (3, H, W) uint8 RGB, one stretch for all: brightness compares."""
    return _EYE[bands]


def thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(3, H, W) uint8 RGB -> (THUMB, THUMB, 3) uint8, pixels averaged (a small image: repeated)."""
    whole = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(whole.resize((THUMB, THUMB), Image.Resampling.BOX))


@dataclass(frozen=True, eq=False, slots=True)
class Cell:
    """One tile of a sheet. image: (THUMB, THUMB, 3) uint8; number: what a person calls it; lines: words under it."""

    image: npt.NDArray[np.uint8]
    number: int
    lines: tuple[str, ...]
    struck: bool = False  # crossed out


def sheet(cells: Sequence[Cell], title: str) -> bytes:
    """A PNG of at most PER_SHEET cells, row by row; equal cells give equal bytes (with one Pillow)."""
    if not 0 < len(cells) <= PER_SHEET:
        raise ValueError(f"a contact sheet holds 1 to {PER_SHEET} cells, not {len(cells)}")
    title_font, bold, plain = (ImageFont.load_default(size) for size in (17, 13, 11))
    high = THUMB + 3 + LINE * (1 + max(len(c.lines) for c in cells))
    wide = max(COLUMNS if len(cells) > COLUMNS else len(cells), 4)
    size = (GAP + wide * (THUMB + GAP), HEAD + -(-len(cells) // COLUMNS) * (high + GAP) + GAP)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 11), title, INK, font=title_font)
    for i, cell in enumerate(cells):
        x, y = GAP + i % COLUMNS * (THUMB + GAP), HEAD + i // COLUMNS * (high + GAP)
        page.paste(Image.fromarray(cell.image), (x, y))
        if cell.struck:
            for ends in ((x, y, x + THUMB, y + THUMB), (x, y + THUMB, x + THUMB, y)):
                draw.line(ends, STRUCK, width=3)
        draw.text((x, y + THUMB + 2), f"{cell.number}", STRUCK if cell.struck else INK, font=bold)
        for n, line in enumerate(cell.lines, 1):
            draw.text((x, y + THUMB + 3 + n * LINE), _fit(draw, line, plain), FAINT, font=plain)
    sink = io.BytesIO()
    page.save(sink, "PNG")
    return sink.getvalue()


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, its middle left out where it is wider than a cell: both ends of a name tell something."""
    text = text.replace("\N{NO-BREAK SPACE}", " ")  # which the font does not have
    keep, fitted = len(text), text
    while draw.textlength(fitted, font) > THUMB + GAP - 4 and keep > 4:
        keep -= 1
        fitted = f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}"
    return fitted
