"""The page in a real browser, with real input: it fits, it follows the theme, it re-selects, it swipes, it fetches nothing."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pytest
from cdp import Browser
from PIL import Image

from sar2eo_dist.records import KEPT
from sar2eo_dist.report.load import Run
from sar2eo_dist.report.slider import EXACT, slider

LAYOUT = """(() => {
  const root = document.documentElement, style = e => getComputedStyle(e);
  for (const d of document.querySelectorAll('details')) d.open = true;
  const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className);
  const box = document.querySelector('#samples .zoom input'), shown = box.nextElementSibling;
  const small = shown.getBoundingClientRect().height;
  box.click();
  const big = shown.getBoundingClientRect().height;
  box.click();
  return {
    scroll: root.scrollWidth, wide, small, big, images: [...document.images].every(i => i.complete && i.naturalWidth > 0),
    font: Math.min(...[...document.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect().height).filter(h => h)),
    paper: style(document.body).backgroundColor, colours: [style(document.body).color,
      style(document.querySelector('.plot text')).fill, style(document.querySelector('.note')).color,
      style(document.querySelector('#reselect button')).color],
  };
})()"""


@pytest.fixture(scope="module")
def file(full: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(full)
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """(scores, kept or not) of the fake run, as it makes them."""
    rows = [v for v in fake_run.verdicts(tmp_path_factory.mktemp("scored")) if np.isfinite(v.score)]
    return np.array([v.score for v in rows]), np.array([v.reason == KEPT for v in rows])


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", WCAG 2."""
    parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def told(browser: Browser) -> str:
    return str(browser.run("document.querySelector('#reselect output').textContent")).replace("\xa0", " ")


