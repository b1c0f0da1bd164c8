"""How a backbone runs within a given memory: whole, or layer by layer from disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mobillm_flower.backbones.describe import layer_stack
from mobillm_flower.backbones.dry_run import dry_run
from mobillm_flower.backbones.memory import MemoryPlan, anonymous_bytes, mib
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.skeleton import skeleton
from mobillm_flower.errors import SettingsError, UnsupportedError

_MIB = 1 << 20
_SPARE = 96 * _MIB
"""For what no count of tensors sees: thread pools, the allocator's remains, code that is imported later."""
_BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "int8": 8.0, "nf4": 4.13, "fp4": 4.13}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def plan_memory(
    name: str,
    *,
    budget_mib: int,
    revision: str = "",
    layers: int = 0,
    precision: str = "fp32",
    token_budget: int = 4096,
    max_length: int = 512,
) -> MemoryPlan:
    """Choose how a backbone runs within a budget, from its configuration alone.

    The whole model if it fits with batches of `token_budget` tokens; otherwise layers are streamed, with as many
    tokens a batch as fit, at least one sample of `max_length`.

    Parameters
    ----------
    name, revision, layers, precision, token_budget
        As in `load_backbone`.
    budget_mib : int
        Memory of the whole process, in MiB.
    max_length : int
        Tokens of the longest sample.

    Raises
    ------
    SettingsError
        The budget cannot be met; the least that would do is named.
    UnsupportedError
        The backbone cannot be described, or is an encoder-decoder that does not fit whole.
    """
    options = LoadOptions(name, revision=revision, layers=layers, precision=precision, token_budget=token_budget)
    return plan_within(options, budget_mib=budget_mib, max_length=max_length)


def plan_within(options: LoadOptions, *, budget_mib: int, max_length: int) -> MemoryPlan:
    """Choose how a backbone runs within a budget; see `plan_memory`."""
    sizes = _Sizes(options, max_length)
    budget, process = budget_mib * _MIB, anonymous_bytes()

    def plan(tokens: int, *, streamed: bool, ahead: bool = False) -> MemoryPlan:
        weights = sizes.outer + (1 + ahead) * sizes.layer if streamed else sizes.every
        work = sizes.work(tokens)
        return MemoryPlan(
            budget=budget,
            process=process,
            outer=sizes.outer,
            layer=sizes.layer,
            num_layers=sizes.num_layers,
            whole=process + _SPARE + sizes.every + work,
            work=work,
            tokens=tokens,
            streamed=streamed,
            ahead=ahead,
            hidden=budget - process - _SPARE - weights - work,
        )

    whole = plan(options.token_budget, streamed=False)
    if whole.hidden >= 0:
        return whole
    if sizes.is_encoder_decoder:
        raise UnsupportedError(
            f"backbone.memory-budget-mib={budget_mib}: {options.name} needs {mib(whole.whole)} in memory, and the "
            "layers of an encoder-decoder cannot be streamed; raise the budget, or take a model with one stack of "
            "layers"
        )
    steps = [options.token_budget]
    while steps[-1] // 2 >= sizes.longest:
        steps.append(steps[-1] // 2)
    steps.append(min(steps[-1], sizes.longest))
    for ahead in (True, False):
        for tokens in steps:
            streamed = plan(tokens, streamed=True, ahead=ahead)
            if streamed.hidden >= 0:
                return streamed
    least = budget - streamed.hidden
    raise SettingsError(
        f"backbone.memory-budget-mib={budget_mib} cannot be met: with one layer of {options.name} in memory at a time "
        f"the least that would do is {-(-least // _MIB)} ({mib(process)} taken before the model, {mib(sizes.outer)} "
        f"beside the layers, {mib(sizes.layer)} for a layer, {mib(streamed.work)} for a sample of {sizes.longest} "
        f"tokens, {mib(_SPARE)} spare); raise it, or lower backbone.precision or task.max-length"
    )


class _Sizes:
    """Bytes that parts of a backbone take: its weights `outer`, of the largest `layer`, of `every` part; its `work`."""

    def __init__(self, options: LoadOptions, max_length: int) -> None:
        dtype = _DTYPES.get(options.precision, torch.float32)
        model, _ = skeleton(options.name, revision=options.revision, layers=options.layers)
        self._one, _ = skeleton(options.name, revision=options.revision, layers=1)
        for made in (model, self._one):
            made.to(dtype)
        config: Any = model.config
        _, stack = layer_stack(model, config)
        embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        in_layers = {id(parameter) for parameter in stack.parameters()}
        tables = {id(parameter) for parameter in embedding.parameters()}
        layers = [_held(list(part.parameters()), options.precision) for part in stack]
        others = [p for p in model.parameters() if id(p) not in in_layers]
        self.num_layers, self.layer = len(stack), max(layers)
        self.outer = sum(p.nbytes for p in others if id(p) not in tables)
        self.every = sum(layers) + sum(p.nbytes for p in others)
        self.longest = min(max_length, getattr(config, "max_position_embeddings", None) or max_length)
        self.is_encoder_decoder: bool = config.is_encoder_decoder
        largest = max(parameter.numel() for part in stack for parameter in part.parameters())
        # bitsandbytes makes a layer's weight anew for its product
        self._unpacked = largest * 4 if _BITS[options.precision] < 16 else 0

    def work(self, tokens: int) -> int:
        """Return what one batch of so many tokens takes in one layer."""
        batch = max(1, tokens // self.longest)
        return dry_run(self._one, batch=batch, tokens=min(self.longest, tokens)).peak_bytes + self._unpacked


def _held(parameters: list[nn.Parameter], precision: str) -> int:
    """Return the bytes of parameters as they are held: matrices packed, others in the dtype that is computed in."""
    packed = _BITS[precision] < 16
    return sum(int(p.numel() * _BITS[precision] / 8) if packed and p.dim() > 1 else p.nbytes for p in parameters)
