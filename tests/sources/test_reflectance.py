"""What the DN of a product mean: scales and offsets of its own metadata, contradictions, doubts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scene_files import DN, PLAIN, RGB, S2_NAME, cog, put, refused, s2, window

from sar2eo_dist import sources
from sar2eo_dist.errors import BadInput


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


@pytest.mark.parametrize(
    ("factor", "options"),
    [
        (1.0, {"scale": (1e-4, 0.0), **PLAIN}),
        (1e-4, {"tags": {"QUANTIFICATION_VALUE": "1"}}),
        (1e-2, {"band_tags": {"raster_bands": '{"scale": 0.01}'}}),
    ],
)
def test_floats_are_read_where_a_scale_says_what_they_are(root: str, factor: float, options: dict[str, Any]) -> None:
    stored = (DN * np.float64(factor)).astype(np.float32)
    stored[0, 100, 100] = np.nan
    tile = s2(root, stored, **options)[0]
    expected = DN.copy()
    expected[0, 100, 100] = 0
    np.testing.assert_array_equal(sources.read_eo(tile).bands, window(expected, tile))


def stac(scale: float | None, offset: float | None) -> str:
    return json.dumps([{k: v for k, v in (("scale", scale), ("offset", offset)) if v is not None}] * 3)


OFFSETS: dict[str, tuple[dict[str, Any], int]] = {
    "GDAL, in DN": ({"scale": (1.0, -1000.0), **PLAIN}, 1000),
    "GDAL, in reflectance": ({"scale": (1e-4, -0.1), **PLAIN}, 1000),
    "ESA, L2A": ({"tags": {"BOA_ADD_OFFSET": "-1000"}}, 1000),
    "ESA, L1C, a band": ({"band_tags": {"RADIO_ADD_OFFSET": "-1000"}}, 1000),
    "ESA, bands by number": ({"tags": {f"BOA_ADD_OFFSET_{i}": "-1000" for i in (1, 2, 3)}}, 1000),
    "ESA, removed": ({"tags": {"BOA_ADD_OFFSET": "0", "BOA_QUANTIFICATION_VALUE": "10000"}}, 0),
    "STAC": ({"tags": {"raster:bands": stac(1e-4, -0.1)}}, 1000),
    "STAC, harmonised": ({"tags": {"raster:bands": stac(1e-4, 0)}}, 0),
    "two that agree": ({"tags": {"raster:bands": stac(1e-4, -0.1), "BOA_ADD_OFFSET": "-1000"}}, 1000),
    "of other bands": ({"tags": {"AOT_QUANTIFICATION_VALUE": "1000", "PROCESSING_BASELINE": "05.10"}}, 0),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_the_offset_is_what_the_product_says(root: str, case: str) -> None:
    options, offset = OFFSETS[case]
    tile = s2(root, **options)[0]
    eo = sources.read_eo(tile)
    assert eo.offset == offset
    np.testing.assert_array_equal(eo.bands, window(DN, tile))


CONTRADICTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ESA and STAC": (
        {"tags": {"BOA_ADD_OFFSET": "-1000", "raster:bands": stac(1e-4, 0.0)}},
        ("BOA_ADD_OFFSET -1000", "raster:bands offset 0"),
    ),
    "GDAL and ESA": ({"scale": (1.0, -1000.0), "tags": {"BOA_ADD_OFFSET": "0"}, **PLAIN}, ("GDAL offset -1000",)),
    "two scales": ({"scale": (1e-4, 0.0), "tags": {"QUANTIFICATION_VALUE": "1000"}, **PLAIN}, ("0.0001", "1000")),
    "half a DN": ({"scale": (1.0, -0.5), **PLAIN}, ("-0.5", "0.5 DN")),
    "added reflectance": ({"tags": {"BOA_ADD_OFFSET": "1000"}}, ("BOA_ADD_OFFSET 1000", "-1000 DN")),
    "not a number": ({"tags": {"BOA_ADD_OFFSET": "nan"}}, ("BOA_ADD_OFFSET nan",)),
    "two entries for three bands": ({"tags": {"raster:bands": json.dumps([{}, {}])}}, ("2 entries for 3",)),
    "no JSON": ({"tags": {"raster:bands": "{scale"}}, ("'{scale'",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_statements_that_cannot_be_believed_are_refused(root: str, case: str) -> None:
    options, values = CONTRADICTIONS[case]
    put(root, f"{S2_NAME}.tif", cog(DN, RGB, **options))
    bad = refused(root, "s2")
    assert bad.reason == "wrong_dtype"
    for value in values:
        assert value in bad.detail


def test_bands_with_different_offsets_are_refused(root: str) -> None:
    for name, offset in (("B04", "-1000"), ("B03", "-1000"), ("B02", "0")):
        put(root, f"{S2_NAME}/{name}.tif", cog(DN[0], tags={"BOA_ADD_OFFSET": offset}))
    bad = refused(root, "s2")
    assert (bad.reason, "'B2': 0" in bad.detail) == ("wrong_dtype", True)


@pytest.mark.parametrize(("share", "fine"), [(0.005, True), (0.02, False)])
def test_an_offset_that_is_not_in_the_dn_is_doubted(root: str, share: float, fine: bool) -> None:
    """DN may fall a little below the offset (noise), not far below it on more than one valid pixel in a hundred."""
    dn = np.zeros_like(DN)
    dn[:, 20:120] = 850  # of 256 rows: the rest has no data
    low = np.zeros(100 * 256, bool)
    low[: round(share * low.size)] = True
    dn[2, 20:120, 22:278][low.reshape(100, 256)] = 700
    tile = s2(root, dn, tags={"BOA_ADD_OFFSET": "-1000"})[0]
    if fine:
        assert sources.read_eo(tile).offset == 1000
        return
    with pytest.raises(BadInput, match=r"wrong_dtype: declared offset 1000 but DN fall to 700 .*already removed\?"):
        sources.read_eo(tile)
