"""Words of a text as a model's tokens make them: for suggestions of the next word, and how often they are right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

OTHER, START, INSIDE = range(3)
"""Kinds of tokens: of no word; the beginning of a word behind a space; the rest of one."""

NEVER = 1 << 30
"""Rank of a word that is in no list of suggestions, however long."""

_SPACES = "\u0120\u2581 "  # as byte-level and as SentencePiece tokenizers write a space, and itself
_APOSTROPHES = "'\u2019"


@lru_cache(maxsize=4)
def token_kinds(tokenizer: Any) -> np.ndarray:
    """Return each token's kind, [V] uint8.

    A word begins behind a space with a letter, and goes on with letters and apostrophes. Numbers and what follows a
    bracket or a line break are no words here.
    """
    size = len(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
    special = set(tokenizer.all_special_ids)
    kinds = [OTHER if i in special or not token else _kind(token) for i, token in enumerate(tokens)]
    return np.array(kinds, np.uint8)


def _kind(token: str) -> int:
    if token[0] in _SPACES:
        return START if len(token) > 1 and token[1].isalpha() else OTHER
    rest = token.lstrip(_APOSTROPHES)
    return INSIDE if rest.isalpha() or not rest else OTHER


def word_ranks(
    labels: Sequence[int] | np.ndarray, ranks: np.ndarray, best: np.ndarray, kinds: np.ndarray
) -> np.ndarray:
    """Return the place of each word of a text in the list of suggestions for it, [W] int64 from 1, or `NEVER`.

    The list is that of `SideTunedModel.suggest`: the most likely beginnings of words, each completed by the most likely
    tokens up to where these go on with something else.

    Parameters
    ----------
    labels : sequence of int
        The text's tokens in the loss, [T], in order.
    ranks, best : ndarray
        The rank of each among the tokens that begin a word, and the most likely token in its place, [T].
    kinds : ndarray
        From `token_kinds`.
    """
    labels = np.asarray(labels, np.int64)
    known, guessed = _kinds_of(labels, kinds), _kinds_of(best, kinds)
    places = []
    for start in np.flatnonzero(known == START):
        end = start + 1
        while end < len(labels) and known[end] == INSIDE:
            end += 1
        right = bool((best[start + 1 : end] == labels[start + 1 : end]).all())
        ended = end == len(labels) or guessed[end] != INSIDE
        places.append(int(ranks[start]) if right and ended else NEVER)
    return np.array(places, np.int64)


def _kinds_of(tokens: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return the kinds of tokens, of which the head may have more than the tokenizer."""
    return np.where(tokens < len(kinds), kinds[np.minimum(tokens, len(kinds) - 1)], OTHER)
