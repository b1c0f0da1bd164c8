"""Groups whose targets are of another rule than most groups' are named, whatever their shares of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.contradiction import _left_out, judge

GROUPS, EACH, WIDTH, CLASSES = 10, 50, 24, 3
NUMBERS = np.repeat(np.arange(GROUPS), EACH)


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(GROUPS * EACH, WIDTH, generator=generator)
    return rows, (rows @ torch.randn(WIDTH, CLASSES, generator=generator)).argmax(1)


@pytest.mark.parametrize("seed", range(5))
def test_of_groups_of_one_rule_none_is_doubted(seed: int) -> None:
    rows, labels = drawn(seed)
    found = judge(rows, functional.one_hot(labels, CLASSES).float(), NUMBERS, GROUPS)
    assert not found.contradicted.any()
    assert not found.doubted.any()


@pytest.mark.parametrize("liars", [1, 3])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_who_shifts_labels_is_named(liars: int, scale: float) -> None:
    rows, labels = drawn(1)
    labels[: liars * EACH] = (labels[: liars * EACH] + 1) % CLASSES
    found = judge(rows, scale * functional.one_hot(labels, CLASSES).float(), NUMBERS, GROUPS)
    assert np.flatnonzero(found.contradicted).tolist() == list(range(liars))


def test_one_that_says_the_opposite_of_one_class_only_is_named() -> None:
    """Within the group there is nothing to see: all its targets are the same."""
    rows, _ = drawn(2)
    score = rows[:, 0] * 3
    labels = (score > 0).long()
    rows[:EACH, 0], labels[:EACH] = rows[:EACH, 0].abs() + 1, 0
    rows[EACH : 2 * EACH, 0], labels[EACH : 2 * EACH] = rows[EACH : 2 * EACH, 0].abs() + 1, 1
    found = judge(rows, functional.one_hot(labels, 2).float(), NUMBERS, GROUPS)
    assert np.flatnonzero(found.contradicted).tolist() == [0]


@pytest.mark.parametrize("what", ["random labels", "one label", "half of each rule"])
def test_where_nothing_can_be_known_nobody_is_named(what: str) -> None:
    rows, labels = drawn(3)
    generator = torch.Generator().manual_seed(0)
    if what == "random labels":
        labels = torch.randint(0, CLASSES, labels.shape, generator=generator)
    elif what == "one label":
        labels = torch.zeros_like(labels)
    else:
        labels[: len(labels) // 2] = (labels[: len(labels) // 2] + 1) % CLASSES
    found = judge(rows, functional.one_hot(labels, CLASSES).float(), NUMBERS, GROUPS)
    assert not found.contradicted.any()
    assert not found.doubted.any()


def test_predictions_are_those_of_a_regression_without_the_group() -> None:
    rows, labels = drawn(4)
    targets = functional.one_hot(labels, CLASSES).double()
    among = np.ones(len(rows), bool)
    predicted = _left_out(rows, targets, NUMBERS, among)
    centred = (rows - rows.mean(0)).double()
    kernel = centred @ centred.T
    unit = kernel.diagonal().mean()
    kernel = kernel + 10 * unit
    own = torch.from_numpy(NUMBERS == 4)
    closest = min(
        float((kernel[own][:, ~own] @ torch.linalg.solve(
            kernel[~own][:, ~own] + penalty * unit * torch.eye(int((~own).sum())).double(), targets[~own]
        ) - predicted[own]).abs().max())
        for penalty in (0.1, 1.0, 10.0)
    )  # fmt: skip
    assert closest < 1e-4
