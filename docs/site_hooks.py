"""Hooks of the site (mkdocs.yml): links that hold on GitHub hold in the site too.

Pages in docs/ link to files beside that folder, as `../README.md`, and the README links to `docs/index.md`. In the
site the Markdown files of the root are pages, and any other file that a page links to is copied.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {"README.md": "overview.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(?<=\]\()[^()\s#:]+")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages, and what pages link to outside of docs/."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    linked = {path for page in files.documentation_pages() for path in _linked(page)}
    for path in sorted(linked):
        if not path.startswith("docs/") and path not in ROOT_PAGES and (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """Turn links between files of the repository into links between files of the site."""

    def link(found: re.Match[str]) -> str:
        path = _resolve(page.file, found.group())
        if not (ROOT / path).is_file():
            return found.group()  # left for mkdocs to complain about
        target = ROOT_PAGES.get(path) or path.removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(link, markdown)


def _linked(page: File) -> Iterator[str]:
    for found in _LINK.finditer(page.content_string):
        yield _resolve(page, found.group())


def _resolve(page: File, link: str) -> str:
    """Return where a link of a page leads, as a path in the repository."""
    sources = {target: source for source, target in ROOT_PAGES.items()}
    here = sources.get(page.src_uri) or f"docs/{page.src_uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
