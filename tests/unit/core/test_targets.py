"""Targets and losses: the difference and its inverse, both losses, predictions, and what a server accepts."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from mobillm_flower.core.targets import (
    CERTAINTY,
    EPSILON,
    automatic_scale,
    base_prediction,
    difference,
    logit_loss,
    predict_logit,
    predict_square,
    recover,
    square_loss,
    valid_difference,
)

HALF_ERROR = 2.0**-11


def _randn(*shape: Any, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _example(count: int = 64, num_outputs: int = 5, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_outputs, (count,), generator=generator)
    return labels, (3 * torch.randn(count, num_outputs, generator=generator)).softmax(1)


def test_the_base_prediction_is_the_softmax_of_logits() -> None:
    logits = _randn(3, 4)
    softmax = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(base_prediction(logits, 3, 4), softmax * (1 - CERTAINTY) + CERTAINTY / 4)
    assert base_prediction(logits.half(), 3, 4).dtype == torch.float32


def test_a_regression_base_is_taken_as_it_is() -> None:
    assert base_prediction(torch.tensor([[2.5], [-1.0]]), 2, 1).tolist() == [[2.5], [-1.0]]


def test_without_a_head_the_base_is_constant() -> None:
    assert base_prediction(None, 2, 4).tolist() == [[0.25] * 4] * 2
    assert base_prediction(None, 3, 1).tolist() == [[0.0]] * 3


def test_the_difference_is_onehot_minus_base() -> None:
    labels, base = _example()
    delta = difference(labels, base)
    for sample, label in enumerate(labels.tolist()):
        for output in range(5):
            assert float(delta[sample, output]) == pytest.approx((output == label) - float(base[sample, output]))
    torch.testing.assert_close(delta.sum(1), torch.zeros(64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_outputs", [2, 5, 150])
def test_an_unprotected_difference_gives_label_and_base_away(num_outputs: int) -> None:
    labels, base = _example(num_outputs=num_outputs)
    delta = difference(labels, base)
    assert torch.equal(delta.argmax(1), labels)
    found_labels, found_base = recover(delta)
    assert torch.equal(found_labels, labels)
    torch.testing.assert_close(found_base, base, atol=1e-6, rtol=0)
    assert bool((found_base >= 0).all())


@pytest.mark.parametrize("gap", [20.0, 200.0])
@pytest.mark.parametrize("number", [torch.float32, torch.float16])
def test_the_label_of_a_backbone_that_is_certain_and_right_is_recovered(gap: float, number: Any) -> None:
    """Where p_b rounds to the label itself, Δy must not round to all zeros: its argmax would be class 0."""
    labels = torch.tensor([0, 1, 2])
    base = base_prediction(gap * functional.one_hot(labels, 3), 3, 3)
    sent = difference(labels, base).to(number).float()
    assert recover(sent)[0].tolist() == labels.tolist()


def test_the_square_loss_is_the_mean_of_squared_distances() -> None:
    side, delta = _randn(6, 3), _randn(6, 3, seed=1)
    expected = sum((2.5 * delta[b, k] - side[b, k]) ** 2 for b in range(6) for k in range(3)) / 6
    torch.testing.assert_close(square_loss(side, delta, 2.5), expected)


def test_the_square_loss_is_invariant_under_a_secret_rotation() -> None:
    labels, base = _example(num_outputs=7)
    delta, side = difference(labels, base), _randn(64, 7, seed=2)
    rotation, _ = torch.linalg.qr(_randn(7, 7, seed=3))
    torch.testing.assert_close(
        square_loss(side @ rotation, delta @ rotation, 3.0), square_loss(side, delta, 3.0), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(square_loss(side, delta @ rotation, 3.0), square_loss(side, delta, 3.0))


def test_zero_mean_noise_on_the_difference_only_adds_a_constant_to_the_square_loss() -> None:
    labels, base = _example()
    delta, noise = difference(labels, base), _randn(64, 5, seed=4)
    constant = 4.0 * noise.square().sum(1).mean()
    for seed in (5, 6):
        side = _randn(64, 5, seed=seed)
        noisy = (square_loss(side, delta + noise, 2.0) + square_loss(side, delta - noise, 2.0)) / 2
        torch.testing.assert_close(noisy - square_loss(side, delta, 2.0), constant, rtol=1e-4, atol=1e-4)


def test_the_square_loss_is_smallest_where_the_prediction_is_the_label() -> None:
    labels, base = _example()
    delta = difference(labels, base)
    side = 2.0 * delta
    assert float(square_loss(side, delta, 2.0)) == 0.0
    scores = predict_square(side, base, 2.0)
    torch.testing.assert_close(scores, functional.one_hot(labels, 5).float(), atol=1e-6, rtol=0)


def test_the_logit_loss_is_cross_entropy_on_top_of_the_base() -> None:
    labels, base = _example()
    base = (base + 0.01) / (base + 0.01).sum(1, keepdim=True)  # well above the floor of the logarithm
    side = _randn(64, 5, seed=2)
    weights = base * side.exp()
    probability = weights / weights.sum(1, keepdim=True)
    expected = -probability[torch.arange(64), labels].log().mean()
    torch.testing.assert_close(logit_loss(side, labels, base), expected, rtol=1e-4, atol=1e-4)


def test_the_logit_loss_is_finite_where_the_base_rules_the_label_out() -> None:
    base = torch.tensor([[1.0, 0.0]])
    loss = logit_loss(torch.zeros(1, 2), torch.tensor([1]), base)
    assert float(loss) == pytest.approx(-torch.tensor(EPSILON).log().item(), rel=1e-3)


def test_a_fresh_side_network_predicts_what_the_backbone_does() -> None:
    _, base = _example()
    zero = torch.zeros_like(base)
    assert torch.equal(predict_square(zero, base, 4.0), base)
    assert torch.equal(predict_logit(zero, base).argmax(1), base.argmax(1))
    torch.testing.assert_close(predict_logit(zero, base).softmax(1), base, atol=1e-5, rtol=0)


def test_a_regression_prediction_adds_the_side_output() -> None:
    prediction = predict_square(torch.tensor([[0.5]]), torch.tensor([[2.0]]), automatic_scale(1))
    assert prediction.tolist() == [[2.5]]


@pytest.mark.parametrize(("num_outputs", "scale"), [(1, 1.0), (2, 2.0), (4, 2.0), (16, 4.0), (144, 12.0)])
def test_the_automatic_scale(num_outputs: int, scale: float) -> None:
    assert automatic_scale(num_outputs) == scale


@pytest.mark.parametrize("num_outputs", [2, 6, 150])
def test_every_true_difference_is_accepted_after_half_precision(num_outputs: int) -> None:
    labels, base = _example(count=200, num_outputs=num_outputs, seed=8)
    assert valid_difference(difference(labels, base).half().float(), HALF_ERROR)


def test_a_constant_base_and_a_certain_one_are_accepted() -> None:
    labels = torch.tensor([0, 1, 2])
    assert valid_difference(difference(labels, base_prediction(None, 3, 3)), HALF_ERROR)
    assert valid_difference(torch.zeros(2, 3), HALF_ERROR)
    assert valid_difference(torch.tensor([[1.0, -1.0, 0.0]]), HALF_ERROR)


@pytest.mark.parametrize(
    "row",
    [
        [1.5, -0.75, -0.75],  # an entry above 1
        [0.6, -1.2, 0.6],  # an entry below −1
        [0.3, 0.3, -0.6],  # two entries positive
        [0.6, -0.2, -0.2],  # sum 0.2
        [0.2, -0.3, -0.3],  # sum −0.4
        [float("nan"), 0.0, 0.0],
        [float("inf"), float("-inf"), 0.0],
    ],
)
def test_what_no_difference_can_be_is_refused(row: Any) -> None:
    good = [0.5, -0.25, -0.25]
    assert valid_difference(torch.tensor([good, good]), HALF_ERROR)
    assert not valid_difference(torch.tensor([good, row]), HALF_ERROR)
