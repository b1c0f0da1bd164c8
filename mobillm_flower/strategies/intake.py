"""Samples on their way in: requests for windows, checks of what comes, commits, strikes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from logging import WARNING, getLogger

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from mobillm_flower.config import RoundSettings
from mobillm_flower.errors import CacheFull, PacketRejected
from mobillm_flower.runs import events
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.wire import keys
from mobillm_flower.wire.messages import WindowRequest, pack_request
from mobillm_flower.wire.window import Window, most_rows, open_window

logger = getLogger("flwr")

_MOST_OF_ONE = 100  # times what the others say that they have, in the median, that one device may send
_HEADER_BYTES = 1 << 20  # what a packet may have beside the samples' own bytes


class Intake:
    """Asks devices for windows and commits what they send.

    Parameters
    ----------
    rounds : RoundSettings
        Of which the sizes of windows are used.
    """

    asks = keys.EXTRACT
    """Type of the messages that ask for data."""

    def __init__(self, rounds: RoundSettings) -> None:
        self._window, self._max_bytes = rounds.window, rounds.max_window_mib << 20

    def requests(
        self,
        run: RunState,
        devices: Iterable[DeviceState],
        server_round: int,
        config: ConfigRecord,
        *,
        at_most: int | None = None,
    ) -> Iterator[Message]:
        """Yield a request for those devices that have data left and no message out."""
        busy = run.exchange.busy_nodes
        idle = [device for device in devices if device.active and device.node_id not in busy]
        for device in idle[:at_most]:
            device.asked_at = run.connections.clock.now()
            yield run.connections.message(device, self.request(run, device, server_round), self.asks, config)

    def request(self, run: RunState, device: DeviceState, round_: int) -> RecordDict:
        """Return what a device is asked for: its next window."""
        device.window = device.window or self._window
        return pack_request(
            WindowRequest(
                contract=run.plan.contract,
                spec=run.plan.specs[device.description.backbone.fingerprint],
                round=round_,
                window=device.window,
                max_bytes=self._max_bytes,
                held=run.cache.held(device.description.pseudonym),
            )
        )

    def take(self, run: RunState, replies: Iterable[Message], server_round: int) -> MetricRecord:
        """Check and commit windows as they arrive; nothing of a bad one is kept."""
        samples = rejected = 0
        for reply in replies:
            device = run.connections.sender(reply)
            if device is None:
                continue
            try:
                content = run.fleet.content(device, reply)
                samples += 0 if content is None else self.commit(run, device, content, server_round)
            except PacketRejected as error:
                rejected += 1
                run.fleet.strike(device, error)
            except CacheFull as error:
                _stop_asking(run, error)
        values: dict[str, int | float | list[int] | list[float]] = {
            keys.NUM_EXAMPLES: samples,
            "num-held": run.num_held,
            "num-rejected": rejected,
            "cache-bytes": run.cache.num_bytes,
        }
        return MetricRecord(values)

    def commit(self, run: RunState, device: DeviceState, content: RecordDict, round_: int) -> int:
        """Open, check and commit what a device sent; returns the number of new samples.

        Raises
        ------
        PacketRejected
            It breaks a rule.
        CacheFull
            The cache's quota is used up.
        """
        backbone = device.description.backbone.fingerprint
        window = open_window(
            content,
            spec=run.plan.specs[backbone],
            contract=run.plan.contract,
            max_samples=device.window,
            max_bytes=self._max_bytes + _HEADER_BYTES,
        )
        _require_as_described(window, device)
        held = run.cache.held(window.pseudonym, of_all_tasks=True)  # no row is taken twice, of whatever task
        new = sum(sample.release not in held for sample in window.samples)
        if window.remaining and new < self._least_new(run, device, window):
            raise PacketRejected(
                "progress",
                f"{new} of {device.window} samples asked for are new, and {window.remaining} are said to remain",
            )
        added = run.cache.add(window.pseudonym, window.samples, backbone=backbone, round_=round_)
        run.stopping.count_upload(window.num_bytes)
        run.folder.append(device.take_window(window, new=added, round_=round_))
        self._end_a_flood(run, device)
        return added

    def _least_new(self, run: RunState, device: DeviceState, window: Window) -> int:
        """Return how many new samples a window must have while more remain: all that were asked for, if they fit."""
        sizes = [sample.num_bytes for sample in window.samples]
        of_a_row = max((size / sample.tokens for size, sample in zip(sizes, window.samples, strict=True)), default=0.0)
        rows = most_rows(run.plan.specs[device.description.backbone.fingerprint], run.plan.contract)
        return device.window if sum(sizes) + rows * of_a_row * 2 <= self._max_bytes else 1

    def _end_a_flood(self, run: RunState, device: DeviceState) -> None:
        """Ask a device for no more when it has sent far more than the others have, whoever of them is done.

        What they say they have is compared, not what is held of them: that is little at first of those that are slow.
        """
        if device.done or device.description.num_train < _MOST_OF_ONE * self._window:
            return
        typical = run.fleet.typical_size(device)
        if len(run.cache.held(device.description.pseudonym)) >= _MOST_OF_ONE * max(self._window, typical):
            run.fleet.drop(device, f"it sent {_MOST_OF_ONE} times as many samples as the other devices have")


def _require_as_described(window: Window, device: DeviceState) -> None:
    """Check that a packet fits what its device said of itself."""
    if window.pseudonym != device.description.pseudonym:
        raise PacketRejected("pseudonym", "the packet names another device than the node it came from")
    if window.total != device.description.num_train:
        raise PacketRejected(
            "total", f"{window.total} samples, {device.description.num_train} were described; the data has changed"
        )


def _stop_asking(run: RunState, error: CacheFull) -> None:
    """Train on what is held: a full cache ends the ingestion, not the run."""
    if any(device.active for device in run.fleet):
        run.folder.append(events.CacheFull(str(error)))
        logger.log(WARNING, "no more samples are taken: %s", error)
    for device in run.fleet:
        device.done = True
