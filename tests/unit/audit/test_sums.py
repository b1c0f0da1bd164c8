"""Attacks on sums: they read few samples, and no more than the baseline of many."""

from __future__ import annotations

import numpy as np
import pytest

from mobillm_flower.audit.attacks.sums import SumsAttack
from mobillm_flower.clients.summing import sample_statistic
from mobillm_flower.core.sums import wrap
from mobillm_flower.tasks.sums import room_for
from mobillm_flower.wire.sums import SumsSpec

WIDTH = 40


def attacked(count: int) -> tuple[SumsAttack, np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    rows = random.normal(size=(count, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = random.integers(0, 2, count)
    spec = SumsSpec(WIDTH, 2, room_for(count), 1, 0.0, 2**0.5)
    words = wrap(sample_statistic(rows, np.eye(2)[labels] - 0.5, spec), spec.scale.bits)
    return SumsAttack(words, spec), rows, labels


@pytest.mark.parametrize("count", [2, 10, 20])
def test_labels_and_members_of_few_samples_are_read(count: int) -> None:
    attack, rows, labels = attacked(count)
    others = np.random.default_rng(1).normal(size=(50, WIDTH))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert attack.labels(rows, labels).value == 1.0
    assert attack.membership(rows, others).value > 0.99


def test_random_labels_of_many_samples_are_not_and_members_hardly() -> None:
    attack, rows, labels = attacked(4000)
    others = np.random.default_rng(1).normal(size=(4000, WIDTH))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert attack.labels(rows, labels).value < 0.6
    assert attack.membership(rows, others).value < 0.7  # a sample weighs 1 in 100 of each dimension
