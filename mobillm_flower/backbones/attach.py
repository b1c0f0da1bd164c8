"""A causal model with something added to its last hidden state, that transformers' own code runs as any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.describe import layer_stack
from mobillm_flower.errors import UnsupportedError


def with_side_output(backbone: Backbone, layers: Sequence[int], tuned: Callable[[Tensor], Tensor]) -> Any:
    """Return transformers' causal model whose last layer returns a tuned state in place of its own.

    Modules are copied and weights shared, so that the backbone itself stays as it is. Since what is added to a token
    depends on that token's states alone, a key-value cache needs nothing beside it.

    Parameters
    ----------
    backbone : Backbone
        Loaded with its language-model head.
    layers : sequence of int
        Sampled 1-based layers, the last one among them.
    tuned : callable
        Activations [N, M, d_b] of N tokens to states [N, d_b], float32, on the model's device.

    Raises
    ------
    UnsupportedError
        The backbone was loaded without its head.
    """
    whole = backbone.language_model
    if whole is None:
        raise UnsupportedError(f"{backbone.info.name} was loaded without its language-model head; load it with it")
    shared = {id(tensor): tensor for tensor in [*whole.parameters(), *whole.buffers()]}
    model = copy.deepcopy(whole, shared)
    model.config.use_cache = True
    if model.generation_config is not None:
        model.generation_config.use_cache = True
    _, stack = layer_stack(model.base_model, model.config)
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # [B, T, d_b]
        kept.append(hidden)
        if len(kept) < len(layers):
            return None
        states = torch.stack(kept, 2).flatten(0, 1).float()  # [B·T, M, d_b]
        kept.clear()
        added = tuned(states).reshape(hidden.shape).to(hidden.dtype)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    for layer in layers:
        stack[layer - 1].register_forward_hook(keep)
    return model
