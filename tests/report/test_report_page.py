"""The page of a full run: every section, every number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake_run
import numpy as np
import pytest
import yaml
from dom import Node, safe

from sar2eo_dist import storage
from sar2eo_dist.report import images
from sar2eo_dist.report import page as report


def test_run_summary(page: Node) -> None:
    assert "partial" in page.one("h1").text
    rows = {r.attrs["data-stage"]: r for r in page.one("section", id="run").all("tr") if "data-stage" in r.attrs}
    assert list(rows) == ["synthesise", "collect", "shard", "train", "translate", "evaluate"]
    assert "4 of 4, 4 found done" in rows["collect"].text
    assert "100 S2 tiles" in rows["collect"].text
    assert "none" not in rows["collect"].text  # a count of 0 says nothing
    for words in ("1 min 15 s", "3.2 s", "2.0 MB", "1.5 MB"):
        assert words in rows["collect"].text
    assert "1 h 02 min" in rows["train"].text
    assert "1.0 MB" in rows["train"].text
    assert "partial" in rows["translate"].text
    shares = [float(i.attrs["style"].split(":")[1]) for i in page.one("div", class_="time").all("i")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert shares[3] == pytest.approx(3725 / (48 + 75.4 + 21 + 3725 + 130 + 40), abs=1e-3)
    assert "2026-11-22 08:00 UTC to 2026-11-22 13:05 UTC" in page.one("header").text
    assert "cpus 2, system Linux, python 3.11.7" in page.one("header").text


def test_synthetic_is_called_synthetic(page: Node) -> None:
    assert "synthetic world (seed 7), not from a satellite" in page.one(id="synthetic").text
    assert "Copernicus" not in page.one("footer").text


def test_counts_by_reason(page: Node) -> None:
    optical = page.one("div", data_sensor="s2")
    counts = {n.attrs["data-reason"]: int(n.text) for n in optical.all("dd") if "data-reason" in n.attrs}
    assert counts == fake_run.ENDS | {"bad_date": fake_run.UNUSABLE}
    assert list(counts)[:3] == ["", "bad_date", "unreadable"]  # the order in which tiles meet them
    assert "46 of 109 kept" in optical.text
    assert "too close to the cloud set" in optical.text
    radar = page.one("div", data_sensor="s1")
    assert "39 of 40 kept" in radar.text
    assert "of 109 optical tiles kept (42 %)" in page.one("header").text


def test_thumbnails_by_reason(page: Node) -> None:
    groups = {g.attrs["data-group"]: g for g in page.all("div", class_="group")}
    assert set(groups) == set(fake_run.ENDS)
    for reason, group in groups.items():
        shown = group.all("figure")
        assert len(shown) == min(6, fake_run.ENDS[reason])
        pictures = group.all("img")
        assert len(pictures) == (0 if reason in {"unreadable", "all_nodata"} else len(shown))
        assert all(p.attrs["src"].startswith("data:image/jpeg;base64,") for p in pictures)
        assert all(p.attrs["alt"] for p in pictures)
    assert "does not decode as TIFF (torn)" in groups["unreadable"].text
    assert "every DN of B4, B3, B2 is 0" in groups["all_nodata"].text
    assert "limit DN 4,096" in groups["alpha"].text
    assert "threshold 60.0" in groups["frechet"].text
    keys = [f.attrs["title"] for f in groups[""].all("figure")]
    assert keys == sorted(keys)


def test_thumbnails_are_the_tiles_in_a_fixed_stretch() -> None:
    dn = np.zeros((3, 2, 2), np.uint16)
    dn[:, 0, 0], dn[:, 0, 1], dn[:, 1, 0] = (3000, 1500, 0), (9000, 3001, 300), (1, 5, 6)
    rgb = images.stretch(dn)
    assert rgb.shape == (2, 2, 3)
    bright = [[round(255 * (v / 255) ** (1 / 1.8)) for v in pixel] for pixel in ([255, 128, 0], [255, 255, 26])]
    assert rgb[0].tolist() == bright  # B4, B3, B2 are red, green, blue; gamma 1.8
    assert rgb[1].tolist() == [[0, 0, 12], [0, 0, 0]]


def test_scores(page: Node) -> None:
    scores = page.one("section", id="scores")
    words = scores.all("p")[0].text
    assert words == "fd_efficientnet_lite0 of 60 tiles that passed the cheap stages: 46 kept, 14 dropped."
    assert float(scores.one(id="threshold").text) == fake_run.THRESHOLD
    assert "rule range, beta 0.4, from scores of 30.00 to 123.4" in scores.text
    assert len(scores.all("svg")) == 1


def test_pairs(page: Node) -> None:
    pairs = page.one("section", id="pairs")
    assert "46 SAR-EO pairs" in pairs.text
    legend = {n.attrs["data-split"]: n.text for n in pairs.all("span") if "data-split" in n.attrs}
    assert legend == {s: f"{s} {n}" for s, n in fake_run.PAIRS.items()}
    same = sum(p.days == 0 for p in fake_run.pairs())
    assert f"{same} of the same day" in pairs.text


def test_yield_against_tolerance(page: Node) -> None:
    part = page.one(id="yield")
    within = {r["days"]: r for r in fake_run.yields()}
    assert part.one("figcaption").text.replace("\xa0", " ") == (
        "Within 30 days (pairing.max_days), 46 of 46 kept optical images (100 %) have radar of their place; "
        "15 days would reach 46; 60 days would reach 46."
    )
    assert "within 30 days" in part.one("svg").text.replace("\xa0", " ")
    rows = {int(r.attrs["data-days"]): [c.text for c in r.all("td")] for r in part.all("tr") if "data-days" in r.attrs}
    assert list(rows) == [0, 1, 3, 7, 14, 30, 60]
    for d, (days, reached, _, pairs) in rows.items():
        assert (int(days), int(reached), int(pairs)) == (d, within[d]["eo_images"], within[d]["combinations"])
    assert rows[7][2].replace("\xa0", " ") == f"{100 * within[7]['eo_images'] / 46:.0f} %"


@pytest.mark.parametrize(
    ("pairing", "reading"),
    [
        ({"max_days": 3}, "Within 3 days (pairing.max_days), 17 optical images have radar of their place; "
                          "1 day would reach 8; 6 days would reach 29."),
        ({"max_days": 30, "mode": "released"}, "Within 6 days (pairing.mode=released), 29 optical images have radar "
                                               "of their place; 3 days would reach 17; 12 days would reach 46."),
        ({"max_days": 0}, "Within 0 days (pairing.max_days), 4 optical images have radar of their place."),
        ({"max_days": 400}, "Within 60 days, 46 optical images have radar of their place."),
        ({"max_days": "many"}, "Within 60 days, 46 optical images have radar of their place."),
    ],
)  # fmt: skip
def test_the_yield_is_read_at_the_limit_of_the_run(
    some: Callable[..., Path], pairing: dict[str, object], reading: str
) -> None:
    folder = some("collect/yield.parquet")  # without verdicts nobody knows how many were kept
    (folder / "config.yaml").write_text(yaml.safe_dump({"pairing": pairing}))
    part = safe(report.build(str(folder))).one(id="yield")
    assert part.one("figcaption").text.replace("\xa0", " ") == reading
    assert "Share" not in part.text


def test_loss_curves(page: Node) -> None:
    training = page.one("section", id="training")
    names = {
        role: [f.one("b").text for f in training.one("div", data_role=role).all("figcaption")]
        for role in ("translate", "enhance")
    }
    assert names == {"translate": ["D", "G_fm", "G_gan", "G_vgg"], "enhance": ["l1"]}
    assert len(training.all("svg")) == 5
    assert "4,000 steps in 13 min 20 s, 5.00 samples/s" in training.text
    assert "Translation: pix2pixhd" in training.text


def test_mosaic_and_patches(page: Node) -> None:
    mosaic = page.one("section", id="mosaic")
    looks = mosaic.one("div", class_="looks")
    assert [f.one("b").text for f in looks.all("figcaption")] == [
        "SAR",
        "Translated",
        "Truth",
        "Typical error",
        "Valid",
    ]
    kinds = [i.attrs["src"].split(";")[0].removeprefix("data:image/") for i in looks.all("img")]
    assert kinds == ["webp", "webp", "jpeg", "webp", "jpeg"]  # no data stays transparent
    assert "0 to 500 DN and more" in looks.text
    assert not looks.all(data_apart="")
    facts = {d.one("dt").text: d.one("dd").text for d in mosaic.one("dl").all("div")}
    assert facts["Size"] == "512 \N{MULTIPLICATION SIGN} 512 pixels"
    assert facts["CRS"] == "EPSG:32721"
    assert facts["Pixel"] == "10.0 m"
    assert facts["Ground"] == "5.12 \N{MULTIPLICATION SIGN} 5.12 km"
    assert facts["Upper left"] == "600,000 E, 9,520,000 N"
    west = float(facts["Longitude"].split(" to ")[0])
    north = float(facts["Latitude"].split(" to ")[1])
    # UTM 21 S: 100 km east of the central meridian 57 W; 480 km south of the equator on the 10,000,000 m grid
    assert west == pytest.approx(-57 + 100 / 111.2, abs=0.02)
    assert north == pytest.approx(-480 / 110.6, abs=0.02)
    assert facts["Valid"] == "249,037 of 262,144 pixels (95.0 %)"
    assert "3 images" in mosaic.text
    assert "1 target has none" in mosaic.text
    assert len(mosaic.one("div", class_="thumbs").all("img")) == 3


def test_samples_side_by_side(page: Node) -> None:
    samples = page.one("section", id="samples").all("div", class_="sample")
    assert [s.one("div", class_="where").one("b").text for s in samples] == [
        "EO 5 days before SAR", "Same day", "EO 6 days after SAR", "EO 5 days after SAR", "EO 3 days before SAR",
    ]  # fmt: skip
    assert [s.attrs["data-why"] for s in samples] == [*3 * ["spread"], "worst", "best"]
    assert [h.text.split(",")[0].split(" ")[0] for h in page.one("section", id="samples").all("h3")] == [
        "Evenly", "Worst", "Best",
    ]  # fmt: skip
    for sample in samples:
        names = ["SAR", "Translated", "Enhanced", "True", "Nearest clear date"]
        assert [f.one("b").text for f in sample.all("figcaption")] == names
        assert len(sample.all("img")) == 5
    best = [s.one("span", class_="best").text for s in samples]  # of the networks: the other date competes with none
    assert best == ["MAE 0.0400", "MAE 0.0500", "MAE 0.0500", "MAE 0.0500", "MAE 0.0500"]


def test_quarantined_units_and_config(page: Node) -> None:
    assert "scene/r00001c00001 ModelError: not finite at window 3" in page.one("section", id="quarantined").text
    assert "extractor: efficientnet_lite0" in page.one("section", id="config").one("pre").text


def test_same_folder_same_bytes_published(run: Path, full: bytes) -> None:
    artifact = report.write(str(run))
    written = (run / "report.html").read_bytes()
    assert (artifact.path, artifact.size, artifact.sha256) == ("report.html", len(written), storage.sha256(written))
    assert written == full
