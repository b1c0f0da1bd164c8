"""Keys and values of tokens that a causal model need not read again, as transformers takes them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

_NAMES = ("past_key_values", "cache")  # transformers renamed it in 5.24


def cache_name(model: nn.Module) -> str:
    """Return what a model's `forward` calls its key-value cache: the parameter that is annotated as one."""
    parameters = inspect.signature(model.forward).parameters
    typed = [name for name, one in parameters.items() if str(one.annotation).endswith(("Cache", "Cache | None"))]
    return next((name for name in [*typed, *_NAMES] if name in parameters), _NAMES[0])


def given_cache(model: nn.Module, named: dict[str, Any]) -> Any:
    """Return the key-value cache among a call's keyword arguments, under the old name too; None where there is none."""
    return next((named[name] for name in (cache_name(model), *_NAMES) if named.get(name) is not None), None)


def key_value_cache(keys: Sequence[Tensor], values: Sequence[Tensor]) -> Cache:
    """Return a cache that gives every text the same first tokens, of each layer's keys and values [1, H, n, d_h]."""
    return Cache(layers=[_SharedLayer(*one) for one in zip(keys, values, strict=True)])


class _SharedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's states of a prefix: later tokens see them once for all samples, and leave none of their own."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.dtype, self.device = keys, values, keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_named: Any) -> tuple[Tensor, Tensor]:
        texts = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(texts), key_states], -2)
        return keys, torch.cat([self.values.expand(texts), value_states], -2)
