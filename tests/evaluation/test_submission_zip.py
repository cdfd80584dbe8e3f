"""The challenge's zip: what is written is read again, and everything that can be wrong with one is found and named."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.io import MemoryFile

from sar2eo_dist.errors import BadInput, Sar2EoError
from sar2eo_dist.evaluation import submission
from sar2eo_dist.evaluation.submission import encode, list_names, quiet, read_image, validate_zip, write_zip

NAMES = ("a", "a_2", "b", "b_2")


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (3, 256, 256)).astype(np.uint8)


def tiff(pixels: np.ndarray, **more: Any) -> bytes:
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype} | more
    with quiet(), MemoryFile() as memory:
        with memory.open(**profile) as out:
            out.write(pixels)
        return bytes(memory.read())


GOOD = encode(image(0))


def packed(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of whole entry names, as anybody may write one."""
    sink = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(sink, "w", compression) as out:
        warnings.simplefilter("ignore", UserWarning)  # of duplicates
        for name, data in entries:
            out.writestr(name, data)
    return sink.getvalue()


def of(data: bytes, **how: Any) -> bytes:
    """A zip of NAMES where `b` holds some bytes."""
    return packed(*((f"translation/{n}.tiff", data if n == "b" else GOOD) for n in NAMES), **how)


def found(data: bytes) -> list[tuple[str, str, str]]:
    return [(f.kind, f.entry, f.detail) for f in validate_zip(data, NAMES).problems]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    images = {name: image(n) for n, name in enumerate(NAMES)}
    entries = [(name, encode(pixels)) for name, pixels in images.items()]
    path, sink = str(tmp_path / "s.zip"), io.BytesIO()
    write_zip(path, iter(entries))
    write_zip(sink, entries)
    assert Path(path).read_bytes() == sink.getvalue()
    for data in (path, sink.getvalue(), sink):
        assert list_names(data) == sorted(NAMES)
        checked = validate_zip(data, reversed(NAMES))
        assert (checked.problems, checked.warnings) == ((), ())
    with quiet(), zipfile.ZipFile(path) as archive:
        for name, pixels in images.items():
            np.testing.assert_array_equal(read_image(archive, name), pixels)
        with pytest.raises(BadInput, match="no such entry.*none"):
            read_image(archive, "none")


@pytest.mark.parametrize("names", [("a", "b", "a"), ("../a",), ("x/../../a",), ("/a",), ("",), ("c:a",), ("a\\b",)])
def test_a_name_that_cannot_be_is_not_written(names: tuple[str, ...]) -> None:
    with pytest.raises(Sar2EoError, match=re.escape(repr(names[-1]))):
        write_zip(io.BytesIO(), [(name, GOOD) for name in names])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_any_real_dtype_any_layout_and_folders_will_do(dtype: str) -> None:
    layout: dict[str, Any] = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    data = of(tiff(image(1).astype(dtype), **layout), compression=zipfile.ZIP_DEFLATED)
    sink = io.BytesIO(data)
    with zipfile.ZipFile(sink, "a") as out:
        out.mkdir("translation")
    assert found(sink.getvalue()) == []


def test_missing_extra_unsafe_and_double_entries_are_named() -> None:
    t = "translation"
    data = packed((f"{t}/a.tiff", GOOD), (f"{t}/b.tiff", GOOD), (f"{t}/b.tiff", GOOD), (f"{t}/a_3.tiff", b"12345"),
                  ("../../etc/x", b""), (f"{t}\\b_2.tiff", GOOD), ("/b_2.tiff", GOOD), ("a_2.tiff", GOOD))  # fmt: skip
    assert [(kind, entry) for kind, entry, _ in found(data)] == [
        ("missing", f"{t}/a_2.tiff"), ("missing", f"{t}/b_2.tiff"),
        ("unsafe", "'../../etc/x'"), ("unsafe", "'/b_2.tiff'"), ("extra", "a_2.tiff"), ("extra", f"{t}/a_3.tiff"),
        ("unsafe", repr(f"{t}\\b_2.tiff")), ("duplicate", f"{t}/b.tiff"),
    ]  # fmt: skip
    details = {entry: detail for _, entry, detail in found(data)}
    assert details[f"{t}/a_3.tiff"].startswith("5 bytes")
    assert details[f"{t}/b.tiff"].startswith("2 entries")


#: rasterio would open it, and whatever files it named
BANDS = 3 * '<VRTRasterBand dataType="Byte"/>'
VRT = f'<VRTDataset rasterXSize="256" rasterYSize="256">{BANDS}</VRTDataset>'.encode()


