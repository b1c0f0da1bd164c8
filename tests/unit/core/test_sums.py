"""Statistics of whole numbers: exact in any order, within their words, and what they say they are."""

from __future__ import annotations

import numpy as np
import pytest

from mobillm_flower.core.sums import Scale, SumShape, add_words, lift, statistic, width_within, wrap


def samples(count: int, width: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, width))
    targets = random.normal(size=(count, outputs))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, targets / np.linalg.norm(targets, axis=1, keepdims=True)


@pytest.mark.parametrize("bits", [32, 64])
def test_any_partition_in_any_order_adds_up_to_the_same_words(bits: int) -> None:
    rows, targets = samples(200, 12, 3)
    scale = Scale(200, 200 * 12**0.5 / 6, bits)
    whole = wrap(statistic(rows, targets, scale), bits)
    order = np.random.default_rng(1).permutation(200)
    parts = [wrap(statistic(rows[part], targets[part], scale), bits) for part in np.array_split(order, 7)]
    assert np.array_equal(add_words(parts), whole)
    assert np.array_equal(add_words(reversed(parts)), whole)


def test_words_modulo_a_power_of_two_are_lifted_to_what_they_were() -> None:
    values = np.array([0, 1, -1, 2**31 - 1, -(2**31)])
    assert np.array_equal(lift(wrap(values, 32)), values)
    wide = np.array([2**40, -(2**62)])
    assert np.array_equal(lift(wrap(wide, 64)), wide)


@pytest.mark.parametrize("capacity", [1 << 16, 1 << 20, 1 << 24, 1 << 30])
@pytest.mark.parametrize("outputs", [1, 151])
def test_no_sum_of_the_worst_samples_leaves_its_word(capacity: int, outputs: int) -> None:
    shape = SumShape(40, outputs)
    scale = Scale.of(shape, capacity)
    rows, targets = np.zeros((2, 40)), np.zeros((2, outputs))
    rows[0, 0], targets[:, 0] = 1.0, 1.0  # all of the length in one value
    rows[1] = 40**-0.5
    for sample in range(2):
        worst = statistic(rows[[sample]], targets[[sample]], scale).astype(object) * capacity
        assert max(abs(value) for value in worst) < 2 ** (scale.bits - 1)
    assert scale.bits == (32 if capacity <= 1 << 20 else 64)


def test_lengths_are_bounded_whatever_the_rounding() -> None:
    scale = Scale.of(SumShape(100, 7), 1 << 16)
    rows, targets = samples(500, 100, 7)
    whole, _ = scale.rows(rows * 3)
    assert np.linalg.norm(whole, axis=1).max() <= scale.radius
    assert np.linalg.norm(scale.targets(targets * 3), axis=1).max() <= scale.levels


def test_what_is_cut_is_counted() -> None:
    scale = Scale.of(SumShape(100, 1), 1 << 16)
    rows = np.full((3, 100), 0.1)
    rows[1] *= 2  # too long
    rows[2] = 0
    rows[2, 0] = 1  # one value far beyond the others
    assert scale.rows(rows)[1] == 2


def test_a_statistic_is_the_sums_that_it_says() -> None:
    rows, targets = samples(50, 8, 2)
    scale = Scale(1000, 1000 * 8**0.5 / 6, 64)
    shape = SumShape(8, 2)
    counts, sum_rows, _, triangle, moment = shape.split(statistic(rows, targets, scale).astype(float))
    unit, target = scale.row_unit(8), scale.target_unit(2)
    assert counts[0] == 50
    cut = np.clip(rows, -scale.levels / unit, scale.levels / unit)
    assert np.allclose(sum_rows / unit, cut.sum(0), atol=50 / unit)
    assert np.allclose(shape.gram(triangle) / unit**2, cut.T @ cut, atol=0.2)
    assert np.allclose(moment / (unit * target), cut.T @ targets, atol=0.2)


@pytest.mark.parametrize("outputs", [1, 2, 151])
@pytest.mark.parametrize("kib", [1, 560, 950])
def test_the_width_is_the_largest_that_fits(kib: int, outputs: int) -> None:
    width = width_within(kib * 1024, outputs)
    assert SumShape(width + 1, outputs).num_words * 4 > kib * 1024
    assert width == 0 or SumShape(width, outputs).num_words * 4 <= kib * 1024
