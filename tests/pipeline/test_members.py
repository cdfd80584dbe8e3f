"""What a cloud set consists of: folders, lists, tables and built sets; what is refused, by name, before Ray."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import archive
import numpy as np
import pytest
from PIL import Image

from sar2eo_dist import sources, storage
from sar2eo_dist.cca import exposure
from sar2eo_dist.cca.frechet import Moments, Reference
from sar2eo_dist.config import load
from sar2eo_dist.errors import ConfigError, NotFound, ReferenceSetError, SourceChanged
from sar2eo_dist.pipeline import members as module
from sar2eo_dist.pipeline.candidates import TABLE, propose
from sar2eo_dist.pipeline.members import Member, listed, members, preprocessing, read, read_all, read_image, stored
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.report import contact
from sar2eo_dist.sections import CCA


def cca(reference: object, **more: object) -> CCA:
    return CCA(**{"extractor": "means", "reference": str(reference), **more})  # type: ignore[arg-type]


def images(folder: Path, n: int, side: int = 256) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    paths = [folder / f"{i}.png" for i in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(path)
    return paths


def test_a_folder_is_its_images_in_order_of_name(tmp_path: Path) -> None:
    paths = images(tmp_path / "set", 3)
    (tmp_path / "set" / "notes.md").write_text("not an image")
    found = listed(cca(tmp_path / "set"))
    assert [m.name for m in found.items] == [str(p) for p in paths]
    assert [m.digest for m in found.items] == [storage.info(str(p)).digest for p in paths]
    assert found == listed(cca(tmp_path / "set", profile="none"))
    assert members(cca(tmp_path / "set")) == members(cca(tmp_path / "set", profile="recommended")) == found
    for profile in ("released", "none"):  # they have no stage 3
        assert members(cca(tmp_path / "set", profile=profile)) == module.Members()
    os.utime(paths[1], (1, 1))
    assert listed(cca(tmp_path / "set")).mark != found.mark


def test_a_list_names_images_beside_it_or_anywhere(tmp_path: Path) -> None:
    near, far = images(tmp_path / "near", 2), images(tmp_path / "far", 1)
    text = f"\N{BYTE ORDER MARK}# my clouds\n\n1.png\n  0.png  # thick\n{far[0]}\r\n"
    (tmp_path / "near" / "list.txt").write_text(text)
    found = listed(cca(tmp_path / "near" / "list.txt"))
    assert [m.name for m in found.items] == sorted(map(str, [*near, *far]))
    (tmp_path / "near" / "list.txt").write_text(f"{far[0]}\n0.png\n1.png\n")
    assert listed(cca(tmp_path / "near" / "list.txt")).mark == found.mark  # the order of lines is no part of a set


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.png\n1.png\nnone.png", r"line 3: no such image .*none\.png.*list\.txt"),
        ("0.png\n# x\n0.png", r"lines 1 and 3 name the same image .*0\.png"),
        ("0.png\nlist.txt", r"line 2: 'list\.txt' is no image \(\.png "),
        ("0.png", "at least 2 images, 1 found"),
        ("", "at least 2 images, 0 found"),
    ],
)
def test_a_bad_list_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    images(tmp_path, 2)
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ReferenceSetError, match=words):
        listed(cca(tmp_path / "list.txt"))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cca\.reference is empty.*--candidates"):
        members(CCA(extractor="means"))
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe0\x00")
    with pytest.raises(ReferenceSetError, match=r"not UTF-8.*list\.txt"):
        listed(cca(tmp_path / "list.txt"))
    images(tmp_path / "one", 1)
    with pytest.raises(ReferenceSetError, match="at least 2 images, 1 found"):
        listed(cca(tmp_path / "one"))
    for name in ("no", "no.txt", "no.csv", "no.npz"):
        with pytest.raises(NotFound):
            listed(cca(tmp_path / name))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    archive.make(tmp_path, [0.7, 0.0, 1.0, 0.4])
    propose(load(None, [f"run.out={tmp_path / 'run'}"]), Options(candidates=4))
    return tmp_path / "run" / TABLE


def test_a_table_of_candidates_is_its_tiles(table: Path) -> None:
    found = listed(cca(table))
    assert len(found.items) == 4
    for m in found.items:
        assert m.ref
        assert (m.name, m.uris, m.digest) == (m.ref.key, m.ref.uris, m.ref.digest)
    table.write_text(table.read_text().replace(",yes,", ",no,", 3))
    with pytest.raises(ReferenceSetError, match="at least 2 images, 1 found"):
        listed(cca(table))


def test_a_tile_is_read_as_collect_sees_it_and_shown_in_natural_colours(table: Path) -> None:
    member = listed(cca(table)).items[0]
    assert member.ref
    bands = sources.read_eo(member.ref).bands
    image, thumb = read(member)
    np.testing.assert_array_equal(image, exposure.stretch(bands))
    np.testing.assert_array_equal(thumb, contact.thumbnail(contact.natural(bands)))
    os.utime(member.uris[0], (1, 1))
    with pytest.raises(SourceChanged, match=r"jobs/collect\.py"):
        read(member)
    torn = module.Member(member.name, member.digest, member.ref)
    Path(member.uris[1]).write_bytes(b"II*\0torn")
    with pytest.raises((ReferenceSetError, SourceChanged)):
        read(torn)


def test_images_are_eight_bit_and_of_one_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)
    for name, mode in (("a.png", "RGB"), ("b.png", "RGBA"), ("c.tif", "RGB"), ("d.png", "L")):
        Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    for name in ("a.png", "b.png", "c.tif"):
        np.testing.assert_array_equal(read_image(str(tmp_path / name)), pixels.transpose(2, 0, 1))
    assert read_image(str(tmp_path / "d.png")).shape == (3, 256, 256)
    Image.fromarray(pixels[..., 0].astype(np.int32)).save(tmp_path / "e.tif")
    with pytest.raises(ReferenceSetError, match=r"mode I, not 8-bit.*e\.tif"):
        read_image(str(tmp_path / "e.tif"))
    for data in (b"", b"no image", (tmp_path / "a.png").read_bytes()[:900]):
        (tmp_path / "f.png").write_bytes(data)
        with pytest.raises(ReferenceSetError, match=r"cannot decode .*f\.png"):
            read_image(str(tmp_path / "f.png"))
    Image.fromarray(pixels[:10, :20]).save(tmp_path / "g.png")
    a, g = (Member(str(tmp_path / n), "d") for n in ("a.png", "g.png"))
    with pytest.raises(ReferenceSetError, match=r"20 x 10, others of the set 256 x 256 \(.*a\.png\): .*g\.png"):
        read_all([a, g])
    both, thumbs = read_all([a, a])
    assert both.shape == (2, 3, 256, 256)
    assert thumbs.shape == (2, contact.THUMB, contact.THUMB, 3)


def small(extractor: str = "means", words: str = "", kind: str = "pooled") -> Reference:
    x = np.random.default_rng(3).standard_normal((9, 4))
    moments = Moments.from_features(x)
    return Reference.from_moments(moments, extractor, words or preprocessing(extractor), kind, 9)


def test_a_built_set_is_one_file_and_marked_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(small().to_bytes())
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.NPZ")
    found = listed(cca(tmp_path / "a.npz"))
    assert (found.items, found.built) == ((), str(tmp_path / "a.npz"))
    assert listed(cca(tmp_path / "b.NPZ")).mark == found.mark
    (tmp_path / "b.NPZ").write_bytes(small(kind="positions").to_bytes())
    assert listed(cca(tmp_path / "b.NPZ", distance="spatial")).mark != found.mark


@pytest.mark.parametrize(
    ("reference", "more"),
    [
        (small("efficientnet_lite0"), {}),
        (small(words="another stretch"), {}),
        (small(kind="positions"), {}),
        (small(), {"distance": "spatial"}),
        (small(), {"distance": "position"}),
    ],
)
def test_a_built_set_of_another_kind_is_refused(tmp_path: Path, reference: Reference, more: dict[str, str]) -> None:
    (tmp_path / "a.npz").write_bytes(reference.to_bytes())
    with pytest.raises(ReferenceSetError, match=r"build it again.*a\.npz"):
        listed(cca(tmp_path / "a.npz", **more))


def test_a_torn_set_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"PK no zip", small().to_bytes()[:300]):
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(ReferenceSetError, match=r"no reference set.*a\.npz"):
            listed(cca(tmp_path / "a.npz"))


def test_pytorch_fids_statistics_serve_inception_and_point_alone() -> None:
    x = np.random.default_rng(1).standard_normal((40, 5))
    sink = io.BytesIO()
    np.savez(sink, mu=x.mean(axis=0), sigma=np.cov(x, rowvar=False))
    found = stored(sink.getvalue(), CCA(extractor="inception"))
    assert (found.extractor, found.kind, found.preprocessing) == ("inception", "pooled", preprocessing("inception"))
    np.testing.assert_allclose(found.mean, x.mean(axis=0))
    for extractor, distance in (("means", "point"), ("inception", "spatial"), ("inception", "position")):
        with pytest.raises(ReferenceSetError, match=rf"pytorch-fid.*not {extractor} with {distance}"):
            stored(sink.getvalue(), CCA(extractor=extractor, distance=distance))
