"""A grid on a clock of its own: answers are ready after a delay that the test chooses, and waiting takes no time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message

from mobillm_flower.strategies.exchange import Clock
from tests.support.local_grid import LocalGrid


class FakeClock(Clock):
    """Goes on when somebody sleeps, by a tenth of a second where he asks for nothing."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds or 0.1


class ClockGrid(LocalGrid):
    """Answers after `delay(node, kind)` seconds; nodes are connected while `connected(node, time)`."""

    def __init__(
        self,
        *arguments: Any,
        clock: FakeClock,
        delay: Callable[[int, str], float] = lambda _node, _kind: 1.0,
        connected: Callable[[int, float], bool] = lambda _node, _time: True,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.clock, self._delay, self._connected = clock, delay, connected
        self._due: dict[str, float] = {}
        self.answered: list[tuple[float, int, str]] = []

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if self._connected(node, self.clock.now())]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            (name,) = super().push_messages([message])
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            self._due[name] = self.clock.now() + self._delay(node, kind)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [name for name in message_ids if name in self._waiting and self._due[name] <= self.clock.now()]
        for name in ready[:1]:
            metadata = self._waiting[name].metadata
            self.answered.append((self.clock.now(), metadata.dst_node_id, metadata.message_type))
        return super().pull_messages(ready[:1])
