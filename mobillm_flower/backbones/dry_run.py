"""A device's work without weights, data or computing: operations and memory of the real model code on shapes alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_PACKED_ROWS = 256  # from so many rows on, a matrix product on the CPU keeps a packed copy of its weight


@dataclass(frozen=True)
class DryWork:
    """What a call would take.

    Parameters
    ----------
    flops : int
        Operations of matrix products, as torch counts them.
    peak_bytes : int
        Most bytes alive at once above parameters, with a packed copy of the largest weight.
    """

    flops: int
    peak_bytes: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all tensors that are made inside and are alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation, and count the storages that it made."""
        kwargs = kwargs or {}
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            if id(storage) not in given and id(storage) not in self._known:
                self._known.add(id(storage))
                self.live += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def dry_run(model: nn.Module, *, batch: int, tokens: int, train: bool = False) -> DryWork:
    """Run a skeleton on one batch, forward or with a training step of its trainable parameters by AdamW.

    Parameters
    ----------
    model : nn.Module
        From `backbones.skeleton`, with LoRA or without; one with a head is trained with its own cross-entropy.
    batch, tokens : int
        Samples, and tokens of each.
    train : bool
        Whether a backward pass and a step follow.
    """
    model.train(train)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {name: _made(value) for name, value in model.named_parameters()}
        state |= {name: _made(value) for name, value in model.named_buffers()}
        inputs = dict.fromkeys(("input_ids", "attention_mask"), torch.ones(batch, tokens, dtype=torch.long))
        if getattr(model.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.ones(batch, 1, dtype=torch.long)
        live = LiveBytes()
        with torch.set_grad_enabled(train), FlopCounterMode(display=False) as counter, live:
            _call(model, state, inputs, train)
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    packed = max((weight.nbytes for weight in weights), default=0) if batch * tokens >= _PACKED_ROWS else 0
    return DryWork(int(counter.get_total_flops()), live.peak + packed)


def _made(value: Tensor) -> Tensor:
    made = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    return made.requires_grad_(value.requires_grad)


def _call(model: nn.Module, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], train: bool) -> None:
    labels = {"labels": inputs["input_ids"]} if train and hasattr(model, "lm_head") else {}
    output = torch.func.functional_call(model, dict(state), kwargs={**inputs, **labels})
    if train:
        loss = output.loss if labels else output.last_hidden_state.float().mean()
        loss.backward()
        torch.optim.AdamW([value for value in state.values() if value.requires_grad]).step()
