"""The sequence decoder on texts whose activations are made here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower.audit.attacks.sequences import SequenceDecoder, Written, token_f1
from mobillm_flower.tasks import Samples

_WORDS = [f"{chr(97 + i // 8)}word{i % 8}" for i in range(40)]
_WIDTH = 60


def sentences(count: int, seed: int) -> list[str]:
    """Five of forty words, in the order of the alphabet."""
    generator = np.random.default_rng(seed)
    return [" ".join(sorted(generator.choice(_WORDS, 5, replace=False))) for _ in range(count)]


def activations(texts: list[str]) -> torch.Tensor:
    """A random linear function of the words."""
    marks = torch.zeros(len(texts), len(_WORDS))
    for row, text in enumerate(texts):
        marks[row, [_WORDS.index(word) for word in text.split()]] = 1.0
    return marks @ torch.randn(len(_WORDS), _WIDTH, generator=torch.Generator().manual_seed(9))


def noise(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, _WIDTH, generator=torch.Generator().manual_seed(seed))


PUBLIC, VICTIMS = sentences(1500, 1), sentences(100, 2)


@pytest.fixture(scope="module")
def decoder() -> SequenceDecoder:
    return SequenceDecoder(activations(PUBLIC), Samples(PUBLIC, None, torch.zeros(len(PUBLIC))))


def recover(decoder: SequenceDecoder, uploads: torch.Tensor, **known: Any) -> Written:
    return decoder.recover(uploads, VICTIMS, activations(PUBLIC), **known)


def test_texts_are_written_down_from_activations_that_say_their_words(decoder: SequenceDecoder) -> None:
    found = recover(decoder, activations(VICTIMS))
    assert found.f1.value > 0.85
    assert found.f1.baseline < 0.4
    assert found.exact.value > 0.3
    assert found.exact.baseline < 0.02
    words_right = [token_f1(true.split(), text) == 1.0 for true, text in zip(VICTIMS, found.texts, strict=True)]
    assert found.exact.value > 0.9 * np.mean(words_right)  # their order was learned


def test_noise_alone_gives_no_more_than_no_upload(decoder: SequenceDecoder) -> None:
    found = recover(decoder, 100 * noise(100, 3), variance=1e4)
    assert found.f1.value < found.f1.baseline + 0.05
    assert found.exact.value == 0.0


def test_known_noise_is_allowed_for(decoder: SequenceDecoder) -> None:
    noisy = activations(VICTIMS) + 3 * noise(100, 4)
    aware, naive = recover(decoder, noisy, variance=9.0).f1, recover(decoder, noisy).f1
    assert recover(decoder, activations(VICTIMS)).f1.value > aware.value > naive.value
    assert aware.value > aware.baseline + 0.1


def test_uploads_of_another_kind_and_scale_are_put_into_its_terms(decoder: SequenceDecoder) -> None:
    shorter = noise(50, 5).T  # [60, 50]
    found = decoder.recover(2 * activations(VICTIMS) @ shorter, VICTIMS, activations(PUBLIC) @ shorter, scale=2.0)
    assert found.f1.value > 0.85


def test_the_better_of_no_upload_and_frequent_words_is_the_baseline(decoder: SequenceDecoder) -> None:
    blind = recover(decoder, activations(VICTIMS)).f1.baseline
    assert blind == pytest.approx(np.mean([token_f1(true.split(), decoder.untold) for true in VICTIMS]))
    found = decoder.recover(activations(VICTIMS), VICTIMS, activations(PUBLIC), frequent=_WORDS)
    assert found.f1.baseline == pytest.approx(max(blind, 2 * 5 / 45))


def test_the_same_seed_trains_the_same_decoder() -> None:
    few = Samples(PUBLIC[:100], None, torch.zeros(100))
    first, second = (SequenceDecoder(activations(PUBLIC[:100]), few, seed=3) for _ in range(2))
    assert recover_texts(first) == recover_texts(second)


def recover_texts(decoder: SequenceDecoder) -> list[tuple[str, ...]]:
    return decoder.recover(activations(VICTIMS), VICTIMS, activations(PUBLIC[:100])).texts


def test_token_f1_counts_words_as_often_as_they_stand() -> None:
    assert token_f1(("the", "cat", "the"), ("the", "the")) == pytest.approx(0.8)
    assert token_f1(("the",), ("the", "the", "the")) == pytest.approx(0.5)
    assert token_f1(("yes",), ("no",)) == 0.0
    assert token_f1((), ()) == 0.0
