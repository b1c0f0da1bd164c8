"""The loss and the server's own accuracy for each objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mobillm_flower.core import language
from mobillm_flower.core.targets import logit_loss, recover, square_loss
from mobillm_flower.errors import ArgumentError
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.target_bytes import TargetBatch

MAX_WEIGHT = 10.0
"""Most that a sample weighs under the square loss for being rare among its type's."""


class Loss(Protocol):
    """A loss over one batch."""

    def __call__(self, side: Tensor, targets: TargetBatch, shift: Tensor | None = None) -> Tensor:
        """Return the scalar loss.

        Parameters
        ----------
        side : Tensor
            s(A), [B, K].
        targets : TargetBatch
            Of the same samples.
        shift : Tensor or None
            log P(y | type) / P(y) of each sample's type, [B, K]: added to the logits (balanced softmax), or under the
            square loss each sample weighs P(y) / P(y | type) of its label, at most `MAX_WEIGHT`.
        """


def make_loss(
    contract: TaskContract,
    *,
    objective: str,
    loss: str,
    scale: float,
    label_rates: tuple[float, float] = (1.0, 0.0),
    head: language.Head | None = None,
) -> Loss:
    """Return the loss of an objective.

    Parameters
    ----------
    objective : {"difference", "label"}
        What devices upload.
    loss : {"square", "logit"}
        For `difference`; `label` takes cross-entropy, or the square for regression.
    scale : float
        c of the square loss.
    label_rates : tuple of float
        p = P[ỹ = y] and q = P[ỹ = k] of each other label k, where labels are randomized. The losses are corrected for
        it: Δy/(p − q) is an unbiased estimate of the true difference (with p_b = 1/K), and the cross-entropy is taken
        of q + (p − q)·softmax (forward correction, Patrini et al., 1609.03683).
    head : Head, optional
        The frozen head of a language model, for language modelling: s/c is added to the last hidden state before it.

    Raises
    ------
    ArgumentError
        The logit loss is asked for numbers, or tokens are to be predicted without a head.
    """
    if contract.per_token:
        if head is None:
            raise ArgumentError("head", head, "cannot be left out: language modelling needs the backbone's head")
        return _token_loss(head, objective=objective, loss=loss, scale=scale)
    if loss == "logit" and objective == "difference" and contract.is_regression:
        raise ArgumentError("loss", loss, "needs classes; use the square loss for regression")

    kept, flipped = label_rates

    def on_difference(side: Tensor, targets: TargetBatch, shift: Tensor | None = None) -> Tensor:
        assert targets.differences is not None
        if loss == "logit":
            labels, base = recover(targets.differences)
            if flipped:
                return functional.nll_loss((flipped + (kept - flipped) * side.softmax(1)).log(), labels)
            return logit_loss(_shifted(side, shift), labels, base)
        if shift is None:
            return square_loss(side, targets.differences / (kept - flipped), scale)
        labels = targets.differences.argmax(1, keepdim=True)
        weights = (-shift.gather(1, labels)).exp().clamp_max(MAX_WEIGHT)  # [B, 1]
        return square_loss(weights.sqrt() * side, weights.sqrt() * targets.differences, scale)

    def on_label(side: Tensor, targets: TargetBatch, shift: Tensor | None = None) -> Tensor:
        assert targets.labels is not None
        if contract.is_regression:
            base = targets.base if targets.base is not None else torch.zeros_like(targets.labels)
            return square_loss(side, targets.labels - base, scale)
        base = targets.base if targets.base is not None else torch.ones_like(side)
        return logit_loss(_shifted(side, shift), targets.labels, base)

    return on_difference if objective == "difference" else on_label


def _token_loss(head: language.Head, *, objective: str, loss: str, scale: float) -> Loss:
    def on_label(side: Tensor, targets: TargetBatch, shift: Tensor | None = None) -> Tensor:  # noqa: ARG001
        assert targets.labels is not None
        assert targets.base is not None
        return language.cross_entropy(head.inputs(targets.base + side / scale), targets.labels, head)

    def on_difference(side: Tensor, targets: TargetBatch, shift: Tensor | None = None) -> Tensor:  # noqa: ARG001
        assert targets.differences is not None
        assert targets.weights is not None
        assert targets.base is not None
        with torch.no_grad():
            base = head.inputs(targets.base)
            steps, weights = language.believable(targets.differences, targets.weights, base)
        inputs = head.inputs(targets.base + side / scale)
        if loss == "logit":
            return language.divergence_loss(inputs, base, steps, weights, head)
        return language.regression_loss(inputs - base, steps, weights)

    return on_label if objective == "label" else on_difference


def _shifted(side: Tensor, shift: Tensor | None) -> Tensor:
    return side if shift is None else side + shift


@dataclass(frozen=True)
class FitTargets:
    """What a fit in closed form is to come to.

    Parameters
    ----------
    targets : Tensor
        [B, K] float32, unbiased for what s(A) is to be, up to its scale where `calibrate`.
    labels, base : Tensor or None
        Labels [B] and p_b [B, K], where the server can read them.
    calibrate : bool
        Whether s(A) is added to log p_b, so that its scale is chosen afterwards.
    scale : float
        c.
    """

    targets: Tensor
    labels: Tensor | None
    base: Tensor | None
    calibrate: bool
    scale: float = 1.0


def fit_targets(
    contract: TaskContract,
    targets: TargetBatch,
    *,
    objective: str,
    loss: str,
    scale: float,
    label_rates: tuple[float, float] = (1.0, 0.0),
) -> FitTargets:
    """Return targets of least squares that belong to a loss of `make_loss`, whose arguments these are.

    Under the square loss that is c·Δy itself. Under the others it is onehot(y) − p_b, to be scaled afterwards. Both are
    unbiased where labels are randomized: (onehot(ỹ) − q)/(p − q) in the place of onehot(y).
    """
    kept, flipped = label_rates
    truth = recovered_truth(contract, targets)
    labels, base = truth or (None, None)
    if contract.is_regression:
        wanted = targets.differences
        if wanted is None:
            assert targets.labels is not None
            wanted = targets.labels - (targets.base if targets.base is not None else 0)
        return FitTargets(scale * wanted, None, None, calibrate=False)
    if objective == "difference" and loss == "square":
        assert targets.differences is not None
        return FitTargets(scale * targets.differences / (kept - flipped), labels, base, calibrate=False, scale=scale)
    assert labels is not None
    assert base is not None
    base = base / base.sum(1, keepdim=True)
    hot = functional.one_hot(labels, contract.num_outputs).float()
    return FitTargets((hot - flipped) / (kept - flipped) - base, labels, base, calibrate=True)


def recovered_truth(contract: TaskContract, targets: TargetBatch) -> tuple[Tensor, Tensor] | None:
    """Return (labels [B], p_b [B, K]) as the server can read them from unprotected targets, or None.

    There are none of numbers, and none that fit a table of K columns of tokens.
    """
    if not contract.labels:
        return None
    if targets.differences is not None:
        return recover(targets.differences)
    assert targets.labels is not None
    labels, base = targets.labels, targets.base
    if base is None:
        base = torch.ones(len(labels), contract.num_outputs, device=labels.device)
    return labels, base
