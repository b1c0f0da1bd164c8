"""A model's weights from its folder, and the head that predicts p_b, by transformers' own classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from mobillm_flower.backbones.describe import is_causal
from mobillm_flower.backbones.streaming.model_on_disk import OnDisk, load_from_disk
from mobillm_flower.errors import SettingsError, UnsupportedError

PACKED = ("int8", "nf4", "fp4")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prediction:
    """Where p_b comes from; see `BackboneInfo` and `Backbone`."""

    base_prediction: str = "constant"
    predictor: nn.Module | None = None
    label_head: tuple[Tensor, Tensor | None] | None = None
    language_model: nn.Module | None = None
    disk: OnDisk | None = None


class _LabelWords(nn.Linear):
    """The label words' rows of an LM head, in float32, in the head's place: the model's own scaling comes after it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], len(weight), bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight.float())
        if bias is not None:
            self.bias = nn.Parameter(bias.float())

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [..., K] float32."""
        return super().forward(hidden.float())


def load_model(
    folder: Path,
    config: Any,
    precision: str,
    device: torch.device,
    num_labels: int,
    label_words: Sequence[str],
    tokenizer: Any,
    language_model: bool,
    streamed: bool,
) -> tuple[nn.Module, Prediction]:
    """Return the bare model, and where p_b comes from."""
    if precision not in (*_DTYPES, *PACKED):
        raise SettingsError(f"backbone.precision={precision!r} must be fp32, bf16, fp16, int8, nf4 or fp4")
    dtype = _DTYPES.get(precision, torch.float32)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "trust_remote_code": False}
    if precision in PACKED and not streamed:
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for every product
        options |= {"device_map": {"": str(device)}, "quantization_config": packing(precision, device)}
    names = " ".join(getattr(config, "architectures", None) or [])
    classifies = "ForSequenceClassification" in names and not config.is_encoder_decoder
    if language_model and (config.is_encoder_decoder or not is_causal(config)):
        raise UnsupportedError(
            f"{folder.name} ({config.model_type}) predicts no next token: task.kind=language-modelling needs a causal "
            "model, such as OPT, GPT-2, Llama or Qwen"
        )
    try:
        if language_model:
            whole, disk = _complete(AutoModelForCausalLM, folder, options, streamed)
            loaded = Prediction("head", language_model=whole, disk=disk)
        elif label_words and is_causal(config):
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            whole, disk = _complete(kind, folder, options, streamed)
            ids = label_token_ids(tokenizer, label_words)
            rows = disk.output_rows(ids) if disk else _rows(whole.get_output_embeddings(), ids)
            whole.set_output_embeddings(_LabelWords(*rows))
            if hasattr(whole, "final_logits_bias"):  # of BART and its kin
                whole.final_logits_bias = whole.final_logits_bias[:, ids]
            loaded = Prediction("label-words", predictor=whole, disk=disk)
        elif classifies and num_labels and config.num_labels == num_labels:
            whole, disk = _complete(AutoModelForSequenceClassification, folder, options, streamed)
            if is_causal(config):  # its own pooling needs a padding token; ours reads the last token of each sample
                score = whole.score.to(device)
                bias = None if score.bias is None else score.bias.detach().float()
                loaded = Prediction("classifier", label_head=(score.weight.detach().float(), bias), disk=disk)
            else:
                loaded = Prediction("classifier", predictor=whole, disk=disk)
        else:
            whole, disk = _complete(AutoModel, folder, options, streamed)
            loaded = Prediction(disk=disk)
    except SettingsError:
        raise
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UnsupportedError(f"{folder.name} ({config.model_type}): transformers cannot load it: {error}") from error
    if "device_map" not in options and not streamed:
        whole = whole.to(device)
    _require_packable(whole, precision)
    return getattr(whole, "base_model", whole), loaded


def packing(precision: str, device: torch.device) -> BitsAndBytesConfig:
    """Return what bitsandbytes is told for int8, nf4 or fp4."""
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=precision,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
    )


def _require_packable(model: nn.Module, precision: str) -> None:
    """Refuse what bitsandbytes would fail at in the first forward pass: 4 bits on processors with AVX512-BF16."""
    for name, module in model.named_modules():
        packs = getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu"
        if packs and (module.in_features % 64 or module.out_features % 32):
            raise UnsupportedError(
                f"backbone.precision={precision}: on this processor bitsandbytes takes products of a multiple of 64 "
                f"inputs and of 32 outputs, {name} has {module.in_features} and {module.out_features}; use int8"
            )


def _rows(head: nn.Linear, ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return rows of an output embedding's weight and bias."""
    rows = torch.tensor(ids, device=head.weight.device)
    return head.weight.detach()[rows], None if head.bias is None else head.bias.detach()[rows]


def _complete(kind: Any, folder: Path, options: dict[str, Any], streamed: bool) -> tuple[Any, OnDisk | None]:
    """Load a model; weights that the files lack would be random, and are refused. The pooler over [CLS] is not used."""
    disk = None
    if streamed:
        disk, info = load_from_disk(kind, folder, options["config"], options["dtype"])
        model = disk.model
    else:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted(key for key in info["missing_keys"] if kind is not AutoModel or "pooler" not in key)
    if not missing:
        return model, disk
    lack = f"the weights lack {', '.join(missing[:3])}"
    if kind is AutoModel:
        raise UnsupportedError(f"{folder.name}: {lack}; give a checkpoint of {type(model).__name__}")
    named = ", ".join(options["config"].architectures or ["a head"])
    raise UnsupportedError(
        f"{folder.name}: its configuration names {named}, but {lack}; a random head predicts nothing: give the whole "
        "checkpoint, or remove `architectures` from its config.json to use the bare backbone"
    )


def label_token_ids(tokenizer: Any, label_words: Sequence[str]) -> list[int]:
    """Return the first token of each label word as it follows a space.

    Raises
    ------
    SettingsError
        Two words begin with the same token, so that the model cannot tell them apart.
    """
    ids = [tokenizer(" " + word.strip(), add_special_tokens=False)["input_ids"][0] for word in label_words]
    for i, token in enumerate(ids):
        if token in ids[:i]:
            raise SettingsError(
                f"task.label-words: {label_words[i]!r} and {label_words[ids.index(token)]!r} begin with the same "
                "token; choose words that differ in their first token"
            )
    return ids
