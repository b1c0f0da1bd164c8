"""Pivots: the few vectors a layer that stand for a sample (PAE MobiLLM, 2507.01216).

A pivot sees one layer's hidden states while the forward pass runs, and keeps a small part. Padding stands on the right
on a device; the pivots here find a sample's tokens on either side. To add one, write a function and register it::

    @PIVOTS.register("first+last")
    @pivot(num_vectors=2)
    def first_and_last(hidden, mask):
        rows = torch.arange(len(hidden))
        return torch.stack([hidden[:, 0], hidden[rows, mask.sum(1) - 1]], 1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mobillm_flower.core.registry import Registry


@dataclass(frozen=True)
class Pivot:
    """A way of selecting pivot vectors.

    Parameters
    ----------
    select : callable
        (hidden [B, T, d], mask [B, T] of 0/1, padded on the right) -> [B, P, d]. It must not mix samples.
    num_vectors : int or None
        P; None where every token is kept and the number differs by sample.
    """

    select: Callable[[Tensor, Tensor], Tensor]
    num_vectors: int | None

    @property
    def per_token(self) -> bool:
        """Whether every token is kept (pivot `all`, MobiLLM)."""
        return self.num_vectors is None

    @property
    def vectors_per_token(self) -> int:
        """P of a packed row: the vectors that are flattened into one input of the side network."""
        return self.num_vectors or 1


PIVOTS: Registry[Pivot] = Registry("pivot")
"""Pivots by the name that `activations.pivot` gives."""


def pivot(*, num_vectors: int | None) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Pivot]:
    """Return a decorator that makes a `Pivot` of a selecting function.

    Parameters
    ----------
    num_vectors : int or None
        P, the vectors that the function returns for a sample; None where it keeps every token.
    """
    return lambda select: Pivot(select, num_vectors)


@PIVOTS.register("last")
@pivot(num_vectors=1)
def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Last token that is not padding: the token in a causal model's loss."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, mask.cumsum(1).argmax(1)].unsqueeze(1)


@PIVOTS.register("first")
@pivot(num_vectors=1)
def first(hidden: Tensor, mask: Tensor) -> Tensor:
    """First token that is not padding: [CLS] of an encoder."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, mask.argmax(1)].unsqueeze(1)


@PIVOTS.register("mean")
@pivot(num_vectors=1)
def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens that are not padding."""
    weights = (mask / mask.sum(1, keepdim=True)).to(hidden.dtype)
    return torch.einsum("btd,bt->bd", hidden, weights).unsqueeze(1)


@PIVOTS.register("first+mean")
@pivot(num_vectors=2)
def first_and_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """First token and mean, P = 2."""
    return torch.cat([first.select(hidden, mask), mean.select(hidden, mask)], 1)


@PIVOTS.register("last+mean")
@pivot(num_vectors=2)
def last_and_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Last token and mean, P = 2: what a causal model predicts next, and what it read."""
    return torch.cat([last.select(hidden, mask), mean.select(hidden, mask)], 1)


@PIVOTS.register("all")
@pivot(num_vectors=None)
def every_token(hidden: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001 - a pivot takes both
    """Every token, as MobiLLM (2502.20421) uploads; the length differs by sample."""
    return hidden
