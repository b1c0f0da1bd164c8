"""Fed MobiLLM (arXiv 2508.06765): one shared side network, no barrier between devices."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from mobillm_flower.config.parts.backbone import ONE_MODEL_TWO_TYPES
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.side_networks import needs_of
from mobillm_flower.errors import MismatchError
from mobillm_flower.runs import events
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import last_round, note_round
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.pae import PaeMobiLLM
from mobillm_flower.strategies.registry import STRATEGIES
from mobillm_flower.strategies.run_plan import Overlap
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.wire import keys


@dataclass
class Buffers:
    """Arrivals between two closed buffers.

    Parameters
    ----------
    number : int
        The open buffer's; it is the round that its samples are committed in.
    devices : set of str
        Pseudonyms of those with a window in the open buffer.
    closed : deque of int
        Rounds that steps are still to be taken for: each the one after a closed buffer.
    """

    number: int
    devices: set[str]
    closed: deque[int] = field(default_factory=deque)

    @classmethod
    def gone_on_with(cls, cache: ActivationCache) -> Buffers:
        """Return what a cache says of the buffer that was open last."""
        number, held = max(1, last_round(cache)), cache.rows()
        return cls(number, {row.device for row in held.take(held.column("round") == number)})

    def close(self) -> int:
        """Close the open buffer; returns the number of the next."""
        self.number, self.devices = self.number + 1, set()
        self.closed.append(self.number)
        return self.number


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

    def overlap(self, num_train: Sequence[int]) -> Overlap:
        """Return the steps after each closed buffer, if all devices send all their windows."""
        arrivals, window = self.settings.arrivals, self.settings.rounds.window
        windows = (-(-count // window) for count in num_train)
        sent = sum(number.bit_length() if arrivals.grow_windows else number for number in windows)
        return Overlap(
            rounds=1 + sent // arrivals.buffer,
            steps=0 if arrivals.ingest_first else arrivals.steps,
            fresh_share=1 - arrivals.replay,
        )

    def accept(self, backbone: BackboneInfo) -> None:
        """Take in a backbone type at any time, if it is deep enough for the run's blocks."""
        if backbone.fingerprint in self.plan.specs:
            return
        name = self.plan.side_config.name
        if self.plan.contract.per_token or needs_of(name).one_type:
            raise MismatchError(
                f"backbone {backbone.name} is not the run's: language modelling and some side networks "
                f"(side-network.name={name}) take one backbone type; give this device the others' backbone "
                f"({ONE_MODEL_TWO_TYPES})"
            )
        blocks = len(next(iter(self.plan.specs.values())).layers)
        if backbone.depth < blocks:
            raise MismatchError(
                f"backbone {backbone.name} has {backbone.depth} layers, the run samples {blocks} blocks; start a run "
                f"with this device in it, or with activations.num-blocks={backbone.depth}"
            )
        scheme = next(iter(self.plan.specs.values())).scheme
        outputs = self.plan.contract.num_outputs
        spec = extraction_spec(backbone, self.settings, num_blocks=blocks, num_outputs=outputs, scheme=scheme)
        self.run.add_type(backbone, spec, self.settings)

    def ingest(self, grid: Grid, num_rounds: int, config: ConfigRecord) -> int:
        """Ask, commit, train, ask again; returns the number of the last buffer."""
        run, exchange = self.run, self.run.exchange
        run.catch_up()
        buffers = Buffers.gone_on_with(run.cache)
        first = buffers.number
        while not num_rounds or buffers.number - first < num_rounds:
            exchange.push(run.connections.greetings())
            for reply in exchange.pull(keys.DESCRIBE):
                run.connections.welcome(reply)
            run.connections.note_absent()
            if run.stopping.ends_ingestion() or self._has_enough():
                break
            exchange.push(self.configure_train(buffers.number, ArrayRecord(), config, grid))
            if not exchange.out(keys.EXTRACT) and not self._expects_somebody():
                break
            replies = exchange.pull(keys.EXTRACT)
            for reply in replies:
                self._take(reply, buffers)
            if buffers.closed:
                exchange.push(self.configure_train(buffers.number, ArrayRecord(), config, grid))
                self._take_steps(buffers.closed.popleft())
            for kind in (keys.EXTRACT, keys.DESCRIBE):
                exchange.note_late(kind)
            if not replies and not buffers.closed:
                self.clock.sleep(self.poll_s)
        while buffers.closed:
            self._take_steps(buffers.closed.popleft())
        return buffers.number

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a request for each connected, idle device with data left, up to `arrivals.max-in-flight`."""
        most = self.settings.arrivals.max_in_flight
        connections = self.run.connections
        free = most - len(connections.exchange.out(keys.EXTRACT)) if most else None
        # those that sent least come first, so that a bound on requests in flight starves nobody
        idle = (
            connections.present - connections.exchange.busy_nodes
        )  # the fleet as a whole is not sorted at each arrival
        waiting = [device for device in self.fleet if device.active and device.node_id in idle]
        waiting.sort(key=lambda device: (device.record.samples, device.node_id))
        return self.request_windows(waiting, server_round, config, at_most=free)

    def _take(self, reply: Message, buffers: Buffers) -> None:
        """Commit one window, grow its device's next, and close the buffer if it is full."""
        run = self.run
        node = run.exchange.node_of(reply)
        device = run.fleet.devices.get(node) if node is not None else None
        before = device.record.samples if device else 0
        _, metrics = self.aggregate_train(buffers.number, [reply])
        if device is None or metrics is None:
            return
        run.result.train_metrics_clientapp[buffers.number] = metrics
        if device.record.samples == before:
            return
        buffers.devices.add(device.description.pseudonym)
        self._grow_window(device)
        if len(buffers.devices) >= self.settings.arrivals.buffer:
            run.folder.append(events.Round.of(buffers.number, dict(metrics)))
            note_round(run.cache, buffers.close())  # what comes from now on belongs to the next buffer

    def _take_steps(self, round_: int) -> None:
        """Take the steps that follow a closed buffer."""
        self.run.take_steps_of(round_)
        every = self.settings.rounds.evaluate_every * max(1, len(self.fleet))
        if every and round_ % every == 0:
            self.evaluation.at_the_server(self.run, round_)

    def _grow_window(self, device: DeviceState) -> None:
        """Double the window while sending it costs over a tenth of computing it (DESIGN: windows sized per device)."""
        spent = self.clock.now() - device.asked_at
        if self.settings.arrivals.grow_windows and device.last_forward_seconds < 0.9 * spent:
            device.window = min(2 * device.window, max(device.window, device.description.num_train))

    def _expects_somebody(self) -> bool:
        """Whether a device with data left may still be heard of: it is connected, or was until a moment ago."""
        return any(device.active for device in self.fleet) or bool(self.run.exchange.out(keys.DESCRIBE))

    def _has_enough(self) -> bool:
        enough = self.settings.arrivals.enough
        if enough == 1:
            return False
        return self.cache.num_of_task >= enough * sum(self.fleet.sizes())
