"""Put the tables into `docs/explanation/privacy.md`, from `benchmarks/results/privacy.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blocks import put, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "privacy.json"
PAGE = ROOT / "docs" / "explanation" / "privacy.md"

EPSILONS = (1, 2, 4, 8, 16, None)
NAMES = {"sst2": "SST-2 sentences", "sms": "SMS spam (macro-F1)", "ag_news": "AG News, 10,000"}


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Return each table by its name in the page; what was not measured is a dash."""
    tasks = {name: found["tasks"][name] for name in NAMES if name in found["tasks"]}
    head = ["ε = " + ("∞" if e is None else str(e)) for e in EPSILONS]
    cost, against, steps, sizes = [], [], [], []
    for name, task in tasks.items():
        cells = {(c["text"], c["mechanism"], c["epsilon"]): c for c in task["cells"].values()}

        def row(text: str, mechanism: str, cells: dict[Any, Any] = cells) -> list[str]:
            return [_shown(cells.get((text, mechanism if e else "none", e))) for e in EPSILONS]

        for text, words in (("other sets", "other data sets"), ("package", "the package")):
            cost.append([NAMES[name], words, *row(text, "joint"), f"{task['majority']:.3f}"])
        against.append([NAMES[name], "one ε for both", *row("other sets", "joint")[:-1]])
        against.append([NAMES[name], "¾ε Gaussian + ¼ε labels", *row("other sets", "split")[:-1]])
        for epsilon, key in ((8, ("other sets", "joint", 8)), ("∞", ("other sets", "none", None))):
            cell = cells.get(key, {})
            steps.append([NAMES[name], f"{epsilon}", _shown(cell), _shown(cell.get("by_steps"))])
        sized = [cells.get(("other sets", "joint", e), {}).get("by_samples") for e in EPSILONS[:4]]
        known = next((rows for rows in sized if rows), [])
        for i, one in sorted(enumerate(known), key=lambda pair: int(pair[1]["samples"])):
            sizes.append([NAMES[name], f"{one['samples']:,}", *[_shown(rows[i] if rows else None) for rows in sized]])
    return {
        "cost": table(["task", "public text of", *head, "largest class"], cost),
        "split": table(["task", "mechanism", *head[:-1]], against),
        "steps": table(["task", "ε", "closed form", "additive network, by steps"], steps),
        "samples": table(["task", "samples", *head[:4]], sizes),
    }


def written(page: str, found: dict[str, Any]) -> str:
    """Return the page with its tables as the results say."""
    return put(page, tables(found))


def _shown(cell: Any) -> str:
    if not cell:
        return "–"
    spread = cell.get("spread")
    return f"{cell['mean']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))), "utf-8")
