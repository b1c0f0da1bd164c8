"""One release of a label and a unit vector together, under one pure ε: PrivUnitG with the label folded in.

PrivUnit is of Bhowmick et al. 2018 (arXiv 1812.00984), PrivUnitG of Asi, Feldman and Talwar 2022 (arXiv 2205.02466).
They release a unit vector alone; here the output space is the product of the labels and R^d, so one ε pays for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from mobillm_flower.errors import ArgumentError
from mobillm_flower.privacy.randomized_response import check_labels, check_shape, other_labels

MAX_EPSILON = 32.0
"""Above it the cap is rarer than the uniform draws' 52 bits can show, and nothing is protected."""

NORM_TOLERANCE = 1e-4
"""How far a row's L2 norm may be from 1; rows are divided by their norm before the release."""


@dataclass(frozen=True)
class LabelledCap:
    """A pure ε-LDP release (ỹ, z) of a label y in {0..K−1} and a unit vector v in R^d.

    Its density with respect to uniform({0..K−1}) × N(0, I_d) is e^ε / Z on the cap {ỹ = y, ⟨z, v⟩ ≥ h} and 1 / Z
    elsewhere, with Z = 1 + Q (e^ε − 1) and Q = Φ(−h) / K. N(0, I_d) is rotation invariant, so Q and Z are the same for
    every input, and two densities at one output differ by at most a factor e^ε, whatever the two (y, v): ε-LDP, δ = 0.

    E[1(ỹ = k) z] = m 1(y = k) v with m = φ(h) (e^ε − 1) / (K Z): vectors released under a wrong label have mean zero.
    The height h maximises m, and at the maximum m = h. h depends on ε and K only, not on d. The noise has unit variance
    in every coordinate orthogonal to v.

    The statement is of real numbers: as for every mechanism in floating point, what the rounding of z gives away is not
    counted (Mironov 2012); the codec that follows coarsens it.

    Parameters
    ----------
    epsilon : float
        Total ε of vector and label together, in (0, 32].
    classes : int
        K ≥ 1; 1 releases the vector alone (PrivUnitG).

    Raises
    ------
    ArgumentError
        A parameter is out of range.

    Examples
    --------
    >>> cap = LabelledCap(epsilon=4.0, classes=2)
    >>> round(cap.height, 3), round(cap.label_kept, 3)
    (1.278, 0.865)
    """

    epsilon: float
    classes: int

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= MAX_EPSILON:
            raise ArgumentError("epsilon", self.epsilon, f"must be above 0 and at most {MAX_EPSILON:g}: use 1 to 16")
        if self.classes < 1:
            raise ArgumentError(
                "classes", self.classes, "must be at least 1: give the number of classes, or 1 for vectors alone"
            )

    @cached_property
    def height(self) -> float:
        """The cap's height h, which is the size m of the signal as well."""
        from scipy.optimize import brentq  # a third of a second, in every process of a device

        return float(brentq(lambda h: self._signal(h) - h, 0.0, 10.0, xtol=1e-14))

    @property
    def cap(self) -> float:
        """Φ(−h): the chance that pure noise lies in the cap of its label."""
        return float(ndtr(-self.height))

    @property
    def inside(self) -> float:
        """P[(ỹ, z) is in the cap of its input] = e^ε Q / Z."""
        q = self.cap / self.classes
        return q / (q + (1 - q) * math.exp(-self.epsilon))

    @property
    def label_kept(self) -> float:
        """P[ỹ = y]; each other label has probability (1 − P) / (K − 1)."""
        return self.inside + (1 - self.inside) * self._rest

    @property
    def _rest(self) -> float:
        """P[ỹ = y | outside the cap]."""
        return (1 - self.cap) / (self.classes - self.cap)

    def _signal(self, h: float) -> float:
        phi = math.exp(-h * h / 2) / math.sqrt(2 * math.pi)
        q = float(ndtr(-h)) / self.classes
        return phi / self.classes * -math.expm1(-self.epsilon) / (q + (1 - q) * math.exp(-self.epsilon))

    def release(
        self,
        vectors: NDArray[np.float64],
        labels: NDArray[np.int64],
        *,
        uniforms: NDArray[np.float64],
        normals: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw one release a row.

        Parameters
        ----------
        vectors : ndarray [N, d]
            Rows of unit L2 norm, float64.
        labels : ndarray [N]
            In {0..K−1}, int64; zeros for K = 1.
        uniforms : ndarray [N, 4]
            Independent draws in the open interval (0, 1), used for nothing else.
        normals : ndarray [N, d]
            Independent standard normal draws, float64, used for nothing else.

        Returns
        -------
        labels : ndarray [N]
            ỹ, int64.
        vectors : ndarray [N, d]
            z, float64; E[1(ỹ = k) z / h] = 1(y = k) v.

        Raises
        ------
        ArgumentError
            Shapes do not fit, a row is not of unit norm, or a label is not in {0..K−1}.
        """
        vectors = _unit_rows(vectors)
        check_labels(labels, len(vectors), self.classes)
        check_shape("uniforms", uniforms, (len(vectors), 4))
        check_shape("normals", normals, vectors.shape)
        inside = uniforms[:, 0] < self.inside
        # outside: the true label with the rest of its space, or another label with its whole space
        true = inside | (uniforms[:, 1] < self._rest)
        other = other_labels(labels, self.classes, uniforms[:, 2])
        u = uniforms[:, 3]
        along = np.where(inside, -ndtri(self.cap * u), ndtri(np.where(true, 1 - self.cap, 1.0) * u))
        across = normals - (normals * vectors).sum(1, keepdims=True) * vectors
        return np.where(true, labels, other), along[:, None] * vectors + across


def _unit_rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    if vectors.ndim != 2:
        raise ArgumentError("vectors.shape", vectors.shape, "must be [N, d]: give one row a sample")
    norms: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # NaN is wrong too
    if wrong.any():
        raise ArgumentError(
            "vectors",
            len(vectors),
            f"rows, {int(wrong.sum())} of which are not of L2 norm 1 within {NORM_TOLERANCE:g}: divide each by its "
            "norm, and give a fixed unit vector for one that is zero",
        )
    unit: NDArray[np.float64] = vectors / norms
    return unit
