"""Put the figures into `docs/explanation/continual.md`, from `benchmarks/results/continual.json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks import put, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "continual.json"
PAGE = ROOT / "docs" / "explanation" / "continual.md"
COMMAND = (
    ".venv/bin/python -m benchmarks.studies.continual --data ../shared/data --json benchmarks/results/continual.json"
)
ORDER = (
    "joint",
    "replay of a tenth",
    "closed-form",
    "oa-adapter",
    "o-lora",
    "sequential",
)

NAMES = {"joint": "`replay` of all rows, which is `joint`", "replay of a tenth": "`replay` of a tenth of the rows"}
METHODS_THAT_KEEP = ("joint", "replay of a tenth", "closed-form")


def load() -> dict[str, Any]:
    """Return the study's JSON."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    return found


def cells(found: Mapping[str, Any], sequence: str, method: str) -> list[dict[str, Any]]:
    """Return the cells of a method in a sequence, all orders and seeds."""
    wanted = (key.split("|") for key in found["cells"])
    return [found["cells"]["|".join(key)] for key in wanted if key[0] == sequence and key[3] == method]


def average(cell: Mapping[str, Any], case: str) -> float:
    """AA in points."""
    last = cell[case][-1]
    return 100 * sum(last) / len(last)


def measured(found: Mapping[str, Any], sequence: str, method: str) -> dict[str, list[float]]:
    """Return AA and BWT in points, with the task known and unknown, of each cell."""
    made: dict[str, list[float]] = {}
    for case in ("known", "unknown"):
        of_method = cells(found, sequence, method)
        made[f"{case} AA"] = [average(cell, case) for cell in of_method]
        made[f"{case} BWT"] = [
            100 * cell[f"{case}_measures"]["backward_transfer"] for cell in of_method if f"{case}_measures" in cell
        ]
    return made


def shown(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def results(found: Mapping[str, Any], sequence: str) -> str:
    """Return the table of a sequence."""
    lines = []
    for name in ORDER:
        of_method = cells(found, sequence, name)
        if not of_method:
            continue
        of_cells, sizes = measured(found, sequence, name), [cell["sizes"][-1] for cell in of_method]
        parameters = statistics.mean(size["parameters"] for size in sizes)
        adapters = [size["adapter_parameters"] for size in sizes if "adapter_parameters" in size]
        lines.append(
            [
                NAMES.get(name, f"`{name}`"),
                *(shown(of_cells[column]) for column in ("known AA", "known BWT", "unknown AA", "unknown BWT")),
                f"{parameters / 1e6:.2f} M" + (f" ({statistics.mean(adapters) / 1e3:.0f} k)" if adapters else ""),
                f"{statistics.mean(size['bytes_kept'] for size in sizes) / 1e6:.1f} MB"
                if name in METHODS_THAT_KEEP
                else "0",
                str(len(of_method)),
            ]
        )
    head = [
        "",
        "known: AA",
        "BWT",
        "unknown: AA",
        "BWT",
        "parameters (of adapters that act)",
        "kept of earlier tasks",
        "runs",
    ]
    return table(head, lines)


def bars(found: Mapping[str, Any]) -> str:
    """Return which of the promises hold."""
    lines = []
    for sequence in ("five tasks", "ten domains"):
        of = {name: measured(found, sequence, name) for name in ORDER if cells(found, sequence, name)}
        if not {"oa-adapter", "o-lora", "closed-form", "joint"} <= of.keys():
            continue
        for case in ("known", "unknown"):
            ours, theirs = (statistics.mean(of[name][f"{case} AA"]) for name in ("oa-adapter", "o-lora"))
            lines.append(
                [
                    sequence,
                    f"`oa-adapter` ≥ `o-lora` in AA, task {case}",
                    f"{ours - theirs:+.1f}",
                    _said(ours >= theirs),
                ]
            )
        budgets = [
            statistics.mean(c["sizes"][-1]["adapter_parameters"] for c in cells(found, sequence, name))
            for name in ("oa-adapter", "o-lora")
        ]
        lines.append(
            [
                sequence,
                "… at equal or fewer parameters of adapters",
                f"{100 * (budgets[0] / budgets[1] - 1):+.0f} %",
                _said(budgets[0] <= budgets[1]),
            ]
        )
        transfer = statistics.mean(of["closed-form"]["known BWT"])
        lines.append([sequence, "`closed-form`, task known: BWT ≥ −0.5", f"{transfer:+.1f}", _said(transfer >= -0.5)])
        gap = statistics.mean(of["closed-form"]["known AA"]) - statistics.mean(of["joint"]["known AA"])
        lines.append(
            [sequence, "`closed-form`, task known: AA within 2 points of joint", f"{gap:+.1f}", _said(gap >= -2)]
        )
    return table(["", "promised", "measured", ""], lines)


def _said(holds: bool) -> str:
    return "holds" if holds else "**missed**"


def sensitivity(found: Mapping[str, Any]) -> str:
    """Return accuracies of the trials, with the share of dimensions that are dead."""
    lines = []
    for key, cell in found["trials"].items():
        name, _, values = key.partition(" ")
        words = json.loads(values)
        chosen = {
            **{field: found["methods"][name][field] for field in ("orthogonality", "threshold", "learning_rate")},
            **words,
        }
        dead = cell["sizes"][-1].get("dead", 0.0)
        lines.append(
            [
                f"`{name}`",
                f"{chosen['orthogonality']:g}",
                f"{chosen['threshold']:g}" if name == "oa-adapter" else "–",
                f"{chosen['learning_rate']:g}",
                f"{average(cell, 'known'):.1f}",
                f"{average(cell, 'unknown'):.1f}",
                f"{100 * dead:.0f} %",
            ]
        )
    return table(["", "λ", "τ₀", "learning rate", "known: AA", "unknown: AA", "dead"], lines)


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Return each block of figures by its name in the page."""
    rows, epochs = found["settings"]["rows"], found["settings"]["epochs"]
    return {
        "settings": "all-MiniLM-L6-v2, `mean` of the embeddings and layers 3–6, NF4. Five tasks: AG News, SST-2, "
        f"CLINC150, SMS spam, QNLI, {rows['five tasks']:,} rows each. {epochs} epochs; adapters of rank "
        f"{found['settings']['rank']}. Mean ± standard deviation over orders and seeds, in points of accuracy on test "
        "rows. `closed-form` is linear. All labels are readable and p_b is constant. Parameters are those of a "
        "prediction; at 8 bits each is a byte of a download. Made by\n\n"
        f"    {COMMAND}\n\nand, for λ and τ₀, with `--choose`.",
        "five tasks": results(found, "five tasks"),
        "bars": bars(found),
        "sensitivity": sensitivity(found),
    }


def written(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with its figures."""
    return put(page, blocks(found))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8"), load()), "utf-8")
