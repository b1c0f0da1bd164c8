"""The phases of secure sums over groups of devices, side by side: what is asked, and what comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict

from mobillm_flower.errors import PacketRejected, SumRefused
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.wire.masked import MaskedReply, open_masked
from mobillm_flower.wire.secure_sums import SecureSumsServer


@dataclass
class Group:
    """Devices of one backbone type whose sum the server gets.

    Parameters
    ----------
    devices : dict of str to DeviceState
        By pseudonym.
    kind : str
        The type of its messages.
    pack : callable
        From a phase and the protocol's message to the records that are sent.
    server : SecureSumsServer
        The sum, as far as it is.
    replies : dict of str to list of MaskedReply
        What each device answered, without the messages.
    """

    devices: dict[str, DeviceState]
    kind: str
    pack: Callable[[str, bytes], RecordDict]
    server: SecureSumsServer
    replies: dict[str, list[MaskedReply]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A pseudonym of its own, by which its sum is held."""
        return hashlib.sha256("|".join(sorted(self.devices)).encode()).hexdigest()[:32]

    @property
    def vector_bytes(self) -> int:
        """Bytes of what is summed."""
        return self.server.offer.words * self.server.offer.bits // 8


def new_group(
    devices: dict[str, DeviceState],
    *,
    kind: str,
    pack: Callable[[str, bytes], RecordDict],
    purpose: str,
    words: int,
    bits: int,
    least: int,
) -> Group:
    """Begin a secure sum over devices, of at least so many; parameters as of `Group` and `Offer`."""
    run_id = Message(RecordDict(), dst_node_id=next(iter(devices.values())).node_id, message_type=kind).metadata.run_id
    server = SecureSumsServer(list(devices), run=run_id, purpose=purpose, words=words, bits=bits, minimum=least)
    return Group(devices, kind, pack, server)


def sum_groups(
    run: RunState, groups: Sequence[Group], config: ConfigRecord, *, optional: bool = False
) -> Iterator[tuple[Group, str, str]]:
    """Run all phases of groups of one kind; yields those that are refused, the phase, and why.

    With `optional` a device that refuses still takes part in all else.
    """
    going = list(groups)
    while going and going[0].server.phase:
        kind, owners = going[0].kind, {pseudonym: group for group in going for pseudonym in group.devices}
        messages = [
            run.connections.message(group.devices[pseudonym], group.pack(group.server.phase, asked), kind, config)
            for group in going
            for pseudonym, asked in group.server.requests().items()
        ]
        for reply in run.exchange.exchange(messages, kind):
            device = run.connections.sender(reply)
            content = None if device is None else run.fleet.content(device, reply, optional=optional)
            if device is None or content is None:
                continue
            pseudonym = device.description.pseudonym
            group = owners[pseudonym]
            try:
                answer = open_masked(content, vector_bytes=group.vector_bytes)
                group.server.receive(pseudonym, answer.message)
            except PacketRejected as error:
                run.fleet.strike(device, error)
                continue
            device.failures_in_a_row = 0
            run.stopping.count_upload(answer.num_bytes)
            measured = MaskedReply(b"", answer.forward_seconds, answer.peak_memory_bytes, answer.num_bytes)
            group.replies.setdefault(pseudonym, []).append(measured)
        for group in list(going):
            try:
                group.server.close()
            except SumRefused as error:
                going.remove(group)
                yield group, group.server.phase, str(error)
