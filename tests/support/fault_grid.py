"""A fleet in which each device has one fault, on a clock of its own; the ClientApp, cache and trainer are real."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import Array, Error, Message

from mobillm_flower.wire import keys
from tests.support.clock_grid import ClockGrid
from tests.support.packets import Packet

YEARS = 10 * 365 * 86400.0

Fault = Callable[[list[Message], Message], Message | Error]
"""(the device's windows so far, this one last; somebody else's window) -> what arrives instead."""


class FaultGrid(ClockGrid):
    """Node 100 + i has the i-th fault; answers that are ready come all at once, some of them twice.

    `faults` maps names to a function that changes each of a device's windows, or to None for an honest device. Nodes in
    `twice` have each answer delivered twice; those in `skewed` run with a clock that is ten years off.
    """

    def __init__(self, *arguments: Any, faults: dict[str, Fault | None], **options: Any) -> None:
        super().__init__(*arguments, tamper=self._damage, **options)
        self.nodes = {name: 100 + i for i, name in enumerate(faults)}
        self._faults = dict(enumerate(faults.values(), start=100))
        self.windows: dict[int, list[Message]] = {}
        self.twice: set[int] = set()
        self.skewed: dict[int, float] = {}
        honest_app = self.app

        def app(message: Message, context: Any) -> Any:
            offset = self.skewed.get(message.metadata.dst_node_id, 0.0)
            if not offset:
                return honest_app(message, context)
            wrong = time.time() + offset
            with patch("time.time", lambda: wrong):
                return honest_app(message, context)

        self.app = app

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies: list[Message] = []
        waiting = list(message_ids)
        while found := list(super().pull_messages([name for name in waiting if name in self._waiting])):
            replies += found
        again = [reply for reply in replies if reply.metadata.src_node_id in self.twice]
        return replies + [copy.copy(reply) for reply in again]

    def _damage(self, message: Message, reply: Message) -> Message | Error:
        node = message.metadata.dst_node_id
        if message.metadata.message_type != keys.EXTRACT:
            return reply
        mine = self.windows.setdefault(node, [])
        mine.append(copy.deepcopy(reply))
        fault = self._faults[node]
        if fault is None:
            return reply
        others = next((sent[0] for other, sent in self.windows.items() if other != node), reply)
        answer = fault([*mine[:-1], reply], others)
        if isinstance(answer, Error) or answer is reply:
            return answer
        return Message(copy.deepcopy(answer.content), reply_to=message)


def header(key: str, change: Callable[[Any], Any]) -> Fault:
    """Change one value of the header."""

    def fault(mine: list[Message], _others: Message) -> Message:
        record: Any = mine[-1].content[keys.HEADER]
        record[key] = change(record[key])
        return mine[-1]

    return fault


def agreed(key: str, field: str, value: object) -> Fault:
    """Claim another value for a field of what both sides agreed on."""
    return header(key, lambda text: json.dumps({**json.loads(text), field: value}))


def payload(change: Callable[[np.ndarray], np.ndarray], *, rehash: bool = False) -> Fault:
    """Change the activations' bytes; with `rehash` the hash fits them again, as a sender who lies on purpose does."""

    def fault(mine: list[Message], _others: Message) -> Message:
        packet = Packet(mine[-1].content, None, None)  # type: ignore[arg-type]
        packet.set_array(keys.PAYLOAD, change(packet.array(keys.PAYLOAD).copy()))
        if rehash:
            packet.rehash()
        return mine[-1]

    return fault


def flip_a_bit(values: np.ndarray) -> np.ndarray:
    values[5] ^= 4
    return values


def as_float(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Put a float32 in the place of the first activation."""

    def change(values: np.ndarray) -> np.ndarray:
        values[:4] = np.frombuffer(np.float32(value).tobytes(), np.uint8)
        return values

    return change


def reorder(mine: list[Message], _others: Message) -> Message:
    """Exchange the first and the last sample's activations."""
    packet = Packet(mine[-1].content, None, None)  # type: ignore[arg-type]
    values = packet.array(keys.PAYLOAD).copy()
    size = int(packet.array(keys.LENGTHS)[0])
    values[:size], values[-size:] = values[-size:].copy(), values[:size].copy()
    packet.set_array(keys.PAYLOAD, values)
    return mine[-1]


def truncate(mine: list[Message], _others: Message) -> Message:
    """Cut the array as it is serialized."""
    record: Any = mine[-1].content[keys.ACTIVATIONS]
    whole = record[keys.PAYLOAD]
    record[keys.PAYLOAD] = Array(whole.dtype, whole.shape, whole.stype, whole.data[:-9])
    return mine[-1]


def oversize(mine: list[Message], _others: Message) -> Message:
    """Send along what nobody asked for."""
    record: Any = mine[-1].content[keys.ACTIVATIONS]
    record["more"] = Array(np.zeros(3 << 20, np.uint8))
    return mine[-1]


def old_window(mine: list[Message], _others: Message) -> Message:
    """Answer with the first window again and again."""
    return mine[0]


def others_window(_mine: list[Message], others: Message) -> Message:
    """Answer with another device's window."""
    return others


def lose_first(mine: list[Message], _others: Message) -> Message | Error:
    """Lose the first answer, as Flower reports it."""
    return Error(3, "message unavailable") if len(mine) == 1 else mine[-1]


def drop_out(share: float, seed: int) -> Fault:
    """Lose a share of the answers."""
    draw = random.Random(seed)
    return lambda mine, _others: Error(5, "node unavailable") if draw.random() < share else mine[-1]
