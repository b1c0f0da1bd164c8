"""Whether two releases of the same samples were made with the same noise: an attack that must find nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from mobillm_flower.audit.attacks.empirical_epsilon import CONFIDENCE


@dataclass(frozen=True)
class NoiseReuse:
    """The cosine of two noises orthogonal to the samples, and the chance of it under independent noise."""

    cosine: float
    p_value: float

    @property
    def is_reused(self) -> bool:
        """Whether independent noises would look like this in less than one case of a thousand."""
        return self.p_value < 1 - CONFIDENCE


def reused_noise(first: NDArray[Any], second: NDArray[Any], clean: NDArray[Any]) -> NoiseReuse:
    """Compare the noises of two releases [N, d] of samples [N, d], decoded, under two settings.

    Who gets both subtracts one from the other: with the same draws n, C·v + σ₁ n and C·v + σ₂ n give v exactly, and
    two cap releases give v's direction. For an auditor who holds the samples, the parts orthogonal to them are noise
    alone, isotropic in m = N (d − 1) dimensions, and the cosine of two independent ones has
    cos² ~ Beta(1/2, (m − 1)/2), whatever the two σ or ε.
    """
    unit = clean / np.linalg.norm(clean, axis=1, keepdims=True)
    one, two = (_unit(released - (released * unit).sum(1, keepdims=True) * unit) for released in (first, second))
    cosine = float(np.clip(one @ two, -1.0, 1.0))
    dimensions = len(clean) * (clean.shape[1] - 1)
    return NoiseReuse(cosine, float(betainc((dimensions - 1) / 2, 0.5, (1 - cosine) * (1 + cosine))))


def _unit(values: NDArray[Any]) -> NDArray[np.float64]:
    flat = values.astype(np.float64).ravel()
    length = np.linalg.norm(flat)
    return flat / length if length > 0 else flat
