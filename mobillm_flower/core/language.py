"""Next-token losses through a frozen language-model head, and corrections of what the head reads.

The vocabulary V has up to a quarter of a million entries, so that logits of a batch are the largest tensor by far.
Every function here walks over the tokens in chunks of `LOGIT_BYTES` of logits, and keeps gradients with respect to the
head's inputs alone. At most six tensors of a chunk's size live at once (logits of two states, their log-probabilities,
products and gradients), beside the head itself and a few tensors of the inputs' size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

LOGIT_BYTES = 64 << 20
"""Bytes of a chunk's logits."""

REACH = 0.5
"""Longest correction, as a share of the length of the head's input."""

_ROUNDING = 1.25
"""What a codec may add to a correction's length."""

_STEEPEST = 4.0
"""Largest curvature that counts, of the median of a batch."""


CHUNK, NOT_ASKED = 1 << 31, (1 << 31) - 1
"""Where states of all tokens are sent: the bit of a chunk's first token, and what a token not in the loss has."""


@dataclass(frozen=True)
class AskedTokens:
    """Which tokens of texts are in the loss, where states of all tokens are sent.

    Parameters
    ----------
    labels : Tensor
        [A] int64, the tokens in the loss.
    asked : Tensor
        [N] bool, the states that predict them.
    chunks : Tensor
        [S] int64, states of each chunk; a token reads those before it in its own chunk alone.
    """

    labels: Tensor
    asked: Tensor
    chunks: Tensor


def mark_asked(tokens: Tensor, first: int) -> Tensor:
    """Return what each state of a chunk predicts, [T − 1] int64, in one number: see `CHUNK` and `NOT_ASKED`.

    Parameters
    ----------
    tokens : Tensor
        [T] int64, at least two; states of all but the last one are sent.
    first : int
        Those from here on are in the loss; at least 1.
    """
    marked = tokens[1:].clone()
    marked[: first - 1] = NOT_ASKED
    marked[0] |= CHUNK
    return marked


def read_asked(marked: Tensor) -> AskedTokens:
    """Read `mark_asked` of chunks that are joined, [N] int64; the first state begins a chunk."""
    starts = (marked >= CHUNK).nonzero().squeeze(1)
    labels = marked & NOT_ASKED  # all bits below the chunk's
    asked = labels != NOT_ASKED
    return AskedTokens(labels[asked], asked, torch.diff(starts, append=starts.new_tensor([len(marked)])))


class Head(Protocol):
    """The frozen end of a causal language model: what follows its last layer."""

    vocabulary: int
    """V."""

    def inputs(self, hidden: Tensor) -> Tensor:
        """Return what the output embedding reads, [N, d_u], of last hidden states [N, d_b]: the final norm's output."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits [N, V], float32, of the output embedding's inputs [N, d_u]; linear in them."""


def cross_entropy(inputs: Tensor, labels: Tensor, head: Head) -> Tensor:
    """Return the mean of −log p(label) over tokens, in nats, differentiable with respect to `inputs`.

    Parameters
    ----------
    inputs : Tensor
        u, [N, d_u] float32.
    labels : Tensor
        [N] int64.
    head : Head
        The frozen head.
    """

    def of_chunk(logits: Tensor, part: slice) -> Tensor:
        return functional.cross_entropy(logits, labels[part], reduction="sum")

    return _sum(inputs, head, of_chunk) / max(1, len(inputs))


@torch.inference_mode()
def token_scores(
    inputs: Tensor, labels: Tensor, head: Head, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return how likely each token is, beside others.

    Parameters
    ----------
    inputs : Tensor
        u, [N, d_u] float32.
    labels : Tensor
        [N] int64.
    head : Head
        The frozen head.
    candidates : Tensor, optional
        [V] bool: the tokens that a label is ranked among; by default all.

    Returns
    -------
    tuple
        log p(label) [N] float32 in nats; the label's rank among the candidates, [N] int64 from 1; the most likely token
        of all, [N] int64.
    """
    among = None if candidates is None else candidates[: head.vocabulary].to(inputs.device)
    scores: list[list[Tensor]] = [[inputs.new_zeros(0)], [labels.new_zeros(0)], [labels.new_zeros(0)]]
    for part in _chunks(len(inputs), head):
        logits = head.logits(inputs[part])
        own = logits.gather(1, labels[part, None])
        better = logits > own
        scores[0].append((own - logits.logsumexp(1, keepdim=True))[:, 0])
        scores[1].append(1 + (better if among is None else better & among).sum(1))
        scores[2].append(logits.argmax(1))
    log_p, ranks, best = (torch.cat(parts) for parts in scores)
    return log_p, ranks, best


def correction(inputs: Tensor, labels: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return the small step of each of the head's inputs that lowers its own token's loss, and its curvature.

    With g the gradient of −log p(y) at u, the model g·Δ + w/2·‖Δ‖² has its least value at Δu = −g/w. The curvature w
    is that for which ‖Δu‖ is `REACH`·‖u‖ where g is as long as at p(y) = 0, and shorter steps follow from shorter
    gradients: w = ‖g‖/(`REACH`·‖u‖·(1 − p(y))).

    Parameters
    ----------
    inputs : Tensor
        u, [N, d_u] float32.
    labels : Tensor
        [N] int64.
    head : Head
        The frozen head; nothing of the backbone is run or differentiated.

    Returns
    -------
    tuple
        Δu [N, d_u] and w [N], float32; −w·Δu is the gradient again.
    """
    sure = torch.empty(len(inputs), device=inputs.device)

    def of_chunk(logits: Tensor, part: slice) -> Tensor:
        losses = functional.cross_entropy(logits, labels[part], reduction="none")
        sure[part] = (-losses.detach()).exp()
        return losses.sum()

    with torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_sum(leaf, head, of_chunk), leaf)
    slope, length = (torch.linalg.vector_norm(part, dim=1).clamp_min(1e-6) for part in (gradient, inputs))
    weights = slope / (REACH * length * (1 - sure).clamp_min(1e-6))
    return -gradient / weights[:, None], weights


