"""Stages 1 and 2 as a whole: the published script re-stated with OpenCV, rules as a filter, the real patches."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca import profile
from sar2eo_dist.cca.profile import assess, decide, explain, measure
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.records import REASONS, Verdict
from sar2eo_dist.sections import CCA, PROFILES

CLEAR, CLOUDY = ("07-01", "07-26", "07-20"), ("06-06", "06-11", "07-11", "07-05", "03-18")


def tile(seed: int = 0, low: int = 1, high: int = 3000, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (3, side, side)).astype(np.uint16)


def released(bands: np.ndarray, qa60: np.ndarray | None) -> str:
    """The published script's decisions, by its own route: OpenCV on (H, W, 3)."""
    if qa60 is not None and qa60.max() > 0:
        return "qa60"
    if any(b.max() == b.min() for b in bands):
        return "constant"
    if any(b.max() >= 4096 for b in bands):
        return "alpha"
    image = np.stack([((b - b.min()) / (b.max() - b.min())) * 255 for b in bands], axis=-1).astype(np.uint8)
    if np.mean(cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[:, :, 2]) < 30:
        return "brightness"
    dark = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) <= 10).sum()
    return "dark" if dark > image.shape[0] * image.shape[1] * 0.3 else ""


def paper(bands: np.ndarray, qa60: np.ndarray | None) -> str:
    if qa60 is not None and (qa60 & 0b110000000000).any():
        return "qa60"
    if any(b.max() == b.min() for b in bands):
        return "constant"
    if (bands >= 4096).any():
        return "alpha"
    image = np.stack([((b - b.min()) / (b.max() - b.min())) * 255 for b in bands]).astype(np.uint8)
    if image.max(axis=0).mean() < 30:
        return "brightness"
    grey = np.tensordot([0.299, 0.587, 0.114], image.astype(float), 1)
    return "dark" if (grey < 10 - 1e-9).mean() > 0.1 else ""


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.2, 12),
    st.sampled_from((None, 0, 0, 1, 1 << 10, 1 << 11)),
    st.sampled_from((40, 3000, 4000, 4094, 4095, 4100)),
    st.tuples(*[st.integers(2, 20)] * 2),
    st.integers(0, 9),
)
def test_decisions_equal_the_restated_methods(seed, power, flag, top, shape, constant):
    rng = np.random.default_rng(seed)
    bands = (1 + rng.random((3, *shape)) ** power * top).astype(np.uint16)
    bands[rng.integers(3)].flat[0] = 1 + top  # alpha's borderline: 4095 and 4096
    if constant < 3:
        bands[constant] = 5
    qa60 = None if flag is None else np.zeros(shape, np.uint16)
    if flag:
        qa60[0, 1] = flag
    assert assess(bands, qa60, CCA(profile="paper")).reason == paper(bands, qa60)
    assert assess(bands, qa60, CCA(profile="released")).reason == released(bands, qa60)
    assert assess(bands, qa60, CCA(profile="none")).reason == ""


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 6)] * 2), st.floats(0, 1))
def test_the_script_knows_no_missing_data(seed, shape, share):
    """Zeros are values to it, also where no pixel has data in all bands; a band of one value is constant, all empty or not."""
    rng = np.random.default_rng(seed)
    bands = (rng.integers(1, 3000, (3, *shape)) * (rng.random((3, *shape)) < share)).astype(np.uint16)
    found, wanted = assess(bands, None, CCA(profile="released")).reason, released(bands, None)
    assert found == wanted or (found, wanted) == ("all_nodata", "constant")


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(-2, 2), st.booleans(), st.integers(0, 255))
def test_dark_shares_at_the_border(tenths, more, script, shine):
    """Exactly 30 % (or 10 %) of n pixels are dark, or one or two more or fewer: the scripts compare counts."""
    n = 10 * tenths
    dark = min(n - 1, max(1, (3 if script else 1) * tenths + more))
    bands = np.full((3, 1, n), 60 + shine, np.uint16)
    bands[:, 0, :dark] = 0
    bands[:, 0, -1] = 255 if shine < 195 else 60 + shine
    if bands.max() - bands.min() and all(b.all() or b.any() for b in bands):
        one = "released" if script else "paper"
        assert assess(bands, None, CCA(profile=one)).reason == globals()[one](bands, None)


