"""Targets, losses and predictions: what the device sends instead of (or as) a label, and what is made of it.

PAE MobiLLM (2507.01216) uploads the prediction difference Δy = y − p_b and trains the side network on it. Neither
paper states the loss; both readings are here (see `docs/explanation/method.md`).

With `difference`, an unprotected Δy is no protection: exactly one entry is positive, so argmax(Δy) is the label.
`recover` does what any server can do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6
"""Probabilities are kept above this before a logarithm."""

SAME = 2.0**-10
"""What values of a constant p_b may differ by after they were read back from differences in half precision."""

CERTAINTY = 2.0**-8
"""Share of the uniform distribution mixed into the backbone's own p_b.

A backbone that is certain and right would otherwise make Δy vanish in float16, and with it the label."""


def base_prediction(
    logits: Tensor | None, count: int, num_outputs: int, *, label_range: Sequence[float] = ()
) -> Tensor:
    """Return the backbone's own prediction p_b, [B, K] float32.

    Parameters
    ----------
    logits : Tensor or None
        [B, K] from a trained head or from label words; None where the backbone has neither. Then p_b is the constant
        1/K, or 0 for regression (K = 1): never a randomly initialised head. A distribution is mixed with
        `CERTAINTY` of the uniform one, on the device and in prediction alike.
    count, num_outputs : int
        B and K.
    label_range : sequence of float
        Lowest and highest target of a regression; a trained head's prediction is cut to it.
    """
    if logits is not None:
        if num_outputs == 1:
            return logits.float().clamp(*label_range) if label_range else logits.float()
        return (1 - CERTAINTY) * logits.float().softmax(1) + CERTAINTY / num_outputs
    return torch.zeros(count, 1) if num_outputs == 1 else torch.full((count, num_outputs), 1 / num_outputs)


def difference(labels: Tensor, base: Tensor) -> Tensor:
    """Return Δy = onehot(y) − p_b.

    Parameters
    ----------
    labels : Tensor
        [B] int64, class numbers.
    base : Tensor
        [B, K] float32, the backbone's own probabilities p_b.

    Returns
    -------
    Tensor
        [B, K] float32, rows sum to 0.
    """
    return functional.one_hot(labels, base.shape[1]).to(base.dtype) - base


def recover(differences: Tensor) -> tuple[Tensor, Tensor]:
    """Return (labels [B], p_b [B, K]) from unprotected Δy: argmax is the label, and p_b = onehot(y) − Δy."""
    labels = differences.argmax(1)
    base = functional.one_hot(labels, differences.shape[1]).to(differences.dtype) - differences
    return labels, base.clamp_min(0)


def automatic_scale(num_outputs: int) -> float:
    """Return c of the square loss: 1 for regression, otherwise max(1, √K/2)·2.

    Onehot targets of many classes are nearly all zero; the larger c keeps the fitted entry's gradient in the range
    that the output layer learns at. Chosen on validation data, see `docs/explanation/method.md`.
    """
    return 1.0 if num_outputs == 1 else 2 * max(1.0, math.sqrt(num_outputs) / 2)


def square_loss(side: Tensor, differences: Tensor, scale: float) -> Tensor:
    """Return mean over samples of ‖c·Δy − s(A)‖², the plain reading of PAE.

    A secret rotation of Δy leaves it unchanged, and zero-mean noise on Δy only adds a constant to it.
    """
    return (scale * differences - side).square().sum(1).mean()


def logit_loss(side: Tensor, labels: Tensor, base: Tensor) -> Tensor:
    """Return cross-entropy of softmax(log p_b + s(A)) against labels [B], p_b [B, K]."""
    return functional.cross_entropy(side + base.clamp_min(EPSILON).log(), labels)


def predict_square(side: Tensor, base: Tensor, scale: float) -> Tensor:
    """Return scores p_b + s(A)/c, [B, K]; for regression the prediction itself, [B, 1]."""
    return base + side / scale


def predict_logit(side: Tensor, base: Tensor) -> Tensor:
    """Return scores log p_b + s(A), [B, K]."""
    return side + base.clamp_min(EPSILON).log()


def valid_difference(differences: Tensor, tolerance: float) -> bool:
    """Whether every row of [B, K] could be onehot(y) − p_b: in [−1, 1], sum 0, exactly one entry positive or all 0.

    Parameters
    ----------
    tolerance : float
        Absolute rounding error of an entry, from the number format it was sent in.
    """
    slack = tolerance * differences.shape[1]
    inside = bool((differences.abs() <= 1 + tolerance).all())
    zero_sum = bool((differences.sum(1).abs() <= slack).all())
    one_up = bool(((differences > tolerance).sum(1) <= 1).all())
    return inside and zero_sum and one_up and bool(torch.isfinite(differences).all())
