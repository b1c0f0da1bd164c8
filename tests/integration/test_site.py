"""The site as `make docs` builds it: no network is needed, links lead somewhere, the search works from the folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support import browser
from tests.support.pages import ROOT

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page loads, what it links to, and what can be linked to in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.loaded += [values[name] for name in ("src", "srcset") if name in values]
        if "href" in values:
            (self.links if tag == "a" else self.loaded).append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert not answer.stderr.strip(), answer.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file.resolve(): Page(file) for file in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loaded = {address for page in pages.values() for address in page.loaded}
    assert loaded
    assert not [address for address in loaded if urlsplit(address).netloc]
    styles = [file.read_text("utf-8") for file in site.rglob("*.css")]
    assert styles
    assert not [
        found for style in styles for found in re.findall(r"""url\(["']?(?:https?:)?//[^)]*\)|@import[^;]*""", style)
    ]


def test_every_link_within_the_site_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        if file.name == "404.html":  # its addresses are those of a server's root
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{file.name}: {link}")
    assert not broken


def test_links_to_files_beside_docs_lead_into_the_site(site: Path, pages: dict[Path, Page]) -> None:
    assert "overview.html" in pages[(site / "index.html").resolve()].links  # ../README.md
    overview = pages[(site / "overview.html").resolve()]
    assert "index.html" in overview.links  # docs/index.md
    assert "images/flow.svg" in overview.loaded  # docs/images/flow.svg
    quality = pages[(site / "reference" / "quality.html").resolve()]
    assert "../benchmarks/results/quality.json" in quality.links


def test_the_search_works_in_a_page_opened_from_the_folder(site: Path, tmp_path: Path) -> None:
    address = (site / "how-to" / "extend.html").as_uri() + "?q=codec"
    found = browser.run(["--virtual-time-budget=20000", "--dump-dom", address], folder=tmp_path)
    results = re.findall(r'<a href="([^"]*)" class="md-search-result__link"', found)
    assert any("reference/api/activations.html" in result for result in results), found[-500:]
