"""What sums over a device's samples tell of one of them: its label, and whether it is in them."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.audit.attacks.empirical_epsilon import EpsilonCheck, lower_by_threshold
from mobillm_flower.audit.finding import Measured, of_auc, of_scores
from mobillm_flower.clients.summing import sample_statistic, shortened
from mobillm_flower.privacy.discrete_gaussian import discrete_gaussian
from mobillm_flower.server.sums import gram_noise, noise_variances
from mobillm_flower.wire.sums import SumsSpec


class SumsAttack:
    """Attacks one statistic with everything that is public: backbone, projection, scale.

    Parameters
    ----------
    values : ndarray
        [W] int64, a device's or a group's.
    spec : SumsSpec
        How it was made.
    noised : bool
        Whether noise was added; every direction then holds some, and counts for less the more of it there is.
    """

    def __init__(self, values: NDArray[np.int64], spec: SumsSpec, *, noised: bool = False) -> None:
        _, _, _, triangle, moment = spec.shape.split(values.astype(np.float64))
        unit = spec.scale.row_unit(spec.width)
        spread, vectors = np.linalg.eigh(spec.shape.gram(triangle) / unit**2)
        if noised:
            spread = np.maximum(spread, 0) + gram_noise(spec)
        # directions that no sample has hold nothing but rounding
        kept = spread > 1e-3 * spread.max()
        self._span = vectors[:, kept]
        self._inverse = self._span / spread[kept] @ self._span.T
        self._solution = self._inverse @ moment / (unit * spec.scale.target_unit(spec.num_outputs))

    def labels(self, rows: NDArray[np.float64], labels: NDArray[np.int64]) -> Measured:
        """Guess the labels of samples whose texts the attacker knows to be in the sums, from z [B, D].

        With fewer samples than dimensions the least-squares solution gives each sample's target back.
        """
        right = (rows @ self._solution).argmax(1) == labels
        return of_scores(right, float(np.bincount(labels).max() / len(labels)))

    def membership(self, members: NDArray[np.float64], others: NDArray[np.float64]) -> Measured:
        """Tell texts that are in the sums from others by how much of z [B, D] lies where the sums are."""
        return of_auc(*(-self._distance(rows) for rows in (members, others)))

    def lookup(self, members: NDArray[np.float64], others: NDArray[np.float64]) -> Measured:
        """Find each member's z [B, D] among suspected texts that are not in the sums, [C, D]."""
        nearest = self._distance(members) < self._distance(others).min()
        return of_scores(nearest, 1 / (len(others) + 1))

    def _distance(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return zᵀG⁺z, at most about 1 for a member; what of z lies outside the members' span counts far more."""
        leverage = np.einsum("bi,ij,bj->b", rows, self._inverse, rows)
        outside = np.square(rows).sum(1) - np.square(rows @ self._span).sum(1)
        distance: NDArray[np.float64] = leverage + 1e3 * outside
        return distance


def check_sums_noise(sums: SumsSpec, *, draws: int) -> EpsilonCheck:
    """Bound the ε of the noise on sums by its draws: a canary is in the sums, or the one farthest from it.

    Two values suffice for the worst pair, of zᵀz' = ½ and opposite targets, whose sums are √4.5 apart; ε depends on no
    other value. The draws' projection on the difference, each word over its variance, is the likelihood ratio.

    Parameters
    ----------
    sums : SumsSpec
        A run's, with noise.
    draws : int
        Counted draws of each input; as many again choose the threshold.
    """
    small = dataclasses.replace(sums, width=2, num_outputs=1, target_bound=1.0, intercept=0.0)
    copies = max(1, sums.device_rows)
    canaries = (np.array([[1.0, 0.0]]), 1.0), (np.array([[0.5, np.sqrt(0.75)]]), -1.0)
    first, second = (
        shortened(copies * sample_statistic(row, np.array([[target]]), small), small) for row, target in canaries
    )
    variances = noise_variances(small)
    noised = variances > 0
    apart = np.where(noised, (first - second) / np.where(noised, variances, 1.0), 0.0)

    def projected(values: NDArray[np.int64], chunk: bytes, count: int) -> NDArray[np.float64]:
        noise = discrete_gaussian(np.tile(variances, count), key=chunk).reshape(count, -1)
        score: NDArray[np.float64] = (noise + values).astype(np.float64) @ apart
        return score

    inputs = partial(projected, first), partial(projected, second)
    lower = lower_by_threshold(*inputs, draws=draws, delta=sums.delta)
    return EpsilonCheck(f"discrete Gaussian on sums, one {sums.unit}", sums.epsilon, sums.delta, lower, draws)