def test_mean_v_of_exactly_30_is_bright_enough():
    bands = np.ones((3, 1, 17), np.uint16)
    bands[:, 0, :2] = 256  # two pixels at 255: 510 / 17
    assert measure(bands, None, CCA()).brightness == 30
    assert assess(bands, None, CCA(profile="released")).reason == released(bands, None) == "dark"
    assert assess(bands, None, CCA(profile="paper")).reason == paper(bands, None) == "dark"


def test_everything_is_measured_whatever_rejects_first():
    bands = tile()
    bands[0, 0, 0] = 9000
    qa60 = np.full((32, 32), 1 << 11, np.uint16)
    m = assess(bands, qa60, CCA())
    assert m.reason == "qa60"
    assert "1.0000" in m.detail
    assert (m.valid_fraction, m.qa60_state, m.qa60_fraction, m.qa60_any, m.max_dn) == (1.0, "cloudy", 1.0, 1.0, 9000.0)
    assert m.alpha_fraction == 1 / 1024
    assert m.contrast == min(int(b.max()) - int(b.min()) for b in bands)
    assert m.brightness > 30
    assert 0 <= m.dark_fraction < 1
    unknown = assess(bands, None, CCA())
    assert unknown.qa60_state == "unknown"
    assert math.isnan(unknown.qa60_fraction)
    assert math.isnan(unknown.qa60_any)
    assert unknown.reason == "alpha"
    assert "9000" in unknown.detail


def test_measurements_know_no_profile_and_no_threshold():
    bands, qa60 = tile(3, 0, 6000), tile(4)[0] & (1 << 10)
    seen = {measure(bands, qa60, CCA(profile=p)) for p in PROFILES}
    seen.add(measure(bands, qa60, CCA(qa60_max_fraction=0.5, alpha_max_fraction=0.3, brightness_min=0, light_min=500)))
    assert len(seen) == 1
    assert measure(bands, qa60, CCA(alpha=3000)) not in seen


def test_looser_thresholds_are_obeyed():
    bands = tile()
    bands[0, 0, 0] = 9000
    qa60 = np.zeros((32, 32), np.uint16)
    qa60[0, 0] = 1 << 10
    m = assess(bands, qa60, CCA(qa60_max_fraction=0.01, alpha_max_fraction=0.01, brightness_min=0))
    assert (m.reason, m.qa60_state) == ("", "cloudy")
    assert assess(bands, qa60, CCA(alpha=9001, qa60_max_fraction=0.01)).reason == ""


def test_nothing_there():
    empty = np.zeros((3, 8, 8), np.uint16)
    for name in ("paper", "released", "recommended"):
        assert assess(empty, None, CCA(profile=name)).reason == "all_nodata"
    m = assess(empty, None, CCA(profile="none"))
    assert (m.reason, m.valid_fraction, m.brightness, m.dark_fraction, m.light) == ("", 0.0, 0.0, 1.0, 0.0)
    assert m.white_fraction == 0
    assert math.isnan(m.haze)


def test_the_offset_is_removed_first_and_the_script_knows_of_none():
    bands = tile(5, 1, 3500)
    shifted = bands + np.uint16(1000)
    cca = CCA(profile="recommended")
    plain, harmonised = measure(bands, None, cca), measure(shifted, None, cca, offset=1000)
    assert dataclasses.replace(harmonised, offset=0.0) == plain
    assert harmonised.offset == 1000
    assert assess(shifted, None, CCA(profile="paper"), offset=1000).reason == ""
    script = CCA(profile="released")
    assert assess(shifted, None, script, offset=1000).reason == released(shifted, None) == "alpha"
    with pytest.raises(ConfigError, match="-1000"):
        measure(bands, None, cca, offset=-1000)


