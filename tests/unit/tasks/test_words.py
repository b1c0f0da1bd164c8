"""Words as tokens make them, and their places among suggestions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mobillm_flower.tasks.words import INSIDE, NEVER, OTHER, START, token_kinds, word_ranks


class Tokenizer:
    """Knows its tokens by number."""

    def __init__(self, tokens: list[str | None]) -> None:
        self.tokens, self.all_special_ids = tokens, [0]

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[Any]:
        return [self.tokens[i] for i in ids]


@pytest.mark.parametrize("space", ["Ġ", "▁", " "])
def test_a_word_begins_behind_a_space_with_a_letter_and_goes_on_with_letters_and_apostrophes(space: str) -> None:
    tokens = [
        "<s>",
        f"{space}wake",
        "up",
        "'s",
        "’",
        f"{space}7",
        f"{space}(",
        ".",
        space,
        "é",
        None,
        "a1",
        f"{space}'em",
    ]
    expected = [OTHER, START, INSIDE, INSIDE, INSIDE, OTHER, OTHER, OTHER, OTHER, INSIDE, OTHER, OTHER, OTHER]
    assert token_kinds(Tokenizer([*tokens])).tolist() == expected


KINDS = np.array([OTHER, START, START, INSIDE, INSIDE, OTHER], np.uint8)


@pytest.mark.parametrize(
    ("labels", "best", "expected"),
    [
        ([1, 0], [5, 5], [2]),  # one token; its place is its rank
        ([1, 3, 0], [5, 3, 5], [2]),  # the rest is what the model makes of the beginning
        ([1, 3, 0], [5, 4, 5], [NEVER]),  # it makes another word of it
        ([1, 0], [5, 3], [NEVER]),  # it goes on where the word ends
        ([1], [5], [2]),  # the text ends with the word
        ([3, 5, 1, 2], [5, 5, 5, 5], [2, 2]),  # the rest of a word whose beginning is not there is none
        ([1, 9], [5, 9], [2]),  # the head has more tokens than the tokenizer
        ([5, 0], [3, 3], []),
    ],
)
def test_a_word_is_suggested_where_its_beginning_is_and_the_rest_follows(
    labels: list[int], best: list[int], expected: list[int]
) -> None:
    ranks = np.full(len(labels), 2)
    assert word_ranks(labels, ranks, np.array(best), KINDS).tolist() == expected
