"""Messages that are out: sent, answered, late, lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid


class Clock:
    """Time as the strategies see it; tests put another in its place."""

    def now(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass
class Flight:
    """A message that is out."""

    node_id: int
    kind: str
    deadline: float


@dataclass(eq=False, repr=False)
class Exchange:
    """Pushes messages and pulls their replies, one way for all strategies.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    timeout_s : float
        Seconds a message has to be answered; a deadline that passes is told to `on_late`.
    poll_s : float
        Seconds between looks for replies when there is nothing else to do.
    clock : Clock
        What tells the time.
    on_unreachable : callable
        Called with a node that is not connected.
    on_late : callable
        Called with a node whose deadline passed; True keeps the message out, with another deadline.
    """

    grid: Grid
    timeout_s: float
    poll_s: float
    clock: Clock
    on_unreachable: Callable[[int], None]
    on_late: Callable[[int, str], bool]
    _flights: dict[str, Flight] = field(default_factory=dict, init=False)
    _sent_to: dict[str, int] = field(default_factory=dict, init=False)

    @property
    def busy_nodes(self) -> set[int]:
        """Nodes with a message out: Flower takes one at a time."""
        return {flight.node_id for flight in self._flights.values()}

    def sender(self, reply: Message) -> int | None:
        """Return the node that a reply comes from; error replies do not say it themselves."""
        return self._sent_to.pop(reply.metadata.reply_to_message_id, None)

    def node_of(self, reply: Message) -> int | None:
        """Return the same, before the reply is handled."""
        return self._sent_to.get(reply.metadata.reply_to_message_id)

    def push(self, messages: Iterable[Message]) -> None:
        """Send messages; a node that is not there any more is told to `on_unreachable`."""
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            sent = list(self.grid.push_messages([message]))
            if sent and sent[0]:
                self._flights[sent[0]] = Flight(node, kind, self.clock.now() + self.timeout_s)
                self._sent_to[sent[0]] = node
            else:
                self.on_unreachable(node)

    def out(self, kind: str) -> list[str]:
        """Return the ids of messages of a kind that are not answered yet."""
        return [message_id for message_id, flight in self._flights.items() if flight.kind == kind]

    def pull(self, kind: str) -> list[Message]:
        """Return the replies of a kind that are there, each once though it was delivered twice; does not wait."""
        waiting = self.out(kind)
        replies = self.grid.pull_messages(waiting) if waiting else []
        return [reply for reply in replies if self._flights.pop(reply.metadata.reply_to_message_id, None)]

    def exchange(
        self, messages: Iterable[Message], kind: str, work: Callable[[], bool] = lambda: False
    ) -> Iterator[Message]:
        """Send messages and yield replies as they come, doing `work` in between, until the deadline.

        What is not answered by then may stay out (`on_late` decides): its device is asked nothing else, and its answer
        is taken whenever it comes.
        """
        self.push(messages)
        deadline = self.clock.now() + self.timeout_s
        while self.out(kind):
            replies = self.pull(kind)
            yield from replies
            if replies:
                continue
            if self.clock.now() > deadline:
                self.note_late(kind)
                break
            if not work():
                self.clock.sleep(self.poll_s)

    def note_late(self, kind: str) -> None:
        """Tell `on_late` of each message of a kind whose deadline has passed."""
        now = self.clock.now()
        for message_id in self.out(kind):
            flight = self._flights[message_id]
            if flight.deadline > now:
                continue
            flight.deadline = now + self.timeout_s
            if not self.on_late(flight.node_id, kind):
                del self._flights[message_id]
