"""Prompts in chat templates, and label words calibrated on texts that say nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.config import load_settings
from mobillm_flower.errors import SettingsError
from mobillm_flower.tasks.activations import read_activations
from mobillm_flower.tasks.calibration import uninformed
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.tasks.task import Samples, contract_by_settings, make_contract
from mobillm_flower.tasks.tokens import as_read, check_prompt, tokenize
from mobillm_flower.wire.contract import TaskContract
from tests.support.tiny_models import save_tiny

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{ {{ m['content'] }} }{% endfor %}<|assistant|>"
WORDS = ["task.prompt={text} it sat", "task.label-words=yes,no", "task.labels=b,a", "task.max-length=32"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = save_tiny(tmp_path_factory.mktemp("tiny"), "smollm")
    return load_backbone(str(folder), device="cpu", num_labels=2, label_words=["yes", "no"])


def contract(*words: str) -> TaskContract:
    return make_contract(load_settings(overrides=[*WORDS, *words]), [0, 1])


def samples(*texts: str) -> Samples:
    return Samples(list(texts), None, torch.zeros(len(texts), dtype=torch.long))


def base(backbone: Backbone, agreed: TaskContract, *texts: str) -> torch.Tensor:
    spec = extraction_spec(backbone.info, load_settings(), num_blocks=2, num_outputs=1)
    logits = read_activations(backbone, samples(*texts), agreed, spec).base_logits
    assert logits is not None
    return torch.softmax(logits, 1)


def test_calibrated_probabilities_are_those_of_the_text_over_those_of_no_content(backbone: Backbone) -> None:
    plain = contract()
    free = base(backbone, plain, "N/A", "[MASK]", "").mean(0)
    expected = base(backbone, plain, "the cat sat", "dog") / free
    found = base(backbone, contract("task.calibration=content-free"), "the cat sat", "dog")
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    public = uninformed(backbone, contract("task.calibration=public"))
    assert not torch.allclose(public.exp(), free)


def test_a_text_without_content_says_nothing_after_calibration(backbone: Backbone) -> None:
    agreed = contract("task.calibration=content-free")
    mean = torch.stack([base(backbone, contract(), text)[0] for text in ("N/A", "[MASK]", "")]).mean(0)
    again = mean / uninformed(backbone, agreed).exp()
    torch.testing.assert_close(again / again.sum(), torch.full((2,), 0.5))


def test_without_label_words_there_is_nothing_to_calibrate() -> None:
    assert make_contract(load_settings(overrides=["task.calibration=public", "task.labels=b,a"]), [0]).calibration == ""


def test_the_prompt_is_a_users_message_where_the_model_has_a_template(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = contract("task.chat-template=true")
    assert as_read(backbone.tokenizer, agreed).prompt == "{text} it sat"
    monkeypatch.setattr(backbone.tokenizer, "chat_template", TEMPLATE)
    assert as_read(backbone.tokenizer, contract()).prompt == "{text} it sat"
    read = as_read(backbone.tokenizer, agreed)
    assert read.prompt.format(text="a dog") == "<|user|>{ a dog it sat }<|assistant|>"
    (whole,) = tokenize(backbone, samples("a dog " * 40), agreed)
    ids = backbone.tokenizer(" it sat }<|assistant|>")["input_ids"]
    assert len(whole["input_ids"]) <= 32
    assert whole["input_ids"][-len(ids) :] == ids  # the end of the prompt is never cut
    with pytest.raises(SettingsError, match=r"task\.prompt has \d+ tokens by itself, and task\.max-length=6"):
        check_prompt(backbone.tokenizer, replace(agreed, max_length=6))


def test_what_is_not_used_leaves_the_contract_as_it_was_and_devices_must_agree(tmp_path: Path) -> None:
    plain, chat = contract(), contract("task.chat-template=true", "task.calibration=public")
    assert "chat_template" not in plain.to_json()
    assert "calibration" not in plain.to_json()
    assert [TaskContract.from_json(one.to_json()) for one in (plain, chat)] == [plain, chat]
    settings = load_settings(overrides=[*WORDS, "task.chat-template=true"])
    assert contract_by_settings(settings, plain).chat_template
