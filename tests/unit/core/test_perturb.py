"""Standardise, clip, add noise, keep the largest: each against its definition."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch

from mobillm_flower.core.perturb import (
    Standardisation,
    clip_joint,
    fit_standardisation,
    largest_mask,
    num_kept,
    perturb,
)


def _randn(*shape: Any, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_standardised_public_activations_have_mean_zero_and_variance_one() -> None:
    scale = torch.tensor([1.0, 100.0]).reshape(1, 2, 1, 1)  # one large layer
    public = _randn(500, 2, 3, 4) * scale + 7
    fitted = fit_standardisation(public)
    standard = fitted(public)
    assert fitted.shift.shape == fitted.scale.shape == (2, 3, 4)
    torch.testing.assert_close(standard.mean(0), torch.zeros(2, 3, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.var(0, correction=0), torch.ones(2, 3, 4), atol=1e-4, rtol=0)


def test_a_constant_channel_stays_finite() -> None:
    public = _randn(20, 1, 1, 3)
    public[..., 1] = 4.0
    fitted = fit_standardisation(public)
    assert bool((fitted.scale > 0).all())
    assert float(fitted(public)[..., 1].abs().max()) == 0.0


def test_standardisation_uses_its_constants_and_not_the_sample() -> None:
    standardise = Standardisation(torch.full((1, 1, 2), 3.0), torch.tensor([[[2.0, 4.0]]]))
    activations = torch.tensor([[[[5.0, 5.0]]], [[[3.0, -5.0]]]])
    assert standardise(activations).flatten().tolist() == [1.0, 0.5, 0.0, -2.0]


def test_clipping_is_joint_over_the_whole_sample() -> None:
    activations = _randn(4, 3, 2, 8)
    clipped = clip_joint(activations, 2.5)
    assert float(torch.linalg.vector_norm(clipped)) == pytest.approx(2.5, rel=1e-5)
    ratio = clipped / activations
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio.mean())))  # one factor for every value


def test_a_sample_within_the_norm_is_left_as_it_is() -> None:
    activations = torch.tensor([3.0, 4.0])
    assert torch.equal(clip_joint(activations, 5.0), activations)
    assert torch.equal(clip_joint(torch.zeros(3), 1.0), torch.zeros(3))


def test_noise_is_added_after_clipping() -> None:
    activations, noise = 100 * _randn(2, 3, 4), _randn(2, 3, 4, seed=1)
    perturbed = perturb(activations, clip_norm=1.0, sigma=0.5, noise=noise)
    torch.testing.assert_close(perturbed, clip_joint(activations, 1.0) + 0.5 * noise)


@pytest.mark.parametrize(("clip_norm", "sigma"), [(0.0, 0.0), (2.0, 0.0), (0.0, 0.3)])
def test_zero_switches_either_off(clip_norm: float, sigma: float) -> None:
    activations, noise = 100 * _randn(6), _randn(6, seed=1)
    perturbed = perturb(activations, clip_norm=clip_norm, sigma=sigma, noise=noise)
    expected = activations * (clip_norm / activations.norm()) if clip_norm else activations
    torch.testing.assert_close(perturbed, expected + sigma * noise)


def test_the_given_activations_are_not_changed() -> None:
    activations = 100 * _randn(6)
    before = activations.clone()
    perturb(activations, clip_norm=1.0, sigma=0.5, noise=_randn(6, seed=1))
    assert torch.equal(activations, before)


@pytest.mark.parametrize("noise", [None, torch.zeros(1), torch.zeros(6, 1)])
def test_noise_that_is_missing_or_would_be_broadcast_is_refused(noise: Any) -> None:
    with pytest.raises(ValueError, match="give standard normal noise of the activations' shape"):
        perturb(torch.ones(6), clip_norm=1.0, sigma=0.5, noise=noise)


@pytest.mark.parametrize("keep", ["0.01", "0.1", "0.25", "0.3", "0.55", "0.7", "1"])
def test_num_kept_is_the_exact_ceiling(keep: str) -> None:
    for width in range(1, 1025):
        assert num_kept(width, float(keep)) == math.ceil(Fraction(keep) * width), width


def test_at_least_one_value_is_kept() -> None:
    assert num_kept(5, 1e-12) == 1


@pytest.mark.parametrize("keep", [0.05, 0.25, 0.6, 1.0])
def test_the_largest_magnitudes_of_every_vector_are_marked(keep: float) -> None:
    vectors = _randn(9, 21) * torch.arange(1, 10).reshape(9, 1)  # rows of very different size
    mask = largest_mask(vectors, keep)
    for row in range(9):
        order = sorted(range(21), key=lambda i: (-abs(float(vectors[row, i])), i))
        assert set(mask[row].nonzero().flatten().tolist()) == set(order[: num_kept(21, keep)])


def test_ties_go_to_the_lower_index() -> None:
    mask = largest_mask(torch.tensor([[0.0, -2.0, 1.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0]]), 0.6)
    assert mask.int().tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
