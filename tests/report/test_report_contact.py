"""Contact sheets: pixels where they belong, words that fit, the same bytes again."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sar2eo_dist.report import contact
from sar2eo_dist.report.contact import COLUMNS, GAP, HEAD, PAPER, PER_SHEET, STRUCK, THUMB, Cell


def cell(value: int, number: int = 1, lines: tuple[str, ...] = ("a key",), struck: bool = False) -> Cell:
    return Cell(np.full((THUMB, THUMB, 3), value, np.uint8), number, lines, struck)


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("n", [1, 9, 10, 11, PER_SHEET])
def test_every_cell_is_on_the_sheet_at_its_place(n: int) -> None:
    cells = [cell(100 + i % 100, i + 1) for i in range(n)]
    page = opened(contact.sheet(cells, "Clouds"))
    rows = -(-n // COLUMNS)
    high = (page.shape[0] - HEAD - GAP) // rows
    for i in range(n):
        y, x = HEAD + i // COLUMNS * high, GAP + i % COLUMNS * (THUMB + GAP)
        assert (page[y : y + THUMB, x : x + THUMB] == 100 + i % 100).all()
        under = page[y + THUMB : y + high - GAP, x : x + THUMB]
        assert (under != PAPER).any()  # words
    assert (page[:HEAD] != PAPER).any()


def test_a_sheet_is_deterministic_and_has_bounds() -> None:
    cells = [cell(i, i) for i in range(12)]
    assert contact.sheet(cells, "t") == contact.sheet(cells, "t") != contact.sheet(cells, "u")
    for bad in ([], [cell(0)] * (PER_SHEET + 1)):
        with pytest.raises(ValueError, match="1 to 100 cells"):
            contact.sheet(bad, "t")


def test_what_is_struck_out_is_crossed() -> None:
    page = opened(contact.sheet([cell(90), cell(90, struck=True)], "t"))
    for at, crossed in ((0, False), (1, True)):
        x = GAP + at * (THUMB + GAP)
        middle = page[HEAD + THUMB // 2, x + THUMB // 2]
        assert (tuple(middle) == STRUCK) is crossed


def test_words_never_reach_the_next_cell_nor_show_boxes() -> None:
    long = contact.sheet([cell(9, lines=("W" * 200,)), cell(9, 2, ("",))], "t")
    page = opened(long)
    right = GAP + THUMB + GAP - 2
    assert (page[HEAD + THUMB + 16 :, right : right + 30] == PAPER).all()
    hard, soft = (contact.sheet([cell(9, lines=(f"12{space}%",))], "t") for space in ("\N{NO-BREAK SPACE}", " "))
    assert hard == soft


def test_natural_colours_keep_cloud_apart_and_forest_visible() -> None:
    dn = np.array([[[0, 300, 4000, 7000, 10_000, 65_535]]] * 3, np.uint16)
    seen = contact.natural(dn)
    assert seen.dtype == np.uint8
    assert seen.shape == dn.shape
    row = seen[0, 0].tolist()
    assert row[0] == 0
    assert row[1] > 40
    assert row[2] + 30 < row[3] < row[4] == row[5] == 255


@pytest.mark.parametrize("side", [64, 128, 256, 300])
def test_thumbnails_are_means(side: int) -> None:
    image = np.zeros((3, side, side), np.uint8)
    image[0, :, : side // 2] = 200
    image[2] = 7
    small = contact.thumbnail(image)
    assert small.shape == (THUMB, THUMB, 3)
    assert abs(small[..., 0].mean() - 100) < 1
    assert (small[:, : THUMB // 2 - 1, 0] == 200).all()
    assert (small[..., 1] == 0).all()
    assert (small[..., 2] == 7).all()
