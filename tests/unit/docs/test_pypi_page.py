"""What PyPI shows: no link or picture that holds in the repository alone; README's code has its imports."""

from __future__ import annotations

import re
import tomllib

from tests.support.pages import ROOT


def test_the_page_of_pypi_has_absolute_links_alone() -> None:
    name = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["readme"]
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text("utf-8"))
    assert links
    assert all(link.startswith("https://") for link in links)


def test_every_block_of_readme_runs_by_itself() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
