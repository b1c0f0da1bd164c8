"""Averages of devices' metrics."""

from __future__ import annotations

import math

import pytest

from mobillm_flower.strategies.averages import Average
from mobillm_flower.tasks.metrics import RANGES


def averaged(*replies: tuple[float, dict[str, float]]) -> dict[str, float]:
    average = Average()
    for weight, metrics in replies:
        average.add(weight, metrics)
    return average.values()


def test_a_metric_is_averaged_over_the_devices_that_have_it() -> None:
    replies = (10.0, {"accuracy": 0.5, "task-unknown": 0.8}), (30.0, {"accuracy": 0.9}), (0.0, {"accuracy": 0.0})
    assert averaged(*replies) == pytest.approx({"accuracy": 0.8, "task-unknown": 0.8})


def test_perplexities_are_averaged_as_cross_entropies() -> None:
    values = [(3.0, 12.0), (1.0, 40.0)]
    mean = sum(weight * math.log(value) for weight, value in values) / 4
    (perplexity,) = averaged(*((weight, {"perplexity": value}) for weight, value in values)).values()
    assert perplexity == pytest.approx(math.exp(mean))


def test_the_largest_perplexity_that_is_taken_is_that_of_the_largest_cross_entropy() -> None:
    assert RANGES["perplexity"][1] == pytest.approx(math.exp(RANGES["cross-entropy"][1]))
