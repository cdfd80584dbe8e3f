"""The cloud set as a job builds it: against a direct computation, the same bytes again, refusals by name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import archive
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sar2eo_dist.cca.frechet import Moments, Reference
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import NotFound, ReferenceSetError, SourceChanged
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.models.extractors import extractor
from sar2eo_dist.pipeline import driver
from sar2eo_dist.pipeline import reference as module
from sar2eo_dist.pipeline.candidates import TABLE, propose
from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.members import Member, Members, listed, read_image
from sar2eo_dist.pipeline.reference import FeatureActor, build, built, reference, unit_of
from sar2eo_dist.pipeline.stage import Options

PACK = 4


def config(run: object, images: object, *more: str) -> Config:
    sets = [f"run.out={run}", f"cca.reference={images}", "cca.extractor=means", f"cca.pack={PACK}", *more]
    return load(None, sets)


def images(folder: Path, n: int, side: int = 256) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    for i in range(n):
        level = rng.integers(100, 200)
        Image.fromarray(rng.integers(level, 256, (side, side, 3)).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs through the actor's own code, without Ray."""

    def packs(cfg: Config, items: tuple[Member, ...]) -> object:
        actor = FeatureActor(cfg.cca, driver.here())
        for at in range(0, len(items), cfg.cca.pack):
            row = actor(pa.table({"members": [pickle.dumps(items[at : at + cfg.cca.pack])]}))
            if row["error"][0]:
                raise pickle.loads(row["error"][0])
            yield {k: v[0] for k, v in row.items()}

    monkeypatch.setattr(module, "_packs", packs)
    monkeypatch.setattr(module, "load_extractor", lambda cca: extractor(cca.extractor))  # asks Ray for its GPU
    monkeypatch.setattr("sar2eo_dist.pipeline.cluster.start", lambda cfg: None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)


def made(run: object) -> Path:
    (path,) = Path(str(run)).glob("reference/*/reference.npz")
    return path


