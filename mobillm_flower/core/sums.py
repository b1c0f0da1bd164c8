"""Sufficient statistics of a ridge regression as one vector of whole numbers, exact in any order and partition.

AFL (He et al. 2025, 2405.16240): the sums of a fleet's devices give the solution of all their samples. Here each sample
is rounded to whole numbers first, so that addition is exact, and the vector is kept modulo 2^k, so that it can be
masked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[Any]
"""A statistic modulo 2^32 or 2^64, [W] uint32 or uint64."""

NUM_COUNTS = 3  # n, how many vectors were clipped, Σ‖t‖²
SPREAD = 6.0
"""Standard deviations of a value of a unit vector of D values, 1/√D, at which it is clipped."""
_FEWEST_LEVELS, _MOST_LEVELS = 32, 1 << 15


@dataclass(frozen=True)
class SumShape:
    """Where what lies in a statistic: n, clipped, Σ‖t‖², Σz, Σt, the upper triangle of Σzzᵀ, and Σztᵀ.

    Parameters
    ----------
    width, num_outputs : int
        D and K.
    """

    width: int
    num_outputs: int

    @property
    def num_words(self) -> int:
        """W = D(D+3)/2 + D·K + K + 3."""
        d, k = self.width, self.num_outputs
        return d * (d + 3) // 2 + d * k + k + NUM_COUNTS

    def split(self, values: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return counts [3], Σz [D], Σt [K], triangle [D(D+1)/2] and Σztᵀ [D, K] of a statistic [W], as views."""
        d, k = self.width, self.num_outputs
        places = np.cumsum([NUM_COUNTS, d, k, d * (d + 1) // 2])
        counts, rows, targets, triangle, moment = np.split(values, places)
        return counts, rows, targets, triangle, moment.reshape(d, k)

    def gram(self, triangle: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the symmetric matrix [D, D] of its upper triangle, row by row."""
        above = np.zeros((self.width, self.width))
        above[_triangle(self.width)] = triangle
        return above + np.triu(above, 1).T


@dataclass(frozen=True)
class Scale:
    """How samples become whole numbers, and why no sum of them overflows.

    A unit vector z becomes q = round((s − √D/2)·z), each value cut to ±c: ‖q‖ ≤ s whatever the rounding. A target of
    norm at most 1 becomes round((c − √K/2)·t), of norm at most c. With s = c·√D/6 each entry of any sum over n samples
    is at most n·c² in magnitude but for the trace's n·s², which is spread over D entries of at most n·c² each. No sum
    of at most `capacity` samples leaves the range of a signed word where (capacity + noise)·c² < 2^(bits−1).

    Parameters
    ----------
    levels : int
        c.
    radius : float
        s.
    bits : int
        32 or 64.
    """

    levels: int
    radius: float
    bits: int

    @classmethod
    def of(cls, shape: SumShape, capacity: int, *, noise: float = 0.0) -> Scale:
        """Return the finest scale for so many samples in the shortest word.

        Parameters
        ----------
        shape : SumShape
            D and K.
        capacity : int
            Most samples of all devices together.
        noise : float
            Largest noise of an entry that must fit beside them, over c².
        """
        fewest = max(_FEWEST_LEVELS, math.ceil(2 * math.sqrt(shape.num_outputs)))
        for bits in (32, 64):
            room = (1 << (bits - 1)) - 1
            levels = min(_MOST_LEVELS, math.isqrt(int(room / (capacity + noise))))
            if levels >= fewest:
                break
        return cls(levels, levels * math.sqrt(shape.width) / SPREAD, bits)

    def rows(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
        """Return z [B, D] of norm at most 1 as whole numbers, and how many vectors had to be clipped."""
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        whole = np.rint(rows / np.maximum(norms, 1.0) * self.row_unit(rows.shape[1]))
        cut = np.clip(whole, -self.levels, self.levels)
        clipped = (norms[:, 0] > 1 + 1e-6) | (cut != whole).any(1)
        return cut, int(clipped.sum())

    def targets(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return targets [B, K] as whole numbers; one of norm above 1 is shortened to it."""
        norms = np.linalg.norm(targets, axis=1, keepdims=True)
        unit = self.target_unit(targets.shape[1])
        whole: NDArray[np.float64] = np.rint(targets / np.maximum(norms, 1.0) * unit)
        return whole

    def row_unit(self, width: int) -> float:
        """Return what 1 of z became: s − √D/2."""
        return self.radius - math.sqrt(width) / 2

    def target_unit(self, num_outputs: int) -> float:
        """Return what 1 of a target became: c − √K/2."""
        return self.levels - math.sqrt(num_outputs) / 2


def statistic(rows: NDArray[np.float64], targets: NDArray[np.float64], scale: Scale) -> NDArray[np.int64]:
    """Return the statistic [W] of samples: z [B, D] and targets [B, K], float64."""
    shape = SumShape(rows.shape[1], targets.shape[1])
    values = np.zeros(shape.num_words, np.int64)
    counts, sum_rows, sum_targets, triangle, moment = shape.split(values)
    whole, clipped = scale.rows(rows)
    wanted = scale.targets(targets)
    # products of whole numbers below 2^53 are exact in float64, whatever the order a library adds them in
    counts[:] = len(rows), clipped, int(np.square(wanted).sum())
    sum_rows[:], sum_targets[:] = whole.sum(0), wanted.sum(0)
    triangle[:] = (whole.T @ whole)[_triangle(shape.width)]
    moment[:] = whole.T @ wanted
    return values


def word_type(bits: int) -> type[np.uint32] | type[np.uint64]:
    """Return numpy's type of words of 32 or 64 bits."""
    return np.uint32 if bits == 32 else np.uint64


def wrap(values: NDArray[np.int64], bits: int) -> Words:
    """Return whole numbers modulo 2^bits."""
    words: Words = values.astype(np.uint64).astype(word_type(bits))
    return words


def lift(words: Words) -> NDArray[np.int64]:
    """Return the whole numbers of least magnitude that are these words modulo 2^bits."""
    return words.view(np.int32 if words.dtype == np.uint32 else np.int64).astype(np.int64)


def add_words(parts: Iterable[Words]) -> Words:
    """Add statistics modulo 2^bits; there must be one."""
    total: Words | None = None
    for part in parts:
        total = part.copy() if total is None else total + part
    assert total is not None
    return total


def width_within(num_bytes: float, num_outputs: int) -> int:
    """Return the largest D whose statistic fits so many bytes in words of 32 bits; 0 where none does."""
    words, linear = num_bytes / 4 - num_outputs - NUM_COUNTS, num_outputs + 1.5
    return max(0, int(math.sqrt(max(0.0, linear**2 + 2 * words)) - linear))


@lru_cache(maxsize=8)
def _triangle(width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    above = np.triu_indices(width)
    return above[0], above[1]
