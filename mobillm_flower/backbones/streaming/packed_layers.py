"""Layers in 8 or 4 bits on disk: packed once by bitsandbytes, kept for later processes, then streamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, int8_vectorwise_quant, quantize_4bit, quantize_blockwise
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from mobillm_flower.backbones.kept import cache_folder
from mobillm_flower.backbones.streaming.layer_weights import StoredLayers
from mobillm_flower.backbones.streaming.model_on_disk import OnDisk
from mobillm_flower.backbones.streaming.stored_weights import StoredWeights

_PIECE = 1 << 20  # values that are packed at a time: bitsandbytes takes some twenty bytes for each
_BLOCK, _NESTED_BLOCK = 64, 256  # values that share a scale; scales that share one


class PackedLayers(StoredLayers):
    """Layers whose matrices are packed.

    Parameters
    ----------
    files : list of Path
        Of each layer its file, from `pack_layers`.
    """

    def __init__(self, files: list[Path]) -> None:
        places = {}
        for number, file in enumerate(files):
            for name in StoredWeights.names_in(file):
                places[f"layers.{number}.{name}"] = (file, name)
        super().__init__(StoredWeights(places), "layers", len(files), torch.float32)

    def layer(self, number: int, room: Tensor) -> dict[str, Tensor]:
        """See `StoredLayers`."""
        held = super().layer(number, room)
        parameters: dict[str, Tensor] = {}
        for name, tensor in held.items():
            if ".weight." not in name:
                parts = {key.removeprefix(f"{name}."): held[key] for key in held if key.startswith(f"{name}.")}
                parameters[name] = _parameter({"": tensor, **parts}) if parts else tensor
        return parameters


def pack(disk: OnDisk, num_layers: int, config: BitsAndBytesConfig, folder: Path) -> PackedLayers:
    """Let a model compute with packed matrices, as transformers would on loading; returns its layers.

    Layers are packed one matrix at a time and written to `folder`, where they are not there yet. Matrices outside the
    layers are packed in memory.

    Parameters
    ----------
    disk : OnDisk
        The model; its linear modules are replaced.
    num_layers : int
        L.
    config : BitsAndBytesConfig
        What bitsandbytes is told.
    folder : Path
        For these weights in this precision alone.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for every product
    model, inside = disk.model, f"{disk.stack_name}."
    before = dict(model.named_modules())
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), config)
    packed = {
        name: isinstance(before[name], Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    }
    for name, transposed in packed.items():
        module = model.get_submodule(name)
        module.eval()
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # it would pack each layer anew at each pass
        if not name.startswith(inside):
            weight = before[name].weight.data
            held = _packed(weight.T if transposed else weight, config)
            module.weight = _parameter(held)
            module.bias = before[name].bias
    files = []
    for number in range(num_layers):
        file = folder / f"layer-{number:03}.safetensors"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(f".{os.getpid()}")
            save_file(dict(_layer(disk, f"{inside}{number}.", packed, config)), draft)
            draft.replace(file)
        files.append(file)
    return PackedLayers(files)


def packed_folder(fingerprint: str, precision: str) -> Path:
    """Return where packed layers of a backbone are kept: in the user's cache."""
    return cache_folder() / f"{fingerprint[:32]}-{precision}"


def _layer(
    disk: OnDisk, prefix: str, packed: dict[str, bool], config: BitsAndBytesConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yield a layer's tensors by their names in it, its matrices packed."""
    for name in disk.weights.names(prefix):
        tensor = torch.empty(disk.weights.shape(name), dtype=torch.float32)
        disk.weights.read(name, tensor)
        short, module = name.removeprefix(prefix), name.removesuffix(".weight")
        if module == name or module not in packed:
            yield short, tensor
            continue
        for key, value in _packed(tensor.T if packed[module] else tensor, config).items():
            yield (f"{short}.{key}" if key else short), value.contiguous()


def _packed(weight: Tensor, config: BitsAndBytesConfig) -> dict[str, Tensor]:
    """Pack a matrix [out, in] as bitsandbytes does, a piece at a time; returns codes under "" and their statistics."""
    if config.load_in_8bit:
        rows = max(1, _PIECE // weight.shape[1])
        parts = [int8_vectorwise_quant(part.half())[:2] for part in torch.split(weight, rows)]
        return {"": torch.cat([codes for codes, _ in parts]), "SCB": torch.cat([scales for _, scales in parts])}
    kind = config.bnb_4bit_quant_type
    pieces = torch.split(weight.contiguous().view(-1), _PIECE)
    parts = [quantize_4bit(part, blocksize=_BLOCK, quant_type=kind) for part in pieces]
    scales = torch.cat([state.absmax for _, state in parts])
    offset = scales.mean()
    codes, nested = quantize_blockwise(scales - offset, blocksize=_NESTED_BLOCK)
    state = QuantState(
        absmax=codes,
        shape=weight.shape,
        dtype=weight.dtype,
        blocksize=_BLOCK,
        code=parts[0][1].code,
        quant_type=kind,
        offset=offset,
        state2=nested,
    )
    return {"": torch.cat([part for part, _ in parts]), **state.as_dict(packed=True)}


def _parameter(held: dict[str, Tensor]) -> nn.Parameter:
    """Return a packed matrix as bitsandbytes' parameter."""
    codes, statistics = held[""], {key: value for key, value in held.items() if key}
    made: Any
    if "SCB" in statistics:
        made = bnb.nn.Int8Params(codes, requires_grad=False, CB=codes, SCB=statistics["SCB"])
    else:
        made = bnb.nn.Params4bit.from_prequantized(codes, statistics, device="cpu")
    assert isinstance(made, nn.Parameter)
    return made
