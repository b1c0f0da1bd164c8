"""What happens to a sample's activations before they are encoded: standardise, clip, add noise, keep the largest.

The noise itself is drawn in `mobillm_flower.privacy`, from a cryptographic generator, and handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardisation:
    """A fixed shift and scale per layer and channel, fitted on public text only.

    Parameters
    ----------
    shift, scale : Tensor
        [M, P, d], float32; scale is positive.
    """

    shift: Tensor
    scale: Tensor

    def __call__(self, activations: Tensor) -> Tensor:
        """Return (a − shift) / scale for activations [T, M, P, d]."""
        return (activations - self.shift) / self.scale


def fit_standardisation(activations: Tensor) -> Standardisation:
    """Fit shift and scale on public activations.

    Parameters
    ----------
    activations : Tensor
        [N, M, P, d], float32: N vectors from public text.

    Returns
    -------
    Standardisation
        The mean, and the standard deviation, at least 1e-6: standardised values have unit variance, so that the norm
        of a sample is about √(M·P·d) for every backbone.
    """
    return Standardisation(activations.mean(0), activations.std(0, correction=0).clamp_min(1e-6))


def clip_joint(activations: Tensor, clip_norm: float) -> Tensor:
    """Scale a sample's whole tensor so that its L2 norm is at most `clip_norm`; smaller ones stay as they are."""
    norm = float(torch.linalg.vector_norm(activations))
    return activations * (clip_norm / norm) if norm > clip_norm else activations


def perturb(activations: Tensor, *, clip_norm: float, sigma: float, noise: Tensor | None) -> Tensor:
    """Clip jointly to L2 norm C, then add σ times standard normal noise (0 switches either off).

    Parameters
    ----------
    activations : Tensor
        One sample, any shape, float32.
    clip_norm, sigma : float
        C and σ.
    noise : Tensor or None
        Standard normal draws of the same shape; needed when σ > 0.

    Raises
    ------
    ValueError
        σ > 0 and no noise of that shape is given.
    """
    if clip_norm > 0:
        activations = clip_joint(activations, clip_norm)
    if sigma > 0:
        if noise is None or noise.shape != activations.shape:
            raise ValueError("sigma is above 0: give standard normal noise of the activations' shape")
        activations = activations + sigma * noise
    return activations


def largest_mask(vectors: Tensor, keep: float) -> Tensor:
    """Mark the k = ceil(keep·d) largest magnitudes of each row of [V, d]; ties go to the lower index."""
    k = num_kept(vectors.shape[1], keep)
    order = torch.sort(vectors.abs(), dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(vectors, dtype=torch.bool).scatter_(1, order, True)


def num_kept(width: int, keep: float) -> int:
    """Return k, the values kept of a vector of `width`: ceil(keep·width), at least 1."""
    return max(1, math.ceil(round(keep * width, 9)))
