"""A page as a test sees it: well-formed or not, its tags, its text, and what it would load."""

from __future__ import annotations

import html.parser
from pathlib import Path

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(html.parser.HTMLParser):
    """Parses a file; fails on a tag that is not closed, or closed in the wrong place.

    Attributes:
      tags: (name, attributes) of each, in order.
      texts: text by the name of the tag it is in.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> at {self.getpos()} closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open[-1] if self.open else "", []).append(data.strip())

    def text(self) -> str:
        """All that is read, without scripts and styles."""
        return "\n".join(t for tag, texts in self.texts.items() if tag not in ("script", "style") for t in texts)

    def loads(self) -> list[str]:
        """Addresses that opening the page would fetch."""
        values = [a[key] for _, a in self.tags for key in ("src", "href", "srcset", "poster", "action") if key in a]
        return [value for value in values if not value.startswith("data:")]
