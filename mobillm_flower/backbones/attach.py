"""A causal model with something added to its last hidden state, that transformers' own code runs as any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.describe import layer_stack
from mobillm_flower.backbones.key_values import cache_name, given_cache
from mobillm_flower.errors import UnsupportedError


@dataclass(frozen=True)
class Mixer:
    """A side network that sees a text's earlier tokens.

    What tokens leave for later ones is one more layer of the model's key-value cache, so that it is reordered, cropped
    and repeated with the others.

    Parameters
    ----------
    step : callable
        `StepsThroughTokens.step` with states in the place of s(A): activations [B·T, M, d_b] of T next tokens of B
        texts, what their tokens before left [B, M, H, r] or None, and which of the T count [B, T] bool, to states
        [B·T, d_b] and what these leave [B, M, T, r].
    prompts : bool
        Whether the network was trained on responses to prompts: of the first call's tokens only the last one counts,
        which precedes the response's first. Otherwise all count but padding.
    cache_name : str
        What the model calls its key-value cache.
    """

    step: Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]
    prompts: bool
    cache_name: str = "past_key_values"

    def __call__(self, rows: Tensor, texts: int, cache: Any, mask: Tensor | None) -> Tensor:
        """Return states [B·T, d_b] of rows [B·T, M, d_b], with a key-value cache and an attention mask [B, ≥ T]."""
        if cache is None and self.prompts:
            raise UnsupportedError(
                "this side network remembers earlier tokens in the key-value cache: leave use_cache on, and give "
                f"{self.cache_name}=DynamicCache() to calls of your own"
            )
        count = len(rows) // texts
        memory = cache.layers[-1] if cache is not None and isinstance(cache.layers[-1], _Memory) else None
        seen = torch.ones(texts, count, dtype=torch.bool, device=rows.device)
        if memory is None and self.prompts:
            seen[:, :-1] = False
        elif memory is None and mask is not None:
            seen = mask[:, -count:].bool()
        states, left = self.step(rows, None if memory is None else memory.keys, seen)
        if cache is not None:
            if memory is None:
                memory = _Memory()
                cache.layers.append(memory)
            memory.update(left, left[..., :0])
        return states


class _Memory(DynamicLayer):  # type: ignore[misc]
    """What the side network keeps of tokens: `keys` [B, M, H, r]; `values` are empty."""


def with_side_output(
    backbone: Backbone, layers: Sequence[int], tuned: Callable[[Tensor], Tensor], mixer: Mixer | None = None
) -> Any:
    """Return transformers' causal model whose last layer returns a tuned state in place of its own.

    Modules are copied and weights shared, so that the backbone itself stays as it is.

    Parameters
    ----------
    backbone : Backbone
        Loaded with its language-model head.
    layers : sequence of int
        Sampled 1-based layers, the last one among them.
    tuned : callable
        Activations [N, M, d_b] of N tokens to states [N, d_b], float32, on the model's device.
    mixer : Mixer, optional
        In place of `tuned` where what is added depends on earlier tokens, too.

    Raises
    ------
    UnsupportedError
        The backbone was loaded without its head.
    """
    model, stack = _copied(backbone)
    kept: list[Tensor] = []
    given: list[Any] = []  # of the call that runs: its key-value cache, its attention mask

    def note(_module: nn.Module, _inputs: Any, named: dict[str, Any]) -> None:
        given[:] = given_cache(model, named), named.get("attention_mask")

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # [B, T, d_b]
        kept.append(hidden)
        if len(kept) < len(layers):
            return None
        states = torch.stack(kept, 2).flatten(0, 1).float()  # [B·T, M, d_b]
        kept.clear()
        made = tuned(states) if mixer is None else mixer(states, len(hidden), *given)
        added = made.reshape(hidden.shape).to(hidden.dtype)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    if mixer is not None:
        mixer = replace(mixer, cache_name=cache_name(model))
        model.register_forward_pre_hook(note, with_kwargs=True)
    for layer in layers:
        stack[layer - 1].register_forward_hook(keep)
    return model


def with_adapters(backbone: Backbone, layer: int, between: Callable[[int, Tensor], Tensor] | None) -> Any:
    """Return transformers' causal model in which something is done to what a layer and each one above it leave.

    Parameters
    ----------
    backbone : Backbone
        Loaded with its language-model head.
    layer : int
        1-based.
    between : callable or None
        (i, states [B, T, d_b] float32) -> states, of what layer `layer` + i left; None: the model as it is.

    Raises
    ------
    UnsupportedError
        The backbone was loaded without its head.
    """
    model, stack = _copied(backbone)
    if between is not None:
        for place, module in enumerate(stack[layer - 1 :]):
            module.register_forward_hook(partial(_adapted, partial(between, place)))
    return model


def _adapted(adapter: Callable[[Tensor], Tensor], _module: nn.Module, _inputs: Any, output: Any) -> Any:
    hidden = output[0] if isinstance(output, tuple) else output  # [B, T, d_b]
    made = adapter(hidden.float()).to(hidden.dtype)
    return (made, *output[1:]) if isinstance(output, tuple) else made


def _copied(backbone: Backbone) -> tuple[Any, nn.ModuleList]:
    """Return the causal model and its layers: modules are copied and weights shared."""
    whole = backbone.language_model
    if whole is None:
        raise UnsupportedError(f"{backbone.info.name} was loaded without its language-model head; load it with it")
    shared = {id(tensor): tensor for tensor in [*whole.parameters(), *whole.buffers()]}
    model = copy.deepcopy(whole, shared)
    model.config.use_cache = True
    if model.generation_config is not None:
        model.generation_config.use_cache = True
    _, stack = layer_stack(model.base_model, model.config)
    return model, stack
