"""Models of real shapes with random weights, right for seconds and bytes, and texts that fill any length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from mobillm_flower.config import load_settings
from mobillm_flower.tasks import load_local_data

SHAPES: Mapping[str, Mapping[str, int]] = {
    "opt-125m": {},
    "opt-350m": {
        "hidden_size": 1024,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "word_embed_proj_dim": 512,
    },
    "opt-1.3b": {
        "hidden_size": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "word_embed_proj_dim": 2048,
    },
}
"""Shapes of OPT by name (arXiv 2205.01068): what differs from transformers' defaults, which are OPT-125M."""


def random_opt(folder: Path, shape: str, *, dtype: torch.dtype = torch.float32) -> Path:
    """Save a model of that shape below a folder, with a tokenizer fitted on the package's data; returns its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import OPTConfig, OPTModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = folder / shape
    config = OPTConfig(**SHAPES[shape])
    torch.manual_seed(0)
    OPTModel._from_config(config, dtype=dtype).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>"]  # ids 0, 1, 2, as OPT has them
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    data = load_local_data(load_settings({"data.label-column": "intent"}), 0, 1)
    tokenizer.train_from_iterator(data.train.texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def long_texts(folder: Path, count: int) -> Path:
    """Write a data set of texts of 1,000 words, which are cut at any `task.max-length`; returns its folder.

    Each begins with another word: what texts begin with alike, a device computes once (`PrefixCache`).
    """
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": " ".join([str(i)] + ["word"] * 1000), "label": str(i % 2)}) for i in range(count)]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder
