"""A headless Chromium driven through its debugging pipe: real pages, real input, no package needed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Tab": 9, " ": 32}
PATIENCE = 20.0  # seconds for an answer
#: what any page must show: nothing beyond its right edge, all pictures, plots whose words can be read
LOOK = """(() => {
  for (const d of document.querySelectorAll('details')) d.open = true;
  return {
    scroll: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg')
      && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className),
    images: [...document.images].every(i => i.complete && i.naturalWidth > 0), count: document.images.length,
    paper: getComputedStyle(document.body).backgroundColor,
    font: Math.min(...[...document.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect().height)),
  };
})()"""


class Browser:
    """One browser with one tab. `events`: what it told on its own, as (method, params)."""

    def __init__(self, chromium: str, folder: Path) -> None:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()

        def connect() -> None:  # Chromium listens on 3 and answers on 4
            first, second = (fcntl.fcntl(f, fcntl.F_DUPFD, 10) for f in (commands, answers))
            os.dup2(first, 3)
            os.dup2(second, 4)

        env = os.environ | {"HOME": str(folder)}
        # a blank page, since the usual start page fetches things of its own
        own = ("--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank")
        command = [chromium, *FLAGS, *own]
        self._process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._news = threading.Condition()
        self._number = 0
        self._session = ""
        threading.Thread(target=self._listen, daemon=True).start()
        page = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        with self._news:
            assert self._news.wait_for(lambda: self._number in self._answers, PATIENCE), f"no answer to {method}"
            answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def _listen(self) -> None:
        rest = b""
        while data := os.read(self._from, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for text in messages:
                message = json.loads(text)
                with self._news:
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self.events.append((message["method"], message["params"]))
                    self._news.notify_all()

    def open(self, page: Path, width: int, dark: bool = False, scripts: bool = True) -> None:
        """Load a page anew and wait until it is there; what was told before is forgotten."""
        height = 800
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        # nothing scrolls smoothly: what is measured stays where it is
        media = {"prefers-color-scheme": ["light", "dark"][dark], "prefers-reduced-motion": "reduce"}
        self("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in media.items()])
        self("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self("Page.navigate", url=page.as_uri())
        with self._news:
            there = lambda: any(m == "Page.loadEventFired" for m, _ in self.events)  # noqa: E731
            assert self._news.wait_for(there, PATIENCE), "the page did not load"

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, awaited."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def key(self, name: str, times: int = 1) -> None:
        """Press and release a key."""
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=KEYS[name])

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width, height of an element in the window, after scrolling it there."""
        return tuple(self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        ))  # fmt: skip

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The mouse, pressed at one place and let go at another (one and the same: a click)."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def troubles(self) -> list[str]:
        """What the console said that it should not: errors, violations of the page's own policy, exceptions."""
        told = []
        for method, params in list(self.events):
            if method == "Runtime.exceptionThrown":
                told.append(json.dumps(params["exceptionDetails"])[:500])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
                told.append(params["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                told.append(json.dumps(params["args"])[:500])
        return told

    def fetched(self) -> list[str]:
        """URLs of requests since the page was opened, data: URIs apart."""
        urls = [p["request"]["url"] for m, p in list(self.events) if m == "Network.requestWillBeSent"]
        return [u for u in urls if not u.startswith("data:")]

    def fits(self, page: Path, width: int, dark: bool) -> int:
        """Open a page and check LOOK, its theme, and that it neither complains nor fetches; the number of its pictures."""
        self.open(page, width, dark)
        seen = self.run(LOOK)
        assert seen["scroll"] == width
        assert seen["wide"] == []
        assert seen["images"] is True
        assert seen["font"] >= 9
        assert (sum(map(int, re.findall(r"\d+", seen["paper"])[:3])) < 150) == dark
        assert self.troubles() == []
        assert self.fetched() == [page.as_uri()]
        return int(seen["count"])

    def close(self) -> None:
        self("Browser.close")
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        os.close(self._to)