def test_recommended_rejects_with_its_own_reasons():
    cca = CCA(profile="recommended")
    forest = tile(6, 180, 260, 64)
    forest[1] += 200
    assert assess(forest, None, cca).reason == ""
    roofs = forest.copy()
    roofs[:, 10:12, 10:12] = 9000  # as published: the stretch makes it night, or alpha
    assert assess(roofs, None, cca).reason == ""
    assert assess(roofs, None, CCA()).reason == "alpha"
    cloudy, edge, night = forest.copy(), forest.copy(), forest // 100 + 1
    cloudy[:, :8, :8] = 3000
    edge[:, :, :10] = 0
    assert [assess(x, None, cca).reason for x in (cloudy, edge, night)] == ["white", "partial", "night"]
    assert assess(forest + np.array([[[0]], [[0]], [[300]]], np.uint16), None, CCA(haze_max=200)).reason == "haze"
    flagged = np.zeros((64, 64), np.uint16)
    flagged[:1, :20] = 1 << 11
    assert assess(forest, flagged, cca).reason == ""
    flagged[:1, :21] = 1 << 11
    assert assess(forest, flagged, cca).reason == "qa60"


def archive(n: int, seed: int = 0) -> dict[str, Any]:
    """Columns that meet every rule, some of them NaN."""
    rng = np.random.default_rng(seed)
    share = np.where(rng.random((6, n)) < 0.9, 0, rng.random((6, n)))
    bright = rng.random((2, n)) * 255
    columns = dict(zip(("qa60_fraction", "qa60_any", "alpha_fraction", "dark_fraction", "dark_released",
                        "white_fraction"), share, strict=True))  # fmt: skip
    columns["qa60_fraction"][rng.random(n) < 0.3] = np.nan
    columns |= {
        "valid_fraction": np.where(rng.random(n) < 0.05, 0, 1 - rng.random(n) ** 20),
        "qa60_state": np.full(n, "clear"), "max_dn": rng.integers(0, 4500, n).astype(float),
        "contrast": rng.integers(0, 30, n).astype(float), "brightness": bright[0], "brightness_released": bright[1],
        "light": rng.random(n) * 1000, "haze": rng.normal(50, 60, n), "offset": rng.choice([0.0, 1000.0], n),
    }  # fmt: skip
    return columns


@pytest.mark.parametrize("name", ["paper", "released", "recommended", "none"])
def test_one_tile_and_an_archive_are_decided_alike(name):
    columns, cca = archive(400), CCA(profile=name, haze_max=150)
    reasons = decide(columns, cca)
    rows = [{k: c[i] for k, c in columns.items()} for i in range(400)]
    one_by_one = [next((r for r, failed in profile._rules(row, cca) if failed), "") for row in rows]
    assert reasons.tolist() == one_by_one
    assert set(reasons) <= set(REASONS) | {""}
    assert len(set(reasons)) > (0 if name == "none" else 4)
    for row, reason in zip(rows, reasons, strict=True):
        assert bool(explain(str(reason), row)) == bool(reason)


def test_reasons_come_in_the_order_of_the_records():
    got = [r for r, _ in profile._rules(archive(3), CCA())]
    assert got == [r for r in REASONS if r in got]
    assert len(got) == 10


def test_details_state_what_was_measured_and_no_threshold():
    row = {k: c[7] for k, c in archive(10).items()}
    for reason, _ in profile._rules(row, CCA()):
        text = explain(reason, row)
        numbers = [float(x) for x in re.findall(r"(?<![\w.])-?\d+\.?\d*", text)]
        assert all(
            any(x == pytest.approx(v, abs=0.51) for v in row.values() if not isinstance(v, str)) for x in numbers
        )
    assert explain("frechet", row) == explain("", row) == ""


def test_a_million_rows_are_decided_at_once():
    columns = {k: np.tile(c, 50) for k, c in archive(20_000).items()}
    begin = time.process_time()
    decide(columns, CCA(profile="recommended"))
    assert time.process_time() - begin < 1  # 0.1 s; a loop over rows takes many