def believable(corrections: Tensor, weights: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return corrections and curvatures of a batch, shortened to what `correction` can have returned.

    No correction is longer than `REACH`·‖u‖. A curvature is the length of the difference between rows of the output
    embedding over `REACH`·‖u‖, which varies little from token to token: at most `_STEEPEST` times the median counts. So
    the pull of a device that lies is about as long as an honest one's at most.

    Parameters
    ----------
    corrections, weights : Tensor
        Δu [N, d_u] and w [N], as they came.
    inputs : Tensor
        u without the side network, [N, d_u] float32.
    """
    longest = _ROUNDING * REACH * torch.linalg.vector_norm(inputs, dim=1)
    length = torch.linalg.vector_norm(corrections, dim=1)
    shortened = corrections * (longest / length.clamp_min(1e-12)).clamp_max(1)[:, None]
    return shortened, weights.clamp_max(_STEEPEST * weights.median())


def regression_loss(change: Tensor, corrections: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of w/2·‖Δu − change‖² over tokens: up to a constant, g·change + w/2·‖change‖²."""
    return (weights / 2 * (corrections - change).square().sum(1)).mean()


def divergence_loss(inputs: Tensor, base: Tensor, corrections: Tensor, weights: Tensor, head: Head) -> Tensor:
    """Return the mean of g·(u' − u) + KL(p_u ‖ p_u'), with g = −w·Δu.

    Since logits W·u are linear in u, −log p_u'(y) + log p_u(y) = g·(u' − u) + KL(p_u ‖ p_u') exactly: the label enters
    through g alone, and linearly; the rest is known to whoever holds the public head. An error of g with mean zero
    leaves the loss unbiased.

    Parameters
    ----------
    inputs, base : Tensor
        u' with the side network and u without, [N, d_u] float32.
    corrections, weights : Tensor
        Δu [N, d_u] and w [N], from `correction`.
    head : Head
        The frozen head.
    """

    def of_chunk(logits: Tensor, part: slice) -> Tensor:
        with torch.no_grad():
            before = head.logits(base[part]).log_softmax(1)
        return functional.kl_div(logits.log_softmax(1), before, reduction="sum", log_target=True)

    linear = -(weights[:, None] * corrections * (inputs - base)).sum()
    return (linear + _sum(inputs, head, of_chunk)) / max(1, len(inputs))


def _chunks(count: int, head: Head) -> list[slice]:
    size = max(1, LOGIT_BYTES // (4 * head.vocabulary))
    return [slice(start, min(count, start + size)) for start in range(0, count, size)]


def _sum(inputs: Tensor, head: Head, of_chunk: Callable[[Tensor, slice], Tensor]) -> Tensor:
    total: Tensor = _ChunkedSum.apply(inputs, head, of_chunk)  # type: ignore[no-untyped-call]
    return total


class _ChunkedSum(torch.autograd.Function):
    """Sum of a loss of logits over chunks of tokens; gradients are taken in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, head: Head, of_chunk: Callable[[Tensor, slice], Tensor]) -> Tensor:
        total = inputs.new_zeros(())
        gradient = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
        for part in _chunks(len(inputs), head):
            with torch.set_grad_enabled(gradient is not None):
                leaf = inputs[part].detach().requires_grad_(gradient is not None)
                loss = of_chunk(head.logits(leaf), part)
            if gradient is not None:
                (gradient[part],) = torch.autograd.grad(loss, leaf)
            total += loss.detach()
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None
