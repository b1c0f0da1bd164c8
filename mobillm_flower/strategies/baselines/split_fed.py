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

from mobillm_flower.models.split import SplitModel, TrainedPart, copied, gradient_norms
from mobillm_flower.strategies.baselines.base import BaselineStrategy
from mobillm_flower.strategies.exchange import Clock, Exchange
from mobillm_flower.strategies.registry import STRATEGIES
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
class _DeviceRound:
    """A device's round, as the server sees it: its own copy of the server's part, and what the round has cost."""

    part: TrainedPart
    norms: Tensor = field(default_factory=lambda: torch.zeros(0))
    device_weights: Mapping[str, Tensor] | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    server_seconds: float = 0.0
    loss: float = 0.0
    numbers: Counter[str] = field(default_factory=Counter)


@STRATEGIES.register("split-fed")
class SplitFed(BaselineStrategy):
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
        part = ArrayRecord({name: state[name] for name in self.split.device_part})
        return super().configure_train(server_round, part, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Go on with every device until its samples have passed, average both parts, and log what it cost."""
        state = self.run.arrays.to_torch_state_dict()  # whole, while devices have their part of it
        first = TrainedPart({name: state[name] for name in self.split.server_part}, {}, {})
        exchange = self._exchange()
        devices: dict[int, _DeviceRound] = {}
        failed: set[int] = set()
        answered = [(reply.metadata.src_node_id, reply) for reply in replies]
        while answered:
            requests = []
            for node, reply in answered:
                if reply.has_error():
                    self.note_failure(node, f"error {reply.error.code}")
                    failed.add(node)
                    continue
                fresh = _DeviceRound(first, bytes_down=self.run.bytes_down.get(node, 0))
                device = devices.setdefault(node, fresh)
                started = time.perf_counter()
                content = self._answer(device, server_round, reply.content)
                device.server_seconds += time.perf_counter() - started
                if content is not None:
                    device.bytes_down += record_bytes(content)
                    requests.append(Message(content, dst_node_id=node, message_type=_TRAIN))
            arrived = exchange.exchange(requests, _TRAIN)
            answered = [(exchange.sender(reply) or 0, reply) for reply in arrived]
        answers = []
        for node, device in devices.items():
            if device.device_weights is None:  # it failed on the way, or was not heard of any more
                continue
            samples = max(1.0, device.numbers[keys.SAMPLES])
            numbers = {**device.numbers, keys.LOSS: device.loss / samples, keys.SERVER_SECONDS: device.server_seconds}
            self.note_work(server_round, node, numbers, bytes_up=device.bytes_up, bytes_down=device.bytes_down)
            whole = {**device.device_weights, **device.part.weights}
            arrays = ArrayRecord({name: whole[name] for name in self.model.trained()})
            record = RecordDict({keys.ARRAYS: arrays, keys.METRICS: pack_numbers(numbers)})
            answers.append(Message(record, dst_node_id=node, message_type=_TRAIN))
        self.note_silence(failed | {answer.metadata.dst_node_id for answer in answers})
        return self.kept(server_round, answers)

    def _answer(self, device: _DeviceRound, server_round: int, content: RecordDict) -> RecordDict | None:
        """Take the server's share of a step, and return the gradients; None: the device is done."""
        device.bytes_up += record_bytes(content)
        device.numbers.update(open_numbers(content))
        part = self.split.server_part
        if device.part.gradients:
            device.part.put_into(part, with_gradients=True)
            norms = [open_tensor(content, keys.NORMS), device.norms]
            device.part = device.part.stepped(part, norms, learning_rate=self.settings.peer.learning_rate)
        if keys.WEIGHTS in content:
            device.device_weights = open_arrays(content, keys.WEIGHTS).to_torch_state_dict()
            return None
        device.part.put_into(part)
        states, labels = open_tensor(content, keys.HIDDEN), open_tensor(content, keys.LABELS)
        loss, gradients = self.split.loss_and_gradients(
            states, open_tensor(content, keys.LENGTHS), labels, seed=open_config(content, keys.SEED)
        )
        device.loss += loss * len(labels)
        device.norms = gradient_norms(part)
        of_part = {name: value.grad for name, value in part.items() if value.grad is not None}
        device.part = replace(device.part, gradients=copied(of_part))
        answer = {keys.GRADIENTS: tensor_array(gradients), keys.NORMS: tensor_array(device.norms)}
        steps = open_config(content, keys.STEP) + 1
        return RecordDict(
            {
                keys.ARRAYS: pack_arrays(answer),
                keys.CONFIG: ConfigRecord({keys.SERVER_ROUND: server_round, keys.STEP: steps}),
            }
        )

    def _exchange(self) -> Exchange:
        """Return what sends a round's messages; a device that is late or away is out of the round."""

        def on_late(node: int, _kind: str) -> bool:
            self.note_failure(node, "late")
            return False

        return Exchange(
            self.run.grid,
            timeout_s=self.run.timeout_s,
            poll_s=_POLL_S,
            clock=Clock(),
            on_unreachable=lambda node: self.note_failure(node, "not connected"),
            on_late=on_late,
        )
