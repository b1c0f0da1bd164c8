"""Secure sums of a run: devices in groups, five messages to each, and of each group its sum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from logging import WARNING, getLogger

from flwr.app import ConfigRecord, RecordDict

from mobillm_flower.config import ALWAYS, NEVER, PrivacySettings
from mobillm_flower.errors import CacheError, PacketRejected, RunFailed
from mobillm_flower.runs import device_events
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.sums import check_sums, hold, require_room
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.strategies.secure_phases import Group, new_group, sum_groups
from mobillm_flower.wire import keys
from mobillm_flower.wire.masked import purpose_of, with_message
from mobillm_flower.wire.secure_sums import PHASES
from mobillm_flower.wire.sums import SumsRequest, pack_sums_request

logger = getLogger("flwr")

MOST = 128
"""Most devices of a group: bytes and seconds a device stay the same in larger fleets."""
BEFORE_AGREEMENT = PHASES[:3]
"""Phases after which a group can be summed again without some: nobody has signed for a set yet."""
_ATTEMPTS = 3
_MODE, _GROUPS = "secure-sums", "secure-sums-groups"


def are_secure(run: RunState, private: PrivacySettings) -> bool:
    """Whether the run's sums are secure; decided when it starts, and kept when it is gone on with.

    With `auto` they are where every backbone type has a third more devices than a sum is over at least, so that as many
    may drop out.
    """
    known = run.cache.read_meta(_MODE, {"yes": True, "no": False}.__getitem__, default=None)
    if known is None:
        least, counts = private.secure_sums_devices, _by_type(list(run.fleet))
        enough = all(3 * len(devices) >= 4 * least for devices in counts.values())
        known = private.secure_sums == ALWAYS or (private.secure_sums != NEVER and bool(counts) and enough)
        run.cache.set_meta(_MODE, "yes" if known else "no")
    return known


def groups_held(cache: ActivationCache) -> dict[str, list[str]]:
    """Return the groups whose sums are held, and the pseudonyms of their devices."""
    return {name: devices for name, devices in _groups(cache).items() if cache.held(name)}


def _groups(cache: ActivationCache) -> dict[str, list[str]]:
    return cache.read_meta(_GROUPS, lambda text: dict(json.loads(text)), default={})


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
        run.fleet.drop_too_large()
        groups, too_few = _make_groups(run, private.secure_sums_devices, left_out)
        reason = too_few or reason
        if not groups:
            break
        again = False
        for group, phase, why in sum_groups(run, groups, config):
            reason = why
            run.folder.append(device_events.GroupRefused(group.name, len(group.devices), phase, why))
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
    if not run.cache.num_of_task:
        raise RunFailed(f"no secure sum could be opened: {reason}")


def _by_type(devices: Sequence[DeviceState]) -> dict[str, list[DeviceState]]:
    types: dict[str, list[DeviceState]] = {}
    for device in sorted(devices, key=lambda device: device.description.pseudonym):
        types.setdefault(device.description.backbone.fingerprint, []).append(device)
    return types


def num_groups(num_devices: int, least: int) -> int:
    """Return in how many groups devices add up: of at most `MOST`, unless one would then be smaller than the least."""
    return max(1, min(-(-num_devices // MOST), num_devices // least))


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
        request = sums_request(run, backbone)
        for number in range(count := num_groups(len(devices), least)):
            groups.append(
                new_group(
                    {device.description.pseudonym: device for device in devices[number::count]},
                    kind=keys.SECURE_SUM,
                    pack=partial(_pack, request),
                    purpose=purpose_of(request),
                    words=request.sums.shape.num_words,
                    bits=request.sums.scale.bits,
                    least=least,
                )
            )
    return groups, too_few


def sums_request(run: RunState, backbone: str, held: frozenset[bytes] = frozenset()) -> SumsRequest:
    """Return what devices of a type are asked for, of which the server holds releases."""
    return SumsRequest(run.plan.contract, run.plan.specs[backbone], run.plan.sums[backbone], held)


def _pack(request: SumsRequest, _phase: str, message: bytes) -> RecordDict:
    return with_message(pack_sums_request(request), message)


def _commit(run: RunState, group: Group, round_: int) -> str:
    """Check a group's sum and hold it; returns why not."""
    members = [group.devices[pseudonym] for pseudonym in group.server.members]
    backbone = members[0].description.backbone.fingerprint
    sums = run.plan.sums[backbone]
    of_each = run.fleet.most_in_sums()
    most = sum(of_each[device.node_id] for device in members)
    try:
        samples = check_sums(group.server.total, sums, most=most, devices=len(members)) or most
        require_room(run.cache, run.plan.sums, samples)
    except (PacketRejected, CacheError) as error:
        run.folder.append(device_events.GroupRefused(group.name, len(members), "the sum", str(error)))
        logger.log(WARNING, "the sum of group %s cannot be right and is left out: %s", group.name[:8], error)
        return str(error)
    run.cache.set_meta(_GROUPS, json.dumps({**_groups(run.cache), group.name: list(group.server.members)}))
    hold(
        run.cache,
        group.server.total,
        pseudonym=group.name,
        release=group.server.offer.nonce[:16],
        samples=samples,
        backbone=backbone,
        round_=round_,
    )
    run.folder.append(device_events.GroupSummed(group.name, list(group.server.members), samples))
    for device in members:
        replies = group.replies[device.description.pseudonym]
        run.folder.append(device.take_sums(replies, samples=device.description.num_train, round_=round_))
    return ""
