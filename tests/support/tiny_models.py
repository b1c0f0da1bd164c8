"""Tiny random models with a small tokenizer, saved as a hub checkpoint would be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from mobillm_flower.backbones.memory import MemoryPlan

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
_DEBERTA = _ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_DECODER = _ENCODER | {"tie_word_embeddings": True}
_GROUPED = _DECODER | {"num_key_value_heads": 1, "head_dim": 8}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_T5 = _COMMON | {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _ENCODER),
    "roberta": ("RobertaConfig", _ENCODER),
    "distilbert": (
        "DistilBertConfig",
        _COMMON | {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
    ),
    "deberta": ("DebertaConfig", _DEBERTA),
    "deberta-v2": (
        "DebertaV2Config",
        _DEBERTA | {"conv_kernel_size": 3, "conv_act": "gelu", "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    ),
    "deberta-v3": (
        "DebertaV2Config",
        _DEBERTA | {"share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    ),
    "modernbert": (
        "ModernBertConfig",
        _ENCODER
        | {
            "cls_token_id": 2,
            "sep_token_id": 3,
            "local_attention": 4,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "opt": ("OPTConfig", _DECODER | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "opt-projected": (
        "OPTConfig",
        _DECODER | {"ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
    ),
    "gpt2": ("GPT2Config", _COMMON | {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}),
    "gpt-neox": ("GPTNeoXConfig", _DECODER | {"tie_word_embeddings": False}),
    "llama": ("LlamaConfig", _GROUPED | {"tie_word_embeddings": False}),
    "smollm": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", _GROUPED | {"sliding_window": 4, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", _GROUPED | {"tie_word_embeddings": False}),
    "qwen2-sliding": ("Qwen2Config", _GROUPED | _SLIDING | {"use_sliding_window": True}),
    "qwen3": ("Qwen3Config", _GROUPED),
    "gemma2": ("Gemma2Config", _GROUPED | _SLIDING | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", _GROUPED | _SLIDING | {"query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", _DECODER | {"sliding_window": 4, "tie_word_embeddings": False}),
    "phi4": ("Phi3Config", _DECODER | {"num_key_value_heads": 1}),
    "t5": ("T5Config", _T5),
    "flan-t5": ("T5Config", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": (
        "BartConfig",
        _COMMON
        | {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 0,
        },
    ),
}
ENCODERS: tuple[str, ...] = ("bert", "roberta", "distilbert", "deberta", "deberta-v2", "deberta-v3", "modernbert")
ENCODER_DECODERS: tuple[str, ...] = ("t5", "flan-t5", "bart")
DECODERS = tuple(name for name in CONFIGS if name not in ENCODERS + ENCODER_DECODERS)
LM_HEADS = dict.fromkeys(DECODERS, "AutoModelForCausalLM") | dict.fromkeys(ENCODER_DECODERS, "AutoModelForSeq2SeqLM")
"""What loads a row with its language model's head; encoders have none that we use."""


_WIDTHS: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "dim",
    "hidden_dim",
    "ffn_dim",
    "word_embed_proj_dim",
    "n_embd",
    "head_dim",
)
_WIDTHS += ("d_model", "d_kv", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "query_pre_attn_scalar")


def make_config(name: str, *, widen: int = 1, **changes: Any) -> Any:
    """The configuration of a row, `widen` times as wide: bitsandbytes wants widths that are multiples of 64."""
    kind, values = CONFIGS[name]
    wide = {key: value * widen if key in _WIDTHS else value for key, value in values.items()}
    return getattr(transformers, kind)(**{**wide, **changes})


def make_model(config: Any, auto: str, seed: int = 0) -> Any:
    """A model with random weights, norms included, so that no layer is close to the identity."""
    torch.manual_seed(seed)
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model.eval()


def save_model(folder: Path, model: Any, *, adds_special_tokens: bool) -> Path:
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
    """Save a tiny model of a row in `CONFIGS`; decoders with their LM head, as hub checkpoints are."""
    auto = auto or LM_HEADS.get(name, "AutoModel")
    model = make_model(make_config(name, **changes), auto, seed)
    if name == "flan-t5" and auto == "AutoModelForSeq2SeqLM":  # transformers ties every T5 that it makes
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return save_model(folder, model, adds_special_tokens=name in ENCODERS)


def streaming(*, tokens: int = 64, hidden: int = 1 << 20, ahead: bool = True) -> MemoryPlan:
    """Return a plan that streams three layers from disk."""
    return MemoryPlan(
        budget=1 << 30,
        process=0,
        outer=0,
        layer=0,
        num_layers=3,
        whole=0,
        work=0,
        tokens=tokens,
        streamed=True,
        ahead=ahead,
        hidden=hidden,
    )


def weights_digest(model: nn.Module) -> str:
    """Hash every parameter and buffer of a model in memory; equal before and after whatever left it alone.

    Not of 4-bit weights on a processor with AVX512-BF16: bitsandbytes packs those anew at the first forward pass.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update((flat if flat.dtype == torch.bool else flat.view(torch.uint8)).numpy().tobytes())
    return digest.hexdigest()
