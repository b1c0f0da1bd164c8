"""Put the tables into `docs/explanation/poisoning.md`, from `benchmarks/results/poisoning.json`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from blocks import put, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "poisoning.json"
PAGE = ROOT / "docs" / "explanation" / "poisoning.md"

FLEETS = {
    "sst2-iid": "sst2_sentences, IID",
    "sst2-skewed": "sst2_sentences, α = 0.1",
    "clinc150-iid": "clinc150, IID",
    "clinc150-skewed": "clinc150, α = 0.1",
}
COLUMNS = ("undefended", "defended", "left out")
CHOSEN = {
    "nobody lies": "nobody lies",
    "left out": "the liar left out",
    "split by the seed": "share chosen by the seed",
    "split by a secret": "share chosen by a secret (`trainer.validation-split`, the default)",
    "split by a secret, devices judged": "share chosen by a secret, devices judged",
}


def tables(cells: dict[str, Any]) -> dict[str, str]:
    """Return each table by its name in the page: mean ± standard deviation over seeds."""
    made = {}
    for block, cell in FLEETS.items():
        seeds = list(cells[cell].values())
        rows = []
        for kind in seeds[0]:
            found = [by[kind] for by in seeds]
            rows.append([kind, *(_shown([one.get(column) for one in found]) for column in COLUMNS)])
        made[block] = table(["test accuracy", "undefended", "defended", "the liars left out"], rows)
    sets = [cells[f"{name}, chosen for validation"].values() for name in ("sst2_sentences", "clinc150")]
    rows = [[words, *(_shown([by[kind] for by in seeds]) for seeds in sets)] for kind, words in CHOSEN.items()]
    made["chosen"] = table(["test accuracy", "SST-2", "CLINC150"], rows)
    return made


def written(page: str, cells: dict[str, Any]) -> str:
    """Return the page with its tables as the results say."""
    return put(page, tables(cells))


def _shown(found: list[Any]) -> str:
    if None in found:
        return "–"
    values = [accuracy for accuracy, _ in found]
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))["cells"]), "utf-8")
