"""What the conformance suite knows of each row of `CONFIGS`, and the row that it has in the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.errors import UnsupportedError
from tests.support.tiny_models import CONFIGS, LM_HEADS, TEXTS, save_tiny

FAMILIES: dict[str, tuple[str, str]] = {
    "bert": ("BERT", "google-bert/bert-base-uncased"),
    "roberta": ("RoBERTa", "FacebookAI/roberta-base"),
    "distilbert": ("DistilBERT", "distilbert/distilbert-base-uncased"),
    "deberta": ("DeBERTa", "microsoft/deberta-base"),
    "deberta-v2": ("DeBERTa-v2", "microsoft/deberta-v2-xlarge"),
    "deberta-v3": ("DeBERTa-v3", "microsoft/deberta-v3-small"),
    "modernbert": ("ModernBERT", "answerdotai/ModernBERT-base"),
    "opt": ("OPT", "facebook/opt-125m"),
    "opt-projected": ("OPT-350M", "facebook/opt-350m"),
    "gpt2": ("GPT-2", "openai-community/gpt2"),
    "gpt-neox": ("GPT-NeoX", "EleutherAI/pythia-160m"),
    "llama": ("Llama", "meta-llama/Llama-3.1-8B"),
    "smollm": ("SmolLM", "HuggingFaceTB/SmolLM2-135M"),
    "mistral": ("Mistral", "mistralai/Mistral-7B-v0.1"),
    "qwen2": ("Qwen2", "Qwen/Qwen2-7B"),
    "qwen2-sliding": ("Qwen2, window on", "of your own"),
    "qwen3": ("Qwen3", "Qwen/Qwen3-0.6B"),
    "gemma2": ("Gemma 2", "google/gemma-2-2b"),
    "gemma3": ("Gemma 3", "google/gemma-3-270m"),
    "phi3": ("Phi-3", "microsoft/Phi-3-mini-4k-instruct"),
    "phi4": ("Phi-4-mini", "microsoft/Phi-4-mini-instruct"),
    "t5": ("T5", "google-t5/t5-small"),
    "flan-t5": ("T5 1.1, FLAN-T5", "google/flan-t5-small"),
    "bart": ("BART", "facebook/bart-base"),
}
"""What each row is called, and a checkpoint of that shape."""

HEAD = [
    "family",
    "for example",
    "model type",
    "layers",
    "pivot",
    "attention",
    "LM head",
    "after layer L",
    "8 bit",
    "4 bit",
]


def quantized(parent: Path, name: str, precision: str) -> Backbone | None:
    """The row's model in 8 or 4 bits, wide enough for bitsandbytes' blocks; None where it does not load."""
    folder = parent / f"{name}-wide"
    if not folder.exists():
        save_tiny(folder, name, widen=8)
    try:
        return load_backbone(str(folder), device="cpu", precision=precision)
    except UnsupportedError:
        return None


def cells(name: str, folder: Path, backbone: Backbone, *precisions: Backbone | None) -> list[str]:
    """The row of the table, as it is found in the loaded models."""
    info = backbone.info
    return [
        *(FAMILIES[name][0], f"`{FAMILIES[name][1]}`" if "/" in FAMILIES[name][1] else FAMILIES[name][1]),
        *(f"`{info.family}`", f"`{backbone.stack_name}`", f"`{info.default_pivot}`"),
        *(_attention(backbone.model.config), _head(name, folder), _after(backbone)),
        *("yes" if one else "no" for one in precisions),
    ]


def _attention(config: Any) -> str:
    grouped = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) < config.num_attention_heads
    types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in types if types else bool(getattr(config, "sliding_window", None))
    words = ["grouped"] * grouped + ["window"] * slides
    return ", ".join(words) or "plain"


def _head(name: str, folder: Path) -> str:
    if name not in LM_HEADS:
        return "–"
    whole = getattr(transformers, LM_HEADS[name]).from_pretrained(folder)
    return "tied" if whole.get_output_embeddings().weight is whole.get_input_embeddings().weight else "its own"


def _after(backbone: Backbone) -> str:
    """What the model does to the last layer's states before its head."""
    found: list[torch.Tensor] = []
    hook = backbone.stack[-1].register_forward_hook(
        lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        (inputs,) = backbone.padded_batches(backbone.tokenize(TEXTS[:1], None, 32))
        final = backbone.model(**inputs).last_hidden_state
    hook.remove()
    if final.shape != found[0].shape:
        return f"projection {found[0].shape[-1]} → {final.shape[-1]}"
    return "–" if torch.equal(final, found[0]) else "norm"


def all_cells(parent: Path) -> list[list[str]]:
    """Every row of the table."""
    rows = []
    for name in CONFIGS:
        folder = save_tiny(parent / name, name)
        backbone = load_backbone(str(folder), device="cpu")
        rows.append(cells(name, folder, backbone, *(quantized(parent, name, form) for form in ("int8", "nf4"))))
    return rows
