"""Reading a report as a parser does: elements in order, and the text of each section."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mobillm_flower.reports.html import write_report


class Page(HTMLParser):
    """A page's elements in order, the text of each of its sections, and all its text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.text = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "section":
            self._section = dict(attrs)["id"]
            self.sections[self._section] = ""
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: Any) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: Any) -> None:
        if self._open and self._open[-1] == "style":
            return
        self.text += f"{data}\n"
        if self._section:
            self.sections[self._section] += f"{data}\n"

    def all(self, tag: str, class_: str = "") -> list[dict[str, str]]:
        return [found for name, found in self.elements if name == tag and class_ in found.get("class", "")]


def page_of(path: Path) -> Page:
    """Write the report of a run's folder and read it."""
    return Page(write_report(path).read_text("utf-8"))
