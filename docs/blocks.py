"""Figures in pages: each block stands between a comment that names it and `<!-- end -->`; scripts put it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

END = "<!-- end -->"


def put(page: str, blocks: Mapping[str, str]) -> str:
    """Return a page with its blocks replaced; ends the script where the page has no place for one."""
    for name, block in blocks.items():
        start = f"<!-- {name} -->\n"
        before, found_start, rest = page.partition(start)
        _, found_end, after = rest.partition(END)
        if not (found_start and found_end):
            raise SystemExit(f"the page must hold <!-- {name} --> … {END}")
        body = block.strip("\n")
        page = f"{before}{start}\n{body}\n\n{END}{after}"
    return page


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rows])
