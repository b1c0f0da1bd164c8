"""Keys and values of tokens that a causal model need not read again, as transformers takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


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
