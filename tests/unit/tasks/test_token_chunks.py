"""How prompt and response become the chunks of tokens that a language model reads."""

from __future__ import annotations

from typing import Any

import pytest

from mobillm_flower.errors import DataError
from mobillm_flower.tasks import token_chunks


class Words:
    """A tokenizer of numbers."""

    eos_token_id: int | None = 0
    chat_template: str | None = None

    def __call__(self, text: Any, **_options: Any) -> Any:
        return {"input_ids": [int(word) for word in text.split()]}

    def apply_chat_template(self, messages: Any, *, add_generation_prompt: Any, tokenize: Any) -> Any:
        parts = [f"{90 + (m['role'] == 'assistant')} {m['content']}" for m in messages]
        return " ".join([*parts, *(["91"] if add_generation_prompt else [])])


def numbers(start: Any, end: Any) -> Any:
    return " ".join(str(i) for i in range(start, end))


def test_a_response_and_its_end_are_in_the_loss_and_the_prompt_is_not() -> None:
    (chunk,) = token_chunks(Words(), "1 2 3", "4 5", 16)
    assert chunk.ids == [1, 2, 3, 4, 5, 0]
    assert chunk.ids[chunk.first :] == [4, 5, 0]
    (plain,) = token_chunks(Words(), None, "4 5", 16)
    assert plain.ids[plain.first :] == [5, 0]


def test_a_chat_template_is_used() -> None:
    tokenizer = Words()
    tokenizer.chat_template = "yes"
    (chunk,) = token_chunks(tokenizer, "1 2", "3", 16)
    assert chunk.ids == [90, 1, 2, 91, 3]
    assert chunk.ids[chunk.first :] == [3]


@pytest.mark.parametrize("prompt", [None, "200 201 202", numbers(200, 240)])
def test_each_token_of_a_long_text_is_in_the_loss_once_with_half_a_chunk_before_it(prompt: Any) -> None:
    chunks = token_chunks(Words(), prompt, numbers(100, 150), 16)
    assert [i for w in chunks for i in w.ids[w.first :]] == [*range(100 + (prompt is None), 150), 0]
    before = len(prompt.split()) if prompt else 0
    assert all(len(w.ids) <= 16 for w in chunks)
    assert all(w.first >= min(8, before) and w.first >= 1 for w in chunks)
    assert all(w.first >= 8 for w in chunks[1:])


def test_a_text_without_a_token_to_predict_is_refused() -> None:
    tokenizer = Words()
    tokenizer.eos_token_id = None
    with pytest.raises(DataError, match="no token to predict"):
        token_chunks(tokenizer, None, "7", 16)