def picture(browser: Browser, box: tuple[float, float, float, float]) -> np.ndarray:
    """(h, w, 3) of a place of the window."""
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
    clip["y"] += browser.run("scrollY")
    data = browser("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.float64)


@pytest.mark.parametrize("width", [360, 1300])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_follows_the_theme(browser: Browser, file: Path, width: int, dark: bool) -> None:
    browser.open(file, width, dark)
    found: dict[str, Any] = browser.run(LAYOUT)
    assert found["scroll"] == width
    assert found["wide"] == []
    assert found["images"] is True
    assert found["big"] == pytest.approx(800)
    assert found["small"] < 400
    assert found["font"] >= 9
    paper = luminance(found["paper"])
    assert (paper < 0.1) == dark
    for other in map(luminance, found["colours"]):
        assert (max(paper, other) + 0.05) / (min(paper, other) + 0.05) >= 4.5
    assert browser.troubles() == []
    assert browser.fetched() == [file.as_uri()]


def test_another_beta(browser: Browser, file: Path, scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, kept = scored
    browser.open(file, 1300)
    assert told(browser) == "At beta 0.4 (threshold 60): 46 of 60 scored tiles kept (77 %), as in this run."
    assert browser.run("document.querySelector('.command').hidden")
    browser.run("document.querySelector('#beta').focus()")
    browser.key("ArrowRight", 2)
    assert told(browser).startswith("At beta 0.402 (threshold 67.55)")  # the calibration's ends are 30 and 123.4
    left, top, width, height = browser.box("#beta")
    for share in (0.8, 0.05):
        browser.drag((left + width / 2, top + height / 2), (left + 8 + share * (width - 16), top + height / 2))
        beta = float(browser.run("document.querySelector('#beta').value"))
        assert beta == pytest.approx(share, abs=0.02)
        cut = 30.0 + (123.4 - 30.0) * beta
        now = scores >= cut
        numbers = (now.sum(), (now & ~kept).sum(), (~now & kept).sum())
        words = re.findall(r"\): (\d+) of 60 scored tiles kept \(\d+ %\), (\d+) enter, (\d+) leave", told(browser))
        assert [tuple(map(int, w)) for w in words] == [numbers]
        command = browser.run("document.querySelector('#reselect [data-command]').textContent")
        assert command.endswith(f"/config.yaml --reselect --set cca.beta={beta:g}")
        tall = browser.run("['kept', 'dropped'].map(k => [...document.querySelectorAll(`#scores rect.${k}`)]"
                           ".reduce((sum, r) => sum + Number(r.getAttribute('height')), 0))")  # fmt: skip
        assert tall[0] / sum(tall) == pytest.approx(now.mean(), abs=0.01)  # every score lies on the axis here
        marks = browser.run("[...document.querySelectorAll('figure[data-score]')]"
                            ".map(f => [Number(f.dataset.score), f.dataset.kept, f.dataset.change ?? ''])")  # fmt: skip
        assert len(marks) == 12
        for score, was, change in marks:
            assert change == {("1", False): "would leave", ("0", True): "would enter"}.get((was, score >= cut), "")
    browser.run("document.querySelector('[data-reset]').click()")
    assert told(browser).endswith("as in this run.")
    assert browser.run("document.querySelectorAll('[data-change]').length") == 0
    assert browser.run("document.querySelector('#beta').value") == "0.4"
    assert browser.troubles() == []


def test_many_scores_are_counted_about(browser: Browser, full: bytes, tmp_path: Path) -> None:
    scores = np.random.default_rng(1).normal(80, 20, EXACT + 10_000)
    made = slider(Run("x"), scores, scores >= 60, (0.0, 60.0, 200.0))
    assert made is not None
    data = re.compile(rb'(<script type="application/json" id="scores-data">).*?(</script>)')
    page = data.sub(lambda m: m[1] + made.data.encode() + m[2], full)
    (tmp_path / "many.html").write_bytes(page)
    browser.open(tmp_path / "many.html", 1300)
    browser.run("document.querySelector('#beta').focus()")
    browser.key("ArrowRight", 3)
    share = float(browser.run("document.querySelector('#beta').value"))
    cut = scores.min() + np.ptp(scores) * share
    words = re.findall(r"about ([\d,]+) of 30,000 scored tiles kept \(\d+ %\), about ([\d,]+) enter", told(browser))
    numbers = [int(w.replace(",", "")) for w in words[0]]
    assert numbers[0] == pytest.approx((scores >= cut).sum(), abs=20)
    assert numbers[1] == pytest.approx(((scores >= cut) & (scores < 60)).sum(), abs=20)


def test_two_pictures_in_one(browser: Browser, file: Path) -> None:
    browser.open(file, 1300)
    inside = "#samples .sample .stage"
    same = (
        "(side, layer) => document.querySelector(`#samples .sample .stage img.${side}`).src === "
        "document.querySelector(`#samples .sample figure[data-layer=${layer}] img`).src"
    )
    assert browser.run(f"[({same})('left', 'sar'), ({same})('right', 'enhanced')]") == [True, True]
    left, top, width, height = browser.box(inside)
    browser.drag((left + width / 2, top + 40), (left + width * 0.25, top + 40))
    assert browser.run(f"document.querySelector('{inside} img.right').style.clipPath") == "inset(0px 0px 0px 25%)"
    seen = picture(browser, (left, top, width, height))
    split = round(width * 0.25)
    first, second = seen[60:-40, 4 : split - 20].mean((0, 1)), seen[60:-40, split + 20 : -4].mean((0, 1))
    assert first[0] > first[1] + 10  # SAR is shown in red tones, the forest in green ones
    assert second[1] > second[0]
    browser.run(f"document.querySelector('{inside} input').focus()")
    browser.key("Home")
    browser.key("ArrowRight", 4)
    assert browser.run(f"document.querySelector('{inside} input').value") == "2"
    browser.run("document.querySelector('#samples .sample input[name^=left]').focus()")
    browser.key("ArrowRight", 2)  # from SAR over Translated to Enhanced
    browser.run("document.querySelector('#samples .sample input[name^=right][value=true]').click()")
    assert browser.run(f"[({same})('left', 'enhanced'), ({same})('right', 'true')]") == [True, True]
    label = browser.run(f"document.querySelector('{inside} input').getAttribute('aria-label')")
    assert label == "Border between Enhanced and True"
    assert browser.run("document.querySelectorAll('#samples .stage').length") == 5
    assert browser.troubles() == []


def test_layers_of_the_mosaic(browser: Browser, file: Path) -> None:
    browser.open(file, 360)
    buttons = browser.run("[...document.querySelectorAll('#mosaic input[name^=right]')].map(r => r.value)")
    assert buttons == ["sar", "translated", "true", "error", "valid"]
    assert browser.run("[...document.querySelectorAll('#mosaic .looks figure')].every(f => f.hidden)")
    for name, value in (("right", "error"), ("mode", "fade")):
        browser.run(f"document.querySelector('#mosaic input[name^={name}][value={value}]').click()")
    browser.run("document.querySelector('#mosaic .stage input').focus()")
    browser.key("End")
    browser.key("ArrowLeft", 40)
    assert browser.run("document.querySelector('#mosaic .stage img.right').style.opacity") == "0.8"
    assert browser.run("document.querySelector('#mosaic .captions').textContent").startswith(
        "Typical error: 0 to 500 DN"
    )
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.troubles() == []


def test_without_scripts_it_still_says_everything(browser: Browser, file: Path) -> None:
    browser.open(file, 360, scripts=False)
    tree = browser("DOM.getDocument", depth=-1)["root"]["nodeId"]

    def heights(selector: str) -> list[float]:
        """Of all elements that fit; 0 for those that are not shown."""
        found = browser("DOM.querySelectorAll", nodeId=tree, selector=selector)["nodeIds"]
        out = []
        for node in found:
            try:
                out.append(browser("DOM.getBoxModel", nodeId=node)["model"]["height"])
            except AssertionError:  # which has no box
                out.append(0)
        return out

    assert heights("#reselect") == [0]
    assert set(heights(".compare")) == {0}
    assert heights("#mosaic .stage") == []
    assert all(h > 20 for h in heights("#mosaic .looks img, #samples .row img"))
    assert len(heights("#samples .row img")) == 25
    assert all(h > 10 for h in heights("noscript p"))
