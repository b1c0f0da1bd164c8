"""How a backbone runs within a given memory: whole, or layer by layer from disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mobillm_flower.backbones.describe import layer_stack
from mobillm_flower.backbones.dry_run import dry_run
from mobillm_flower.backbones.memory import MemoryPlan, anonymous_bytes, mib
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
    dtype = _DTYPES.get(precision, torch.float32)
    model, _ = skeleton(name, revision=revision, layers=layers)
    one, _ = skeleton(name, revision=revision, layers=1)
    for made in (model, one):
        made.to(dtype)
    config: Any = model.config
    _, stack = layer_stack(model, config)
    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    in_layers = {id(parameter) for parameter in stack.parameters()}
    tables = {id(parameter) for parameter in embedding.parameters()}
    layer = max(_held(list(part.parameters()), precision) for part in stack)
    others = [p for p in model.parameters() if id(p) not in in_layers]
    outer = sum(p.nbytes for p in others if id(p) not in tables)
    every = sum(_held(list(part.parameters()), precision) for part in stack)
    every += outer + sum(p.nbytes for p in others if id(p) in tables)
    largest = max(parameter.numel() for part in stack for parameter in part.parameters())
    unpacked = largest * 4 if _BITS[precision] < 16 else 0  # bitsandbytes makes a layer's weight anew for its product

    budget, process = budget_mib * _MIB, anonymous_bytes()
    longest = min(max_length, getattr(config, "max_position_embeddings", None) or max_length)

    def work(tokens: int) -> int:
        return dry_run(one, batch=max(1, tokens // longest), tokens=min(longest, tokens)).peak_bytes + unpacked

    def plan(tokens: int, *, streamed: bool, ahead: bool = False) -> MemoryPlan:
        weights = outer + (1 + ahead) * layer if streamed else every
        needed = work(tokens)
        left = budget - process - _SPARE - weights - needed
        return MemoryPlan(
            budget=budget,
            process=process,
            outer=outer,
            layer=layer,
            num_layers=len(stack),
            whole=process + _SPARE + every + needed,
            work=needed,
            tokens=tokens,
            streamed=streamed,
            ahead=ahead,
            hidden=left,
        )

    whole = plan(token_budget, streamed=False)
    if whole.hidden >= 0:
        return whole
    if config.is_encoder_decoder:
        raise UnsupportedError(
            f"backbone.memory-budget-mib={budget_mib}: {name} needs {mib(whole.whole)} in memory, and the layers of an "
            "encoder-decoder cannot be streamed; raise the budget, or take a model with one stack of layers"
        )
    steps = [token_budget]
    while steps[-1] // 2 >= longest:
        steps.append(steps[-1] // 2)
    steps.append(min(steps[-1], longest))
    for ahead in (True, False):
        for tokens in steps:
            found = plan(tokens, streamed=True, ahead=ahead)
            if found.hidden >= 0:
                return found
    least = budget - found.hidden
    raise SettingsError(
        f"backbone.memory-budget-mib={budget_mib} cannot be met: with one layer of {name} in memory at a time the "
        f"least that would do is {-(-least // _MIB)} ({mib(process)} taken before the model, {mib(outer)} beside the "
        f"layers, {mib(layer)} for a layer, {mib(found.work)} for a sample of {longest} tokens, {mib(_SPARE)} spare); "
        "raise it, or lower backbone.precision or task.max-length"
    )


def _held(parameters: list[nn.Parameter], precision: str) -> int:
    """Return the bytes of parameters as they are held: matrices packed, others in the dtype that is computed in."""
    packed = _BITS[precision] < 16
    return sum(int(p.numel() * _BITS[precision] / 8) if packed and p.dim() > 1 else p.nbytes for p in parameters)
