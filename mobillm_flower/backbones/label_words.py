"""Label words: what a causal model's own prediction reads from its LM head, a token of each word or the whole word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mobillm_flower.errors import SettingsError

Beginning = tuple[int, ...]
_ROWS = 4096  # of the vocabulary, that are in float32 at once


@dataclass(frozen=True)
class LabelWords:
    """Words of several tokens, of which a model says how likely each is after a text.

    Parameters
    ----------
    tokens : tuple of tuple of int
        Of each word.
    """

    tokens: tuple[Beginning, ...]

    @cached_property
    def beginnings(self) -> list[Beginning]:
        """What a word's tokens follow, the empty one first: a forward pass each."""
        return sorted({word[:i] for word in self.tokens for i in range(len(word))}, key=lambda one: (len(one), one))

    @cached_property
    def distinct(self) -> list[int]:
        """All tokens of the words, ascending."""
        return sorted({token for word in self.tokens for token in word})

    def scores(self, after: Mapping[Beginning, Tensor]) -> Tensor:
        """Return the log-likelihood of each word, [B, K] float32: the sum of its tokens'.

        Parameters
        ----------
        after : mapping
            By beginning, log-probabilities [B, U] of `distinct` after a text and that beginning.
        """
        places = {token: place for place, token in enumerate(self.distinct)}
        words = [
            torch.stack([after[word[:i]][:, places[token]] for i, token in enumerate(word)]).sum(0)
            for word in self.tokens
        ]
        return torch.stack(words, 1)


def label_tokens(tokenizer: Any, words: Sequence[str], *, spaced: bool = True) -> list[list[int]]:
    """Return the tokens of each label word, as it follows a space or, not `spaced`, stands at a line's beginning.

    Raises
    ------
    SettingsError
        A word has no token or one of an unknown word, or two words have the same.
    """
    found = [list(tokenizer(f"{' ' * spaced}{w.strip()}", add_special_tokens=False)["input_ids"]) for w in words]
    for i, tokens in enumerate(found):
        if not tokens:
            raise SettingsError(f"task.label-words: {words[i]!r} has no token; give a word")
        if getattr(tokenizer, "unk_token_id", None) in tokens:
            raise SettingsError(
                f"task.label-words: the model's tokenizer does not know {words[i]!r}; give another word"
            )
        if tokens in found[:i]:
            raise SettingsError(
                f"task.label-words: {words[i]!r} and {words[found.index(tokens)]!r} are the same to the tokenizer; "
                "give different words"
            )
    return found


def first_tokens(words: Sequence[str], tokens: Sequence[Sequence[int]]) -> list[int]:
    """Return the first token of each word.

    Raises
    ------
    SettingsError
        Two words begin with the same token, so that it cannot tell them apart.
    """
    ids = [word[0] for word in tokens]
    for i, token in enumerate(ids):
        if token in ids[:i]:
            raise SettingsError(
                f"task.label-words: {words[i]!r} and {words[ids.index(token)]!r} begin with the same token; choose "
                "words that differ in their first token, or set task.whole-label-words=true"
            )
    return ids


class FirstTokens(nn.Linear):
    """The label words' rows of an LM head, in float32, in the head's place: the model's own scaling comes after it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], len(weight), bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight.float())
        if bias is not None:
            self.bias = nn.Parameter(bias.float())

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [..., K] float32."""
        return super().forward(hidden.float())


class LastToken(nn.Module):
    """An LM head that runs on each text's last token alone, in float32, in the head's place.

    Parameters
    ----------
    model : nn.Module
        transformers' causal model; it tells where its texts end.
    first : sequence of int
        The first token of each label word; `weight` and `bias` are their rows, which a trained head may start from.
    """

    def __init__(self, model: Any, first: Sequence[int]) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        self._whole, self._whole_bias = head.weight, getattr(head, "bias", None)
        self.in_features, self.out_features = int(head.in_features), int(head.out_features)
        rows = torch.tensor(first, device=self._whole.device)
        self.weight = self._whole.detach()[rows].float()
        self.bias = None if self._whole_bias is None else self._whole_bias.detach()[rows].float()
        self._padding: Tensor | int = 0
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _model: nn.Module, _inputs: Any, named: Mapping[str, Any]) -> None:
        mask = named.get("attention_mask")
        self._padding = 0 if mask is None else mask.shape[1] - mask.sum(1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [B, 1, V] float32 of what the model leaves of texts that are padded on the right, [B, T, d]."""
        rows = torch.arange(len(hidden), device=hidden.device)
        last = hidden[rows, hidden.shape[1] - 1 - self._padding].float()
        bias = self._whole_bias
        parts = [
            nn.functional.linear(
                last,
                self._whole[start : start + _ROWS].float(),
                None if bias is None else bias[start : start + _ROWS].float(),
            )
            for start in range(0, self.out_features, _ROWS)
        ]
        return torch.cat(parts, 1)[:, None]
