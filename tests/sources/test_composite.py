"""Composites: against a plain pixel-by-pixel reference, whatever the window; what is not needed is not opened."""

from __future__ import annotations

import datetime as dt
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_files import CRS, cog, place, put

from sar2eo_dist import storage
from sar2eo_dist.errors import BadInput, ConfigError, NotFound
from sar2eo_dist.records import SceneRef
from sar2eo_dist.sources import composite, scenes
from sar2eo_dist.sources.scenes import open_scene

H, W = 300, 280
GRID = (CRS, (10.0, 0.0, 400_000.0, 0.0, -10.0, 9_500_000.0))
ROW, COL = -949_980 + 950_000, 40_010 - 40_000  # of the scenes' corner: row 20, column 10 of GRID


def scene(
    root: str, name: str, day: int, orbit: str = "ascending", shift: tuple[float, float] = (0, 0), seed: int = 0,
    crs: str = CRS,
) -> tuple[SceneRef, np.ndarray]:  # fmt: skip
    """A scene with holes, `shift` (rows, columns) from the common corner."""
    rng = np.random.default_rng((seed, day, len(name), sum(map(ord, name))))
    db = rng.normal(-12, 3, (2, H, W)).astype(np.float32)
    db[:, rng.random((H, W)) < 0.3] = np.nan
    db[0, rng.random((H, W)) < 0.05] = np.nan
    tags = {"SAR2EO_UNITS": "db", "SAR2EO_QUANTITY": "sigma0", "ORBIT": orbit, "DATE": f"2020-03-{day:02d}"}
    where = place(-949_980 + shift[0], 40_010 + shift[1])
    return open_scene(put(root, name, cog(db, ("VV", "VH"), tags, transform=where, crs=crs))), db


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[SceneRef, np.ndarray, tuple[int, int]]]:
    """Three ascending days (one in two parts), two descending, one unknown; all on one pixel grid, by different corners."""
    root = str(tmp_path_factory.mktemp("stack"))
    plan = [
        ("a1", 1, "ascending", (0, 0)), ("a1x", 1, "ascending", (-40, 30)), ("a2", 2, "ascending", (10, -20)),
        ("a3", 3, "ascending", (5, 5)), ("d1", 1, "descending", (0, 7)), ("d2", 4, "descending", (-9, 0)),
        ("u", 2, "odd", (0, 0)),
    ]  # fmt: skip
    return [(*scene(root, f"{n}.tif", day, orbit, shift), shift) for n, day, orbit, shift in plan]


def reference(
    stack: list[tuple[SceneRef, np.ndarray, tuple[int, int]]], how: str, orbit: str, height: int, width: int
) -> np.ndarray:
    """float64 dB of GRID's pixels from (0, 0) on, one acquisition after another, by numpy's own median and mean."""
    acquisitions: dict[tuple[str, dt.date | None], np.ndarray] = {}
    for ref, db, (down, right) in sorted(stack, key=lambda s: (s[0].date, s[0].uris)):
        if orbit not in ("both", ref.orbit) and ref.orbit != "unknown":
            continue
        canvas = np.full((2, 2 * height + 200, 2 * width + 200), np.nan)
        r, c = ROW + down + 100, COL + right + 100
        canvas[:, r : r + H, c : c + W] = np.where(np.isnan(db).any(axis=0), np.nan, db)
        canvas = canvas[:, 100 : 100 + height, 100 : 100 + width]
        old = acquisitions.setdefault((ref.orbit, ref.date), canvas)
        acquisitions[ref.orbit, ref.date] = np.where(np.isnan(old), canvas, old)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        of_how = np.nanmedian if how == "median" else np.nanmean
        directions = [
            of_how([10 ** (a / 10) for (o, _), a in acquisitions.items() if o == each], axis=0)
            for each in {o for o, _ in acquisitions}
        ]
        return 10 * np.log10(np.nanmean(directions, axis=0))


