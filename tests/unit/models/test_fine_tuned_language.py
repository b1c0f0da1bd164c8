"""A language model that is trained reads and measures texts as side-tuning does, and learns them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower.backbones import load_backbone
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models import fine_tuned_language, language
from mobillm_flower.models.fine_tuned import FineTunedModel, fine_tuned
from mobillm_flower.models.split import SplitModel
from mobillm_flower.tasks import Samples
from tests.support.language import tuned_model
from tests.support.tiny_models import TEXTS, save_tiny

WORDS = [text for text in TEXTS if " " in text]
LONG = " ".join(TEXTS)  # of several chunks
PLAIN = Samples([*WORDS, LONG], None, torch.zeros(len(WORDS) + 1))
ANSWERS = Samples([*WORDS, WORDS[0]], [*WORDS[::-1], LONG], torch.zeros(len(WORDS) + 1))


@pytest.fixture(scope="module", params=["opt", "llama"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp(request.param), request.param))


def trainable(folder: str, model: Any, **options: Any) -> FineTunedModel:
    return fine_tuned(load_backbone(folder, device="cpu", language_model=True), model.contract, **options)


@pytest.mark.parametrize(("samples", "prompt"), [(PLAIN, ""), (ANSWERS, "{text}")])
def test_before_training_it_is_the_model_that_side_tuning_starts_from(
    folder: str, samples: Samples, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    side_tuned = tuned_model(folder, prompt).with_network(None)
    drawn = np.random.default_rng(0).choice([0, 1, 2], size=len(side_tuned.tokenizer), p=[0.2, 0.6, 0.2])
    for module in (language, fine_tuned_language):  # the tiny tokenizer writes no spaces
        monkeypatch.setattr(module, "token_kinds", lambda _tokenizer: drawn.astype(np.uint8))
    model = trainable(folder, side_tuned)
    expected, found = side_tuned.token_scores(samples), model.token_scores(samples)  # type: ignore[operator]
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-4)
    assert found.word_ranks.tolist() == expected.word_ranks.tolist()
    assert model.evaluate(samples) == pytest.approx(side_tuned.evaluate(samples), abs=1e-4)


def test_training_lowers_the_loss_and_is_the_same_each_time(folder: str) -> None:
    side_tuned = tuned_model(folder, "")
    states = []
    for _ in range(2):
        model = trainable(folder, side_tuned, rank=4)
        before = model.evaluate(PLAIN)
        work = model.fit(PLAIN, epochs=20, batch_size=4, learning_rate=1e-2, seed=1)
        assert model.evaluate(PLAIN) < before - 0.3
        assert work.samples == 20 * len(PLAIN)
        assert work.flops > 0
        states.append(model.trained_state())
    assert all("lora" in name for name in states[0])  # the head is the model's own, and frozen
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_step_is_that_of_the_whole_models_logits(folder: str) -> None:
    side_tuned = tuned_model(folder, "")
    model = trainable(folder, side_tuned)
    whole = model.backbone.language_model
    (inputs, labels), *_ = model.batches(PLAIN, 4, 0)
    logits = whole(**inputs).logits.float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)
    loss = model.loss(model(inputs), labels)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    parameters = list(model.trained().values())
    ours, theirs = (torch.autograd.grad(one, parameters) for one in (loss, expected))
    assert sum(float(gradient.abs().sum()) for gradient in theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_what_it_cannot_do_is_refused(folder: str) -> None:
    side_tuned = tuned_model(folder, "")
    with pytest.raises(UnsupportedError, match="was loaded without its language-model head"):
        fine_tuned(load_backbone(folder, device="cpu"), side_tuned.contract)
    model = trainable(folder, side_tuned)
    with pytest.raises(UnsupportedError, match="gives no scores of samples"):
        model.scores(PLAIN)
    with pytest.raises(UnsupportedError, match="split training predicts classes and numbers"):
        SplitModel(model, 1)
