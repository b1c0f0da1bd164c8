"""The ridge solution is the one of least squares, and what it says of left-out rows is what leaving them out gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mobillm_flower.core.side_networks import ridge
from mobillm_flower.core.side_networks.ridge import Ridge, Solution


def draw(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator).double() + 1
    targets = rows @ torch.randn(width, 2, generator=generator).double() + torch.randn(count, 2, generator=generator)
    return rows, targets, torch.rand(count, generator=generator).double() + 0.5


def solved(rows: Tensor, targets: Tensor, weights: Tensor, part: int = 7) -> Solution:
    regression = Ridge(rows.shape[1], targets.shape[1])
    for start in range(0, len(rows), part):
        regression.add(*(values[start : start + part] for values in (rows, targets, weights)))
    return regression.solve()


def by_hand(rows: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Least squares with a column of ones that is not penalized."""
    extended = torch.cat([rows, torch.ones(len(rows), 1).double()], 1)
    penalties = penalty * torch.eye(extended.shape[1]).double()
    penalties[-1, -1] = 0
    both = torch.linalg.solve(
        extended.T @ (weights[:, None] * extended) + penalties, extended.T @ (weights[:, None] * targets)
    )
    return both[:-1].T, both[-1]


@pytest.mark.parametrize(("count", "width"), [(12, 30), (200, 9)])
def test_it_is_the_least_squares_solution_of_its_penalty(count: int, width: int) -> None:
    data = draw(count, width)
    solution = solved(*data)
    weight, bias = by_hand(*data, solution.penalty)
    torch.testing.assert_close(solution.weight, weight)
    torch.testing.assert_close(solution.bias, bias)


@pytest.mark.parametrize(("count", "width"), [(12, 30), (60, 9)])
def test_a_left_out_prediction_is_that_of_a_solution_without_the_row(count: int, width: int) -> None:
    rows, targets, weights = draw(count, width)
    solution = solved(rows, targets, weights)
    for left_out in (0, 5, count - 1):
        others = torch.arange(count) != left_out
        weight, bias = by_hand(rows[others], targets[others], weights[others], solution.penalty)
        place = left_out - count  # the last rows are predicted
        torch.testing.assert_close(solution.left_out[place], weight @ rows[left_out] + bias)


def test_equal_rows_are_left_out_together() -> None:
    rows, targets, weights = draw(12, 30)
    copies = torch.tensor([2] + [1] * 11)
    twice, wanted = rows.repeat_interleave(copies, 0), targets.repeat_interleave(copies, 0)
    solution = solved(twice, wanted, weights.repeat_interleave(copies))
    weight, bias = by_hand(rows[1:], targets[1:], weights[1:], solution.penalty)
    for copy in (0, 1):
        torch.testing.assert_close(solution.left_out[copy], weight @ rows[0] + bias)


def test_where_there_are_more_rows_than_columns_only_sums_and_the_last_rows_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ridge, "HELD_OUT", 10)
    rows, targets, weights = draw(100, 9)
    regression = Ridge(9, 2)
    for start in range(0, 100, 5):
        regression.add(rows[start : start + 5], targets[start : start + 5], weights[start : start + 5])
    assert regression.num_parts == 2
    solution = regression.solve()
    assert solution.left_out.shape == (10, 2)
    torch.testing.assert_close(solution.weight, solved(rows, targets, weights, part=100).weight)


def test_the_penalty_rises_with_the_noise_of_the_targets() -> None:
    rows, _, weights = draw(300, 20)
    signal = rows @ torch.linspace(-1, 1, 20).double()[:, None]
    noise = torch.randn(300, 1, generator=torch.Generator().manual_seed(3)).double()
    assert solved(rows, signal + 20 * noise, weights).penalty > 10 * solved(rows, signal + 0.1 * noise, weights).penalty


@pytest.mark.parametrize(("count", "width"), [(60, 90), (400, 20)])
def test_known_noise_in_the_rows_is_not_taken_for_what_cannot_be_learned(count: int, width: int) -> None:
    """The penalty is chosen for rows without noise, on which the solution is then better."""
    rows, targets, weights = draw(count, width)
    others, wanted, _ = draw(4000, width, seed=1)
    rule = torch.randn(width, 2, generator=torch.Generator().manual_seed(7)).double()
    targets, wanted = rows @ rule, others @ rule
    noisy = rows + 0.7 * torch.randn(count, width, generator=torch.Generator().manual_seed(2)).double()
    errors, penalties = [], []
    for variance in (0.0, 0.49):
        regression = Ridge(width, 2, noise=torch.full((width,), variance))
        regression.add(noisy, targets, weights)
        solution = regression.solve()
        errors.append(float((others @ solution.weight.T + solution.bias - wanted).square().mean()))
        penalties.append(solution.penalty)
    assert penalties[1] <= penalties[0]
    assert errors[1] <= errors[0]


def test_a_gram_matrix_is_made_of_blocks_of_its_lower_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "_BLOCK", 4)
    factor, total = draw(7, 10)[0], torch.zeros(10, 10).double()
    for part in factor.split(3):
        ridge._add_gram(total, part)
    torch.testing.assert_close(total.tril() + total.tril(-1).T, factor.T @ factor)
    assert total[0, 4:].abs().max() == 0
