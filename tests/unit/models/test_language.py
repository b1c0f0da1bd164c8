"""Suggestions of next words are what the metric of next words counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower.errors import DataError
from mobillm_flower.models import language
from mobillm_flower.tasks import Samples
from mobillm_flower.tasks.words import NEVER
from tests.support.language import tuned_model
from tests.support.tiny_models import TEXTS, save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tuned_model(str(save_tiny(tmp_path_factory.mktemp("opt"), "opt")), prompt="")


@pytest.fixture
def kinds(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the tiny tokenizer, which writes no spaces, have beginnings of words and the rests of them."""
    drawn = np.random.default_rng(0).choice([0, 1, 2], size=len(model.tokenizer), p=[0.2, 0.6, 0.2]).astype(np.uint8)
    monkeypatch.setattr(language, "token_kinds", lambda _tokenizer: drawn)
    return drawn


def test_a_words_place_is_its_place_in_the_list(model: Any, kinds: Any) -> None:
    seen = 0
    for text in (text for text in TEXTS if " " in text):
        ids = model.tokenizer(text)["input_ids"]
        places = model.token_scores(Samples([text], None, torch.zeros(1))).word_ranks.tolist()
        starts = [i for i in range(1, len(ids)) if kinds[ids[i]] == 1]
        assert len(places) == len(starts)
        for start, place in zip(starts, places, strict=True):
            end = start + 1
            while end < len(ids) and kinds[ids[end]] == 2:
                end += 1
            if end == len(ids):
                continue  # the end of text follows it, which the tiny model may not know
            before, word = (model.tokenizer.decode(part) for part in (ids[:start], ids[start:end]))
            listed = [name for name, _ in model.suggest(before, num=len(kinds))]
            assert (place == NEVER) is (word not in listed)
            if place != NEVER:
                assert listed[place - 1] == word
                seen += 1
    assert seen > 3


def test_suggestions_come_with_the_probability_of_the_whole_word(model: Any, kinds: Any) -> None:
    found = model.suggest(TEXTS[0], num=3)
    assert len(found) == 3
    assert all(0 < likely < 1 for _, likely in found)
    one_token = [(word, likely) for word, likely in found if len(model.tokenizer(word)["input_ids"]) == 1]
    assert [likely for _, likely in one_token] == sorted((likely for _, likely in one_token), reverse=True)
    assert model.with_network(None).suggest(TEXTS[0], num=3) != found
    with pytest.raises(DataError, match="no token"):
        model.suggest(" ")
