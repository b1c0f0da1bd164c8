"""The backbone's upper layers in language modelling: states of all tokens go up, tokens in the loss are predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mobillm_flower import load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core import language
from mobillm_flower.core.language import CHUNK, NOT_ASKED, mark_asked, read_asked
from mobillm_flower.errors import SettingsError
from mobillm_flower.models import language as models
from mobillm_flower.tasks import Samples, chunks_of, prompt_tokens, read_tokens
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.wire.target_bytes import (
    TargetBatch,
    check_token_targets,
    decode_targets,
    encode_token_labels,
    target_size,
)
from tests.support.language import tuned_model
from tests.support.packets import make_contract, make_spec
from tests.support.present import present
from tests.support.tiny_models import DECODERS, TEXTS, save_tiny

SPEC = make_spec(pivot="all", objective="label", vocabulary=40, head_width=8, layers_above=2)
CONTRACT = make_contract(kind="language-modelling", labels=(), metric="cross-entropy", per_token=True, max_length=6)
SAMPLES = Samples([TEXTS[0], TEXTS[3]], ["the dog", " ".join(TEXTS[:3])], torch.zeros(2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("models")
    return {name: str(save_tiny(base / name, name)) for name in DECODERS}


def model_of(folder: str, **changes: Any) -> Any:
    """A model whose adapters are away from their start, and of which samples have several chunks."""
    model = tuned_model(folder, "{text} and then", name="upper-layers")
    model.contract = dataclasses.replace(model.contract, max_length=16, **changes)
    return model


def test_what_is_in_the_loss_is_read_back_chunk_by_chunk() -> None:
    chunks = [(torch.tensor([5, 6, 7, 8]), 3), (torch.tensor([1, 0]), 1), (torch.tensor([2, 3, 4]), 1)]
    marked = torch.cat([mark_asked(tokens, first) for tokens, first in chunks])
    assert marked.tolist() == [NOT_ASKED | CHUNK, NOT_ASKED, 8, 0 | CHUNK, 3 | CHUNK, 4]
    read = read_asked(marked)
    assert read.labels.tolist() == [8, 0, 3, 4]
    assert read.asked.tolist() == [False, False, True, True, True, True]
    assert read.chunks.tolist() == [3, 1, 2]


@pytest.mark.parametrize("name", DECODERS)
def test_states_at_the_cut_predict_what_the_whole_model_does(folders: Any, name: str) -> None:
    """Each chunk by itself, and with the adapters in it; without a side network it is the backbone's own prediction."""
    model = model_of(folders[name])
    rows, marked = read_tokens(model.backbone, SAMPLES, model.contract, model.spec)
    assert [len(one) for one in rows] == [len(one) for one in marked]
    chunks = [w for of_sample in chunks_of(model.tokenizer, SAMPLES, model.contract) for w in of_sample]
    assert len(chunks) > len(SAMPLES)
    assert read_asked(torch.cat(marked)).chunks.tolist() == [len(w.ids) - 1 for w in chunks]
    for network, whole in (
        (model.side_network, model.language_model),
        (None, model.backbone.language_model),
    ):
        found = model.with_network(network).token_scores(SAMPLES).log_probabilities
        expected = []
        for chunk in chunks:
            with torch.inference_mode():
                scores = whole(input_ids=torch.tensor([chunk.ids])).logits[0].float().log_softmax(1)
            expected.append(scores[range(chunk.first - 1, len(chunk.ids) - 1), chunk.ids[chunk.first :]])
        assert torch.allclose(torch.from_numpy(found), torch.cat(expected), atol=1e-4)
    assert not torch.allclose(torch.from_numpy(found), torch.from_numpy(model.token_scores(SAMPLES).log_probabilities))


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_what_is_generated_has_the_scores_of_a_whole_pass(folders: Any, name: str) -> None:
    model = model_of(folders[name])
    ids = torch.tensor([model.tokenizer(TEXTS[2])["input_ids"]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    made = model.language_model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    sequence = made.sequences[0].tolist()
    (rows,) = model.backbone.extract([{"input_ids": sequence}], layers=model.spec.layers, pivot="all").activations
    with torch.inference_mode():
        states = model.tuned_states(rows.flatten(2), torch.tensor([len(rows)]))
        expected = model.head.logits(model.head.inputs(states))
    start = ids.shape[1] - 1
    assert torch.allclose(torch.cat(made.logits), expected[start : start + 6], atol=1e-4)
    assert model.generate(list(TEXTS[:2]), max_new_tokens=3) == [
        model.generate(text, max_new_tokens=3) for text in TEXTS[:2]
    ]


def test_suggestions_have_the_probability_of_a_whole_pass(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(folders["llama"])
    begins = np.ones(len(model.tokenizer), np.uint8)  # each token a word
    monkeypatch.setattr(models, "token_kinds", lambda _tokenizer: begins)
    ids = prompt_tokens(model.tokenizer, f"{TEXTS[0]} and then")
    with torch.inference_mode():
        expected = model.language_model(input_ids=torch.tensor([ids])).logits[0, -1].float().softmax(0)[: len(begins)]
    found = [likely for _, likely in model.suggest(TEXTS[0], num=3)]
    assert found == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)


def test_a_step_learns_from_tokens_in_the_loss_alone(folders: Any) -> None:
    """The loss is the mean over them, whatever the prompt's states would predict, and every adapter learns."""
    model = model_of(folders["llama"])
    rows, marked = read_tokens(model.backbone, SAMPLES, model.contract, model.spec)
    read = read_asked(torch.cat(marked))
    states = model.tuned_states(torch.cat(rows).flatten(2), read.chunks)
    loss = language.cross_entropy(model.head.inputs(states[read.asked]), read.labels, model.head)
    loss.backward()
    assert loss.item() == pytest.approx(-float(model.token_scores(SAMPLES).log_probabilities.mean()), abs=1e-5)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.side_network.parameters())
    assert {name.split(".")[0] for name in model.side_network.state_dict()} == {"adapters"}


def test_targets_of_whole_texts_are_four_bytes_a_token() -> None:
    marked = [mark_asked(torch.arange(5), 3), torch.cat([mark_asked(torch.arange(3), 1)] * 2)]
    blobs = encode_token_labels(marked)
    assert [len(blob) for blob in blobs] == [target_size(SPEC, CONTRACT, 4)] * 2 == [16, 16]
    found = decode_targets(blobs, SPEC, CONTRACT, [4, 4])
    assert torch.equal(present(found.labels), torch.cat(marked))
    assert check_token_targets(found, SPEC, CONTRACT, [4, 4]) == ""


@pytest.mark.parametrize(
    ("labels", "tokens", "wrong"),
    [
        ([3, 4], [2], "does not begin a chunk"),
        ([CHUNK | 3, 4, 4], [2, 1], "does not begin a chunk"),
        ([CHUNK | 3, 4, 4, 4, 4, 4], [6], "a chunk has 7 tokens, and 6 are the most"),
        ([CHUNK | 3, CHUNK | NOT_ASKED], [1, 1], "no token in the loss"),
        ([CHUNK | 40], [1], "a token is not below 40"),
        ([CHUNK | NOT_ASKED, NOT_ASKED - 1], [2], "a token is not below 40"),
    ],
)
def test_marks_that_no_text_has_are_refused(labels: list[int], tokens: list[int], wrong: str) -> None:
    """A chunk's length too: attention over it takes memory with its square."""
    targets = TargetBatch(None, torch.tensor(labels), None)
    assert wrong in check_token_targets(targets, SPEC, CONTRACT, tokens)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["loss.objective=difference"], r"loss\.objective=difference needs the last layer's states on the device"),
        (["loss.objective=label", "loss.scale=2"], r"loss\.scale=2\.0 has no use in language modelling"),
        (["loss.objective=label", "activations.keep=0.5"], r"activations\.keep=0\.5 cannot be used"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folders: Any, words: list[str], reason: str) -> None:
    info = load_backbone(folders["opt"], device="cpu", language_model=True).info
    settings = load_settings(overrides=["side-network.name=upper-layers", *words])
    with pytest.raises(SettingsError, match=reason):
        extraction_spec(info, settings, num_blocks=1, num_outputs=1)
