"""The scale of scores, and a constant for each class, under which the labels of left-out samples are likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core.targets import EPSILON, SAME

_SHRINKAGE = 0.3  # of ‖δ‖² beside a sum of cross-entropies
_STANDARD_ERRORS = 2.0
_LARGEST = 6.0  # exponent


def likeliest_scores(
    scores: Tensor, labels: Tensor, base: Tensor, weights: Tensor, *, in_logits: bool, with_offsets: bool
) -> tuple[float, Tensor]:
    """Return the factor and offsets of scores under which labels are likeliest.

    Least squares gives a class that vectors tell badly, as "none of these", small scores, so that it is hardly ever
    the largest. With δ_k for each class, softmax(α·log p_b + β·u + δ), or softmax(β·(p_b + u) + δ) where scores are
    added to p_b, is fitted by L-BFGS: Σ w·cross-entropy + 0.3·‖δ‖². Those δ_k that are less than two standard errors
    from 0 are then set to 0, and the others are fitted again. Where fewer samples are right with δ than without, by
    more than two standard errors, none is kept: a few samples whose p_b is certain and wrong, as a lying device's may
    be, make β so small that δ/β decides alone. A common factor of all changes no prediction and is not kept. Where p_b
    is the same for all samples, α is 1: β is then a temperature.

    Parameters
    ----------
    scores : Tensor
        u, [m, K] float64: of samples each left out of the fit.
    labels : Tensor
        [m] int64.
    base : Tensor
        p_b, [m, K].
    weights : Tensor
        What each sample counts, [m] float64.
    in_logits : bool
        Whether scores are added to log p_b, not to p_b.
    with_offsets : bool
        Whether there is δ; otherwise it is 0.

    Returns
    -------
    tuple
        What scores are multiplied with, β/α or 1 where they are added to p_b, and what is added then, [K] float64.
    """
    log_base = base.double().clamp_min(EPSILON).log()
    informative = in_logits and bool((base - base[:1]).abs().max() > SAME)
    logits = [scores if in_logits else scores + base.double(), *([log_base] if informative else [])]
    kept = scores.new_full((scores.shape[1],), float(with_offsets))
    factors, offsets = _likeliest(logits, labels, weights, kept)
    if with_offsets:
        shares = _sum(logits, factors, offsets).softmax(1)
        information = weights @ (shares * (1 - shares)) + 2 * _SHRINKAGE
        kept = (offsets.abs() * information.sqrt() > _STANDARD_ERRORS).double()
        without, fitted = (_likeliest(logits, labels, weights, which) for which in (torch.zeros_like(kept), kept))
        right = [(_sum(logits, *each).argmax(1) == labels).double() for each in (without, fitted)]
        gained = weights * (right[1] - right[0])
        worse = gained.sum() < -_STANDARD_ERRORS * gained.square().sum().sqrt()
        factors, offsets = without if worse else fitted
    divisor = float(factors[1] if informative else 1.0) if in_logits else float(factors[0])
    return float(factors[0]) / divisor, offsets / divisor


def _sum(logits: Sequence[Tensor], factors: Tensor, offsets: Tensor) -> Tensor:
    return torch.stack([factor * logit for factor, logit in zip(factors, logits, strict=True)]).sum(0) + offsets


def _likeliest(logits: Sequence[Tensor], labels: Tensor, weights: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of logits and offsets [K], of which those are 0 where `kept` [K] is."""
    exponents = kept.new_zeros(len(logits)).requires_grad_()
    offsets = torch.zeros_like(kept).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [exponents, offsets], max_iter=30, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        summed = kept * offsets
        for exponent, logit in zip(exponents, logits, strict=True):
            summed = summed + exponent.exp() * logit
        losses = weights @ functional.cross_entropy(summed, labels, reduction="none")
        loss: Tensor = (losses + _SHRINKAGE * offsets.square().sum()) / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return exponents.detach().clamp(-_LARGEST, _LARGEST).exp(), kept * offsets.detach()
