"""Unit vectors along the directions of public text."""

from typing import Any

import pytest
import torch

from mobillm_flower.core.projection import Projection, fit_principal, fit_projection
from mobillm_flower.errors import ArgumentError


@pytest.fixture
def public() -> Any:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 2, 3, 8, generator=generator) * torch.linspace(1, 4, 8)


def test_projected_public_text_is_white_before_it_is_scaled_to_unit_norm(public: Any) -> None:
    fitted = fit_projection(public, 5)
    raw = (public.flatten(1).double() - fitted.centre) @ fitted.basis
    assert torch.allclose(raw.T @ raw / len(raw), torch.eye(5, dtype=torch.double), atol=1e-9)
    vectors = fitted(public)
    assert (vectors.shape, vectors.dtype) == ((60, 1, 1, 5), torch.float64)
    assert torch.allclose(vectors.flatten(1).norm(dim=1), torch.ones(60, dtype=torch.double))
    assert torch.allclose(vectors.flatten(1), raw / raw.norm(dim=1, keepdim=True))


def test_directions_are_those_of_the_largest_variance(public: Any) -> None:
    rows = public.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))
    fitted = fit_projection(public, 3)
    for k in range(3):
        direction = fitted.basis[:, k] * values[-1 - k].sqrt()
        assert abs(float(direction @ vectors[:, -1 - k])) == pytest.approx(1, abs=1e-9)


def test_devices_that_round_differently_agree(public: Any) -> None:
    noisy = public + 1e-6 * torch.randn(public.shape, generator=torch.Generator().manual_seed(1))
    one, other = fit_projection(public, 6), fit_projection(noisy, 6)
    assert torch.allclose(one(public), other(public), atol=1e-4)


def test_a_sample_at_the_centre_has_some_direction() -> None:
    projection = Projection(torch.ones(4, dtype=torch.double), torch.eye(4, 2, dtype=torch.double))
    assert projection(torch.ones(1, 1, 1, 4)).flatten().tolist() == [1.0, 0.0]


def test_too_few_public_texts_are_refused(public: Any) -> None:
    with pytest.raises(ArgumentError, match="needs more than 40 public texts"):
        fit_projection(public[:40], 48)
    same = public[:1].expand(60, -1, -1, -1)
    with pytest.raises(ArgumentError, match="vary in fewer directions"):
        fit_projection(same + 1e-12, 2)


def test_principal_directions_span_what_varies_most_and_agree_between_devices() -> None:
    random = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 300)[None, :]
    public = (torch.randn(60, 300, generator=random) * scale).reshape(60, 3, 1, 100)
    rows = public.flatten(1).double()
    standard = (rows - rows.mean(0)) / rows.std(0, correction=0)
    made = fit_principal(public, 20)
    directions = torch.linalg.svd(standard, full_matrices=False)[2][:20].T
    scaled = made.basis * rows.std(0, correction=0)[:, None]
    assert torch.allclose(scaled.T @ scaled, torch.eye(20, dtype=torch.double), atol=1e-9)
    assert torch.allclose(scaled @ (scaled.T @ directions), directions, atol=1e-9)  # the same space
    other = fit_principal(public * (1 + 1e-7 * torch.randn(public.shape, generator=random)), 20)
    texts = torch.randn(50, 3, 1, 100, generator=random)
    assert float((made(texts) - other(texts)).abs().max()) < 1e-5
    assert float(made(texts).abs().max()) * 20**0.5 < 5  # no value stands out
