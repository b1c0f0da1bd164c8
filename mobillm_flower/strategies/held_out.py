"""The metric on samples that were left out of sums: tallies of the devices, or of groups alone, added up."""

from __future__ import annotations

from collections.abc import Mapping
from logging import INFO, WARNING, getLogger

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from mobillm_flower.config import Settings
from mobillm_flower.core.sums import Words, add_words, lift
from mobillm_flower.core.tally import metric_of
from mobillm_flower.errors import PacketRejected, SumRefused
from mobillm_flower.runs import events
from mobillm_flower.strategies.evaluation import network_request
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.strategies.secure_groups import are_secure, groups_held
from mobillm_flower.strategies.secure_phases import Group, new_group, sum_groups
from mobillm_flower.wire import keys
from mobillm_flower.wire.held_out import (
    BITS,
    check_tally,
    num_words,
    open_tally,
    pack_held_out,
    purpose_of_tally,
)
from mobillm_flower.wire.masked import with_message

logger = getLogger("flwr")


def measure_held_out(run: RunState, settings: Settings, *, round_: int) -> None:
    """Ask devices whose sums are held for tallies of what these left out, and log the metric of their sum.

    Under secure sums the groups are those of the sums, and one of which too few devices are left is left out.
    """
    contents = _contents(run, settings)
    if are_secure(run, settings.privacy):
        tallies = _of_groups(run, contents, settings.privacy.secure_sums_devices)
    else:
        tallies = _of_devices(run, contents)
    if not tallies:
        return
    contract = run.plan.contract
    total = lift(add_words(words for words, _ in tallies))
    metrics, devices = metric_of(total, contract.metric, numbers=contract.is_regression), sum(n for _, n in tallies)
    if metrics:
        run.folder.append(events.HeldOut(round_, int(total[0]), devices, metrics))
        logger.log(INFO, "on %d samples that the sums left out: %s", total[0], metrics)


def _contents(run: RunState, settings: Settings) -> dict[str, RecordDict]:
    """Return the request by backbone type, of those that sent sums."""
    state = run.arrays().to_torch_state_dict()
    contents = {}
    for backbone in run.cache.rows().names("backbone"):
        request = network_request(run, backbone, state, held=frozenset(), codec=settings.side_network.codec)
        contents[backbone] = pack_held_out(request, settings.trainer.validation_share)
    return contents


def _of_devices(run: RunState, contents: Mapping[str, RecordDict]) -> list[tuple[Words, int]]:
    tallies = []
    busy = run.exchange.busy_nodes
    asked = [
        device
        for device in run.fleet
        if not device.record.dropped and device.node_id not in busy and run.cache.held(device.description.pseudonym)
    ]
    messages = [
        run.connections.message(
            device, contents[device.description.backbone.fingerprint], keys.HELD_OUT_TALLY, ConfigRecord()
        )
        for device in asked
    ]
    for reply in run.exchange.exchange(messages, keys.HELD_OUT_TALLY):
        device = run.connections.sender(reply)
        content = None if device is None else run.fleet.content(device, reply, optional=True)
        if device is None or content is None:
            continue
        try:
            tallies.append((open_tally(content, run.plan.contract, most=device.description.num_train), 1))
        except PacketRejected as error:
            run.fleet.strike(device, error)
    return tallies


def _of_groups(run: RunState, contents: Mapping[str, RecordDict], least: int) -> list[tuple[Words, int]]:
    contract = run.plan.contract
    there = {device.description.pseudonym: device for device in run.fleet if not device.record.dropped}
    groups: list[Group] = []
    for name, pseudonyms in groups_held(run.cache).items():
        devices = {one: there[one] for one in pseudonyms if one in there}
        missing = len(pseudonyms) - len(devices)
        if len(devices) < least or 0 < missing < least:  # the sums' difference would be fewer devices: they refuse
            logger.log(WARNING, "group %s has too few devices left for its held-out metric, or lacks too few", name[:8])
            continue
        backbone = next(iter(devices.values())).description.backbone.fingerprint
        content = contents[backbone]

        def pack(phase: str, message: bytes, content: RecordDict = content) -> RecordDict:
            sent = dict(content)
            if phase != "masked sums":  # the side network goes down once
                sent[keys.SIDE_NETWORK] = ArrayRecord()
            return with_message(RecordDict(sent), message)

        groups.append(
            new_group(
                devices,
                kind=keys.HELD_OUT_TALLY,
                pack=pack,
                purpose=purpose_of_tally(content),
                words=num_words(contract),
                bits=BITS,
                least=least,
            )
        )
    for group, phase, why in sum_groups(run, groups, ConfigRecord(), optional=True):
        logger.log(WARNING, "held-out metric of group %s: %s in the phase %s", group.name[:8], why, phase)
    tallies = []
    for group in groups:
        try:
            total, members = group.server.total, group.server.members
            check_tally(total, contract, most=sum(group.devices[one].description.num_train for one in members))
        except (SumRefused, PacketRejected) as error:
            logger.log(WARNING, "held-out metric of group %s is left out: %s", group.name[:8], error)
        else:
            tallies.append((total, len(members)))
    return tallies
