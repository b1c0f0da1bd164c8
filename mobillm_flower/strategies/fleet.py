"""What the server knows of its devices: who they are, what they sent, what went wrong, which of them it still asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from logging import WARNING, getLogger

from flwr.app import Message, RecordDict

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import MismatchError, MobiLLMError, PacketRejected
from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.plain import plain
from mobillm_flower.strategies.agreement import Agreement
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.wire.messages import DeviceDescription, open_description, refusal
from mobillm_flower.wire.proof import require_proof

logger = getLogger("flwr")

_FEWEST = 5  # devices that are compared before sums of one are refused: a median of fewer is no witness
_MOST = 10  # times the others' median: what a device may say that it has


class Fleet:
    """The devices of a run.

    A device is dropped, that is not asked again, when it refuses, after `max_strikes` bad packets, or after
    `max_failures` failures in a row.

    Parameters
    ----------
    agreement : Agreement
        The task and the backbone types.
    max_strikes, max_failures : int
        See `rounds` in the settings.
    is_done : callable
        Whether nothing is asked of a device; by default where it has no samples.
    on_event : callable
        Called with each event, for the run's log.
    """

    def __init__(
        self,
        agreement: Agreement,
        *,
        max_strikes: int,
        max_failures: int,
        on_event: events.OnEvent,
        is_done: Callable[[DeviceDescription], bool] = lambda device: not device.num_train,
    ) -> None:
        self.agreement, self.max_strikes, self.max_failures = agreement, max_strikes, max_failures
        self._event, self._is_done = on_event, is_done
        self._accept: Callable[[BackboneInfo], None] = lambda _backbone: None
        self.devices: dict[int, DeviceState] = {}
        self._nodes: dict[str, int] = {}  # by pseudonym
        self.backbones: dict[str, BackboneInfo] = {}
        self._refused: dict[int, str] = {}
        self._second: dict[int, int] = {}  # refused node -> the node that has its device's folder
        self._unanswered: Counter[int] = Counter()
        self._trouble: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.devices)

    def __iter__(self) -> Iterator[DeviceState]:
        return iter(list(self.devices.values()))

    @property
    def reasons(self) -> list[str]:
        """Why nodes were not taken in."""
        trouble = {node: reason for node, reason in self._trouble.items() if node not in self.devices}
        return sorted(set({**trouble, **self._refused}.values()))

    def sizes(self) -> list[int]:
        """Return how many samples each device may have: what it says, but at most ten times the others' median.

        Nobody can check what a device says of its size. As long as less than half of the others lie, one that does
        lengthens a schedule by as much as ten others.
        """
        said = self._said_sizes()
        return [min(size, _MOST * typical) for size, typical in zip(said, _medians_of_others(said), strict=True)]

    def typical_size(self, device: DeviceState) -> int:
        """Return how many samples the other devices have by their own account, in the median; alone, the device."""
        typical = dict(zip(self.devices, _medians_of_others(self._said_sizes()), strict=True))
        return typical[device.node_id]

    def _said_sizes(self) -> list[int]:
        return [device.description.num_train for device in self]

    def most_in_sums(self) -> dict[int, int]:
        """Return how many samples a device's sums may be of, by node: as `sizes`, from five devices with samples on."""
        said = self._said_sizes()
        sizes = self.sizes() if sum(map(bool, said)) >= _FEWEST else said
        return dict(zip(self.devices, sizes, strict=True))

    def drop_too_large(self) -> None:
        """Ask nothing of devices that have more samples than their sums may be of."""
        most = self.most_in_sums()
        for device in self:
            if device.active and (size := device.description.num_train) > most[device.node_id]:
                self.drop(
                    device,
                    f"it has {size} samples, more than {_MOST} times the other devices' median: its sums would be most "
                    f"of the total; set data.max-samples={most[device.node_id]} on it",
                )

    def knows(self, node: int, present: Collection[int]) -> bool:
        """Whether a node is a device of the run, or was refused and the reason still stands."""
        if node in self._second:
            return self._second[node] in present
        return node in self.devices or node in self._refused

    def restrict(self, accept: Callable[[BackboneInfo], None]) -> None:
        """Take in only backbone types that a run can have from now on; devices of others that are there are refused.

        Parameters
        ----------
        accept : callable
            Called with a backbone before its first device is taken in; raises MismatchError where the type cannot join.
        """
        self._accept = accept
        for device in self:
            backbone = device.description.backbone
            try:
                accept(backbone)
            except MobiLLMError as error:
                del self.devices[device.node_id]
                self.backbones.pop(backbone.fingerprint, None)
                self.refuse(device.node_id, str(error))

    def settle(self) -> None:
        """Fix what the devices have in common, and refuse those that differ; once it is fixed, nothing happens."""
        if self.agreement.contract is not None:
            return
        for node, reason in self.agreement.settle(list(self)).items():
            del self._nodes[self.devices.pop(node).description.pseudonym]
            self.refuse(node, reason)
        self.backbones = {}
        for device in self:
            self._take_in(device)

    def meet(
        self,
        node: int,
        reply: Message,
        *,
        asked: Message,
        present: Collection[int],
    ) -> None:
        """Take in a node by its description, or note why not; one that failed to answer may be asked again.

        Parameters
        ----------
        node, reply
            The node and its answer.
        asked : Message
            What it answers, whose nonce its description is signed with.
        present : collection of int
            Nodes that are connected: a device whose old node is gone may come back as another.
        """
        if reply.has_error():
            self._unanswered[node] += 1
            self._trouble[node] = f"it answered with error {reply.error.code}: {last_line(reply.error.reason)}"
            if self._unanswered[node] >= self.max_failures:
                self.refuse(node, self._trouble[node])
            return
        try:
            self._admit(node, reply, asked, present)
        except MobiLLMError as error:
            self.refuse(node, str(error))

    @property
    def num_refused(self) -> int:
        """Nodes that take no part."""
        return len(self._refused)

    def refuse(self, node: int, reason: str) -> None:
        """Note that a node takes no part."""
        self._refused[node] = reason = plain(reason)
        self._event(device_events.NodeRefused(str(node), reason))
        logger.log(WARNING, "node %s is not used: %s", node, reason)

    def content(self, device: DeviceState, reply: Message, *, optional: bool = False) -> RecordDict | None:
        """Return a reply's records; an error or a refusal is counted and gives None.

        Who refuses takes no further part, unless what was asked is optional.
        """
        if reply.has_error():
            self.fail(device, f"error {reply.error.code}: {last_line(reply.error.reason)}")
            return None
        reason = refusal(reply.content)
        if reason is not None:
            if optional:
                logger.log(WARNING, "device %s refuses: %s", device.name, plain(reason))
            else:
                self.drop(device, reason)
            return None
        return reply.content

    def strike(self, device: DeviceState, error: PacketRejected) -> None:
        """Count a bad packet."""
        detail = plain(error.detail)
        self._note(device, device_events.Rejected(device.record.device, error.rule, detail))
        logger.log(WARNING, "a packet of device %s was rejected: %s: %s", device.name, error.rule, detail)
        if device.record.strikes.total() >= self.max_strikes:
            self.drop(device, f"{device.record.strikes.total()} bad packets")

    def fail(self, device: DeviceState, reason: str) -> None:
        """Count an answer that did not come."""
        device.failures_in_a_row += 1
        reason = plain(reason)
        self._note(device, device_events.Failure(reason, device=device.record.device))
        logger.log(WARNING, "device %s failed: %s", device.name, reason)
        if device.failures_in_a_row >= self.max_failures:
            self.drop(device, f"{device.failures_in_a_row} failures in a row, the last: {reason}")

    def note_unreachable(self, node: int) -> None:
        """Count a message that could not be sent."""
        if node in self.devices:
            self.fail(self.devices[node], "the node is not connected")

    def note_late(self, node: int, reason: str) -> bool:
        """Count an answer that is late; returns whether the device is still one to wait for."""
        device = self.devices.get(node)
        if device is None:
            self.refuse(node, reason)
            return False
        self.fail(device, reason)
        return not device.record.dropped

    def drop_absent(self, device: DeviceState, reason: str) -> None:
        """Drop a device for being away, until `take_back`."""
        device.left = True
        self.drop(device, reason)

    def take_back(self, device: DeviceState) -> None:
        """Ask a device again that was dropped for being away."""
        device.left, device.failures_in_a_row = False, 0
        self._note(device, device_events.Returned(device.record.device))

    def log_summaries(self) -> None:
        """Log what each device did."""
        for device in self:
            self._event(device.record.summary())

    def drop(self, device: DeviceState, reason: str) -> None:
        """Ask a device nothing more."""
        reason = plain(reason)
        self._note(device, device_events.Dropped(device.record.device, reason))
        logger.log(WARNING, "device %s is passed over from here on: %s", device.name, reason)

    def _note(self, device: DeviceState, event: events.Event) -> None:
        """Count an event of a device, and log it."""
        device.record.take(event)
        self._event(event)

    def _admit(self, node: int, reply: Message, asked: Message, present: Collection[int]) -> None:
        """Take a device in; raises where it does not fit the fleet."""
        reason = refusal(reply.content)
        if reason is not None:
            raise MismatchError(reason)
        description = open_description(reply.content)
        require_proof(reply.content, asked)
        before = self.devices.get(self._nodes.get(description.pseudonym, node))
        if before is not None and before.node_id in present:
            self._second[node] = before.node_id
            raise MismatchError(
                "another node uses the same device folder; give each SuperNode its own, or, if this is the same device "
                "started again, wait until the other is seen to be gone"
            )
        self.agreement.require(description)
        backbone = description.backbone
        if backbone.fingerprint not in self.backbones:
            self._accept(backbone)
        self.agreement.add(backbone)
        done = self._is_done(description)
        device = self.devices.pop(before.node_id) if before else DeviceState(node, description)
        device.node_id, device.description, device.done, device.failures_in_a_row = node, description, done, 0
        self.devices[node] = device
        self._second.pop(node, None)
        self._refused.pop(node, None)
        self._nodes[description.pseudonym] = node
        if self.agreement.contract is not None:
            self._take_in(device)

    def _take_in(self, device: DeviceState) -> None:
        """Note and log a device that fits the fleet."""
        description, backbone = device.description, device.description.backbone
        self.backbones.setdefault(backbone.fingerprint, self.agreement.agreed(backbone))
        self._note(
            device,
            device_events.DeviceMet(
                device=description.pseudonym,
                backbone=backbone.name,
                layers=backbone.depth,
                num_train=description.num_train,
                num_test=description.num_test,
                chosen=description.chosen,
                left_out=description.left_out,
            ),
        )


def _medians_of_others(sizes: Sequence[int]) -> list[int]:
    """Return for each device the median size of the others that have samples; where none has, its own size."""
    ordered = sorted(filter(None, sizes))
    others = len(ordered) - 1
    if others < 1:
        return list(sizes)
    low, high = (others - 1) // 2, others // 2  # the middle ones of the others
    places = (bisect_left(ordered, size) for size in sizes)
    return [(ordered[low + (low >= place)] + ordered[high + (high >= place)]) // 2 for place in places]


def last_line(reason: str | None) -> str:
    """Return the end of an error's text: of a traceback, the exception itself."""
    lines = (reason or "").strip().splitlines()
    return plain(lines[-1], 300) if lines else "no reason given"