def not_finite(value: float) -> bytes:
    pixels = image(0).astype(np.float32)
    pixels[1, 7, 9:11] = value
    return tiff(pixels)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: b"no image", "unreadable", "8 bytes that are no TIFF"),
        (lambda: b"", "unreadable", "0 bytes"),
        (lambda: GOOD[:9000], "unreadable", "no TIFF"),
        (lambda: VRT, "unreadable", "no TIFF"),
        (lambda: tiff(image(0), driver="PNG"), "unreadable", "no TIFF"),
        (lambda: tiff(image(0)[:1]), "wrong_shape", "1 bands of 256 x 256, not 3"),
        (lambda: tiff(image(0)[[0, 1, 2, 2]]), "wrong_shape", "4 bands"),
        (lambda: tiff(image(0)[:, :255]), "wrong_shape", "3 bands of 255 x 256"),
        (lambda: tiff(np.zeros((3, 3000, 3000), np.uint8), compress="deflate"), "wrong_shape", "3000 x 3000"),
        (lambda: tiff(image(0), tiled=True, blockxsize=2048, blockysize=2048, compress="deflate"), "wrong_shape", "blocks"),
        (lambda: tiff(image(0).astype(np.complex64)), "wrong_dtype", "complex64"),
        (lambda: not_finite(np.nan), "not_finite", r"band 1 at pixel \(7, 9\) is nan; 2 values"),
        (lambda: not_finite(-np.inf), "not_finite", "is -inf"),
        (lambda: b"\0" * (submission.LARGEST + 1), "too_large", f"declares {submission.LARGEST + 1} bytes"),
    ],
)  # fmt: skip
def test_what_is_no_image_of_the_challenge_is_named(make: Callable[[], bytes], kind: str, words: str) -> None:
    ((found_kind, entry, detail),) = found(of(make(), compression=zipfile.ZIP_DEFLATED))
    assert (found_kind, entry) == (kind, "translation/b.tiff")
    assert re.search(words, detail), detail


def test_a_constant_band_is_a_warning_for_it_scores_as_0() -> None:
    pixels = image(0)
    pixels[2] = 17
    checked = validate_zip(of(tiff(pixels)), NAMES)
    assert checked.problems == ()
    assert [str(w) for w in checked.warnings] == [
        "constant: translation/b.tiff: band 2 is 17 everywhere: it scores as 0"
    ]


def patched(data: bytes, signature: bytes, at: int, change: Callable[[bytes], bytes], size: int) -> bytes:
    """`size` bytes, `at` bytes into the header of `b` (signature: of a local or of the directory's), changed."""
    raw = bytearray(data)
    header = 30 if signature == b"PK\3\4" else 46
    place = raw.index(b"translation/b.tiff", data.index(signature)) - header
    assert raw[place : place + 4] == signature
    raw[place + at : place + at + size] = change(bytes(raw[place + at : place + at + size]))
    return bytes(raw)


def test_a_flipped_bit_an_encrypted_entry_and_other_packers_are_named() -> None:
    data = bytearray(of(GOOD))
    place = data.index(GOOD[500:520], data.index(b"translation/b.tiff"))
    data[place] ^= 1
    ((kind, _, detail),) = found(bytes(data))
    assert (kind, "CRC" in detail) == ("unreadable", True)
    encrypted = patched(of(GOOD), b"PK\1\2", 8, lambda b: bytes([b[0] | 1, b[1]]), 2)
    assert found(encrypted) == [("encrypted", "translation/b.tiff", "it needs a password")]
    with quiet(), zipfile.ZipFile(io.BytesIO(encrypted)) as archive, pytest.raises(BadInput, match="password"):
        read_image(archive, "b")
    others = found(of(GOOD, compression=zipfile.ZIP_LZMA))
    assert [(kind, detail.startswith("compression 14")) for kind, _, detail in others] == [("unreadable", True)] * 4


@pytest.mark.parametrize("wrong", [100, 1 << 20, (1 << 32) - 2])
def test_a_declared_size_that_lies_is_not_believed(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to 32 MB says that it is an image, small or large: little of it is ever unpacked."""
    bomb = of(b"\0" * (32 << 20), compression=zipfile.ZIP_DEFLATED)
    lying = patched(bomb, b"PK\1\2", 24, lambda _: struct.pack("<I", wrong), 4)
    most, plain = [0], zipfile.ZipExtFile._read1  # type: ignore[attr-defined]

    def watched(self: Any, n: int) -> bytes:
        most.append(n)
        return bytes(plain(self, n))

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", watched)
    ((kind, entry, _),) = found(lying)
    assert (kind, entry) == ("too_large" if wrong > submission.LARGEST else "unreadable", "translation/b.tiff")
    assert max(most) <= submission.LARGEST + 1


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip at all" * 99, packed(("x", b"y"))[:-30]])
def test_what_is_no_zip_is_named(data: bytes, tmp_path: Path) -> None:
    ((kind, entry, detail),) = found(data)
    assert (kind, entry, detail.startswith("no zip")) == ("no_zip", f"{len(data)} bytes", True)
    with pytest.raises(BadInput, match="no zip"):
        list_names(data)
    (problem,) = validate_zip(str(tmp_path), NAMES).problems
    assert (problem.kind, problem.entry) == ("no_zip", str(tmp_path))
