"""Put the comparison's figures into README.md and `docs/reference/comparison.md`, from the protocols' JSON.

python docs/generate_comparison.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks import put, table

from mobillm_flower.evaluation.compare.cost_to_target import BOTH as TARGET
from mobillm_flower.evaluation.compare.cost_to_target import COLUMNS as COSTS
from mobillm_flower.evaluation.compare.cost_to_target import MAJORITY

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "reference" / "comparison.md"

TASKS = {"sst2_sentences": "SST-2 sentences", "mrpc": "MRPC", "clinc150": "CLINC150"}
PEER, PARTITION = "fed-lora", "alpha=0.1"
METHODS = {"pae": "side-tuning, `pae`", "upper-layers": "side-tuning, `upper-layers`", PEER: "LoRA by FedAvg"}
PER_TASK = ("cost_to_target", "peers", "quality_under_budget", "fleet_clock")
PROTOCOLS = ("memory", "memory_opt-1.3b", "network", "quantization", "ablation", "robustness")


def load() -> dict[str, dict[str, Any]]:
    """Return the results that are there, by name of their file."""
    names = [*(f"{protocol}_{task}" for protocol in PER_TASK for task in TASKS), *PROTOCOLS]
    files = {name: RESULTS / f"{name}.json" for name in names}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}


def measured(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return of each task what was measured."""
    return {
        task: found[name]["figures"]["tasks"][task] for task in TASKS if (name := f"cost_to_target_{task}") in found
    }


def changes(result: Mapping[str, Any], method: str) -> dict[str, float]:
    """Return a method's costs until the target, α = 0.1, as shares of FedLoRA's."""
    costs = result["tables"][PARTITION]["targets"][TARGET]["costs"]
    ours, peer = ({**costs[name], "mb_both": costs[name]["mb_up"] + costs[name]["mb_down"]} for name in (method, PEER))
    return {name: ours[name] / peer[name] for name in (*COSTS, "mb_both")}


def readme(found: Mapping[str, Any]) -> str:
    """Return the README's table."""
    head = ["MiniLM, 10 devices, α = 0.1", "accuracy", *COSTS.values(), "MB both ways"]
    rows = []
    for task, result in measured(found).items():
        settings = found[f"cost_to_target_{task}"]["settings"]
        (cut,) = [one["num_train"] for one in settings["tasks"] if one["name"] == task]
        tables, seeds = result["tables"][PARTITION], len(settings["seeds"])
        central = [max(point["metric"] for point in points) for points in result["central"]]
        target = tables["targets"][TARGET]
        title = f"**{TASKS[task]}**, {cut:,} rows, {seeds} seed{'s' if seeds > 1 else ''}"
        quality = f"LoRA in one place {sum(central) / len(central):.3f}"
        quality += f", {MAJORITY} {tables['quality'][MAJORITY]['mean']:.3f}"
        rows.append([f"{title}; target {target['metric']:.3f}", quality, *[""] * (len(COSTS) + 1)])
        for method, title in METHODS.items():
            if method not in target["costs"]:
                continue
            cost, quality = target["costs"][method], tables["quality"][method]
            spread = "" if quality["spread"] is None else f" ± {quality['spread']:.3f}"
            values = [*(cost[name] for name in COSTS), cost["mb_up"] + cost["mb_down"]]
            rows.append([title, f"{quality['mean']:.3f}{spread}", *map(_short, values)])
    return table(head, rows)


def shares(found: Mapping[str, Any]) -> str:
    """Return what side-tuning pays as a share of what FedLoRA pays."""
    names = {**COSTS, "mb_both": "MB both ways"}
    rows = []
    for task, result in measured(found).items():
        there = result["tables"][PARTITION]["targets"][TARGET]["costs"]
        for method in [name for name in METHODS if name in there and name != PEER]:
            change = changes(result, method)
            rows.append([f"{TASKS[task]}, {METHODS[method]}", *(_percent(change[name]) for name in names)])
    return table(["change against LoRA by FedAvg", *names.values()], rows)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−")


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Return each block of the page."""
    made = {"shares": shares(found)}
    for name, result in found.items():
        shown = [f"**{one['title']}**\n\n{table(one['columns'], one['rows'])}" for one in result["tables"]]
        source = (
            f"[benchmarks/results/{name}.json](../../benchmarks/results/{name}.json), commit {result['commit'][:12]}."
        )
        made[name] = "\n".join([*shown, source])
    return made


def main() -> None:
    """Write both pages."""
    found = load()
    README.write_text(put(README.read_text("utf-8"), {"comparison": readme(found)}), "utf-8")
    PAGE.write_text(put(PAGE.read_text("utf-8"), blocks(found)), "utf-8")


if __name__ == "__main__":
    main()
