"""Sums in the place of samples: their bytes against the metric, and noise for an ε. One model, four data sets.

    .venv/bin/python -m benchmarks.studies.sums --data FOLDER --features F --json benchmarks/results/sums.json

Features are those of all-MiniLM-L6-v2, `mean` of six layers, in half precision; they are kept in the folder F, so
that a second run is cheap. Rows of the train split are drawn by seed. A cell has accuracy on the validation split (at
most 2,000 rows) and on the test split (at most 6,000), a figure a seed; one seed where all rows are used. z, rounding,
sums, noise and solution are the package's own. Kind `sums` has the package's discriminant beside the ridge regression
of the same sums. `closed-form` is the package's, from all 2,304 values and 2,048 random features, without a codec.
λ over the noise is chosen on AG News and SMS spam and used on SST-2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mobillm_flower.backbones.public import public_text
from mobillm_flower.clients.summing import sample_statistic
from mobillm_flower.core.projection import fit_principal
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec, SideNetworkConfig
from mobillm_flower.core.side_networks.protocol import LabelledBatch
from mobillm_flower.core.sums import wrap
from mobillm_flower.core.targets import base_prediction, difference
from mobillm_flower.privacy.accounting import sums_sigma
from mobillm_flower.privacy.discrete_gaussian import discrete_gaussian
from mobillm_flower.server.sums import noise_variances, solve_exact, solve_noised
from mobillm_flower.tasks.sums import INTERCEPT, room_for
from mobillm_flower.wire.sums import SumsSpec

TASKS = {
    "sst2_sentences": ("sentence", 6920),
    "sms_spam": ("text", 2000),
    "ag_news_10k": ("text", 6000),
    "clinc150": ("text", 7000),
}
COUNTS = (1500, 3000, 1 << 20)
"""Training rows; the last: all."""
WIDTHS = (64, 128, 256, 384, 512, 640)
FACTORS = (0.015, 0.03, 0.06, 0.12, 0.25, 0.5)
EPSILONS = (1.0, 2.0, 4.0, 8.0)
DELTA = 1e-5


def extracted(texts: list[str]) -> Tensor:
    """Return [N, 6, 384] float16."""
    from mobillm_flower.backbones import load_backbone  # loads transformers

    backbone = load_backbone("minilm")
    parts = []
    for start in range(0, len(texts), 64):
        samples = backbone.tokenize(texts[start : start + 64], None, 128)
        made = backbone.extract(samples, layers=tuple(range(1, 7)), pivot="mean").activations
        parts.append(torch.cat(made)[:, :, 0].half())
    return torch.cat(parts)


def features(data: Path, kept: Path, name: str, split: str, most: int) -> tuple[Tensor, Tensor]:
    """Return features [N, 6·384] float32 and labels [N] of a split, from the folder where they are there."""
    file = kept / f"{name}.{split}.pt"
    if not file.exists():
        rows = pd.read_parquet(data / name / f"{split}.parquet")
        rows = rows.sample(min(most, len(rows)), random_state=0)
        torch.save({"mean": extracted(rows[TASKS[name][0]].tolist()), "y": rows["label"].tolist()}, file)
    saved = torch.load(file)
    return saved["mean"].float().flatten(1), torch.tensor(saved["y"])


def spec_of(width: int, outputs: int, epsilon: float = 0.0, rows: int = 1 << 13) -> SumsSpec:
    """Return how `tasks.sums.sums_spec` would add up."""
    bound = round(math.sqrt(1 - 1 / outputs), 9)
    sigma = sums_sigma(epsilon, DELTA) if epsilon else 0.0
    own = {"intercept": INTERCEPT, "epsilon": epsilon, "delta": DELTA, "sigma": sigma} if epsilon else {}
    return SumsSpec(width + (1 if epsilon else 0), outputs, room_for(rows), 1, 0.0, bound, **own)  # type: ignore[arg-type]


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest score is their label's."""
    return round(float((scores.argmax(1) == labels).double().mean()), 4)


