"""Secure sums of a run: devices in groups, five messages to each, and of each group its sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING, getLogger

from flwr.app import ConfigRecord, Message, RecordDict

from mobillm_flower.config import ALWAYS, NEVER, PrivacySettings
from mobillm_flower.errors import CacheError, PacketRejected, RunFailed, SumRefused
from mobillm_flower.runs import events
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.sums import check_sums, hold, require_room
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.wire import keys
from mobillm_flower.wire.masked import MaskedReply, open_masked, pack_masked_request, purpose_of
from mobillm_flower.wire.secure_sums import PHASES, SecureSumsServer
from mobillm_flower.wire.sums import SumsRequest

logger = getLogger("flwr")

MOST = 128
"""Most devices of a group: bytes and seconds a device stay the same in larger fleets."""
BEFORE_AGREEMENT = PHASES[:3]
"""Phases after which a group can be summed again without some: nobody has signed for a set yet."""
_ATTEMPTS = 3
_MODE, _GROUPS = "secure-sums", "secure-sums-groups"


@dataclass
class Group:
    """Devices of one backbone type whose sum the server gets.

    Parameters
    ----------
    devices : dict of str to DeviceState
        By pseudonym.
    request : SumsRequest
        What is summed.
    server : SecureSumsServer
        The sum, as far as it is.
    replies : dict of str to list of MaskedReply
        What each device answered, without the messages.
    """

    devices: dict[str, DeviceState]
    request: SumsRequest
    server: SecureSumsServer
    replies: dict[str, list[MaskedReply]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A pseudonym of its own, by which its sum is held."""
        return hashlib.sha256("|".join(sorted(self.devices)).encode()).hexdigest()[:32]


def are_secure(run: RunState, private: PrivacySettings) -> bool:
    """Whether the run's sums are secure; decided when it starts, and kept when it is gone on with.

    With `auto` they are where every backbone type has a third more devices than a sum is over at least, so that as many
    may drop out.
    """
    known = run.cache.meta(_MODE)
    if known is None:
        least, counts = private.secure_sums_devices, _by_type(list(run.fleet))
        enough = all(3 * len(devices) >= 4 * least for devices in counts.values())
        secure = private.secure_sums == ALWAYS or (private.secure_sums != NEVER and bool(counts) and enough)
        run.cache.set_meta(_MODE, known := "yes" if secure else "no")
    logger.log(INFO, "secure sums: %s", "yes" if known == "yes" else "no, the server gets each device's own sums")
    return known == "yes"


def groups_held(cache: ActivationCache) -> dict[str, list[str]]:
    """Return the groups whose sums are held, and the pseudonyms of their devices."""
    known: dict[str, list[str]] = json.loads(cache.meta(_GROUPS) or "{}")
    return {name: devices for name, devices in known.items() if cache.held(name)}


def grouped(cache: ActivationCache) -> frozenset[str]:
    """Return the devices whose sums are held in that of a group, by pseudonym."""
    return frozenset(device for devices in groups_held(cache).values() for device in devices)


def collect(run: RunState, private: PrivacySettings, config: ConfigRecord, *, round_: int) -> None:
    """Get the sum of each group, and hold it.

    A group that lost too many devices before it agreed on who survived is summed again without them. One whose sum
    cannot be right is left out, and named.

    Raises
    ------
    RunFailed
        No sum is held at the end; with the last reason.
    """
    reason, left_out = "no device has anything to send", set[str]()
    for _ in range(_ATTEMPTS):
        run.connections.meet()
        groups, too_few = _make_groups(run, private.secure_sums_devices, left_out)
        reason = too_few or reason
        if not groups:
            break
        again = False
        for group, phase, why in _sum_all(run, groups, config):
            reason = why
            run.folder.append(events.GroupRefused(group.name, len(group.devices), phase, why))
            logger.log(WARNING, "the sum of group %s of %d devices: %s", group.name[:8], len(group.devices), why)
            done = PHASES.index(phase)
            again = again or phase in BEFORE_AGREEMENT
            left_out |= {
                name
                for name in group.devices
                if phase not in BEFORE_AGREEMENT or len(group.replies.get(name, ())) <= done
            }
        for group in groups:
            if not group.server.phase and (refused := _commit(run, group, round_)):
                reason = refused
                left_out |= set(group.devices)
        if not again:
            break
    if not len(run.cache):
        raise RunFailed(f"no secure sum could be opened: {reason}")


