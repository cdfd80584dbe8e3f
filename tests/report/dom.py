"""A small tree of an HTML page for tests, and what every page must keep."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

SECTIONS = ("run", "kept", "scores", "pairs", "training", "mosaic", "samples", "metrics", "cost", "quarantined",
            "config")  # fmt: skip
VOID = {"meta", "link", "img", "input", "br"}


@dataclass
class Node:
    tag: str
    attrs: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str = "", **attrs: str) -> list[Node]:
        """Descendants by tag and attributes (`data_x` for data-x, `class_` for one of its classes)."""

        def fits(n: Node) -> bool:
            wanted = {k.rstrip("_").replace("_", "-"): v for k, v in attrs.items()}
            named = set(n.attrs.get("class", "").split()) >= set(wanted.pop("class", "").split())
            return named and (not tag or n.tag == tag) and all(n.attrs.get(k) == v for k, v in wanted.items())

        return [n for n in self.walk() if n is not self and fits(n)]

    def one(self, tag: str = "", **attrs: str) -> Node:
        (found,) = self.all(tag, **attrs)
        return found

    @property
    def text(self) -> str:
        """What a person reads of it: no script."""
        words = " ".join(
            c if isinstance(c, str) else c.text for c in self.children if isinstance(c, str) or c.tag != "script"
        )
        return re.sub(r"\s+", " ", words).strip().replace("\N{MINUS SIGN}", "-")


class Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {k: v or "" for k, v in attrs})
        self.stack[-1].children.append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.stack[-1].children.append(Node(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.stack[-1].tag, f"</{tag}> closes <{self.stack[-1].tag}>"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.stack[-1].children.append(data)


def parse(page: bytes) -> Node:
    parser = Parser()
    parser.feed(page.decode())
    parser.close()
    assert len(parser.stack) == 1, [n.tag for n in parser.stack]
    return parser.stack[0]


def scripts(root: Node) -> None:
    """No script but JSON that nothing leaves, and one that the page's own policy names by its hash, alone."""
    policy = root.one("meta", http_equiv="Content-Security-Policy").attrs["content"]
    allowed = [d.split()[1:] for d in policy.split(";") if d.split()[0] == "script-src"]
    running = []
    for n in root.all("script"):
        text = "".join(c for c in n.children if isinstance(c, str))
        if n.attrs.get("type") == "application/json":
            assert set(n.attrs) == {"type", "id"}
            assert "<" not in text
            json.loads(text)
        else:
            assert not n.attrs
            digest = hashlib.sha256(text.encode()).digest()
            running.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    assert allowed == ([running] if running else [])
    assert len(running) <= 1


def harmless(page: bytes) -> Node:
    """Parse, and check what every page must keep: no script but `scripts`, no handler, nothing fetched, no id twice."""
    root = parse(page)
    scripts(root)
    for n in root.walk():
        assert n.tag not in {"iframe", "object", "embed", "base"}
        assert not [a for a in n.attrs if a.startswith("on")], n
        for a in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert n.attrs.get(a, "#").startswith(("#", "data:")), n.attrs
        if n.tag == "a" and n.attrs["href"].startswith("data:"):
            assert n.attrs["href"].startswith("data:text/csv;charset=utf-8;base64,")
            assert re.fullmatch(r"[a-z0-9_-]+\.csv", n.attrs["download"])
        assert "url(" not in n.attrs.get("style", "").replace("url(#", "")
    assert "url(" not in root.one("style").text
    assert "@import" not in root.one("style").text
    assert "default-src 'none'" in root.one("meta", http_equiv="Content-Security-Policy").attrs["content"]
    ids = [n.attrs["id"] for n in root.walk() if "id" in n.attrs]
    assert len(ids) == len(set(ids))
    return root


def table(link: Node) -> list[list[str]]:
    """The rows of a CSV that a link of the page holds."""
    data = base64.b64decode(link.attrs["href"].partition(",")[2])
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


def safe(page: bytes) -> Node:
    """`harmless`, and the report's sections in order, each link of its navigation one of them, at a bearable size."""
    root = harmless(page)
    ids = [n.attrs["id"] for n in root.walk() if "id" in n.attrs]
    sections = [n.attrs["id"] for n in root.all("section")]
    assert [s for s in sections if s != "field"] == list(SECTIONS)  # not every run was graded
    assert {n.attrs["href"][1:] for n in root.one("nav").all("a")} <= set(ids)
    assert len(page) < 10_000_000
    return root
