"""A submission scored against an archive's clear images: which truths count, what is refused, and what is told."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive import put_verdicts, verdict

from sar2eo_dist import sources, storage
from sar2eo_dist.config import load
from sar2eo_dist.errors import BadInput, ConfigError, NotFound, Sar2EoError, SourceChanged
from sar2eo_dist.evaluation.submission import encode, write_zip
from sar2eo_dist.pipeline import submission as module
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.pipeline.submission import submission
from sar2eo_dist.records import S2, place_key
from sar2eo_dist.sources.folder_pair import encode_tiff
from sar2eo_dist.sources.multiearth import stem
from sar2eo_dist.sources.synthetic_netcdf import write_targets

DAY = dt.date(2020, 6, 15)
#: place -> days of its S2 images after DAY; those in DULL are not kept
PLACES = {0: (-3, 0, 7, 9), 1: (-8, 8, 30), 2: (7,), 3: (-20, 2), 4: (-7, -9, 1)}
DULL = {(4, 1), (3, -20)}
ASKED = {0: [-3, 0, 7], 2: [7], 3: [2], 4: [-7]}  # what the truths are to be
OTHER = {0: 9, 4: -9}  # and the clear image nearest to the date but outside


def lon(place: int) -> float:
    return round(-55 + place / 50, 2)


def name(place: int) -> str:
    return f"Sentinel2_{lon(place):.2f}_-4.00_2020_06_15"


def picture(place: int, days: int) -> np.ndarray:
    rng = np.random.default_rng([place, days + 100])
    dn = rng.integers(100, 3000, (3, 256, 256)).astype(np.uint16)
    if (place, days) == (3, 2):
        dn[:, :100] = 0  # no data
    return dn


def n(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    x = image[:, valid].astype(np.float64)
    low, high = x.min(1)[:, None], x.max(1)[:, None]
    return (x - low) / np.where(high > low, high - low, 1)


def expected(made: Callable[[int], list[np.ndarray]], p: int, reduce: Any, places: Any = ASKED) -> float:
    scores = []
    for place in places:
        truths = [picture(place, d) for d in ASKED[place]]
        each = []
        for x in made(place):
            masks = [(t > 0).all(0) for t in truths]
            each.append(min(np.mean(np.abs(n(x, m) - n(t, m)) ** p) for t, m in zip(truths, masks, strict=True)))
        scores.append(reduce(each))
    return float(np.mean(scores))


class World(NamedTuple):
    base: Path
    images: dict[str, np.ndarray]

    def run(self, zipped: str = "", **options: Any) -> str:
        overrides = [f"run.out={self.base / 'run'}", f"data.target={self.base / 'target.nc'}"]
        more = options.pop("config", [])
        return submission(load(overrides=[*overrides, *more]), Options(submission=zipped or self.zip(), **options))

    def zip(self, change: Callable[[dict[str, bytes]], object] = lambda _: None) -> str:
        entries = {k: encode(v) for k, v in self.images.items()}
        change(entries)
        write_zip(str(self.base / "some.zip"), sorted(entries.items()))
        return str(self.base / "some.zip")

    def json(self) -> Any:
        return json.loads((self.base / "run/evaluate/challenge.json").read_bytes())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("submission")
    for place, dates in PLACES.items():
        for days in dates:
            for band, pixels in zip(("B4", "B3", "B2"), picture(place, days), strict=True):
                file = stem("Sentinel-2", lon(place), -4.0, DAY + dt.timedelta(days), band)
                storage.put(str(base / "sent2" / f"{file}.tiff"), encode_tiff(pixels[None], (band,), 0))
    write_targets(str(base / "target.nc"), [(lon(p), -4.0) for p in PLACES], [DAY])
    refs, _ = sources.list_tiles("multiearth_tiff", str(base / "sent2"), S2)
    dull = {(lon(p), DAY + dt.timedelta(d)) for p, d in DULL}
    found = [verdict(r) for r in refs]
    shown = [v if (v.lon, v.date) not in dull else type(v)(**{k: getattr(v, k) for k in v.__slots__} | {"reason": "haze"})
             for v in found]  # fmt: skip
    put_verdicts(str(base / "run"), shown)
    folds = pa.table({"place": [place_key(lon(p), -4.0) for p in (2, 1, 3)], "split": ["train", "train", "val"]})
    pq.write_table(folds, base / "run/collect/pairs.parquet")
    outputs = {"verdicts": "collect/verdicts.parquet", "pairs": "collect/pairs.parquet"}
    summary = {"status": "complete", "outputs": outputs}
    storage.put(str(base / "run/collect/summary.json"), json.dumps(summary).encode())
    rng = np.random.default_rng(1)
    names = [f"{name(p)}{end}" for p in PLACES for end in ("", "_2")]
    return World(base, {k: rng.integers(0, 255, (3, 256, 256)).astype(np.uint8) for k in names})


@pytest.fixture
def world(built: World) -> World:
    (built.base / "run/evaluate/challenge.json").unlink(missing_ok=True)
    return built


def test_figures_are_those_of_the_definition(world: World) -> None:
    text, found = world.run(), world.json()

    def own(place: int) -> list[np.ndarray]:
        return [world.images[name(place)], world.images[f"{name(place)}_2"]]

    made = {
        "submission": (own, ASKED),
        "black": (lambda _: [np.zeros((3, 256, 256))] * 2, ASKED),
        "nearest_date": (lambda p: [picture(p, OTHER[p])] * 2, OTHER),
    }
    for method, (images, places) in made.items():
        scores = found["scores"][method]
        assert scores["multiearth_mse_sum"] == pytest.approx(expected(images, 2, np.sum, places), rel=1e-12)
        assert scores["mae_min"] == pytest.approx(expected(images, 1, np.mean, places), rel=1e-12)
        assert scores["queries"] == len(places)
        assert f"{scores['multiearth_mse_sum']:.6f}" in text
        assert f"{scores['mae_min']:.6f}" in text
    beside = found["beside_nearest_date"]
    assert beside["multiearth_mse_sum"] == pytest.approx(expected(own, 2, np.sum, OTHER), rel=1e-12)
    assert f"submission, same queries            {beside['multiearth_mse_sum']:.6f}" in text
    new = found["elsewhere"]
    assert (found["at_training_places"], new["queries"]) == (1, 3)  # of the two, one has truths
    elsewhere = [p for p in ASKED if p != 2]
    assert new["multiearth_mse_sum"] == pytest.approx(expected(own, 2, np.sum, elsewhere), rel=1e-12)
    assert f"submission, new places              {new['multiearth_mse_sum']:.6f}" in text
    counts = {k: found[k] for k in ("targets", "queries", "images", "truths", "images_per_target", "truth_days")}
    assert counts == {"targets": 5, "queries": 4, "images": 8, "truths": 6, "images_per_target": 2, "truth_days": 7}
    assert found["without_truth"] == [name(1)]
    assert found["without_nearest_date"] == sorted([name(2), name(3)])
    assert {e["target"]: e["truths"] for e in found["each"]} == {name(p): len(d) for p, d in ASKED.items()}
    assert f"1 targets without truth are in no figure: {name(1)}" in text
    assert "4 queries, 8 images, 6 truths" in text
    assert "2 queries have no other clear date" in text


def test_perfect_images_score_0_and_the_same_zip_gives_the_same_bytes(world: World) -> None:
    black = encode(np.zeros((3, 256, 256), np.uint8))

    def perfect(entries: dict[str, bytes]) -> None:
        for place in PLACES:
            truth = encode_tiff(picture(place, ASKED[place][-1]), ("B4", "B3", "B2"), 0) if place in ASKED else black
            entries[name(place)] = entries[f"{name(place)}_2"] = truth

    zipped = world.zip(perfect)
    text = world.run(zipped)
    found, data = world.json(), (world.base / "run/evaluate/challenge.json").read_bytes()
    assert found["scores"]["submission"] == {"multiearth_mse_sum": 0.0, "mae_min": 0.0, "queries": 4}
    assert len(found["warnings"]) == 6  # three bands of two images of the target that has no truth
    assert "6 bands of the submission are constant" in text
    world.run(zipped)
    assert (world.base / "run/evaluate/challenge.json").read_bytes() == data


@pytest.mark.parametrize("where", ["memory://bucket/some.zip", "file"])
def test_a_zip_may_lie_anywhere(world: World, where: str) -> None:
    local = world.zip()
    world.run(local)
    before = world.json()
    uri = f"file://{local}" if where == "file" else where
    storage.put(uri, Path(local).read_bytes())
    world.run(uri)
    assert world.json() == before


def test_truth_days_and_one_image_a_target(world: World) -> None:
    def one(entries: dict[str, bytes]) -> None:
        for place in PLACES:
            del entries[f"{name(place)}_2"]

    world.run(world.zip(one), config=["evaluate.truth_days=0"])
    found = world.json()
    assert (found["queries"], found["truths"], found["images_per_target"], found["images"]) == (1, 1, 1, 1)
    assert len(found["without_truth"]) == 4
    empty = world.base / "empty"
    put_verdicts(str(empty), [])
    storage.put(str(empty / "collect/summary.json"), (world.base / "run/collect/summary.json").read_bytes())
    with pytest.raises(Sar2EoError, match="none of the 5 targets has a clear S2 image within 0 days"):
        world.run(config=["evaluate.truth_days=0", f"run.out={empty}"])


def test_a_missing_image_is_never_averaged_over(world: World) -> None:
    lost = [f"{name(1)}_2", name(4)]
    with pytest.raises(Sar2EoError) as caught:
        world.run(world.zip(lambda e: [e.pop(x) for x in lost]))
    text = str(caught.value)
    assert "2 missing" in text
    assert "some.zip" in text
    assert "3 targets with 2, 2 targets with 1" in text
    assert all(f"translation/{x}.tiff" in text for x in lost)
    assert not (world.base / "run/evaluate/challenge.json").exists()
    with pytest.raises(Sar2EoError, match=r"(?s)5 missing.*5 targets with 0") as caught:
        world.run(world.zip(lambda e: [e.pop(x) for x in list(e)]))
    many = [f"{x}_{k}" for x in (name(p) for p in PLACES) for k in range(3, 9) if x != name(0)]
    with pytest.raises(Sar2EoError, match=r"(?s)24 missing.*1 targets with 8, 4 targets with 2.*and 14 more") as caught:
        world.run(world.zip(lambda e: [e.update({f"{name(0)}_{k}": e[name(0)]}) for k in range(3, 9)]))
    assert sum(f"{m}.tiff" in str(caught.value) for m in many) == module.SHOWN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.update({"stranger": e[name(0)]}), "1 extra.*stranger"),
        (lambda e: e.update({f"{name(0)}_4": e[name(0)]}), "1 extra.*_4"),
        (lambda e: e.update({name(2): b"torn"}), f"1 unreadable.*{name(2)}.tiff: 4 bytes"),
    ],
)
def test_what_nobody_can_score_is_refused_by_name(world: World, change: Callable[..., object], words: str) -> None:
    with pytest.raises(Sar2EoError, match=f"(?s){words}"):
        world.run(world.zip(change))


def test_truths_that_cannot_be_used_are_counted_and_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sources.read_eo

    def read_eo(ref: Any) -> Any:
        eo = plain(ref)
        if (ref.lon, ref.date) == (lon(2), DAY + dt.timedelta(7)):
            raise BadInput("unreadable", ref.uris[0], "torn")
        if (ref.lon, ref.date) == (lon(0), DAY):
            eo.bands[:, 100:] = 0
        return eo

    monkeypatch.setattr(sources, "read_eo", read_eo)
    text, found = world.run(), world.json()
    assert (found["queries"], found["truths"]) == (3, 4)
    assert found["without_truth"] == sorted([name(1), name(2)])
    reasons = {x["eo_key"].split("/", 1)[1]: x["reason"] for x in found["left_out"]}
    assert sorted(r.split(":")[0] for r in reasons.values()) == ["partial", "unreadable"]
    assert "2 S2 images could not be used: s2/" in text


def test_an_archive_that_changed_since_it_was_judged_is_no_truth(world: World) -> None:
    (file,) = (world.base / "sent2").glob(f"*_B3_{lon(2):.2f}_*")
    before, stat = file.read_bytes(), file.stat()
    try:
        file.write_bytes(before + b"\0")
        with pytest.raises(SourceChanged, match=r"B\d_-54\.96"):
            world.run()
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    world.run()


def test_a_dry_run_writes_nothing_and_wrong_settings_have_a_name(world: World, tmp_path: Path) -> None:
    assert world.run(dry_run=True) == "submission: would score 4 of 5 queries against 6 truths"
    assert not (world.base / "run/evaluate").exists() or not list((world.base / "run/evaluate").iterdir())
    with pytest.raises(ConfigError, match="data.target is empty"):
        world.run(config=["data.target="])
    with pytest.raises(NotFound, match=r"nothing\.zip"):
        world.run(str(tmp_path / "nothing.zip"))
    with pytest.raises(Sar2EoError, match="collect"):
        world.run(config=[f"run.out={tmp_path}"])
    (tmp_path / "text.zip").write_bytes(b"text")
    with pytest.raises(BadInput, match=r"no zip.*text\.zip"):
        world.run(str(tmp_path / "text.zip"))


def test_what_translate_publishes_is_a_submission() -> None:
    """The names that jobs/translate.py gives its images are those that are looked for here."""
    from sar2eo_dist.pipeline import patches
    from sar2eo_dist.sources.multiearth_netcdf import Target

    target = Target(name(0), "Sentinel-2", lon(0), -4.0, DAY, (), 0)
    entries = patches.submission(patches.Targets("f", "w", 3, ((target, ()),)), set())
    sink = io.BytesIO()
    write_zip(sink, [(entry, b"") for entry, _ in entries])
    there = module.list_names(sink.getvalue())
    assert module._names([target], there) == {name(0): tuple(sorted(there))}
    assert len(zipfile.ZipFile(sink).namelist()) == 3
