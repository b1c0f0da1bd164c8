"""The push/pull loop that the strategies share.

Each round asks every device for its next window; the server takes a fixed number of steps on what was committed
before the round while devices compute; then epochs follow until the data is used up. A failing device, a late one, a
bad packet is counted, reported and survived.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from mobillm_flower.config import Settings, load_settings, run_folder, to_yaml
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.registry import Registry
from mobillm_flower.core.side_networks import state_for
from mobillm_flower.errors import CacheFull, MismatchError, MobiLLMError, PacketRejected, RunFailed
from mobillm_flower.models.side_tuned import save_side_network
from mobillm_flower.runs import events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.diagnosis import diagnose
from mobillm_flower.server.plan import (
    TrainingPlan,
    known_backbones,
    last_round,
    note_backbones,
    note_round,
    note_stop,
    note_warm_start,
)
from mobillm_flower.strategies.averages import Average
from mobillm_flower.strategies.exchange import Clock, Exchange
from mobillm_flower.strategies.fleet import DeviceState, Fleet
from mobillm_flower.strategies.run_plan import (
    differences,
    frozen_parts,
    make_plan,
    prediction_rule,
    require_used,
    training_device,
)
from mobillm_flower.strategies.stopping import Stopping
from mobillm_flower.tasks.extraction import release_guarantee
from mobillm_flower.wire import keys
from mobillm_flower.wire.messages import (
    EvaluationRequest,
    WindowRequest,
    open_metrics,
    pack_evaluation,
    pack_request,
)
from mobillm_flower.wire.window import open_window, record_bytes

logger = getLogger("flwr")

STRATEGIES: Registry[Callable[..., Any]] = Registry("strategy")
"""Strategies by the name that `strategy` gives."""

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class SideTuningStrategy(Strategy):
    """Trains one side network from the activations that devices upload.

    A subclass says in `check` which settings its paper's method needs, and may override the four methods that
    Flower's strategies have, or `ingest`.

    Parameters
    ----------
    settings : Settings, optional
        By default the preset of the strategy's name.
    run_path : path, optional
        The run's folder; by default `run.folder`, or one named by the run id.
    """

    preset = "pae"
    poll_s = 0.1
    """Seconds between looks for replies when there is nothing to train."""

    def __init__(self, settings: Settings | None = None, *, run_path: str | Path | None = None) -> None:
        self.settings = settings or load_settings({"preset": self.preset})
        require_used(self.settings)
        self.check(self.settings)
        self._run_path = Path(run_path) if run_path else None
        self.clock = Clock()
        self.fleet: Fleet
        self.plan: TrainingPlan
        self.rule: PredictionRule

    def check(self, settings: Settings) -> None:
        """Raise SettingsError where the settings are not this strategy's."""

    # ---- the run ---------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 0,
        timeout: float = 0.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run to the end and return the side network's arrays with all metrics.

        Parameters
        ----------
        grid : Grid
            Where the devices are.
        initial_arrays : ArrayRecord
            State of a side network to start from; empty for a fresh one.
        num_rounds : int
            Most rounds of ingestion; 0 takes `rounds.num-rounds`, where 0 means until each device has passed its
            data once.
        timeout : float
            Seconds a round waits for an answer; 0 takes `rounds.timeout-s`.
        train_config, evaluate_config : ConfigRecord, optional
            Sent along as the record "config", for clients that extend ours.
        evaluate_fn : callable, optional
            (round, arrays) -> MetricRecord, called before the first round and whenever devices evaluate.

        Raises
        ------
        RunFailed
            No device could be used, or none sent a sample; nothing is trained or saved then.
        InUseError
            Another run goes on in the run folder; nothing in it is touched.
        """
        run_id = str(getattr(grid.run, "run_id", "local"))
        self.run = RunFolder(self._run_path or run_folder(self.settings, run_id), run_id=run_id)
        lock = self.run.hold()
        self.run.settings.write_text(to_yaml(self.settings), "utf-8")
        self.timeout = timeout or self.settings.rounds.timeout_s
        self.result = Result()
        self.fleet = Fleet(
            max_strikes=self.settings.rounds.max_strikes,
            max_failures=self.settings.rounds.max_failures,
            on_event=self.run.append,
            accept=self.accept,
        )
        self.exchange = Exchange(
            grid,
            timeout_s=self.timeout,
            poll_s=self.poll_s,
            clock=self.clock,
            on_unreachable=self._on_unreachable,
            on_late=self._on_late,
        )
        self._evaluate_fn, self._evaluate_config = evaluate_fn, evaluate_config or ConfigRecord()
        self.stopping = Stopping(self.settings.stop, now=self.clock.now)
        started = time.monotonic()
        self.run.append(events.Started(type(self).__name__))
        try:
            self.cache = ActivationCache(
                self.run.cache,
                quota_bytes=self.settings.cache.quota_mib << 20,
                retention_s=self.settings.cache.retention_days * 86400,
            )
            self._meet(grid, at_least=self.settings.rounds.min_devices)
            self._prepare(initial_arrays)
            self.summary()
            self._evaluate_centrally(0)
            last = self.ingest(grid, num_rounds or self.settings.rounds.num_rounds, train_config or ConfigRecord())
            if not len(self.cache):
                raise RunFailed(
                    "no sample was received: every device failed, refused, or has no data; see events.jsonl"
                )
            self.run.append(events.Ingested(len(self.cache), self.plan.options.epochs))
            if not self.trainer.run_epochs(stop=self.stopping.ends_training):
                note_stop(self.cache, self.trainer.position.steps)
                self.run.append(events.Stopped(self.stopping.reason))
            self.run.append(events.Trained(self.trainer.position.steps, self.trainer.position.epoch))
            self.result.arrays = self.arrays()
            self._save()
            self._evaluate(grid, last)
            for diagnosis in diagnose(self.trainer, self.cache):
                self.run.append(diagnosis)
        except BaseException as error:
            reason = str(error) if isinstance(error, MobiLLMError | OSError) else type(error).__name__
            with contextlib.suppress(OSError):  # a full disk takes no event; what went wrong comes out all the same
                self._summarise_devices()
                self.run.append(events.Finished("failed", time.monotonic() - started, reason))
            raise
        finally:
            if hasattr(self, "cache"):
                self.cache.close()
            lock.release()
        self._summarise_devices()
        self.run.append(events.Finished("completed", round(time.monotonic() - started, 3)))
        return self.result

    def ingest(self, grid: Grid, num_rounds: int, config: ConfigRecord) -> int:
        """Ask for windows, round after round, until all data is held; returns the last round's number."""
        round_ = first = self._catch_up()
        while (not num_rounds or round_ - first < num_rounds) and not self.stopping.ends_ingestion():
            self._meet(grid)
            messages = list(self.configure_train(round_ + 1, ArrayRecord(), config, grid))
            if not messages and not self.exchange.out(keys.EXTRACT):
                break
            round_ += 1
            replies = self.exchange.exchange(messages, keys.EXTRACT, partial(self.trainer.overlap_step, round_))
            _, metrics = self.aggregate_train(round_, replies)
            while self.trainer.overlap_step(round_):
                pass  # a fixed number of steps, however fast the devices were
            note_round(self.cache, round_)
            if metrics is not None:
                self.result.train_metrics_clientapp[round_] = metrics
                self.run.append(events.Round.of(round_, dict(metrics)))
            every = self.settings.rounds.evaluate_every
            if every and round_ % every == 0:
                self._evaluate(grid, round_)
        return round_

    def planned_rounds(self, num_train: Sequence[int]) -> int:
        """Return how many rounds will be followed by overlapping steps, for devices with so many samples."""
        return max(-(-count // self.settings.rounds.window) for count in num_train)

    def overlap(self) -> dict[str, Any]:
        """Return how overlapping steps are taken: `overlap_steps` and `fresh_share` of `TrainerOptions`."""
        return {"overlap_steps": self.settings.trainer.overlap_steps}

    def _catch_up(self) -> int:
        """Take the overlapping steps that an interrupted run's finished rounds still owe; returns the last of them."""
        last = last_round(self.cache)
        for round_ in range(1, last + 1):
            while self.trainer.overlap_step(round_):
                pass
        return last

    def _stop_ingesting(self, error: CacheFull) -> None:
        """Train on what is held: a full cache ends the ingestion, not the run."""
        if any(device.active for device in self.fleet):
            self.run.append(events.CacheFull(str(error)))
            logger.log(WARNING, "no more samples are taken: %s", error)
        for device in self.fleet:
            device.done = True

    # ---- Flower's four -------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request for a window for each device that has data left and no message out."""
        return self.request_windows(self.fleet, server_round, config)

    def request_windows(
        self, devices: Iterable[DeviceState], server_round: int, config: ConfigRecord, *, at_most: int | None = None
    ) -> Iterator[Message]:
        """Yield a request for the next window of those devices that have data left and no message out."""
        out = self.exchange.busy_nodes
        rounds = self.settings.rounds
        idle = [device for device in devices if device.active and device.node_id not in out]
        for device in idle[:at_most]:
            device.window = device.window or rounds.window
            device.asked_at = self.clock.now()
            request = WindowRequest(
                contract=self.plan.contract,
                spec=self.plan.specs[device.description.backbone.fingerprint],
                round=server_round,
                window=device.window,
                max_bytes=rounds.max_window_mib << 20,
                held=self.cache.held(device.description.pseudonym),
            )
            yield self._message(device, pack_request(request), keys.EXTRACT, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check and commit windows as they arrive; nothing of a bad one is kept."""
        samples = rejected = 0
        for reply in replies:
            device = self._sender(reply)
            if device is None:
                continue
            try:
                samples += self._take_window(device, reply, server_round)
            except PacketRejected as error:
                rejected += 1
                self.fleet.strike(device, error)
            except CacheFull as error:
                self._stop_ingesting(error)
        held = len(self.cache)
        values: dict[str, int | float | list[int] | list[float]] = {
            "num-examples": samples,
            "num-held": held,
            "num-rejected": rejected,
            "cache-bytes": self.cache.num_bytes,
        }
        return None, MetricRecord(values)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the side network, with the asking type's alignment alone, for each device.

        A device whose type sent no sample gets none and evaluates its base model. The request also shows what the
        server holds, so that a device can empty its outbox.
        """
        state = arrays.to_torch_state_dict()
        trained = self.cache.rows().names("backbone")
        out = self.exchange.busy_nodes
        for device in self.fleet:
            if device.dropped or device.node_id in out:
                continue
            backbone = device.description.backbone.fingerprint
            request = EvaluationRequest(
                contract=self.plan.contract,
                spec=self.plan.specs[backbone],
                side_config=self.plan.side_config.only(backbone),
                prediction=dataclasses.asdict(self.rule),
                state=state_for(state, backbone) if backbone in trained else {},
                held=self.cache.held(device.description.pseudonym),
                codec=self.settings.side_network.codec,
            )
            yield self._message(device, pack_evaluation(request), keys.EVALUATE, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the devices' metrics by their number of test samples, in all and by backbone type."""
        everyone, by_type = Average(), defaultdict(Average)  # type: Average, dict[str, Average]
        for reply in replies:
            device = self._sender(reply)
            if device is None:
                continue
            try:
                content = self.fleet.content(device, reply)
                if content is None:
                    continue
                metrics = open_metrics(content, metric=self.plan.contract.metric, num_test=device.description.num_test)
            except PacketRejected as error:
                self.fleet.strike(device, error)
                continue
            device.bytes_up += record_bytes(content)
            weight = metrics.pop(keys.NUM_EXAMPLES)
            everyone.add(weight, metrics)
            by_type[device.description.backbone.fingerprint].add(weight, metrics)
        if not everyone.weight:
            return None
        record = MetricRecord({**everyone.values(), keys.NUM_EXAMPLES: int(everyone.weight)})
        self.run.append(events.Evaluation.of(server_round, dict(record), devices=everyone.count))
        trained = self.cache.rows().names("backbone")
        for name, average in sorted(by_type.items()):
            if average.weight:
                self._log_type(server_round, name, average, trained=name in trained)
        return record

    def summary(self) -> None:
        """Log what is about to happen."""
        side = self.plan.side_config
        count = sum(p.numel() for p in self.trainer.network.parameters())
        logger.log(
            INFO,
            "%s: %d devices, %d backbone type(s), %d blocks, side width %d, %s trainable parameters, run folder %s",
            type(self).__name__,
            len(self.fleet),
            len(self.plan.specs),
            side.num_blocks,
            side.width,
            f"{count:,}",
            self.run.path,
        )

    def _log_type(self, round_: int, fingerprint: str, average: Average, *, trained: bool) -> None:
        """Log what the devices of one backbone type measured."""
        backbone = self.fleet.backbones[fingerprint]
        self.run.append(
            events.TypeEvaluation(
                round=round_,
                type=fingerprint[:12],
                backbone=backbone.name,
                layers=backbone.depth,
                width=backbone.width,
                trained=trained,
                num_examples=int(average.weight),
                devices=average.count,
                metrics=average.values(),
            )
        )

    def arrays(self) -> ArrayRecord:
        """Return the side network's state."""
        return ArrayRecord(self.trainer.state)

    # ---- meeting devices -----------------------------------------------------------------------------------------

    def accept(self, backbone: BackboneInfo) -> None:
        """Take in a backbone type; raises MismatchError where the run cannot have it any more."""
        if hasattr(self, "plan") and backbone.fingerprint not in self.plan.specs:
            raise MismatchError(
                f"backbone {backbone.name} with {backbone.depth} layers is not among those the run started with"
            )

    def _meet(self, grid: Grid, *, at_least: int = 0) -> None:
        """Ask nodes that are new what they are, and take them in; waits until there are `at_least` devices."""
        deadline = self.clock.now() + self.timeout
        while True:
            for reply in self.exchange.exchange(self._greetings(grid), keys.DESCRIBE):
                self._welcome(reply)
            if len(self.fleet) >= at_least:
                return
            # all that a simulation has, or a deployment was announced to have: nobody else will come
            all_refused = not len(self.fleet) and self.fleet.num_refused >= self.settings.data.num_devices
            if all_refused or self.clock.now() > deadline:
                break
            self.clock.sleep(self.poll_s)
        reasons = self.fleet.reasons
        when = f"all {self.fleet.num_refused} refused" if all_refused else f"after {self.timeout:g} s"
        raise RunFailed(
            f"{len(self.fleet)} of at least {at_least} device(s) can be used, {when}"
            + (f"; {'; '.join(reasons[:3])}" if reasons else "; is a SuperNode connected?")
        )

    def _greetings(self, grid: Grid) -> list[Message]:
        """Return a request for a description for each node that is new; notes which devices are connected."""
        self.present = set(grid.get_node_ids())
        now, busy = self.clock.now(), self.exchange.busy_nodes
        for device in self.fleet:
            if device.node_id in self.present:
                device.seen_at = now
        fresh = sorted(n for n in self.present if not self.fleet.knows(n, self.present) and n not in busy)
        return [Message(RecordDict(), dst_node_id=n, message_type=keys.DESCRIBE, ttl=self.timeout) for n in fresh]

    def _welcome(self, reply: Message) -> None:
        node = self.exchange.sender(reply)
        assert node is not None
        self.fleet.meet(node, reply, lambda pseudonym: len(self.cache.held(pseudonym)), present=self.present)

    def _prepare(self, initial_arrays: ArrayRecord) -> None:
        """Fix what the run keeps fixed, or take it over from the cache of an interrupted run."""
        plan = TrainingPlan.of(self.cache)
        num_train = [device.description.num_train for device in self.fleet]
        contract = self.fleet.contract
        assert contract is not None
        known = {name: b for name, b in self.fleet.backbones.items() if plan is None or name in plan.specs}
        if not known:
            raise MismatchError(
                f"{self.run.path} holds a run with other backbones than those of the devices that are there; connect "
                "one of its devices, or use another run.folder"
            )
        fresh = make_plan(
            self.settings,
            contract,
            known,
            num_train,
            planned_rounds=self.planned_rounds(num_train),
            **self.overlap(),
            num_blocks=plan.side_config.num_blocks if plan else 0,
        )
        if plan is None:
            plan = fresh
            plan.store(self.cache)
        elif differing := differences(plan, fresh):
            raise MismatchError(
                f"{self.run.path} holds a run with another {', '.join(differing)}; use another run.folder, or the "
                "settings it was started with"
            )
        self.plan = plan
        note_backbones(self.cache, {name: dataclasses.asdict(known[name]) for name in fresh.specs})
        self.rule = prediction_rule(plan, send_base=self.settings.loss.send_base)
        self.trainer = plan.trainer(
            self.cache,
            scores=self.rule.scores,
            memory_bytes=self.settings.cache.memory_mib << 20,
            checkpoint=self.run.checkpoint,
            on_epoch=self._on_epoch,
            device=training_device(self.settings),
            frozen=frozen_parts(plan, self.settings, known),
        )
        for device in self.fleet:
            try:
                self.accept(device.description.backbone)  # its type may have come while the run was down
            except MismatchError as error:
                del self.fleet.devices[device.node_id]
                self.fleet.backbones.pop(device.description.backbone.fingerprint, None)
                self.fleet.refuse(device.node_id, str(error))
        if len(initial_arrays) and not self.trainer.position.steps:
            self.trainer.start_from(initial_arrays.to_torch_state_dict())
            note_warm_start(self.cache)
        self._log_prepared()

    def _log_prepared(self) -> None:
        """Log what the run keeps fixed."""
        plan = self.plan
        guarantee = release_guarantee(next(iter(plan.specs.values())), plan.contract, delta=self.settings.privacy.delta)
        prepared = events.Prepared(
            devices=len(self.fleet),
            num_train=sum(d.description.num_train for d in self.fleet),
            num_blocks=plan.side_config.num_blocks,
            width=plan.side_config.width,
            parameters=sum(p.numel() for p in self.trainer.network.parameters()),
            trained_on=self.trainer.loader.device.type,
            planned_steps=plan.options.planned_steps,
            resumed_steps=self.trainer.position.steps,
            layers={name[:12]: list(spec.layers) for name, spec in plan.specs.items()},
            pivots={name[:12]: spec.pivot for name, spec in plan.specs.items()},
            scale=plan.scale,
            guarantee=dataclasses.asdict(guarantee),
        )
        self.run.append(prepared)

    # ---- messages ------------------------------------------------------------------------------------------------

    def _message(self, device: DeviceState, content: RecordDict, kind: str, config: ConfigRecord) -> Message:
        if len(config):
            content["config"] = config
        device.bytes_down += record_bytes(content)
        ttl = self.timeout * self.settings.rounds.max_failures
        return Message(content, dst_node_id=device.node_id, message_type=kind, ttl=ttl)

    def _on_unreachable(self, node: int) -> None:
        if node in self.fleet.devices:
            self.fleet.fail(self.fleet.devices[node], "the node is not connected")

    def _on_late(self, node: int, kind: str) -> bool:
        """Count a failure; a window is still waited for, unless the device is dropped for it."""
        device = self.fleet.devices.get(node)
        reason = f"no answer within {self.timeout:g} s"
        if device is None:
            self.fleet.refuse(node, reason)
            return False
        self.fleet.fail(device, reason)
        return kind == keys.EXTRACT and not device.dropped

    def _sender(self, reply: Message) -> DeviceState | None:
        node = self.exchange.sender(reply)
        return None if node is None else self.fleet.devices.get(node)

    def _take_window(self, device: DeviceState, reply: Message, round_: int) -> int:
        """Open, check and commit one window; returns the number of new samples."""
        content = self.fleet.content(device, reply)
        if content is None:
            return 0
        backbone = device.description.backbone.fingerprint
        window = open_window(
            content,
            spec=self.plan.specs[backbone],
            contract=self.plan.contract,
            max_samples=device.window,
            max_bytes=(self.settings.rounds.max_window_mib << 20) + (1 << 20),
        )
        if window.pseudonym != device.description.pseudonym:
            raise PacketRejected("pseudonym", "the packet names another device than the node it came from")
        if window.total != device.description.num_train:
            raise PacketRejected(
                "total", f"{window.total} samples, {device.description.num_train} were described; the data has changed"
            )
        added = self.cache.add(window.pseudonym, window.samples, backbone=backbone, round_=round_)
        if not added and window.remaining:
            raise PacketRejected("progress", f"nothing new was sent, and {window.remaining} samples are said to remain")
        device.count(window, added)
        self.stopping.count_upload(window.num_bytes)
        committed = events.Window(
            round=round_,
            device=device.description.pseudonym,
            window=device.windows,
            samples=len(window.samples),
            new=added,
            remaining=window.remaining,
            refused=window.refused,
            bytes=window.num_bytes,
            forward_seconds=round(window.forward_seconds, 4),
        )
        self.run.append(committed)
        return added

    # ---- evaluating and saving -----------------------------------------------------------------------------------

    def _evaluate(self, grid: Grid, round_: int) -> None:
        arrays = self.arrays()
        messages = list(self.configure_evaluate(round_, arrays, self._evaluate_config, grid))
        metrics = self.aggregate_evaluate(round_, self.exchange.exchange(messages, keys.EVALUATE))
        if metrics is not None:
            self.result.evaluate_metrics_clientapp[round_] = metrics
        self._evaluate_centrally(round_)

    def _evaluate_centrally(self, round_: int) -> None:
        if self._evaluate_fn is None:
            return
        metrics = self._evaluate_fn(round_, self.arrays())
        if metrics is not None:
            self.result.evaluate_metrics_serverapp[round_] = metrics
            self.run.append(events.ServerEvaluation(round_, dict(metrics)))

    def _on_epoch(self, epoch: events.Epoch) -> None:
        self.stopping.note_accuracy(epoch.validation_accuracy)
        self.run.append(epoch)

    def _save(self) -> None:
        known = known_backbones(self.cache)  # the only device of a type may be away
        save_side_network(
            self.run.side_network,
            state=self.trainer.state,
            side_config=self.plan.side_config,
            specs=self.plan.specs,
            backbones={name: known[name] for name in self.plan.specs},
            contract=self.plan.contract,
            rule=self.rule,
        )
        gates = getattr(self.trainer.network, "gate_values", [])
        self.run.append(events.Gates([round(value, 4) for value in gates]))

    def _summarise_devices(self) -> None:
        for device in self.fleet:
            self.run.append(device.summary())


def make_strategy(settings: Settings, *, run_path: str | Path | None = None) -> Any:
    """Return the strategy that the settings name.

    Parameters
    ----------
    settings : Settings
        From `load_settings`.
    run_path : path, optional
        The run's folder; by default `run.folder`, or one named by the run id.
    """
    return STRATEGIES[settings.strategy](settings, run_path=run_path)