@dataclass
class Task:
    """A data set's features [N, 2304] and labels [N] by split, and how many rows and seeds are drawn of it."""

    name: str
    rows: dict[str, Tensor]
    labels: dict[str, Tensor]
    seeds: int

    @property
    def outputs(self) -> int:
        """K."""
        return int(max(labels.max() for labels in self.labels.values())) + 1

    @property
    def targets(self) -> Tensor:
        """Δy [N, K] of the training rows."""
        labels = self.labels["train"]
        return difference(labels, base_prediction(None, len(labels), self.outputs))

    def draws(self) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield numbers of training rows, and the rows of each seed."""
        everything = len(self.labels["train"])
        for count in sorted({min(count, everything) for count in COUNTS}):
            seeds = range(self.seeds if count < everything else 1)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            yield count, [torch.randperm(everything, generator=one)[:count] for one in generators]

    def measured(self, rows: dict[str, Tensor], weight: Tensor, bias: Tensor) -> dict[str, float]:
        """Return accuracy of scores of z by split."""
        return {name: accuracy(rows[name] @ weight + bias, self.labels[name]) for name in ("validation", "test")}


def of_sums(task: Task, width: int, public: Tensor) -> Iterator[dict[str, Any]]:
    """Yield cells of sums without noise."""
    projection = fit_principal(public, width)
    z = {name: projection(rows).flatten(1) for name, rows in task.rows.items()}
    spec, targets = spec_of(width, task.outputs), task.targets.double().numpy()
    for count, draws in task.draws():
        cell: dict[str, Any] = {"rows": count, "width": width, "num_bytes": spec.num_bytes}
        for drawn in draws:
            values = sample_statistic(z["train"].numpy()[drawn.numpy()], targets[drawn.numpy()], spec)
            for solution in ("discriminant", "ridge"):
                weight, bias, _, _ = solve_exact(
                    wrap(values, spec.scale.bits), spec, discriminant=solution == "discriminant"
                )
                for split, figure in task.measured(z, weight, bias).items():
                    cell.setdefault(f"{solution} {split}", []).append(figure)
        yield {"kind": "sums", **cell}


def of_noise(task: Task, width: int, public: Tensor) -> Iterator[dict[str, Any]]:
    """Yield cells of noised sums of all rows, with several λ."""
    projection = fit_principal(public, width)
    z = {name: projection(rows).flatten(1) for name, rows in task.rows.items()}
    for epsilon in EPSILONS:
        spec = spec_of(width, task.outputs, epsilon)
        values = sample_statistic(z["train"].numpy(), task.targets.double().numpy(), spec)
        results: dict[str, list[float]] = {str(factor): [] for factor in FACTORS}
        for _ in range(task.seeds):
            noised = values + discrete_gaussian(noise_variances(spec))
            for factor in FACTORS:
                weight, bias = solve_noised(noised, spec, of_the_noise=factor)
                results[str(factor)].append(task.measured(z, weight, bias)["test"])
        cell = {"rows": len(z["train"]), "width": width, "epsilon": epsilon, "sigma": spec.sigma}
        yield {"kind": "noise", **cell, "factors": results}


def of_samples(task: Task) -> Iterator[dict[str, Any]]:
    """Yield cells of the closed form from samples."""
    network: Any = SideNetworkConfig(
        name="closed-form",
        types={"minilm": AlignmentSpec(384, 1)},
        num_blocks=6,
        width=384,
        bottleneck=4,
        num_outputs=task.outputs,
        random_features=2048,
        input_norm=False,
        vector_scale=True,
    ).build()
    batches = {name: rows.reshape(-1, 6, 384) for name, rows in task.rows.items()}
    for count, draws in task.draws():
        cell: dict[str, Any] = {"rows": count}
        for drawn in draws:
            network.fit(
                LabelledBatch(
                    ActivationBatch("minilm", batches["train"][part]),
                    task.labels["train"][part],
                    targets=task.targets[part],
                    base=base_prediction(None, len(part), task.outputs),
                )
                for part in torch.split(drawn, 1024)
            )
            for split in ("validation", "test"):
                with torch.no_grad():
                    parts = [network([ActivationBatch("minilm", rows)]) for rows in torch.split(batches[split], 512)]
                cell.setdefault(f"closed-form {split}", []).append(accuracy(torch.cat(parts), task.labels[split]))
        yield {"kind": "closed-form", **cell}


def main() -> None:
    """Measure, and write after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--kinds", default="sums,noise,closed-form")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kept = chosen.features / "sums_public.pt"
    if not kept.exists():
        torch.save({"mean": extracted(list(public_text()))}, kept)
    public = torch.load(kept)["mean"].float().flatten(1)
    cells: list[dict[str, Any]] = json.loads(chosen.json.read_text())["cells"] if chosen.json.exists() else []
    for name in chosen.tasks.split(","):
        most = {"train": TASKS[name][1], "validation": 2000, "test": 6000}
        read = {split: features(chosen.data, chosen.features, name, split, rows) for split, rows in most.items()}
        rows, labels = ({split: of[i] for split, of in read.items()} for i in (0, 1))
        task = Task(name, rows, labels, chosen.seeds)
        made: dict[str, list[Iterator[dict[str, Any]]]] = {
            "sums": [of_sums(task, width, public) for width in WIDTHS],
            "noise": [of_noise(task, width, public) for width in (256, 512) if name != "clinc150"],
            "closed-form": [of_samples(task)],
        }
        for kind in chosen.kinds.split(","):
            for cell in itertools.chain(*made[kind]):
                cells.append({"task": name, **cell})
                print(cells[-1], flush=True)
                chosen.json.write_text(json.dumps({"device": "cpu, one thread", "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
