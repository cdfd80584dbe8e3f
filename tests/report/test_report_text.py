"""Numbers in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sar2eo_dist.report import text


def plain(words: str) -> str:
    return words.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "?")


@pytest.mark.parametrize(
    ("f", "value", "expected"),
    [
        (text.human_bytes, 0, "0 B"),
        (text.human_bytes, 999, "999 B"),
        (text.human_bytes, 1536, "1.5 KB"),
        (text.human_bytes, 999_960, "1.0 MB"),
        (text.human_bytes, 312_400_000, "312.4 MB"),
        (text.human_bytes, 5.2e15, "5200.0 TB"),
        (text.human_bytes, None, "?"),
        (text.human_seconds, 0.04, "0.0 s"),
        (text.human_seconds, 9.96, "10 s"),
        (text.human_seconds, 59.7, "1 min 00 s"),
        (text.human_seconds, 75.4, "1 min 15 s"),
        (text.human_seconds, 3725, "1 h 02 min"),
        (text.human_seconds, math.nan, "?"),
        (text.count, 1234567, "1,234,567"),
        (text.count, None, "?"),
        (text.number, 0.0, "0"),
        (text.number, 0.04, "0.0400"),
        (text.number, 123.456, "123"),
        (text.number, -4096.0, "-4,096"),
        (text.number, 1.5e-7, "1.50e-07"),
        (text.number, 2.5e9, "2.50e+09"),
        (text.number, math.inf, "∞"),
        (text.number, -math.inf, "-∞"),
        (text.number, math.nan, "?"),
        (text.percent, 0.0, "0 %"),
        (text.percent, 0.0004, "< 0.1 %"),
        (text.percent, 0.083, "8.3 %"),
        (text.percent, 0.42, "42 %"),
        (text.percent, 1.0, "100 %"),
        (text.day_gap, 0, "Same day"),
        (text.day_gap, 1, "EO 1 day after SAR"),
        (text.day_gap, -5, "EO 5 days before SAR"),
        (text.day_gap, None, "day difference unknown"),
        (text.span, 0, "0 days"),
        (text.span, 1, "1 day"),
        (text.span, 30, "30 days"),
        (text.when, "2026-11-22T20:38:07+00:00", "2026-11-22 20:38 UTC"),
        (text.when, "2026-11-22T20:38:07-04:00", "2026-11-23 00:38 UTC"),
        (text.when, "yesterday", "yesterday"),
        (text.redact, "s3://me:secret@bucket/x", "s3://***@bucket/x"),
        (text.redact, "https://h/x.tif?X-Amz-Signature=ab&b=1 not", "https://h/x.tif?*** not"),
        (text.redact, "mail me@example.org", "mail me@example.org"),
    ],
)
def test_words(f: object, value: object, expected: str) -> None:
    assert plain(f(value)) == expected  # type: ignore[operator]


@given(st.text(max_size=80), st.integers(2, 40))
def test_shortened_text_keeps_both_ends(words: str, limit: int) -> None:
    short = text.shorten(words, limit)
    assert len(short) <= limit
    if len(words) <= limit:
        assert short == words
    else:
        assert words.startswith(short.split("…")[0] if "…" not in words else short[0])
        assert short[-1] == words[-1]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_in_words_is_the_number(x: float) -> None:
    assert float(plain(text.number(x, 6)).replace(",", "")) == pytest.approx(x, rel=1e-4)


@given(st.floats(0, 1e15))
def test_bytes_and_seconds_never_overflow_their_unit(n: float) -> None:
    size = plain(text.human_bytes(n))
    assert float(size.split()[0]) < 1000 or size.endswith("TB")
    assert "60" not in plain(text.human_seconds(n)).split(" min")[-1]
