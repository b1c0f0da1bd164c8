"""What a side-tuned language model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower import SideTunedModel
from mobillm_flower.errors import DataError, UnsupportedError
from tests.support.language import tuned_model
from tests.support.present import present
from tests.support.tiny_models import DECODERS, TEXTS, save_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("models")
    return {name: str(save_tiny(base / name, name)) for name in DECODERS}


@pytest.mark.parametrize("name", DECODERS)
def test_each_generated_token_has_the_logits_of_a_full_recomputation(folders: Any, name: str) -> None:
    model = tuned_model(folders[name])
    ids = torch.tensor([model.tokenizer(TEXTS[2])["input_ids"]])
    made = model.language_model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    sequence = made.sequences[0].tolist()
    found = model.backbone.extract([{"input_ids": sequence}], layers=model.spec.layers, pivot="all").activations[0]
    with torch.inference_mode():
        states = model.tuned_states(found.flatten(2), torch.tensor([len(found)]))
        head = present(model.backbone.head)
        expected = head.logits(head.inputs(states))
        plain = model.backbone.language_model(input_ids=made.sequences).logits[0]
    steps = torch.cat(made.logits)  # [8, V]
    start = ids.shape[1] - 1
    assert made.past_key_values is not None
    assert torch.allclose(steps, expected[start : start + 8], atol=1e-4)
    assert not torch.allclose(steps, plain[start : start + 8], atol=1e-2)  # the backbone itself is as it was


def test_generate_answers_one_or_several_prompts_of_different_lengths(folders: Any) -> None:
    model = tuned_model(folders["llama"])
    alone = [model.generate(text, max_new_tokens=6) for text in TEXTS[:3]]
    assert model.generate(TEXTS[:3], max_new_tokens=6) == alone
    assert alone != [model.with_network(None).generate(text, max_new_tokens=6) for text in TEXTS[:3]]


def test_a_prompt_is_read_whole_or_refused(folders: Any) -> None:
    model = tuned_model(folders["llama"])
    words = TEXTS[0].split() * 20
    whole = " ".join(words[-60:])  # of 64 positions
    assert model.generate(whole, max_new_tokens=4) is not None
    with pytest.raises(DataError, match="60 tokens, and with 5 new ones it is longer than the model's 64 positions"):
        model.generate(whole, max_new_tokens=5)
    with pytest.raises(DataError, match="the prompt has no token"):
        model.generate("", max_new_tokens=5)


def test_a_streamer_gets_the_text_as_it_is_made_and_a_pipeline_runs_the_model(
    folders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = tuned_model(folders["opt"])
    text = model.generate(TEXTS[0], max_new_tokens=5, streamer=transformers.TextStreamer(model.tokenizer, True))
    assert capsys.readouterr().out.split() == text.split()
    write = transformers.pipeline("text-generation", model=model.language_model, tokenizer=model.tokenizer)
    (made,) = write(TEXTS[0], max_new_tokens=5, do_sample=False, return_full_text=False)
    assert made["generated_text"].split() == text.split()


def test_a_saved_language_model_is_loaded_with_its_head(folders: Any, tmp_path: Path) -> None:
    model = tuned_model(folders["gpt2"])
    model.save_pretrained(tmp_path)
    again = SideTunedModel.from_pretrained(tmp_path)
    assert again.generate(TEXTS[2], max_new_tokens=6) == model.generate(TEXTS[2], max_new_tokens=6)
    with pytest.raises(UnsupportedError, match="use generate"):
        again.predict(TEXTS[0])
