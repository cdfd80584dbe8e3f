"""Stages 1 and 2 as a whole: the published script re-stated with OpenCV, the order of reasons, the real patches."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca import profile
from sar2eo_dist.cca.profile import assess
from sar2eo_dist.errors import BadInput
from sar2eo_dist.records import Verdict
from sar2eo_dist.sections import CCA


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


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.2, 12),
    st.sampled_from((None, 0, 0, 1, 1 << 10, 1 << 11)),
    st.sampled_from((3000, 4000, 4100)),
)
def test_decisions_equal_the_restated_methods(seed, power, flag, top):
    rng = np.random.default_rng(seed)
    bands = (1 + rng.random((3, 16, 16)) ** power * top).astype(np.uint16)
    if seed % 11 == 0:
        bands[seed % 3] = 5
    qa60 = None if flag is None else np.zeros((16, 16), np.uint16)
    if flag:
        qa60[3, 4] = flag
    assert assess(bands, qa60, CCA(profile="released")).reason == released(bands, qa60)
    assert assess(bands, qa60, CCA(profile="paper")).reason == paper(bands, qa60)
    assert assess(bands, qa60, CCA(profile="none")).reason == ""


def test_everything_is_measured_whatever_rejects_first():
    bands = tile()
    bands[0, 0, 0] = 9000
    qa60 = np.full((32, 32), 1 << 11, np.uint16)
    m = assess(bands, qa60, CCA())
    assert m.reason == "qa60"
    assert "1.0000 > 0" in m.detail
    assert (m.valid_fraction, m.qa60_state, m.qa60_fraction, m.max_dn) == (1.0, "cloudy", 1.0, 9000.0)
    assert m.alpha_fraction == 1 / 1024
    assert m.brightness > 30
    assert 0 <= m.dark_fraction < 1
    unknown = assess(bands, None, CCA())
    assert unknown.qa60_state == "unknown"
    assert math.isnan(unknown.qa60_fraction)
    assert unknown.reason == "alpha"
    assert "9000" in unknown.detail


def test_looser_thresholds_are_obeyed():
    bands = tile()
    bands[0, 0, 0] = 9000
    qa60 = np.zeros((32, 32), np.uint16)
    qa60[0, 0] = 1 << 10
    cfg = CCA(qa60_max_fraction=0.01, alpha_max_fraction=0.01, brightness_min=0)
    m = assess(bands, qa60, cfg)
    assert (m.reason, m.qa60_state) == ("", "clear")
    assert assess(bands, qa60, CCA(alpha=9001, qa60_max_fraction=0.01)).reason == ""


def test_nothing_there():
    empty = np.zeros((3, 8, 8), np.uint16)
    assert assess(empty, None, CCA()).reason == "all_nodata"
    m = assess(empty, None, CCA(profile="none"))
    assert (m.reason, m.valid_fraction, m.brightness, m.dark_fraction) == ("", 0.0, 0.0, 1.0)


def test_fields_are_those_of_a_verdict():
    verdict = {f.name for f in dataclasses.fields(Verdict)}
    assert {f.name for f in dataclasses.fields(profile.Measurements)} <= verdict


@pytest.mark.parametrize(
    ("bands", "qa60", "text"),
    [
        (np.zeros((4, 8, 8), np.uint16), None, r"\(4, 8, 8\)"),
        (np.zeros((3, 8, 8), np.int16), None, "int16"),
        (np.zeros((3, 8, 8), np.uint16), np.zeros((8, 9), np.uint16), r"\(8, 9\)"),
    ],
)
def test_wrong_arrays_are_named(bands, qa60, text):
    with pytest.raises(BadInput, match=text):
        assess(bands, qa60, CCA())


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_eight_real_patches(samples):
    """Contains modified Copernicus Sentinel data. The published stages keep two of the eight, one of them cloudy."""
    folder = samples / "tier_a/multiearth2023/sent2"
    got = {}
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
    assert len(got) == 8
    kept = {k for k, m in got.items() if not m.reason}
    assert kept == {"-55.20_-4.39_2020_07_20", "-55.20_-4.39_2019_07_11"}
    assert got["-55.20_-4.39_2019_07_11"].max_dn == 2890
    dim = {k: round(m.brightness, 1) for k, m in got.items() if m.reason == "brightness"}
    assert {"-55.20_-4.39_2019_07_01", "-55.20_-4.39_2019_07_26"} <= set(dim)
    assert sorted(dim[k] for k in ("-55.20_-4.39_2019_07_01", "-55.20_-4.39_2019_07_26")) == [28.8, 29.4]
