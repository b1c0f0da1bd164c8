"""Ridge regression from rows or from sums: the solution that training starts from, and often ends with.

All is float64, but for the search of λ and for leverages, which are float32. It depends on the order of the parts and
on nothing else, and is computed where the rows are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

_EXPONENTS = (-4.0, 3.0)  # of λ over the rows' mean squared norm, base 10
_START, _STEP = -0.5, 0.5
_NUM_PROBES = 64  # of Hutchinson's estimate of a trace
HELD_OUT = 8192
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
    level : Tensor
        t̄, [K] float64.
    explained : Tensor
        H = Wᵀ·Σw(z − z̄)(t − t̄)ᵀ, [K, K] float64.
    freedom : float
        tr((G + λI)⁻¹G), G the Gram matrix of centred rows.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    left_out: Tensor
    level: Tensor
    explained: Tensor
    freedom: float


@dataclass(frozen=True)
class SolvedSums:
    """What `Sums.choose` gives.

    Parameters
    ----------
    weight, bias : Tensor
        [D, K] and [K] float64.
    penalty : float
        λ that was chosen.
    factor : Tensor
        [D, D]: the lower Cholesky factor of the centred Gram matrix with λ.
    error : float
        Sum of squared errors that generalized cross-validation expects.
    explained : Tensor
        As of `Solution`.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    factor: Tensor
    error: float
    explained: Tensor

    def freedom(self) -> float:
        """Return what `Solution.freedom` is."""
        return _freedom(_inverse(self.factor), self.penalty)


class Ridge:
    """W, b of least Σ w·‖t − Wᵀz − b‖² + λ·‖W‖²: rows are kept up to their width, and only sums beyond that.

    λ is chosen by the error of leaving one row out, exactly where rows are kept (rows that are equal are left out
    together), by generalized cross-validation from the sums otherwise. Where noise of known variance is in the rows,
    what it adds to the error, Σ noise·W², is subtracted: λ is chosen for rows without noise. (Its share in the Gram
    matrix, n·variance·I, is a part of λ.) Memory, however many rows: 8·D² + 4·D·min(n, max(D, 8,192)) bytes, and up to
    32·D² + 36·D·min(n, max(D, 8,192)) while solving (measured: `benchmarks/studies/closed_form_memory.py`).

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
        part = rows, targets.double(), weights.double()
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
            return _from_rows(rows.double(), targets, weights, noise)
        return self._sums.solve(rows[-HELD_OUT:], targets[-HELD_OUT:], weights[-HELD_OUT:], noise)


class Sums:
    """Σw, Σwz, Σwt, Σwzzᵀ, Σwztᵀ and Σw‖t‖²."""

    def __init__(self, width: int, num_outputs: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, dtype=torch.double, device=device)
        self.count, self.weight, self.square = 0, zeros(()), zeros(())
        self.rows, self.targets = zeros(width), zeros(num_outputs)
        self.gram, self.moment = zeros(width, width), zeros(width, num_outputs)

    def add(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Take in rows [B, D], and targets [B, K] and weights [B], both float64."""
        rows = rows.double()
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
        gram = self.gram.addr(self.rows, centre, alpha=-1)  # its lower triangle
        moment = self.moment.addr(self.rows, level, alpha=-1)
        square = self.square - self.weight * level.square().sum()
        probes = _probes(len(gram)).to(gram)

        def solved(penalty: float, dtype: torch.dtype) -> SolvedSums:
            factor = _factor(gram, penalty, dtype)
            both = torch.cholesky_solve(torch.cat([moment, probes], 1).to(factor.dtype), factor).double()
            weight, of_probes = torch.split(both, [moment.shape[1], probes.shape[1]], 1)
            residual = square - (weight * moment).sum() - penalty * weight.square().sum()
            freedom = 1 + len(gram) - penalty * (probes * of_probes).sum()
            error = float(residual / (1 - freedom / self.count).clamp_min(_LEAST).square())
            return SolvedSums(weight, level - centre @ weight, penalty, factor, error, weight.T @ moment)

        def error(penalty: float) -> float:
            tried = solved(penalty, torch.float)
            added = 0.0 if noise is None else float(self.weight * (noise @ tried.weight.square()).sum())
            return tried.error - added

        return solved(_least(error, unit=max(float(gram.trace() / self.weight), _LEAST)), torch.double)

    def solve(self, last: Tensor, targets: Tensor, weights: Tensor, noise: Tensor) -> Solution:
        """Solve, and predict the last rows, each left out."""
        solved = self.choose(noise)
        last = last - self.rows / self.weight  # float64
        inverse = _inverse(solved.factor)
        leverage = weights * _squared_norms(inverse, last) + weights / self.weight
        residual = targets - last @ solved.weight - self.targets / self.weight
        left_out = targets - residual / (1 - leverage).clamp_min(_LEAST)[:, None]
        return Solution(
            solved.weight.T.contiguous(),
            solved.bias,
            solved.penalty,
            left_out,
            level=self.targets / self.weight,
            explained=solved.explained,
            freedom=_freedom(inverse, solved.penalty),
        )


