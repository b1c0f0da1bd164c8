"""Accuracy against samples held: solved anew as devices' samples arrive, beside training by steps on the same samples.

    .venv/bin/python -m benchmarks.studies.samples_held --data FOLDER \
        --json benchmarks/results/samples_held.json

Ten devices' samples arrive one device after another, IID or with labels skewed by Dirichlet with α = 0.1. After each
count of samples both ways learn from what has come by then; accuracy is of all test rows. Three draws of samples and
partition. Results that are in the file are kept; `python docs/generate_samples_held.py` draws them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from benchmarks.studies.closed_form import CELLS, STEPS, Cell, measure, read
from mobillm_flower import load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.tasks.partitions import places

SETS = {"SST-2": CELLS["SST-2 sentences, 1,000 rows"], "CLINC150": CELLS["CLINC150, 3,000 rows"]}
HELD = {"SST-2": (50, 100, 200, 300, 500, 700, 1000), "CLINC150": (300, 500, 1000, 1500, 2000, 3000)}
WAYS: dict[str, list[str]] = {"closed form": [], "by steps": STEPS}
DEVICES = 10


def arrival(labels: Tensor, rows: int, seed: int, *, skewed: bool) -> Tensor:
    """Return the places of `rows` drawn samples in the order in which their devices' samples arrive."""
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:rows]
    words = ["data.label-column=label", f"data.seed={seed}", "data.alpha=0.1"]
    data = load_settings(overrides=[*words, f"data.partition={'dirichlet' if skewed else 'iid'}"]).data
    frame = Dataset.from_dict({"label": labels[drawn].tolist()})
    return drawn[[row for device in range(DEVICES) for row in places(frame, data, device, DEVICES)]]


def curve(cell: Cell, held: tuple[int, ...], words: list[str], seed: int, *, skewed: bool, **what: Any) -> list[float]:
    """Return the accuracy after each of the counts."""
    order = arrival(what["train"].labels, cell.rows, seed, skewed=skewed)
    found = []
    for count in held:
        with TemporaryDirectory() as folder:
            row = measure(cell, words, seed, rows=order[:count], folder=Path(folder), **what)
        found.append(round(row["accuracy"], 4))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2_sentences and clinc150")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/closed_form"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone("minilm", device="cpu", token_budget=4096)
    out: dict[str, Any] = json.loads(asked.json.read_text("utf-8")) if asked.json.exists() else {"curves": {}}
    out["held"] = HELD
    for name, cell in SETS.items():
        train, test = (read(cell, split, asked.data, backbone, asked.work) for split in ("train", "test"))
        for seed in range(3):
            for skewed in (False, True):
                for way, words in WAYS.items():
                    of_way = (
                        out["curves"].setdefault(f"{name}, {'α = 0.1' if skewed else 'IID'}", {}).setdefault(way, {})
                    )
                    if str(seed) in of_way:
                        continue
                    what = {"train": train, "test": test, "backbone": backbone}
                    of_way[str(seed)] = curve(cell, HELD[name], words, seed, skewed=skewed, **what)
                    print(name, skewed, way, seed, of_way[str(seed)], flush=True)
                    asked.json.write_text(json.dumps(out, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
