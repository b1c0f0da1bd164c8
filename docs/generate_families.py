"""Put the table into `docs/reference/families.md`, from the models of the conformance suite."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from blocks import put, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "families.md"


def written(page: str, head: list[str], rows: list[list[str]]) -> str:
    """Return the page with its table."""
    return put(page, {"families": table(head, rows)})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.support.families import HEAD, all_cells

    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(written(PAGE.read_text("utf-8"), HEAD, all_cells(Path(folder))), "utf-8")
