"""Put the comparison's figures into README.md and `docs/reference/comparison.md`, from the protocols' JSON.

python docs/generate_comparison.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks import put, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "reference" / "comparison.md"

TASKS = {"sst2_sentences": "SST-2 sentences", "mrpc": "MRPC", "clinc150": "CLINC150"}
OURS, PEER, PARTITION = "pae", "fed-lora", "alpha=0.1"
TARGET = "best that side-tuning and fed-lora reach"
COSTS = {
    "passes": "passes over a device's samples",
    "gflops": "computing, GFLOP",
    "seconds": "device seconds",
    "peak_mb": "peak memory above the model, MB",
    "mb_up": "up, MB",
    "mb_down": "down, MB",
    "wall_seconds": "wall seconds (modelled)",
}
PROTOCOLS = ("memory", "network", "quantization", "ablation", "quality_under_budget", "robustness", "fleet_clock")


def load() -> dict[str, dict[str, Any]]:
    """Return the results that are there, by name of their file."""
    names = [f"cost_to_target_{task}" for task in TASKS] + list(PROTOCOLS)
    files = {name: RESULTS / f"{name}.json" for name in names}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}


def measured(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return of each task what was measured."""
    return {
        task: found[name]["figures"]["tasks"][task] for task in TASKS if (name := f"cost_to_target_{task}") in found
    }


def pair(result: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what side-tuning and FedLoRA pay until the best that both reach, α = 0.1."""
    costs = result["tables"][PARTITION]["targets"][TARGET]["costs"]
    return costs[OURS], costs[PEER]


def changes(result: Mapping[str, Any]) -> dict[str, float]:
    """Return side-tuning's costs as shares of FedLoRA's."""
    ours, peer = pair(result)
    both = [side["mb_up"] + side["mb_down"] for side in (ours, peer)]
    return {name: ours[name] / peer[name] for name in COSTS} | {"mb_both": both[0] / both[1]}


def readme(found: Mapping[str, Any]) -> str:
    """Return the README's table."""
    results = measured(found)
    head = ["MiniLM, 10 devices, α = 0.1: side-tuning / FedLoRA"]
    rows = [["training rows, seeds"], ["best metric"], ["LoRA in one place"], ["target: the best both reach"]]
    for task, result in results.items():
        settings = found[f"cost_to_target_{task}"]["settings"]
        (cut,) = [one["num_train"] for one in settings["tasks"] if one["name"] == task]
        seeds = len(settings["seeds"])
        quality = result["tables"][PARTITION]["quality"]
        central = [max(point["metric"] for point in points) for points in result["central"]]
        head.append(TASKS[task])
        rows[0].append(f"{cut:,}, {seeds} seed{'s' if seeds > 1 else ''}")
        rows[1].append(f"{quality[OURS]['mean']:.3f} / {quality[PEER]['mean']:.3f}")
        rows[2].append(f"{sum(central) / len(central):.3f}")
        rows[3].append(f"{result['tables'][PARTITION]['targets'][TARGET]['metric']:.3f}")
    for name, title in (COSTS | {"mb_both": "both ways, MB"}).items():
        line = [title]
        for result in results.values():
            ours, peer = ({**side, "mb_both": side["mb_up"] + side["mb_down"]} for side in pair(result))
            line.append(f"{_short(ours[name])} / {_short(peer[name])} ({_change(ours[name] / peer[name])})")
        rows.append(line)
    return table(head, rows)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−")


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Return each block of the page."""
    made = {}
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