def _by_type(devices: Sequence[DeviceState]) -> dict[str, list[DeviceState]]:
    types: dict[str, list[DeviceState]] = {}
    for device in sorted(devices, key=lambda device: device.description.pseudonym):
        types.setdefault(device.description.backbone.fingerprint, []).append(device)
    return types


def _make_groups(run: RunState, least: int, left_out: set[str]) -> tuple[list[Group], str]:
    """Return groups of those that have not sent yet, and why some are in none."""
    groups, too_few = list[Group](), ""
    busy = run.exchange.busy_nodes
    waiting = [
        device
        for device in run.fleet
        if device.active and device.node_id not in busy and device.description.pseudonym not in left_out
    ]
    for backbone, devices in _by_type(waiting).items():
        if len(devices) < least:
            too_few = (
                f"{len(devices)} device(s) of backbone type {backbone[:12]} wait, a sum is over at least {least}; "
                "connect more, or lower privacy.secure-sums-devices"
            )
            logger.log(WARNING, "%s", too_few)
            continue
        request = SumsRequest(run.plan.contract, run.plan.specs[backbone], run.plan.sums[backbone], frozenset())
        count = -(-len(devices) // MOST)
        run_id = Message(RecordDict(), dst_node_id=devices[0].node_id, message_type=keys.SECURE_SUM).metadata.run_id
        for number in range(count):
            named = {device.description.pseudonym: device for device in devices[number::count]}
            server = SecureSumsServer(
                list(named),
                run=run_id,
                purpose=purpose_of(request),
                words=request.sums.shape.num_words,
                bits=request.sums.scale.bits,
                minimum=least,
            )
            groups.append(Group(named, request, server))
    return groups, too_few


def _sum_all(run: RunState, groups: Sequence[Group], config: ConfigRecord) -> Iterator[tuple[Group, str, str]]:
    """Run all phases of all groups side by side; yields those that are refused, the phase, and why."""
    going = list(groups)
    while going and going[0].server.phase:
        owners = {pseudonym: group for group in going for pseudonym in group.devices}
        messages = [
            run.connections.message(
                group.devices[pseudonym], pack_masked_request(group.request, asked), keys.SECURE_SUM, config
            )
            for group in going
            for pseudonym, asked in group.server.requests().items()
        ]
        for reply in run.exchange.exchange(messages, keys.SECURE_SUM):
            device = run.connections.sender(reply)
            content = None if device is None else run.fleet.content(device, reply)
            if device is None or content is None:
                continue
            pseudonym = device.description.pseudonym
            group = owners[pseudonym]
            try:
                answer = open_masked(content, request=group.request)
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


def _commit(run: RunState, group: Group, round_: int) -> str:
    """Check a group's sum and hold it; returns why not."""
    members = [group.devices[pseudonym] for pseudonym in group.server.members]
    described = sum(device.description.num_train for device in members)
    try:
        samples = check_sums(group.server.total, group.request.sums, most=described) or described
        require_room(run.cache, run.plan.sums, samples)
    except (PacketRejected, CacheError) as error:
        run.folder.append(events.GroupRefused(group.name, len(members), "the sum", str(error)))
        logger.log(WARNING, "the sum of group %s cannot be right and is left out: %s", group.name[:8], error)
        return str(error)
    known = json.loads(run.cache.meta(_GROUPS) or "{}")
    run.cache.set_meta(_GROUPS, json.dumps({**known, group.name: list(group.server.members)}))
    hold(
        run.cache,
        group.server.total,
        pseudonym=group.name,
        release=group.server.offer.nonce[:16],
        samples=samples,
        backbone=group.request.spec.backbone,
        round_=round_,
    )
    run.folder.append(events.GroupSummed(group.name, list(group.server.members), samples))
    for device in members:
        replies = group.replies[device.description.pseudonym]
        event = events.Window(
            round=round_,
            device=device.record.device,
            window=1,
            samples=device.description.num_train,
            new=device.description.num_train,
            remaining=0,
            refused=0,
            bytes=sum(reply.num_bytes for reply in replies),
            forward_seconds=round(sum(reply.forward_seconds for reply in replies), 4),
        )
        device.count(event, peak_memory_bytes=max(reply.peak_memory_bytes for reply in replies))
        device.done = True
        run.folder.append(event)
    return ""
