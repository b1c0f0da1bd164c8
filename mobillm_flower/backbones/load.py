"""Load a backbone by hub id, local folder, or a registered name; truncate it; put it on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from mobillm_flower.backbones.accelerators import choose_device
from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.checkpoint import PACKED, Checkpoint, load_checkpoint, packing
from mobillm_flower.backbones.describe import decoder_start, fingerprint, is_causal, layer_stack, truncate
from mobillm_flower.backbones.engine import Engine, TorchEngine
from mobillm_flower.backbones.head import LanguageHead
from mobillm_flower.backbones.memory import MemoryPlan
from mobillm_flower.backbones.model_folder import quiet, reading
from mobillm_flower.backbones.onnx_engine import onnx_backbone
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.sources import resolve_folder
from mobillm_flower.backbones.streaming.engine import StreamedEngine
from mobillm_flower.backbones.streaming.layer_weights import StoredLayers
from mobillm_flower.backbones.tokenizers import require_tokenizer
from mobillm_flower.config.compatibility import check_engine
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import UnsupportedError


def load_backbone(
    name: str,
    *,
    revision: str = "",
    layers: int = 0,
    precision: str = "fp32",
    device: str = "auto",
    token_budget: int = 4096,
    num_labels: int = 0,
    labels: Sequence[str] = (),
    label_words: Sequence[str] = (),
    language_model: bool = False,
    whole_words: bool = False,
    word_after: str = "text",
    plan: MemoryPlan | None = None,
    engine: str = "torch",
) -> Backbone:
    """Load a frozen backbone, ready to run forward.

    Parameters
    ----------
    name, revision : str
        Hub id, local folder, or registered name.
    layers : int
        Keep the first n layers (0: all). Later ones are never loaded.
    precision : {"fp32", "bf16", "fp16", "int8", "nf4", "fp4"}
        The last three through bitsandbytes, on the CPU too.
    device : str
        "auto", or a torch device.
    token_budget : int
        Tokens of a forward batch, padding included.
    num_labels : int
        K of the task; a checkpoint with a trained classification head of K classes then predicts p_b.
    labels : sequence of str
        Their names, in order; a trained head's own names are matched with them.
    label_words : sequence of str
        One word a label; a causal model then predicts p_b from the first token of each word.
    language_model : bool
        Keep the language-model head, to predict tokens.
    whole_words : bool
        Predict p_b from all tokens of each label word: one more forward pass for each beginning of a word.
    word_after : {"text", "space", "chat"}
        What a label word follows: after a text it begins with a space; after white space it does not, nor as an answer
        in the model's chat template.
    plan : MemoryPlan, optional
        From `plan_memory`: how it runs within a memory budget. Its tokens replace `token_budget`.
    engine : {"torch", "onnx"}
        What computes the forward pass; see `onnx_backbone`.

    Raises
    ------
    SettingsError, UnsupportedError
        The device is not there, or the architecture cannot be handled, with what was looked for.
    """
    return load_with(
        LoadOptions(
            name=name,
            revision=revision,
            layers=layers,
            precision=precision,
            device=device,
            token_budget=token_budget,
            num_labels=num_labels,
            labels=tuple(labels),
            label_words=tuple(label_words),
            language_model=language_model,
            whole_words=whole_words,
            word_after=word_after,
            plan=plan,
            engine=engine,
        )
    )


def load_with(options: LoadOptions) -> Backbone:
    """Load a frozen backbone; see `load_backbone`."""
    if options.engine == "onnx":
        check_engine(
            options.engine,
            precision=options.precision,
            device=options.device,
            memory_budget=options.plan is not None,
            whole_words=options.whole_words,
        )
        return onnx_backbone(options, load_with)
    folder = resolve_folder(options.name, options.revision)
    device = choose_device(options.device)
    if options.streamed and (options.language_model or device.type != "cpu"):
        what = "a language-model head" if options.language_model else f"backbone.device={device.type}"
        raise UnsupportedError(
            f"{options.name}: layers cannot be streamed with {what}; set backbone.memory-budget-mib=0"
        )
    with quiet():
        config, tokenizer = _described(folder, options)
        checkpoint = load_checkpoint(folder, config, tokenizer, options, device)
    return _assembled(checkpoint, folder, config, tokenizer, options, device)


def _described(folder: Path, options: LoadOptions) -> tuple[Any, Any]:
    """Return transformers' configuration, cut to the layers that are kept, and tokenizer."""
    with reading(folder, "configuration"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        truncate(config, options.layers)
    with reading(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    require_tokenizer(folder, tokenizer)
    config.use_cache = False
    return config, tokenizer


def _assembled(
    checkpoint: Checkpoint, folder: Path, config: Any, tokenizer: Any, options: LoadOptions, device: torch.device
) -> Backbone:
    """Freeze a loaded model, and put together what runs it."""
    model, plan = checkpoint.model, options.plan
    for owner in (model, getattr(model, "decoder", None)):  # unused by us: a pooler over [CLS]
        if checkpoint.predictor is None and owner is not None and getattr(owner, "pooler", None) is not None:
            owner.pooler = None
    stack_name, stack = layer_stack(model, config)
    whole = checkpoint.predictor or checkpoint.language_model or model
    whole.eval()
    whole.requires_grad_(False)
    head = LanguageHead(whole, stack[-1]) if options.language_model else None
    info = BackboneInfo(
        name=options.name,
        family=config.model_type,
        causal=is_causal(config),
        depth=len(stack),
        width=int(config.hidden_size),
        precision=options.precision,
        fingerprint=fingerprint(folder, config.model_type, len(stack)),
        base_prediction=checkpoint.base_prediction,
        revision=options.revision,
        vocabulary=head.vocabulary if head else 0,
        head_width=head.width if head else 0,
    )
    return Backbone(
        model=model,
        stack=list(stack),
        stack_name=stack_name,
        tokenizer=tokenizer,
        info=info,
        predictor=checkpoint.predictor,
        label_head=checkpoint.label_head,
        class_order=checkpoint.class_order,
        label_words=checkpoint.label_words,
        decoder_start=decoder_start(config),
        token_budget=options.token_budget if plan is None else plan.tokens,
        device=device,
        language_model=checkpoint.language_model,
        head=head,
        engine=_engine(checkpoint, list(stack), info, options, device),
        plan=plan,
    )


def _engine(
    checkpoint: Checkpoint, stack: list[nn.Module], info: BackboneInfo, options: LoadOptions, device: torch.device
) -> Engine:
    """Return what runs a model: another engine where its layers stayed on disk."""
    model, predictor, label_head = checkpoint.model, checkpoint.predictor, checkpoint.label_head
    disk, plan = checkpoint.disk, options.plan
    if plan is None or disk is None:
        shares = info.causal and plan is None  # a memory budget does not count what is kept of a prefix
        return TorchEngine(model, stack, predictor, label_head, causal=shares)
    if options.precision in PACKED:
        from mobillm_flower.backbones.streaming.packed_layers import pack, packed_folder

        kept = packed_folder(info.fingerprint, options.precision)
        weights: StoredLayers = pack(disk, len(stack), packing(options.precision, device), kept)
    else:
        weights = StoredLayers(disk.weights, disk.stack_name, len(stack), disk.dtype)
    return StreamedEngine(model, stack, predictor, label_head, weights, ahead=plan.ahead, memory_bytes=plan.hidden)


def load_head(name: str, *, revision: str = "", device: str = "cpu") -> LanguageHead:
    """Load what follows a causal language model's last layer, in float32; of its layers only the first is loaded.

    Parameters
    ----------
    name, revision, device : str
        As in `load_backbone`.

    Raises
    ------
    SettingsError, UnsupportedError
        As in `load_backbone`.
    """
    backbone = load_backbone(name, revision=revision, layers=1, device=device, language_model=True)
    assert backbone.head is not None
    return backbone.head
