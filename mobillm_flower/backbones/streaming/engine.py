"""A forward pass below the model's own size: one layer is in memory at a time, and all samples pass it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mobillm_flower.backbones.engine import Engine, base_logits, join, output_mask, pick
from mobillm_flower.backbones.memory import give_back_at_once
from mobillm_flower.backbones.streaming.layer_weights import StoredLayers
from mobillm_flower.core.pivots import Pivot
from mobillm_flower.errors import UnsupportedError

logger = logging.getLogger(__name__)
_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_INSTEAD = "set backbone.memory-budget-mib=0"


class StreamedEngine(Engine):
    """transformers' own code, layer by layer: a layer's weights are read, all batches pass it, the next layer follows.

    The model's own forward pass runs first with layers that only note what they are called with (masks, positions),
    and, where the backbone predicts, a last time with the last layer returning what was computed, so that norms and
    heads are the model's own. Only one layer's weights are in memory, two where the next is read meanwhile.

    Attributes
    ----------
    seconds, waited : float
        Of the last pass: of all layers, and of these how long no layer was there to compute with.

    Parameters
    ----------
    model, stack, predictor, label_head
        As in `Backbone`; the layers have no weights of their own.
    layers : StoredLayers
        Reads them.
    ahead : bool
        Read the next layer while one computes.
    memory_bytes : int or None
        Hidden states up to this size stay in memory, larger ones lie in a temporary file; None: no limit.
    """

    name = "streamed"

    def __init__(
        self,
        model: nn.Module,
        stack: Sequence[nn.Module],
        predictor: nn.Module | None,
        label_head: tuple[Tensor, Tensor | None] | None,
        layers: StoredLayers,
        *,
        ahead: bool = True,
        memory_bytes: int | None = None,
    ) -> None:
        self._model, self._stack, self._label_head = predictor or model, stack, label_head
        self._predicts = predictor is not None
        self._layers, self._ahead, self._memory_bytes = layers, ahead, memory_bytes
        give_back_at_once()
        self._answers: int | None = None  # how many values a layer returns in a tuple; 0: no tuple
        self.seconds = self.waited = 0.0

    @torch.inference_mode()
    def run(
        self, batches: Iterable[Mapping[str, Tensor]], layers: Sequence[int], select: Pivot
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `Engine`; every batch is read before the first is computed.

        Raises
        ------
        UnsupportedError
            The model works on hidden states between its layers.
        WeightsChanged
            A weights file is not as it was when the model was loaded.
        """
        batches = list(batches)
        if not batches:
            return
        predicts = self._predicts or self._label_head is not None
        depth = len(self._stack) if predicts else max(layers)
        masks = [output_mask(inputs) for inputs in batches]
        kept: list[list[Tensor]] = [[] for _ in batches]
        with ExitStack() as folder:
            states, arguments = self._recorded(batches, depth, folder)
            if 0 in layers:
                kept = [[pick(hidden.clone(), masks[place], select)] for place, hidden in enumerate(states)]
            for number, weights in self._weights_of(depth):
                for place, hidden in enumerate(states):
                    others, named = arguments[place][number]
                    output = functional_call(self._stack[number], weights, (hidden, *others), named)
                    output = output[0] if isinstance(output, tuple) else output
                    if number + 1 in layers:
                        kept[place].append(pick(output, masks[place], select))
                    hidden.copy_(output)
                _forget(self._stack[number])
            self._layers.check()  # what was read is what the fingerprint is of
            if self.waited > max(1.0, self.seconds / 2):
                logger.warning(
                    "the disk is slower than the computing: %.0f of the %.0f seconds of this pass were spent waiting "
                    "for layers; backbone.precision=bf16, int8 or nf4 reads fewer bytes",
                    self.waited,
                    self.seconds,
                )
            for place, inputs in enumerate(batches):
                logits = self._predicted(inputs, states[place], masks[place]) if predicts else None
                yield join(kept[place], select), logits

    def _recorded(
        self, batches: Sequence[Mapping[str, Tensor]], depth: int, folder: ExitStack
    ) -> tuple[list[Tensor], list[list[_Arguments]]]:
        """Run each batch up to the last layer that is needed; returns what the first reads, and what each is given."""
        if self._answers is None:
            self._answers = self._asked(batches[0])
        hidden: list[Tensor] = []
        arguments: list[list[_Arguments]] = []
        for place, inputs in enumerate(batches):
            first, noted = self._noted(inputs, depth)
            if not hidden:
                hidden = self._room(first, [output_mask(one).shape for one in batches], folder)
            hidden[place].copy_(first)
            arguments.append(noted)
        return hidden, arguments

    def _noted(self, inputs: Mapping[str, Tensor], depth: int) -> tuple[Tensor, list[_Arguments]]:
        """Return what the first layer reads, [B, T, d], and what each layer is called with beside it."""
        given: list[Tensor] = []
        noted: list[_Arguments] = []

        def note(number: int, arguments: _Arguments) -> Tensor:
            hidden, rest = _hidden(arguments)
            if given and hidden is not given[0]:
                raise UnsupportedError(
                    f"{type(self._model).__name__} works on hidden states between its layers {number} and "
                    f"{number + 1}, so that they cannot be streamed; {_INSTEAD}"
                )
            given[:] = [hidden]
            noted.append(rest)
            if number + 1 == depth:
                raise _Noted
            return hidden

        self._stand_in(note, inputs)
        if len(noted) != depth or given[0].shape[:-1] != output_mask(inputs).shape:
            raise UnsupportedError(
                f"{type(self._model).__name__} does not pass hidden states of every token from layer to layer, so "
                f"that its layers cannot be streamed; {_INSTEAD}"
            )
        return given[0], noted

    def _room(self, like: Tensor, shapes: Sequence[tuple[int, ...]], folder: ExitStack) -> list[Tensor]:
        """Return room for the hidden states [B, T, d] of batches: in memory, or in a temporary file."""
        counts = [prod(shape) * like.shape[-1] for shape in shapes]
        size = sum(counts) * like.element_size()
        if self._memory_bytes is None or size <= self._memory_bytes:
            whole = torch.empty(sum(counts), dtype=like.dtype, device=like.device)
        else:
            file = Path(folder.enter_context(TemporaryDirectory(prefix="hidden-states-"))) / "states"
            whole = torch.from_file(str(file), shared=True, size=sum(counts), dtype=like.dtype)
        parts = torch.split(whole, counts)
        return [part.view(*shape, like.shape[-1]) for part, shape in zip(parts, shapes, strict=True)]

    def _asked(self, inputs: Mapping[str, Tensor]) -> int:
        """Run the first layer on one sample, to see how many values it returns in a tuple; 0: none."""
        answers: list[int] = []
        weights = self._layers.layer(0, torch.empty(self._layers.nbytes, dtype=torch.uint8))

        def first(number: int, arguments: _Arguments) -> Tensor:
            layer = self._stack[number]
            del layer.forward
            output = functional_call(layer, weights, *arguments)
            answers.append(len(output) if isinstance(output, tuple) else 0)
            raise _Noted

        self._stand_in(first, {name: value[:1] for name, value in inputs.items()})
        _forget(self._stack[0])
        return answers[0]

    def _stand_in(self, forward: Callable[[int, _Arguments], Tensor], inputs: Mapping[str, Tensor]) -> Any:
        """Run the model with `forward(number, arguments)` in each layer's place; None where it ended early."""

        def answer(number: int, *others: Any, **named: Any) -> Any:
            hidden = forward(number, (others, named))
            return (hidden, *[None] * (self._answers - 1)) if self._answers else hidden

        for number, layer in enumerate(self._stack):
            layer.forward = partial(answer, number)
        try:
            return self._model(**inputs)
        except _Noted:
            return None
        finally:
            for layer in self._stack:
                layer.__dict__.pop("forward", None)

    def _weights_of(self, depth: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield layers' numbers and weights; where there is room, the next is read while one computes."""
        self.seconds = self.waited = 0.0
        started = time.perf_counter()
        rooms = [torch.empty(self._layers.nbytes, dtype=torch.uint8) for _ in range(1 + self._ahead)]
        with ThreadPoolExecutor(1, thread_name_prefix="next-layer") as reader:
            reading: Future[dict[str, Tensor]] | None = None
            for number in range(depth):
                asked = time.perf_counter()
                reading = reading or reader.submit(self._read, number, rooms[0])
                weights = reading.result()
                self.waited += time.perf_counter() - asked
                reading = None
                if self._ahead and number + 1 < depth:
                    reading = reader.submit(self._read, number + 1, rooms[(number + 1) % 2])
                yield number, weights
                self.seconds = time.perf_counter() - started

    def _read(self, number: int, room: Tensor) -> dict[str, Tensor]:
        self._layers.check()
        return self._layers.layer(number, room)

    def _predicted(self, inputs: Mapping[str, Tensor], hidden: Tensor, mask: Tensor) -> Tensor | None:
        """Run what follows the last layer on its states [B, T, d]; returns the base logits [B, K]."""

        def hand_on(number: int, arguments: _Arguments) -> Tensor:
            return hidden if number + 1 == len(self._stack) else _hidden(arguments)[0]

        output = self._stand_in(hand_on, inputs)
        return base_logits(output, mask, self._label_head, predicts=self._predicts)


class _Noted(Exception):  # noqa: N818 - not an error
    """All layers' arguments are noted: what follows them need not run."""


def _hidden(arguments: _Arguments) -> tuple[Tensor, _Arguments]:
    """Return a layer's hidden states and its other arguments."""
    others, named = arguments
    if others:
        return others[0], (others[1:], named)
    return named["hidden_states"], ((), {name: value for name, value in named.items() if name != "hidden_states"})


def _forget(layer: nn.Module) -> None:
    """Let a layer hold nothing of the weights that it ran with; bitsandbytes' 8-bit layers keep them."""
    for module in layer.modules():
        state: Any = getattr(module, "state", None)
        if hasattr(state, "CB"):
            state.CB = state.SCB = None
