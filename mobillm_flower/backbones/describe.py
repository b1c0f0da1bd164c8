"""What a backbone is, read off the model rather than off a list of names."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from mobillm_flower.backbones.kept import cache_folder
from mobillm_flower.errors import SettingsError, UnsupportedError

GGUF_FOLDER = "gguf-"
"""How a folder of the cache begins that was made of a GGUF file; the file's SHA-256 follows."""


def is_causal(config: Any) -> bool:
    """Whether the layers of a transformers config are a decoder's, whatever head it was saved with.

    That is an encoder-decoder (its decoder is the backbone), a family which transformers knows as a causal but not as a
    masked language model, or any with `is_decoder`.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    family = config.model_type
    only_causal = family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(config.is_encoder_decoder or getattr(config, "is_decoder", False)) or only_causal


def depth_field(config: Any) -> str:
    """Return the name under which a config holds L; of an encoder-decoder its decoder's.

    Raises
    ------
    UnsupportedError
        It holds none.
    """
    names = ("num_decoder_layers", "decoder_layers") if config.is_encoder_decoder else ("num_hidden_layers",)
    for name in names:
        if getattr(config, name, None):
            return name
    raise UnsupportedError(
        f"{config.model_type}: looked for {' or '.join(names)} in its configuration and found none; a backbone is one "
        "stack of layers that reads text (of a model of text and images, its text model alone)"
    )


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


def layer_stack(model: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """Find the stack of layers: the `nn.ModuleList` with as many entries as the config has layers.

    Raises
    ------
    UnsupportedError
        There is none.
    """
    field, side = depth_field(config), "decoder." if config.is_encoder_decoder else ""
    depth = getattr(config, field)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name, module in lists:
        if len(module) == depth and name.startswith(side):
            return name, module
    seen = ", ".join(f"{name} ({len(module)})" for name, module in lists) or "none"
    raise UnsupportedError(
        f"{type(model).__name__}: looked for a torch.nn.ModuleList of {depth} layers (config.{field}) and found "
        f"{seen}; register a loader in BACKBONE_SOURCES that returns such a model"
    )


def decoder_start(config: Any) -> int | None:
    """Return the token that an encoder-decoder's decoder begins with; None for other models.

    Raises
    ------
    UnsupportedError
        Its configuration names none.
    """
    if not config.is_encoder_decoder:
        return None
    start = getattr(config, "decoder_start_token_id", None)
    if not isinstance(start, int):
        raise UnsupportedError(
            f"{config.model_type}: decoder_start_token_id={start!r} in its config.json; write the token that its "
            "decoder begins with (T5: that of the padding)"
        )
    return start


def fingerprint(folder: Path, family: str, depth: int) -> str:
    """Hash the weight files of a model folder together with its family and the layers kept.

    What was made of a GGUF file in the user's cache stands for that file: the same on devices whose versions of
    transformers write other files.

    Raises
    ------
    UnsupportedError
        The folder holds no weight files.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UnsupportedError(f"{folder} holds neither *.safetensors nor pytorch_model*.bin")
    digest = hashlib.sha256(f"{family}:{depth}".encode())
    if folder.parent == cache_folder() and folder.name.startswith(GGUF_FOLDER):  # `gguf_folder` made it
        digest.update(bytes.fromhex(folder.name.removeprefix(GGUF_FOLDER)))
        return digest.hexdigest()
    for file in files:
        digest.update(file_digest(file))
    return digest.hexdigest()


def file_digest(file: Path) -> bytes:
    """Return a file's SHA-256, computed once per process while its size and time are the same."""
    stat = file.stat()
    return _file_hash(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(file: Path, _size: int, _changed_ns: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
