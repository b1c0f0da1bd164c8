"""Fed MobiLLM (arXiv 2508.06765): one shared side network, no barrier between devices."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import needs_of
from mobillm_flower.errors import MismatchError
from mobillm_flower.runs import events
from mobillm_flower.server.plan import last_round, note_backbones, note_round
from mobillm_flower.strategies.base import STRATEGIES
from mobillm_flower.strategies.fleet import DeviceState
from mobillm_flower.strategies.pae import PaeMobiLLM
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.wire import keys


@STRATEGIES.register("fed")
class FedMobiLLM(PaeMobiLLM):
    """As PAE, without rounds: a device is asked for its next window as soon as its last one is committed.

    Windows are gathered in a buffer. When it holds windows of `arrivals.buffer` distinct devices it is closed, and
    `arrivals.steps` steps follow; `arrivals.replay` of each batch is drawn from all samples held, the rest from the
    closed buffer. Devices may have different backbones; each type has its own alignment, and a type may join late.
    Nobody waits for anybody: a late device is dropped when `rounds.max-failures` deadlines in a row have passed
    without its answer, an absent one when it was away for `rounds.timeout-s`.

    What a buffer held is stored with the samples, so that training can be replayed from the cache.
    """

    preset = "fed"

    def planned_rounds(self, num_train: Sequence[int]) -> int:
        """Return how many buffers will be closed, if all devices send all their windows."""
        window, growing = self.settings.rounds.window, self.settings.arrivals.grow_windows
        windows = (-(-count // window) for count in num_train)
        return 1 + sum(w.bit_length() if growing else w for w in windows) // self.settings.arrivals.buffer

    def overlap(self) -> dict[str, Any]:
        """Return the steps after a closed buffer."""
        arrivals = self.settings.arrivals
        steps = 0 if arrivals.ingest_first else arrivals.steps
        return {"overlap_steps": steps, "fresh_share": 1 - arrivals.replay}

    def accept(self, backbone: BackboneInfo) -> None:
        """Take in a backbone type at any time, if it is deep enough for the run's blocks."""
        if not hasattr(self, "plan") or backbone.fingerprint in self.plan.specs:
            return
        name = self.plan.side_config.name
        if self.plan.contract.per_token or needs_of(name).one_type:
            raise MismatchError(
                f"backbone {backbone.name} is not the run's: language modelling and some side networks "
                f"(side-network.name={name}) take one backbone type; give this device the others' backbone"
            )
        blocks = self.plan.side_config.num_blocks
        if backbone.depth < blocks:
            raise MismatchError(
                f"backbone {backbone.name} has {backbone.depth} layers, the run samples {blocks} blocks; start a run "
                f"with this device in it, or with activations.num-blocks={backbone.depth}"
            )
        self.plan = self.plan.joined_by(extraction_spec(backbone, self.settings, num_blocks=blocks))
        self.plan.store(self.cache)
        note_backbones(self.cache, {backbone.fingerprint: dataclasses.asdict(backbone)})
        self.trainer.loader.specs[backbone.fingerprint] = self.plan.specs[backbone.fingerprint]
        self.trainer.grow(self.plan.side_config.build(), backbone.fingerprint)
        self.run.append(events.TypeJoined(backbone.name, backbone.depth, backbone.width))

    def ingest(self, grid: Grid, num_rounds: int, config: ConfigRecord) -> int:
        """Ask, commit, train, ask again; returns the number of the last buffer."""
        self._catch_up()
        first = self._buffer = max(1, last_round(self.cache))
        held = self.cache.rows()
        self._in_buffer = {row.device for row in held.take(held.column("round") == self._buffer)}
        self._closed: deque[int] = deque()
        while not num_rounds or self._buffer - first < num_rounds:
            self.exchange.push(self._greetings(grid))
            for reply in self.exchange.pull(keys.DESCRIBE):
                self._welcome(reply)
            self._say_goodbye()
            if self.stopping.ends_ingestion() or self._has_enough():
                break
            self.exchange.push(self.configure_train(self._buffer, ArrayRecord(), config, grid))
            if not self.exchange.out(keys.EXTRACT) and not self._expects_somebody():
                break
            replies = self.exchange.pull(keys.EXTRACT)
            for reply in replies:
                self._take(reply)
            if self._closed:
                self.exchange.push(self.configure_train(self._buffer, ArrayRecord(), config, grid))
                self._train(self._closed.popleft())
            for kind in (keys.EXTRACT, keys.DESCRIBE):
                self.exchange.note_late(kind)
            if not replies and not self._closed:
                self.clock.sleep(self.poll_s)
        while self._closed:
            self._train(self._closed.popleft())
        return self._buffer

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a request for each connected, idle device with data left, up to `arrivals.max-in-flight`."""
        most = self.settings.arrivals.max_in_flight
        free = most - len(self.exchange.out(keys.EXTRACT)) if most else None
        # those that sent least come first, so that a bound on requests in flight starves nobody
        idle = self.present - self.exchange.busy_nodes  # the fleet as a whole is not sorted at each arrival
        waiting = [device for device in self.fleet if device.active and device.node_id in idle]
        waiting.sort(key=lambda device: (device.samples, device.node_id))
        return self.request_windows(waiting, server_round, config, at_most=free)

    def _take(self, reply: Message) -> None:
        """Commit one window, grow its device's next, and close the buffer if it is full."""
        node = self.exchange.node_of(reply)
        device = self.fleet.devices.get(node) if node is not None else None
        before = device.samples if device else 0
        _, metrics = self.aggregate_train(self._buffer, [reply])
        if device is None or metrics is None:
            return
        self.result.train_metrics_clientapp[self._buffer] = metrics
        if device.samples == before:
            return
        self._in_buffer.add(device.description.pseudonym)
        self._grow_window(device)
        if len(self._in_buffer) >= self.settings.arrivals.buffer:
            self.run.append(events.Round.of(self._buffer, dict(metrics)))
            self._buffer += 1
            self._in_buffer = set()
            note_round(self.cache, self._buffer)  # what comes from now on belongs to the next buffer
            self._closed.append(self._buffer)

    def _train(self, round_: int) -> None:
        """Take the steps that follow a closed buffer."""
        while self.trainer.overlap_step(round_):
            pass
        every = self.settings.rounds.evaluate_every * max(1, len(self.fleet))
        if every and round_ % every == 0:
            self._evaluate_centrally(round_)

    def _grow_window(self, device: DeviceState) -> None:
        """Double the window while sending it costs over a tenth of computing it (DESIGN: windows sized per device)."""
        spent = self.clock.now() - device.asked_at
        if self.settings.arrivals.grow_windows and device.last_forward_seconds < 0.9 * spent:
            device.window = min(2 * device.window, max(device.window, device.description.num_train))

    def _say_goodbye(self) -> None:
        """Drop devices that have been away for too long; take back those that were dropped for it and are there."""
        now = self.clock.now()
        for device in self.fleet:
            away = now - device.seen_at
            if device.active and device.node_id not in self.present and away > self.timeout:
                device.left = True
                self.fleet.drop(device, f"not connected for {away:.0f} s")
            elif device.left and device.node_id in self.present:
                device.left, device.dropped, device.failures = False, "", 0
                self.run.append(events.Returned(device.description.pseudonym))

    def _expects_somebody(self) -> bool:
        """Whether a device with data left may still be heard of: it is connected, or was until a moment ago."""
        return any(device.active for device in self.fleet) or bool(self.exchange.out(keys.DESCRIBE))

    def _has_enough(self) -> bool:
        enough = self.settings.arrivals.enough
        if enough == 1:
            return False
        return len(self.cache) >= enough * sum(device.description.num_train for device in self.fleet)
