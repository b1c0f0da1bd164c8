"""Sums in the place of samples: their bytes against the metric, and noise for an ε. One model, four data sets.

    .venv/bin/python benchmarks/studies/sums.py --data ../shared/data --features F --json benchmarks/results/sums.json

Features are those of all-MiniLM-L6-v2, `mean` of six layers, in half precision; they are kept in the folder F, so
that a second run is cheap. Rows of the train split are drawn by seed; the metric is accuracy on the test split (at most
6,000 rows). z, rounding, sums, noise and solution are the package's own. `closed-form` beside them is the package's,
from all 2,304 values and 2,048 random features, without a codec (`--closed-form`). λ over the noise is chosen on AG
News and SMS spam and used on SST-2.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.backbones.public import public_text
from mobillm_flower.clients.summing import sample_statistic
from mobillm_flower.core.projection import fit_principal
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec, SideNetworkConfig
from mobillm_flower.core.side_networks.protocol import LabelledBatch
from mobillm_flower.core.sums import wrap
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
    bound = round(math.sqrt(1 - 1 / outputs), 9) if epsilon else round(2**0.5, 9)
    sigma = sums_sigma(epsilon, DELTA) if epsilon else 0.0
    own = {"intercept": INTERCEPT, "epsilon": epsilon, "delta": DELTA, "sigma": sigma} if epsilon else {}
    return SumsSpec(width + (1 if epsilon else 0), outputs, room_for(rows), 1, 0.0, bound, **own)  # type: ignore[arg-type]


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest score is their label's."""
    return round(float((scores.argmax(1) == labels).double().mean()), 4)


def closed_form_scores(train: Tensor, labels: Tensor, wanted: Tensor, test: Tensor) -> Tensor:
    """Scores [n, K] of test samples by the closed form, fitted on samples and not on sums."""
    outputs = wanted.shape[1]
    types = {"minilm": AlignmentSpec(384, 1)}
    network: Any = SideNetworkConfig(
        name="closed-form",
        types=types,
        num_blocks=6,
        width=384,
        bottleneck=4,
        num_outputs=outputs,
        random_features=2048,
    ).build()
    parts = range(0, len(train), 1024)
    network.fit(
        LabelledBatch(
            ActivationBatch("minilm", train[i : i + 1024].reshape(-1, 6, 384)),
            labels[i : i + 1024],
            targets=wanted[i : i + 1024],
            base=torch.full((len(wanted[i : i + 1024]), outputs), 1 / outputs),
        )
        for i in parts
    )
    with torch.no_grad():
        return torch.cat(
            [network([ActivationBatch("minilm", part.reshape(-1, 6, 384))]) for part in torch.split(test, 512)]
        )


def main() -> None:
    """Measure, and write after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--closed-form", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kept = chosen.features / "sums_public.pt"
    if not kept.exists():
        torch.save({"mean": extracted(list(public_text()))}, kept)
    public = torch.load(kept)["mean"].float().flatten(1)
    cells: list[dict[str, Any]] = json.loads(chosen.json.read_text())["cells"] if chosen.json.exists() else []
    for name in chosen.tasks.split(","):
        train, labels = features(chosen.data, chosen.features, name, "train", TASKS[name][1])
        test, truth = features(chosen.data, chosen.features, name, "test", 6000)
        outputs = int(max(labels.max(), truth.max())) + 1
        targets = (functional.one_hot(labels, outputs).double() - 1 / outputs).numpy()

        def note(**cell: Any) -> None:
            cells.append(cell)
            print(cell, flush=True)
            chosen.json.write_text(json.dumps({"device": "cpu, one thread", "cells": cells}, indent=1) + "\n")

        for width in WIDTHS:
            projection = fit_principal(public, width)
            z, of_test = (projection(rows).flatten(1) for rows in (train, test))
            spec = spec_of(width, outputs)
            for count in (1500, len(z)):
                of_seeds = []
                for seed in range(chosen.seeds if count < len(z) else 1):
                    rows = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:count].numpy()
                    values = sample_statistic(z.numpy()[rows], targets[rows], spec)
                    weight, bias, _, _ = solve_exact(wrap(values, spec.scale.bits), spec)
                    of_seeds.append(accuracy(of_test @ weight + bias, truth))
                note(task=name, kind="sums", rows=count, width=width, num_bytes=spec.num_bytes, accuracy=of_seeds)
            if width not in (256, 512) or name == "clinc150":
                continue
            for epsilon in EPSILONS:
                spec = spec_of(width, outputs, epsilon)
                values = sample_statistic(z.numpy(), targets, spec)
                results: dict[str, list[float]] = {str(factor): [] for factor in FACTORS}
                for _ in range(chosen.seeds):
                    noised = values + discrete_gaussian(noise_variances(spec))
                    for factor in FACTORS:
                        weight, bias = solve_noised(noised, spec, of_the_noise=factor)
                        results[str(factor)].append(accuracy(of_test @ weight + bias, truth))
                note(
                    task=name,
                    kind="noise",
                    rows=len(z),
                    width=width,
                    epsilon=epsilon,
                    sigma=spec.sigma,
                    factors=results,
                )
        if chosen.closed_form:
            wanted = torch.from_numpy(targets).float()
            scores = closed_form_scores(train, labels, wanted, test)
            note(task=name, kind="closed-form", rows=len(train), accuracy=[accuracy(scores, truth)])


if __name__ == "__main__":
    main()
