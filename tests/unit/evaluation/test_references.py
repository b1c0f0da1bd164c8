"""References of a run that need no run to be checked."""

from __future__ import annotations

import torch

from mobillm_flower.evaluation.references import confusion
from tests.support.caches import CONTRACT


def test_confusion_counts_true_classes_in_rows_and_predicted_ones_in_columns() -> None:
    predicted = torch.tensor([0, 0, 1, 3, 3, 3])
    scores = torch.nn.functional.one_hot(predicted, 4).float()
    labels = torch.tensor([0, 2, 1, 3, 0, 3])
    assert confusion(scores, labels, CONTRACT) == [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2]]
