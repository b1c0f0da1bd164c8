"""The frozen language model on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mobillm_flower.config.parts.ranges import number

CHOOSERS = ("auto", "by-partition")
"""Values of `backbone.name` that name no model, but how the device chooses among `backbone.choices`."""

ONE_MODEL_TWO_TYPES = "a GGUF file and the same model's safetensors are different weights, and two types"
"""What messages say to those who gave devices one model in two forms."""


class Precision(StrEnum):
    """Number format of the backbone's weights on the device."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"
    nf4 = "nf4"
    fp4 = "fp4"


class EngineName(StrEnum):
    """What computes the forward pass on the device."""

    torch = "torch"
    onnx = "onnx"


def _is_choice(text: str) -> bool:
    name, at, layers = text.rpartition("@")
    return bool(text) and (not at or (bool(name) and layers.isdecimal() and int(layers) > 0))


@dataclass
class BackboneSettings:
    """The frozen language model on the device.

    Parameters
    ----------
    name : str
        Hub id, local folder, a GGUF file (its path, or hub id and file name, such as user/repository/file.gguf), or a
        registered name such as `minilm` and `smollm2`; or how the device chooses among `choices`: `auto`
        (the largest that its memory allows) or `by-partition` (by its partition-id, in turns).
    choices : list of str
        Backbones to choose among, in any order, each NAME or NAME@LAYERS.
    memory_mib : int
        With `auto`: memory that a backbone's process may take, in MiB; 0: what is available when the device chooses.
    memory_budget_mib : int
        Memory that the device's process may take, in MiB, Python and torch included; a backbone that does not fit is
        read from disk layer by layer. 0: no limit.
    revision : str
        Revision of a hub model; empty: the newest.
    layers : int
        Keep the first n layers; 0: all. A choice's own @LAYERS wins.
    precision : Precision
        Number format of the weights; with engine onnx fp32 or int8.
    engine : EngineName
        What computes the forward pass: torch (transformers' own code), or onnx (ONNX Runtime on the CPU, extra `onnx`).
    device : str
        auto, cpu, cuda, cuda:N or mps.
    gpu_share : float
        In a simulation: the share of a GPU that each device's process takes, e.g. 0.25 for four at a time; 0: devices
        see no GPU. It is Ray's `client-resources-num-gpus`.
    token_budget : int
        Most tokens in a forward batch, padding included. Where an accelerator runs out of memory it is halved once.
    """

    name: str = field(default="minilm", metadata={"the name of a model": bool})
    choices: list[str] = field(
        default_factory=list,
        metadata={"of the form NAME or NAME@LAYERS, layers from 1": lambda value: all(map(_is_choice, value))},
    )
    memory_mib: int = number(0, at_least=0)
    memory_budget_mib: int = number(0, at_least=0)
    revision: str = ""
    layers: int = number(0, at_least=0)
    precision: Precision = Precision.fp32
    engine: EngineName = EngineName.torch
    device: str = "auto"
    gpu_share: float = number(0.0, at_least=0)
    token_budget: int = number(4096, at_least=1)

    @property
    def models(self) -> list[str]:
        """The models that are named, without their numbers of layers."""
        if self.name not in CHOOSERS:
            return [self.name]
        return [choice.rpartition("@")[0] or choice for choice in self.choices]
