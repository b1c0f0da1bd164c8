"""The linear discriminant that follows from a ridge regression of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassScores:
    """Scores of a linear discriminant, of the scores u of a ridge regression.

    Parameters
    ----------
    turn : Tensor
        [K, K] float64: s = u·turn + bias.
    bias : Tensor
        [K] float64.
    factor : float
        What s is multiplied with to be least squares for onehot(y) less its mean, with the same λ.
    """

    turn: Tensor
    bias: Tensor
    factor: float


def discriminant_of_ridge(
    explained: Tensor, squares: Tensor, counts: Tensor, squared_counts: Tensor, *, penalty: float, freedom: float
) -> ClassScores:
    """Return the linear discriminant of samples, from a ridge regression of their classes.

    With class means μ_k of n_k of n samples, less the samples' mean, their scatter inside the classes
    S = Σ (z − μ_y)(z − μ_y)ᵀ and A = n·(S + λI)⁻¹: s_k = μ_kᵀAz − ½·(μ_kᵀAμ_k − h/n_k) + ln(n_k/n), less the classes'
    mean. h = tr((S + λI)⁻¹S): h/n_k is what chance adds to μ_kᵀAμ_k; of samples of weight w it is h·Σw²/(Σw)².

    Since W = (Σzzᵀ + λI)⁻¹·Σz·onehotᵀ, with N = diag(n_k) and H = (Σz·onehotᵀ)ᵀW, Woodbury's identity gives
    Aμ = n·W(N − H)⁻¹: ridge scores are turned, and those of left-out samples are too, which then count in the turn
    alone. Of two classes W stays as it is. Of more, the regression's largest scores leave out classes whose texts have
    little in common; see `docs/decisions/0027-classes-from-sums.md`.

    Parameters
    ----------
    explained : Tensor
        H, [K, K] float64.
    squares : Tensor
        WᵀW of W [D, K], [K, K] float64.
    counts, squared_counts : Tensor
        Σw and Σw² of each class's samples, [K]; both n_k where each weighs 1. A class without samples is never
        predicted.
    penalty : float
        λ.
    freedom : float
        tr((Σzzᵀ + λI)⁻¹Σzzᵀ).
    """
    counts = counts.double()
    there, classes = counts > 0, len(counts)
    turn, bias = torch.zeros_like(explained), there.double() - 1 / classes
    if int(there.sum()) < 2:
        return ClassScores(turn, bias, 1.0)
    of_class, total = counts[there], counts.sum()
    known = explained[there][:, there]
    known = (known + known.T) / 2
    inverse = torch.linalg.inv(of_class.diag() - known)
    between = total * inverse @ known / of_class  # [score, class]: Wᵀ Aμ of each class
    within = freedom - penalty * (inverse * squares[there][:, there]).sum()
    by_chance = within * squared_counts.double()[there] / of_class.square()
    of_known = (of_class / total).log() - 0.5 * (between.diagonal() - by_chance)
    apart = between - between.mean(0)
    fitted = total * apart.trace() + (apart.square() * of_class).sum()
    factor = float((apart.diagonal() * of_class).sum() / fitted) if fitted > 0 else 1.0  # of equal texts W is 0
    rows = there.nonzero()
    weights = total * inverse
    turn[rows, rows.T] = weights - weights.mean(1, keepdim=True)
    bias[there] = of_known - of_known.mean()
    bias[~there] = -1 / factor  # the largest of the others is at least their mean, 0
    return ClassScores(turn, bias, factor)
