"""An accuracy with noise: the number of right predictions, under an ε for each test row."""

from __future__ import annotations

import math
import secrets


def noisy_accuracy(accuracy: float, num_rows: int, *, epsilon: float) -> float:
    """Return an accuracy whose count of right predictions carries two-sided geometric noise: ε-DP for each row.

    P[noise = n] is proportional to e^(−ε|n|), and replacing a row moves the count by at most one (Ghosh, Roughgarden
    and Sundararajan 2009). It is drawn from the system's randomness: a number that is made again is another draw.

    Parameters
    ----------
    accuracy : float
        Share of right predictions.
    num_rows : int
        Of how many, at least 1; it stays plain.
    epsilon : float
        Above 0.

    Returns
    -------
    float
        In [0, 1].
    """
    noisy = round(accuracy * num_rows) + _geometric(epsilon) - _geometric(epsilon)
    return min(num_rows, max(0, noisy)) / num_rows


def _geometric(epsilon: float) -> int:
    """Draw n ≥ 0 with P[n] = (1 − e^−ε) e^(−εn)."""
    uniform = (secrets.randbits(52) + 0.5) * 2.0**-52
    return math.floor(-math.log(uniform) / epsilon)
