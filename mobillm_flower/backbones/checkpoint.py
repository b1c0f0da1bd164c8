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
from mobillm_flower.backbones.label_words import FirstTokens, LabelWords, LastToken, first_tokens, label_tokens
from mobillm_flower.backbones.model_folder import reading
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.streaming.model_on_disk import OnDisk, load_from_disk
from mobillm_flower.errors import SettingsError, UnsupportedError

PACKED = ("int8", "nf4", "fp4")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, and what predicts p_b.

    Parameters
    ----------
    model : nn.Module
        The bare model.
    base_prediction : str
        As in `BackboneInfo`.
    predictor, label_head, language_model, class_order, label_words
        As in `Backbone`.
    disk : OnDisk or None
        The weights that stayed on disk.
    """

    model: nn.Module
    base_prediction: str = "constant"
    predictor: nn.Module | None = None
    label_head: tuple[Tensor, Tensor | None] | None = None
    language_model: nn.Module | None = None
    disk: OnDisk | None = None
    class_order: tuple[int, ...] = ()
    label_words: LabelWords | None = None


def load_checkpoint(
    folder: Path, config: Any, tokenizer: Any, options: LoadOptions, device: torch.device
) -> Checkpoint:
    """Load a model with the head that predicts p_b, or bare.

    Parameters
    ----------
    folder, config, tokenizer
        The model's folder; transformers' configuration and tokenizer of it.
    options : LoadOptions
        Precision, and what the backbone is to predict by itself.
    device : torch.device
        Where it goes.

    Raises
    ------
    SettingsError
        The precision is unknown, or label words begin with the same token.
    UnsupportedError
        transformers cannot load it, or weights are missing.
    """
    if options.precision not in (*_DTYPES, *PACKED):
        raise SettingsError(f"backbone.precision={options.precision!r} must be fp32, bf16, fp16, int8, nf4 or fp4")
    if options.language_model and (config.is_encoder_decoder or not is_causal(config)):
        raise UnsupportedError(
            f"{folder.name} ({config.model_type}) predicts no next token: task.kind=language-modelling needs a causal "
            "model, such as OPT, GPT-2, Llama or Qwen"
        )
    if options.whole_words and options.label_words and (config.is_encoder_decoder or options.streamed):
        what = "an encoder-decoder" if config.is_encoder_decoder else "layers that are streamed"
        raise UnsupportedError(f"{folder.name}: task.whole-label-words=true does not work with {what}; set it to false")
    with reading(folder, f"weights as {config.model_type}"):
        whole, checkpoint = _predicting(folder, config, tokenizer, options, device)
    if options.precision not in PACKED and not options.streamed:
        whole.to(device)
    _require_packable(whole, options.precision)
    return checkpoint


def _predicting(
    folder: Path, config: Any, tokenizer: Any, options: LoadOptions, device: torch.device
) -> tuple[Any, Checkpoint]:
    """Return the model with its head, and the same as a checkpoint."""
    arguments = _arguments(config, options, device)
    names = " ".join(getattr(config, "architectures", None) or [])
    classifies = "ForSequenceClassification" in names and not config.is_encoder_decoder
    if options.language_model:
        whole, disk = _complete(AutoModelForCausalLM, folder, arguments, options.streamed)
        return whole, Checkpoint(_bare(whole), "head", language_model=whole, disk=disk)
    if options.label_words and is_causal(config):
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        whole, disk = _complete(kind, folder, arguments, options.streamed)
        tokens = label_tokens(tokenizer, options.label_words, spaced=options.spaced(tokenizer))
        if options.whole_words:
            whole.set_output_embeddings(LastToken(whole, [word[0] for word in tokens]))
            words = LabelWords(tuple(map(tuple, tokens)))
            return whole, Checkpoint(_bare(whole), "label-words", predictor=whole, label_words=words)
        ids = first_tokens(options.label_words, tokens)
        rows = disk.output_rows(ids) if disk else _rows(whole.get_output_embeddings(), ids)
        whole.set_output_embeddings(FirstTokens(*rows))
        if hasattr(whole, "final_logits_bias"):  # of BART and its kin
            whole.final_logits_bias = whole.final_logits_bias[:, ids]
        return whole, Checkpoint(_bare(whole), "label-words", predictor=whole, disk=disk)
    if classifies and options.num_labels and config.num_labels == options.num_labels:
        order = class_order(config, options.labels)
        whole, disk = _complete(AutoModelForSequenceClassification, folder, arguments, options.streamed)
        if not is_causal(config):
            return whole, Checkpoint(_bare(whole), "classifier", predictor=whole, disk=disk, class_order=order)
        score = whole.score.to(device)  # its own pooling needs a padding token; ours reads each sample's last token
        bias = None if score.bias is None else score.bias.detach().float()
        head = (score.weight.detach().float(), bias)
        return whole, Checkpoint(_bare(whole), "classifier", label_head=head, disk=disk, class_order=order)
    whole, disk = _complete(AutoModel, folder, arguments, options.streamed)
    return whole, Checkpoint(_bare(whole), disk=disk)


def class_order(config: Any, labels: Sequence[str]) -> tuple[int, ...]:
    """Return which class of a trained head each of the task's labels is, by the head's own names.

    Names are compared without regard to case. A head whose names are transformers' own (LABEL_0, …), and labels that
    are the numbers from 0 on, say no other order: the head's is taken, and () returned, as where the orders agree.

    Raises
    ------
    SettingsError
        The head names other classes than the task.
    """
    own = {int(place): str(name).casefold() for place, name in (getattr(config, "id2label", None) or {}).items()}
    wanted, named = [label.casefold() for label in labels], [own.get(place, "") for place in range(len(labels))]
    unnamed = named == [f"label_{place}" for place in range(len(labels))]
    if not labels or unnamed or wanted == named or wanted == [str(place) for place in range(len(labels))]:
        return ()
    if sorted(wanted) != sorted(named) or len(set(named)) < len(named):
        classes = ", ".join(map(repr, config.id2label.values()))
        raise SettingsError(
            f"the checkpoint's head predicts the classes {classes} (id2label in config.json), which are others than "
            "those of the task; give these in task.labels, or remove `architectures` from its config.json to use the "
            "backbone without its head"
        )
    return tuple(named.index(label) for label in wanted)


def _arguments(config: Any, options: LoadOptions, device: torch.device) -> dict[str, Any]:
    """Return what transformers' `from_pretrained` is given."""
    dtype = _DTYPES.get(options.precision, torch.float32)
    arguments: dict[str, Any] = {"config": config, "dtype": dtype, "trust_remote_code": False}
    if options.precision in PACKED and not options.streamed:
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for every product
        arguments["device_map"] = {"": str(device)}
        arguments["quantization_config"] = packing(options.precision, device)
    return arguments


def _bare(whole: Any) -> nn.Module:
    bare: nn.Module = getattr(whole, "base_model", whole)
    return bare


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


def _complete(kind: Any, folder: Path, arguments: dict[str, Any], streamed: bool) -> tuple[Any, OnDisk | None]:
    """Load a model; weights that the files lack would be random, and are refused. The pooler over [CLS] is not used."""
    disk = None
    if streamed:
        disk, info = load_from_disk(kind, folder, arguments["config"], arguments["dtype"])
        model = disk.model
    else:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **arguments)
    missing = sorted(key for key in info["missing_keys"] if kind is not AutoModel or "pooler" not in key)
    if not missing:
        return model, disk
    lack = f"the weights lack {', '.join(missing[:3])}"
    if kind is AutoModel:
        raise UnsupportedError(f"{folder.name}: {lack}; give a checkpoint of {type(model).__name__}")
    named = ", ".join(arguments["config"].architectures or ["a head"])
    raise UnsupportedError(
        f"{folder.name}: its configuration names {named}, but {lack}; a random head predicts nothing: give the whole "
        "checkpoint, or remove `architectures` from its config.json to use the bare backbone"
    )
