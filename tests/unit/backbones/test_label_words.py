"""Label words: by their first tokens, or by all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobillm_flower.backbones import load_backbone
from mobillm_flower.backbones.label_words import LabelWords, first_tokens, label_tokens
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.config import load_settings
from mobillm_flower.errors import SettingsError, UnsupportedError
from mobillm_flower.tasks.task import make_contract
from tests.support.tiny_models import save_tiny, streaming

WORDS = ["task.label-words=yes,no", "task.labels=b,a"]


def letters(text: str, **_options: Any) -> dict[str, list[int]]:
    """A tokenizer of letters."""
    return {"input_ids": [ord(letter) for letter in text]}


def test_a_forward_pass_for_every_beginning_of_a_word() -> None:
    words = LabelWords(((1,), (2, 3), (2, 3, 4), (5, 6)))
    assert words.beginnings == [(), (2,), (5,), (2, 3)]
    assert words.distinct == [1, 2, 3, 4, 5, 6]


def test_words_that_begin_alike_need_all_their_tokens() -> None:
    tokens = label_tokens(letters, ["good", "great"], spaced=False)
    with pytest.raises(SettingsError, match=r"'great' and 'good' begin with the same token.*whole-label-words=true"):
        first_tokens(["good", "great"], tokens)
    with pytest.raises(SettingsError, match="'a ' and 'a' are the same to the tokenizer"):
        label_tokens(letters, ["a", "a "])
    with pytest.raises(SettingsError, match="'' has no token"):
        label_tokens(letters, [""], spaced=False)


@pytest.mark.parametrize(
    ("prompt", "chat", "template", "spaced"),
    [
        ("{text} It is:", False, None, True),
        ("{text} It is:\\n", False, None, False),
        ("{text} It is:", True, "a template", False),  # the answer begins the model's turn
        ("{text} It is:", True, None, True),  # a model without a template reads the prompt alone
    ],
)
def test_a_label_word_begins_with_a_space_where_it_follows_a_text(
    prompt: str, chat: bool, template: str | None, spaced: bool
) -> None:
    text = prompt.replace("\\n", "\n")
    contract = make_contract(load_settings({"task.prompt": text, "task.chat-template": chat}, overrides=WORDS), [0, 1])
    options = LoadOptions("m").for_task(contract)
    tokenizer = SimpleNamespace(chat_template=template)
    assert options.spaced(tokenizer) is spaced


def test_whole_words_are_part_of_the_contract_where_there_are_words() -> None:
    words = ["task.prompt={text}:", "task.whole-label-words=true"]
    contract = make_contract(load_settings(overrides=[*WORDS, *words]), [0, 1])
    assert LoadOptions("m").for_task(contract).whole_words
    assert contract.from_json(contract.to_json()) == contract
    plain = make_contract(load_settings(overrides=[*WORDS, words[0]]), [0, 1])
    assert "whole_words" not in plain.to_json()
    assert not make_contract(load_settings(overrides=words), [0, 1]).whole_words


def test_where_whole_words_cannot_be_scored(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path, "t5"))
    with pytest.raises(UnsupportedError, match=r"whole-label-words=true does not work with an encoder-decoder"):
        load_backbone(folder, device="cpu", label_words=["yes", "no"], whole_words=True)
    opt = str(save_tiny(tmp_path / "opt", "opt"))
    with pytest.raises(UnsupportedError, match="layers that are streamed"):
        load_backbone(opt, label_words=["yes", "no"], whole_words=True, plan=streaming())
    with pytest.raises(SettingsError, match=r"task.whole-label-words must be false with backbone.engine=onnx"):
        load_settings(overrides=[*WORDS, "backbone.engine=onnx", "task.whole-label-words=true"])


def test_words_after_a_text_must_fit_into_the_model(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path, "gpt2"))
    backbone = load_backbone(folder, device="cpu", label_words=["yes", "yes no"], whole_words=True)
    positions = backbone.positions
    assert positions
    backbone.check_length(positions - 1)
    with pytest.raises(SettingsError, match=rf"task.max-length={positions} and label words 2, but"):
        backbone.check_length(positions)
