"""Whether the targets of a group of samples agree with what the other groups' samples predict of them.

Each group is left out of a ridge regression and predicted by it. Over the group's samples, c is the slope of the
predictions s on the targets t,

    c = Σ ⟨s − s₀, t − t₀⟩ / Σ ‖t − t₀‖².

*Within* the group, s₀ and t₀ are its own means: c then does not depend on which targets the group has often. *Across*
groups both are the mean target of the others: c then says something of a group whose targets are all the same. A group
whose targets are of another rule has c about 0, and below 0 where they are the opposite; c is equal for groups of one
rule, whatever their shares of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_PENALTIES = (0.1, 1.0, 10.0)  # λ over the rows' mean squared norm
_BIAS = 10.0  # what a constant column has of it, so that the bias is hardly shrunk
_FEWEST_ROWS = 8
_VARIED = 0.01  # least share of all targets' variance that a group's targets must have
_CERTAIN, _LIKELY = 3.0, 2.0  # standard errors
_HALF = 0.5  # of the median slope: below it a group is of another rule
_OPPOSITE = 0.1  # as far below 0, across groups, where domains differ
_PASSES = 3


@dataclass(frozen=True)
class Judgement:
    """What was found of each group.

    Parameters
    ----------
    contradicted : ndarray
        [G] bool: its targets are not of the others' rule.
    doubted : ndarray
        [G] bool: they likely are not, and are not contradicted.
    """

    contradicted: np.ndarray
    doubted: np.ndarray


def judge(rows: Tensor, targets: Tensor, groups: np.ndarray, num_groups: int) -> Judgement:
    """Judge groups of samples; those that are contradicted no longer count when the others are judged again.

    Parameters
    ----------
    rows : Tensor
        [n, D] float32. Memory is about 4·n·D + 32·n² bytes.
    targets : Tensor
        [n, K].
    groups : ndarray
        [n] int: the group of each row. Each should have about as many, so that none decides alone.
    num_groups : int
        G.
    """
    wanted, contradicted = targets.double(), np.zeros(num_groups, bool)
    judgement = Judgement(contradicted, contradicted.copy())
    for _ in range(_PASSES):
        among = ~contradicted[groups]
        predicted = _left_out(rows, wanted, groups, among)
        within, across = (np.full((num_groups, 2), np.nan) for _ in range(2))
        least = _VARIED * float((wanted - wanted.mean(0)).square().sum(1).mean())
        for group in np.unique(groups).tolist():
            own = groups == group
            s, t = predicted[own], wanted[own]
            within[group] = _slope(s - s.mean(0), t - t.mean(0), least)
            if (others := among & ~own).any():
                middle = wanted[others].mean(0)
                across[group] = _slope(s - middle, t - middle, least)
        fresh, doubted = _verdicts(within, across)
        judgement = Judgement(fresh, doubted & ~fresh)
        if (fresh == contradicted).all() or 2 * fresh.sum() >= num_groups:
            break
        contradicted = fresh
    if 2 * judgement.contradicted.sum() >= num_groups:  # then it is not known which half is right
        return Judgement(np.zeros(num_groups, bool), np.zeros(num_groups, bool))
    return judgement


def _verdicts(within: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which groups are contradicted and which doubted, of (slope, standard error) each, NaN where unknown."""
    contradicted, doubted = (np.zeros(len(within), bool) for _ in range(2))
    for slopes, bound in ((within, _HALF), (across, -_OPPOSITE)):
        known = slopes[~np.isnan(slopes[:, 0])]
        if not len(known):
            continue
        middle, error = np.median(known, axis=0)
        if middle <= _LIKELY * error:  # the others predict nothing
            continue
        slope, wide = slopes.T
        contradicted |= slope + _CERTAIN * wide < bound * middle  # False of NaN
        doubted |= slope + _LIKELY * wide < _HALF * middle
    return contradicted, doubted


def _slope(predicted: Tensor, wanted: Tensor, least: float) -> tuple[float, float]:
    """Return c and its standard error, robust to unequal variances; NaN where the targets hardly differ."""
    count, total = len(wanted), float(wanted.square().sum())
    if count < _FEWEST_ROWS or total <= least * count:
        return float("nan"), float("nan")
    products = (predicted * wanted).sum(1)
    slope = float(products.sum()) / total
    errors = products - slope * wanted.square().sum(1)
    return slope, float(errors.square().sum() * count / (count - 1)) ** 0.5 / total


def _left_out(rows: Tensor, targets: Tensor, groups: np.ndarray, among: np.ndarray) -> Tensor:
    """Return predictions of all rows [n, K] by ridge regression of those `among`, each without its own group.

    With A = (K + λI)⁻¹ of the kernel K, and α = A·t, the residuals of a group B that is left out are A_BB⁻¹ α_B.
    """
    chosen = torch.from_numpy(np.flatnonzero(among))
    centred = rows - rows[chosen].mean(0)
    kernel = (centred @ centred.T).double()
    unit = float(kernel.diagonal().mean()) or 1.0
    kernel += _BIAS * unit
    inside, own, wanted = kernel[chosen][:, chosen], groups[among], targets[chosen]
    best, least = targets, float("inf")
    for penalty in _PENALTIES:
        factor = torch.linalg.cholesky(inside + penalty * unit * torch.eye(len(inside), dtype=torch.double))
        inverse = torch.cholesky_inverse(factor)
        dual = inverse @ wanted
        residuals, losses = torch.zeros_like(dual), []
        for group in np.unique(own).tolist():
            at = torch.from_numpy(np.flatnonzero(own == group))
            residuals[at] = torch.linalg.solve(inverse[at][:, at], dual[at])
            losses.append(float(residuals[at].square().sum(1).mean()))
        if (loss := float(np.median(losses))) < least:
            best, least = kernel[:, chosen] @ dual, loss
            best[chosen] = wanted - residuals
    return best
