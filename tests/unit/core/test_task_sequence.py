"""Columns of tasks that come one after another, and measures of what is left of each."""

from __future__ import annotations

import pytest
import torch

from mobillm_flower.core.task_sequence import SequenceMeasures, TaskSequence
from mobillm_flower.errors import ArgumentError, MismatchError

TASKS = TaskSequence().append("spam", ["ham", "spam"]).append("topic", ["world", "sports", "ham"])


def test_each_task_has_the_columns_after_the_one_before() -> None:
    assert [(span.start, span.stop) for span in TASKS.spans] == [(0, 2), (2, 5)]
    assert TASKS.sizes == (2, 3)
    assert TASKS.num_outputs == 5
    assert len(set(TASKS.labels)) == 5  # classes of one name in two tasks are two columns


def test_a_longer_sequence_leaves_earlier_columns_where_they_are() -> None:
    longer = TASKS.append("mood", ["bad", "good"])
    assert longer.spans[:2] == TASKS.spans


def test_a_wide_base_prediction_is_a_distribution_that_says_within_a_task_what_it_said() -> None:
    base = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    wide = TASKS.span_of("topic").widen(base, TASKS.num_outputs)
    assert wide.sum(1).tolist() == pytest.approx([1, 1])
    assert torch.allclose(wide[:, 2:] / wide[:, 2:].sum(1, keepdim=True), base)
    assert wide[1].tolist() == pytest.approx([0.2] * 5)  # a constant stays one


def test_an_unknown_task_is_answered_with_those_that_exist() -> None:
    with pytest.raises(MismatchError, match="no task is called 'tpic'; learned were, in this order: spam, topic"):
        TASKS.span_of("tpic")


def test_a_name_is_given_once() -> None:
    with pytest.raises(ArgumentError, match="'spam' cannot be added: give it a name beside spam, topic"):
        TASKS.append("spam", ["a", "b"])


def test_classes_of_a_task_differ_and_a_message_does_not_show_them() -> None:
    with pytest.raises(ArgumentError, match="number 2 has the name of an earlier one") as caught:
        TASKS.append("mood", ["secret", "good", "secret"])
    assert "secret" not in str(caught.value)
    with pytest.raises(ArgumentError, match="too few classes"):
        TASKS.append("mood", ["good"])


def test_measures_of_a_sequence() -> None:
    accuracies = [[0.9, 0.1, 0.0], [0.8, 0.7, 0.0], [0.85, 0.6, 0.5]]
    measured = SequenceMeasures.of(accuracies)
    assert measured.average == pytest.approx((0.85 + 0.6 + 0.5) / 3)
    assert measured.backward_transfer == pytest.approx((-0.05 - 0.1) / 2)
    assert measured.forgetting == pytest.approx((0.05, 0.1))


def test_one_task_is_neither_forgotten_nor_helped() -> None:
    measured = SequenceMeasures.of([[0.9]])
    assert (measured.average, measured.backward_transfer, measured.forgetting) == (0.9, 0, ())


def test_measures_need_each_task_so_far() -> None:
    with pytest.raises(ArgumentError, match="need a value for each task so far"):
        SequenceMeasures.of([[0.9], [0.8]])
