"""What sums over a device's samples tell of one of them: its label, and whether it is in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.audit.finding import Measured, of_auc, of_scores
from mobillm_flower.core.sums import lift
from mobillm_flower.wire.sums import SumsSpec


class SumsAttack:
    """Attacks one statistic with everything that is public: backbone, projection, scale.

    Parameters
    ----------
    words : ndarray
        [W], a device's or a group's, modulo 2^bits.
    spec : SumsSpec
        How it was made.
    """

    def __init__(self, words: NDArray[np.uint32], spec: SumsSpec) -> None:
        _, _, _, triangle, moment = spec.shape.split(lift(words).astype(np.float64))
        unit = spec.scale.row_unit(spec.width)
        gram = spec.shape.gram(triangle) / unit**2
        # directions that no sample has hold nothing but rounding
        values, vectors = np.linalg.eigh(gram)
        self._span = vectors[:, values > 1e-3 * values.max()]
        self._inverse = self._span / values[values > 1e-3 * values.max()] @ self._span.T
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

    def _distance(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return zᵀG⁺z, at most about 1 for a member; what of z lies outside the members' span counts far more."""
        leverage = np.einsum("bi,ij,bj->b", rows, self._inverse, rows)
        outside = np.square(rows).sum(1) - np.square(rows @ self._span).sum(1)
        distance: NDArray[np.float64] = leverage + 1e3 * outside
        return distance
