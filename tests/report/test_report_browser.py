"""The page in a real browser: nothing runs off a narrow screen, the theme follows, the enlarged image works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip

# the page holds no script: one is put into a copy of it, in a frame as narrow as a small telephone
PROBE = """
const doc = document.querySelector('iframe').contentDocument, view = doc.defaultView, root = doc.documentElement;
const wide = [...doc.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg')
  && e.getBoundingClientRect().right > view.innerWidth + 1).map(e => e.tagName + '.' + e.className);
const box = doc.querySelector('.zoom input'), small = box.nextElementSibling.getBoundingClientRect().height;
box.click();
const big = box.nextElementSibling.getBoundingClientRect().height;
box.click();
const style = e => view.getComputedStyle(e);
const out = {
  width: view.innerWidth, scroll: root.scrollWidth, wide, small, big, tall: view.innerHeight,
  images: [...doc.images].every(i => i.complete && i.naturalWidth > 0),
  paper: style(doc.body).backgroundColor, ink: style(doc.body).color,
  tick: style(doc.querySelector('.plot text')).fill,
  font: Math.min(...[...doc.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect().height)),
};
document.body.dataset.found = JSON.stringify(out);
"""


def look(page: bytes, folder: Path, dark: bool) -> dict[str, object]:
    """What the probe finds in the page at 360 pixels of width."""
    inner = re.sub(r"<meta http-equiv=[^>]*>", "", page.decode())
    (folder / "inner.html").write_text(inner)
    frame = '<iframe src="inner.html" style="border:0;width:360px;height:800px"></iframe>'
    (folder / "outer.html").write_text(f"<body>{frame}<script>onload = () => {{ {PROBE} }}</script></body>")
    command = [
        str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", f"file://{folder / 'outer.html'}",
    ]  # fmt: skip
    env = os.environ | {"HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[:500] + done.stderr[-500:]
    return dict(json.loads(unescape(found[1])))


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", WCAG 2."""
    parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the report is not tried in a browser")
def test_report_in_a_browser(full: bytes, tmp_path: Path) -> None:
    for dark in (False, True):
        found = look(full, tmp_path, dark)
        assert found["width"] == 360
        assert found["scroll"] == 360
        assert found["wide"] == []
        assert found["images"] is True
        assert float(str(found["big"])) == pytest.approx(float(str(found["tall"])))
        assert float(str(found["small"])) < 400
        assert float(str(found["font"])) >= 9
        paper, *others = (luminance(str(found[k])) for k in ("paper", "ink", "tick"))
        assert (paper < 0.1) == dark
        for other in others:
            contrast = (max(paper, other) + 0.05) / (min(paper, other) + 0.05)
            assert contrast >= 4.5