@pytest.mark.parametrize("how", ["median", "mean"])
@pytest.mark.parametrize("orbit", ["both", "ascending", "descending"])
def test_it_is_the_plain_reference(
    stack: list[tuple[SceneRef, np.ndarray, tuple[int, int]]], how: str, orbit: str
) -> None:
    out = composite.read([s for s, _, _ in stack], *GRID, 0, 0, 340, 320, how, orbit)
    assert (out.shape, out.dtype) == ((2, 340, 320), np.float32)
    np.testing.assert_allclose(out, reference(stack, how, orbit, 340, 320), atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(
    row=st.integers(-60, 330), col=st.integers(-60, 330), h=st.integers(1, 300), w=st.integers(1, 200),
    how=st.sampled_from(["median", "mean"]),
)  # fmt: skip
def test_a_pixel_has_the_same_bits_in_any_window_and_order(
    stack: list[tuple[SceneRef, np.ndarray, tuple[int, int]]], row: int, col: int, h: int, w: int, how: str
) -> None:
    refs = [s for s, _, _ in stack]
    whole = composite.read(refs, *GRID, -60, -60, 690, 590, how)
    part = composite.read(refs[::-1], *GRID, row, col, h, w, how)
    r, c = row + 60, col + 60
    assert part.tobytes() == np.ascontiguousarray(whole[:, r : r + h, c : c + w]).tobytes()


def test_strips_do_not_show(
    stack: list[tuple[SceneRef, np.ndarray, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [s for s, _, _ in stack]
    whole = composite.read(refs, *GRID, -300, 3, 900, 300)
    monkeypatch.setattr(composite, "HELD", 1)
    assert list(composite._strips(-300, 900, 10)) == [(-300, 44), (-256, 256), (0, 256), (256, 256), (512, 88)]
    assert composite.read(refs, *GRID, -300, 3, 900, 300).tobytes() == whole.tobytes()


def test_warped_dates_are_composed_alike_in_any_window(tmp_path: Path) -> None:
    refs = [scene(str(tmp_path), f"{d}.tif", d, shift=(0.5 * d, 0.25), seed=1)[0] for d in (1, 2, 3)]
    whole = composite.read(refs, *GRID, 0, 0, 360, 330)
    assert 0.4 < np.isfinite(whole).mean() < 0.95
    for r, c, h, w in ((17, 5, 100, 131), (250, 60, 70, 64), (63, 64, 1, 1)):
        part = composite.read(refs, *GRID, r, c, h, w)
        assert part.tobytes() == np.ascontiguousarray(whole[:, r : r + h, c : c + w]).tobytes()


def test_a_lone_value_and_the_middle_of_three_are_untouched(tmp_path: Path) -> None:
    made = [scene(str(tmp_path), f"{d}.tif", d) for d in (1, 2, 3)]
    db = [np.where(np.isnan(d).any(axis=0), np.nan, d) for _, d in made]
    one = composite.read([made[0][0]], *GRID, ROW, COL, H, W)
    assert one.tobytes() == db[0].tobytes()
    three = composite.read([s for s, _ in made], *GRID, ROW, COL, H, W)
    count = np.isfinite(db).sum(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        middle, lone = np.nanmedian(db, axis=0), np.nansum(db, axis=0)
    np.testing.assert_array_equal(three[count == 3], middle[count == 3])
    np.testing.assert_array_equal(three[count == 1], lone[count == 1])
    assert np.isnan(three[count == 0]).all()


def test_undated_scenes_of_one_direction_are_one_acquisition(tmp_path: Path) -> None:
    (a, first), (b, second) = (scene(str(tmp_path), f"{d}.tif", d) for d in (1, 2))
    out = composite.read([replace(b, date=None), replace(a, date=None)], *GRID, ROW, COL, H, W)
    first, second = (np.where(np.isnan(d).any(axis=0), np.nan, d) for d in (first, second))
    np.testing.assert_array_equal(out, np.where(np.isnan(first), second, first))


def test_what_does_not_touch_the_window_is_not_opened(
    stack: list[tuple[SceneRef, np.ndarray, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = scenes._Files

    def counted(uris: tuple[str, ...]) -> object:
        opened.extend(uris)
        return real(uris)

    monkeypatch.setattr(scenes, "_Files", counted)
    monkeypatch.setattr(scenes, "_local", type("Local", (), {})())
    refs = [s for s, _, _ in stack]
    far = [replace(s, crs="EPSG:32723", digest=f"{i}", uris=("none.tif",)) for i, s in enumerate(refs)]
    assert np.isnan(composite.read(refs + far, *GRID, 5000, 0, 100, 100)).all()
    assert opened == []
    composite.read(refs + far, *GRID, ROW - 30, COL + 60, 1, 1)
    assert [storage.name(u) for u in opened] == ["a1x.tif"]
    for _ in range(3):  # every date stays open from window to window
        composite.read(refs, *GRID, ROW + 20, COL + 50, 20, 20)
    assert len(opened) == len(set(opened)) == len(refs)


def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "OPEN_SCENES", 3)
    monkeypatch.setattr(scenes, "_local", type("Local", (), {})())
    made = [scene(str(tmp_path), f"{d}.tif", d)[0] for d in range(1, 7)]
    composite.read(made, *GRID, ROW, COL, 40, 40)
    assert len(scenes._local.cache) == 3


def test_threads_share_it(stack: list[tuple[SceneRef, np.ndarray, tuple[int, int]]]) -> None:
    refs = [s for s, _, _ in stack]
    whole = composite.read(refs, *GRID, 0, 0, 320, 300)
    places = [(r, c) for r in range(0, 320, 80) for c in range(0, 300, 100)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda p: composite.read(refs, *GRID, *p, 80, 100), places))
    for (r, c), part in zip(places, parts, strict=True):
        np.testing.assert_array_equal(part, whole[:, r : r + 80, c : c + 100])


def test_errors_have_their_uri(tmp_path: Path) -> None:
    ref, _ = scene(str(tmp_path), "a.tif", 1)
    torn = Path(ref.uri).read_bytes()[:-30_000]
    (tmp_path / "torn.tif").write_bytes(torn)
    with pytest.raises(BadInput, match="torn.tif"):
        composite.read([open_scene(str(tmp_path / "torn.tif"))], *GRID, ROW, COL, H, W)
    Path(ref.uri).unlink()
    with pytest.raises(NotFound, match="a.tif"):
        composite.read([replace(ref, digest="not open yet")], *GRID, ROW, COL, H, W)
    for how, orbit in (("max", "both"), ("median", "odd")):
        with pytest.raises(ConfigError, match=how if how == "max" else orbit):
            composite.read([], *GRID, 0, 0, 1, 1, how, orbit)
    assert np.isnan(composite.read([], *GRID, 0, 0, 2, 3)).all()
