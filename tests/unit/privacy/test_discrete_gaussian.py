"""The discrete Gaussian has the probabilities that it says, and its guarantee is no better than the exact one."""

from __future__ import annotations

import numpy as np
import pytest

from mobillm_flower.privacy.accounting import gaussian_sigma, sums_sigma
from mobillm_flower.privacy.discrete_gaussian import discrete_gaussian


@pytest.mark.parametrize("variance", [0.3, 1.0, 12.5])
def test_frequencies_are_those_of_the_distribution(variance: float) -> None:
    drawn = discrete_gaussian(np.full(60_000, variance), key=bytes(32))
    numbers = np.arange(-60, 61)
    wanted = np.exp(-np.square(numbers) / (2 * variance))
    wanted /= wanted.sum()
    frequencies = np.array([(drawn == number).mean() for number in numbers])
    assert np.abs(frequencies - wanted).max() < 5 * 0.5 / 60_000**0.5


def test_each_number_has_its_own_variance_and_none_where_it_is_zero() -> None:
    variances = np.repeat([0.0, 4.0, 1e12], 20_000)
    drawn = discrete_gaussian(variances, key=bytes(32)).reshape(3, -1)
    assert not drawn[0].any()
    assert drawn[1].std() == pytest.approx(2.0, rel=0.05)
    assert drawn[2].std() == pytest.approx(1e6, rel=0.05)


def test_draws_follow_from_the_key_and_without_one_are_new_each_time() -> None:
    variances = np.full(50, 100.0)
    assert np.array_equal(discrete_gaussian(variances, key=bytes(32)), discrete_gaussian(variances, key=bytes(32)))
    assert not np.array_equal(discrete_gaussian(variances), discrete_gaussian(variances))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 8.0])
def test_sigma_is_at_least_that_of_the_exact_gaussian_and_not_much_more(epsilon: float) -> None:
    exact = gaussian_sigma(epsilon, 1e-5, 4.5**0.5)
    assert exact <= sums_sigma(epsilon, 1e-5) <= 1.2 * exact
