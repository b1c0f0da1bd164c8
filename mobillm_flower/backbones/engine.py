"""What computes the forward pass: an engine turns padded batches into pivots of the sampled layers and base logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.prefix import Prefix, PrefixCache, can_share
from mobillm_flower.core.pivots import Pivot


class Engine(Protocol):
    """Runs batches forward.

    Attributes
    ----------
    name : str
        Part of the release id, so that what two engines computed is never taken for the same release.
    """

    name: str

    def prepare(self, layers: Sequence[int], select: Pivot) -> Engine:  # noqa: ARG002 - an engine takes both
        """Make ready to run these layers and pivot, and return what will: itself, or what it falls back to."""
        return self

    def run(
        self, batches: Iterable[Mapping[str, Tensor]], layers: Sequence[int], select: Pivot
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield, batch by batch and in their order, pivots [B, T, M, P, d_b] and the base logits [B, K] or None.

        T is 1 except per token. An engine may read all batches before it yields the first.

        Parameters
        ----------
        batches : iterable of mapping
            From `Backbone.pad`.
        layers : sequence of int
            1-based layer numbers, ascending. What counts is what the next layer reads; of the last layer what it
            leaves, before any final norm.
        select : Pivot
            Which tokens are kept.
        """
        ...


class TorchEngine(Engine):
    """transformers' own code, one batch after the other.

    Hooks on the sampled layers select pivots as each layer ends, so that no layer's hidden states outlive the next.

    Parameters
    ----------
    model, stack, predictor, label_head
        As in `Backbone`.
    causal : bool
        Whether tokens see only their left: tokens that the samples of a batch all begin with are then computed once
        and kept for later batches (`PrefixCache`).
    """

    name = "torch"

    def __init__(
        self,
        model: nn.Module,
        stack: Sequence[nn.Module],
        predictor: nn.Module | None,
        label_head: tuple[Tensor, Tensor | None] | None,
        *,
        causal: bool = False,
    ) -> None:
        self._model, self._stack, self._label_head = predictor or model, stack, label_head
        self._predicts = predictor is not None
        self._prefixes = None
        if causal and can_share(model.config):
            from mobillm_flower.backbones.key_values import cache_name  # loads transformers

            self._prefixes = PrefixCache(self._hidden, cache_name(self._model))

    def run(
        self, batches: Iterable[Mapping[str, Tensor]], layers: Sequence[int], select: Pivot
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `Engine`."""
        for inputs in batches:
            with torch.inference_mode():
                prefix = self._prefixes.find(inputs) if self._prefixes else None
                result = self.forward(inputs, layers, select, prefix)
            yield result

    def forward(
        self, inputs: Mapping[str, Tensor], layers: Sequence[int], select: Pivot, prefix: Prefix | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the pivots and base logits of one batch; see `Engine.run`.

        Parameters
        ----------
        inputs, layers, select
            As there.
        prefix : Prefix, optional
            What all samples begin with; only the rest is run.
        """
        mask = output_mask(inputs)
        kept: list[Tensor] = []

        def take(hidden: Tensor) -> None:
            whole = prefix.before(hidden, layers[len(kept)]) if prefix else hidden
            kept.append(pick(whole, mask, select))

        output = None
        with handing_over(self._stack, layers, take, stop=not self._predicts and self._label_head is None):
            output = self._model(**(prefix.rest(inputs) if prefix else inputs))
        ran = mask[:, len(prefix.ids) :] if prefix else mask
        return join(kept, select), base_logits(output, ran, self._label_head, predicts=self._predicts)

    def _hidden(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Return what the first layer reads, and what each leaves to the next, [B, T, d_b]."""
        kept: list[Tensor] = []
        with handing_over(self._stack, range(len(self._stack) + 1), kept.append):
            self._model(**inputs)
        return kept


def pick(hidden: Tensor, mask: Tensor, select: Pivot) -> Tensor:
    """Return a layer's pivots [B, P, d_b], or [B, T, d_b] per token, that keep no whole layer alive.

    Parameters
    ----------
    hidden : Tensor
        What the layer leaves, [B, T, d_b].
    mask : Tensor
        From `output_mask`.
    select : Pivot
        Which tokens are kept.
    """
    selected = select.select(hidden, mask)
    return selected.clone() if selected.numel() < hidden.numel() else selected  # a view would keep all


def join(kept: Sequence[Tensor], select: Pivot) -> Tensor:
    """Return the pivots of the sampled layers, from `pick`, as [B, T, M, P, d_b] (T = 1 except per token)."""
    stacked = torch.stack(list(kept), 1)  # [B, M, P or T, d]
    return stacked.transpose(1, 2).unsqueeze(3) if select.per_token else stacked.unsqueeze(1)


def base_logits(
    output: Any, mask: Tensor, label_head: tuple[Tensor, Tensor | None] | None, *, predicts: bool
) -> Tensor | None:
    """Return the base logits [B, K] of a model's output; None where the backbone has no prediction of its own.

    Parameters
    ----------
    output
        Of transformers' model: with `last_hidden_state`, or with `logits`.
    mask : Tensor
        From `output_mask`.
    label_head
        As in `Backbone`.
    predicts : bool
        Whether the model was run with a head of its own.
    """
    rows, last = torch.arange(mask.shape[0], device=mask.device), mask.sum(1) - 1
    if label_head is not None:
        weight, bias = label_head
        return nn.functional.linear(output.last_hidden_state[rows, last].float(), weight, bias)
    if not predicts:
        return None
    logits: Tensor = output.logits
    return logits if logits.dim() == 2 else logits[rows, last.clamp(max=logits.shape[1] - 1)]  # or the last alone


def output_mask(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the mask [B, T] of 0/1 of a model's outputs, padded on the right: of an encoder-decoder the decoder's."""
    start = inputs.get("decoder_input_ids")
    return inputs["attention_mask"] if start is None else torch.ones_like(start)


@contextmanager
def handing_over(
    stack: Sequence[nn.Module], layers: Sequence[int], take: Callable[[Tensor], None], *, stop: bool = False
) -> Iterator[None]:
    """Hand over what each of the layers leaves to the next; that of the last one before any final norm.

    It is what the next layer reads, since a model may work on it in between (DeBERTa-v2's convolution does). With
    `stop` the forward pass ends where nothing more is to be handed over.
    """
    left = len(layers)

    def before(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal left
        take(inputs[0] if inputs else named["hidden_states"])
        left -= 1
        if stop and not left:
            raise _EnoughError

    def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
        take(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks, suppress(_EnoughError):
        for layer in layers:
            if layer < len(stack):
                hooks.enter_context(stack[layer].register_forward_pre_hook(before, with_kwargs=True))
            else:
                hooks.enter_context(stack[-1].register_forward_hook(after))
        yield


class _EnoughError(Exception):
    """Ends a forward pass."""
