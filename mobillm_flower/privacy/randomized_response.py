"""K-ary randomized response: a label is kept with a known chance, otherwise another one is said."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.errors import ArgumentError


@dataclass(frozen=True)
class RandomizedResponse:
    """A pure ε-LDP release of a label in {0..K−1}.

    Kept with probability e^ε / (e^ε + K − 1), otherwise one of the K − 1 others, all alike likely: two probabilities of
    one answer differ by at most a factor e^ε. Warner 1965 for K = 2; Kairouz, Bonawitz and Ramage 2016
    (arXiv 1602.07387) for K labels.

    Parameters
    ----------
    epsilon : float
        Above 0 and finite.
    classes : int
        K ≥ 2.

    Raises
    ------
    ArgumentError
        A parameter is out of range.

    Examples
    --------
    >>> round(RandomizedResponse(epsilon=1.0, classes=2).kept, 3)
    0.731
    """

    epsilon: float
    classes: int

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ArgumentError("epsilon", self.epsilon, "must be above 0 and finite: use 0.5 to 8")
        if self.classes < 2:
            raise ArgumentError(
                "classes",
                self.classes,
                "must be at least 2: randomized response protects the class of a classification task",
            )

    @property
    def kept(self) -> float:
        """P[ỹ = y] = e^ε / (e^ε + K − 1)."""
        return 1 / (1 + (self.classes - 1) * math.exp(-self.epsilon))

    @property
    def flipped(self) -> float:
        """P[ỹ = k] for each k other than y: 1 / (e^ε + K − 1)."""
        return math.exp(-self.epsilon) * self.kept

    def release(self, labels: NDArray[np.int64], *, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Draw one release a label.

        Parameters
        ----------
        labels : ndarray [N]
            In {0..K−1}, int64.
        uniforms : ndarray [N, 2]
            Independent draws in the open interval (0, 1), used for nothing else.

        Returns
        -------
        ndarray [N]
            ỹ, int64.

        Raises
        ------
        ArgumentError
            Shapes do not fit, or a label is not in {0..K−1}.
        """
        check_shape("uniforms", uniforms, (len(labels), 2))
        check_labels(labels, len(labels), self.classes)
        kept = uniforms[:, 0] < self.kept
        return np.where(kept, labels, other_labels(labels, self.classes, uniforms[:, 1]))


def other_labels(labels: NDArray[np.int64], classes: int, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each label one of the others, all alike likely; for K = 1 the label itself."""
    return (labels + 1 + np.floor(uniforms * (classes - 1)).astype(np.int64)) % classes


def check_labels(labels: NDArray[np.int64], num_rows: int, classes: int) -> None:
    """Raise ArgumentError unless these are `num_rows` labels in {0..classes−1}; the message holds none of them."""
    check_shape("labels", labels, (num_rows,))
    if not np.issubdtype(labels.dtype, np.integer) or ((labels < 0) | (labels >= classes)).any():
        raise ArgumentError("classes", classes, f"needs labels that are integers of 0 to {classes - 1}: check the data")


def check_shape(name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    """Raise ArgumentError unless the array has this shape."""
    if array.shape != shape:
        raise ArgumentError(f"{name}.shape", array.shape, f"must be {shape}: give one row a sample")
