"""SplitFed (arXiv 2004.12088): the model is cut, devices train its first layers and the server the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from mobillm_flower.models.split import Half, SplitModel, copied, gradient_norms
from mobillm_flower.strategies.base import STRATEGIES
from mobillm_flower.strategies.baselines.peers import PeerStrategy
from mobillm_flower.strategies.exchange import Clock, Exchange
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import (
    open_arrays,
    open_config,
    open_numbers,
    open_tensor,
    pack_arrays,
    pack_numbers,
    tensor_array,
)
from mobillm_flower.wire.window import record_bytes

_TRAIN = "train"
_POLL_S = 0.05


@dataclass
class _Seat:
    """A device in a round, as the server sees it: its own copy of the server's part, and what the round has cost."""

    half: Half
    norms: Tensor = field(default_factory=lambda: torch.zeros(0))
    device_weights: Mapping[str, Tensor] | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    server_seconds: float = 0.0
    loss: float = 0.0
    numbers: Counter[str] = field(default_factory=Counter)


@STRATEGIES.register("split-fed")
class SplitFed(PeerStrategy):
    """LoRA on both sides of a cut after layer `peer.cut` (SplitFed's first version, arXiv 2004.12088).

    In every step a device sends the hidden states at the cut and the labels, and gets the gradients of the hidden
    states. The server trains a copy of its part for each device, all at the same pace; at the end of a round both parts
    are averaged by number of samples. So a round makes what a round of FedLoRA makes, and with one device what training
    in one place makes; only dropout is drawn differently.

    It is the less private way: the server sees, in the clear, labels and every token's states near the embeddings.

    The event `work` has `server_seconds` too.
    """

    name = "split-fed"

    @cached_property
    def split(self) -> SplitModel:
        """The model's two ends."""
        return SplitModel(self.model, self.settings.peer.cut)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the devices their part of the model."""
        state = arrays.to_torch_state_dict()
        self._first = Half({name: state[name] for name in self.split.server_part}, {}, {})
        self._exchange = Exchange(
            grid,
            timeout_s=self.timeout,
            poll_s=_POLL_S,
            clock=Clock(),
            on_unreachable=lambda node: self.note_failure(node, "not connected"),
            on_late=self._on_late,
        )
        part = ArrayRecord({name: state[name] for name in self.split.device_part})
        return super().configure_train(server_round, part, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Go on with every device until its samples have passed, average both parts, and log what it cost."""
        seats: dict[int, _Seat] = {}
        answered = [(reply.metadata.src_node_id, reply) for reply in replies]
        while answered:
            requests = []
            for node, reply in answered:
                if reply.has_error():
                    self.note_failure(node, f"error {reply.error.code}")
                    continue
                seat = seats.setdefault(node, _Seat(self._first, bytes_down=self._bytes_down.get(node, 0)))
                started = time.perf_counter()
                content = self._answer(seat, server_round, reply.content)
                seat.server_seconds += time.perf_counter() - started
                if content is not None:
                    seat.bytes_down += record_bytes(content)
                    requests.append(Message(content, dst_node_id=node, message_type=_TRAIN))
            arrived = self._exchange.exchange(requests, _TRAIN)
            answered = [(self._exchange.sender(reply) or 0, reply) for reply in arrived]
        answers = []
        for node, seat in seats.items():
            if seat.device_weights is None:  # it failed on the way
                continue
            samples = max(1.0, seat.numbers[keys.SAMPLES])
            numbers = {**seat.numbers, keys.LOSS: seat.loss / samples, keys.SERVER_SECONDS: seat.server_seconds}
            self.note_work(server_round, node, numbers, bytes_up=seat.bytes_up, bytes_down=seat.bytes_down)
            whole = {**seat.device_weights, **seat.half.weights}
            arrays = ArrayRecord({name: whole[name] for name in self.model.trained()})
            record = RecordDict({keys.ARRAYS: arrays, keys.METRICS: pack_numbers(numbers)})
            answers.append(Message(record, dst_node_id=node, message_type=_TRAIN))
        return self.kept(server_round, answers)

    def _answer(self, seat: _Seat, server_round: int, content: RecordDict) -> RecordDict | None:
        """Take the server's share of a step, and return the gradients; None: the device is done."""
        seat.bytes_up += record_bytes(content)
        seat.numbers.update(open_numbers(content))
        part = self.split.server_part
        if seat.half.gradients:
            seat.half.put_into(part, with_gradients=True)
            norms = [open_tensor(content, keys.NORMS), seat.norms]
            seat.half = seat.half.stepped(part, norms, learning_rate=self.settings.peer.learning_rate)
        if keys.WEIGHTS in content:
            seat.device_weights = open_arrays(content, keys.WEIGHTS).to_torch_state_dict()
            return None
        seat.half.put_into(part)
        states, labels = open_tensor(content, keys.HIDDEN), open_tensor(content, keys.LABELS)
        loss, gradients = self.split.teach(
            states, open_tensor(content, keys.LENGTHS), labels, seed=open_config(content, keys.SEED)
        )
        seat.loss += loss * len(labels)
        seat.norms = gradient_norms(part)
        found = {name: value.grad for name, value in part.items() if value.grad is not None}
        seat.half = replace(seat.half, gradients=copied(found))
        answer = {keys.GRADIENTS: tensor_array(gradients), keys.NORMS: tensor_array(seat.norms)}
        steps = open_config(content, keys.STEP) + 1
        return RecordDict(
            {
                keys.ARRAYS: pack_arrays(answer),
                keys.CONFIG: ConfigRecord({keys.SERVER_ROUND: server_round, keys.STEP: steps}),
            }
        )

    def _on_late(self, node: int, _kind: str) -> bool:
        self.note_failure(node, "late")
        return False
