"""What a causal model makes of the tokens that all samples begin with, such as a task's prompt: computed once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAST_TOKENS, LEAST_SAMPLES = 16, 4
"""A prefix is computed from so many tokens on, that so many samples of a batch share."""

_APART = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prefix:
    """The first n tokens of samples, and what a causal model makes of them.

    Parameters
    ----------
    ids : Tensor
        [n].
    keys, values : sequence of Tensor
        By layer, [1, H, n, d_h].
    hidden : sequence of Tensor
        The embeddings, and what each layer leaves to the next, [1, n, d_b].
    cache_name : str
        What the model calls its key-value cache.
    """

    ids: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    hidden: Sequence[Tensor]
    cache_name: str

    def first(self, n: int) -> Prefix:
        """Return that of the first n tokens alone: a causal model's earlier tokens do not see later ones."""
        keys, values = ([one[..., :n, :] for one in some] for some in (self.keys, self.values))
        return Prefix(self.ids[:n], keys, values, [one[:, :n] for one in self.hidden], self.cache_name)

    def rest(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a model's inputs [B, T] without these tokens, which it reads from a key-value cache."""
        from mobillm_flower.backbones.key_values import key_value_cache  # loads transformers

        n = len(self.ids)
        rest: dict[str, Any] = {name: one if name == "attention_mask" else one[:, n:] for name, one in inputs.items()}
        return {**rest, self.cache_name: key_value_cache(self.keys, self.values), "use_cache": True}

    def before(self, hidden: Tensor, layer: int) -> Tensor:
        """Return a layer's states [B, T, d_b] of all tokens, of those that were run [B, T - n, d_b]; 0: embeddings."""
        return torch.cat([self.hidden[layer].expand(len(hidden), -1, -1), hidden], 1)


class PrefixCache:
    """The prefix that was computed last.

    Parameters
    ----------
    compute : callable
        Inputs [1, n] and an empty key-value cache that is filled -> embeddings and what each layer leaves [1, n, d_b].
    cache_name : str
        What the model calls its key-value cache.
    """

    def __init__(self, compute: Callable[[dict[str, Any]], list[Tensor]], cache_name: str) -> None:
        self._compute, self._cache_name = compute, cache_name
        self._known: Prefix | None = None
        self._works = True

    def find(self, inputs: Mapping[str, Tensor]) -> Prefix | None:
        """Return the prefix that a batch's samples share; None where they share too little.

        Each sample keeps a token of its own. What is known is used where it covers half of what could be shared.
        """
        ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(1)
        count = min(_same((ids == ids[:1]).all(0)), int(lengths.min()) - 1)
        if count < LEAST_TOKENS or not self._works:
            return None
        known = 0
        if self._known is not None:
            most = min(count, len(self._known.ids))
            known = _same(self._known.ids[:most] == ids[0, :most])
        few = len(ids) < LEAST_SAMPLES  # they may share more than others do
        if known < LEAST_TOKENS or (known < count / 2 and not few):
            if few:
                return None
            self._known, known = self._made({name: one[:1, :count] for name, one in inputs.items()}), count
            self._works = self._known is not None
        return self._known.first(known) if self._known else None

    def _made(self, inputs: dict[str, Tensor]) -> Prefix | None:
        """Return a prefix; None where its second half comes out differently once its first is given.

        So it does in models that keep other states than keys and values of each token.
        """
        from transformers.cache_utils import DynamicCache

        cache, (ids,) = DynamicCache(), inputs["input_ids"]
        try:
            hidden = self._compute({**inputs, self._cache_name: cache, "use_cache": True})
            states = [(layer.keys, layer.values) for layer in cache.layers]
            prefix = Prefix(
                ids, [keys for keys, _ in states], [values for _, values in states], hidden, self._cache_name
            )
            half = len(ids) // 2
            again = torch.cat(self._compute(prefix.first(half).rest(inputs))).float()
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            logger.info("a shared prefix is not kept: %s", type(error).__name__)
            return None
        once = torch.cat(hidden)[:, half:]
        if again.shape == once.shape and float((again - once).norm() / once.float().norm()) <= _APART[once.dtype]:
            return prefix
        logger.info("a shared prefix is not kept: given, it leads to other hidden states")
        return None


def can_share(config: Any) -> bool:
    """Whether a causal model's first tokens are computed the same whatever follows them.

    Not where rotary positions are scaled by the text's length.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in [ropes, *ropes.values()] if isinstance(rope, dict)}
    return not config.is_encoder_decoder and not kinds & {"dynamic", "longrope"}


def _same(equal: Tensor) -> int:
    """Return how many True a tensor [n] of bool begins with."""
    return int(equal.int().cumprod(0).sum())
