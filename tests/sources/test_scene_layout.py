"""Which files are a scene, and what product names say."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_files import DN, RGB, S1_NAME, cog, put, refused

from sar2eo_dist import storage
from sar2eo_dist.sources.scene_layout import Files, acquisitions, product


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


def grouped(names: list[str], sensor: str) -> list[dict[str, str] | str]:
    """What a listing of these names becomes: {band: name} of each scene, or the reason of a rejection."""
    found = acquisitions((storage.Info(f"m/{n}", 1, "") for n in sorted(names)), sensor)
    return [{b: u[2:] for b, u in f.files} if isinstance(f, Files) else f.reason for f in found]


A, B = "S2A_21MXT_20190606_0_L2A", "S2B_21MXT_20190611_0_L2A"

LAYOUTS: dict[str, tuple[str, list[str], list[dict[str, str] | str]]] = {
    "one file a scene": ("s2", ["a.tif", "b/c.TIFF"], [{"": "a.tif"}, {"": "b/c.TIFF"}]),
    "Earth Search": (
        "s2",
        [f"{A}/{n}.tif" for n in ("red", "green", "blue", "nir", "scl", "visual", "rededge1", "coastal")],
        [{"B4": f"{A}/red.tif", "B3": f"{A}/green.tif", "B2": f"{A}/blue.tif", "SCL": f"{A}/scl.tif"}],
    ),
    "two scenes in one folder": (
        "s2",
        [f"{p}_{b}.tif" for p in (A, B) for b in ("B02", "B03", "B04", "B8A", "QA60")],
        [{"B4": f"{p}_B04.tif", "B3": f"{p}_B03.tif", "B2": f"{p}_B02.tif", "QA60": f"{p}_QA60.tif"} for p in (A, B)],
    ),
    "a prefix of another's name": (
        "s2",
        [f"{p}_{b}.tif" for p in ("x", "x_S") for b in ("B2", "B3", "B4", "SCL")],
        [{b: f"{p}_{b}.tif" for b in (*RGB, "SCL")} for p in ("x_S", "x")],
    ),
    "SAFE, converted": (
        "s2",
        [f"I/R{r}m/T21MXT_20190606T140059_{b}_{r}m.tif" for r in (10, 20, 60) for b in ("B02", "B03", "B04", "SCL", "AOT")],
        [{b: f"I/R10m/T21MXT_20190606T140059_{n}_10m.tif" for b, n in (("B4", "B04"), ("B3", "B03"), ("B2", "B02"))}
         | {"SCL": "I/R10m/T21MXT_20190606T140059_SCL_10m.tif"}, "duplicate"],
    ),
    "SCL at 20 m in its own folder": (
        "s2",
        [f"I/R10m/T_{b}_10m.tif" for b in ("B02", "B03", "B04")] + ["I/R20m/T_SCL_20m.tif", "I/R60m/T_SCL_60m.tif"],
        [{"B4": "I/R10m/T_B04_10m.tif", "B3": "I/R10m/T_B03_10m.tif", "B2": "I/R10m/T_B02_10m.tif",
          "SCL": "I/R20m/T_SCL_20m.tif"}],
    ),
    "SCL before QA60": (
        "s2",
        ["B02.tif", "B03.tif", "B04.tif", "QA60.tif", "SCL.tif"],
        [{"B4": "B04.tif", "B3": "B03.tif", "B2": "B02.tif", "SCL": "SCL.tif"}],
    ),
    "jp2": ("s2", ["a/B04.jp2", "a/B08.jp2", "T_TCI.jp2"], ["bad_name"]),
    "jp2 and S1": ("s1", ["a/B04.jp2", "x.jp2"], []),
    "no B3": ("s2", ["a/B02.tif", "a/B04.tif", "a/SCL.tif"], ["missing_band"]),
    "twice": ("s2", ["a/B02.tif", "a/B03.tif", "a/B04.tif", "a/red.tif"],
              ["duplicate", {"B4": "a/B04.tif", "B3": "a/B03.tif", "B2": "a/B02.tif"}]),
    "S1": ("s1", [f"{S1_NAME}_VV.tif", f"{S1_NAME}_VH.tif", f"{A}/B04.tif", "a.json", "a.tif.aux.xml"],
           [{"VV": f"{S1_NAME}_VV.tif", "VH": f"{S1_NAME}_VH.tif"}]),
    "S1 in small": ("s1", ["x/vv.tif", "x/vh.tif"], [{"VV": "x/vv.tif", "VH": "x/vh.tif"}]),
    "S1 of the Planetary Computer": ("s1", ["x/iw-vv.rtc.tiff", "x/iw-vh.rtc.tiff"],
                                     [{"VV": "x/iw-vv.rtc.tiff", "VH": "x/iw-vh.rtc.tiff"}]),
    "S1 without VH": ("s1", ["x/vv.tif"], ["missing_band"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_files_become_scenes(case: str) -> None:
    sensor, names, expected = LAYOUTS[case]
    assert sorted(grouped(names, sensor), key=str) == sorted(expected, key=str)


@settings(max_examples=60)
@given(
    st.sets(
        st.tuples(
            st.sampled_from(["", "x_", "x_S", "x_S2_", "d/", "d/e/", "d/x-"]), st.sampled_from([*RGB, "SCL", "VV"])
        )
    )
)
def test_no_file_is_lost_and_scenes_are_those_of_one_prefix(files: set[tuple[str, str]]) -> None:
    found = grouped([f"{prefix}{band}.tif" for prefix, band in files if prefix != "x_S"], "s2")
    wanted = [
        {b for p, b in files if p == prefix and b != "VV"} for prefix in ("", "x_", "x_S2_", "d/", "d/e/", "d/x-")
    ]
    assert sorted(len(f) for f in found if isinstance(f, dict)) == sorted(len(w) for w in wanted if set(RGB) <= w)
    assert sum(f == "missing_band" for f in found) == sum(bool(w) and not set(RGB) <= w for w in wanted)


@pytest.mark.parametrize(
    ("uri", "sensor", "platform", "date"),
    [
        ("S2A_MSIL2A_20190606T140059_N0212_R067_T21MXT_20190607T000000.tif", "s2", "S2A", "2019-06-06"),
        ("b/S2B_21MXT_20190606_0_L2A/B04.tif", "s2", "S2B", "2019-06-06"),
        ("S2C_T21MXT_20250606T140059_L2A/red.tif", "s2", "S2C", "2025-06-06"),
        ("S2B_MSIL2A_20170924T93020_69_24_B04.tif", "s2", "S2B", "2017-09-24"),
        ("S1A_IW_GRDH_1SDV_20190527T091543_20190527T091608_027414_0317B5.tif", "s1", "S1A", "2019-05-27"),
        ("S1B_IW_20190608T091543_DVP_RTC10_G_gpuned_3F1B/x_VV.tif", "s1", "S1B", "2019-06-08"),
        ("s1a-iw-grd-vv-20190527t091543-20190527t091608-027414-0317b5-001.tiff", "s1", "S1A", "2019-05-27"),
        ("S2A_X.SAFE/GRANULE/S2A_MSIL2A_20190606T140059/T21MXT_20190601T140059_B04.tif", "s2", "S2A", "2019-06-06"),
        ("20201002T221611_20201002T221610_T60HWB.tif", "s2", "unknown", "2020-10-02"),
        ("T21MXT_20190606T140059_B04_10m.tif", "s2", "unknown", "2019-06-06"),
        ("x_20190606T140059.tif", "", "unknown", "2019-06-06"),
        ("scene_20190606.tif", "", "unknown", None),
        ("Spain_7370579_S2Hand.tif", "", "unknown", None),
        ("S2A_OPER_PRD_MSIL1C_PDMC_20160101T000000_R067_V20151231T140059.tif", "", "unknown", None),
    ],
)
def test_product_names(uri: str, sensor: str, platform: str, date: str | None) -> None:
    said = product(f"s3://bucket/{uri}")
    assert (said.sensor, said.platform, said.date(uri)) == (
        sensor,
        platform,
        dt.date.fromisoformat(date) if date else None,
    )


@pytest.mark.parametrize("day", ["20191345", "20140101", "29990101"])
def test_impossible_days_of_names_are_rejected(root: str, day: str) -> None:
    uri = put(root, f"S2A_MSIL2A_{day}T140059.tif", cog(DN, RGB))
    bad = refused(root, "s2")
    assert (bad.reason, bad.uri) == ("bad_date", uri)
    assert day in bad.detail