def test_fields_are_those_of_a_verdict():
    verdict = {f.name for f in dataclasses.fields(Verdict)}
    assert set(profile.NAMES) <= verdict
    assert {f.name for f in dataclasses.fields(profile.Assessment)} == {*profile.NAMES, "reason", "detail"}


@pytest.mark.parametrize(
    ("bands", "qa60", "text"),
    [
        (np.zeros((4, 8, 8), np.uint16), None, r"\(4, 8, 8\)"),
        (np.zeros((3, 0, 8), np.uint16), None, r"\(3, 0, 8\)"),
        (np.zeros((3, 8, 8), np.int16), None, "int16"),
        (np.zeros((3, 8, 8), np.uint16), np.zeros((8, 9), np.uint16), r"\(8, 9\)"),
    ],
)
def test_wrong_arrays_are_named(bands, qa60, text):
    with pytest.raises(BadInput, match=text):
        assess(bands, qa60, CCA())


def test_an_unknown_profile_is_named():
    with pytest.raises(ConfigError, match="'best'"):
        decide(archive(1), CCA().model_copy(update={"profile": "best"}))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_eight_real_patches(samples):
    """Contains modified Copernicus Sentinel data. The published stages keep two of the eight, one of them cloudy;
    `recommended` keeps the three clear ones, with a wide margin on both sides."""
    folder = samples / "tier_a/multiearth2023/sent2"
    got, ours = {}, {}
    for b4 in sorted(folder.glob("Sentinel2_B4_*.tiff")):
        planes = {}
        for name in ("B4", "B3", "B2", "QA60"):
            with rasterio.open(str(b4).replace("_B4_", f"_{name}_")) as f:
                planes[name] = f.read(1)
        bands = np.stack([planes[b] for b in ("B4", "B3", "B2")])
        key = b4.stem.removeprefix("Sentinel2_B4_")
        got[key] = m = assess(bands, planes["QA60"], CCA(profile="paper"))
        assert m.qa60_state == "clear"  # QA60 is 0 everywhere, cloudy or not
        assert assess(bands, planes["QA60"], CCA(profile="released")).reason == released(bands, planes["QA60"])
        assert m.reason == paper(bands, planes["QA60"])
        ours[key[-5:].replace("_", "-")] = assess(bands, planes["QA60"], CCA(profile="recommended"))
    assert len(got) == 8
    kept = {k for k, m in got.items() if not m.reason}
    assert kept == {"-55.20_-4.39_2020_07_20", "-55.20_-4.39_2019_07_11"}
    assert got["-55.20_-4.39_2019_07_11"].max_dn == 2890
    dim = {k: round(m.brightness, 1) for k, m in got.items() if m.reason == "brightness"}
    assert {"-55.20_-4.39_2019_07_01", "-55.20_-4.39_2019_07_26"} <= set(dim)
    assert sorted(dim[k] for k in ("-55.20_-4.39_2019_07_01", "-55.20_-4.39_2019_07_26")) == [28.8, 29.4]

    assert {k: m.reason for k, m in ours.items()} == dict.fromkeys(CLEAR, "") | dict.fromkeys(CLOUDY, "white")
    allowed = CCA(profile="recommended").white_max_fraction
    assert max(ours[k].white_fraction for k in CLEAR) < allowed / 20
    assert min(ours[k].white_fraction for k in CLOUDY) > 3 * allowed
    assert min(m.light for m in ours.values()) > 3 * CCA(profile="recommended").light_min
    assert max(ours[k].haze for k in CLEAR) < min(ours[k].haze for k in CLOUDY)


def test_released_knows_no_offset_even_beside_no_data() -> None:
    raw = np.random.default_rng().integers(1200, 1900, (3, 40, 40)).astype(np.uint16)
    raw[:, :4] = 0
    plain, told = (assess(raw, None, CCA(profile="released"), offset) for offset in (0, 1000))
    assert plain.reason == told.reason
    assert (plain.brightness_released, plain.dark_released) == (told.brightness_released, told.dark_released)
    assert plain.brightness != told.brightness, "paper sees reflectance"
