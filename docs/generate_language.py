"""Put the figures into `docs/explanation/language-modelling.md`, from `benchmarks/results/language*.json`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from blocks import put

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "explanation" / "language-modelling.md"

TASKS = {"dialogsum": "DialogSum, summaries", "shakespeare": "Shakespeare, speeches"}
ROWS = {
    "label": "`label`",
    "label-causal": "`label`, side network `causal`",
    "label-pruned": "`label`, started from pruned layers",
    "difference-logit": "`difference`, `loss.name=logit`",
    "difference-square": "`difference`, `loss.name=square`",
    "difference-square-refreshed-1": "the same, refreshed once",
    "difference-square-refreshed-2": "refreshed twice",
    "difference-square-refreshed-3": "refreshed three times",
    "lora": "LoRA, centralized",
}


def load() -> dict[str, dict[str, Any]]:
    """Return the benchmarks' JSON by name, rows of their own files among the others."""
    names = ("language", "language_causal", "language_pruned", "language_memory", "language_generate")
    found = {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in names}
    for task, measured in found["language"]["tasks"].items():
        measured["cross_entropy"] |= {
            row: found[name]["tasks"][task]["cross_entropy"][row]
            for name, row in (("language_causal", "label-causal"), ("language_pruned", "label-pruned"))
        }
    return found


def gain(task: dict[str, Any], row: str) -> float:
    """Return the nats that a row's mean is below the base model."""
    return float(task["base"] - statistics.mean(task["cross_entropy"][row]))


def blocks(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return each block of figures by its name in the page."""
    tasks = found["language"]["tasks"]
    settings = found["language"]["settings"]
    lines = ["| | " + " | | ".join(TASKS.values()) + " | |", "|---|---|---|---|---|"]
    lines.append("| | nats a token | of LoRA's gain | nats a token | of LoRA's gain |")
    lines.append("| backbone alone | " + " | ".join(f"{tasks[name]['base']:.3f} | –" for name in TASKS) + " |")
    for row, title in ROWS.items():
        cells = []
        for name in TASKS:
            task = tasks[name]
            values = task["cross_entropy"][row]
            share = gain(task, row) / gain(task, "lora")
            cells += [f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}", f"{100 * share:.0f} %"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    first = tasks[next(iter(TASKS))]
    sent = {kind: values["activation_bytes_a_token"] for kind, values in first["sent"].items()}
    targets = {kind: values["target_bytes_a_token"] for kind, values in first["sent"].items()}
    told = [tasks[name]["tokens_told_by_corrections"] for name in TASKS]
    memory = {name: values["peak_bytes"] / 2**30 for name, values in found["language_memory"]["figures"].items()}
    made = found["language_generate"]["comparisons"]
    return {
        "figures": "\n".join(lines),
        "bytes": (
            f"Bytes up, a token in the loss: {sent['label']:.1f} of activations, and {targets['label']:.1f} with "
            f"`label` or {targets['difference']:.1f} with `difference` beside them. "
            f"Training texts: {settings['train']}, of "
            + " and ".join(f"{tasks[name]['sent']['label']['tokens']:,}" for name in TASKS)
            + f" tokens in the loss; test texts: {settings['test']}, of "
            + " and ".join(f"{tasks[name]['test_tokens']:,}" for name in TASKS)
            + " tokens."
        ),
        "told": (
            f"Measured on both data sets below, with corrections in NF4: {_range(told, 'nearest_row')} of tokens. The "
            f"plain guess, the largest entry of W·Δu, names {_range(told, 'largest_logit')}."
        ),
        "memory": (
            f"Measured, with AdamW, libraries and the process itself: {memory['label']:.1f} GiB under `label`, "
            f"{memory['difference']:.1f} GiB under `difference` with the logit loss."
        ),
        "generation": "\n".join(
            [
                "| side network | of the bare model's time, processor | spread | wall |",
                "|---|---|---|---|",
                *(
                    f"| `{name}` | {made[name + '_cpu']['ratio']:.3f} | {_spread(made[name + '_cpu'])} | "
                    f"{made[name]['ratio']:.3f} ({_spread(made[name])}) |"
                    for name in ("additive", "causal")
                ),
            ]
        ),
    }


def written(page: str, found: dict[str, dict[str, Any]]) -> str:
    """Return the page with its figures as the results say."""
    return put(page, blocks(found))


def _range(told: list[dict[str, float]], key: str) -> str:
    shares = sorted({f"{100 * values[key]:.0f}" for values in told}, key=float)
    return " to ".join(shares) + " %"


def _spread(comparison: dict[str, Any]) -> str:
    low, high = comparison["ratio_quartiles"]
    return f"{low:.3f} to {high:.3f}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8"), load()), "utf-8")
