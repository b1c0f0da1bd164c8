"""How well a side network predicts rows that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.label_shift import LabelShift
from mobillm_flower.server.objective import Loss, recovered_truth
from mobillm_flower.server.rows import RowRef


@torch.inference_mode()
def measure(
    network: nn.Module,
    rows: Sequence[RowRef],
    loader: BatchLoader,
    *,
    loss: Loss,
    scores: Callable[[Tensor, Tensor], Tensor],
    shift: LabelShift,
) -> dict[str, float]:
    """Return the mean loss on rows (or their tokens) and, where it is known, the share of labels predicted.

    Parameters are those of `Trainer`.
    """
    network.eval()
    total, count, correct, known = 0.0, 0, 0, 0
    for batches, targets in loader.in_parts(rows):
        side = network(batches)
        total += float(loss(side, targets, shift(batches))) * len(targets)
        count += len(targets)
        truth = recovered_truth(loader.contract, targets)
        if truth is not None and not loader.labels_protected:
            labels, base = truth
            correct += int((scores(side, base).argmax(1) == labels).sum())
            known += len(labels)
    measured = {"loss": total / max(1, count)}
    if known:
        measured["accuracy"] = correct / known
    return measured
