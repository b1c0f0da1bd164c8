"""How far sums go: fewer bits a word, second-order features, and a second round of sums, on the features of `sums.py`.

    .venv/bin/python -m benchmarks.studies.sums_beyond --data FOLDER --features F \\
        --json benchmarks/results/sums_beyond.json

All rows of each task's train split; accuracy on the test split. λ by generalized cross-validation of the sums. One cell
is one solution: `words` (c levels a value, so that a word has so many bits with room for 16,384 samples), `products` (a
share of the D values are products of pairs of the first principal ones), `second-round` (sums of the next D directions
against what the first solution left, 2 D values in two messages). `closed-form` is the package's, of samples.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.studies.sums import TASKS, accuracy, features
from mobillm_flower.core.side_networks.ridge import Sums
from mobillm_flower.core.sums import Scale, SumShape

ROOM = 1 << 14  # samples that a word has room for
Rows = NDArray[np.float64]


def solved(rows: Rows, targets: Rows, scale: Scale | None = None) -> tuple[Rows, Rows]:
    """Return W [D, K] and b [K] of the ridge regression, of rounded rows and targets where a scale is given."""
    if scale is not None:
        rows = scale.rows(rows)[0] / scale.row_unit(rows.shape[1])
        targets = scale.targets(targets / 2**0.5)
        targets = targets * (2**0.5 / scale.target_unit(targets.shape[1]))
    sums = Sums(rows.shape[1], targets.shape[1], torch.device("cpu"))
    for start in range(0, len(rows), 1024):
        part = slice(start, start + 1024)
        part_rows = torch.from_numpy(rows[part])
        sums.add(part_rows, torch.from_numpy(targets[part]), torch.ones(len(part_rows), dtype=torch.double))
    made = sums.choose()
    return made.weight.numpy(), made.bias.numpy()


def products(rows: Rows, count: int) -> Rows:
    """Return products of pairs of the first columns, so many; each column of one length."""
    pairs = list(combinations_with_replacement(range(math.isqrt(2 * count) + 1), 2))[:count]
    left, right = zip(*pairs, strict=True)
    return rows[:, left] * rows[:, right]


def unit(rows: Rows) -> Rows:
    """Return rows of norm 1."""
    scaled: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def main() -> None:
    """Measure, and write after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tasks", default="clinc150,sst2_sentences,ag_news_10k")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    public = torch.load(chosen.features / "sums_public.pt")["mean"].double().flatten(1)
    centre, scale = public.mean(0), public.std(0, correction=0).clamp_min(1e-6)
    _, _, directions = torch.linalg.svd((public - centre) / scale, full_matrices=False)
    cells: list[dict[str, Any]] = json.loads(chosen.json.read_text())["cells"] if chosen.json.exists() else []
    for name in chosen.tasks.split(","):
        train, labels = features(chosen.data, chosen.features, name, "train", TASKS[name][1])
        test, truth = features(chosen.data, chosen.features, name, "test", 6000)
        rows = [((part.double() - centre) / scale).numpy() for part in (train, test)]
        for cell in measured(rows[0], rows[1], labels, truth, directions.numpy()):
            cells.append({"task": name, **cell})
            print(cells[-1], flush=True)
            chosen.json.write_text(json.dumps({"device": "cpu, one thread", "cells": cells}, indent=1) + "\n")


def measured(train: Rows, test: Rows, labels: Tensor, truth: Tensor, directions: Rows) -> Iterator[dict[str, Any]]:
    """Yield the cells of a task; rows are standardised, directions those of public text, largest variance first."""
    outputs = int(max(labels.max(), truth.max())) + 1
    targets = (functional.one_hot(labels, outputs).double() - 1 / outputs).numpy()

    def projected(first: int, last: int) -> tuple[Rows, Rows]:
        part = directions[first:last].T
        return train @ part, test @ part

    def cell(scores: Rows, **what: Any) -> dict[str, Any]:
        return {**what, "accuracy": accuracy(torch.from_numpy(scores), truth)}

    for width in (512, 640, 680, 760):
        z, of_test = (unit(rows) for rows in projected(0, width))
        weight, bias = solved(z, targets)
        yield cell(of_test @ weight + bias, kind="exact", width=width)
        turn = np.linalg.qr(np.random.default_rng(width).normal(size=(width, width)))[0]
        for bits in (20, 24) if width in (512, 680, 760) else ():
            levels = math.isqrt(int((1 << (bits - 1)) / ROOM))
            if levels <= math.sqrt(outputs) / 2 + 1:
                continue
            weight, bias = solved(z @ turn, targets, Scale(levels, levels * math.sqrt(width) / 6, bits))
            size = SumShape(width, outputs).num_words * bits // 8
            yield cell(
                of_test @ turn @ weight + bias, kind="words", width=width, bits=bits, levels=levels, num_bytes=size
            )
    for width, share in ((512, 0.25), (512, 0.5)):
        count = int(width * share)
        z, of_test = (unit(rows) for rows in projected(0, width))
        second = [unit(products(rows - rows.mean(0), count)) for rows in (z, of_test)]
        first = (rows[:, : width - count] for rows in (z, of_test))
        joined = [np.concatenate(pair, 1) for pair in zip(first, second, strict=True)]
        weight, bias = solved(joined[0], targets)
        yield cell(joined[1] @ weight + bias, kind="products", width=width, share=share)
    for width in (340, 480):
        z, of_test = projected(0, 2 * width)
        rows, of_rows = unit(z[:, :width]), unit(of_test[:, :width])
        weight, bias = solved(rows, targets)
        scores, left = of_rows @ weight + bias, targets - (rows @ weight + bias)
        yield cell(scores, kind="first-round", width=width)
        next_, of_next = unit(z[:, width:]), unit(of_test[:, width:])
        weight, bias = solved(next_, left)
        yield cell(scores + of_next @ weight + bias, kind="second-round", width=width)
        both, of_both = unit(z), unit(of_test)
        weight, bias = solved(both, targets)
        yield cell(of_both @ weight + bias, kind="exact", width=2 * width)


if __name__ == "__main__":
    main()
