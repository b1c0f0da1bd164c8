"""The documentation's pages and the code in them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def generator(name: str) -> ModuleType:
    """Import a script of `docs/`, which finds its neighbours as it does when it runs."""
    folder = str(ROOT / "docs")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Return (line of the fence, code) of each fenced block in a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, found.start()) + 1, found.group(1)) for found in fence.finditer(text)]


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Return (line of the fence, code) of each python block of a page."""
    return blocks(page.read_text("utf-8"), "python")


def section(page: Path, title: str) -> str:
    """Return the text under a second-level heading."""
    parts = re.split(r"^## (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]
