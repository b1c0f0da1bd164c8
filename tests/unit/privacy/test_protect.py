"""What the mechanisms of a run make is never refused for its length, and what they cannot make is."""

from __future__ import annotations

import pytest
import torch

from mobillm_flower.privacy.protect import Protection


@pytest.mark.parametrize(
    "protection",
    [
        *(Protection(classes=3, joint_epsilon=epsilon) for epsilon in (0.5, 8.0, 32.0)),
        *(Protection(classes=3, clip_norm=2.0, sigma=sigma) for sigma in (0.0, 0.1, 5.0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [2, 64, 512])
def test_what_was_protected_is_no_longer_than_that(protection: Protection, width: int) -> None:
    vectors = torch.randn(200, 1, 1, 1, width, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    unit = list(vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True))
    sent, _ = protection(unit, torch.arange(200) % 3, [i.to_bytes(32, "big") for i in range(200)])
    longest = protection.longest(torch.tensor([float(width)]))
    assert longest is not None
    lengths = torch.stack([torch.linalg.vector_norm(one) for one in sent])
    assert bool((lengths < longest).all())
    assert float(longest) < 4 * float(lengths.max()) + 10


def test_where_nothing_is_clipped_any_length_may_be() -> None:
    assert Protection(classes=3, label_epsilon=1.0).longest(torch.tensor([8.0])) is None
