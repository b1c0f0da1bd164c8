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

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "reference" / "comparison.md"

TASKS = {"sst2_sentences": "SST-2 sentences", "mrpc": "MRPC", "clinc150": "CLINC150"}
PEER, PARTITION = "fed-lora", "alpha=0.1"
METHODS = {
    "pae": "side-tuning in closed form",
    "additive": "side-tuning by steps",
    "upper-layers": "side-tuning, `upper-layers`",
    PEER: "LoRA by FedAvg",
}
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
    """Return the README's table: costs at equal quality, of a language model too, and a task on which LoRA is ahead."""
    tasks, seeds = measured(found), _seeds(found, "mrpc")
    target = tasks["mrpc"]["tables"][PARTITION]["targets"][TARGET]
    ours, lora = target["costs"]["pae"], target["costs"][PEER]
    costs = [(ours[name], lora[name]) for name in ("gflops", "peak_mb")]
    costs.append((ours["mb_up"] + ours["mb_down"], lora["mb_up"] + lora["mb_down"]))
    names = [
        f"MiniLM, MRPC, skewed labels, {seeds}, until accuracy {target['metric']:.3f}: computing",
        "memory above the loaded model",
        "bytes up and down",
    ]
    rows = [
        [name, f"{_short(one)} {unit}", f"{_short(other)} {unit}", f"{100 * (1 - one / other):.0f} % less"]
        for name, unit, (one, other) in zip(names, ("GFLOP", "MB", "MB"), costs, strict=True)
    ]
    rows.append(language_model())
    quality = tasks["sst2_sentences"]["tables"]["iid"]["quality"]
    shown = {name: (f"{quality[name]['mean']:.3f}", f"{quality[name]['spread']:.3f}") for name in ("pae", PEER)}
    ahead = 100 * (float(shown[PEER][0]) - float(shown["pae"][0]))
    rows.append(
        [
            f"MiniLM, SST-2, IID devices, {_seeds(found, 'sst2_sentences')}: best accuracy",
            " ± ".join(shown["pae"]),
            f"**{shown[PEER][0]}** ± {shown[PEER][1]}",
            f"LoRA is {ahead:.1f} points ahead",
        ]
    )
    head = ["10 devices, 1,000 training rows, models in bf16", "side-tuning", "LoRA by FedAvg", "difference"]
    return table(head, rows)


def language_model() -> list[str]:
    """Return the row of SmolLM2: what upper layers compute, and LoRA until its best round, which is as good."""
    result = json.loads((RESULTS / "language_model.json").read_text("utf-8"))["sst2"]
    ours, lora = result["upper layers"], result["LoRA by FedAvg"]
    best = max(lora["rounds"], key=lambda number: lora["rounds"][number])
    one, other = ours["flops a device"] / 1e9, lora["flops a device"] / 1e9 * int(best) / len(lora["rounds"])
    return [
        f"SmolLM2-135M (`upper-layers`), SST-2, skewed labels, 1 seed, until accuracy {ours['metric']:.3f} and "
        f"{lora['rounds'][best]:.3f}: computing",
        f"{_short(one)} GFLOP",
        f"{_short(other)} GFLOP",
        f"{100 * (1 - one / other):.0f} % less",
    ]


def _seeds(found: Mapping[str, Any], task: str) -> str:
    count = len(found[f"cost_to_target_{task}"]["settings"]["seeds"])
    return "1 seed" if count == 1 else f"{count} seeds"


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
