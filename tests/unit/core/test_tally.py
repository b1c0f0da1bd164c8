"""Counts of predictions: their metrics are those of the samples, whatever the parts they were added up from."""

from __future__ import annotations

import numpy as np
import pytest

from mobillm_flower.core.tally import metric_of, require_tally, tally_classes, tally_numbers, tally_words
from mobillm_flower.tasks.metrics import METRICS


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "f1", "matthews"])
@pytest.mark.parametrize("outputs", [2, 5])
def test_metrics_of_added_counts_are_those_of_the_samples(metric: str, outputs: int) -> None:
    random = np.random.default_rng(outputs)
    true = random.integers(0, outputs - (outputs > 2), 300)  # one class of five is never true
    predicted = np.where(random.random(300) < 0.6, true, random.integers(0, outputs, 300))
    parts = [slice(0, 7), slice(7, 7), slice(7, 300)]
    total = np.sum([tally_classes(true[part], predicted[part], outputs) for part in parts], axis=0)
    assert total.shape == (tally_words(outputs, numbers=False),)
    require_tally(total, most=300, numbers=False)
    assert metric_of(total, metric, numbers=False) == {
        metric: pytest.approx(METRICS[metric](true, predicted.astype(float)), abs=1e-12)
    }


def test_a_metric_that_does_not_follow_from_counts_has_accuracy_in_its_place() -> None:
    total = tally_classes(np.array([0, 1]), np.array([0, 0]), 2)
    assert metric_of(total, "my-own", numbers=False) == {"accuracy": 0.5}
    assert metric_of(np.zeros(7, np.int64), "accuracy", numbers=False) == {}


def test_the_correlation_of_numbers_follows_from_their_sums() -> None:
    random = np.random.default_rng(0)
    true = random.uniform(1, 5, 200)
    predicted = np.clip(true + random.normal(size=200), 1, 5)
    parts = (slice(0, 50), slice(50, 200))
    total = np.sum([tally_numbers(true[part], predicted[part], (1.0, 5.0)) for part in parts], axis=0)
    require_tally(total, most=200, numbers=True)
    expected = METRICS["pearson"](true, predicted)
    assert metric_of(total, "spearman", numbers=True) == {"pearson": pytest.approx(expected, abs=1e-3)}


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ([3, 2, 0, 2, 1, 2, 1], False),  # fine but for more samples than there are
        ([2, 2, 0, 1, 1, 2, 0], False),  # more right than there are
        ([2, 1, 0, 1, 1, 1, 0], False),  # predicted once of twice
        ([2, -1, 0, 1, 1, 1, 1], False),
        ([2, 10, 10, 1, 60, 60], True),  # (Σu)² > n·Σu²
        ([1, 1 << 16, 0, 1 << 30, 0, 0], True),  # beyond the range
    ],
)
def test_counts_that_no_samples_have_are_refused(words: list[int], numbers: bool) -> None:
    with pytest.raises(ValueError, match=r"a tally of|no samples have"):
        require_tally(np.array(words), most=2, numbers=numbers)
