from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from mobillm_flower.backbones.key_values import cache_name, given_cache


class _OldName(nn.Module):
    def forward(self, ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Tensor:
        return ids


class _NewName(nn.Module):
    def forward(self, ids: Tensor, cache: Any = None, use_cache: bool = False) -> Tensor:
        return ids


class _NameOfItsOwn(nn.Module):
    def forward(self, ids: Tensor, cache_position: Tensor | None = None, memory: Cache | None = None) -> Tensor:
        return ids


@pytest.mark.parametrize(
    ("model", "name"), [(_OldName(), "past_key_values"), (_NewName(), "cache"), (_NameOfItsOwn(), "memory")]
)
def test_a_cache_has_the_name_that_the_model_gives_it(model: nn.Module, name: str) -> None:
    given = DynamicCache()
    assert cache_name(model) == name
    assert given_cache(model, {name: given}) is given
    assert given_cache(model, {name: None, "past_key_values": given}) is given  # a caller that knows the old name
    assert given_cache(model, {"use_cache": True}) is None
