"""Put the tables of which vectors serve a solution into decision 0030, from `benchmarks/results/vectors.json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks import put, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "vectors.json"
PAGE = ROOT / "docs" / "decisions" / "0030-six-sets-and-three-backbones.md"


def load() -> dict[str, Any]:
    """Return the study's JSON."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    return found


def of_backbone(sets: Mapping[str, Any]) -> str:
    """Return the table of a backbone: each set's mean over draws, and the mean over sets; the best of each in bold."""
    names = list(sets)
    means: dict[str, list[float]] = {}
    for variant in sets[names[0]]:
        values = [statistics.mean(sets[name][variant]["metric"]) for name in names]
        means[variant] = [*values, statistics.mean(values)]
    best = [max(column) for column in zip(*means.values(), strict=True)]
    rows = []
    for variant, values in means.items():
        shown = [f"**{v:.3f}**" if v == top else f"{v:.3f}" for v, top in zip(values, best, strict=True)]
        rows.append([variant, f"{statistics.mean(sets[name][variant]['bytes'] for name in names):,.0f}", *shown])
    return table(["vectors", "bytes", *names, "mean"], rows)


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Return each backbone's table by its name in the page."""
    return {name: of_backbone(sets) for name, sets in found.items()}


def written(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with its tables."""
    return put(page, blocks(found))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8"), load()), "utf-8")
