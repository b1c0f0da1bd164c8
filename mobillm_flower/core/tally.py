"""How predictions compare with the truth, as one vector of whole numbers that can be added up: metrics of the sum."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_LEVELS = 1 << 15  # of a number, over its range: so many samples as 2^33 fit a word of 64 bits


def tally_words(num_outputs: int, *, numbers: bool) -> int:
    """Return W of `tally`: 1 + 3·K, or of numbers 6."""
    return 6 if numbers else 1 + 3 * num_outputs


def tally_classes(true: NDArray[np.int64], predicted: NDArray[np.int64], num_outputs: int) -> NDArray[np.int64]:
    """Return n, and of each class how many samples are rightly predicted, are of it, and are predicted as it.

    Parameters
    ----------
    true, predicted : ndarray
        [B] class numbers.
    num_outputs : int
        K.

    Returns
    -------
    ndarray
        [1 + 3·K] int64.
    """
    counts = [np.bincount(part, minlength=num_outputs) for part in (true[true == predicted], true, predicted)]
    return np.concatenate([[len(true)], *counts]).astype(np.int64)


def tally_numbers(
    true: NDArray[np.float64], predicted: NDArray[np.float64], bounds: tuple[float, float]
) -> NDArray[np.int64]:
    """Return n, Σu, Σv, Σu², Σv², Σuv of numbers u and predictions v, [6] int64, on a whole-numbered scale of a range.

    Parameters
    ----------
    true, predicted : ndarray
        [B]; what lies outside the range is put at its end.
    bounds : tuple of float
        The range.
    """
    low, high = bounds
    u, v = (np.rint((np.clip(part, low, high) - low) / (high - low) * _LEVELS) for part in (true, predicted))
    sums = [u.sum(), v.sum(), (u * u).sum(), (v * v).sum(), (u * v).sum()]
    return np.array([len(u), *sums]).astype(np.int64)


def require_tally(values: NDArray[np.int64], *, most: int, numbers: bool) -> None:
    """Raise ValueError where no samples, at most so many, have this tally."""
    count = int(values[0])
    if not 0 <= count <= most:
        raise ValueError(f"a tally of {count} samples, of at most {most}")
    if numbers:
        _, first, second, squares, others, products = (int(value) for value in values)
        good = all(0 <= total <= count * _LEVELS for total in (first, second))
        good &= all(0 <= total <= count * _LEVELS**2 for total in (squares, others, products))
        good &= first**2 <= count * squares and second**2 <= count * others and products**2 <= squares * others
    else:
        right, true, predicted = values[1:].reshape(3, -1)
        good = bool((right >= 0).all() and (right <= np.minimum(true, predicted)).all())
        good &= bool(true.sum() == predicted.sum() == count)
    if not good:
        raise ValueError("no samples have such counts")


def metric_of(values: NDArray[np.int64], metric: str, *, numbers: bool) -> dict[str, float]:
    """Return a metric of a tally by its name; empty where there is no sample.

    One that does not follow from counts has accuracy in its place, and of numbers Pearson's r.
    """
    if not values[0]:
        return {}
    if numbers:
        return {"pearson": _pearson(values.astype(np.float64))}
    name = metric if metric in _OF_CLASSES else "accuracy"
    return {name: _OF_CLASSES[name](*values[1:].astype(np.float64).reshape(3, -1))}


def _accuracy(right: NDArray[np.float64], true: NDArray[np.float64], _predicted: NDArray[np.float64]) -> float:
    return float(right.sum() / true.sum())


def _f1(right: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    return float(2 * right[1] / max(1.0, true[1] + predicted[1]))


def _macro_f1(right: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    there = true + predicted > 0
    return float((2 * right[there] / (true + predicted)[there]).mean())


def _matthews(right: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    count = true.sum()
    spread = math.sqrt(float((count**2 - (predicted**2).sum()) * (count**2 - (true**2).sum())))
    return float((right.sum() * count - (true * predicted).sum()) / spread) if spread else 0.0


_OF_CLASSES: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro-f1": _macro_f1,
    "matthews": _matthews,
}


def _pearson(values: NDArray[np.float64]) -> float:
    count, u, v, uu, vv, uv = values
    spread = math.sqrt(max(0.0, (count * uu - u * u) * (count * vv - v * v)))
    return float((count * uv - u * v) / spread) if spread else 0.0
