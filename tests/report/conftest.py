"""One full run folder and its page, shared by the tests of the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_run
import numpy as np
import pytest
from cdp import Browser
from dom import Node, safe

from sar2eo_dist import sources
from sar2eo_dist.report import page as report


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.make(tmp_path_factory.mktemp("report"), 64)


@pytest.fixture(scope="session")
def full(run: Path) -> bytes:
    return report.build(str(run))


@pytest.fixture(scope="session")
def page(full: bytes) -> Node:
    return safe(full)


@pytest.fixture(scope="session")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of pages."""
    browser = Browser(chromium, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def some(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run folder with the named parts of the full one; its tiles are read without files."""
    eo = sources.EO(fake_run.scene(1.0).astype(np.uint16), None)
    monkeypatch.setattr(sources, "read_eo", lambda ref: eo)

    def copy(*parts: str) -> Path:
        for part in parts:
            source, target = run / part, tmp_path / "run" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (tmp_path / "run").mkdir(exist_ok=True)
        return tmp_path / "run"

    return copy
