"""Ridge regression from rows or from sums: the solution that training starts from, and often ends with.

All is float64, and depends on the order of the parts and on nothing else. It is computed where the rows are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

_EXPONENTS = (-4.0, 3.0)  # of λ over the rows' mean squared norm, base 10
_STEP = 0.5
HELD_OUT = 2048
"""Rows whose left-out predictions are computed where there are more rows than columns."""
_LEAST = 1e-9
_BLOCK = 512  # columns of a Gram matrix at a time, of which the upper triangle is left out


@dataclass(frozen=True)
class Solution:
    """What `Ridge.solve` gives.

    Parameters
    ----------
    weight, bias : Tensor
        [K, D] and [K] float64.
    penalty : float
        λ that was chosen.
    left_out : Tensor
        [m, K] float64: the predictions of the last m rows, each by the solution of all rows but it (and its equals).
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    left_out: Tensor


@dataclass(frozen=True)
class SolvedSums:
    """What `Sums.choose` gives.

    Parameters
    ----------
    weight, bias : Tensor
        [D, K] and [K] float64.
    penalty : float
        λ that was chosen.
    inverse : Tensor
        [D, D]: of the Cholesky factor of the centred Gram matrix with λ.
    error : float
        Sum of squared errors that generalized cross-validation expects.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    inverse: Tensor
    error: float


class Ridge:
    """W, b of least Σ w·‖t − Wᵀz − b‖² + λ·‖W‖²: rows are kept up to their width, and only sums beyond that.

    λ is chosen by the error of leaving one row out, exactly where rows are kept (rows that are equal are left out
    together), by generalized cross-validation from the sums otherwise. Where noise of known variance is in the rows,
    what it adds to the error, Σ noise·W², is subtracted: λ is chosen for rows without noise. (Its share in the Gram
    matrix, n·variance·I, is a part of λ.) Memory: 8·D·(min(n, D) + D) bytes or less, and as much again while solving.

    Parameters
    ----------
    width, num_outputs : int
        D and K.
    noise : Tensor, optional
        Variance of the noise in each column of the rows, [D].
    """

    def __init__(self, width: int, num_outputs: int, *, noise: Tensor | None = None) -> None:
        self.width, self.num_outputs = width, num_outputs
        self._noise = torch.zeros(width).double() if noise is None else noise.double()
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0
        self._sums: Sums | None = None

    def add(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Take in rows [B, D], targets [B, K] and positive weights [B]."""
        part = rows.double(), targets.double(), weights.double()
        self._count += len(rows)
        self._parts.append(part)
        if self._sums is not None:
            self._sums.add(*part)
        elif self._count > self.width:
            self._sums = Sums(self.width, self.num_outputs, rows.device)
            for earlier in self._parts:
                self._sums.add(*earlier)
        if self._sums is not None:
            while sum(len(kept) for kept, _, _ in self._parts[1:]) >= HELD_OUT:
                del self._parts[0]

    @property
    def num_parts(self) -> int:
        """How many of the last parts are kept; `solve` predicts their last rows."""
        return len(self._parts)

    def solve(self) -> Solution:
        """Choose λ and solve; there must be a row."""
        rows, targets, weights = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        noise = self._noise.to(rows.device)
        if self._sums is None:
            return _from_rows(rows, targets, weights, noise)
        return self._sums.solve(rows[-HELD_OUT:], targets[-HELD_OUT:], weights[-HELD_OUT:], noise)