def _probes(size: int) -> Tensor:
    """Return P [size, at most 64], always the same, of which tr(PᵀAP) estimates tr(A); exactly where A is small."""
    if size <= _NUM_PROBES:
        return torch.eye(size).double()
    drawn = torch.randint(0, 2, (size, _NUM_PROBES), generator=torch.Generator().manual_seed(0))
    return (2 * drawn.double() - 1).mul_(_NUM_PROBES**-0.5)


def _factor(gram: Tensor, penalty: float, dtype: torch.dtype) -> Tensor:
    """Return the lower Cholesky factor of a Gram matrix with λ; float64 where float32 is too coarse.

    Only the matrix's lower triangle is read.
    """
    regular = gram.to(dtype, copy=True)
    regular.diagonal().add_(penalty)
    factored = torch.linalg.cholesky_ex(regular, check_errors=dtype == torch.double)
    factor: Tensor = _factor(gram, penalty, torch.double) if factored.info else factored.L
    return factor


def _inverse(factor: Tensor) -> Tensor:
    """Return L⁻¹ [D, D] float32 of a lower Cholesky factor L."""
    inverse: Tensor = torch.linalg.solve_triangular(
        factor.float(), torch.eye(len(factor)).to(factor.device), upper=False
    )
    return inverse


def _freedom(inverse: Tensor, penalty: float) -> float:
    return len(inverse) - penalty * float(torch.linalg.vector_norm(inverse, dtype=torch.double)) ** 2


def _squared_norms(inverse: Tensor, rows: Tensor) -> Tensor:
    """Return ‖L⁻¹z‖² of rows z [B, D], [B] float64."""
    total, rows = rows.new_zeros(len(rows)), rows.float()
    for start in range(0, len(inverse), _BLOCK):
        end = start + _BLOCK
        total += (rows[:, :end] @ inverse[start:end, :end].T).square().sum(1)
    return total


def _add_gram(total: Tensor, factor: Tensor) -> None:
    """Add factorᵀ·factor [D, D] of a factor [B, D] to a total, of which blocks above the diagonal stay as they are."""
    for start in range(0, len(total), _BLOCK):
        end = start + _BLOCK
        total[start:end, :end].addmm_(factor[:, start:end].T, factor[:, :end])


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
    gram = scaled.new_zeros(len(rows), len(rows))
    _add_gram(gram, scaled.T)

    def solved(penalty: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return the dual solution and the residuals of the rows, each left out, both [n, K], and their leverages."""
        inverse = torch.cholesky_inverse(_factor(gram, penalty, dtype))
        dual = (inverse @ wanted.to(inverse.dtype)).double()
        of_rows = penalty * inverse.diagonal()
        remaining = (of_rows - weights / total).clamp_min(_LEAST)  # 1 − leverage
        return dual, penalty * dual / remaining[:, None], 1 - of_rows

    def error(penalty: float) -> float:
        """Weighted mean squared error of the rows, each left out."""
        dual, residual, _ = solved(penalty, torch.float)
        added = (noise @ (scaled.T @ dual).square()).sum() if noise.any() else 0.0
        return float(residual.square().sum() / total - added)

    penalty = _least(error, unit=max(float(gram.trace() / total), _LEAST))
    dual, residual, leverages = solved(penalty, torch.double)
    weight = scaled.T @ dual
    return Solution(
        weight.T.contiguous(),
        level - centre @ weight,
        penalty,
        (targets - residual / roots)[places],
        level=level,
        explained=wanted.T @ (wanted - penalty * dual),
        freedom=float(leverages.sum()),
    )


def _least(error: Callable[[float], float], *, unit: float) -> float:
    """Return the λ of least error, in steps of half a power of ten downhill from a third of `unit`."""
    known: dict[float, float] = {}

    def at(exponent: float) -> float:
        if exponent not in known:
            known[exponent] = error(unit * 10**exponent)
        return known[exponent]

    best = _START
    for step in (_STEP, -_STEP):
        while _EXPONENTS[0] <= best + step <= _EXPONENTS[1] and at(best + step) < at(best):
            best += step
    return unit * 10**best
