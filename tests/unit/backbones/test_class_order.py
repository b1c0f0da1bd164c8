"""A trained head's classes are matched by name; a folder without a tokenizer is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from mobillm_flower.backbones import load_backbone
from mobillm_flower.backbones.checkpoint import class_order
from mobillm_flower.errors import SettingsError, UnsupportedError

SMALL = {"vocab_size": 9, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def config(*names: str) -> SimpleNamespace:
    return SimpleNamespace(id2label=dict(enumerate(names)))


@pytest.mark.parametrize(
    ("own", "labels", "order"),
    [
        ("good bad fair", "bad fair good", (1, 2, 0)),
        ("NEGATIVE POSITIVE", "positive negative", (1, 0)),
        ("bad good", "bad good", ()),
        ("LABEL_0 LABEL_1", "bad good", ()),
        ("negative positive", "0 1", ()),
        ("a b", "", ()),
    ],
)
def test_the_order_is_that_of_the_names(own: str, labels: str, order: tuple[int, ...]) -> None:
    assert class_order(config(*own.split()), labels.split()) == order


@pytest.mark.parametrize("own", ["good bad", "fair bad good", "bad bad fair"])
def test_other_names_are_refused(own: str) -> None:
    with pytest.raises(SettingsError, match=r"head predicts the classes .* others than those of the task"):
        class_order(config(*own.split()), ["bad", "fair", "great"])


def test_the_prediction_of_the_base_follows_the_names(tmp_path: Path) -> None:
    names = ["good", "bad", "fair"]
    model = BertForSequenceClassification(
        BertConfig(**SMALL, num_labels=3, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    )
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([9.0, 0.0, -9.0]))  # says "good" of everything
    model.save_pretrained(tmp_path)
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "joy": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    labels = ["bad", "fair", "good"]
    backbone = load_backbone(str(tmp_path), num_labels=3, labels=labels)
    logits = backbone.extract(backbone.tokenize(["joy"], None, 8), layers=[2], pivot="mean").base_logits
    assert logits is not None
    assert labels[int(logits[0].argmax())] == "good"


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, family: str) -> None:
    made = {
        "bert": lambda: BertModel(BertConfig(**SMALL)),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(vocab_size=9, dim=32, n_layers=2, n_heads=2, hidden_dim=32)
        ),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=32, n_layer=2, n_head=2, n_positions=64)),
    }
    made[family]().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="tokenizer"):
        load_backbone(str(tmp_path))
