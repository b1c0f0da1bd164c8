"""A backbone without its weights: what it would be, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from mobillm_flower.backbones.describe import is_causal, layer_stack, truncate
from mobillm_flower.backbones.gguf_files import is_gguf
from mobillm_flower.backbones.model_folder import quiet, reading
from mobillm_flower.backbones.sources import BACKBONE_SOURCES, hub_folder, resolve_folder
from mobillm_flower.backbones.tokenizers import require_tokenizer
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import UnsupportedError


def skeleton(
    name: str, *, revision: str = "", layers: int = 0, language_model: bool = False
) -> tuple[nn.Module, BackboneInfo]:
    """Return a model without its weights' values (torch's meta device), bare or with its head, and what it is.

    Of a hub model only the configuration is fetched. The fingerprint is that of no weights: 64 zeros.

    Parameters
    ----------
    name, revision, layers, language_model
        As in `load_backbone`.

    Raises
    ------
    UnsupportedError
        Its configuration cannot be had, or is of no model that can be a backbone.
    SettingsError
        It has fewer layers.
    """
    config = _loaded(AutoConfig, name, revision)
    truncate(config, layers)
    config.use_cache = False
    with torch.device("meta"):
        kind = AutoModelForCausalLM if language_model else AutoModel
        model = kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    _, stack = layer_stack(getattr(model, "base_model", model), config)
    model.eval().requires_grad_(False)
    head = model.get_output_embeddings() if language_model else None
    info = BackboneInfo(
        name=name,
        family=config.model_type,
        causal=is_causal(config),
        depth=len(stack),
        width=int(config.hidden_size),
        precision="fp32",
        fingerprint="0" * 64,
        base_prediction="constant" if head is None else "head",
        revision=revision,
        vocabulary=0 if head is None else int(head.out_features),
        head_width=0 if head is None else int(head.in_features),
    )
    return model, info


def load_tokenizer(name: str, *, revision: str = "") -> Any:
    """Return a backbone's tokenizer alone; of a hub model no weights are fetched.

    Raises
    ------
    UnsupportedError
        It cannot be had.
    """
    return _loaded(AutoTokenizer, name, revision)


def load_config(name: str, *, revision: str = "") -> Any:
    """Return transformers' configuration of a backbone alone; raises UnsupportedError where it cannot be had."""
    return _loaded(AutoConfig, name, revision)


def _loaded(kind: Any, name: str, revision: str) -> Any:
    with quiet():
        if name in BACKBONE_SOURCES or Path(name).expanduser().is_dir() or is_gguf(name):
            folder = resolve_folder(name, revision)
            with reading(folder, "configuration" if kind is AutoConfig else "tokenizer"):
                made = kind.from_pretrained(folder, trust_remote_code=False)
            if kind is AutoTokenizer:
                require_tokenizer(folder, made)
            return made
        folder = hub_folder(name, revision)
        try:
            return kind.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UnsupportedError(
                f"backbone.name={name!r}: what the hub has of it is no configuration or tokenizer that transformers "
                f"reads ({type(error).__name__}); give another model"
            ) from error
