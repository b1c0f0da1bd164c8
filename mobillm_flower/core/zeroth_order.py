"""Zeroth-order optimisation from a pool of seeds: directions that both sides draw again (FedKSeed, arXiv 2312.06353).

w = w_0 − η Σ_k a_k z_k, where z_k ~ N(0, I) is drawn from seed k alone and a_k is the sum of its projected gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def move(parameters: Sequence[Tensor], seed: int, step: float) -> None:
    """Add `step` · z(seed) to parameters in place, one tensor's share of z after another (float32)."""
    generator = torch.Generator(device=parameters[0].device).manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            z = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.add_(z.to(parameter.dtype), alpha=step)


def projected_gradient(loss: Callable[[], float], parameters: Sequence[Tensor], seed: int, *, epsilon: float) -> float:
    """Return (L(w + εz) − L(w − εz)) / 2ε, the gradient along z(seed), from two forward passes; w is put back."""
    move(parameters, seed, epsilon)
    above = loss()
    move(parameters, seed, -2 * epsilon)
    below = loss()
    move(parameters, seed, epsilon)
    return (above - below) / (2 * epsilon)


def replay(parameters: Sequence[Tensor], sums: Mapping[int, float], *, learning_rate: float) -> None:
    """Take the steps that a pool of seeds has gathered: w −= η Σ_k a_k z_k, in place, by ascending seed."""
    for seed in sorted(sums):
        if sums[seed]:
            move(parameters, seed, -learning_rate * sums[seed])
