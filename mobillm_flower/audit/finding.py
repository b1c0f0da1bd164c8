"""What an attack reached: value, baseline without the attack, 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Z95 = 1.959963984540054
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Measured:
    """One attack under one seed.

    Parameters
    ----------
    value : float
        What it reached.
    baseline : float
        What one reaches without looking at the uploads.
    error : float
        Standard error of `value` over the attacked samples.
    count : int
        Attacked samples (or pairs).
    theory : float or None
        What the mechanism's mathematics says that the attack reaches, where it says so.
    leaked : int or None
        Leaked samples that a secret key was recovered from, for the attacks that recover one from them.
    """

    value: float
    baseline: float
    error: float
    count: int
    theory: float | None = None
    leaked: int | None = None


@dataclass(frozen=True)
class Finding:
    """One attack over all seeds.

    Parameters
    ----------
    value, low, high : float
        Mean over seeds and its 95 % interval.
    baseline : float
        See `Measured`.
    seeds : list of float
        The value under each seed.
    count : int
        Attacked samples a seed.
    theory, leaked : float or None, int or None
        See `Measured`.
    """

    value: float
    low: float
    high: float
    baseline: float
    seeds: list[float]
    count: int
    theory: float | None = None
    leaked: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, rounded to six digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def of_scores(
    scores: NDArray[np.floating[Any]] | NDArray[np.bool_], baseline: float, *, theory: float | None = None
) -> Measured:
    """Return the mean of a score from 0 to 1 a sample.

    Its error is computed with two more samples at 0 and two at 1 (Agresti and Coull), so that a share of 1 is not taken
    for certain.

    Parameters
    ----------
    scores : ndarray
        [N], numbers from 0 to 1 or booleans.
    baseline, theory : float, float or None
        See `Measured`.
    """
    values = np.asarray(scores, np.float64)
    padded = np.concatenate([values, [0.0, 0.0, 1.0, 1.0]])
    error = float(padded.std() / math.sqrt(len(padded)))
    return Measured(float(values.mean()), float(baseline), error, len(values), theory)


def of_auc(positive: NDArray[np.floating[Any]], negative: NDArray[np.floating[Any]]) -> Measured:
    """Return the area under the ROC curve of a score that should be higher for `positive`; its baseline is 0.5.

    The error is Hanley and McNeil's (1982).
    """
    n, m = len(positive), len(negative)
    auc = float(roc_auc_score(np.repeat([1, 0], [n, m]), np.concatenate([positive, negative])))
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    return Measured(auc, 0.5, math.sqrt(max(variance, 0.25 / (n * m))), n + m)


def combine(measured: Sequence[Measured]) -> Finding:
    """Return the mean over seeds of one attack.

    Seeds attack samples of the same data, so that more seeds do not shrink the sampling error: the interval is 1.96 ·
    √(mean squared error over samples + variance between seeds / number of seeds).
    """
    values = np.array([one.value for one in measured])
    between = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    half = Z95 * math.sqrt(float(np.mean([one.error**2 for one in measured])) + between)
    value = float(values.mean())
    theories = [one.theory for one in measured if one.theory is not None]
    return Finding(
        value=value,
        low=max(0.0, value - half),
        high=min(1.0, value + half),
        baseline=float(np.mean([one.baseline for one in measured])),
        seeds=values.tolist(),
        count=round(float(np.mean([one.count for one in measured]))),
        theory=float(np.mean(theories)) if theories else None,
        leaked=measured[0].leaked,
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