class Sums:
    """Σw, Σwz, Σwt, Σwzzᵀ, Σwztᵀ and Σw‖t‖²."""

    def __init__(self, width: int, num_outputs: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, dtype=torch.double, device=device)
        self.count, self.weight, self.square = 0, zeros(()), zeros(())
        self.rows, self.targets = zeros(width), zeros(num_outputs)
        self.gram, self.moment = zeros(width, width), zeros(width, num_outputs)

    def add(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Take in rows [B, D], targets [B, K] and weights [B], all float64."""
        weighted = rows * weights[:, None]
        self.count += len(rows)
        self.weight += weights.sum()
        self.rows += weighted.sum(0)
        self.targets += weights @ targets
        self.square += weights @ targets.square().sum(1)
        _add_gram(self.gram, weights.sqrt()[:, None] * rows)
        self.moment.addmm_(weighted.T, targets)

    def choose(self, noise: Tensor | None = None) -> SolvedSums:
        """Solve with λ by generalized cross-validation, for rows without `noise` [D] as in `Ridge`."""
        centre, level = self.rows / self.weight, self.targets / self.weight
        gram = _whole(self.gram).addr_(self.rows, centre, alpha=-1)
        moment = self.moment.addr(self.rows, level, alpha=-1)
        square = self.square - self.weight * level.square().sum()
        eye = torch.eye(len(gram), dtype=torch.double, device=gram.device)
        solved: dict[float, tuple[Tensor, Tensor, float]] = {}

        def error(penalty: float) -> float:
            factor = torch.linalg.cholesky(gram + penalty * eye)
            inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
            weight = torch.cholesky_solve(moment, factor)
            residual = square - (weight * moment).sum() - penalty * weight.square().sum()
            freedom = 1 + len(gram) - penalty * inverse.square().sum()
            value = float(residual / (1 - freedom / self.count).clamp_min(_LEAST).square())
            solved.clear()
            solved[penalty] = weight, inverse, value
            return value if noise is None else value - float(self.weight * (noise @ weight.square()).sum())

        penalty = _least(error, unit=max(float(gram.trace() / self.weight), _LEAST))
        if penalty not in solved:
            error(penalty)
        weight, inverse, value = solved[penalty]
        return SolvedSums(weight, level - centre @ weight, penalty, inverse, value)

    def solve(self, last: Tensor, targets: Tensor, weights: Tensor, noise: Tensor) -> Solution:
        """Solve, and predict the last rows, each left out."""
        solved = self.choose(noise)
        centre = self.rows / self.weight
        leverage = weights * ((last - centre) @ solved.inverse.T).square().sum(1) + weights / self.weight
        residual = targets - last @ solved.weight - solved.bias
        left_out = targets - residual / (1 - leverage).clamp_min(_LEAST)[:, None]
        return Solution(solved.weight.T.contiguous(), solved.bias, solved.penalty, left_out)


def _add_gram(total: Tensor, factor: Tensor) -> None:
    """Add factorᵀ·factor [D, D] of a factor [B, D] to a total, of which blocks above the diagonal stay as they are."""
    for start in range(0, len(total), _BLOCK):
        end = start + _BLOCK
        total[start:end, :end].addmm_(factor[:, start:end].T, factor[:, :end])


def _whole(total: Tensor) -> Tensor:
    """Return the symmetric matrix of which `_add_gram` made the lower triangle."""
    return total.tril() + total.tril(-1).T


def _from_rows(rows: Tensor, targets: Tensor, weights: Tensor, noise: Tensor) -> Solution:
    """Solve on the side of the rows, [n, n]."""
    # equal rows lie one after another: they are one, of their weight together
    fresh = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    fresh[1:] = (rows[1:] != rows[:-1]).any(1) | (targets[1:] != targets[:-1]).any(1)
    places = fresh.cumsum(0) - 1  # [all rows] -> which of the distinct ones
    weights = weights.new_zeros(int(places[-1]) + 1).index_add_(0, places, weights)
    rows, targets = rows[fresh], targets[fresh]
    total = weights.sum()
    centre, level, roots = weights @ rows / total, weights @ targets / total, weights.sqrt()[:, None]
    scaled, wanted = roots * (rows - centre), roots * (targets - level)
    eye = torch.eye(len(rows), dtype=torch.double, device=rows.device)
    gram = torch.zeros_like(eye)
    _add_gram(gram, scaled.T)
    gram = _whole(gram)
    solved: dict[float, tuple[Tensor, Tensor]] = {}

    def error(penalty: float) -> float:
        """Weighted mean squared error of the rows, each left out."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + penalty * eye))
        dual = inverse @ wanted
        remaining = (penalty * inverse.diagonal() - weights / total).clamp_min(_LEAST)  # 1 − leverage
        solved.clear()
        solved[penalty] = dual, penalty * dual / remaining[:, None]
        added = (noise @ (scaled.T @ dual).square()).sum() if noise.any() else 0.0
        return float(solved[penalty][1].square().sum() / total - added)

    penalty = _least(error, unit=max(float(gram.trace() / total), _LEAST))
    if penalty not in solved:
        error(penalty)
    dual, residual = solved[penalty]
    weight = scaled.T @ dual
    return Solution(weight.T.contiguous(), level - centre @ weight, penalty, (targets - residual / roots)[places])


def _least(error: Callable[[float], float], *, unit: float) -> float:
    """Return the λ of least error, in steps of half a power of ten downhill from `unit`."""
    known: dict[float, float] = {}

    def at(exponent: float) -> float:
        if exponent not in known:
            known[exponent] = error(unit * 10**exponent)
        return known[exponent]

    best = 0.0
    for step in (_STEP, -_STEP):
        while _EXPONENTS[0] <= best + step <= _EXPONENTS[1] and at(best + step) < at(best):
            best += step
    return unit * 10**best
