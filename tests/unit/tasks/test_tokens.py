"""Samples as tokens: nothing of a prompt is cut, and a sample without a token costs no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.releases import make_window
from mobillm_flower.config import Settings, load_settings
from mobillm_flower.errors import DataError, SettingsError, UnsupportedError
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.tasks import read_rows, tokenize, with_tokens
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.tiny_models import save_tiny

WORDS = (
    "[PAD] [UNK] </s> a joy every morning it broke on the first day where is parcel All in all was Review : Then yes"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPT whose tokenizer begins no text with a token of its own: "" has none."""
    path = tmp_path_factory.mktemp("opt")
    words = {word: i for i, word in enumerate(WORDS.split())}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        eos_token="</s>",
    ).save_pretrained(path)
    config = OPTConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    OPTForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder))


def settings(folder: Path, **more: str | int) -> Settings:
    named = {key.replace("__", "."): value for key, value in more.items()}
    return load_settings({"backbone.name": str(folder), "task.labels": "bad,good", "task.max-length": 16, **named})


LONG = "where is the parcel it broke on the first day " * 5
ROWS = [{"text": "a joy", "pair": "a joy", "label": "good"}, {"text": LONG, "pair": "every morning", "label": "bad"}]


def read(backbone: Backbone, prompt: str, folder: Path, pair: bool = False) -> list[str]:
    more = {"task__prompt": prompt} | ({"data__pair_column": "pair"} if pair else {})
    data = read_rows(ROWS, None, settings(folder, **more))
    found = tokenize(backbone, data.train, data.contract)
    assert all(len(sample["input_ids"]) <= 16 for sample in found)
    return [backbone.tokenizer.decode(sample["input_ids"]) for sample in found]


def test_the_text_is_cut_and_never_the_prompt(backbone: Backbone, folder: Path) -> None:
    short, long = read(backbone, "Review : {text} All in all it was", folder)
    assert short == "Review : a joy All in all it was"
    assert long == "Review : where is the parcel it broke on the first All in all it was"
    assert read(backbone, "Review : {text}", folder)[1] == "Review : " + " ".join(LONG.split()[:14])


def test_of_two_texts_the_longer_is_cut(backbone: Backbone, folder: Path) -> None:
    _, long = read(backbone, "{text} Then {text_pair} yes or no", folder, pair=True)
    assert long.startswith("where is the parcel")
    assert long.endswith("Then every morning yes [UNK] [UNK]")


def test_a_prompt_without_room_for_a_text_is_refused(backbone: Backbone, folder: Path) -> None:
    chosen = settings(folder, task__prompt="Review : {text} " + "All in all it was " * 4)
    with pytest.raises(SettingsError, match=r"task.prompt has 22 tokens by itself, and task.max-length=16 leaves no"):
        with_tokens(read_rows(ROWS, None, chosen), backbone, chosen)


def test_a_row_without_a_token_costs_no_other(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["it broke on the first day", "a joy every morning"] * 10
    texts[7] = "\N{ZERO WIDTH SPACE}"
    rows = {"text": texts, "label": ["bad", "good"] * 10}
    train = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    chosen = settings(folder)
    device = Device(chosen, read_rows(train, train, chosen), DeviceFolder(tmp_path))
    device.backbone.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\N{ZERO WIDTH SPACE}", "")
    spec = extraction_spec(device.backbone.info, chosen, num_blocks=2, num_outputs=1)
    made = make_window(device, spec, held=frozenset(), size=20, max_bytes=1 << 24)
    assert (len(made.samples), made.total) == (19, 19)
    described = device.describe()
    assert (described.num_train, described.num_test) == (19, 19)
    assert described.left_out == {"train no-tokens": 1, "test no-tokens": 1}
    assert "1 train row without a token to read (row 7, counted from 0)" in caplog.text
    refusing = settings(folder, data__bad_rows="refuse")
    with pytest.raises(DataError, match=r"1 train row without a token .*data.bad-rows=drop"):
        with_tokens(read_rows(train, train, refusing), device.backbone, refusing)


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_and_token_types_without_an_embedding_are_refused_by_number(tmp_path: Path, pairs: bool) -> None:
    changes: dict[str, Any] = {"type_vocab_size": 1} if pairs else {"vocab_size": 10}
    path = save_tiny(tmp_path / "model", "bert", **changes)
    file = path / "tokenizer_config.json"
    named = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | named), "utf-8")
    loaded = load_backbone(str(path), device="cpu")
    assert loaded.tokenize(["the"], None, 16)
    message = (
        "token type 1, and the model has embeddings for 1 token" if pairs else r"token \d+, .* for 10 tokens, 0 to 9"
    )
    with pytest.raises(UnsupportedError, match=message):
        loaded.tokenize(["the bad"], ["good"] if pairs else None, 16)
