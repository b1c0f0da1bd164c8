"""Load a model whose layers and token table stay on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]
from torch import Tensor, nn

from mobillm_flower.backbones.describe import layer_stack
from mobillm_flower.backbones.streaming.layer_weights import EmbeddingRows
from mobillm_flower.backbones.streaming.stored_weights import StoredWeights, stored_dtype
from mobillm_flower.errors import UnsupportedError


@dataclass(frozen=True)
class OnDisk:
    """A model in memory without the weights of its layers, its token table and its output embedding.

    Parameters
    ----------
    model : nn.Module
        transformers' model; those weights are on torch's meta device.
    stack_name : str
        Where the layers are in it.
    weights : StoredWeights
        Those weights, on disk, under their names in the model.
    dtype : torch.dtype
        That the model runs in.
    """

    model: Any
    stack_name: str
    weights: StoredWeights
    dtype: torch.dtype

    def output_rows(self, ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return rows [K, d] of the output embedding's weight, and of its bias [K] if it has one."""
        name = _name_of(self.model, self.model.get_output_embeddings())
        order = torch.tensor(sorted(ids))
        back = torch.argsort(torch.argsort(torch.tensor(list(ids))))
        weight = self.weights.rows(f"{name}.weight", order)[back]
        bias = f"{name}.bias"
        return weight, self.weights.rows(bias, order)[back] if bias in self.weights else None


def load_from_disk(kind: Any, folder: Path, config: Any, dtype: torch.dtype) -> tuple[OnDisk, dict[str, Any]]:
    """Load all of a model but its layers, its token table and its output embedding, which is not to be called.

    transformers itself says where each weight is, as it does for weights that it offloads to disk.

    Parameters
    ----------
    kind
        transformers' class.
    folder, config
        The model's folder and configuration.
    dtype : torch.dtype
        That the model is to run in.

    Returns
    -------
    tuple
        The model, and transformers' loading information.

    Raises
    ------
    UnsupportedError
        The model is an encoder-decoder, or its weights are in no safetensors files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if config.is_encoder_decoder:
        raise UnsupportedError(
            f"{folder.name}: the layers of an encoder-decoder cannot be streamed; set backbone.memory-budget-mib=0"
        )
    if not files:
        raise UnsupportedError(
            f"{folder.name} holds no *.safetensors, and other files cannot be streamed; save the model anew with "
            "transformers, or set backbone.memory-budget-mib=0"
        )
    with torch.device("meta"):
        empty = kind.from_config(config, trust_remote_code=False)
    base = getattr(empty, "base_model", empty)
    _, stack = layer_stack(base, config)
    on_disk = [stack, empty.get_input_embeddings(), empty.get_output_embeddings()]
    names = [_name_of(empty, module) for module in on_disk if module is not None]
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # that weights are not in memory
    model, info = kind.from_pretrained(
        folder,
        config=config,
        dtype=stored_dtype(files),  # nothing of the file is copied while it loads
        device_map=dict(_placed(empty, "", names)),
        output_loading_info=True,
        trust_remote_code=False,
    )
    weights = StoredWeights(_index(model))
    remove_hook_from_submodules(model)
    _own(model, dtype)
    embedding = model.get_input_embeddings()
    EmbeddingRows(embedding, weights, f"{_name_of(model, embedding)}.weight", dtype)
    _, stack = layer_stack(getattr(model, "base_model", model), config)
    return OnDisk(model, _name_of(model, stack), weights, dtype), info


def _placed(module: nn.Module, name: str, on_disk: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield transformers' device map: modules and weights by name, with "disk" or "cpu"."""
    inside = f"{name}." if name else ""
    if name in on_disk:
        yield name, "disk"
    elif any(other.startswith(inside) for other in on_disk):
        yield from ((inside + key, "cpu") for key, _ in module.named_parameters(recurse=False))
        for key, child in module.named_children():
            yield from _placed(child, inside + key, on_disk)
    else:
        yield name, "cpu"


def _index(model: nn.Module) -> dict[str, tuple[Path, str]]:
    """Return file and name of each weight that accelerate's hooks would load."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            held: Any = getattr(one, "weights_map", None)
            while hasattr(held, "dataset"):
                held = held.dataset
            if held is not None:
                index: Mapping[str, Any] = held.index
                return {name: (Path(at["safetensors_file"]), at["weight_name"]) for name, at in index.items()}
    raise UnsupportedError(f"{type(model).__name__}: accelerate offloads none of its weights, so none can be streamed")


def _own(model: nn.Module, dtype: torch.dtype) -> None:
    """Copy what is mapped from the files into memory, in the dtype that the model runs in."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype, copy=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.clone())


def _name_of(model: nn.Module, module: Any) -> str:
    """Return where a module is in a model."""
    names: Iterator[str] = (name for name, one in model.named_modules(remove_duplicate=False) if one is module)
    return next(names)
