"""A Grid that runs the real ClientApp in this process: everything of a run but Flower's transport."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid(Grid):
    """Each pull answers one waiting message, in the order sent or, with a seed, in random order.

    `tamper(message, reply)` may replace a reply, return None to lose it, or an `Error` to fail.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        node_configs: list[dict[str, Any]],
        run_config: dict[str, Any],
        *,
        order_seed: int | None = None,
        tamper: Callable[[Message, Message], Message | Error | None] | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.app, self.run_config = app, run_config
        self.contexts = {
            100 + i: Context(
                run_id=1, node_id=100 + i, node_config=config, state=RecordDict(), run_config=dict(run_config)
            )
            for i, config in enumerate(node_configs)
        }
        self._waiting: dict[str, Message] = {}
        self._random = random.Random(order_seed) if order_seed is not None else None
        self._tamper = tamper
        self._count = 0
        self.sent: list[Message] = []

    def set_run(self, run: Any) -> None: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError("strategies make messages themselves")

    @property
    def run(self) -> Any:
        return None

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self.contexts:
                ids.append("")
                continue
            self._count += 1
            name = f"m{self._count}"
            message.metadata.__dict__["_message_id"] = name
            self._waiting[name] = message
            self.sent.append(message)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        waiting = [name for name in message_ids if name in self._waiting]
        if not waiting:
            return []
        name = self._random.choice(waiting) if self._random else waiting[0]
        message = self._waiting.pop(name)
        try:
            reply = self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as the runtime does
            reply = Message(Error(2, str(error.__cause__ or error)), reply_to=message)
        if self._tamper:
            answer = self._tamper(message, reply)
            if answer is None:
                return []
            reply = Message(answer, reply_to=message) if isinstance(answer, Error) else answer
        reply.metadata.__dict__["_reply_to_message_id"] = name
        return [reply]

    def send_and_receive(self, messages: Any, *, timeout: Any = None) -> Any:
        waiting = set(self.push_messages(messages)) - {""}
        replies: list[Message] = []
        while waiting & self._waiting.keys():
            replies += self.pull_messages(waiting)
        return replies
