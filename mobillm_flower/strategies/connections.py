"""Nodes that are connected: new ones are asked what they are, devices are addressed, absent ones are noticed."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from mobillm_flower.config import Settings
from mobillm_flower.errors import RunFailed
from mobillm_flower.runs.device_events import Waiting
from mobillm_flower.runs.events import OnEvent
from mobillm_flower.strategies.agreement import Agreement
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.exchange import Clock, Exchange
from mobillm_flower.strategies.fleet import Fleet
from mobillm_flower.wire import keys
from mobillm_flower.wire.messages import DeviceDescription
from mobillm_flower.wire.proof import make_greeting
from mobillm_flower.wire.window import record_bytes

logger = getLogger("flwr")


class Connections:
    """The nodes of a grid and the devices behind them.

    Attributes
    ----------
    fleet : Fleet
        Devices that were taken in.
    exchange : Exchange
        Messages that are out.
    present : set of int
        Nodes that were connected when new ones were last looked for.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    settings : Settings
        The run's, of which `rounds` and `data.num-devices` are used.
    agreement : Agreement
        The task and the backbone types, which are settled when enough devices have been met.
    timeout_s : float
        Seconds a message has to be answered, and a device may be away.
    poll_s : float
        Seconds between looks when there is nothing else to do.
    clock : Clock
        What tells the time.
    is_done : callable
        Whether nothing is asked of a device.
    on_event : callable
        Called with each event, for the run's log.
    """

    def __init__(
        self,
        grid: Grid,
        settings: Settings,
        agreement: Agreement,
        *,
        timeout_s: float,
        poll_s: float,
        clock: Clock,
        is_done: Callable[[DeviceDescription], bool],
        on_event: OnEvent,
    ) -> None:
        self.clock, self.timeout_s = clock, timeout_s
        self._grid, self._settings, self._poll_s = grid, settings, poll_s
        rounds = settings.rounds
        self.fleet = Fleet(
            agreement,
            max_strikes=rounds.max_strikes,
            max_failures=rounds.max_failures,
            is_done=is_done,
            on_event=on_event,
        )
        self.exchange = Exchange(
            grid,
            timeout_s=timeout_s,
            poll_s=poll_s,
            clock=clock,
            on_unreachable=self.fleet.note_unreachable,
            on_late=self._on_late,
        )
        self._on_event = on_event
        self.present: set[int] = set()
        self._greetings: dict[int, Message] = {}  # that are out, by node

    def meet(self, *, at_least: int = 0) -> None:
        """Ask nodes that are new what they are, and take them in; waits until there are `at_least` devices.

        Raises
        ------
        RunFailed
            There are fewer when the time is over, or all that will ever come have refused.
        """
        deadline = self.clock.now() + self.timeout_s
        said = None
        while True:
            for reply in self.exchange.exchange(self.greetings(), keys.DESCRIBE):
                self.welcome(reply)
            if len(self.fleet) >= at_least:
                self.fleet.settle()
            if len(self.fleet) >= at_least:
                return
            # all that a simulation has, or a deployment was announced to have: nobody else will come
            all_refused = not len(self.fleet) and self.fleet.num_refused >= self._settings.data.num_devices
            if all_refused or self.clock.now() > deadline:
                break
            waiting = Waiting(len(self.fleet), at_least, len(self.present), self.fleet.num_refused)
            if waiting != said:
                said = waiting
                self._on_event(waiting)
                logger.info("%s", waiting.reason)
            self.clock.sleep(self._poll_s)
        reasons = self.fleet.reasons
        when = f"all {self.fleet.num_refused} refused" if all_refused else f"after {self.timeout_s:g} s"
        raise RunFailed(
            f"{len(self.fleet)} of at least {at_least} device(s) can be used, {when}"
            + (f"; {'; '.join(reasons[:3])}" if reasons else "; is a SuperNode connected?")
        )

    def greetings(self) -> list[Message]:
        """Return a request for a description for each node that is new; notes which devices are connected."""
        self.present = set(self._grid.get_node_ids())
        now, busy = self.clock.now(), self.exchange.busy_nodes
        for device in self.fleet:
            if device.node_id in self.present:
                device.seen_at = now
        fresh = sorted(n for n in self.present if not self.fleet.knows(n, self.present) and n not in busy)
        self._greetings = {node: message for node, message in self._greetings.items() if node in busy}
        self._greetings |= (asked := {node: make_greeting(node, ttl=self.timeout_s) for node in fresh})
        return list(asked.values())

    def welcome(self, reply: Message) -> None:
        """Take in the device that described itself."""
        node = self.exchange.sender(reply)
        assert node is not None
        self.fleet.meet(node, reply, asked=self._greetings.pop(node), present=self.present)

    def note_absent(self) -> None:
        """Drop devices that have been away for too long; take back those that were dropped for it and are there."""
        now = self.clock.now()
        for device in self.fleet:
            away = now - device.seen_at
            if device.active and device.node_id not in self.present and away > self.timeout_s:
                self.fleet.drop_absent(device, f"not connected for {away:.0f} s")
            elif device.left and device.node_id in self.present:
                self.fleet.take_back(device)

    def message(self, device: DeviceState, content: RecordDict, kind: str, config: ConfigRecord) -> Message:
        """Return a message to a device, whose bytes are counted; a `config` of one's own goes with it."""
        if len(config):
            content["config"] = config
        device.record.bytes_down = (device.record.bytes_down or 0) + record_bytes(content)
        ttl = self.timeout_s * self._settings.rounds.max_failures
        return Message(content, dst_node_id=device.node_id, message_type=kind, ttl=ttl)

    def sender(self, reply: Message) -> DeviceState | None:
        """Return the device that a reply comes from, None where it is none of the run's."""
        node = self.exchange.sender(reply)
        return None if node is None else self.fleet.devices.get(node)

    def _on_late(self, node: int, kind: str) -> bool:
        """Count a failure; a window is still waited for, unless the device is dropped for it."""
        return self.fleet.note_late(node, f"no answer within {self.timeout_s:g} s") and kind == keys.EXTRACT