@pytest.mark.parametrize(("distance", "n"), [("point", 5), ("point", 11), ("spatial", 7)])
@pytest.mark.usefixtures("here")
def test_a_set_is_what_its_features_are(
    tmp_path: Path, distance: str, n: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Null has 6 features: 5 images are gathered, 11 (and positions) merged pack by pack."""
    cfg = config(tmp_path / "run", images(tmp_path / "set", n), f"cca.distance={distance}")
    summary = reference(cfg, Options())
    said = capsys.readouterr()
    assert f"a cloud set of {n} images is small" in said.err
    assert f"--set cca.reference={made(tmp_path / 'run')}" in said.out
    found = Reference.from_bytes(made(tmp_path / "run").read_bytes())
    net = extractor("means")
    pixels = np.stack([read_image(m.name) for m in listed(cfg.cca).items])
    x = net.features(pixels) if distance == "point" else net.positions(pixels).reshape(-1, net.dims)
    x = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    wide = found.factor.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, np.cov(x, rowvar=False), rtol=1e-5, atol=1e-5 * x.var())
    kind = "pooled" if distance == "point" else "positions"
    assert (found.count, found.kind, found.extractor) == (n, kind, "means")
    assert (summary.status, summary.counts) == ("complete", {"images": n})
    about = json.loads(Path(cfg.run.out, summary.outputs["made of"]).read_text())
    assert [m["name"] for m in about["members"]] == [m.name for m in listed(cfg.cca).items]
    assert (about["digest"], about["kind"], about["image_size"]) == (found.digest, kind, [256, 256])
    with Image.open(Path(cfg.run.out, summary.outputs["contact sheets"])) as sheet:
        assert sheet.width > 5 * 128
    assert json.loads((tmp_path / "run" / "reference" / "summary.json").read_text())["status"] == "complete"


@pytest.mark.usefixtures("here")
def test_merged_or_gathered_is_the_same_set(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", images(tmp_path / "set", 5))
    reference(cfg, Options())
    gathered = Reference.from_bytes(made(tmp_path / "run").read_bytes())
    x = extractor("means").features(np.stack([read_image(m.name) for m in listed(cfg.cca).items]))
    moments = Moments.from_features(x[:PACK]).merge(Moments.from_features(x[PACK:]))
    merged = Reference.from_moments(moments, "means", gathered.preprocessing, "pooled", 5)
    np.testing.assert_allclose(merged.mean, gathered.mean, rtol=1e-12)
    assert merged.trace == pytest.approx(gathered.trace, rel=1e-9)


@pytest.mark.usefixtures("here")
def test_many_images_are_many_sheets(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", images(tmp_path / "set", 103, side=16))
    summary = reference(cfg, Options())
    folder = made(tmp_path / "run").parent
    assert sorted(p.name for p in folder.glob("*.png")) == ["contact-1.png", "contact-2.png"]
    assert summary.outputs["contact sheets"].endswith("contact-1.png")
    with Image.open(folder / "contact-1.png") as first, Image.open(folder / "contact-2.png") as second:
        assert first.height > 5 * second.height


@pytest.mark.usefixtures("here")
def test_what_changes_a_set_makes_another_version(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", 3)
    cfg = config(tmp_path / "run", folder)
    first = unit_of(cfg.cca, listed(cfg.cca))
    assert unit_of(cfg.cca.model_copy(update={"beta": 0.9, "profile": "none"}), listed(cfg.cca)) == first
    for change in ("cca.distance=spatial", "cca.pack=8", "cca.threads=2", "cca.extractor=efficientnet_lite0"):
        other = config(tmp_path / "run", folder, change).cca
        assert unit_of(other, listed(other)).id != first.id
    os.utime(folder / "000.png", (1, 1))
    assert unit_of(cfg.cca, listed(cfg.cca)).id != first.id


@pytest.mark.usefixtures("here")
def test_collect_finds_the_set_that_was_built_and_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path / "run", images(tmp_path / "set", 3))
    found = listed(cfg.cca)
    assert built(cfg, Members()) == ""
    uri = built(cfg, found)
    assert uri == str(made(tmp_path / "run"))
    before = Path(uri).read_bytes()

    def never(*args: object) -> None:
        raise AssertionError("built twice")

    with monkeypatch.context() as patch:
        patch.setattr(module, "build", never)
        assert built(cfg, found) == uri
        assert reference(cfg, Options()).resumed == 1
    Path(uri).write_bytes(before[:50])
    assert built(cfg, found) == uri
    assert Path(uri).read_bytes() == before


def test_a_built_set_needs_no_images_and_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).standard_normal((30, 6))
    cfg = config(tmp_path / "run", tmp_path / "mine.npz")
    there = Reference.from_features(x, "means", extractor("means").preprocessing)
    (tmp_path / "mine.npz").write_bytes(there.to_bytes())
    monkeypatch.setattr("sar2eo_dist.pipeline.cluster.start", lambda cfg: pytest.fail("Ray was started"))
    summary = reference(cfg, Options())
    assert made(tmp_path / "run").read_bytes() == there.to_bytes()
    assert set(summary.outputs) == {"reference", "made of"}
    assert json.loads(Path(cfg.run.out, summary.outputs["made of"]).read_text())["built_from"] == str(
        tmp_path / "mine.npz"
    )


@pytest.mark.usefixtures("here")
def test_bad_images_stop_the_build_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images(tmp_path / "set", 6)
    argv = ["--set", f"run.out={tmp_path / 'run'}", "--set", f"cca.reference={folder}", "--set", "cca.extractor=means"]
    assert main("reference", [reference], "about", [*argv, "--dry-run"]) == 0
    assert "would run 1 of 1" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    Image.new("RGB", (10, 10)).save(folder / "005.png")
    assert main("reference", [reference], "about", [*argv, "--set", "cca.pack=4"]) == 1
    assert "reference image is 10 x 10, others of the set 256 x 256" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "reference" / "summary.json").read_text())["status"] == "failed"
    (folder / "005.png").write_bytes(b"torn")
    assert main("reference", [reference], "about", [*argv, "--set", "cca.pack=5"]) == 1
    assert "cannot decode reference image" in capsys.readouterr().err
    assert main("reference", [reference], "about", ["--set", "cca.reference="]) == 2


@pytest.mark.usefixtures("here")
def test_features_that_are_no_numbers_name_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def features(net: object, pixels: np.ndarray, cca: object) -> np.ndarray:
        x = np.ones((len(pixels), 6), np.float32)
        x[-1] = np.nan
        return x

    monkeypatch.setattr(module, "features_of", features)
    cfg = config(tmp_path / "run", images(tmp_path / "set", 6))
    with pytest.raises(ReferenceSetError, match=r"not finite: .*003\.png"):
        reference(cfg, Options())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Candidates of a small archive, one of them struck out."""
    archive.make(tmp_path, [0.9, 0.0, 1.0, 0.5, 0.8])
    propose(load(None, [f"run.out={tmp_path / 'run'}"]), Options(candidates=5))
    path = tmp_path / "run" / TABLE
    path.write_text(path.read_text().replace(",yes,s2/-05498", ",no,s2/-05498"))
    return path


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_through_ray_the_bytes_are_the_same(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the archive's candidates, in packs of 1 that two actors take in turn, and in this process."""
    cfgs = [
        config(tmp_path / out, table, "cca.pack=1", "resources.extractors=2", "cca.distance=position") for out in "ab"
    ]
    assert reference(cfgs[0], Options()).counts == {"images": 4}
    in_this_process(monkeypatch)
    assert reference(cfgs[1], Options()).counts == {"images": 4}
    folders = [made(cfg.run.out).parent for cfg in cfgs]
    assert folders[0].name == folders[1].name
    for name in ("reference.npz", "reference.json", "contact-1.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert Ledger(cfgs[0].run.out).audit([unit_of(cfgs[0].cca, listed(cfgs[0].cca))]) == []


@pytest.mark.usefixtures("here")
def test_a_tile_that_is_gone_or_changed_stops_the_build_by_name(tmp_path: Path, table: Path) -> None:
    cfg = config(tmp_path / "other", table)
    found = listed(cfg.cca)
    assert len(found.items) == 4
    unit = unit_of(cfg.cca, found)
    victim = Path(found.items[3].uris[0])
    os.utime(victim, (1, 1))
    with pytest.raises(SourceChanged, match=rf"jobs/collect\.py.*{victim.name}"):
        build(cfg, unit, found)
    victim.unlink()
    with pytest.raises(NotFound, match=victim.name):
        build(cfg, unit, found)
