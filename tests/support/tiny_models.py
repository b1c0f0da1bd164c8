"""Tiny random models with a small tokenizer, saved as a hub checkpoint would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "hill", "and", "then", "it", "slept"]
WORDS += ["all", "day", "yes", "no", "maybe", "good", "bad"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 211
TEXTS = [
    "the cat sat on the mat and then it slept all day",
    "dog",
    "a dog ran under the hill and then the cat ran on and on",
    "it slept",
    "yes the good dog sat",
]

_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_ENCODER = _COMMON | {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_LLAMA = _ENCODER | {"num_key_value_heads": 1, "tie_word_embeddings": False}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _ENCODER),
    "roberta": ("RobertaConfig", _ENCODER),
    "distilbert": (
        "DistilBertConfig",
        _COMMON | {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
    ),
    "opt": ("OPTConfig", _ENCODER | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "opt-projected": ("OPTConfig", _ENCODER | {"ffn_dim": 24, "word_embed_proj_dim": 8}),
    "gpt2": ("GPT2Config", _COMMON | {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}),
    "llama": ("LlamaConfig", _LLAMA),
    "qwen2": ("Qwen2Config", _LLAMA),
}
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("opt", "opt-projected", "gpt2", "llama", "qwen2")


def make_config(name: str, **changes: Any) -> Any:
    kind, values = CONFIGS[name]
    return getattr(transformers, kind)(**{**values, **changes})


def make_model(config: Any, auto: str, seed: int = 0) -> nn.Module:
    """A model with random weights, norms included, so that no layer is close to the identity."""
    torch.manual_seed(seed)
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_model(folder: Path, model: nn.Module, *, adds_special_tokens: bool) -> Path:
    model.save_pretrained(folder)
    if model.config.model_type == "qwen2":  # transformers rebuilds it as a byte-level BPE whatever was saved
        save_bpe_tokenizer(folder)
    else:
        save_tokenizer(folder, adds_special_tokens=adds_special_tokens)
    return folder


def save_bpe_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *(f"{word} {word}" for word in WORDS)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)


def save_tokenizer(folder: Path, *, adds_special_tokens: bool) -> None:
    words = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_special_tokens:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
        )
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * adds_special_tokens
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=names,
    ).save_pretrained(folder)


def save_tiny(folder: Path, name: str, *, auto: str = "", seed: int = 0, **changes: Any) -> Path:
    """Save a tiny model of a family in `CONFIGS`; decoders with their LM head, as hub checkpoints are."""
    auto = auto or ("AutoModelForCausalLM" if name in DECODERS else "AutoModel")
    model = make_model(make_config(name, **changes), auto, seed)
    return save_model(folder, model, adds_special_tokens=name in ENCODERS)
